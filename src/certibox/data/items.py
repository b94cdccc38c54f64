"""Images that are in memory already, or that an object hands out one by one: arrays, lists, map-style data sets."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from certibox.data.arrays import images_from_arrays, integer_labels, refuse_tables
from certibox.data.asked import Asked
from certibox.data.decoding import Pile, pixels_of_item, reading
from certibox.data.folders import read_files
from certibox.data.images import Images, too_many_classes
from certibox.errors import InvalidImages, InvalidInput

_TAKEN = (
    "a name, a path, Images, an array or tensor, a pair (images, labels), a list of images or of paths, a map-style "
    "data set with __len__ and __getitem__ that gives image or (image, label), or a datasets.Dataset"
)


class MapStyle(Protocol):
    """A data set that knows its length and gives one item at a time, as map-style `torch.utils.data.Dataset` do."""

    def __len__(self) -> int:
        """Number of items."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """One item: an image, or a tuple (image, label).

        Args:
            index: Position of the item, from 0.

        Returns: The image is a Pillow image, the path of one, or an array or tensor (h, w), (c, h, w) or (h, w, c) with
            integers in 0..255 or floats in [0, 1]. The label is an integer, or None.
        """
        ...


def from_objects(source: Any, asked: Asked) -> Images:
    """Images from whatever `load_images` takes that is neither a name, nor a path, nor Images, nor Hugging Face's.

    A share is drawn from them by the caller."""
    refuse_tables(source, "arrays")
    if isinstance(source, tuple):
        return _from_pair(source, asked)
    if isinstance(source, np.ndarray) and source.dtype.kind == "U" and source.ndim == 1:
        return _from_paths(source.tolist(), asked)
    single = isinstance(source, str | bytes | Path | Mapping | Image.Image)
    if hasattr(source, "__array__") and not single:
        return images_from_arrays(source[: asked.at_most] if getattr(source, "ndim", 0) else source)
    if single or not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise InvalidInput(f"images are {_named(source)}, wanted {_TAKEN}")
    if isinstance(source, list) and source and isinstance(source[0], list):  # nested lists of numbers
        return images_from_arrays(source[: asked.at_most])
    if isinstance(source, list) and any(isinstance(item, str | PathLike) for item in source):
        return _from_paths(source, asked)
    return _from_items(source, asked)


def _from_paths(source: list[Any], asked: Asked) -> Images:
    strange = next((i for i, item in enumerate(source) if not isinstance(item, str | PathLike)), None)
    if strange is not None:
        raise InvalidImages(f"list item {strange}: holds {_named(source[strange])}, wanted a path like the others")
    return read_files(source, "list", asked)


def _from_pair(source: tuple[Any, ...], asked: Asked) -> Images:
    if len(source) != 2 or isinstance(source[0], str | bytes | Path | tuple | Images):
        came = ", ".join(_named(part) for part in source[:3]) + (", …" if len(source) > 3 else "")
        raise InvalidInput(f"images are a tuple ({came}), wanted an array or list of images and labels, or a list")
    if source[1] is None:
        return from_objects(source[0], asked)
    # labels belong to places in the list, so that none may be left out
    images = from_objects(source[0], replace(asked, skip_unreadable=False))
    if images.labels is not None:
        raise InvalidInput("the images of the pair (images, labels) have labels of their own; give one or the other")
    labels = integer_labels(source[1], images.name)
    if labels.shape != (len(source[0]),):
        shape = tuple(labels.shape)
        raise InvalidImages(f"labels have shape {shape}, wanted one label for each of {len(source[0])} images")
    return replace(images, labels=labels[: asked.at_most])


def _from_items(source: MapStyle, asked: Asked) -> Images:
    """One item at a time, so that nothing but the pixels is kept."""
    name = type(source).__name__
    with reading(name):
        count = len(source)
    pile, facts = Pile(asked.channels, asked.skip_unreadable), []
    for i in range(count if asked.at_most is None else min(count, asked.at_most)):
        pile.attempt(lambda at=i: _item(source, at, f"{name} item {at}", facts), f"{name} item {i}")
    pile.finish(name)
    labels, files = [label for label, _ in facts], tuple(file for _, file in facts if file is not None)
    if not labels:
        raise InvalidInput(f"{name} holds no images; wanted at least one")
    missing = labels.count(None)
    if missing not in (0, len(labels)):
        raise InvalidInput(f"{name}: {missing} of {len(labels)} images have no label; label all of them or none")
    named = files if len(files) == len(labels) else None
    return Images(pile.tensor(), None if missing else torch.tensor(labels), name, files=named)


def _item(source: MapStyle, i: int, where: str, facts: list[tuple[int | None, str | None]]) -> np.ndarray:
    """The pixels of an item; its label and its path, if it is one, join those of the others."""
    with reading(where):
        item = source[i]
    image, label = _image_and_label(item, where)
    pixels = pixels_of_item(image, where)
    facts.append((label, os.fspath(image) if isinstance(image, str | PathLike) else None))
    return pixels


def _image_and_label(item: Any, where: str) -> tuple[Any, int | None]:
    if not isinstance(item, tuple):
        return item, None
    if not 1 <= len(item) <= 2:
        raise InvalidImages(f"{where}: holds a tuple of {len(item)}, wanted an image or a pair (image, label)")
    image, label = (*item, None)[:2]
    if label is None:
        return image, None
    try:
        number = operator.index(label)
    except TypeError as error:
        raise InvalidImages(f"{where}: label {label!r:.40} is no integer; encode labels as 0, 1, …") from error
    if abs(number) >= 2**63:
        raise too_many_classes(number, where)
    return image, number


def _named(source: object) -> str:
    kind = type(source)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"

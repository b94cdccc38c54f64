"""`load_images`: one door to every source.

The names without an underscore are the readers' common parts; outside this package only `load_images` is public.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certibox.data.arrays import refuse_tables, with_channels
from certibox.data.asked import Asked, pick
from certibox.data.decoding import reading
from certibox.data.digits import read_digits
from certibox.data.files import FILE_SUFFIXES, read_file
from certibox.data.folders import read_folder, scan, tell_of_pictures
from certibox.data.images import Images
from certibox.data.items import MapStyle, from_objects
from certibox.data.rows import Table, folder_rows, from_rows, given_rows, hub_rows
from certibox.data.stl10 import read_stl10, stl10_splits
from certibox.errors import InvalidInput, UnreadableFile, did_you_mean

ImageSource = str | os.PathLike[str] | Images | np.ndarray | Tensor | tuple[Any, Any] | Sequence[Any] | MapStyle
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def load_images(
    source: ImageSource,
    split: str = "train",
    *,
    limit: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    configuration: str | None = None,
    channels: int | None = None,
    skip_unreadable: bool = False,
) -> Images:
    """Load one split of a set of images, or some of its images, from wherever they are.

    Grey images have one channel, all others become RGB. What is read one image after the other (folders, tables,
    lists, data sets) keeps nothing but its pixels, 8 bits each. What is left out, and what a source lets one guess
    only, is said in a warning of one line.

    Args:
        source: Place or object that has the images:

            - "digits": scikit-learn's 1,797 handwritten 8×8 digits, in 8 bits, as "train" (1,000), "validation" (297)
              and "test" (500), every class in proportion, by a fixed permutation;
            - a folder with parquet or arrow files, one such file, or a Hugging Face Hub name "org/name" (a local path
              wins over the Hub), or a `datasets.Dataset`, `IterableDataset` or dictionary of them. Labels are integers,
              or names, which are numbered in their order over all splits. A cell may be a path inside the folder;
            - a folder of images: split/class/*, class/* or, without labels, split/* or *, of any kind that Pillow
              reads, all of one size. Classes are numbered over all splits in the natural order of their names, 9 before
              10; names that are whole numbers are their labels, but 1 to K become 0 to K - 1. Or the labels come
              from a column of `metadata.csv` or `metadata.jsonl`, beside `file_name`. Hidden files, folders without
              images and what operating systems leave (`__MACOSX`, `@eaDir`, `Thumbs.db`) do not count;
            - a folder with STL-10's binary files train_X.bin, train_y.bin, …: splits "train", "test" and "unlabeled";
            - an `.npz` with `images` (or `x`) and optionally `labels` (or `y`), or with both for each split, as
              `x_train`, `y_train`, `x_test` and `y_test`, or `train_images`; or an `.npy` of images. Arrays are as
              `images_from_arrays` takes them, of at most 8 GiB. Or one picture;
            - an array or tensor (n, h, w), (n, c, h, w) or (n, h, w, c), as `images_from_arrays` takes it, or a tuple
              (images, labels) of images in any of these forms or a list, and integers (n,);
            - a list of images or of paths to images, or a map-style data set (`torch.utils.data.Dataset` with
              `__len__`), whose items are images or tuples (image, label): see `MapStyle`;
            - Images, returned as they are.
        split: Name of the split. A source without splits (a file, an array, a list, a folder that has none) is taken
            whole, and a warning says so unless the split is "train" or the source bears its name. NAME:SHARE divides
            it: "train:0.8" is 80 % of the images by a fixed permutation, every other name takes its share from the
            other end, so that "train:0.8" and "test:0.2" have no image in common and together are everything.
        limit: Maximum number of images, taken from the start; None for all. Of an image folder with labels, the first
            image of each class, then the second of each, and so on, so that classes are even.
        image_column: Column that holds the images, where the source is a table; by default `image`, else the only one
            that looks like it.
        label_column: Column that holds the labels, where the source is a table or has metadata; by default `label`,
            else the only one of a usual name, such as `labels`, `target` or `fine_label`.
        configuration: Name of the configuration, where a Hugging Face data set has several.
        channels: Number of channels to bring all images to: 1 for grey, 3 for RGB, None as they come.
        skip_unreadable: Whether images that cannot be read are left out, which a warning counts, instead of an error.

    Returns: The images, with labels where the source has them.

    Raises:
        InvalidInput: The source, the split or a column is unknown or holds nothing, or an argument has no meaning for
            this source.
        InvalidImages: Images or labels have another shape, type or range, or differ in size.
        UnreadableFile: A file is missing or damaged, or a data set fails to give an item.
    """
    asked = Asked(split, limit, image_column, label_column, configuration, channels, skip_unreadable)
    images = _read(source, asked)
    asked.tell_of_one_class(images)
    if channels in (None, images.shape[0]):
        return images
    return replace(images, images=torch.from_numpy(with_channels(images.images.numpy(), channels)))


def _read(source: ImageSource, asked: Asked) -> Images:
    """The images of a source: the share and the limit that are asked for."""
    if isinstance(source, str | os.PathLike):
        return _from_place(source, asked)
    table = given_rows(source, asked)
    if table is not None:
        return _one_split(from_rows(table, asked), asked, table)
    refuse_tables(source, "arrays")
    asked.refuse(type(source).__name__, "image_column", "label_column", "configuration")
    images = source if isinstance(source, Images) else from_objects(source, asked)
    return _undivided(images, asked, images.name)


def _from_place(source: str | os.PathLike[str], asked: Asked) -> Images:
    if source == "digits":
        asked.refuse("digits", "image_column", "label_column", "configuration")
        return asked.part(read_digits(asked.split))
    path = local_path(source)
    if path is None:
        table = hub_rows(str(source), asked)
        return _one_split(from_rows(table, asked), asked, table)
    if path.is_dir():
        return _from_folder(path, asked)
    images, is_split = read_file(path, asked)
    return asked.part(images) if is_split else _undivided(images, asked, str(path))


def _from_folder(path: Path, asked: Asked) -> Images:
    with reading(path):
        binaries = stl10_splits(path)
    name = f"{path.resolve().name}:{asked.split}"
    if binaries:
        asked.refuse(str(path), "image_column", "label_column", "configuration")
        with reading(path):
            return asked.part(read_stl10(pick(binaries, asked.split, str(path)), name, asked.at_most))
    tree = scan(path)
    if tree.is_dataset:
        table = folder_rows(path, asked)
        images = from_rows(table, asked)
        tell_of_pictures(tree, images.files or (), "the tables")
        return _one_split(images, asked, table)
    return read_folder(tree, name, asked)


def _one_split(images: Images, asked: Asked, table: Table) -> Images:
    return asked.part(images) if table.has_splits else _undivided(images, asked, table.name.partition(":")[0])


def _undivided(images: Images, asked: Asked, where: str) -> Images:
    """The part that is asked for of a source without splits."""
    asked.whole(where, len(images))
    return asked.part(images)


def local_path(source: str | os.PathLike[str]) -> Path | None:
    """The existing path that `source` means, or None for a Hub name."""
    text = os.fspath(source)
    path = Path(os.path.expanduser(text))
    if text and os.path.exists(path):
        return path
    if not isinstance(source, str) or text.startswith((".", "/", "~")) or Path(text).suffix.lower() in FILE_SUFFIXES:
        raise UnreadableFile(f"{text}: no such file or folder; check the path")
    if not _HUB_NAME.fullmatch(text):
        near = did_you_mean(text, ["digits"])
        raise InvalidInput(f"{text!r} is neither 'digits', nor an existing path, nor a Hub name 'org/name'{near}")
    return None

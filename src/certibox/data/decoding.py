"""One image at a time -> uint8 pixels: encoded files, Pillow images and arrays; and what piles them up."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from certibox.data.images import one_line, stored_pixels
from certibox.errors import CertiboxError, InvalidImages, InvalidInput, UnreadableFile


class Pile:
    """Images of one shape, packed as they come: the pixels are never kept twice."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.shape: tuple[int, ...] = ()

    def add(self, pixels: np.ndarray, where: str) -> None:  # uint8 (c, h, w)
        self.shape = self.shape or pixels.shape
        if pixels.shape != self.shape:
            (c, h, w), (c0, h0, w0) = pixels.shape, self.shape
            raise InvalidImages(
                f"{where}: {w}×{h} pixels, {c} channels, but those before have {w0}×{h0}, {c0}; bring all to one size"
            )
        self.buffer += pixels.tobytes()

    def tensor(self) -> Tensor:  # (n, c, h, w)
        return torch.frombuffer(self.buffer, dtype=torch.uint8).reshape(-1, *self.shape)


def read_image(file: Path | io.BytesIO, where: str) -> Image.Image:
    """One encoded image, upright: grey (mode L) if it is stored so, RGB otherwise."""
    with reading(where), Image.open(file) as image:
        return upright(image, where)


def upright(image: Image.Image, where: str) -> Image.Image:
    """The image as its camera held it, in mode L if it is grey, in RGB otherwise."""
    if image.mode[0] in "IF":  # wide integers or floats, which a conversion would clip without a word
        raise InvalidImages(f"{where}: {image.size[0]}×{image.size[1]}, mode {image.mode}; wanted 8 bits a channel")
    turned = ImageOps.exif_transpose(image)
    return turned.convert("L" if turned.mode in ("L", "1") else "RGB")


def pixels_of(image: Image.Image) -> np.ndarray:  # mode L or RGB -> uint8 (1 or 3, h, w)
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


def pixels_of_item(item: Any, where: str) -> np.ndarray:
    """One image as somebody's data set gives it -> uint8 (c, h, w): a Pillow image, or an array or tensor
    (h, w), (c, h, w) or (h, w, c) as `images_from_arrays` takes them."""
    if isinstance(item, Image.Image):
        with reading(where):
            return pixels_of(upright(item, where))
    if not isinstance(item, np.ndarray | Tensor):
        raise InvalidImages(f"{where}: holds {type(item).__name__}, wanted a Pillow image, an array or a tensor")
    return stored_pixels(item[None], where)[0]


@contextmanager
def reading(what: str | Path) -> Iterator[None]:
    """Turn whatever a reader of foreign bytes raises into one line. Such readers share no base exception."""
    try:
        yield
    except (CertiboxError, MemoryError):
        raise
    except Exception as error:
        raise UnreadableFile(f"{what} cannot be read: {one_line(error)}; check or replace it") from error


def pick(splits: Any, split: str, name: str) -> Any:
    if split not in splits:
        raise InvalidInput(f"{name} has no split {split!r}; available: {', '.join(map(str, splits))}")
    return splits[split]

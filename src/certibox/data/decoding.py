"""One image at a time -> uint8 pixels: encoded files, Pillow images and arrays; and what piles them up."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from certibox.data.arrays import stored_pixels, tell_of_dark, with_channels
from certibox.data.asked import aloud
from certibox.errors import CertiboxError, InvalidImages, InvalidInput, UnreadableFile, described

MOST_BYTES = 8 * 2**30  # of pixels or of arrays, where the size of the memory is unknown, and in any one archive
_NAMED = 3  # failures that a message names
_REASON = 100  # characters of the reason of the first
_HOPELESS = 20  # failures after which nothing more is tried


class Pile:
    """Images of one shape, packed as they come: the pixels are never kept twice.

    channels: 1 or 3, to which images are brought; None as they come. skip: whether images that cannot be read are left
    out, which `finish` counts aloud. root: folder that messages about several images leave out of their names.
    """

    def __init__(self, channels: int | None = None, skip: bool = False, root: str = "") -> None:
        self.buffer = bytearray()
        self.shape: tuple[int, ...] = ()
        self.channels, self.skip, self.most = channels, skip, _memory()
        self.root, self.tried = root, 0
        self.failed: list[tuple[str, UnreadableFile]] = []

    def add(self, pixels: np.ndarray, where: str) -> None:  # uint8 (c, h, w)
        pixels = with_channels(pixels, self.channels)
        self.shape = self.shape or pixels.shape
        if pixels.shape != self.shape:
            raise InvalidImages(f"{where}: {_differing(pixels.shape, self.shape)}")
        if len(self.buffer) + pixels.nbytes > self.most:
            raise InvalidInput(f"{where}: the images so far fill {gib(self.most)}; take fewer of them with limit")
        self.buffer += pixels.tobytes()

    def attempt(self, read: Callable[[], np.ndarray], where: str) -> bool:
        """Add what `read` gives; False if it cannot be read."""
        self.tried += 1
        try:
            pixels = read()
        except UnreadableFile as error:
            self.failed.append((where, error))
            if not self.skip and len(self.failed) == _HOPELESS:
                raise self._unreadable() from error
            return False
        self.add(pixels, where)
        return True

    def finish(self, name: str) -> None:
        """Raise `UnreadableFile` for images that could not be read, or count them aloud; say if all others are dark."""
        if self.failed and not (self.skip and self.buffer):
            raise self._unreadable()
        if self.buffer:
            tell_of_dark(int(np.frombuffer(self.buffer, np.uint8).max()), self.tried - len(self.failed), name)
        if self.failed:
            aloud(
                f"{name}: {len(self.failed)} of {self.tried} images cannot be read and were left out: {self._names()}"
            )

    def _names(self) -> str:
        start = f"{self.root}{os.sep}" if self.root else ""
        names = ", ".join(where.removeprefix(start) for where, _ in self.failed[:_NAMED])
        return names + (", …" if len(self.failed) > _NAMED else "")

    def _unreadable(self) -> UnreadableFile:
        skip = "" if self.skip else ", or leave such images out with skip_unreadable"
        if len(self.failed) == 1:
            return UnreadableFile(f"{self.failed[0][1]}{skip}")
        inside = f" of {self.root}" if self.root else ""
        came = f"{len(self.failed)} of {self.tried} images{inside} cannot be read: {self._names()}"
        reason = str(self.failed[0][1]).partition(";")[0].rpartition(" cannot be read: ")[2]
        return UnreadableFile(f"{came} ({reason[:_REASON]}); check or replace them{skip}")

    def tensor(self) -> Tensor:  # (n, c, h, w)
        return torch.frombuffer(self.buffer, dtype=torch.uint8).reshape(-1, *self.shape)


def _differing(came: tuple[int, ...], before: tuple[int, ...]) -> str:
    (c, h, w), (c0, h0, w0) = came, before
    remedy = "bring all to one size" if (h, w) != (h0, w0) else "ask for channels=1 or 3 (--channels)"
    return f"{w}×{h} pixels, {c} channels, but those before have {w0}×{h0}, {c0}; {remedy}"


def _memory() -> int:
    """Bytes that images may fill: three quarters of the memory, if its size is known."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 3 // 4
    except (AttributeError, ValueError, OSError):  # no such call on this system
        return MOST_BYTES


def gib(size: int) -> str:
    """A size in bytes, in words."""
    return f"{size / 2**30:,.1f} GiB"


def require_regular(path: Path) -> Path:
    """`path`, if it is a file that can be read to its end: to open a pipe or a device may never return."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe, socket or device"
        raise UnreadableFile(f"{path} is {kind}; wanted a regular file")
    return path


def read_image(file: Path | io.BytesIO, where: str) -> Image.Image:
    """One encoded image, upright: grey (mode L) if it is stored so, RGB otherwise."""
    if isinstance(file, Path):
        require_regular(file)
    with reading(where), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow says of large images and of odd headers
        with _opened(file, where) as image:
            w, h = image.size
            if Image.MAX_IMAGE_PIXELS and w * h > Image.MAX_IMAGE_PIXELS:
                most = f"{Image.MAX_IMAGE_PIXELS:,}"
                raise UnreadableFile(f"{where} unpacks to {w}×{h} pixels; wanted at most {most}: shrink it")
            return upright(image, where)


def _opened(file: Path | io.BytesIO, where: str) -> Image.Image:
    try:
        return Image.open(file)
    except UnidentifiedImageError:  # whose own words name an object in memory, where there is no path
        reason = "it is no picture that Pillow knows"
        raise UnreadableFile(f"{where} cannot be read: {reason}; check or replace it") from None


def upright(image: Image.Image, where: str) -> Image.Image:
    """The image as its camera held it, in mode L if it is grey, in RGB otherwise."""
    if image.mode[0] in "IF":  # wide integers or floats, which a conversion would clip without a word
        raise InvalidImages(
            f"{where}: {image.size[0]}×{image.size[1]}, mode {image.mode}; wanted 8 bits a channel: rescale"
        )
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
    if isinstance(item, str | os.PathLike):
        return pixels_of(read_image(Path(os.path.expanduser(item)), str(item)))
    if not isinstance(item, np.ndarray | Tensor):
        raise InvalidImages(
            f"{where}: holds {type(item).__name__}, wanted a Pillow image, a path, an array or a tensor"
        )
    return stored_pixels(item[None], where)[0]


@contextmanager
def reading(what: str | Path) -> Iterator[None]:
    """Turn whatever a reader of foreign bytes raises into one line. Such readers share no base exception."""
    try:
        yield
    except (CertiboxError, MemoryError):
        raise
    except Exception as error:
        raise UnreadableFile(f"{what} cannot be read: {described(error)}; check or replace it") from error

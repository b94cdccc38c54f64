"""STL-10 as its authors distribute it: headerless binary files of 96×96 colour images (Coates, Ng, Lee; AISTATS 2011).

`train_X.bin`, `test_X.bin` and `unlabeled_X.bin` hold one byte a pixel, image after image and channel after channel
(red, green, blue), each channel column by column: a matrix in the column-major order of MATLAB, so that rows and
columns change places on the way in. `train_y.bin` and `test_y.bin` hold one byte an image, 1 to 10; here labels
start at 0. An optional `class_names.txt` names the classes, one a line. Source: the description of the data set
on its authors' pages.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from certibox.data.images import Images
from certibox.errors import InvalidInput, UnreadableFile

_SHAPE = (3, 96, 96)
_BYTES = 3 * 96 * 96
_CLASSES = 10
_SPLITS = ("train", "test", "unlabeled")


def stl10_splits(folder: Path) -> dict[str, Path]:
    """Split -> its file of images, for those that are there; empty where the folder is not STL-10 in binary."""
    files = {split: folder / f"{split}_X.bin" for split in _SPLITS}
    return {split: file for split, file in files.items() if file.is_file()}


def read_stl10(file: Path, name: str, limit: int | None = None) -> Images:
    """The images of `file`, one of `stl10_splits`, or its first `limit`, with labels except for "unlabeled".

    Raises UnreadableFile for files of a wrong length or a label outside 1..10; OSError as the file system does.
    """
    count, rest = divmod(file.stat().st_size, _BYTES)
    if rest or not count:
        came = count * _BYTES + rest
        raise UnreadableFile(f"{file}: {came} bytes, wanted a multiple of {_BYTES}, 3×96×96; download it again")
    labels = None if file.name == "unlabeled_X.bin" else _labels(file, count)
    stored = np.memmap(file, np.uint8, "r", shape=(count, *_SHAPE))[:limit]
    images = torch.empty(stored.shape, dtype=torch.uint8)
    np.copyto(images.numpy(), stored.transpose(0, 1, 3, 2))  # (n, c, w, h) -> (n, c, h, w)
    if labels is None:
        return Images(images, None, name)
    return Images(images, labels[:limit], name, _class_names(file.parent))


def _labels(images: Path, count: int) -> Tensor:  # int64 (count,)
    file = images.with_name(images.name.replace("_X", "_y"))
    if not file.is_file():
        raise UnreadableFile(f"{file}: not there, but {images.name} is; put the labels beside the images")
    stored = np.fromfile(file, np.uint8)
    if len(stored) != count:
        raise UnreadableFile(f"{file}: {len(stored)} labels, wanted one for each of {count} images; download it again")
    if not 1 <= stored.min() <= stored.max() <= _CLASSES:
        raise UnreadableFile(f"{file}: labels from {stored.min()} to {stored.max()}, wanted 1..{_CLASSES}")
    return torch.from_numpy(stored.astype(np.int64) - 1)


def _class_names(folder: Path) -> tuple[str, ...] | None:
    file = folder / "class_names.txt"
    if not file.is_file():
        return None
    names = tuple(file.read_text(encoding="utf-8").split())
    if len(names) != _CLASSES:
        raise InvalidInput(f"{file}: {len(names)} names, wanted {_CLASSES}, one a line; correct or remove it")
    return names

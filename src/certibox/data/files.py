"""Data that are one file: arrays of numpy, whose size is looked at before they are read, a picture, a table."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from certibox.data.arrays import images_from_arrays
from certibox.data.asked import SPLIT_NAMES, Asked, aloud, pick
from certibox.data.decoding import MOST_BYTES, gib, reading, require_regular
from certibox.data.folders import DATASET_SUFFIXES, image_suffixes, read_files
from certibox.data.images import Images
from certibox.data.labels import LABEL_COLUMNS
from certibox.data.rows import file_rows, from_rows
from certibox.errors import InvalidInput, UnreadableFile

_IMAGES = ("images", "image", "x", "data", "arr_0")  # names of arrays in an .npz, whatever their case
_LABELS = ("labels", "label", "y", "arr_1", *sorted(LABEL_COLUMNS))
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_file(path: Path, asked: Asked) -> tuple[Images, bool]:
    """The images of one file, before a share is drawn from them; and whether they are one split of several in it."""
    require_regular(path)
    suffix = path.suffix.lower()
    if suffix in DATASET_SUFFIXES:
        return from_rows(file_rows(path, asked), asked), False
    reader = _READERS.get(suffix) or (_picture if suffix in image_suffixes() else None)
    if reader is None:
        wanted = "an .npz, .npy, .parquet or .arrow file, a picture, or a folder"
        raise UnreadableFile(f"{path}: not a known kind of file; wanted {wanted}")
    asked.refuse(str(path), "image_column", "label_column", "configuration")
    return reader(path, asked)


def _picture(path: Path, asked: Asked) -> tuple[Images, bool]:
    return read_files([path], path.name, Asked(channels=asked.channels)), False


def _npy(path: Path, asked: Asked) -> tuple[Images, bool]:
    # numpy leaves a file that it opened itself open if it is damaged
    with reading(path), path.open("rb") as file:
        _require_small(file, str(path))
        file.seek(0)
        images = np.load(file, allow_pickle=False)
    return images_from_arrays(images, None, path.name), False


def _npz(path: Path, asked: Asked) -> tuple[Images, bool]:
    with reading(path), path.open("rb") as file, zipfile.ZipFile(file) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        found, splits = [_named_like(wanted, names) for wanted in (_IMAGES, _LABELS)], {}
        if found[0] is None and (splits := _splits(names, _IMAGES)):
            chosen = pick(splits, asked.split, str(path))
            found = [chosen, _splits(names, _LABELS).get(_split_of(chosen, _IMAGES) or "")]
        for name in found:
            if name is not None:
                with archive.open(_member(archive, name)) as member:
                    _require_small(member, f"{path}: {name}")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            images, labels = (None if name is None else arrays[name] for name in found)
    if images is None:
        raise InvalidInput(
            f"{path}: holds {', '.join(names) or 'nothing'}, wanted an array 'images' or 'x', and 'labels' or 'y', or "
            f"those of each split, as 'x_train' and 'y_train': save them under such names"
        )
    others = [name for name in names if name not in found and name not in splits.values()]
    if labels is None and others:
        aloud(f"{path}: images are taken as unlabelled, as none of the arrays {', '.join(others)} is named as labels")
    name = f"{path.name}:{asked.split}" if splits else path.name
    return images_from_arrays(images, labels, name), bool(splits)


def _splits(names: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """Split -> the first array of it, by names that have a split at one end: x_train, val_images."""
    found = {_split_of(name, wanted): name for name in reversed(names)}
    return {split: found[split] for split in reversed(found) if split is not None}


def _split_of(name: str, wanted: Sequence[str]) -> str | None:
    """The split in the name of an array; None where what is left is not one of the wanted names."""
    plain = name.casefold()
    rests = ((split, (plain.removeprefix(split), plain.removesuffix(split))) for split in SPLIT_NAMES)
    return next((split for split, both in rests if any(rest.strip("-_. ") in wanted for rest in both)), None)


def _named_like(wanted: Sequence[str], names: list[str]) -> str | None:
    """The array whose name is the first of those that are wanted."""
    known = {name.casefold(): name for name in reversed(names)}
    return next((known[name] for name in wanted if name in known), None)


def _member(archive: zipfile.ZipFile, name: str) -> str:
    return f"{name}.npy" if f"{name}.npy" in archive.namelist() else name


def _require_small(file: IO[bytes], where: str) -> None:
    """Raise for an array that would fill the memory; nothing but its header is read."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise UnreadableFile(f"{where} has a header of version {version}; wanted a plain array of numbers")
    shape, _, dtype = _HEADERS[version](file)
    size = math.prod(shape) * dtype.itemsize
    if size > MOST_BYTES:
        raise InvalidInput(f"{where} unpacks to {gib(size)}; wanted at most {gib(MOST_BYTES)}: divide it")


_READERS: Mapping[str, Callable[[Path, Asked], tuple[Images, bool]]] = {".npz": _npz, ".npy": _npy}
FILE_SUFFIXES: Collection[str] = frozenset(_READERS) | DATASET_SUFFIXES

"""Images from an `.npz`, an image folder, Hugging Face datasets, STL-10's binary files or scikit-learn's digits.

The names without an underscore are the readers' common parts; outside this package only `load_images` is public.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from certibox.data.images import Images, images_from_arrays, one_line
from certibox.data.stl10 import read_stl10, stl10_splits
from certibox.errors import CertiboxError, InvalidImages, InvalidInput, UnreadableFile

_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp"})
_DATASET_SUFFIXES = frozenset({".parquet", ".arrow"})
_DATASET_FILES = frozenset({"dataset_info.json", "dataset_dict.json"})
_SPLIT_FOLDERS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test"})
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def load_images(
    source: str | Path | Images,
    split: str = "train",
    *,
    limit: int | None = None,
    image_column: str = "image",
    label_column: str = "label",
) -> Images:
    """Load one split of a set of images, or its first `limit` images.

    source:
    - "digits": scikit-learn's 1,797 handwritten 8×8 digits, in 8 bits, as "train" (1,000), "validation" (297) and
      "test" (500), every class in proportion, by a fixed permutation;
    - a folder with parquet or arrow files, or a Hugging Face Hub name "org/name" (a local path wins over the Hub).
      The columns say where images and integer labels are; a missing `label` column means no labels;
    - a folder of images: split/class/*.png, class/*.png or, without labels, split/*.png or *.png (also jpg, jpeg,
      bmp), all of one size. Classes are numbered in the order of their names over all splits;
    - a folder with STL-10's binary files train_X.bin, train_y.bin, …: splits "train", "test" and "unlabeled";
    - an `.npz` with `images` (or `x`) and optionally `labels` (or `y`), as `images_from_arrays` takes them;
    - Images, returned as they are.
    An `.npz`, Images and folders without splits are taken whole whatever `split` says. Grey images have one
    channel, all others become RGB. Raises InvalidInput, InvalidImages or UnreadableFile.
    """
    if limit is not None and limit < 1:
        raise InvalidInput(f"limit is {limit}, wanted at least 1, or None for all images")
    if isinstance(source, Images):
        return source.select(slice(limit)) if limit else source
    if source == "digits":
        return _digits(split).select(slice(limit))
    path = local_path(source)
    if path is None:
        rows = hub_rows(str(source), split)
        return _from_rows(rows, f"{source}:{split}", limit, image_column, label_column)
    if path.is_file():
        return _from_npz(path).select(slice(limit))
    name = f"{path.resolve().name}:{split}"
    binaries = stl10_splits(path)
    if binaries:
        with reading(path):
            return read_stl10(pick(binaries, split, str(path)), name, limit)
    if holds_dataset(path):
        return _from_rows(folder_rows(path, split), name, limit, image_column, label_column)
    return _from_image_folder(path, split, name, limit)


def local_path(source: str | Path) -> Path | None:
    """The existing path that `source` means, or None for a Hub name."""
    text = os.fspath(source)
    path = Path(os.path.expanduser(text))
    if text and os.path.exists(path):
        return path
    if isinstance(source, Path) or text.startswith((".", "/", "~")) or text.lower().endswith(".npz"):
        raise UnreadableFile(f"{text}: no such file or folder; check the path")
    if not _HUB_NAME.fullmatch(text):
        raise InvalidInput(f"{text!r} is neither 'digits', nor an existing path, nor a Hub name 'org/name'")
    return None


def holds_dataset(folder: Path) -> bool:
    with reading(folder):
        return any(
            Path(file).suffix.lower() in _DATASET_SUFFIXES or file in _DATASET_FILES
            for _, _, files in os.walk(folder)
            for file in files
        )


def _digits(split: str) -> Images:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    # The stream of RandomState is frozen by numpy's compatibility policy; that of Generator is not.
    order = np.random.RandomState(0).permutation(len(bunch.target))
    by_class = order[np.argsort(bunch.target[order], kind="stable")]
    test = np.zeros(len(order), dtype=bool)
    validation = np.zeros(len(order), dtype=bool)
    test[evenly(by_class, 500)] = True
    validation[evenly(by_class[~test[by_class]], 297)] = True
    masks = {"train": ~(test | validation), "validation": validation, "test": test}
    chosen = order[pick(masks, split, "digits")[order]]
    pixels = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)
    digits = images_from_arrays(pixels, bunch.target[chosen], f"digits:{split}")
    return Images(digits.images, digits.labels, digits.name, tuple(str(name) for name in bunch.target_names))


def evenly(items: np.ndarray, count: int) -> np.ndarray:
    """`count` items at even distances: from a list sorted by class, each class in proportion."""
    steps = np.arange(len(items) + 1) * count // len(items)
    return items[np.diff(steps) == 1]


def _from_npz(path: Path) -> Images:
    if path.suffix.lower() != ".npz":
        raise UnreadableFile(f"{path}: not a known kind of file; wanted an .npz or a folder")
    with reading(path), np.load(path, allow_pickle=False) as arrays:
        images = next((arrays[key] for key in ("images", "x") if key in arrays), None)
        labels = next((arrays[key] for key in ("labels", "y") if key in arrays), None)
        found = ", ".join(arrays) or "nothing"
    if images is None:
        raise InvalidInput(f"{path}: holds {found}, wanted an array 'images' or 'x'")
    return images_from_arrays(images, labels, path.name)


# --------------------------------------------------------------------------------------------------- image folders


def _from_image_folder(root: Path, split: str, name: str, limit: int | None) -> Images:
    with reading(root):
        base, classes = _class_folders(root, split)
        files = [(file, None) for file in image_files(base)]
        labelled = [(file, label) for label, kind in enumerate(classes) for file in image_files(base / kind)]
    if files and labelled:
        raise InvalidInput(f"{base}: images both beside and inside class folders; keep one or the other")
    chosen = (labelled or files)[:limit]
    if not chosen:
        raise InvalidInput(f"{base}: holds no png, jpg, jpeg or bmp images, no .parquet and no .arrow files")
    pile = Pile()
    for file, _ in chosen:
        pile.add(pixels_of(read_image(file, str(file))), str(file))
    labels = torch.tensor([label for _, label in chosen]) if labelled else None
    return Images(pile.tensor(), labels, name, tuple(classes) if labelled else None)


def _class_folders(root: Path, split: str) -> tuple[Path, list[str]]:
    """The folder of this split, and the class names that all splits together have, so that numbers agree."""
    folders = {folder.name: folder for folder in subfolders(root)}
    nested = any(subfolders(folder) for folder in folders.values())
    if not folders or not (nested or folders.keys() <= _SPLIT_FOLDERS):
        return root, list(folders)
    base = pick(folders, split, str(root))
    return base, sorted({kind.name for folder in folders.values() for kind in subfolders(folder)})


def subfolders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():  # a class that this split lacks
        return []
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in _IMAGE_SUFFIXES and not f.name.startswith("."))


class Pile:
    """Images of one shape, packed as they come: the pixels are never held twice."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.shape: tuple[int, ...] = ()

    def add(self, pixels: np.ndarray, where: str) -> None:  # (c, h, w)
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
        if image.mode[0] in "IF":  # wide integers or floats, which a conversion would clip without a word
            raise InvalidImages(f"{where}: {image.size[0]}×{image.size[1]}, mode {image.mode}; wanted 8 bits a channel")
        upright = ImageOps.exif_transpose(image)
        return upright.convert("L" if upright.mode in ("L", "1") else "RGB")


def pixels_of(image: Image.Image) -> np.ndarray:  # mode L or RGB -> uint8 (1 or 3, h, w)
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


# ------------------------------------------------------------------------------------------- Hugging Face datasets


def _import_datasets(source: str) -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise InvalidInput(f"{source}: reading it needs Hugging Face datasets; pip install 'certibox[data]'") from error
    return datasets


def hub_rows(name: str, split: str) -> Any:
    datasets = _import_datasets(f"{name} (no local path; a Hub name)")
    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # network, access, builder: no common base
        raise InvalidInput(
            f"{name!r} is neither a local path nor readable from the Hugging Face Hub: {one_line(error)}"
        ) from error
    return pick(splits, split, name)


def folder_rows(folder: Path, split: str) -> Any:
    datasets = _import_datasets(str(folder))
    with reading(folder):
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            loaded = datasets.load_from_disk(str(folder))
        else:
            # Streaming reads the files in place: no copy in the cache, no network.
            loaded = datasets.load_dataset(str(folder), streaming=True)
    splits = loaded if isinstance(loaded, dict) else {str(loaded.split or split): loaded}
    return pick(splits, split, str(folder))


def check_columns(rows: Any, name: str, *columns: str) -> None:
    features = rows.features or {}
    for column in columns:
        if column not in features:
            raise InvalidInput(f"{name} has no column {column!r}; available: {', '.join(features)}")


def left_encoded(rows: Any, image_column: str) -> Any:
    """The rows with encoded images as bytes: so one decoder serves files and columns, and its errors name the row."""
    feature = rows.features[image_column]
    return rows.cast_column(image_column, type(feature)(decode=False)) if hasattr(feature, "decode") else rows


def _from_rows(rows: Any, name: str, limit: int | None, image_column: str, label_column: str) -> Images:
    """Images from a datasets.Dataset or IterableDataset."""
    features = rows.features or {}
    has_labels = label_column in features
    check_columns(rows, name, image_column, *([label_column] if label_column != "label" else []))
    pile, labels = Pile(), []
    with reading(name):
        for i, row in enumerate(islice(left_encoded(rows, image_column), limit)):
            where = f"{name} row {i}"
            pile.add(_cell_pixels(row[image_column], where), where)
            labels.append(row[label_column] if has_labels else -1)
    if not labels:
        raise InvalidInput(f"{name} holds no rows; choose another split")
    strange = [label for label in labels if not isinstance(label, int)]
    if strange:
        raise InvalidInput(f"{name}: column {label_column!r} holds {strange[0]!r}; wanted an integer for every image")
    if set(labels) == {-1}:  # no labels here; also the datasets convention for a split whose labels are withheld
        return Images(pile.tensor(), None, name)
    names = getattr(features[label_column], "names", None)
    return Images(pile.tensor(), torch.tensor(labels), name, tuple(names) if names else None)


def _cell_pixels(cell: Any, where: str) -> np.ndarray:
    """One cell of an image column -> uint8 (c, h, w): an encoded image, its path, or nested lists of pixels."""
    file = cell_file(cell)
    if file is not None:
        return pixels_of(read_image(file, where))
    if not isinstance(cell, list | np.ndarray):
        raise InvalidImages(f"{where}: holds {type(cell).__name__}, wanted an image; choose another image column")
    return images_from_arrays(np.asarray(cell)[None], name=where).images[0].numpy()


def cell_file(cell: Any) -> Path | io.BytesIO | None:
    """The encoded image in a cell, to be opened: its bytes or its path; None for a cell of another kind."""
    if isinstance(cell, dict) and {"bytes", "path"} & cell.keys():
        data, path = cell.get("bytes"), cell.get("path")
        cell = data if data is not None else path and Path(path)
    if isinstance(cell, bytes):
        return io.BytesIO(cell)
    return cell if isinstance(cell, Path) else None


# --------------------------------------------------------------------------------------------------------- messages


def pick(splits: Any, split: str, name: str) -> Any:
    if split not in splits:
        raise InvalidInput(f"{name} has no split {split!r}; available: {', '.join(map(str, splits))}")
    return splits[split]


@contextmanager
def reading(what: str | Path) -> Iterator[None]:
    """Turn whatever a reader of foreign bytes raises into one line. Such readers share no base exception."""
    try:
        yield
    except (CertiboxError, MemoryError):
        raise
    except Exception as error:
        raise UnreadableFile(f"{what} cannot be read: {one_line(error)}; check or replace it") from error

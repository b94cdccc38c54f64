"""`load_images`: one door to every source; here scikit-learn's digits, `.npz` and image folders are read.

The names without an underscore are the readers' common parts; outside this package only `load_images` is public.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certibox.data.decoding import Pile, pick, pixels_of, read_image, reading
from certibox.data.images import Images, images_from_arrays
from certibox.data.items import MapStyle, from_objects
from certibox.data.rows import folder_rows, from_rows, given_rows, hub_rows
from certibox.data.stl10 import read_stl10, stl10_splits
from certibox.errors import InvalidInput, UnreadableFile

ImageSource = str | os.PathLike[str] | Images | np.ndarray | Tensor | tuple[Any, Any] | Sequence[Any] | MapStyle
_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp"})
_DATASET_SUFFIXES = frozenset({".parquet", ".arrow"})
_DATASET_FILES = frozenset({"dataset_info.json", "dataset_dict.json"})
_SPLIT_FOLDERS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test"})
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def load_images(
    source: ImageSource,
    split: str = "train",
    *,
    limit: int | None = None,
    image_column: str = "image",
    label_column: str = "label",
) -> Images:
    """Load one split of a set of images, or its first images, from wherever they are.

    Grey images have one channel, all others become RGB. What is read one image after the other (folders, tables,
    lists, data sets) keeps nothing but its pixels, 8 bits each.

    Args:
        source: Place or object that has the images:

            - "digits": scikit-learn's 1,797 handwritten 8×8 digits, in 8 bits, as "train" (1,000), "validation" (297)
              and "test" (500), every class in proportion, by a fixed permutation;
            - a folder with parquet or arrow files, or a Hugging Face Hub name "org/name" (a local path wins over the
              Hub), or a `datasets.Dataset`, `IterableDataset` or dictionary of them. The columns say where images and
              integer labels are; a missing `label` column means no labels;
            - a folder of images: split/class/*.png, class/*.png or, without labels, split/*.png or *.png (also jpg,
              jpeg, bmp), all of one size. Classes are numbered in the order of their names over all splits;
            - a folder with STL-10's binary files train_X.bin, train_y.bin, …: splits "train", "test" and "unlabeled";
            - an `.npz` with `images` (or `x`) and optionally `labels` (or `y`), as `images_from_arrays` takes them;
            - an array or tensor (n, h, w), (n, c, h, w) or (n, h, w, c), as `images_from_arrays` takes it, or a tuple
              (images, labels) of images in any of these forms or a list, and integers (n,);
            - a list of images, or a map-style data set (`torch.utils.data.Dataset` with `__len__`), whose items are
              images or tuples (image, label): see `MapStyle`;
            - Images, returned as they are.
        split: Name of the split. It has no effect on an `.npz`, a folder without splits or an object that is one split.
        limit: Maximum number of images, taken from the start; None for all.
        image_column: Column that holds the images, where the source is a table.
        label_column: Column that holds the labels, where the source is a table.

    Raises:
        InvalidInput: The source, the split or a column is unknown or holds nothing.
        InvalidImages: Images or labels have another shape, type or range, or differ in size.
        UnreadableFile: A file is missing or damaged, or a data set fails to give an item.
    """
    if limit is not None and limit < 1:
        raise InvalidInput(f"limit is {limit}, wanted at least 1, or None for all images")
    if isinstance(source, str | os.PathLike):
        return _from_place(source, split, limit, image_column, label_column)
    if isinstance(source, Images):
        return source.select(slice(limit)) if limit else source
    rows = given_rows(source, split)
    if rows is not None:
        name = f"{type(source).__name__}:{rows.split or split}"
        return from_rows(rows, name, limit, image_column, label_column)
    return from_objects(source, limit)


def _from_place(
    source: str | os.PathLike[str], split: str, limit: int | None, image_column: str, label_column: str
) -> Images:
    if source == "digits":
        return _digits(split).select(slice(limit))
    path = local_path(source)
    if path is None:
        rows = hub_rows(str(source), split)
        return from_rows(rows, f"{source}:{split}", limit, image_column, label_column)
    if path.is_file():
        return _from_npz(path, limit)
    name = f"{path.resolve().name}:{split}"
    binaries = stl10_splits(path)
    if binaries:
        with reading(path):
            return read_stl10(pick(binaries, split, str(path)), name, limit)
    if holds_dataset(path):
        return from_rows(folder_rows(path, split), name, limit, image_column, label_column)
    return _from_image_folder(path, split, name, limit)


def local_path(source: str | os.PathLike[str]) -> Path | None:
    """The existing path that `source` means, or None for a Hub name."""
    text = os.fspath(source)
    path = Path(os.path.expanduser(text))
    if text and os.path.exists(path):
        return path
    if not isinstance(source, str) or text.startswith((".", "/", "~")) or text.lower().endswith(".npz"):
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


def _from_npz(path: Path, limit: int | None) -> Images:
    if path.suffix.lower() != ".npz":
        raise UnreadableFile(f"{path}: not a known kind of file; wanted an .npz or a folder")
    # numpy leaves a file that it opened itself open if it is damaged
    with reading(path), path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        images = next((arrays[key] for key in ("images", "x") if key in arrays), None)
        labels = next((arrays[key] for key in ("labels", "y") if key in arrays), None)
        found = ", ".join(arrays) or "nothing"
    if images is None:
        raise InvalidInput(f"{path}: holds {found}, wanted an array 'images' or 'x'")
    return images_from_arrays(images, labels, path.name).select(slice(limit))


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

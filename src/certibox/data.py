"""Images as uint8 tensors: from arrays, an `.npz`, an image folder, Hugging Face datasets or scikit-learn's digits.

Storage is 8 bits a pixel; everything that leaves for a model (`Images.floats`, `augment`) is float in [0, 1].
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image, ImageOps
from torch import Tensor

from certibox.errors import CertiboxError, InvalidImages, InvalidInput, UnreadableFile

Index = slice | Tensor | Sequence[int]


@dataclass(frozen=True, eq=False, repr=False)
class Images:
    """Images of one size with optional labels. Treat the tensors as read-only: `digest` is computed once.

    images: uint8 (n, c, h, w), n >= 1. labels: int64 (n,), >= 0, or None. class_names: the name of label k at
    position k. `name` says where the images came from, for records and messages. Raises InvalidImages.
    """

    images: Tensor
    labels: Tensor | None
    name: str
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.images, Tensor) or self.images.dtype != torch.uint8:
            came = getattr(self.images, "dtype", type(self.images).__name__)
            raise InvalidImages(f"{self.name}: images are {came}, wanted a torch.uint8 tensor; see images_from_arrays")
        if self.images.ndim != 4 or self.images.numel() == 0:
            shape = tuple(self.images.shape)
            raise InvalidImages(
                f"{self.name}: images have shape {shape}, wanted (n, c, h, w) with every size at least 1"
            )
        if self.labels is not None:
            self._check_labels(self.labels)

    def _check_labels(self, labels: Tensor) -> None:
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
            came = getattr(labels, "dtype", type(labels).__name__)
            raise InvalidImages(f"{self.name}: labels are {came}, wanted a torch.int64 tensor; see images_from_arrays")
        if labels.shape != (len(self),):
            raise InvalidImages(
                f"{self.name}: labels have shape {tuple(labels.shape)}, wanted one label for each of {len(self)} images"
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0:
            raise InvalidImages(f"{self.name}: smallest label is {low}, wanted 0, 1, …; drop unlabelled images")
        if self.class_names is not None and high >= len(self.class_names):
            raise InvalidImages(
                f"{self.name}: label {high} has no name, only {len(self.class_names)} class names given"
            )

    def __len__(self) -> int:
        return self.images.shape[0]

    def __repr__(self) -> str:
        classes = "unlabelled" if self.labels is None else f"{self.num_classes} classes"
        return f"Images({self.name!r}, {len(self)} of shape {self.shape}, {classes})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one image."""
        c, h, w = self.images.shape[1:]
        return c, h, w

    @property
    def num_classes(self) -> int | None:
        """Largest label present plus one; None without labels."""
        return None if self.labels is None else int(self.labels.max()) + 1

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of the shape and the pixels. Labels and names do not enter."""
        sha = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        sha.update(self.images.cpu().contiguous().numpy().data)
        return sha.hexdigest()

    def floats(self, index: Index | None = None) -> Tensor:
        """The chosen images (default all) as float32 (b, c, h, w) in [0, 1]: pixel / 255."""
        chosen = self.images if index is None else self.images[_as_index(index)]
        return chosen.to(torch.float32).div_(255)

    def select(self, index: Index) -> Images:
        """The chosen images with their labels, in the order of `index`."""
        at = _as_index(index)
        return Images(self.images[at], None if self.labels is None else self.labels[at], self.name, self.class_names)

    def split(self, share: float, seed: int) -> tuple[Images, Images]:
        """Divide at random, by `seed`, into (the rest, a held-out `share`): disjoint and together everything.

        The held-out part has round(share · n) images. Raises InvalidInput unless 0 < share < 1 leaves both some.
        """
        held = round(share * len(self)) if 0 < share < 1 else 0
        if not 0 < held < len(self):
            raise InvalidInput(
                f"{self.name}: share {share} of {len(self)} images leaves a part empty; choose in (0, 1)"
            )
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        rest, kept = self.select(order[held:]), self.select(order[:held])
        origin = f"share {share}, seed {seed} of {self.name}"
        return replace(rest, name=f"all but {origin}"), replace(kept, name=origin)


def _as_index(index: Index) -> slice | Tensor:
    return index if isinstance(index, slice) else torch.as_tensor(index)


# ---------------------------------------------------------------------------------------------------------- arrays


def images_from_arrays(
    images: ArrayLike | Tensor, labels: ArrayLike | Tensor | None = None, name: str = "arrays"
) -> Images:
    """Images from numpy arrays or tensors; the pixels are copied.

    images: (n, h, w), (n, c, h, w) or (n, h, w, c) with c in {1, 3}; integers in 0..255, or floats in [0, 1], which
    are rounded to 8 bits. labels: (n,) integers >= 0. Raises InvalidImages.
    """
    pixels = _to_channels_first(_as_numpy(images, name), name)
    limit = 1 if pixels.dtype.kind == "f" else 255
    _check_range(pixels, limit, name)
    if limit == 1:
        pixels = np.rint(pixels * 255)
    stored = torch.from_numpy(np.array(pixels, dtype=np.uint8, order="C"))
    return Images(stored, None if labels is None else _integer_labels(labels, name), name)


def _as_numpy(values: ArrayLike | Tensor, name: str) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # numpy has no bfloat16; float32 holds every half-precision value.
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InvalidImages(f"{name}: not one rectangular array ({_one_line(error)}); bring all to one size") from error


def _to_channels_first(array: np.ndarray, name: str) -> np.ndarray:  # any accepted layout -> (n, c, h, w)
    wanted = "(n, h, w), (n, c, h, w) or (n, h, w, c) with c in {1, 3} and n at least 1"
    if array.dtype.kind not in "uif":
        raise InvalidImages(f"{name}: images are {array.dtype}, wanted uint8, integers in 0..255 or floats in [0, 1]")
    if array.ndim == 3 and array.size:
        return array[:, None]
    if array.ndim != 4 or not array.size or not {array.shape[1], array.shape[3]} & {1, 3}:
        raise InvalidImages(f"{name}: images have shape {array.shape}, wanted {wanted}; reshape them")
    if {array.shape[1], array.shape[3]} <= {1, 3}:
        raise InvalidImages(f"{name}: shape {array.shape} may be (n, c, h, w) or (n, h, w, c); build Images directly")
    return array if array.shape[1] in (1, 3) else np.moveaxis(array, 3, 1)


def _check_range(pixels: np.ndarray, limit: int, name: str) -> None:
    inside = (pixels >= 0) & (pixels <= limit)  # False for NaN
    if inside.all():
        return
    first = int(np.argmin(inside.reshape(len(pixels), -1).all(axis=1)))
    low, high = np.fmin.reduce(pixels, axis=None), np.fmax.reduce(pixels, axis=None)  # of those that are not NaN
    if not np.isfinite(pixels).all():
        remedy = "remove NaN and infinities"
    elif limit == 255:
        remedy = "rescale to 8 bits"
    else:
        remedy = "divide by 255" if low >= 0 and high <= 255 else "undo the normalisation"
    raise InvalidImages(
        f"{name}: pixels from {low:g} to {high:g}, wanted [0, {limit}]; image {first} is the first outside: {remedy}"
    )


def _integer_labels(labels: ArrayLike | Tensor, name: str) -> Tensor:
    array = _as_numpy(labels, name)
    if array.dtype.kind not in "ui":
        raise InvalidImages(f"{name}: labels are {array.dtype}, wanted integers 0, 1, …; encode them first")
    return torch.from_numpy(array.astype(np.int64))


# --------------------------------------------------------------------------------------------------------- sources

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
    path = _local_path(source)
    if path is None:
        rows = _hub_rows(str(source), split)
        return _from_rows(rows, f"{source}:{split}", limit, image_column, label_column)
    if path.is_file():
        return _from_npz(path).select(slice(limit))
    name = f"{path.resolve().name}:{split}"
    if _holds_dataset(path):
        return _from_rows(_folder_rows(path, split), name, limit, image_column, label_column)
    return _from_image_folder(path, split, name, limit)


def _local_path(source: str | Path) -> Path | None:
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


def _holds_dataset(folder: Path) -> bool:
    with _reading(folder):
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
    test[_evenly(by_class, 500)] = True
    validation[_evenly(by_class[~test[by_class]], 297)] = True
    masks = {"train": ~(test | validation), "validation": validation, "test": test}
    chosen = order[_pick(masks, split, "digits")[order]]
    pixels = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)
    digits = images_from_arrays(pixels, bunch.target[chosen], f"digits:{split}")
    return Images(digits.images, digits.labels, digits.name, tuple(str(name) for name in bunch.target_names))


def _evenly(items: np.ndarray, count: int) -> np.ndarray:
    """`count` items at even distances: from a list sorted by class, each class in proportion."""
    steps = np.arange(len(items) + 1) * count // len(items)
    return items[np.diff(steps) == 1]


def _from_npz(path: Path) -> Images:
    if path.suffix.lower() != ".npz":
        raise UnreadableFile(f"{path}: not a known kind of file; wanted an .npz or a folder")
    with _reading(path), np.load(path, allow_pickle=False) as arrays:
        images = next((arrays[key] for key in ("images", "x") if key in arrays), None)
        labels = next((arrays[key] for key in ("labels", "y") if key in arrays), None)
        found = ", ".join(arrays) or "nothing"
    if images is None:
        raise InvalidInput(f"{path}: holds {found}, wanted an array 'images' or 'x'")
    return images_from_arrays(images, labels, path.name)


# --------------------------------------------------------------------------------------------------- image folders


def _from_image_folder(root: Path, split: str, name: str, limit: int | None) -> Images:
    with _reading(root):
        base, classes = _class_folders(root, split)
        files = [(file, None) for file in _image_files(base)]
        labelled = [(file, label) for label, kind in enumerate(classes) for file in _image_files(base / kind)]
    if files and labelled:
        raise InvalidInput(f"{base}: images both beside and inside class folders; keep one or the other")
    chosen = (labelled or files)[:limit]
    if not chosen:
        raise InvalidInput(f"{base}: holds no png, jpg, jpeg or bmp images, no .parquet and no .arrow files")
    pile = _Pile()
    for file, _ in chosen:
        pile.add(_decode(file, str(file)), str(file))
    labels = torch.tensor([label for _, label in chosen]) if labelled else None
    return Images(pile.tensor(), labels, name, tuple(classes) if labelled else None)


def _class_folders(root: Path, split: str) -> tuple[Path, list[str]]:
    """The folder of this split, and the class names that all splits together have, so that numbers agree."""
    folders = {folder.name: folder for folder in _folders(root)}
    nested = any(_folders(folder) for folder in folders.values())
    if not folders or not (nested or folders.keys() <= _SPLIT_FOLDERS):
        return root, list(folders)
    base = _pick(folders, split, str(root))
    return base, sorted({kind.name for folder in folders.values() for kind in _folders(folder)})


def _folders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():  # a class that this split lacks
        return []
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in _IMAGE_SUFFIXES and not f.name.startswith("."))


class _Pile:
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


def _decode(file: Path | io.BytesIO, where: str) -> np.ndarray:
    """One encoded image -> uint8 (c, h, w): c = 1 for grey, 3 for all others."""
    with _reading(where), Image.open(file) as image:
        if image.mode[0] in "IF":  # wide integers or floats, which a conversion would clip without a word
            raise InvalidImages(f"{where}: {image.size[0]}×{image.size[1]}, mode {image.mode}; wanted 8 bits a channel")
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("L", "1"):
            return np.asarray(upright.convert("L"))[None]
        return np.asarray(upright.convert("RGB")).transpose(2, 0, 1)


# ------------------------------------------------------------------------------------------- Hugging Face datasets


def _import_datasets(source: str) -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise InvalidInput(f"{source}: reading it needs Hugging Face datasets; pip install 'certibox[data]'") from error
    return datasets


def _hub_rows(name: str, split: str) -> Any:
    datasets = _import_datasets(f"{name} (no local path; a Hub name)")
    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # network, access, builder: no common base
        raise InvalidInput(
            f"{name!r} is neither a local path nor readable from the Hugging Face Hub: {_one_line(error)}"
        ) from error
    return _pick(splits, split, name)


def _folder_rows(folder: Path, split: str) -> Any:
    datasets = _import_datasets(str(folder))
    with _reading(folder):
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            loaded = datasets.load_from_disk(str(folder))
        else:
            # Streaming reads the files in place: no copy in the cache, no network.
            loaded = datasets.load_dataset(str(folder), streaming=True)
    splits = loaded if isinstance(loaded, dict) else {str(loaded.split or split): loaded}
    return _pick(splits, split, str(folder))


def _from_rows(rows: Any, name: str, limit: int | None, image_column: str, label_column: str) -> Images:
    """Images from a datasets.Dataset or IterableDataset."""
    features = rows.features or {}
    has_labels = label_column in features
    if image_column not in features or not (has_labels or label_column == "label"):
        missing = label_column if image_column in features else image_column
        raise InvalidInput(f"{name} has no column {missing!r}; available: {', '.join(features)}")
    pile, labels = _Pile(), []
    with _reading(name):
        # Left encoded, one decoder serves files and columns, and its errors name the row.
        if hasattr(features[image_column], "decode"):
            rows = rows.cast_column(image_column, type(features[image_column])(decode=False))
        for i, row in enumerate(islice(rows, limit)):
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
    if isinstance(cell, dict) and {"bytes", "path"} & cell.keys():
        data, path = cell.get("bytes"), cell.get("path")
        cell = data if data is not None else path and Path(path)
    if isinstance(cell, bytes):
        return _decode(io.BytesIO(cell), where)
    if isinstance(cell, Path):
        return _decode(cell, where)
    if not isinstance(cell, list | np.ndarray):
        raise InvalidImages(f"{where}: holds {type(cell).__name__}, wanted an image; choose another image column")
    return images_from_arrays(np.asarray(cell)[None], name=where).images[0].numpy()


# --------------------------------------------------------------------------------------------------------- messages


def _pick(splits: Any, split: str, name: str) -> Any:
    if split not in splits:
        raise InvalidInput(f"{name} has no split {split!r}; available: {', '.join(map(str, splits))}")
    return splits[split]


@contextmanager
def _reading(what: str | Path) -> Iterator[None]:
    """Turn whatever a reader of foreign bytes raises into one line. Such readers share no base exception."""
    try:
        yield
    except (CertiboxError, MemoryError):
        raise
    except Exception as error:
        raise UnreadableFile(f"{what} cannot be read: {_one_line(error)}; check or replace it") from error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


# ----------------------------------------------------------------------------------------------------- augmentation


def augment(x: Tensor, policy: str, generator: torch.Generator) -> Tensor:
    """Randomly move or mirror each image of a batch, independently. x: (b, c, h, w) -> the same shape and values.

    policy: "none"; "crop-flip", a crop of the original size out of the image with 4 zeros around, then a horizontal
    flip (CIFAR-10); "flips", horizontal and vertical (STL-10); "flip", horizontal. Each flip has probability 1/2.
    Raises InvalidInput for another policy, InvalidImages for another shape.
    """
    if policy not in AUGMENTATIONS:
        raise InvalidInput(f"augmentation {policy!r} is unknown; choose from {', '.join(AUGMENTATIONS)}")
    if x.ndim != 4:
        raise InvalidImages(f"augment: shape {tuple(x.shape)}, wanted (b, c, h, w)")
    for step in AUGMENTATIONS[policy]:
        x = step(x, generator)
    return x


def _random_crop(x: Tensor, generator: torch.Generator) -> Tensor:
    b, c, h, w = x.shape
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    offsets = torch.randint(0, 9, (2, b, 1), generator=generator, device=generator.device).to(x.device)
    rows = offsets[0] + torch.arange(h, device=x.device)  # (b, h)
    columns = offsets[1] + torch.arange(w, device=x.device)  # (b, w)
    tall = padded.gather(2, rows[:, None, :, None].expand(b, c, h, w + 8))
    return tall.gather(3, columns[:, None, None, :].expand(b, c, h, w))


def _random_flip(x: Tensor, generator: torch.Generator, dim: int) -> Tensor:
    flipped = torch.randint(0, 2, (len(x), 1, 1, 1), generator=generator, device=generator.device).to(x.device)
    return torch.where(flipped.bool(), x.flip(dim), x)


def _flip_horizontally(x: Tensor, generator: torch.Generator) -> Tensor:
    return _random_flip(x, generator, dim=3)


def _flip_vertically(x: Tensor, generator: torch.Generator) -> Tensor:
    return _random_flip(x, generator, dim=2)


AUGMENTATIONS: dict[str, tuple[Callable[[Tensor, torch.Generator], Tensor], ...]] = {
    "none": (),
    "crop-flip": (_random_crop, _flip_horizontally),
    "flips": (_flip_horizontally, _flip_vertically),
    "flip": (_flip_horizontally,),
}

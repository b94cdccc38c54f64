"""Images from the rows of Hugging Face datasets: a Hub name, a folder of parquet or arrow files, or the object."""

from __future__ import annotations

import io
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from certibox.data.decoding import Pile, pick, pixels_of, pixels_of_item, read_image, reading
from certibox.data.images import Images, one_line
from certibox.errors import InvalidImages, InvalidInput


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


def given_rows(source: Any, split: str) -> Any | None:
    """The rows of a Hugging Face dataset, or of one split of a dictionary of them; None for another object."""
    if not type(source).__module__.startswith("datasets."):
        return None
    rows = pick(source, split, type(source).__name__) if isinstance(source, dict) else source
    return rows.with_format(None)  # so that cells are what the columns hold, not tensors of another library


def check_columns(rows: Any, name: str, *columns: str) -> None:
    features = rows.features or {}
    for column in columns:
        if column not in features:
            raise InvalidInput(f"{name} has no column {column!r}; available: {', '.join(features)}")


def left_encoded(rows: Any, image_column: str) -> Any:
    """The rows with encoded images as bytes: so one decoder serves files and columns, and its errors name the row."""
    feature = rows.features[image_column]
    return rows.cast_column(image_column, type(feature)(decode=False)) if hasattr(feature, "decode") else rows


def from_rows(rows: Any, name: str, limit: int | None, image_column: str, label_column: str) -> Images:
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
    return pixels_of_item(np.asarray(cell), where)


def cell_file(cell: Any) -> Path | io.BytesIO | None:
    """The encoded image in a cell, to be opened: its bytes or its path; None for a cell of another kind."""
    if isinstance(cell, dict) and {"bytes", "path"} & cell.keys():
        data, path = cell.get("bytes"), cell.get("path")
        cell = data if data is not None else path and Path(path)
    if isinstance(cell, bytes):
        return io.BytesIO(cell)
    return cell if isinstance(cell, Path) else None


def cell_image(cell: Any, where: str) -> Image.Image:
    file = cell_file(cell)
    if file is None:
        raise InvalidImages(
            f"{where}: holds {type(cell).__name__}, wanted an encoded image; choose another image column"
        )
    return read_image(file, where)

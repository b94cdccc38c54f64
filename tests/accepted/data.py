"""Forms of data × what comes along with the pixels."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from accepted.table import Table
from certibox import Images, load_images

COUNT = 6
LABELS = [2, 0, 1, 0, 2, 1]  # of the images whose pixels are 0, 10, ..., 50
NAMES = ("ant", "bee", "cat")
COLUMNS = ("labels", "names of classes", "names of files", "splits", "NAME:SHARE", "limit", "names of columns")


@dataclass(frozen=True)
class Source:
    """Data that `load_images` takes, and what is true of them."""

    place: Any
    labels: Sequence[int] = tuple(LABELS)
    files: Sequence[str] | None = None
    """Name of the file of each image."""
    columns: dict[str, Any] = field(default_factory=lambda: {"label_column": "kind"})
    """What names the columns of a table."""
    test: Sequence[int] = ()
    """Values of the images of the split "test"."""


def value(i: int) -> int:
    return 10 * i


def pixels(i: int) -> np.ndarray:  # (h, w)
    return np.full((4, 5), value(i), np.uint8)


def stack() -> np.ndarray:  # (n, h, w)
    return np.stack([pixels(i) for i in range(COUNT)])


def save(file: Path, i: int) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(i)).save(file)
    return file.name


def encoded(i: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(i)).save(file, "PNG")
    return file.getvalue()


# ----------------------------------------------------------------------------------------------------------- folders


def _classes(root: Path) -> Source:
    files = [f"{NAMES[LABELS[i]]}/{i}.png" for i in range(COUNT)]
    for i, file in enumerate(files):
        save(root / file, i)
    return Source(root, files=files)


def _splits(root: Path) -> Source:
    files = [f"train/{NAMES[LABELS[i]]}/{i}.png" for i in range(COUNT)]
    for i, file in enumerate(files):
        save(root / file, i)
    save(root / "test" / "ant" / "9.png", 9)
    return Source(root, files=files, test=[value(9)])


def _flat(root: Path) -> Source:
    return Source(root, files=[save(root / f"{i}.png", i) for i in range(COUNT)])


def _metadata(root: Path) -> Source:
    files = _flat(root).files or ()
    rows = [f"{file},{NAMES[LABELS[i]]}" for i, file in enumerate(files)]
    (root / "metadata.csv").write_text("\n".join(["file_name,kind", *rows]))
    return Source(root, files=files)


def _json_metadata(root: Path) -> Source:
    files = _flat(root).files or ()
    rows = [json.dumps({"file_name": file, "kind": NAMES[LABELS[i]]}) for i, file in enumerate(files)]
    (root / "metadata.jsonl").write_text("\n".join(rows))
    return Source(root, files=files)


def _paths(root: Path) -> Source:
    paths = [str(root / f"{i}.png") for i in range(COUNT)]
    for i, path in enumerate(paths):
        save(Path(path), i)
    return Source(paths, files=paths)


def _picture(root: Path) -> Source:
    save(root / "0.png", 0)
    return Source(root / "0.png", files=[str(root / "0.png")])


def _stl10(root: Path) -> Source:
    root.mkdir()
    for split, values in (("train", range(COUNT)), ("test", [9])):
        images = b"".join(bytes([value(i)]) * 27648 for i in values)
        (root / f"{split}_X.bin").write_bytes(images)
        (root / f"{split}_y.bin").write_bytes(bytes(LABELS[i % COUNT] + 1 for i in values))
    names = (*NAMES, *(f"class{i}" for i in range(7)))
    (root / "class_names.txt").write_text("\n".join(names))
    return Source(root, test=[value(9)])


# ------------------------------------------------------------------------------------------------------------ tables


def _rows(which: Sequence[int] = range(COUNT)) -> dict[str, list[Any]]:
    return {
        "picture": [{"bytes": encoded(i), "path": f"{i}.png"} for i in which],
        "kind": [NAMES[LABELS[i % COUNT]] for i in which],
    }


_NAMED = {"image_column": "picture", "label_column": "kind"}
_FILES = [f"{i}.png" for i in range(COUNT)]


def _parquet(file: Path, which: Sequence[int] = range(COUNT)) -> Path:
    import pyarrow
    from pyarrow import parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(_rows(which)), file)
    return file


def _parquet_folder(root: Path) -> Source:
    _parquet(root / "train-0.parquet")
    _parquet(root / "test-0.parquet", [9])
    return Source(root, files=_FILES, columns=_NAMED, test=[value(9)])


def _arrow_file(root: Path) -> Source:
    import pyarrow

    root.mkdir()
    table = pyarrow.table(_rows())
    with pyarrow.OSFile(str(root / "set.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return Source(root / "set.arrow", files=_FILES, columns=_NAMED)


def dataset(which: Sequence[int] = range(COUNT)) -> Any:
    import datasets

    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=list(NAMES))})
    return datasets.Dataset.from_dict(_rows(which), features=features)


def _saved(root: Path) -> Source:
    import datasets

    held = datasets.DatasetDict({"train": dataset(), "test": dataset([9])})
    held.save_to_disk(str(root))
    return Source(root, files=_FILES, columns=_NAMED, test=[value(9)])


def _dictionary(root: Path) -> Source:
    import datasets

    held = datasets.DatasetDict({"train": dataset(), "test": dataset([9])})
    return Source(held, files=_FILES, columns=_NAMED, test=[value(9)])


# ------------------------------------------------------------------------------------------- arrays, lists, data sets


def _npz(root: Path) -> Source:
    root.mkdir()
    np.savez(root / "set.npz", images=stack(), labels=np.array(LABELS))
    return Source(root / "set.npz")


def _npz_splits(root: Path) -> Source:
    root.mkdir()
    arrays = {"x_train": stack(), "y_train": np.array(LABELS), "x_test": pixels(9)[None], "y_test": np.array([0])}
    np.savez(root / "set.npz", allow_pickle=False, **arrays)
    return Source(root / "set.npz", test=[value(9)])


def _npy(root: Path) -> Source:
    root.mkdir()
    np.save(root / "set.npy", stack())
    return Source(root / "set.npy")


class MapStyle:
    """A data set as torchvision's are: pairs of a Pillow image and a number."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(pixels(index)), LABELS[index]


def _tensors(root: Path) -> Source:
    floats = torch.from_numpy(stack()).float().div(255)[:, None]
    return Source(torch.utils.data.TensorDataset(floats, torch.tensor(LABELS)))


def _frame(root: Path) -> Source:
    import pandas as pd

    return Source(pd.DataFrame(stack().reshape(COUNT, -1)))


BUILDERS: dict[str, Callable[[Path], Source]] = {
    '`"digits"`, of scikit-learn': lambda root: Source("digits"),
    "class folders": _classes,
    "folders of splits, with class folders": _splits,
    "folder of pictures": _flat,
    "folder with `metadata.csv`": _metadata,
    "folder with `metadata.jsonl`": _json_metadata,
    "list of paths": _paths,
    "one picture": _picture,
    "folder of parquet files": _parquet_folder,
    "parquet file": lambda root: Source(_parquet(root / "set.parquet"), files=_FILES, columns=_NAMED),
    "arrow file": _arrow_file,
    "saved `datasets` folder": _saved,
    "`datasets.Dataset`": lambda root: Source(dataset(), files=_FILES, columns=_NAMED),
    "`datasets.IterableDataset`": lambda root: Source(dataset().to_iterable_dataset(), files=_FILES, columns=_NAMED),
    "`datasets.DatasetDict`": _dictionary,
    "`.npz`": _npz,
    "`.npz` with arrays for each split": _npz_splits,
    "`.npy`": _npy,
    "array": lambda root: Source(stack()),
    "tensor": lambda root: Source(torch.from_numpy(stack())),
    "pair (images, labels)": lambda root: Source((stack(), LABELS)),
    "list of images": lambda root: Source([Image.fromarray(pixels(i)) for i in range(COUNT)]),
    "map-style data set": lambda root: Source(MapStyle()),
    "`TensorDataset`": _tensors,
    "`Images`": lambda root: Source(load_images((stack(), LABELS))),
    "binary files of STL-10": _stl10,
    "data frame of pandas": _frame,
}
_TABLES = frozenset(row for row in BUILDERS if "parquet" in row or "arrow" in row or "datasets" in row)


def values(images: Images) -> list[int]:
    return images.images[:, 0, 0, 0].tolist()


def attempt(row: str, column: str, folder: Path) -> None:
    source = BUILDERS[row](folder / "set")
    named = source.columns if row in _TABLES or "metadata" in row else {}
    _CHECKS[column](source, CELLS[row][COLUMNS.index(column)], named)


def _labels(source: Source, cell: str, named: dict[str, Any]) -> None:
    images = load_images(source.place, **named)
    if isinstance(source.place, str):  # the digits, which are others
        assert images.num_classes == 10
        return
    assert set(values(images)) <= {value(i) for i in range(COUNT)}
    wanted = [source.labels[at // 10] for at in values(images)] if cell.startswith("yes") else None
    assert (None if images.labels is None else images.labels.tolist()) == wanted


def _class_names(source: Source, cell: str, named: dict[str, Any]) -> None:
    images = load_images(source.place, **named)
    names = ("0", "1", "2") if isinstance(source.place, str) else NAMES
    assert (images.class_names or ())[:3] == (names if cell == "yes" else ())


def _file_names(source: Source, cell: str, named: dict[str, Any]) -> None:
    images = load_images(source.place, **named)
    wanted = tuple((source.files or ())[at // 10] for at in values(images)) if cell == "yes" else None
    assert images.files == wanted


def _split(source: Source, cell: str, named: dict[str, Any]) -> None:
    if cell == "yes":
        test = load_images(source.place, "test", **named)
        assert isinstance(source.place, str) or values(test) == list(source.test)
        assert not set(load_images(source.place, **named).digests.tolist()) & set(test.digests.tolist())
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        images = load_images(source.place, "test", **named)
    assert len(images) == len(load_images(source.place, **named))
    assert any("has no splits: 'test' is all of its" in str(line.message) for line in said)


def _share(source: Source, cell: str, named: dict[str, Any]) -> None:
    kept = values(load_images(source.place, "train:0.5", **named))
    rest = values(load_images(source.place, "test:0.5", **named))
    assert sorted(kept + rest) == [value(i) for i in range(COUNT)]
    assert len(kept) == len(rest) == COUNT // 2


def _limit(source: Source, cell: str, named: dict[str, Any]) -> None:
    images = load_images(source.place, limit=3, **named)
    if cell == "yes, each class in turn":
        assert images.labels is not None
        assert sorted(images.labels.tolist()) == [0, 1, 2]
    elif len(load_images(source.place, **named)) > 1:
        assert values(images) == values(load_images(source.place, **named))[:3]
        assert len(images) == 3


def _columns(source: Source, cell: str, named: dict[str, Any]) -> None:
    images = load_images(source.place, **source.columns)
    assert images.labels is not None
    assert [source.labels[at // 10] for at in values(images)] == images.labels.tolist()


_CHECKS: dict[str, Callable[[Source, str, dict[str, Any]], None]] = {
    "labels": _labels,
    "names of classes": _class_names,
    "names of files": _file_names,
    "splits": _split,
    "NAME:SHARE": _share,
    "limit": _limit,
    "names of columns": _columns,
}

_OWN, _WHOLE, _NO_COLUMNS, _TURNS = (
    "no: has splits",
    "whole, said aloud",
    "no: has no columns",
    "yes, each class in turn",
)
_MEMORY = (_WHOLE, "yes", "yes", _NO_COLUMNS)
_ROWS = ("yes", "yes", "yes", _WHOLE, "yes", "yes", "yes")
_SPLIT_ROWS = ("yes", "yes", "yes", "yes", _OWN, "yes", "yes")
CELLS: dict[str, Sequence[str]] = {
    '`"digits"`, of scikit-learn': ("yes", "yes", "none", "yes", _OWN, "yes", _NO_COLUMNS),
    "class folders": ("yes", "yes", "yes", _WHOLE, "yes", _TURNS, _NO_COLUMNS),
    "folders of splits, with class folders": ("yes", "yes", "yes", "yes", _OWN, _TURNS, _NO_COLUMNS),
    "folder of pictures": ("none", "none", "yes", _WHOLE, "yes", "yes", _NO_COLUMNS),
    "folder with `metadata.csv`": ("yes", "yes", "yes", _WHOLE, "yes", _TURNS, "yes"),
    "folder with `metadata.jsonl`": ("yes", "yes", "yes", _WHOLE, "yes", _TURNS, "yes"),
    "list of paths": ("none", "none", "yes", _WHOLE, "yes", "yes", _NO_COLUMNS),
    "one picture": ("none", "none", "yes", _WHOLE, "no: one cannot be divided", "yes", _NO_COLUMNS),
    "folder of parquet files": _SPLIT_ROWS,
    "parquet file": _ROWS,
    "arrow file": _ROWS,
    "saved `datasets` folder": _SPLIT_ROWS,
    "`datasets.Dataset`": _ROWS,
    "`datasets.IterableDataset`": _ROWS,
    "`datasets.DatasetDict`": _SPLIT_ROWS,
    "`.npz`": ("yes", "none", "none", *_MEMORY),
    "`.npz` with arrays for each split": ("yes", "none", "none", "yes", _OWN, "yes", _NO_COLUMNS),
    "`.npy`": ("none", "none", "none", *_MEMORY),
    "array": ("none", "none", "none", *_MEMORY),
    "tensor": ("none", "none", "none", *_MEMORY),
    "pair (images, labels)": ("yes", "none", "none", *_MEMORY),
    "list of images": ("none", "none", "none", *_MEMORY),
    "map-style data set": ("yes", "none", "none", *_MEMORY),
    "`TensorDataset`": ("yes", "none", "none", *_MEMORY),
    "`Images`": ("yes", "none", "none", *_MEMORY),
    "binary files of STL-10": ("yes", "yes", "none", "yes", _OWN, "yes", _NO_COLUMNS),
    "data frame of pandas": ("no: reshape its `.to_numpy()`",) * 7,
}
REASONS = {
    "has splits": r"has splits of its own, so that '(train|test):0\.5' is none; available: ",
    "has no columns": r"has no columns, but label_column is 'kind'; leave it out",
    "one cannot be divided": r"of 1 images is empty; choose a larger share",
    "reshape its `.to_numpy()`": r"images are a DataFrame of pandas; reshape its \.to_numpy\(\) to \(n, h, w\)",
}
TABLE = Table("data", COLUMNS, CELLS, attempt, REASONS)

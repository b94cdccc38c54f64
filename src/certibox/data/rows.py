"""Images from the rows of Hugging Face datasets: a Hub name, a folder of parquet or arrow files, or the object."""

from __future__ import annotations

import glob
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from certibox.data.asked import Asked, pick
from certibox.data.decoding import Pile, pixels_of, pixels_of_item, read_image, reading
from certibox.data.images import Images
from certibox.data.labels import encode, image_column, label_column
from certibox.errors import InvalidImages, InvalidInput, UnreadableFile, did_you_mean, translated

_AT_ONCE = 256  # rows of a parquet file
_NO_ROWS = "BatchSize must be greater than 0"  # in words of pyarrow, which is asked for as many rows as a group has


def _import_datasets(source: str) -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise InvalidInput(f"{source}: reading it needs Hugging Face datasets; pip install 'certibox[data]'") from error
    return datasets


@contextmanager
def _reading(what: str | Path) -> Iterator[None]:
    """`reading`, while the library does not log the same failure in words of its own."""
    log = logging.getLogger("datasets")
    was = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with reading(what):
            yield
    except UnreadableFile as error:
        if _NO_ROWS not in str(error):
            raise
        raise InvalidInput(f"{what}: a parquet file of it holds no rows; leave that file out") from error
    finally:
        log.setLevel(was)


@dataclass(frozen=True)
class Table:
    """One split of a data set of rows."""

    rows: Any
    """A `datasets.Dataset` or `IterableDataset`."""

    name: str
    """What messages call it."""

    splits: tuple[Any, ...] = ()
    """The rows of all splits, whose labels number the classes together."""

    roots: tuple[Path, ...] | None = None
    """Folders that the paths in cells may not leave; None where the rows are the caller's own."""

    has_splits: bool = True
    """Whether there are names to choose a split by."""


def _configured(datasets: ModuleType, path: str, asked: Asked, **options: Any) -> Any:
    """`datasets.load_dataset` of one configuration."""
    named = () if asked.configuration is None else (asked.configuration,)
    try:
        return datasets.load_dataset(path, *named, **options)
    except ValueError as error:
        names = _configurations(datasets, path)
        if len(names) > 1 or asked.configuration is not None:
            came = "none is named" if asked.configuration is None else f"{asked.configuration!r} is none of them"
            known = ", ".join(names) or "none"
            name_one = "; name one with configuration (--configuration)"
            near = did_you_mean(asked.configuration, names) if asked.configuration else ""
            raise InvalidInput(f"{path} has the configurations {known}, but {came}{near or name_one}") from error
        raise


def _configurations(datasets: ModuleType, path: str) -> list[str]:
    try:
        return list(map(str, datasets.get_dataset_config_names(path)))
    except Exception:  # on the way to another error
        return []


def hub_rows(name: str, asked: Asked) -> Table:
    """One split of a data set of the Hugging Face Hub."""
    datasets = _import_datasets(f"{name} (no local path; a Hub name)")
    with translated(InvalidInput, f"{name!r} is neither a local path nor readable from the Hugging Face Hub"):
        splits = _configured(datasets, name, asked)
    config = datasets.config
    caches = (config.HF_CACHE_HOME, config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH)
    rows = pick(splits, asked.split, name)
    return Table(rows, f"{name}:{asked.split}", tuple(splits.values()), tuple(map(Path, caches)))


def folder_rows(folder: Path, asked: Asked) -> Table:
    """One split of a folder of parquet or arrow files."""
    datasets = _import_datasets(str(folder))
    stored = (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()
    with _reading(folder):
        if stored:
            asked.refuse(str(folder), "configuration")
            loaded = datasets.load_from_disk(str(folder))
        else:
            # Streaming reads the files in place: no copy in the cache, no network.
            loaded = _configured(datasets, str(folder), asked, streaming=True)
    name = f"{folder.resolve().name}:{asked.split}"
    if not isinstance(loaded, dict):
        return Table(loaded, name, (loaded,), (folder,), _is_split(loaded, asked))
    return Table(pick(loaded, asked.split, str(folder)), name, tuple(loaded.values()), (folder,))


def file_rows(path: Path, asked: Asked) -> Table:
    """The rows of one parquet or arrow file."""
    asked.refuse(str(path), "configuration")
    datasets = _import_datasets(str(path))
    kind = path.suffix.lower().removeprefix(".")
    more = {"batch_size": _AT_ONCE} if kind == "parquet" else {}  # by default a row group, which may be empty
    with _reading(path):
        rows = datasets.load_dataset(kind, data_files=glob.escape(str(path)), split="train", streaming=True, **more)
    return Table(rows, path.name, (rows,), (path.parent,), has_splits=False)


def given_rows(source: Any, asked: Asked) -> Table | None:
    """The rows of a Hugging Face dataset, or of one split of a dictionary of them; None for another object."""
    if not type(source).__module__.startswith("datasets."):
        return None
    kind = type(source).__name__
    asked.refuse(kind, "configuration")
    splits = tuple(source.values()) if isinstance(source, dict) else (source,)
    rows = pick(source, asked.split, kind) if isinstance(source, dict) else source
    has_splits = isinstance(source, dict) or _is_split(rows, asked)
    # without a format, so that cells are what the columns hold, not tensors of another library
    plain = tuple(split.with_format(None) for split in splits)
    return Table(rows.with_format(None), f"{kind}:{rows.split or asked.split}", plain, has_splits=has_splits)


def _is_split(rows: Any, asked: Asked) -> bool:
    """Whether rows that are one split are the one that is asked for, as far as they know."""
    return rows.split is not None and str(rows.split) == asked.split


def left_encoded(rows: Any, image_column: str) -> Any:
    """The rows with encoded images as bytes: so one decoder serves files and columns, and its errors name the row."""
    feature = rows.features[image_column]
    return rows.cast_column(image_column, type(feature)(decode=False)) if hasattr(feature, "decode") else rows


def from_rows(table: Table, asked: Asked) -> Images:
    """Images of the rows, before a share is drawn from them."""
    columns, name = dict(table.rows.features or {}), table.name
    image = image_column(columns, asked.image_column, name)
    others = {name: kind for name, kind in columns.items() if name != image and type(kind).__name__ != "Image"}
    label = label_column(others, asked.label_column, name)
    pile, values, files = Pile(asked.channels, asked.skip_unreadable), [], []
    with _reading(name):
        for i, row in enumerate(islice(left_encoded(table.rows, image), asked.at_most)):
            where = f"{name} row {i}"
            if pile.attempt(lambda cell=row[image], at=where: _cell_pixels(cell, at, table.roots), where):
                values.append(row[label] if label else None)
                files.append(_file_name(row[image], table.roots))
    pile.finish(name)
    if not values:
        raise InvalidInput(f"{name} holds no rows; wanted images: choose another split or file")
    labels, names = _labels(table, label, values) if label else (None, None)
    named = tuple(files) if all(files) else None
    return Images(pile.tensor(), labels, name, names if labels is not None else None, files=named)


def _labels(table: Table, label: str, values: list[Any]) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """The labels (n,) that the cells of a column mean, and the names of the classes where they have some."""
    every = _every(table, label) if isinstance(values[0], str) else ()
    labels, names = encode(values, every, f"{table.name}: column {label!r}")
    return labels, tuple(getattr(table.rows.features[label], "names", names) or ()) or None


def _every(table: Table, label: str) -> list[Any]:
    """All values of a column, in all splits."""
    with _reading(table.name):
        having = [rows for rows in table.splits if label in (rows.features or {})]
        return [value for rows in having for part in rows.select_columns([label]).iter(1000) for value in part[label]]


def _file_name(cell: Any, roots: tuple[Path, ...] | None) -> str | None:
    path = cell.get("path") if isinstance(cell, dict) else cell if isinstance(cell, str) else None
    if not path or not isinstance(path, str):
        return None
    for root in roots or ():
        for start in (root, root.resolve()):
            if Path(path).is_relative_to(start):
                return Path(path).relative_to(start).as_posix()
    return path


def _cell_pixels(cell: Any, where: str, roots: tuple[Path, ...] | None) -> np.ndarray:
    """One cell of an image column -> uint8 (c, h, w): an encoded image, its path, or nested lists of pixels."""
    file = cell_file(cell, where, roots)
    if file is not None:
        return pixels_of(read_image(file, where))
    if cell is None or (isinstance(cell, dict) and {"bytes", "path"} & cell.keys()):
        raise UnreadableFile(f"{where} holds no image; fill it or leave it out")
    if not isinstance(cell, list | np.ndarray):
        raise InvalidImages(f"{where}: holds {type(cell).__name__}, wanted an image; choose another image column")
    return pixels_of_item(np.asarray(cell), where)


def cell_file(cell: Any, where: str, roots: tuple[Path, ...] | None) -> Path | io.BytesIO | None:
    """The encoded image in a cell, to be opened: its bytes or its path; None for a cell of another kind."""
    if isinstance(cell, dict) and {"bytes", "path"} & cell.keys():
        data, path = cell.get("bytes"), cell.get("path")
        cell = data if data is not None else path
    if isinstance(cell, bytes):
        return io.BytesIO(cell)
    return _allowed(Path(cell), where, roots) if isinstance(cell, str | Path) else None


def _allowed(path: Path, where: str, roots: tuple[Path, ...] | None) -> Path:
    """A path in a cell, if it does not leave the folders of the data by `..` or by links: data are not to be trusted
    with the choice of the files that a box is shown."""
    if roots is None:
        return path
    for root in roots:
        whole = (root / path).resolve()
        if whole.is_relative_to(root.resolve()) and (whole.exists() or len(roots) == 1):
            return whole
    outside = f"{where}: {str(path)!r:.120} lies outside {roots[0].resolve()}"
    raise InvalidInput(f"{outside}, and holds no image itself; put the file into the folder")


def cell_image(cell: Any, where: str, roots: tuple[Path, ...] | None) -> Image.Image:
    file = cell_file(cell, where, roots)
    if file is None:
        raise InvalidImages(
            f"{where}: holds {type(cell).__name__}, wanted an encoded image; choose another image column"
        )
    return read_image(file, where)

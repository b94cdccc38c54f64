"""Labels beside the images of a folder: `metadata.csv` or `metadata.jsonl`, one row an image, as Hugging Face has them.

`file_name` is the image, relative to the file of metadata; another column may be its label. CSV as Python's csv module
reads it, with a line of names at the top.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from certibox.data.asked import Asked, aloud
from certibox.data.decoding import reading
from certibox.data.labels import encode, label_column, require_column
from certibox.errors import InvalidInput, UnreadableFile

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
_FILE = "file_name"


@dataclass(frozen=True)
class Listed:
    """What metadata say of the images of one split."""

    files: list[PurePosixPath]
    """Images in the order of the rows, relative to the source."""

    labels: list[int] | None
    """Label of each image; None where no column holds labels."""

    class_names: tuple[str, ...] | None
    """Names of the classes, where the labels are names."""


def read_metadata(
    root: Path, base: PurePosixPath, files: Sequence[PurePosixPath], asked: Asked, otherwise: str
) -> Listed | None:
    """What the metadata in `root` or in folders below it say of the images below `base`; None without metadata.

    files: all files below `root`. Rows of other splits are not returned, but number the classes. otherwise: what is
    done without a column of labels, in words.
    """
    found = [file for file in files if file.name in METADATA_FILES]
    rows = [row for file in found for row in _rows(root, file)]
    mine = [row for row in rows if row[0].is_relative_to(base)]
    if not found:
        return None
    where = str(root / found[0])
    if not mine:
        aloud(f"{where}: {otherwise}, as no row names an image{'' if base == PurePosixPath() else f' of {base}'}")
        return None
    _refuse_repeated([file for file, _ in mine], where)
    there = set(files)
    missing = [file for file, _ in mine if file not in there]
    if missing:
        raise UnreadableFile(f"{where} names {len(missing)} files that are not there, such as {missing[0]}; mend it")
    for file, _ in mine:
        if not (root / file).resolve().is_relative_to(root.resolve()):
            raise InvalidInput(f"{where}: {file} is a link that leads outside the folder; put the image itself there")
    columns = dict.fromkeys(name for _, row in rows for name in row if name != _FILE)
    column = label_column(columns, asked.label_column, where, otherwise)
    if column is None:
        return Listed([file for file, _ in mine], None, None)
    values = [_value(row.get(column)) for _, row in mine]
    labels, names = encode(values, (_value(row.get(column)) for _, row in rows), f"{where}: column {column!r}")
    return Listed([file for file, _ in mine], None if labels is None else labels.tolist(), names)


def _refuse_repeated(files: list[PurePosixPath], where: str) -> None:
    twice = next((file for file, count in Counter(files).items() if count > 1), None)
    if twice is not None:
        raise InvalidInput(f"{where} names {twice} in more than one row; wanted one row an image: keep one of them")


def _rows(root: Path, file: PurePosixPath) -> Iterable[tuple[PurePosixPath, dict[str, Any]]]:
    path = root / file
    with reading(path), path.open(encoding="utf-8-sig", newline="") as text:
        rows = list(csv.DictReader(text, strict=True)) if file.suffix == ".csv" else _json_lines(text, path)
    for number, row in enumerate(rows, start=1):
        if None in row:
            raise UnreadableFile(f"{path}: row {number} has more cells than the first line has names; mend it")
        require_column([str(name) for name in row], _FILE, f"{path}: row {number}")
        yield _inside(file.parent, row[_FILE], f"{path}: row {number}"), row


def _json_lines(text: Iterable[str], path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        with reading(f"{path}: line {number}"):
            row = json.loads(line)
        if not isinstance(row, dict):
            raise UnreadableFile(f"{path}: line {number} holds {row!r:.60}; wanted an object with {_FILE}")
        rows.append(row)
    return rows


def _inside(folder: PurePosixPath, name: Any, where: str) -> PurePosixPath:
    """The file that a row means, which may not lie outside the source."""
    parts: list[str] = list(folder.parts)
    for part in PurePosixPath(str(name)).parts:
        if part == ".." and parts:
            parts.pop()
        elif part.startswith("/") or part == "..":
            raise InvalidInput(f"{where}: file {name!r:.80} lies outside the folder; wanted a path relative to it")
        else:
            parts.append(part)
    return PurePosixPath(*parts)


def _value(cell: Any) -> Any:
    """A cell of CSV or JSON as a label: digits are integers, an empty cell is none."""
    if not isinstance(cell, str):
        return cell
    return int(cell) if re.fullmatch(r"-?[0-9]{1,18}", cell.strip()) else cell if cell.strip() else None

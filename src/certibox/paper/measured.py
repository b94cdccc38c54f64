"""Measured rows on disk: one JSON line for a row of a table, a scale and a seed, with its provenance. No torch.

A row keeps a number for every image, so that comparisons can be paired and any column recomputed:

    classification   series `reach`: the radius up to which the image is certified correctly; null where it is not
    reconstruction   series `adaptive rmse 1`, `transfer ssim 0`, ...: threat, measure and epsilon
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from certibox.errors import InvalidInput, UnreadableFile
from certibox.records import truncate_partial_line

DECIMALS = 4  # of the stored numbers; radii are rounded down, so that none grows


@dataclass(frozen=True)
class Measured:
    """One row as it was measured. digest: that of its plan, so that a row of other settings is never taken for it.

    queries: answers that the defense took to train (targets and validation included) and to evaluate. seconds: by
    stage; a stage that rows share is in each of them. data: the images, with the word that says they are copies.
    """

    table: str
    row: str
    scale: str
    seed: int
    digest: str
    values: Mapping[str, Sequence[float | None]]
    queries: Mapping[str, int]
    epochs: int
    seconds: Mapping[str, float]
    settings: Mapping[str, Any]  # sigma, n0, n, alpha, or those of the attack
    data: str
    clean_accuracy: float | None  # of the bare box, without noise, on the same images
    command: str
    hardware: str
    versions: Mapping[str, str]
    date: str

    @property
    def key(self) -> tuple[str, int]:
        """What was measured: one plan, one seed."""
        return self.digest, self.seed

    def series(self, name: str) -> np.ndarray:
        """One series over images (n,); null becomes -inf, below every radius."""
        if name not in self.values:
            raise InvalidInput(
                f"{self.table} / {self.row} has no series {name!r}; wanted one of {', '.join(self.values)}"
            )
        return np.array([-np.inf if value is None else value for value in self.values[name]])


class Results:
    """The measured rows of a suite: one file a table, in `measured/`. A row is in the table that measured it first."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder) / "measured"

    def path(self, table: str) -> Path:
        """Where the rows of a table are."""
        return self.folder / f"{table}.jsonl"

    def read(self, table: str) -> list[Measured]:
        """All rows of a table, in the order in which they were measured; none where there is no file.

        A last line cut short by a crash is ignored. Raises `UnreadableFile` for any other line that is no row.
        """
        path = self.path(table)
        if not path.exists():
            return []
        return [_parsed(line, path, number) for number, line in enumerate(_whole_lines(path), start=1)]

    def append(self, row: Measured) -> None:
        """Write one row and flush it."""
        path = self.path(row.table)
        path.parent.mkdir(parents=True, exist_ok=True)
        truncate_partial_line(path)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row), ensure_ascii=False, allow_nan=False) + "\n")

    def by_plan(self) -> dict[tuple[str, int], Measured]:
        """The rows of all tables under (digest of the plan, seed): tables whose rows have equal plans share them.

        Where a plan was measured twice, the row measured last in its file stands.
        """
        files = sorted(self.folder.glob("*.jsonl"))
        return {row.key: row for path in files for row in self.read(path.stem)}


def _whole_lines(path: Path) -> list[bytes]:
    """The lines of a file without a last one that was cut short: no proper prefix of a JSON object is JSON."""
    *lines, tail = path.read_bytes().split(b"\n")
    try:
        json.loads(tail)
    except ValueError:
        return lines
    return [*lines, tail]


def _parsed(line: bytes, path: Path, number: int) -> Measured:
    try:
        values = json.loads(line)
        if set(values) != {item.name for item in fields(Measured)}:
            raise ValueError("the fields are not those of a measured row")
    except (ValueError, TypeError) as error:
        raise UnreadableFile(f"{path}, line {number}: {error}; restore the file or delete the line") from error
    return Measured(**values)

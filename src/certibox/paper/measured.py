"""Measured rows on disk: one JSON line for a row of a table, a scale and a seed, with its provenance. No torch.

A row keeps a number for every image, so that comparisons can be paired and any column recomputed:

    classification   series `reach`: the radius up to which the image is certified correctly; null where it is not
    reconstruction   series `adaptive rmse 1`, `transfer ssim 0`, ...: threat, measure and epsilon
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from certibox.confidence.gaussian import Gaussian
from certibox.errors import InvalidInput, UnreadableFile
from certibox.paper.plans import Attack, Certify, parse
from certibox.storage.files import append_line, whole_lines

DECIMALS = 4  # of the stored numbers; radii are rounded down, so that none grows
_TYPES: dict[type, tuple[str, ...]] = {
    str: ("table", "row", "scale", "digest", "data", "command", "hardware", "date"),
    dict: ("values", "queries", "seconds", "settings", "versions"),
}


@dataclass(frozen=True)
class Measured:
    """One row as it was measured."""

    table: str
    """Name of the table that measured the row first."""
    row: str
    """Name of the row in that table."""
    scale: str
    """Name of the scale."""
    seed: int
    """Seed of the training and of the noise."""
    digest: str
    """Digest of the row's plan, so that a row of other settings is never taken for it."""
    values: Mapping[str, Sequence[float | None]]
    """Numbers by name of the series, one for every test image; see the module."""
    queries: Mapping[str, int]
    """Answers of the black box: under `train` all that the defense took, targets and validation included; under
    `evaluate` those of the evaluation."""
    epochs: int
    """Epochs of the defense."""
    seconds: Mapping[str, float]
    """Seconds by stage; a stage that rows share is in each of them."""
    settings: Mapping[str, Any]
    """Settings of the evaluation: sigma with n0, n and alpha, or with those of the attack."""
    data: str
    """Name of the images, which tells copies (`cifar10-jpeg`) from originals."""
    clean_accuracy: float | None
    """Share of the same test images, without noise, that the bare black box gets right; None for reconstructions."""
    command: str
    """Command that measures the row again."""
    hardware: str
    """Processor or GPU, and the number of threads."""
    versions: Mapping[str, str]
    """Versions by name of the program or library."""
    date: str
    """Day of the measurement, as 2026-01-31."""

    @property
    def key(self) -> tuple[str, int]:
        """What was measured: one plan, one seed."""
        return self.digest, self.seed

    def series(self, name: str) -> np.ndarray:
        """One series of numbers over images.

        Args:
            name: Name of the series, such as `reach`.

        Returns:
            Array (images,); null becomes -inf, below every radius.

        Raises:
            InvalidInput: For a series that was not measured.
        """
        if name not in self.values:
            raise InvalidInput(
                f"{self.table} / {self.row} has no series {name!r}; wanted one of {', '.join(self.values)}"
            )
        return np.array([-np.inf if value is None else value for value in self.values[name]])


class Results:
    """The measured rows of a suite: one file a table, in `measured/`. A row is in the table that measured it first.

    Args:
        folder: Folder of the experiments; the rows are in `measured` below it. It need not exist.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder) / "measured"

    def path(self, table: str) -> Path:
        """The file of a table.

        Args:
            table: Name of the table.
        """
        return self.folder / f"{table}.jsonl"

    def read(self, table: str) -> list[Measured]:
        """All rows of a table, in the order in which they were measured; none where there is no file.

        A last line cut short by a crash is ignored.

        Args:
            table: Name of the table.

        Raises:
            UnreadableFile: For any other line that is no row of the table.
        """
        path = self.path(table)
        if not path.exists():
            return []
        return [_parsed(line, path, number) for number, line in enumerate(whole_lines(path), start=1)]

    def append(self, row: Measured) -> None:
        """Write one row and flush it.

        Args:
            row: Row to add to the file of its table.
        """
        append_line(self.path(row.table), asdict(row))

    def by_plan(self) -> dict[tuple[str, int], Measured]:
        """The rows of all tables under (digest of the plan, seed): tables whose rows have equal plans share them.

        Raises:
            UnreadableFile: Where two rows of one plan and seed differ in what they say of the images.
        """
        known: dict[tuple[str, int], Measured] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for row in self.read(path.stem):
                first = known.setdefault(row.key, row)
                if first.values != row.values:
                    raise UnreadableFile(
                        f"{path}: {row.row}, seed {row.seed}, is also {first.table} / {first.row}, with other values; "
                        "one plan and seed has one result: delete one of the two lines"
                    )
        return known


def _parsed(line: bytes, path: Path, number: int) -> Measured:
    try:
        values = json.loads(line)
        if set(values) != {item.name for item in fields(Measured)}:
            raise ValueError("the fields are not those of a measured row")
        row = Measured(**values)
        _check(row, path.stem)
    except (ValueError, TypeError) as error:
        raise UnreadableFile(f"{path}, line {number}: {error}; restore the file or delete the line") from error
    return row


def _check(row: Measured, table: str) -> None:
    """Raise `ValueError` or `InvalidInput` for a row that no measurement of this table gives."""
    for kind, names in _TYPES.items():
        for name in names:
            if type(getattr(row, name)) is not kind:
                raise ValueError(f"{name} is {type(getattr(row, name)).__name__}, wanted {kind.__name__}")
    if row.table != table:
        raise ValueError(f"the row is of {row.table}, wanted {table}")
    whole = {"seed": row.seed, "epochs": row.epochs}
    whole |= {f"queries {name}": row.queries.get(name) for name in {"train", "evaluate", *row.queries}}
    for name, value in whole.items():
        if type(value) is not int or value < 0:
            raise ValueError(f"{name} is {value!r}, wanted a whole number >= 0")
    numbers = {f"seconds {name}": row.seconds.get(name) for name in {"defense", "evaluation", *row.seconds}}
    numbers |= {"clean_accuracy": 0.0 if row.clean_accuracy is None else row.clean_accuracy}
    for name, value in numbers.items():
        if not _is_number(value) or value < 0:
            raise ValueError(f"{name} is {value!r}, wanted a number >= 0")
    _check_values(row)


def _check_values(row: Measured) -> None:
    """The settings, and the series that they give."""
    sigma, certifies = row.settings.get("sigma"), "reach" in row.values
    if not _is_number(sigma) or sigma <= 0:
        raise ValueError(f"settings.sigma is {sigma!r}, wanted a number > 0")
    others = {name: value for name, value in row.settings.items() if name != "sigma"}
    wanted = parse(Certify if certifies else Attack, others, "settings")
    for name, series in row.values.items():
        listed = isinstance(series, list) and series
        if not listed or not all(_is_number(value) or (value is None and certifies) for value in series):
            raise ValueError(f"series {name!r} is no list of numbers")
    if isinstance(wanted, Certify):
        farthest = Gaussian(sigma).radius(wanted.alpha ** (1 / wanted.n))
        if not all(value is None or 0 <= value <= farthest for value in row.values["reach"]):
            raise ValueError(f"a reach is outside 0 to {farthest:.4f}, the most that n unanimous votes certify")
    elif f"adaptive rmse {wanted.epsilons[0]:g}" not in row.values:
        raise ValueError("the series are those of no measurement")


def _is_number(value: Any) -> TypeGuard[float]:
    # type() and not isinstance: a bool is an int to Python, never to a reader of the file
    return type(value) in (int, float) and math.isfinite(value)

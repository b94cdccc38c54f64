"""Certificates on disk: JSON lines with their provenance.

A row is appended as soon as its queries are paid for. A crash can therefore cut only the last line of a file;
`read_rows` ignores such a line and `truncate_partial_line` removes it before work resumes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Protocol, TextIO, TypeVar

from certibox import confidence
from certibox.errors import InvalidInput, UnreadableFile
from certibox.storage.files import PathLike, whole_lines


class Outcome(Protocol):
    """What every report needs to know of one image; `CertificateRow` and `PublishedRow` both satisfy it."""

    @property
    def idx(self) -> int: ...
    @property
    def label(self) -> int | None: ...
    @property
    def predict(self) -> int | None: ...
    @property
    def radius(self) -> float: ...
    @property
    def correct(self) -> bool | None: ...
    @property
    def seconds(self) -> float: ...


_Row = TypeVar("_Row", bound=Outcome)


@dataclass(frozen=True)
class CertificateRow:
    """One certified image with everything needed to check, replay or merge its certificate.

    Raises `InvalidInput` when the fields contradict each other.
    """

    idx: int  # position of the image in its data set
    label: int | None  # true class, None when unknown
    predict: int | None  # certified class, None on abstention
    radius: float  # l2, in pixels in [0, 1]; 0.0 on abstention
    correct: bool | None  # None when the label is unknown; an abstention is False
    seconds: float
    selected: int  # class picked by the n0 votes, kept on abstention so that another alpha can be replayed
    p_lower: float
    counts: tuple[int, ...]  # the n estimation votes per class, without the n0 selection votes
    n0: int
    n: int  # estimation votes drawn; a sequential rule may have stopped below its cap
    alpha: float
    sigma: float
    seed: int
    queries: int
    image: str  # sha256 of the image
    model: str  # id of the base classifier
    version: str  # certibox version
    second_class: bool = False  # whether the radius also rests on a bound of the runner-up
    rule: dict[str, Any] | None = None  # the stopping rule as plain values; None where n was fixed
    looks: tuple[tuple[int, int], ...] | None = None  # its looks: samples, and votes for `selected`, so far

    @property
    def cap(self) -> int:
        """The estimation votes that might have been drawn: n, or the cap of a sequential rule."""
        return self.n if self.rule is None else self.rule["cap"]

    @property
    def decided(self) -> tuple[float, ...] | None:
        """The radii that the stopping rule was asked to decide; None where it was asked for none in particular."""
        radii = self.rule.get("radii") if self.rule is not None else None
        return None if radii is None else tuple(float(radius) for radius in radii)

    def __post_init__(self) -> None:
        check_outcome(self)
        _require(sum(self.counts) == self.n, self.idx, f"{sum(self.counts)} votes for n = {self.n}")
        _require(0 <= self.selected < len(self.counts), self.idx, f"no votes for the selected class {self.selected}")
        _require(
            self.predict in (None, self.selected), self.idx, f"predict {self.predict}, but {self.selected} selected"
        )
        _require(0 <= self.p_lower <= 1, self.idx, f"p_lower {self.p_lower} outside [0, 1]")
        _require(0 < self.sigma < math.inf, self.idx, f"sigma {self.sigma}, wanted finite and > 0")
        _require((self.rule is None) == (self.looks is None), self.idx, "a rule and its looks go together")
        if self.rule is not None and self.looks is not None:
            _check_looks(self, self.rule, self.looks)


def _check_looks(row: CertificateRow, rule: dict[str, Any], looks: tuple[tuple[int, int], ...]) -> None:
    """What any sequential certificate obeys; whether its looks are where the rule puts them, a replay tells."""
    cap, ran, end = rule.get("cap"), rule.get("alpha"), (row.n, row.counts[row.selected])
    _require(type(cap) is int and cap >= row.n, row.idx, f"n = {row.n} for a rule with the cap {cap}")
    _require(type(ran) is float and 0 < ran < 1, row.idx, f"a rule that ran at alpha = {ran}")
    _require(looks[-1:] == (end,), row.idx, f"the last look is {looks[-1:]}, but the votes are {end}")
    for (n, successes), (later_n, later) in zip(((0, 0), *looks), looks, strict=False):
        # Between two looks there is a sample at least, and each of them is a vote for `selected` or another class.
        _require(
            0 <= later - successes <= later_n - n != 0, row.idx, f"no look {later_n, later} follows {n, successes}"
        )
    reached = confidence.radius(row.p_lower, row.sigma)
    _require(
        math.isclose(row.radius, reached, rel_tol=1e-9), row.idx, f"radius {row.radius}, not the {reached} of p_lower"
    )
    _require(not row.second_class, row.idx, "a rule and a bound of the second class; there is no such certificate")


def _require(holds: bool, idx: int, contradiction: str) -> None:
    if not holds:
        raise InvalidInput(f"row of image {idx}: {contradiction}; fix what wrote the row")


def check_outcome(row: Outcome) -> None:
    _require(math.isfinite(row.radius) and row.radius >= 0, row.idx, f"radius {row.radius}, wanted finite and >= 0")
    _require(row.predict is not None or row.radius == 0, row.idx, f"radius {row.radius} on an abstention, wanted 0")
    correct = None if row.label is None else row.predict == row.label
    _require(
        row.correct is correct, row.idx, f"correct is {row.correct} for label {row.label} and predict {row.predict}"
    )


def append_row(file_handle: TextIO, row: CertificateRow) -> None:
    """Write `row` as one JSON line and flush, so that a later crash of the process cannot lose it.

    What a row of fixed n and one bound lacks is left out, so its line is the one that earlier versions wrote and read.
    """
    values = {name: value for name, value in asdict(row).items() if name not in _OPTIONAL or value != _OPTIONAL[name]}
    file_handle.write(json.dumps(values, allow_nan=False) + "\n")
    file_handle.flush()


def read_rows(path: PathLike) -> list[CertificateRow]:
    """All certificates of a JSON-lines file in the order they were written.

    A last line cut short by a crash is ignored. Raises `UnreadableFile` when the file is missing, a line is corrupt or
    an image appears twice.
    """
    return collect(path, whole_lines(path), _parse_json_row, first_line=1)


_OPTIONAL = {field.name: field.default for field in fields(CertificateRow) if field.default is not MISSING}
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (float, int),
    "bool": (bool,),
    "bool | None": (bool, type(None)),
    "tuple[int, ...]": (list,),
    "tuple[tuple[int, int], ...] | None": (list, type(None)),
    "dict[str, Any] | None": (dict, type(None)),
    "str": (str,),
}


def _parse_json_row(line: bytes) -> CertificateRow:
    values = json.loads(line)
    wanted = {field.name: _JSON_TYPES[str(field.type)] for field in fields(CertificateRow)}
    if not isinstance(values, dict) or (_OPTIONAL | values).keys() != wanted.keys():
        raise ValueError("the fields are not those of a certificate")
    for name, value in values.items():
        # type() and not isinstance: a bool is an int to Python, never to a reader of the file
        if type(value) not in wanted[name]:
            raise ValueError(f"{name} is {value!r}")
    looks = values.get("looks")
    if not all(_whole(counts) for counts in (values["counts"], *(looks or ()))):
        raise ValueError("counts and looks are not all integers >= 0")
    values["looks"] = tuple(tuple(look) for look in looks) if looks is not None else None
    return CertificateRow(**{**values, "counts": tuple(values["counts"])})


def _whole(counts: Any) -> bool:
    """Whether this is a list of integers >= 0."""
    return isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)


def collect(path: PathLike, lines: Iterable[bytes], parse: Callable[[bytes], _Row], first_line: int) -> list[_Row]:
    """Parse every line; any failure becomes an `UnreadableFile` that names the file and the line."""
    rows: list[_Row] = []
    line_of: dict[int, int] = {}
    for number, line in enumerate(lines, first_line):
        try:
            row = parse(line)
        except ValueError as error:
            raise UnreadableFile(f"{path}, line {number}: {error}; restore the file or delete the line") from error
        if row.idx in line_of:
            raise UnreadableFile(
                f"{path}, line {number}: image {row.idx} is already on line {line_of[row.idx]}; delete one of the two"
            )
        line_of[row.idx] = number
        rows.append(row)
    return rows

"""Certificates on disk: JSON lines with their provenance.

A row is appended as soon as its queries are paid for. A crash can therefore cut only the last line of a file;
`read_rows` ignores such a line and `truncate_partial_line` removes it before work resumes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Protocol, TextIO, TypeVar, final

from certibox.confidence.gaussian import Gaussian, NoiseLaw
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


class Votes(Protocol):
    """What a certificate states of its votes; `CertificateRow` and `certification.Certificate` both satisfy it."""

    @property
    def radius(self) -> float: ...
    @property
    def selected(self) -> int: ...
    @property
    def p_lower(self) -> float: ...
    @property
    def counts(self) -> tuple[int, ...]: ...
    @property
    def n(self) -> int: ...
    @property
    def sigma(self) -> float: ...
    @property
    def law(self) -> NoiseLaw: ...
    @property
    def second_class(self) -> bool: ...
    @property
    def rule(self) -> dict[str, Any] | None: ...
    @property
    def looks(self) -> tuple[tuple[int, int], ...] | None: ...


@final
@dataclass(frozen=True)
class CertificateRow:
    """One certified image with everything needed to check, replay or merge its certificate.

    Raises:
        InvalidInput: when the fields contradict each other.
    """

    idx: int
    """Position of the image in its data set."""
    label: int | None
    """True class; None when unknown."""
    predict: int | None
    """Certified class; None for an abstention."""
    radius: float
    """Certified l2 radius, in pixels on [0, 1]; 0 for an abstention."""
    correct: bool | None
    """Whether the certified class is the true one; None when the label is unknown, False for an abstention."""
    seconds: float
    """Time that the certificate took, in seconds."""
    selected: int
    """Class that the n0 votes picked, kept for an abstention too, so that another alpha can be replayed."""
    p_lower: float
    """Lower bound of the selected class's probability under the noise."""
    counts: tuple[int, ...]
    """Estimation votes per class (K,), without the n0 selection votes."""
    n0: int
    """Number of selection votes."""
    n: int
    """Number of estimation votes drawn; a stopping rule may have ended them below its maximum."""
    alpha: float
    """Failure probability of the certificate."""
    sigma: float
    """Standard deviation of the noise, in pixels on [0, 1]."""
    seed: int
    """Seed of the noise."""
    queries: int
    """Number of queries, n0 + n."""
    image: str
    """SHA-256 (hex) of the float image."""
    model: str
    """Name of the base classifier."""
    version: str
    """Version of certibox."""
    second_class: bool = False
    """Whether the radius also rests on an upper bound of the other classes."""
    rule: dict[str, Any] | None = None
    """Stopping rule as plain values, with the maximum n as "cap" and the "alpha" it ran under; None for a fixed n."""
    looks: tuple[tuple[int, int], ...] | None = None
    """Looks of the rule at the votes: (samples, votes for `selected`) so far; None for a fixed n."""
    stream: int = 1
    """Version of the streams that the noise is drawn from: 1 kept 32 bits of a block's seed, 2 keeps all."""

    @property
    def cap(self) -> int:
        """Maximum number of estimation votes: n, or that of the stopping rule."""
        return self.n if self.rule is None else self.rule["cap"]

    @property
    def decided(self) -> tuple[float, ...] | None:
        """Radii that the stopping rule was asked to decide; None where it was asked for none in particular."""
        radii = self.rule.get("radii") if self.rule is not None else None
        return None if radii is None else tuple(float(radius) for radius in radii)

    @property
    def law(self) -> NoiseLaw:
        """Law of the noise under which the votes were drawn."""
        return Gaussian(self.sigma)

    def __post_init__(self) -> None:
        check_outcome(self)
        check_votes(self, self.predict, f"row of image {self.idx}")


def check_votes(votes: Votes, predict: int | None, where: str) -> None:
    """Raise `InvalidInput` for votes that contradict what is stated of them.

    Args:
        votes: Row or certificate.
        predict: Certified class; None for an abstention.
        where: Words that name the row or certificate in the message.
    """
    _check_radius(votes.radius, predict, where)
    _require(sum(votes.counts) == votes.n, where, f"{sum(votes.counts)} votes for n = {votes.n}")
    _require(0 <= votes.selected < len(votes.counts), where, f"no votes for the selected class {votes.selected}")
    _require(predict in (None, votes.selected), where, f"predict {predict}, but {votes.selected} selected")
    _require(0 <= votes.p_lower <= 1, where, f"p_lower {votes.p_lower} outside [0, 1]")
    _require(0 < votes.sigma < math.inf, where, f"sigma {votes.sigma}, wanted finite and > 0")
    _require((votes.rule is None) == (votes.looks is None), where, "a rule and its looks go together")
    if votes.rule is not None and votes.looks is not None:
        _check_looks(votes, votes.rule, votes.looks, where)


def _check_looks(votes: Votes, rule: dict[str, Any], looks: tuple[tuple[int, int], ...], where: str) -> None:
    """What any sequential certificate obeys; whether its looks are where the rule puts them, a replay tells."""
    cap, ran, end = rule.get("cap"), rule.get("alpha"), (votes.n, votes.counts[votes.selected])
    _require(type(cap) is int and cap >= votes.n, where, f"n = {votes.n} for a rule with the cap {cap}")
    _require(type(ran) is float and 0 < ran < 1, where, f"a rule that ran at alpha = {ran}")
    _require(looks[-1:] == (end,), where, f"the last look is {looks[-1:]}, but the votes are {end}")
    for (n, successes), (later_n, later) in zip(((0, 0), *looks), looks, strict=False):
        # Between two looks there is a sample at least, and each of them is a vote for `selected` or another class.
        _require(0 <= later - successes <= later_n - n != 0, where, f"no look {later_n, later} follows {n, successes}")
    reached = votes.law.radius(votes.p_lower)
    _require(
        math.isclose(votes.radius, reached, rel_tol=1e-9), where, f"radius {votes.radius}, not the {reached} of p_lower"
    )
    _require(not votes.second_class, where, "a rule and a bound of the second class; there is no such certificate")


def _check_radius(radius: float, predict: int | None, where: str) -> None:
    _require(math.isfinite(radius) and radius >= 0, where, f"radius {radius}, wanted finite and >= 0")
    _require(predict is not None or radius == 0, where, f"radius {radius} on an abstention, wanted 0")


def _require(holds: bool, where: str, contradiction: str) -> None:
    if not holds:
        raise InvalidInput(f"{where}: {contradiction}; fix what wrote it")


def check_outcome(row: Outcome) -> None:
    """Raise `InvalidInput` for an outcome that contradicts itself.

    Args:
        row: One image's outcome, of ours or published.
    """
    where = f"row of image {row.idx}"
    _check_radius(row.radius, row.predict, where)
    correct = None if row.label is None else row.predict == row.label
    _require(row.correct is correct, where, f"correct is {row.correct} for label {row.label} and predict {row.predict}")


def append_row(file_handle: TextIO, row: CertificateRow) -> None:
    """Write `row` as one JSON line and flush, so that a later crash of the process cannot lose it.

    What a row of fixed n and one bound lacks is left out, so its line is the one that earlier versions wrote and read.

    Args:
        file_handle: Text file open for appending.
        row: Row to write.
    """
    values = {name: value for name, value in asdict(row).items() if name not in _OPTIONAL or value != _OPTIONAL[name]}
    file_handle.write(json.dumps(values, allow_nan=False) + "\n")
    file_handle.flush()


def read_rows(path: PathLike) -> list[CertificateRow]:
    """All certificates of a JSON-lines file in the order they were written.

    A last line cut short by a crash is ignored.

    Args:
        path: File that `append_row` wrote.

    Raises:
        UnreadableFile: when the file is missing, a line is corrupt or an image appears twice.
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
    return CertificateRow(**plain_fields(CertificateRow, json.loads(line)))


def plain_fields(kind: type[Any], values: Any) -> dict[str, Any]:
    """The fields of a dataclass of votes from values of JSON, lists as tuples.

    Args:
        kind: Dataclass whose fields are wanted, such as `CertificateRow`.
        values: Values of JSON by the fields' names.

    Raises:
        ValueError: for fields that are missing, unknown or of another type.
    """
    wanted = {field.name: _JSON_TYPES[str(field.type)] for field in fields(kind)}
    if not isinstance(values, dict) or (_OPTIONAL | values).keys() != wanted.keys():
        raise ValueError("the fields are not those of a certificate")
    for name, value in values.items():
        # type() and not isinstance: a bool is an int to Python, never to a reader of the file
        if type(value) not in wanted[name]:
            raise ValueError(f"{name} is {value!r}")
    looks = values.get("looks")
    if not all(_whole(counts) for counts in (values["counts"], *(looks or ()))):
        raise ValueError("counts and looks are not all integers >= 0")
    tuples = {"counts": tuple(values["counts"]), "looks": tuple(map(tuple, looks)) if looks is not None else None}
    return {**values, **tuples}


def _whole(counts: Any) -> bool:
    """Whether this is a list of integers >= 0."""
    return isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)


def collect(path: PathLike, lines: Iterable[bytes], parse: Callable[[bytes], _Row], first_line: int) -> list[_Row]:
    """Parse every line; any failure becomes an `UnreadableFile` that names the file and the line.

    Args:
        path: File that the message names.
        lines: Lines of the file.
        parse: Function from a line to its row; raises `ValueError`.
        first_line: Number of the first line in the file.
    """
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

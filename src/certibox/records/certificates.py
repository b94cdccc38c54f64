"""Certificates on disk: JSON lines with their provenance.

A row is appended as soon as its queries are paid for. A crash can therefore cut only the last line of a file;
`read_rows` ignores such a line and `truncate_partial_line` removes it before work resumes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, TextIO, TypeVar, final

from certibox.confidence.gaussian import Gaussian, NoiseLaw
from certibox.errors import InvalidInput, UnreadableFile
from certibox.records.checks import MOST, Outcome, check_outcome, check_votes, require, shown
from certibox.storage.files import PathLike, append_text, is_json_lines, parsed, whole_lines
from certibox.storage.places import head

_Row = TypeVar("_Row", bound=Outcome)


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
    file: str | None = None
    """Name of the image's file relative to its data set; None for an image that had none."""

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
        where = f"row of image {shown(self.idx)}"
        check_votes(self, self.predict, where)
        classes = len(self.counts)
        require(self.label is None or self.label < classes, where, f"label {self.label} of {classes} classes")
        for name in ("model", "version"):
            require(bool(getattr(self, name)), where, f"{name} is empty, wanted what made the row")


@final
class CertificateRows(list[CertificateRow]):
    """Certificates in the order of their images: a list that also becomes a table."""

    def to_pandas(self) -> Any:
        """A table of pandas, `idx` its index, with a column for each field of a row.

        Numbers that may be missing, such as the label, are of pandas' nullable kinds; `predict` is missing where a
        row abstains. The fields counts, looks and rule hold lists and dictionaries, as in the JSON lines.

        Raises:
            InvalidInput: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise InvalidInput("pandas is not installed; wanted it for a table: pip install pandas") from error
        names = [field.name for field in fields(CertificateRow)]
        columns = {name: [getattr(row, name) for row in self] for name in names}
        kinds = {"idx": "int64", "label": "Int64", "predict": "Int64", "correct": "boolean"}
        table = {
            name: pandas.array(values, dtype=kinds[name]) if name in kinds else values
            for name, values in columns.items()
        }
        return pandas.DataFrame(table).set_index("idx")


def require_votes(rows: Iterable[Outcome]) -> None:
    """Raise `InvalidInput` for rows that are outcomes alone, as those of a TSV.

    Args:
        rows: Rows of any kind.
    """
    for row in rows:
        if not isinstance(row, CertificateRow):
            came = f"row of image {row.idx} is a {type(row).__name__}, which has no votes"
            raise InvalidInput(f"{came}; wanted certificates of certibox, from JSON lines")


def add_row(path: PathLike, row: CertificateRow) -> None:
    """Write a row at the end of a file; it is with the system when this returns, whole or, on a full disk, not at all.

    Args:
        path: File of rows, made if needed.
        row: Row to write.

    Raises:
        OSError: The row cannot be written; the error names the file.
    """
    text = io.StringIO()
    append_row(text, row)
    append_text(path, text.getvalue())


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


def is_rows(content: bytes) -> bool:
    """Whether a file that begins so is one of rows, be it that a crash cut its first one short.

    Args:
        content: First bytes of the file.
    """
    content = content.removeprefix(b"\xef\xbb\xbf")
    return _FIRST.startswith(content) or (is_json_lines(content) and b'"idx"' in content)


def read_rows(path: PathLike) -> CertificateRows:
    """All certificates of a JSON-lines file in the order they were written.

    A last line cut short by a crash is ignored. Fields must fit each other; `certification.stored.read` also checks
    that bounds follow from the votes.

    Args:
        path: File that `append_row` wrote.

    Raises:
        UnreadableFile: when the file is missing or of another kind, a line is corrupt or an image appears twice.
    """
    require_rows(path)
    return CertificateRows(collect(path, whole_lines(path), _parse_json_row, first_line=1))


def require_rows(path: PathLike) -> None:
    """Raise `UnreadableFile` for a file that is not one of rows, before all of it is read.

    Args:
        path: File of rows.
    """
    content = head(path)
    if content.removeprefix(b"\xef\xbb\xbf").startswith(b"idx\t"):
        wanted = "wanted the JSON lines that certibox certify wrote, such as certificates.jsonl"
        raise UnreadableFile(f"{path} is a TSV, which has no votes; {wanted}")
    if not is_rows(content):
        raise UnreadableFile(f"{path}, line 1: {shown(content[:40])} begins no row; wanted a file of certibox certify")


def _optional(kind: type[Any]) -> dict[str, Any]:
    """The fields of a dataclass that may be missing, with what they are then."""
    return {field.name: field.default for field in fields(kind) if field.default is not MISSING}


_OPTIONAL = _optional(CertificateRow)
_FIRST = b'{"idx": '  # what a row begins with, and whatever a crash leaves of the first one
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
    "str | None": (str, type(None)),
}


def _parse_json_row(line: bytes) -> CertificateRow:
    return CertificateRow(**plain_fields(CertificateRow, parsed(line)))


def plain_fields(kind: type[Any], values: Any) -> dict[str, Any]:
    """The fields of a dataclass of votes from values of JSON, lists as tuples.

    Args:
        kind: Dataclass whose fields are wanted, such as `CertificateRow`.
        values: Values of JSON by the fields' names.

    Raises:
        ValueError: for fields that are missing, unknown or of another type.
    """
    wanted = {field.name: _JSON_TYPES[str(field.type)] for field in fields(kind)}
    if not isinstance(values, dict) or (_optional(kind) | values).keys() != wanted.keys():
        raise ValueError("the fields are not those of a certificate")
    for name, value in values.items():
        # type() and not isinstance: a bool is an int to Python, never to a reader of the file
        if type(value) not in wanted[name] or (type(value) is int and not _countable(name, value)):
            raise ValueError(f"{name} is {shown(value)}")
    looks = values.get("looks")
    if not all(_whole(counts) for counts in (values["counts"], *(looks or ()))):
        raise ValueError("counts and looks are not all integers >= 0")
    tuples = {"counts": tuple(values["counts"]), "looks": tuple(map(tuple, looks)) if looks is not None else None}
    return {**values, **tuples}


def _countable(name: str, value: int) -> bool:
    """Whether an integer is one that floats hold exactly; a seed may be any."""
    return name == "seed" or abs(value) <= MOST


def _whole(counts: Any) -> bool:
    """Whether this is a list of integers >= 0, none beyond what floats hold exactly."""
    return isinstance(counts, list) and all(type(count) is int and 0 <= count <= MOST for count in counts)


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

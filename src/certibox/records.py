"""Result rows on disk: certificates as JSON lines with their provenance, the field's TSV, and small atomic files.

A row is appended as soon as its queries are paid for. A crash can therefore cut only the last line of a file;
`read_rows` ignores such a line and `truncate_partial_line` removes it before work resumes.
"""

from __future__ import annotations

import json
import math
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar

from certibox import confidence
from certibox.errors import InvalidInput, UnreadableFile

PathLike = str | os.PathLike[str]

TSV_HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime"
_TSV_ABSTAIN = -1
_TSV_RADIUS_STEP = Decimal("1e-6")
_CLOCK = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)")


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
        _check_outcome(self)
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


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published TSV: an outcome without its provenance.

    Raises `InvalidInput` when the fields contradict each other.
    """

    idx: int
    label: int
    predict: int | None  # None on abstention
    radius: float  # l2, in pixels in [0, 1]
    correct: bool
    seconds: float

    def __post_init__(self) -> None:
        _check_outcome(self)


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


def _check_outcome(row: Outcome) -> None:
    _require(math.isfinite(row.radius) and row.radius >= 0, row.idx, f"radius {row.radius}, wanted finite and >= 0")
    _require(row.predict is not None or row.radius == 0, row.idx, f"radius {row.radius} on an abstention, wanted 0")
    correct = None if row.label is None else row.predict == row.label
    _require(
        row.correct is correct, row.idx, f"correct is {row.correct} for label {row.label} and predict {row.predict}"
    )


# --- certificates as JSON lines -------------------------------------------------------------------------------------


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
    return _collect(path, whole_lines(path), _parse_json_row, first_line=1)


def whole_lines(path: PathLike) -> list[bytes]:
    """The lines of a JSON-lines file without a last one that a crash cut short; `UnreadableFile` if it is missing."""
    *lines, tail = _read_bytes(path).split(b"\n")
    return [*lines, tail] if _is_json(tail) else lines


def append_line(path: PathLike, values: Mapping[str, Any]) -> None:
    """Write one JSON line and flush it, making the folder if needed and cutting off what a crash left of the last."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    truncate_partial_line(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n")


def truncate_partial_line(path: PathLike) -> None:
    """Make appending safe after a crash: cut a torn last line off, or end a whole one that lacks only its newline.

    A missing file has nothing to cut and is left missing.
    """
    if not Path(path).exists():
        return
    content = _read_bytes(path)
    whole, tail = content[: content.rfind(b"\n") + 1], content[content.rfind(b"\n") + 1 :]
    with open(path, "r+b") as file:
        if _is_json(tail):
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        else:
            file.truncate(len(whole))


def _is_json(line: bytes) -> bool:
    # No proper prefix of a JSON object is JSON, so a line that parses was not cut.
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


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


def _collect(path: PathLike, lines: Iterable[bytes], parse: Callable[[bytes], _Row], first_line: int) -> list[_Row]:
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


# --- the field's TSV ------------------------------------------------------------------------------------------------


def write_tsv(rows: Iterable[Outcome], path: PathLike) -> None:
    """Write labelled rows in the format of Cohen et al. (2019), atomically.

    `predict` is -1 on abstention and `time` is H:MM:SS.ffffff. Raises `InvalidInput` for a row without a label, which
    the format cannot express.
    """
    write_text_atomic(path, "\n".join([TSV_HEADER, *(_tsv_line(row) for row in rows)]) + "\n")


def _tsv_line(row: Outcome) -> str:
    if row.label is None or row.correct is None:
        raise InvalidInput(
            f"row of image {row.idx} has no label, the TSV needs one; give labels or keep the JSON lines"
        )
    predict = _TSV_ABSTAIN if row.predict is None else row.predict
    # Rounded down: printing may shrink a certificate, never grow it.
    radius = Decimal(repr(float(row.radius))).quantize(_TSV_RADIUS_STEP, ROUND_FLOOR)
    minutes, microseconds = divmod(round(row.seconds * 1e6), 60_000_000)
    clock = f"{minutes // 60}:{minutes % 60:02d}:{microseconds // 1_000_000:02d}.{microseconds % 1_000_000:06d}"
    return f"{row.idx}\t{row.label}\t{predict}\t{radius}\t{int(row.correct)}\t{clock}"


def read_tsv(path: PathLike) -> list[PublishedRow]:
    """Rows of a TSV in the format of Cohen et al. (2019); `time` may be a clock time or plain seconds.

    Raises `UnreadableFile` when the file is missing, has another header, holds a corrupt line or an image twice.
    """
    header, *lines = _read_bytes(path).splitlines() or [b""]
    if header != TSV_HEADER.encode():
        raise UnreadableFile(
            f"{path}, line 1: wanted the header {TSV_HEADER!r}, got {header[:80]!r}; is it a certify TSV?"
        )
    return _collect(path, lines, _parse_tsv_row, first_line=2)


def _parse_tsv_row(line: bytes) -> PublishedRow:
    cells = line.decode().split("\t")
    if len(cells) != 6:
        raise ValueError(f"{len(cells)} columns, wanted 6")
    idx, label, predict, radius, correct, time = cells
    if correct not in ("0", "1"):
        raise ValueError(f"correct is {correct!r}, wanted 0 or 1")
    return PublishedRow(
        idx=int(idx),
        label=int(label),
        predict=None if int(predict) == _TSV_ABSTAIN else int(predict),
        radius=float(radius),
        correct=correct == "1",
        seconds=_seconds(time),
    )


def _seconds(time: str) -> float:
    """Seconds of "15.4", "0:00:15.4" or "1 day, 0:00:15.4"."""
    clock = _CLOCK.fullmatch(time)
    if clock is None:
        return float(time)
    days, hours, minutes, seconds = clock.groups()
    return int(days or 0) * 86_400 + int(hours) * 3_600 + int(minutes) * 60 + float(seconds)


# --- whole files ----------------------------------------------------------------------------------------------------


def read_json(path: PathLike) -> Any:
    """The value of a JSON file. Raises `UnreadableFile` when the file is missing or is not JSON."""
    content = _read_bytes(path)
    try:
        return json.loads(content)
    except ValueError as error:
        raise UnreadableFile(f"{path}: not JSON ({error}); restore the file or make it again") from error


@contextmanager
def exclusive(path: PathLike) -> Iterator[None]:
    """Keep other processes from writing to `path` inside; `InvalidInput` at once if one already does.

    The lock is the operating system's, on a file beside it, and ends with the process however that ends. Where the
    system has no such locks (Windows), nothing is kept out.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    lock = Path(path).with_name(f".{Path(path).name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            text = f"another process is writing {path}; wait for it, or write to another place"
            raise InvalidInput(text) from error
        yield


def write_json_atomic(path: PathLike, obj: Any) -> None:
    """Write `obj` as indented JSON like `write_bytes_atomic`; NaN and infinity, which JSON lacks, raise ValueError."""
    write_text_atomic(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text_atomic(path: PathLike, text: str) -> None:
    """Write `text` as UTF-8; see `write_bytes_atomic`."""
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: PathLike, content: bytes) -> None:
    """Replace the file in one step, making its folder if needed: readers and crashes see the old file or the new."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")  # the same folder, so the same file system
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _read_bytes(path: PathLike) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror or error}; check the path") from error

"""The field's TSV of certificates, as Cohen et al. (2019) write it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from typing import final

from certibox.errors import InvalidInput, UnreadableFile
from certibox.records.certificates import Outcome, check_outcome, collect
from certibox.storage.files import PathLike, read_bytes, write_text_atomic

TSV_HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime"
_TSV_ABSTAIN = -1
_TSV_RADIUS_STEP = Decimal("1e-6")
_CLOCK = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)")


@final
@dataclass(frozen=True)
class PublishedRow:
    """One row of a published TSV: an outcome without its provenance.

    Raises:
        InvalidInput: when the fields contradict each other.
    """

    idx: int
    """Position of the image in its data set."""
    label: int
    """True class."""
    predict: int | None
    """Certified class; None for an abstention."""
    radius: float
    """Certified l2 radius, in pixels on [0, 1]; 0 for an abstention."""
    correct: bool
    """Whether the certified class is the true one; False for an abstention."""
    seconds: float
    """Time that the certificate took, in seconds."""

    def __post_init__(self) -> None:
        check_outcome(self)


def write_tsv(rows: Iterable[Outcome], path: PathLike) -> None:
    """Write labelled rows in the format of Cohen et al. (2019), atomically.

    `predict` is -1 on abstention and `time` is H:MM:SS.ffffff.

    Args:
        rows: Outcomes of labelled images.
        path: File to write.

    Raises:
        InvalidInput: for a row without a label, which the format cannot express.
    """
    write_text_atomic(path, "\n".join([TSV_HEADER, *(_tsv_line(row) for row in rows)]) + "\n", is_tsv)


def is_tsv(content: bytes) -> bool:
    """Whether a file that begins so has the header of the field's TSV.

    Args:
        content: First bytes of the file.
    """
    return content.removeprefix(b"\xef\xbb\xbf").startswith(TSV_HEADER.encode())


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

    Args:
        path: File to read.

    Raises:
        UnreadableFile: when the file is missing, has another header, holds a corrupt line or an image twice.
    """
    header, *lines = read_bytes(path).splitlines() or [b""]
    if header != TSV_HEADER.encode():
        raise UnreadableFile(
            f"{path}, line 1: wanted the header {TSV_HEADER!r}, got {header[:80]!r}; is it a certify TSV?"
        )
    return collect(path, lines, _parse_tsv_row, first_line=2)


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

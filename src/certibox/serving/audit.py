"""The audit log of a gateway: every certificate and prediction that it gave, with what it takes to check them.

A line of JSON holds the time, the id of the request, the name of its token, the position of the image in it, what the
box was asked for it, and either the row of a certificate or the votes of a prediction. Both carry the seed of the
noise, so the log is as secret as the key of the server.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from certibox import __version__
from certibox.certification.certificate import Certificate, Prediction
from certibox.certification.stored import replay, row_of
from certibox.confidence.ranks import RankVerification
from certibox.errors import InvalidInput, UnreadableFile
from certibox.records.certificates import CertificateRow, plain_fields
from certibox.storage.files import append_text, truncate_partial_line, whole_lines
from certibox.storage.places import read_bytes, require_place
from certibox.storage.strict import is_json_lines, parsed


@dataclass(frozen=True)
class Entry:
    """One image of one answer."""

    time: str
    """When it was answered, UTC."""
    request: str
    """Id of the request."""
    token: str | None
    """Name of its token; None where none was wanted."""
    idx: int
    """Position of the image in the request."""
    image: str
    """SHA-256 (hex) of the image."""
    asked: int
    """Queries that the box was asked for the image; more than counted where time ended the votes."""
    model: str
    """Name of the base classifier."""
    found: Certificate | Prediction
    """What was answered."""

    @property
    def is_certificate(self) -> bool:
        """Whether it is a certificate, and not a prediction alone."""
        return isinstance(self.found, Certificate)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        held = {"time": self.time, "request": self.request, "token": self.token, "asked": self.asked}
        if isinstance(self.found, Certificate):
            return held | {"certificate": asdict(row_of(self.found, self.idx, None, 0.0, self.model, __version__))}
        about = {"idx": self.idx, "image": self.image, "model": self.model}
        return held | {"prediction": about | asdict(self.found)}


class AuditLog:
    """A file to which answers are appended before they are sent.

    Args:
        path: File of JSON lines, made where there is none; a torn last line, left by a crash, is cut off.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        require_place(self.path, is_json_lines)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            self.path.touch(0o600)
        truncate_partial_line(self.path)
        self._lock = threading.Lock()

    def add(self, entries: Iterable[Entry]) -> None:
        """Append what was answered to one request.

        Args:
            entries: Images of the request.
        """
        lines = "".join(json.dumps(entry.as_dict(), ensure_ascii=False, allow_nan=False) + "\n" for entry in entries)
        with self._lock:
            append_text(self.path, lines)


def now() -> str:
    """The time, UTC, as entries have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def is_audit(path: str | Path) -> bool:
    """Whether a file of JSON lines begins like an audit log, and not like a file of certificates.

    Args:
        path: File of JSON lines.
    """
    lines = whole_lines(path)[:1]
    try:
        return bool(lines) and "asked" in parsed(lines[0])
    except (ValueError, TypeError):
        return False


def read_audit(path: str | Path) -> list[Entry]:
    """The entries of an audit log, each checked: what it states follows from its votes.

    Args:
        path: Audit log.

    Raises:
        UnreadableFile: naming the line, and what does not hold there.
    """
    found = []
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            found.append(_checked(parsed(line)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UnreadableFile(f"{path}, line {number} does not hold: {error}") from error
    return found


def check_seeds(entries: Iterable[Entry], key: Path, path: str | Path) -> None:
    """Refuse entries whose seed is not the one that the key of the gateway gives to their image.

    Args:
        entries: Entries of a log.
        key: File of the key.
        path: Log, for the message.

    Raises:
        UnreadableFile: naming the entry.
    """
    secret = read_bytes(key)
    for number, entry in enumerate(entries, start=1):
        if entry.found.seed != seed_of(secret, entry.image):
            raise UnreadableFile(f"{path}, line {number}: its seed is not the one that {key} gives to its image")


def seed_of(key: bytes, image: str) -> int:
    """The seed of an image's noise, which nobody can know without the key: who knows the noise can aim at it.

    Args:
        key: Secret of the gateway.
        image: SHA-256 (hex) of the image.
    """
    return int.from_bytes(hmac.digest(key, image.encode(), hashlib.sha256)[:8]) >> 1


def _checked(line: dict[str, Any]) -> Entry:
    kind = "certificate" if "certificate" in line else "prediction"
    wanted = {"time", "request", "token", "asked", kind}
    if line.keys() != wanted:
        raise InvalidInput(f"it has {', '.join(sorted(line))}; wanted {', '.join(sorted(wanted))}")
    if type(line["asked"]) is not int:
        raise InvalidInput("asked is no whole number")
    if kind == "certificate":
        row = CertificateRow(**plain_fields(CertificateRow, line[kind]))
        _same(row, replay([row])[0])
        held = {name: getattr(row, name) for name in _fields(Certificate) if name != "label"}
        made: Certificate | Prediction = Certificate(label=row.predict, **held)
        idx, image, model = row.idx, row.image, row.model
    else:
        held = dict(line[kind])
        idx, image, model = held.pop("idx"), held.pop("image"), held.pop("model")
        made = _prediction(held)
        _require_prediction(made)
    if line["asked"] < made.queries:
        raise InvalidInput(f"{line['asked']} queries were asked, and {made.queries} counted")
    return Entry(line["time"], line["request"], line["token"], idx, image, line["asked"], model, made)


def _fields(kind: type[Any]) -> Sequence[str]:
    return list(kind.__dataclass_fields__)


def _same(stated: CertificateRow, again: CertificateRow) -> None:
    for name in ("predict", "radius", "p_lower", "queries"):
        if getattr(stated, name) != getattr(again, name):
            came = f"{name} is {getattr(stated, name)!r} in the line"
            raise InvalidInput(f"{came}, and {getattr(again, name)!r} follows from its votes")


def _prediction(held: dict[str, Any]) -> Prediction:
    if held.keys() != set(_fields(Prediction)):
        raise InvalidInput("the fields are not those of a prediction")
    for name in ("counts", "first"):
        if not isinstance(held[name], list) or not all(type(count) is int for count in held[name]):
            raise InvalidInput(f"{name} is no list of whole numbers")
    return Prediction(**{**held, "counts": tuple(held["counts"]), "first": tuple(held["first"])})


def _require_prediction(made: Prediction) -> None:
    """Raise `InvalidInput` unless a prediction follows from its votes."""
    rule = dict(made.rule or {})
    cap = rule.pop("cap", None)
    if rule.pop("name", None) != "rank-verification" or type(cap) is not int:
        raise InvalidInput("the prediction names no rule that is known")
    if sum(made.counts) != made.n or made.queries != made.n + sum(made.first) or made.n > cap:
        raise InvalidInput(f"{sum(made.counts)} votes are counted, and {made.n} stated")
    if len(made.first) != len(made.counts) or min(*made.counts, *made.first) < 0:
        raise InvalidInput("its votes are no counts of the same classes")
    decided = RankVerification(**rule).decide(made.counts, made.first, cap, made.alpha)
    if (decided.label, decided.p_value) != (made.label, made.p_value):
        came = f"the class {made.label} with p = {made.p_value:g} is stated"
        raise InvalidInput(f"{came}, and {decided.label} with p = {decided.p_value:g} follows from its votes")

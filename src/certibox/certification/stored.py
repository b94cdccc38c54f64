"""What follows from stored votes without a query: another alpha, a check of every row, one file of several shards."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from certibox.certification.certificate import Certificate
from certibox.errors import InvalidInput
from certibox.records.certificates import CertificateRow, append_row, read_rows
from certibox.storage.files import write_text_atomic
from certibox.storage.settings import require_same


def at_alpha(rows: Iterable[CertificateRow], alpha: float) -> list[CertificateRow]:
    """The rows that the same votes give at another alpha; no query is spent. See `Certificate.at_alpha`."""
    return [_again(row, _certificate(row).at_alpha(alpha)) for row in rows]


def replay(rows: Iterable[CertificateRow]) -> list[CertificateRow]:
    """The rows, computed again from their votes: every look, every decision of the rule, bound, radius and queries.

    Errors: `InvalidInput`, naming the image, for a row that states anything else. A row that contradicts itself nowhere
    passes: this cannot see whether the votes came from the box, or from the noise of the seed; nor that a rule was
    taken away, where a sequential row is rewritten as one of a fixed n. For that, the queries must be asked again.
    """
    replayed = []
    for row in rows:
        try:
            replayed.append(_again(row, _certificate(row).replay()))
        except InvalidInput as error:
            raise InvalidInput(f"row of image {row.idx} does not replay: {error}") from error
    return replayed


def merge(parts: Sequence[str | Path], out: str | Path) -> list[CertificateRow]:
    """Merge the files of shards into one, in order of images.

    Errors: `ConfigMismatch` if their settings differ; `InvalidInput` if two files disagree about an image. A row that
    is in two files alike is kept once.
    """
    if not parts:
        raise InvalidInput("there is nothing to merge; wanted the certificate files of some shards")
    merged: dict[int, CertificateRow] = {}
    first: dict[str, object] | None = None
    for part in parts:
        for row in read_rows(part):
            settings = shared_settings(row)
            first = first or settings
            require_same(settings, first, str(part))
            known = merged.setdefault(row.idx, row)
            if replace(known, seconds=0.0) != replace(row, seconds=0.0):
                raise InvalidInput(
                    f"{part} disagrees with an earlier file on image {row.idx}; wanted shards of one run"
                )
    rows = [merged[i] for i in sorted(merged)]
    text = io.StringIO()
    for row in rows:
        append_row(text, row)
    write_text_atomic(out, text.getvalue())
    return rows


def shared_settings(row: CertificateRow) -> dict[str, Any]:
    """What all rows of one file share; n is the cap of a sequential rule."""
    shared = {key: getattr(row, key) for key in ("n0", "alpha", "sigma", "seed", "model", "second_class")}
    return shared | {"n": row.cap, "rule": row.rule}


def _certificate(row: CertificateRow) -> Certificate:
    held = {item.name: getattr(row, item.name) for item in fields(Certificate) if item.name != "label"}
    return Certificate(label=row.predict, **held)


def _again(row: CertificateRow, certificate: Certificate) -> CertificateRow:
    """The row of an image under another certificate."""
    return row_of(certificate, row.idx, row.label, row.seconds, row.model, row.version)


def row_of(
    certificate: Certificate, idx: int, label: int | None, seconds: float, model: str, version: str
) -> CertificateRow:
    """The row of one certificate; `label` is the true class, where it is known."""
    held = {key: value for key, value in certificate.as_dict().items() if key != "label"}
    correct = None if label is None else certificate.label == label
    predict = certificate.label
    return CertificateRow(idx, label, predict, correct=correct, seconds=seconds, model=model, version=version, **held)  # pyright: ignore

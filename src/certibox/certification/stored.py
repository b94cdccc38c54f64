"""What follows from stored votes without a query: another alpha, a check of every row, one file of several shards."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from certibox.certification.certificate import Certificate
from certibox.confidence import recorded
from certibox.confidence.sequential import RULES
from certibox.confidence.stopping import RuleTable
from certibox.errors import ConfigMismatch, InvalidInput, UnreadableFile
from certibox.records.certificates import CertificateRow, CertificateRows, append_row, is_rows, read_rows, require_votes
from certibox.records.checks import check_stream
from certibox.storage.files import PathLike, exclusive, require_place, write_text_atomic
from certibox.storage.settings import require_same


def at_alpha(rows: Iterable[CertificateRow], alpha: float, rules: RuleTable | None = None) -> CertificateRows:
    """The rows that the same votes give at another alpha; no query is spent. See `Certificate.at_alpha`.

    Args:
        rows: Rows of any certification.
        alpha: Failure probability of each certificate, in (0, 1), chosen without these votes.
        rules: Builders of stopping rules of your own, by the names in their `as_dict`.
    """
    return CertificateRows(_again(row, _certificate(row).at_alpha(alpha, rules)) for row in rows)


def replay(rows: Iterable[CertificateRow], rules: RuleTable | None = None) -> CertificateRows:
    """The rows, computed again from their votes: every look, every decision of the rule, bound, radius and queries.

    A row that contradicts itself nowhere passes: this cannot see whether the votes came from the box, or from the noise
    of the seed; nor that a rule was taken away, where a sequential row is rewritten as one of a fixed n; nor whether
    the bound of a rule of your own holds. For the votes, the queries must be asked again.

    Args:
        rows: Rows of any certification.
        rules: Builders of stopping rules of your own, by the names in their `as_dict`.

    Raises:
        InvalidInput: naming the image, for a row that states anything else, or whose rule is not known.
    """
    replayed = CertificateRows()
    for row in rows:
        try:
            replayed.append(_again(row, _certificate(row).replay(rules)))
        except InvalidInput as error:
            raise InvalidInput(f"row of image {row.idx} does not replay: {error}") from error
    return replayed


def read(path: PathLike, rules: RuleTable | None = None) -> CertificateRows:
    """The rows of a file of certificates, each of which follows from its votes, all of one certification.

    A stopping rule that is not certibox's, and that `rules` does not build, says what only its builder can check: of
    its rows all else is checked, and the bound is taken as stated; `believed` names it.

    Args:
        path: File of rows, as `certify_dataset` writes it.
        rules: Builders of stopping rules of your own, by the names in their `as_dict`.

    Raises:
        UnreadableFile: naming the line and what does not hold there: a value, a bound or radius that does not follow
            from the votes, or settings, or a number of classes, that are not those of the first row.
    """
    rows = read_rows(path)
    for line, row in enumerate(rows, 1):
        try:
            require_same(_of_one_file(row), _of_one_file(rows[0]), "this row")
            check_stream(row.stream)
            _certificate(row).require_true(rules)
        except (InvalidInput, ConfigMismatch) as error:
            came = f"{path}, line {line}: row of image {row.idx} does not hold: {error}"
            raise UnreadableFile(came) from error
    return rows


def believed(rows: Iterable[CertificateRow]) -> list[str]:
    """Names of the stopping rules of rows that are not certibox's, so that `read` takes their bounds as stated.

    Args:
        rows: Rows of any certification.
    """
    return sorted({row.rule["name"] for row in rows if row.rule is not None} - RULES.keys())


def merge(parts: Sequence[str | Path], out: str | Path) -> CertificateRows:
    """Merge the files of shards into one, in order of images.

    A row that is in two files alike is kept once.

    Args:
        parts: Files of rows.
        out: File to write, atomically.

    Raises:
        ConfigMismatch: if their settings differ.
        InvalidInput: if two files disagree about an image.
    """
    if not parts:
        raise InvalidInput("there is nothing to merge; wanted the certificate files of some shards")
    require_place(out, is_rows)
    merged: dict[int, CertificateRow] = {}
    first: dict[str, object] | None = None
    for part in parts:
        for row in read(part):
            settings = shared_settings(row)
            first = first or settings
            require_same(settings, first, str(part))
            known = merged.setdefault(row.idx, row)
            if replace(known, seconds=0.0) != replace(row, seconds=0.0):
                raise InvalidInput(
                    f"{part} disagrees with an earlier file on image {row.idx}; wanted shards of one run"
                )
    rows = CertificateRows(merged[i] for i in sorted(merged))
    with exclusive(out, is_rows):
        write_rows(out, rows)
    return rows


def write_rows(path: PathLike, rows: Iterable[CertificateRow]) -> None:
    """Put rows into a file in place of those that it holds, atomically.

    Args:
        path: File of rows.
        rows: Rows of one certification.
    """
    text = io.StringIO()
    for row in rows:
        append_row(text, row)
    write_text_atomic(path, text.getvalue(), is_rows)


def is_decided(row: CertificateRow, rules: RuleTable | None = None) -> bool:
    """Whether the rule of a row has ended its votes; without a rule, and where nothing else could, it has.

    Args:
        row: Row of one image.
        rules: Builders of stopping rules of your own, by the names in their `as_dict`.

    Raises:
        InvalidInput: if the rule is not known.
    """
    if row.rule is None or not row.rule.get("spent"):
        return True
    return recorded.replay(row.rule, row.looks or (), row.law, rules).stop


def shared_settings(row: CertificateRow) -> dict[str, Any]:
    """What all rows of one file share; n is the maximum of a stopping rule.

    Args:
        row: Row of the file.
    """
    shared = {key: getattr(row, key) for key in ("n0", "alpha", "sigma", "seed", "model", "second_class", "stream")}
    return shared | {"n": row.cap, "rule": row.rule}


def _of_one_file(row: CertificateRow) -> dict[str, Any]:
    return {**shared_settings(row), "num_classes": len(row.counts)}


def _certificate(row: CertificateRow) -> Certificate:
    require_votes([row])
    held = {item.name: getattr(row, item.name) for item in fields(Certificate) if item.name != "label"}
    return Certificate(label=row.predict, **held)


def _again(row: CertificateRow, certificate: Certificate) -> CertificateRow:
    """The row of an image under another certificate."""
    return row_of(certificate, row.idx, row.label, row.seconds, row.model, row.version, row.file)


def row_of(
    certificate: Certificate,
    idx: int,
    label: int | None,
    seconds: float,
    model: str,
    version: str,
    file: str | None = None,
) -> CertificateRow:
    """The row of one certificate.

    Args:
        certificate: Certificate of the image.
        idx: Position of the image in its data set.
        label: True class; None when unknown.
        seconds: Time that the certificate took.
        model: Name of the base classifier.
        version: Version of certibox.
        file: Name of the image's file, where it had one.
    """
    held = {key: value for key, value in certificate.as_dict().items() if key != "label"}
    correct = None if label is None else certificate.label == label
    predict = certificate.label
    made = {"correct": correct, "seconds": seconds, "model": model, "version": version, "file": file}
    return CertificateRow(idx, label, predict, **made, **held)  # pyright: ignore

"""Result rows on disk: certificates as JSON lines, and the field's TSV. No torch."""

from __future__ import annotations

from certibox.records.certificates import CertificateRow, CertificateRows, Outcome, append_row, read_rows
from certibox.records.tsv import TSV_HEADER, PublishedRow, read_tsv, write_tsv

__all__ = [
    "TSV_HEADER",
    "CertificateRow",
    "CertificateRows",
    "Outcome",
    "PublishedRow",
    "append_row",
    "read_rows",
    "read_tsv",
    "write_tsv",
]

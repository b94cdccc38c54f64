"""Rows as a table of pandas: every field a column, what is missing missing; the JSON lines say the same."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from certibox.certification.stored import merge
from certibox.errors import InvalidInput
from certibox.records import CertificateRow, CertificateRows, read_rows
from places import FIXTURES

EARLIER = FIXTURES / "interrupted" / "reference" / "certification" / "certificates.jsonl"
pandas = pytest.importorskip("pandas", reason="pandas is optional")


def test_a_table_has_a_column_for_each_field_and_a_line_for_each_row() -> None:
    rows = read_rows(EARLIER)
    assert isinstance(rows, CertificateRows)
    table = rows.to_pandas()
    assert table.index.name == "idx"
    assert table.index.tolist() == [row.idx for row in rows]
    assert {"idx", *table.columns} == asdict(rows[0]).keys()
    for name in table.columns:
        if name not in ("predict", "label", "correct"):
            assert table[name].tolist() == [getattr(row, name) for row in rows]
    assert (table["correct"] & (table["radius"] >= 0.25)).mean() == sum(
        row.correct is True and row.radius >= 0.25 for row in rows
    ) / len(rows)


def test_what_is_not_known_is_missing() -> None:
    first: CertificateRow = next(row for row in read_rows(EARLIER) if row.predict is not None)
    unlabelled = replace(first, label=None, correct=None)
    table = CertificateRows([unlabelled]).to_pandas()
    assert table[["label", "correct"]].isna().all(axis=None)
    assert table["predict"].tolist() == [first.predict]
    assert CertificateRows().to_pandas().empty


def test_json_lines_are_read_by_pandas_too() -> None:
    read = pandas.read_json(EARLIER, lines=True, precise_float=True)
    assert read["radius"].tolist() == [row.radius for row in read_rows(EARLIER)]
    assert read["counts"].tolist() == [json.loads(line)["counts"] for line in EARLIER.read_text().splitlines()]


def test_merged_rows_are_a_table_too(tmp_path: Path) -> None:
    assert isinstance(merge([EARLIER], tmp_path / "merged.jsonl"), CertificateRows)


def test_without_pandas_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InvalidInput, match=r"pandas is not installed; .* pip install pandas"):
        CertificateRows().to_pandas()

"""The study of image counts, tiny: as many steps whatever the count, and rows that are measured once."""

from __future__ import annotations

from pathlib import Path

import pytest

import image_counts
from certibox.paper.logbook import Rows


def test_rows_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--tiny", "--out", str(tmp_path / "rows.jsonl")]
    image_counts.main(arguments)
    rows = Rows(tmp_path / "rows.jsonl").read()
    assert [row["images"] for row in rows] == list(image_counts.TINY.counts)
    for row in rows:
        for name in ("free", "guided"):
            assert row[name] == sorted(row[name], reverse=True)
    table = image_counts.table(tmp_path / "rows.jsonl")
    assert len(table.splitlines()) == 2 + 2 * len(rows)
    assert f"| {rows[-1]['queries']:,} |" in table
    monkeypatch.setattr(image_counts, "measure", lambda *_: pytest.fail("nothing was left to measure"))
    image_counts.main(arguments)
    assert Rows(tmp_path / "rows.jsonl").read() == rows


@pytest.mark.parametrize("count", image_counts.FULL.counts)
def test_fewer_images_get_as_many_steps(count: int) -> None:
    full, found = image_counts.FULL.settings, image_counts.scaled(image_counts.FULL, count)
    for name in ("denoise_epochs", "epochs", "autoencoder_epochs"):
        assert getattr(found, name) * count == getattr(full, name) * image_counts.FULL.whole
    assert found.sigma == full.sigma

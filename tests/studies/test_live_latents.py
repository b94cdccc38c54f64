"""The study of live latents, tiny: which coordinates live, and what they cost, is known in advance."""

from __future__ import annotations

from pathlib import Path

import pytest

import live_latents
from certibox.paper.logbook import Rows

SETUP, VALIDATION, VOTES, D_Z = live_latents.TINY, 297, 4, 32
AROUND = SETUP.images + VALIDATION * (1 + 2 * VOTES)  # targets, and the votes before and after the one epoch


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("latents") / "live_latents.jsonl"
    live_latents.main(["--tiny", "--out", str(found)])
    return found


def test_without_a_relu_every_coordinate_lives_and_is_paid_for(path: Path) -> None:
    rows = {(row["latent"], row["method"]): row for row in Rows(path).read()}
    assert len(rows) == 6
    for latent in ("leaky", "linear"):
        for method in live_latents.METHODS:
            assert rows[latent, method]["start"] == rows[latent, method]["end"] == {"live": D_Z, "ever_live": D_Z}
        assert rows[latent, "CGE"]["training_queries"] == AROUND + SETUP.images * (D_Z + 1)
    for method in live_latents.METHODS:
        assert rows["relu", method]["start"]["live"] < D_Z
    assert AROUND + SETUP.images < rows["relu", "CGE"]["training_queries"] < AROUND + SETUP.images * (D_Z + 1)


def test_first_order_asks_for_targets_alone(path: Path) -> None:
    spent = {row["training_queries"] for row in Rows(path).read() if row["method"] == "first order"}
    assert spent == {SETUP.images + VALIDATION}


def test_what_is_measured_is_not_measured_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()
    monkeypatch.setattr(live_latents, "prepared", lambda *_: pytest.fail("nothing was left to measure"))
    live_latents.main(["--tiny", "--out", str(path)])
    assert path.read_bytes() == before


def test_the_table_has_its_rows(path: Path) -> None:
    lines = live_latents.table(path).splitlines()[2:]
    assert len(lines) == 6
    assert sum("32 → 32 of 32" in line for line in lines) == 4
    assert [line.endswith("| – |") for line in lines] == ["relu" in line for line in lines]

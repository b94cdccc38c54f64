"""Tuning, tiny: a setting is measured once, its score lies where a score must, and no test image is loaded."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import certibox as cb
import tune_demo
import tune_paper
from certibox.paper.logbook import Rows
from certibox.paper.stages import Workshop
from pictures import draw

# These tiny runs certify a few of the images that they select or train on.
pytestmark = pytest.mark.filterwarnings("ignore:.* images trained this defense:UserWarning")

VALIDATION, VOTES = 8, tune_paper.VOTES  # images of a tiny plan


def test_the_demo_is_tuned_once_a_setting_and_without_test_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    splits: list[str] = []
    load = cb.load_images
    monkeypatch.setattr(cb, "load_images", lambda name, split: splits.append(split) or load(name, split))
    arguments = ["--tiny", "--images", "3", "--out", str(tmp_path / "rows.jsonl")]
    tune_demo.main(arguments)
    rows = Rows(tmp_path / "rows.jsonl").read()
    # The learning rate that is tried next is that of the best row, which is not measured again.
    assert [row["settings"]["gamma"] for row in rows] == [1.0, 5.0]
    assert set(splits) == {"train", "validation"}
    for row in rows:
        assert row["settings"] == asdict(tune_demo.TINY.start) | {"gamma": row["settings"]["gamma"]}
        assert row["score"] == np.mean(row["certified_accuracy"])
        assert len(row["certified_accuracy"]) == 3
        assert row["certified_accuracy"] == sorted(row["certified_accuracy"], reverse=True)
    best = max(rows, key=lambda row: row["score"])["settings"]["gamma"]
    assert f"best gamma: {best}" in capsys.readouterr().out
    monkeypatch.setattr(tune_demo, "measure", lambda *_: pytest.fail("nothing was left to measure"))
    tune_demo.main(arguments)
    assert Rows(tmp_path / "rows.jsonl").read() == rows


@pytest.mark.parametrize("table", tune_paper.GRID)
def test_gamma_of_the_paper_is_tuned_once(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tune_paper.GRID, table, tune_paper.GRID[table][:1])
    draw(tmp_path / "data" / "mnist", 28, 1, classes=2)
    places = ["--data", str(tmp_path / "data"), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "rows.jsonl")]
    arguments = [*places, "--tiny", "--table", table]
    tune_paper.main(arguments)
    rows = Rows(tmp_path / "rows.jsonl").read()
    assert [(row["table"], row["method"]) for row in rows] == [(table, method) for method in tune_paper.METHODS]
    for row in rows:
        if table == "table2":  # a share of votes
            votes = row["validation"] * VALIDATION * VOTES
            assert votes == pytest.approx(round(votes))
            assert 0 <= row["validation"] <= 1
        else:  # minus a squared error
            assert row["validation"] < 0
    monkeypatch.setattr(Workshop, "defense", lambda *_: pytest.fail("nothing was left to measure"))
    tune_paper.main(arguments)
    assert Rows(tmp_path / "rows.jsonl").read() == rows

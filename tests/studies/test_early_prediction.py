"""The study of predictions that end early, tiny: what each way may take is known in advance."""

from __future__ import annotations

from pathlib import Path

import pytest

import certibox as cb
import early_prediction
from certibox.blackbox import as_blackbox
from certibox.commands import demo
from certibox.data import load_images
from certibox.networks import dncnn
from certibox.paper.logbook import Rows
from certibox.training.schedules import one_cycle


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of a dry run on a defense that was trained in a second."""
    folder = tmp_path_factory.mktemp("early")
    shown = load_images("digits", "train").select(slice(0, 200))
    box = as_blackbox(demo.train_box(shown, 5), "probabilities", clip=False, name="sklearn-gradient-boosting")
    net = dncnn(1, depth=3, width=4)
    defense = cb.train(cb.QueryClient(box), shown, method="DS", sigma=0.25, denoiser=net, schedule=one_cycle(1), seed=0)
    defense.save(folder / "defense")
    early_prediction.main(["digits", str(folder), "--tiny", "--out", str(folder / "rows.jsonl")])
    return folder / "rows.jsonl"


def test_each_way_is_measured_once_and_takes_what_it_may(path: Path) -> None:
    rows = Rows(path).read()
    assert [row["way"] for row in rows] == [way.name for way in early_prediction.WAYS]
    assert rows[0]["queries_an_answer"] == early_prediction.FIXED
    for row, way in zip(rows[1:], early_prediction.WAYS[1:], strict=True):
        assert way.rule is not None
        assert way.rule.sizes(way.n, early_prediction.ALPHA)[0] <= row["queries_an_answer"] <= way.n + way.n0
    for row in rows:
        assert row["images"] == 5
        assert 0 <= row["right"] <= 1 - row["abstained"]


def test_the_table_says_how_many_times_fewer(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = Rows(path).read()
    lines = early_prediction.table(path).splitlines()[2:]
    for line, row in zip(lines, rows, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert float(cells[4]) == pytest.approx(1000 / row["queries_an_answer"], abs=0.06)
    early_prediction.main(["print", "--out", str(path)])
    assert early_prediction.table(path) in capsys.readouterr().out

"""The study of families, tiny: rows that are measured once, with the queries that a closed form gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import families
from certibox import confidence
from certibox.commands import demo
from certibox.paper.logbook import Rows

VALIDATION, VOTES = 297, 4
TRAIN, D_Z = families.TINY.train or 0, families.TINY.settings.d_z
AROUND = TRAIN + VALIDATION * (1 + 2 * VOTES)  # targets, and the votes before and after the one epoch with queries


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("families") / "families.jsonl"
    families.main(["--tiny", "--out", str(found)])
    return found


def test_every_family_has_every_row(path: Path) -> None:
    rows = Rows(path).read()
    names = [(row["family"], row["estimator"]) for row in rows]
    wanted = ("bare", "none", "CGE mu=0.05", "RGE mu=0.05")
    assert names == [(family, name) for family in ("perceptron", "logistic", "forest") for name in wanted]
    s = families.TINY.settings
    farthest = confidence.radius(confidence.lower_confidence_bound(s.n, s.n, s.alpha), s.sigma)
    for row in rows:
        assert row["certified_accuracy_at_sigma"] == np.mean(row["certified_at_sigma"])
        assert 0 <= row["average_certified_radius"] <= farthest


def test_queries_are_those_of_the_estimators(path: Path) -> None:
    for row in Rows(path).read():
        spent = row["training_queries"]
        if row["estimator"].startswith("RGE"):
            assert spent == AROUND + TRAIN * (D_Z + 1)  # q = d_z directions and the point itself
        elif row["estimator"].startswith("CGE"):
            assert AROUND + TRAIN < spent <= AROUND + TRAIN * (D_Z + 1)  # dead coordinates are not asked about
        else:
            assert spent == 0


def test_what_is_measured_is_not_measured_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rstrip().rfind(b"\n") + 1])  # all but the last row
    asked: list[str] = []
    monkeypatch.setattr(families, "measure", lambda work, client, name, estimator: asked.append(name) or {"again": 1})
    monkeypatch.setattr(families, "table", lambda path: "")
    families.main(["--tiny", "--out", str(path)])
    assert asked == ["RGE mu=0.05"]
    assert path.read_bytes().startswith(whole[: whole.rstrip().rfind(b"\n") + 1])
    path.write_bytes(whole)
    monkeypatch.setattr(demo, "train_stage1", lambda *_: pytest.fail("nothing was left to measure"))
    families.main(["--tiny", "--out", str(path)])
    assert asked == ["RGE mu=0.05"]


def test_the_table_has_its_rows(path: Path) -> None:
    lines = families.table(path).splitlines()
    assert len(lines) == 2 + len(Rows(path).read())
    (rge,) = (line for line in lines if line.startswith("| forest | RGE"))
    assert f"| {AROUND + TRAIN * (D_Z + 1):,} |" in rge
    assert sum(line.endswith(" | – |") for line in lines) == 3  # the denoisers are what the others are compared with

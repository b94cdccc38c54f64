"""The study of sequential certificates on trained defenses, tiny: paid once, paired, and replayed as it goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sequential_pipelines as study
from certibox.paper.logbook import Rows

# These tiny runs certify a few of the images that they select or train on.
pytestmark = pytest.mark.filterwarnings("ignore:.* images trained this defense:UserWarning")

IMAGES = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("pipelines")
    study.main(arguments(found))
    return found


def arguments(folder: Path) -> list[str]:
    return ["digits", "--tiny", "--work", str(folder / "work"), "--out", str(folder / "rows.jsonl")]


def test_samples_are_those_of_the_rules(folder: Path) -> None:
    rows = Rows(folder / "rows.jsonl").read()
    assert len(rows) == 1 + len(study.ASKED) * len(study.RULES)
    for row in rows:
        assert (row["images"], len(row["samples"]), row["queries_paid"]) == (IMAGES, IMAGES, sum(row["samples"]))
        if row["rule"] == study.FIXED:
            assert row["samples"] == [study.TINY.n + study.N0_FIXED] * IMAGES
        else:
            assert all(study.N0 < samples <= row["n"] + study.N0 for samples in row["samples"])
        assert row["certified_accuracy"] == [sum(outcome) / IMAGES for outcome in row["certified"]]


def test_where_three_sigma_is_asked_a_pilot_chooses_the_maximum(folder: Path) -> None:
    far = [row for row in Rows(folder / "rows.jsonl").read() if row["multiples"] == [3.0]]
    assert len(far) == 2
    for row in far:
        assert set(row["pilot"]) == {str(n) for n in study.TINY.far}
        fitting = [n for n in study.TINY.far if row["pilot"][str(n)] <= study.GOAL]
        assert row["n"] == max(fitting, default=min(study.TINY.far))


def test_what_is_measured_is_not_measured_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "rows.jsonl").read_bytes()
    monkeypatch.setattr(study, "digits", lambda *_: pytest.fail("nothing was left to measure"))
    study.main(arguments(folder))
    assert (folder / "rows.jsonl").read_bytes() == before
    assert capsys.readouterr().out.strip() == study.table(folder / "rows.jsonl").strip()


def test_a_row_that_is_lost_costs_no_query(folder: Path) -> None:
    """Certificates and ledger are kept, so the line is made of them again."""
    path = folder / "rows.jsonl"
    *kept, lost = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(kept))
    study.main(arguments(folder))
    assert path.read_bytes().startswith(b"".join(kept))
    assert Rows(path).read()[-1] == json.loads(lost)

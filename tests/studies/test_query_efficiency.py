"""The studies of what a query buys: measured once at a tiny size, and told from the committed rows."""

from __future__ import annotations

from pathlib import Path

import pytest

import query_efficiency as study
from certibox.paper.measured import Measured, Results
from pictures import draw

ROWS = ["bare model", "FO-AE-DS", "ZO-DS (Guided)"]
TRAIN, VALIDATION, VOTES, TEST, SAMPLES = 12, 8, 20, 2, 5 + 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("queries")
    draw(found / "data" / "mnist", 28, 1, classes=2)
    study.main(arguments(found, "mnist", *ROWS))
    study.main(arguments(found, "mnist-forest", "bare model"))
    return found


def arguments(folder: Path, name: str, *rows: str) -> list[str]:
    places = ["--data", str(folder / "data"), "--work", str(folder / "work")]
    return ["run", name, *places, "--tiny", "--seed", "0", "--row", *rows]


def measured(folder: Path, name: str) -> list[Measured]:
    return Results(folder / "work").read(name)


def test_rows_are_measured_once_and_beside_the_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = measured(folder, "mnist")
    assert sorted(row.row for row in rows) == sorted(ROWS)
    study.main(arguments(folder, "mnist", *ROWS))
    assert capsys.readouterr().out.count("(known)") == len(ROWS)
    assert measured(folder, "mnist") == rows
    assert not {row.digest for row in rows} & {digest for digest, _ in Results(study.FOLDER).by_plan()}


def test_queries_are_those_of_the_methods(folder: Path) -> None:
    spent = {row.row: row.queries for row in measured(folder, "mnist")}
    assert {name: queries["evaluate"] for name, queries in spent.items()} == dict.fromkeys(ROWS, TEST * SAMPLES)
    assert spent["bare model"]["train"] == 0
    assert spent["FO-AE-DS"]["train"] == TRAIN + VALIDATION  # the box's answers to clean images
    assert spent["ZO-DS (Guided)"]["train"] > TRAIN + VALIDATION


def test_a_forest_is_a_box(folder: Path) -> None:
    (row,) = measured(folder, "mnist-forest")
    assert row.queries["evaluate"] == TEST * SAMPLES
    assert row.clean_accuracy in (0.0, 0.5, 1.0)


def test_all_studies_are_printed_and_the_first_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "PICTURE", tmp_path / "images" / "queries.png")
    study.main(["print"])
    out = capsys.readouterr().out
    assert out.count("### ") == len(study.STUDIES)
    assert "| ZO-AE-DS (Guided) | 44,700 |" in out
    assert (tmp_path / "images" / "queries.png").read_bytes().startswith(b"\x89PNG")


def test_the_advice_shows_the_numbers_of_the_studies() -> None:
    """Both tables of the advice take their cells from rows and claims that the studies' own pages show too."""
    first = study.report("mnist")
    for line in study.prices().splitlines()[2:]:
        assert line in first.splitlines()
    lines = study.worth().splitlines()[2 : 2 + len(study.WORTH)]
    for line, (name, better, worse) in zip(lines, study.WORTH.values(), strict=True):
        whole = study.report(name)
        assert f"{better} − {worse}" in whole
        for cell in line.split(" | ")[3:]:
            assert cell.strip(" |") in whole

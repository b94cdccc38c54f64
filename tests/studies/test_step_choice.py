"""The study of chosen steps, tiny: what it asks is known, and no choice is better than the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import step_choice
from certibox.storage.files import read_json

STEPS, ASKED = 7, 32  # steps tried, and directions at each, in all


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("steps") / "step_choice.json"
    step_choice.main(["--tiny", "--write", "--out", str(found)])
    return found


@pytest.fixture(scope="module")
def result(path: Path) -> dict[str, Any]:
    return read_json(path)


def test_a_choice_asks_what_it_should(result: dict[str, Any]) -> None:
    assert len(result["rows"]) == len(step_choice.NAMES) * 2 * 4  # boxes, spaces, estimators
    central, forward = 2 * STEPS * ASKED, STEPS * ASKED + step_choice.TINY.points  # forward: the points themselves too
    for row in result["rows"]:
        assert row["queries"] == (central if row["difference"] == "central" else forward)


def test_a_choice_lies_between_the_worst_and_the_best(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        tried = [step["cosine"] for step in row["steps"]]
        assert (len(tried), row["best"], row["worst"]) == (STEPS, max(tried), min(tried))
        assert row["worst"] <= row["cosine"] <= row["best"]
        assert row["regret"] == pytest.approx(row["best"] - row["cosine"], abs=0.0011)  # each has three decimals


def test_on_a_smooth_box_differences_find_the_gradient(result: dict[str, Any]) -> None:
    smooth = [row for row in result["rows"] if row["box"] == "float32" and row["difference"] == "central"]
    assert len(smooth) == 4
    assert min(row["cosine"] for row in smooth) > 0.99


def test_the_table_has_a_line_for_each_box_and_space(path: Path, result: dict[str, Any]) -> None:
    lines = step_choice.table(path).splitlines()[2:]
    assert len(lines) == 2 * len(step_choice.NAMES)
    first = result["rows"][0]
    assert lines[0].startswith("| conv net, float32, behind the decoder |")
    assert f"| {first['cosine']:.2f} [{first['worst']:.2f}, {first['best']:.2f}] |" in lines[0]

"""The study of gradients, tiny: queries by the formulas of the estimators, and cosines where they must be near one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import gradient_quality
from certibox.storage.files import read_json
from pictures import draw

D_Z, DIGITS = 192, 64


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gradients")
    data = draw(folder / "cifar10", 32, 3, classes=3)
    gradient_quality.main(["--tiny", "--data", str(data), "--write", "--out", str(folder / "result.json")])
    return folder / "result.json"


@pytest.fixture(scope="module")
def result(path: Path) -> dict[str, Any]:
    return read_json(path)


def test_queries_are_those_of_the_estimators(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        q = row["q"] or (DIGITS if row["space"] == "staircase" else D_Z)
        if row["space"] == "live z" and row["q"] != 20:
            assert row["queries"] <= q + 1  # as many as coordinates live, and the point itself
        else:
            assert row["queries"] == (2 * q if row["difference"] == "central" else q + 1)


def test_in_float32_whole_bases_find_the_gradient(result: dict[str, Any]) -> None:
    whole = [
        row["cosine"]
        for row in result["rows"]
        if (row["space"], row["box"], row["difference"]) == ("z", "float32", "central")
        and (row["estimator"], row["q"]) in (("CGE", None), ("Orthogonal", D_Z))
    ]
    assert len(whole) == 2
    assert min(whole) > 0.9  # an untrained box bends within a step of 0.05
    (cge,) = (
        row
        for row in result["rows"]
        if row["space"] == "live z" and row["estimator"] == "CGE" and row["box"] == "float32"
    )
    assert cge["cosine"] > 0.9
    assert cge["null"] == pytest.approx(1 - result["live_coordinates"] / D_Z, abs=0.02)


def test_the_table_has_its_rows(path: Path, result: dict[str, Any]) -> None:
    lines = gradient_quality.table(path).splitlines()[2:]
    (row,) = (
        row
        for row in result["rows"]
        if (row["space"], row["box"], row["estimator"], row["difference"]) == ("z", "float32", "CGE", "central")
    )
    assert f"| conv net, float32 | CGE, central | 384 | – | {row['cosine']:.2f} | – |" in lines
    assert result["versions"].keys() >= {"certibox", "torch", "numpy", "python", "scikit-learn"}

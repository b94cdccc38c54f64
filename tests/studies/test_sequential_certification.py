"""The study of sequential rules on published votes, tiny: a fixed n costs what it costs, alpha is never exceeded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, norm

import sequential_certification as study
from certibox import confidence
from certibox.storage.files import read_json

SIGMA, ALPHA = 0.25, 0.001


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two images, one is certified to 0.6 and one is abstained on."""
    folder = tmp_path_factory.mktemp("votes")
    for sigma in study.SIGMAS:
        log = folder / f"cifar10_resnet110_sigma_{sigma:.2f}.tsv"
        log.write_text("idx\tlabel\tpredict\tradius\tcorrect\n0\t3\t3\t0.600\t1\n1\t3\t-1\t0.0\t0\n", encoding="utf-8")
    study.main(["--tiny", "--cohen", str(folder), "--write", "--out", str(folder / "result.json")])
    return folder / "result.json"


@pytest.fixture(scope="module")
def result(path: Path) -> dict[str, Any]:
    return read_json(path)


def test_a_fixed_n_takes_n_and_certifies_by_the_binomial_law(result: dict[str, Any]) -> None:
    fixed = [row for row in result["rows"] if row["rule"] == "fixed n" and row["asked"] == "radius"]
    assert len(fixed) == 2 * 3 * 2  # sigmas, radii, sample sizes
    for row in fixed:
        assert row["mean_samples"] == row["cap"] + row["n0"]
        p, p0 = (float(norm.cdf(radius / row["sigma"])) for radius in (0.6, row["radii"][0]))
        fewest = study.fewest(row["cap"], p0)
        proven = float(binom.sf(fewest - 1, row["cap"], p)) * float(binom.sf(row["n0"] // 2, row["n0"], p))
        assert row["certified_accuracy"] == [pytest.approx(proven / 2, abs=0.01)]  # p is known to a radius of 0.0005


def test_rules_stop_early_and_no_chance_exceeds_alpha(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        assert row["mean_samples"] <= row["cap"] + row["n0"]
    for row in result["false"]:
        for futility in ("futility none", "futility 0.05"):
            assert 0 < row[futility]["largest"] <= ALPHA
    assert result["figures"]["largest chance of a false certificate"]["reached"]


def test_the_tables_have_their_rows(path: Path, result: dict[str, Any]) -> None:
    assert len(study.table(path).splitlines()) == 2 + 2 * (2 + 2 * 2)  # sigmas; sample sizes, and caps of two rules
    assert len(study.modes_table(path).splitlines()) == 2 + 2 * (2 + 2 + 3)
    assert study.false_table(path).splitlines()[0].endswith("| of 1,000 simulated |")
    one = result["false"][0]
    assert f"| e-process | r = 0.25 | {one['futility 0.05']['largest']:.6f} |" in study.false_table(path)


def test_the_study_reads_votes_back_from_published_radii(tmp_path: Path) -> None:
    n, successes = 100_000, (55_000, 84_500, 98_000, 99_900)
    bounds = [confidence.lower_confidence_bound(count, n, ALPHA) for count in successes]
    rows = [f"{i}\t3\t3\t{confidence.radius(p, SIGMA):.3f}\t1" for i, p in enumerate(bounds)]
    log = tmp_path / "log.tsv"
    log.write_text("\n".join(["idx\tlabel\tpredict\tradius\tcorrect", *rows, "9\t3\t-1\t0.0\t0"]), encoding="utf-8")
    p, correct = study.votes(log, SIGMA)
    assert correct.tolist() == [1, 1, 1, 1, 0]
    assert p[-1] == 0.5
    # Three decimals of the radius fix Φ⁻¹(p) to 0.0005 / σ.
    np.testing.assert_allclose(norm.ppf(p[:-1]), norm.ppf(np.array(successes) / n), atol=0.0006 / SIGMA)


def test_the_study_weighs_right_and_wrong_selections() -> None:
    asked: list[float] = []

    def one(p: float) -> study.Chances:
        asked.append(p)
        return (100.0, (0.5,)) if p > 0.5 else (10.0, (0.0,))

    samples, accuracy = study.expected(one, 1, np.array([0.9, 0.9]), np.array([1, 0]))
    assert samples == pytest.approx(1 + 0.9 * 100 + 0.1 * 10)  # one selection vote is right 9 times in 10
    assert accuracy == pytest.approx((0.5 * 0.9 * 0.5,))  # half of the images are labelled correctly
    assert sorted(set(asked)) == pytest.approx([0.1, 0.9])

"""What rows say of claims, where differences, verdicts and intervals are known beforehand."""

from __future__ import annotations

import numpy as np
import pytest

from certibox.errors import InvalidInput
from certibox.paper.claims import Finding, certified, check, outcomes
from certibox.paper.suite import Claim
from paper_rows import CERTIFIED, FAR, SIGMA, attacked_row, certified_row

AT_SIGMA = Claim("a beats b", "a", "b", 1.0)


def shares(certified: int, images: int, seed: int = 0):
    """A row in which the first `certified` of `images` are certified far beyond every radius."""
    return certified_row([FAR] * certified + [None] * (images - certified), seed=seed)


def found(claim: Claim, better: list, worse: list) -> Finding:
    finding = check(claim, better, worse)
    assert finding is not None
    return finding


def test_difference_is_that_of_the_shares() -> None:
    """80 of 100 against 50 of 100, of which it holds all: 30 points, with the interval of a share of 0.3."""
    finding = found(AT_SIGMA, [shares(80, 100)], [shares(50, 100)])
    assert finding.difference == pytest.approx(0.3, abs=1e-12)
    assert finding.by_seed == pytest.approx([0.3])
    assert finding.images == 100
    deviation = (0.3 * 0.7 / 100) ** 0.5  # of a mean of 100 draws of 0 or 1
    assert (finding.difference - finding.low) / deviation == pytest.approx(1.96, abs=0.25)
    assert (finding.high - finding.difference) / deviation == pytest.approx(1.96, abs=0.25)


def test_images_are_paired() -> None:
    """What both rows share cancels: the interval is that of the one image in ten that tells them apart."""
    noisy = [FAR if i % 2 else None for i in range(100)]
    better = [FAR if i % 10 == 0 else value for i, value in enumerate(noisy)]
    finding = found(AT_SIGMA, [certified_row(better)], [certified_row(noisy)])
    assert finding.difference == pytest.approx(0.1)
    assert finding.high - finding.low == pytest.approx(2 * 1.96 * (0.1 * 0.9 / 100) ** 0.5, rel=0.15)
    assert finding.verdict == "holds"  # two unpaired shares of 0.6 and 0.5 could not be told apart at 100 images


def test_outcomes_are_averaged_over_seeds_for_each_image() -> None:
    """Two seeds that agree nowhere: every image is certified in one of two, so the mean is exact and has no spread."""
    first, second = [FAR, FAR, None, None], [None, None, FAR, FAR]
    better = [certified_row(first, seed=0), certified_row(second, seed=1)]
    worse = [certified_row([None] * 4, seed=seed) for seed in (0, 1)]
    finding = found(AT_SIGMA, better, worse)
    assert (finding.low, finding.difference, finding.high) == (0.5, 0.5, 0.5)
    assert finding.by_seed == (0.5, 0.5)


def test_differences_of_the_seeds_stand_beside() -> None:
    better = [shares(6, 10, seed=0), shares(9, 10, seed=1), shares(4, 10, seed=2)]
    worse = [shares(5, 10, seed=seed) for seed in range(3)]
    finding = found(AT_SIGMA, better, worse)
    assert finding.by_seed == pytest.approx([0.1, 0.4, -0.1])
    assert finding.difference == pytest.approx(0.4 / 3)


def test_seeds_that_one_side_lacks_are_ignored() -> None:
    better = [shares(6, 10, seed=0), shares(10, 10, seed=3)]
    worse = [shares(0, 10, seed=7), shares(5, 10, seed=0)]
    assert found(AT_SIGMA, better, worse).by_seed == pytest.approx([0.1])
    assert check(AT_SIGMA, better[1:], worse) is None
    assert check(AT_SIGMA, [], worse) is None
    assert check(AT_SIGMA, better, []) is None


@pytest.mark.parametrize(
    ("certified", "margin", "verdict"),
    [
        (70, 0.0, "holds"),
        (50, 0.0, "cannot be told"),  # no difference at all: not above the margin, nor below
        (30, 0.0, "does not hold"),
        (48, -0.1, "holds"),  # 2 points worse, where 10 are allowed
        (50, -0.04, "holds"),
        (30, -0.1, "does not hold"),
        (70, 0.2, "cannot be told"),  # 20 points better, and 20 wanted
        (70, 0.5, "does not hold"),
        (90, 0.2, "holds"),
    ],
)
def test_verdicts_at_margins(certified: int, margin: float, verdict: str) -> None:
    claim = Claim("a beats b", "a", "b", 1.0, margin)
    assert found(claim, [shares(certified, 100)], [shares(50, 100)]).verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 0.3, "cannot be told"), (0.1 + 1e-9, 0.3, "holds"), (-0.2, 0.1, "cannot be told"), (-1, 0, "does not hold")],
)
def test_an_interval_that_touches_the_margin_tells_nothing(low: float, high: float, verdict: str) -> None:
    claim = Claim("a beats b by a tenth", "a", "b", 1.0, 0.1)
    assert Finding(claim, (low + high) / 2, low, high, (), 9).verdict == verdict


def test_a_radius_is_reached_only_from_itself_on() -> None:
    """Radii are stored rounded down: what falls short of kσ by a hundredth of a percent is not counted at kσ."""
    row = certified_row([SIGMA, SIGMA - 1e-4, 2 * SIGMA, 0.0, None])
    assert certified(row, 0).tolist() == [True, True, True, True, False]
    assert certified(row, 1).tolist() == [True, False, True, False, False]
    assert certified(row, 2).tolist() == [False, False, True, False, False]
    assert certified(row, 3).sum() == 0


def test_columns_are_multiples_of_the_rows_own_sigma() -> None:
    row = certified_row([0.25, 0.5, 0.8], settings=CERTIFIED | {"sigma": 0.25})
    assert [int(certified(row, k).sum()) for k in (0, 1, 2, 3)] == [3, 3, 2, 1]


def test_reconstructions_are_compared_by_the_error_saved() -> None:
    series = {"adaptive rmse 1": [0.2, 0.4], "transfer rmse 1": [0.1, 0.1], "adaptive rmse 0": [0.0, 0.0]}
    worse = {"adaptive rmse 1": [0.5, 0.7], "transfer rmse 1": [0.2, 0.4], "adaptive rmse 0": [0.05, 0.05]}
    a, b = attacked_row(series), attacked_row(worse)
    assert outcomes(a, Claim("", "a", "b", 1.0)).tolist() == [-0.2, -0.4]
    adaptive = found(Claim("", "a", "b", 1.0), [a], [b])
    assert (adaptive.low, adaptive.difference, adaptive.high) == pytest.approx((0.3, 0.3, 0.3))
    transfer = found(Claim("", "a", "b", 1.0, threat="transfer"), [a], [b])
    assert transfer.difference == pytest.approx(0.2)
    assert (transfer.low, transfer.high) == pytest.approx((0.1, 0.3))
    assert found(Claim("", "a", "b", 0.0), [a], [b]).difference == pytest.approx(0.05)


def test_rows_of_other_numbers_of_images_are_not_compared() -> None:
    with pytest.raises(InvalidInput, match=r"a and b were measured on \[10, 12\] images; wanted the same"):
        check(AT_SIGMA, [shares(6, 10)], [shares(6, 12)])
    with pytest.raises(InvalidInput, match=r"on \[10, 12\] images"):  # every seed by itself would do
        check(AT_SIGMA, [shares(6, 10), shares(6, 12, 1)], [shares(5, 10), shares(5, 12, 1)])


def test_a_series_that_was_not_measured_is_named() -> None:
    row = attacked_row({"adaptive rmse 1": [0.1]})
    with pytest.raises(InvalidInput, match=r"no series 'adaptive rmse 2'; wanted one of adaptive rmse 1"):
        outcomes(row, Claim("", "a", "b", 2.0))


def test_series_have_nothing_below_every_radius() -> None:
    assert np.array_equal(certified_row([None, 0.5]).series("reach"), [-np.inf, 0.5])

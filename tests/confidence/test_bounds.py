"""Bounds are checked by exact binomial sums, not by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, multinomial, norm

from certibox import confidence
from certibox.errors import InvalidInput


@pytest.mark.parametrize("n", [10, 100, 1000])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_the_bound_exceeds_p_with_probability_at_most_alpha(n: int, alpha: float) -> None:
    bounds = np.array([confidence.lower_confidence_bound(k, n, alpha) for k in range(n + 1)])
    # The worst case sits just below a bound, where the most outcomes overshoot: test the grid and those points.
    grid = np.concatenate([np.linspace(0, 1, 201), np.nextafter(bounds, 0)])
    failure = np.array([binom.pmf(np.arange(n + 1), n, p)[bounds > p].sum() for p in grid])
    assert failure.max() <= alpha * (1 + 1e-9)
    assert failure.max() > 0.9 * alpha, "an exact bound is tight somewhere"


@given(st.integers(1, 10_000), st.floats(1e-6, 0.5))
def test_unanimous_votes_give_the_closed_form(n: int, alpha: float) -> None:
    assert confidence.lower_confidence_bound(n, n, alpha) == pytest.approx(alpha ** (1 / n), rel=1e-12)
    assert confidence.lower_confidence_bound(0, n, alpha) == 0.0


def test_the_bound_solves_its_defining_equation() -> None:
    p = confidence.lower_confidence_bound(80, 100, 0.01)
    assert binom.sf(79, 100, p) == pytest.approx(0.01, rel=1e-9)


@pytest.mark.parametrize(("r", "expected"), [(0.0, 10), (2.0, 301), (3.0, 5114)])
def test_smallest_n_at_alpha_one_in_a_thousand(r: float, expected: int) -> None:
    assert confidence.smallest_n(0.001, r) == expected
    certified = [confidence.radius(0.001 ** (1 / n), 1.0) for n in (expected - 1, expected)]
    assert certified[0] < max(r, 1e-12) <= certified[1]


def test_smallest_n_where_the_bound_hits_one_half_exactly() -> None:
    assert confidence.smallest_n(0.25) == 3  # .25 ** (1/2) is exactly 1/2, which certifies nothing


@given(st.floats(0.5, 0.9999), st.floats(0.01, 2.0))
def test_radius_inverts_the_normal_distribution(p: float, sigma: float) -> None:
    assert norm.cdf(confidence.radius(p, sigma) / sigma) == pytest.approx(max(p, 0.5), rel=1e-9)


@pytest.mark.parametrize("alpha", [0.01, 0.2])
def test_the_second_class_radius_is_false_with_probability_at_most_alpha(alpha: float) -> None:
    n, sigma = 30, 0.5
    outcomes = [(a, b, n - a - b) for a in range(n + 1) for b in range(n + 1 - a)]
    claimed = np.array([confidence.second_class_radius(counts, 0, alpha, sigma) for counts in outcomes])
    worst = 0.0
    for p_a in np.linspace(0.05, 0.95, 19):
        for share in (0.0, 0.1, 0.3, 0.5, 0.52, 0.7, 1.0):  # of the rest that class 1 holds; at .5 two classes tie
            p = np.array([p_a, (1 - p_a) * share, (1 - p_a) * (1 - share)])
            true = sigma / 2 * (norm.ppf(p_a) - norm.ppf(p[1:].max()))
            false = (claimed > 0) & (claimed > true)
            worst = max(worst, multinomial.pmf(outcomes, n, p)[false].sum())
    assert alpha / 4 < worst <= alpha


@given(st.integers(0, 500), st.integers(1, 500), st.floats(1e-6, 0.4))
def test_with_two_classes_the_second_class_adds_nothing(a: int, b: int, alpha: float) -> None:
    expected = confidence.radius(confidence.lower_confidence_bound(a, a + b, alpha), 0.25)
    assert confidence.second_class_radius((a, b), 0, alpha, 0.25) == expected


def test_a_second_class_that_holds_all_the_rest_costs_half_of_alpha_and_no_more() -> None:
    expected = confidence.radius(confidence.lower_confidence_bound(900, 1000, 0.0005), 0.25)
    assert confidence.second_class_radius((900, 100, 0), 0, 0.001, 0.25) == pytest.approx(expected, rel=1e-12)


def test_the_second_class_certifies_below_one_half_where_the_rest_is_spread() -> None:
    counts = (4000, *[750] * 8)
    low, high = (confidence.lower_confidence_bound(k, 10_000, 0.0005) for k in (4000, 9250))
    expected = 0.25 / 2 * (norm.ppf(low) - norm.ppf(1 - high))
    assert confidence.second_class_radius(counts, 0, 0.001, 0.25) == pytest.approx(expected, rel=1e-12)
    assert expected > 0.1
    assert confidence.second_class_radius(counts, 1, 0.001, 0.25) == 0.0


@pytest.mark.parametrize(("counts", "selected"), [((5,), 0), ((5, 5), 2), ((5, 5), -1)])
def test_a_class_that_does_not_exist_is_named(counts: tuple[int, ...], selected: int) -> None:
    with pytest.raises(InvalidInput, match=f"class {selected} of {len(counts)}"):
        confidence.second_class_radius(counts, selected, 0.001, 0.25)


def test_interval_sides_are_exact_and_complementary() -> None:
    low, high = confidence.interval(30, 100)
    assert binom.sf(29, 100, low) == pytest.approx(0.025, rel=1e-9)
    assert binom.cdf(30, 100, high) == pytest.approx(0.025, rel=1e-9)
    assert confidence.interval(0, 10)[0] == 0.0
    assert confidence.interval(10, 10)[1] == 1.0


def test_p_value_of_a_unanimous_vote_is_two_tails() -> None:
    assert confidence.two_sided_p_value(11, 0) == pytest.approx(2 * 0.5**11)
    assert confidence.two_sided_p_value(5, 5) == 1.0
    assert confidence.two_sided_p_value(0, 0) == 1.0


def test_paired_bootstrap_matches_the_normal_interval_for_many_images() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(4000) < 0.6, rng.random(4000) < 0.5
    difference, low, high = confidence.paired_bootstrap(a, b)
    error = (a.astype(float) - b).std() / math.sqrt(4000)
    assert difference == pytest.approx(a.mean() - b.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.05)


def test_paired_bootstrap_of_identical_outcomes_is_exactly_zero() -> None:
    assert confidence.paired_bootstrap([1, 0, 1], [1, 0, 1]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, float("nan")])
def test_alpha_outside_the_open_interval_is_named(alpha: float) -> None:
    with pytest.raises(InvalidInput, match=str(alpha)):
        confidence.lower_confidence_bound(1, 2, alpha)

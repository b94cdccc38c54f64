"""Bounds are checked by exact binomial sums, not by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

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

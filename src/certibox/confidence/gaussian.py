"""The law of Gaussian noise: the radius of a probability, and the probability of a radius."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.special import ndtr
from scipy.stats import norm

from certibox.confidence.binomial import check_alpha, lower_confidence_bound
from certibox.errors import InvalidInput


def radius(p_lower: float, sigma: float) -> float:
    """Certified l2 radius σ Φ⁻¹(p_lower), in the units of σ; 0 when p_lower <= 1/2 (Cohen et al. 2019, Theorem 1)."""
    return sigma * float(norm.ppf(p_lower)) if p_lower > 0.5 else 0.0


def second_class_radius(counts: Sequence[int], selected: int, alpha: float, sigma: float) -> float:
    """Certified l2 radius σ/2 (Φ⁻¹(p_A) − Φ⁻¹(p_B)) from votes on all K classes, in the units of σ; 0 if p_A <= p_B.

    counts: (K,) votes per class. selected: the class A, picked without these votes. p_A is the Clopper–Pearson lower
    bound of its count at alpha/2; p_B is the upper bound of the largest other count at alpha/2, or 1 − p_A where that
    is less. The true radius takes p_B = p_c of the likeliest other class c (Cohen et al. 2019, Theorem 1). Which class
    that is nobody knows, but it does not depend on the votes, and the upper bound rises with the count, so

        P(bound of the largest other count < p_c) <= P(bound of class c's count < p_c) <= alpha/2:

    the maximum pays for itself, without a correction for K − 1 classes. (The runner-up of the selection votes would
    not do: it may not be c.) With alpha/2 for p_A, the radius exceeds the true one with probability at most alpha, for
    every distribution of the votes. For K = 2, p_B is 1 − p_A exactly and the whole of alpha bounds p_A.

    It pays where the rest of the votes is spread over several classes, and can certify p_A < 1/2; where one class holds
    nearly all the rest, or all votes agree, it gives slightly less than `radius` does, for alpha is split.
    """
    if len(counts) < 2 or not 0 <= selected < len(counts):
        raise InvalidInput(f"class {selected} of {len(counts)} was selected; wanted 0 <= selected < K with K >= 2")
    trials, successes = sum(counts), counts[selected]
    if len(counts) == 2:
        return radius(lower_confidence_bound(successes, trials, alpha), sigma)
    largest = max(count for label, count in enumerate(counts) if label != selected)
    first = lower_confidence_bound(successes, trials, alpha / 2)
    second = min(1.0 - lower_confidence_bound(trials - largest, trials, alpha / 2), 1.0 - first)
    return sigma / 2 * float(norm.ppf(first) - norm.ppf(second)) if first > second else 0.0


def smallest_n(alpha: float, radius: float = 0.0, sigma: float = 1.0) -> int:
    """The smallest n with which unanimous votes certify a radius above 0, or at least `radius`, at failure rate alpha.

    n unanimous votes give the bound alpha^(1/n), which must exceed 1/2 (or reach Φ(radius / sigma)). At alpha = 0.001:
    10, 301 for r = 2σ, 5,114 for r = 3σ.
    """
    check_alpha(alpha)
    n = max(1, math.ceil(math.log(alpha) / float(norm.logcdf(radius / sigma))))
    strict = radius <= 0.0  # a radius of exactly 0 is an abstention
    return n + 1 if strict and alpha ** (1.0 / n) <= 0.5 else n


_certified = radius  # `threshold` has an argument of that name


@lru_cache(maxsize=4096)
def threshold(radius: float, sigma: float) -> float:
    """The smallest p that is sure to give `_certified(p, sigma) >= radius`, and > 0: Φ(radius / σ), rounded up.

    Errors: `InvalidInput` where radius / σ is so large that no float below 1 gives it, or σ is not positive.
    """
    if not 0.0 < sigma < math.inf:
        raise InvalidInput(f"sigma is {sigma}; wanted a positive standard deviation in pixels, such as 0.25")
    p = max(0.5, float(ndtr(radius / sigma)))
    while p < 1.0 and not (_certified(p, sigma) >= radius and _certified(p, sigma) > 0.0):
        p = float(np.nextafter(p, 1.0))
    if p >= 1.0:
        raise InvalidInput(
            f"radius {radius:g} is {radius / sigma:.1f} sigma; no sample proves more than 8: ask for less"
        )
    return p

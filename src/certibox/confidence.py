"""Binomial bounds and tests behind every certificate. SciPy only; no torch.

The bound of a certificate is exact (Clopper–Pearson), so it fails with probability at most alpha for every true p,
never only on average or for large n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta, binomtest, norm

from certibox.errors import InvalidInput


def check_alpha(alpha: float) -> float:
    """Return alpha, or raise `InvalidInput` unless it lies strictly between 0 and 1."""
    if not 0.0 < alpha < 1.0:
        raise InvalidInput(f"alpha is {alpha}; wanted a failure probability strictly between 0 and 1, such as 0.001")
    return alpha


def lower_confidence_bound(successes: int, trials: int, alpha: float) -> float:
    """One-sided Clopper–Pearson bound: exceeds the true p with probability at most alpha, for every p.

    Statement: the alpha-quantile of Beta(successes, trials − successes + 1); 0 when there is no success.
    Errors: `InvalidInput` for counts out of order or alpha outside (0, 1). Source: Clopper & Pearson 1934; used for
    randomized smoothing by Cohen et al. 2019 (`LowerConfBound`).
    """
    check_alpha(alpha)
    if not 0 <= successes <= trials or trials < 1:
        raise InvalidInput(f"{successes} successes in {trials} trials; wanted 0 <= successes <= trials and trials >= 1")
    return float(beta.ppf(alpha, successes, trials - successes + 1)) if successes else 0.0


def interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided Clopper–Pearson interval for p: each side fails with probability at most (1 − confidence) / 2."""
    tail = (1.0 - confidence) / 2.0
    low = lower_confidence_bound(successes, trials, tail)
    high = 1.0 - lower_confidence_bound(trials - successes, trials, tail)
    return low, high


def two_sided_p_value(first: int, second: int) -> float:
    """P-value of "both are equally likely" given two vote counts: exact two-sided binomial test at p = 1/2.

    Source: the abstention test of `Predict` (Cohen et al. 2019, after Hung & Fithian 2019).
    """
    return float(binomtest(first, first + second, 0.5).pvalue) if first + second else 1.0


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


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of a − b over the same images with its percentile bootstrap interval: (difference, low, high).

    a, b: (n,) outcomes per image, 0/1 or real; a number for b is the same for every image. Images are resampled in
    pairs, so what both share cancels.
    """
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)  # (n,)
    if difference.ndim != 1 or not len(difference):
        raise InvalidInput(f"paired outcomes have shape {difference.shape}; wanted two equal, non-empty lists")
    values, counts = np.unique(difference, return_counts=True)
    # Resampling n images is a multinomial draw over the distinct differences: exact, and needs no n x resamples array.
    draws = np.random.default_rng(seed).multinomial(len(difference), counts / len(difference), size=resamples)
    means = draws @ values / len(difference)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(difference.mean()), float(low), float(high)

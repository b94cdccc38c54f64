"""Binomial bounds and tests behind every certificate.

The bound of a certificate is exact (Clopper–Pearson), so it fails with probability at most alpha for every true p,
never only on average or for large n.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from scipy.stats import beta, binomtest

from certibox.errors import InvalidInput

SMALLEST_ALPHA = 1e-290


def check_alpha(alpha: float) -> float:
    """Return alpha, or raise `InvalidInput` unless it lies strictly between 0 and 1.

    Args:
        alpha: Failure probability of a bound.
    """
    if not 0.0 < alpha < 1.0:
        raise InvalidInput(f"alpha is {alpha}; wanted a failure probability strictly between 0 and 1, such as 0.001")
    if alpha < SMALLEST_ALPHA:  # its quantiles are lost in the rounding of doubles
        raise InvalidInput(f"alpha is {alpha}; wanted at least {SMALLEST_ALPHA}, such as 0.001")
    return alpha


@lru_cache(maxsize=65536)  # rows are replayed whenever they are read, and many have votes alike
def lower_confidence_bound(successes: int, trials: int, alpha: float) -> float:
    """One-sided Clopper–Pearson bound: exceeds the true p with probability at most alpha, for every p.

    Statement: the alpha-quantile of Beta(successes, trials − successes + 1); 0 when there is no success. Source:
    Clopper & Pearson 1934; used for randomized smoothing by Cohen et al. 2019 (`LowerConfBound`).

    Args:
        successes: Number of successes.
        trials: Number of independent trials, at least 1.
        alpha: Failure probability of the bound, in (0, 1).

    Raises:
        InvalidInput: for counts out of order or alpha outside (0, 1).
    """
    check_alpha(alpha)
    if not 0 <= successes <= trials or trials < 1:
        raise InvalidInput(f"{successes} successes in {trials} trials; wanted 0 <= successes <= trials and trials >= 1")
    return float(beta.ppf(alpha, successes, trials - successes + 1)) if successes else 0.0


def top_two_bounds(counts: Sequence[int], selected: int, alpha: float) -> tuple[float, float]:
    """(p_A, p_B): a lower bound of the selected class's probability, and an upper bound of every other class's.

    p_A is the Clopper–Pearson lower bound of its count at alpha/2; p_B is the upper bound of the largest other count at
    alpha/2, or 1 − p_A where that is less. A true radius takes p_B = p_c of the likeliest other class c. Which class
    that is nobody knows, but it does not depend on the votes, and the upper bound rises with the count, so

        P(bound of the largest other count < p_c) <= P(bound of class c's count < p_c) <= alpha/2:

    the maximum pays for itself, without a correction for K − 1 classes. (The runner-up of the selection votes would
    not do: it may not be c.) With alpha/2 for p_A, either fails with probability at most alpha, for every distribution
    of the votes. For K = 2, p_B is 1 − p_A exactly and the whole of alpha bounds p_A.

    Args:
        counts: Votes per class, (K,).
        selected: Class A, picked without these votes.
        alpha: Probability that one of the two bounds fails, in (0, 1).

    Raises:
        InvalidInput: for fewer than two classes, or a selected class that has no count.
    """
    if len(counts) < 2 or not 0 <= selected < len(counts):
        raise InvalidInput(f"class {selected} of {len(counts)} was selected; wanted 0 <= selected < K with K >= 2")
    trials, successes = sum(counts), counts[selected]
    if len(counts) == 2:
        first = lower_confidence_bound(successes, trials, alpha)
        return first, 1.0 - first
    largest = max(count for label, count in enumerate(counts) if label != selected)
    first = lower_confidence_bound(successes, trials, alpha / 2)
    return first, min(1.0 - lower_confidence_bound(trials - largest, trials, alpha / 2), 1.0 - first)


def interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided Clopper–Pearson interval for p: each side fails with probability at most (1 − confidence) / 2.

    Args:
        successes: Number of successes.
        trials: Number of independent trials, at least 1.
        confidence: Probability with which the interval holds, in (0, 1).
    """
    tail = (1.0 - confidence) / 2.0
    low = lower_confidence_bound(successes, trials, tail)
    high = 1.0 - lower_confidence_bound(trials - successes, trials, tail)
    return low, high


def two_sided_p_value(first: int, second: int) -> float:
    """P-value of "both are equally likely" given two vote counts: exact two-sided binomial test at p = 1/2.

    Source: the abstention test of `Predict` (Cohen et al. 2019, after Hung & Fithian 2019).

    Args:
        first: Votes for one class.
        second: Votes for the other class.
    """
    return float(binomtest(first, first + second, 0.5).pvalue) if first + second else 1.0

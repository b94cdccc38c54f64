"""Binomial bounds and tests behind every certificate.

The bound of a certificate is exact (Clopper–Pearson), so it fails with probability at most alpha for every true p,
never only on average or for large n.
"""

from __future__ import annotations

from scipy.stats import beta, binomtest

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

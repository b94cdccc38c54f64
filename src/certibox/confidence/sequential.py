"""Certificates that stop when the question is answered: anytime-valid bounds and α-spending. NumPy and SciPy; no torch.

Votes on the selected class are independent with success probability p, and a certificate claims p > p0, the probability
that its radius needs. A `StoppingRule` looks at the votes at sample sizes fixed beforehand (`sizes`), and after each
look says whether to go on (`decide`). Both rules here bound p from below by a **running maximum of bounds that hold at
all looks at once**: for every true p, P(at some look the bound exceeds p) <= alpha. When to stop may then depend on the
votes in any way — futility, tolerance, a full grid of radii — without a correction: whatever stops the sampling, the
bound at that moment is one of those that hold together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, betaincinv, betaln

from certibox.confidence.looks import Watch, decide, looks_up_to, p_lower_at
from certibox.confidence.stopping import Decision, Looks
from certibox.errors import InvalidInput

SLACK = 1e-8  # log of wealth asked for beyond log(1/alpha): far above the rounding of log Γ at a million samples


@final
@dataclass(frozen=True)
class EProcess:
    """Bets against p <= p0 at fair odds; the wealth proves p > p0 once it reaches 1/alpha, at whatever look.

    Keep a share u of the wealth and stake the rest on each vote at the odds 1/p0: a success multiplies it by
    u + (1 − u)/p0, a failure by u. At success probability p the expected factor is u + (1 − u) p/p0: exactly 1 for
    p = p0 and at most 1 for p < p0, so the wealth is a non-negative supermartingale under the whole null, it
    starts at 1, and by Ville's inequality it ever reaches 1/alpha with probability at most alpha. The same holds
    for any mixture of bets, which is the wealth

        E_n(p0) = ∫ u^f (u + (1 − u)/p0)^s dW(u),   s successes, f = n − s failures.

    With q = 1 − (1 − p0) u this is the likelihood ratio of q to p0, so W is a prior on the alternative (p0, 1] that
    scales with it. W is `all_in` on u = 0 (q = 1: unanimous votes pay 1/p0 each) and uniform elsewhere, for which
    E_n = x^-(f+1) p0^-s B(f+1, s+1) I_x(f+1, s+1) with x = 1 − p0, exactly. As W is the same for every p0, E_n(p0)
    falls in p0, so {p0: E_n(p0) >= 1/alpha} is an interval that starts at 0, and its end is a lower bound that holds
    at all looks and for all radii at once: for it to exceed the true p, E_n(p) itself must reach 1/alpha.

    Source: Ville 1939; betting: Waudby-Smith & Ramdas 2024; for smoothing: Horváth et al. 2022, Voracek 2024.

    Raises:
        InvalidInput: for settings out of range, or unless exactly one of radii and tolerance is given.
    """

    radii: Sequence[float] | None = None
    """Radii to decide, in pixels, ascending; 0 asks for any positive radius. None where a tolerance is given."""
    tolerance: float | None = None
    """Relative tolerance in (0, 1), instead of radii: sampling goes on until the radius is this near to what the
    maximum n would give at the present share of successes. Radii are compared in units of sigma, as Gaussian noise has
    them."""
    futility: float | None = 0.05
    """Level in (0, 1) at which sampling gives up on an image: an upper Clopper–Pearson bound of this level on p is
    below the share of votes that the smallest undecided radius would need at the maximum n. None never gives up.
    Giving up can lose a certificate and never makes a false one."""
    growth: float = 1.1
    """Ratio of successive looks, at least 1.01."""
    all_in: float = 0.5
    """Share of the first wealth that bets on unanimous votes, in (0, 1)."""

    def __post_init__(self) -> None:
        _check(self)
        if not 0.0 < self.all_in < 1.0:
            raise InvalidInput(f"all_in is {self.all_in}; wanted a share of the first wealth strictly between 0 and 1")

    def sizes(self, n: int, alpha: float, thresholds: Sequence[float]) -> tuple[int, ...]:
        """Geometric looks, from the smallest sample whose unanimous votes prove the smallest radius.

        See `StoppingRule.sizes` for arguments and errors.
        """
        return looks_up_to(self, n, alpha, thresholds[0])

    def decide(self, looks: Looks, n: int, alpha: float, thresholds: Sequence[float]) -> Decision:
        """See `StoppingRule.decide`."""
        return decide(self, looks, n, alpha, thresholds)

    def watch(self, n: int, alpha: float, thresholds: Sequence[float]) -> Watch:
        """See `WatchedRule.watch`."""
        return Watch(self, n, alpha, thresholds)

    def p_lower_at(self, looks: Looks, n: int, alpha: float, thresholds: Sequence[float], at: float) -> float:
        """See `AnyLevelRule.p_lower_at`."""
        return p_lower_at(self, looks, n, alpha, thresholds, at)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with "name": "e-process"."""
        return {"name": "e-process", **asdict(self)}

    def level(self, alpha: float, looks: int) -> float:
        """The failure probability that each look is tested at: all of alpha, at every one.

        Args:
            alpha: Failure probability of the certificate.
            looks: Number of looks.
        """
        return alpha

    def log_wealth(self, successes: ArrayLike, samples: ArrayLike, p0: ArrayLike) -> np.ndarray:
        """log E_n(p0), elementwise over arrays that broadcast.

        Args:
            successes: Successes s so far.
            samples: Samples n so far.
            p0: Probabilities to refute, strictly between 0 and 1.
        """
        s, n, t = np.broadcast_arrays(np.asarray(successes, float), samples, np.log(p0))
        return self._log_wealth(s, n - s, t)[0]

    def _log_wealth(self, s: np.ndarray, f: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log E and −d log E / dt at t = log p0."""
        x = -np.expm1(t)  # 1 − p0
        # I_x underflows only where nearly all bets lost: E < 1 there, and −inf is on the safe side.
        with np.errstate(divide="ignore", over="ignore"):
            mass = np.log(betainc(f + 1, s + 1, x)) + betaln(f + 1, s + 1)
            uniform = math.log1p(-self.all_in) + mass - (f + 1) * np.log(x) - s * t
            all_in = np.where(f == 0, math.log(self.all_in) - s * t, -np.inf)
            log_e = np.logaddexp(uniform, all_in)
            slope = s - (f + 1) * np.exp(t) / x + np.exp(f * np.log(x) + (s + 1) * t - mass)
        part = np.exp(all_in - np.where(np.isfinite(log_e), log_e, 0.0))  # of the wealth
        return log_e, (1.0 - part) * slope + part * s

    def rejects(self, successes: ArrayLike, samples: int, p0: float, alpha: float) -> np.ndarray:
        """Whether p <= p0 is refuted at failure probability alpha, elementwise.

        Args:
            successes: Successes at one look.
            samples: Samples at that look.
            p0: Probability to refute.
            alpha: Failure probability of the look.
        """
        return self.log_wealth(successes, samples, p0) >= SLACK - math.log(alpha)

    def lower_bounds(self, successes: ArrayLike, samples: ArrayLike, alpha: float) -> np.ndarray:
        """The largest p0 that is refuted, elementwise; 0 without a success.

        log E is convex and falling in log p0 (a log-sum of exponentials of convex functions), so from wherever Newton's
        method starts, all its later iterates are refuted and rise to the root.

        Args:
            successes: Successes at each look.
            samples: Samples at each look.
            alpha: Failure probability of a look.
        """
        s, n = (np.atleast_1d(part) for part in np.broadcast_arrays(np.asarray(successes, float), samples))
        goal = 2 * SLACK - math.log(alpha)
        t = np.log(betaincinv(np.maximum(s, 1), n - s + 1, alpha / 10))  # not far from the root
        for _ in range(100):
            log_e, slope = self._log_wealth(s, n - s, t)
            step = np.where(s > 0, (log_e - goal) / np.where(s > 0, slope, 1.0), 0.0)
            t = t + step
            if (np.abs(step) <= 1e-13).all():
                break
        return np.where(s > 0, np.exp(t), 0.0)


@final
@dataclass(frozen=True)
class AlphaSpending:
    """Clopper–Pearson bounds at a few looks, each with an equal part of alpha.

    With K looks at fixed sizes n_k, the count of the first n_k votes is Binomial(n_k, p): marginally, not given earlier
    looks, whose votes it contains, and the union bound asks for no more. Each bound thus fails with probability at most
    alpha / K for every p (`lower_confidence_bound`), hence some of them fails with probability at most
    alpha, and their running maximum is a bound that holds at all looks at once, those never reached too.
    Source: Bonferroni's inequality; group-sequential tests with equal levels: Pocock 1977.

    Raises:
        InvalidInput: for settings out of range, or unless exactly one of radii and tolerance is given.
    """

    radii: Sequence[float] | None = None
    """Radii to decide, in pixels, ascending; 0 asks for any positive radius. None where a tolerance is given."""
    tolerance: float | None = None
    """Relative tolerance in (0, 1), instead of radii, as in `EProcess`."""
    futility: float | None = 0.05
    """Level in (0, 1) at which sampling stops as futile, as in `EProcess`; None never stops so."""
    growth: float = 1.5
    """Ratio of successive looks, at least 1.01; fewer looks cost less of alpha each."""

    def __post_init__(self) -> None:
        _check(self)

    def sizes(self, n: int, alpha: float, thresholds: Sequence[float]) -> tuple[int, ...]:
        """Geometric looks, from the smallest sample whose unanimous votes prove the smallest radius.

        See `StoppingRule.sizes` for arguments and errors.
        """
        return looks_up_to(self, n, alpha, thresholds[0])

    def decide(self, looks: Looks, n: int, alpha: float, thresholds: Sequence[float]) -> Decision:
        """See `StoppingRule.decide`."""
        return decide(self, looks, n, alpha, thresholds)

    def watch(self, n: int, alpha: float, thresholds: Sequence[float]) -> Watch:
        """See `WatchedRule.watch`."""
        return Watch(self, n, alpha, thresholds)

    def p_lower_at(self, looks: Looks, n: int, alpha: float, thresholds: Sequence[float], at: float) -> float:
        """See `AnyLevelRule.p_lower_at`."""
        return p_lower_at(self, looks, n, alpha, thresholds, at)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with "name": "alpha-spending"."""
        return {"name": "alpha-spending", **asdict(self)}

    def level(self, alpha: float, looks: int) -> float:
        """The failure probability that each look is tested at: an equal part of alpha.

        Args:
            alpha: Failure probability of the certificate.
            looks: Number of looks.
        """
        return alpha / looks

    def rejects(self, successes: ArrayLike, samples: int, p0: float, alpha: float) -> np.ndarray:
        """Whether p <= p0 is refuted at failure probability alpha, elementwise.

        Args:
            successes: Successes at one look.
            samples: Samples at that look.
            p0: Probability to refute.
            alpha: Failure probability of the look.
        """
        return self.lower_bounds(successes, samples, alpha) >= p0

    def lower_bounds(self, successes: ArrayLike, samples: ArrayLike, alpha: float) -> np.ndarray:
        """One-sided Clopper–Pearson bounds, elementwise; 0 without a success.

        Args:
            successes: Successes at each look.
            samples: Samples at each look.
            alpha: Failure probability of a look.
        """
        s, n = (np.atleast_1d(part) for part in np.broadcast_arrays(np.asarray(successes, float), samples))
        return np.where(s > 0, betaincinv(np.maximum(s, 1), n - s + 1, alpha), 0.0)


Rule = EProcess | AlphaSpending
RULES: dict[str, type[Rule]] = {"e-process": EProcess, "alpha-spending": AlphaSpending}


def _check(rule: Rule) -> None:
    """Raise `InvalidInput` for settings that no rule takes; numbers of NumPy become those of Python, and of JSON."""
    for name in [item.name for item in fields(rule) if item.name != "radii"]:
        value = getattr(rule, name)
        if value is None and name in ("tolerance", "futility"):
            continue
        if (number := _number(value)) is None:
            raise InvalidInput(f"{name} is {value!r}; wanted a number")
        object.__setattr__(rule, name, number)
    if (rule.radii is None) == (rule.tolerance is None):
        raise InvalidInput("a stopping rule takes radii or tolerance; give exactly one of them")
    if rule.radii is not None:
        given = rule.radii.tolist() if isinstance(rule.radii, np.ndarray) else rule.radii
        numbers = [_number(radius) for radius in given] if isinstance(given, list | tuple) else [None]
        if None in numbers:
            raise InvalidInput(f"radii are {rule.radii!r}; wanted numbers in pixels, such as (0.25, 0.5)")
        object.__setattr__(rule, "radii", tuple(numbers))  # hashable
    radii = rule.radii if rule.radii is not None else (0.0,)
    if not radii or not all(math.isfinite(r) and r >= 0 for r in radii) or list(radii) != sorted(set(radii)):
        raise InvalidInput(f"radii are {list(radii)}; wanted ascending radii in pixels, such as 0.25, 0.5")
    if rule.tolerance is not None and not 0.0 < rule.tolerance < 1.0:
        raise InvalidInput(f"tolerance is {rule.tolerance}; wanted a relative one in (0, 1), such as 0.05")
    if rule.futility is not None and not 0.0 < rule.futility < 1.0:
        raise InvalidInput(f"futility is {rule.futility}; wanted a level in (0, 1), such as 0.05, or None for never")
    if not 1.01 <= rule.growth < math.inf:
        raise InvalidInput(f"growth is {rule.growth}; wanted a ratio of successive looks of at least 1.01, such as 1.1")


def _number(value: Any) -> float | None:
    """A real number as a float, which is one of JSON's; None for anything else."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf

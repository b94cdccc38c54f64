"""What a rule whose bounds hold at all looks at once says of them: when to look, the running bound, when to stop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from certibox.confidence.binomial import check_alpha, lower_confidence_bound
from certibox.confidence.gaussian import sigmas_of
from certibox.confidence.stopping import Decision, Looks
from certibox.errors import InvalidInput


class AllLooks(Protocol):
    """What certibox's rules differ in: bounds that hold at all looks at once, and their settings. Hashable."""

    @property
    def radii(self) -> Sequence[float] | None: ...
    @property
    def tolerance(self) -> float | None: ...
    @property
    def futility(self) -> float | None: ...
    @property
    def growth(self) -> float: ...
    def level(self, alpha: float, looks: int) -> float:
        """See `EProcess.level`."""
        ...

    def rejects(self, successes: ArrayLike, samples: int, p0: float, alpha: float) -> np.ndarray:
        """See `EProcess.rejects`."""
        ...

    def lower_bounds(self, successes: ArrayLike, samples: ArrayLike, alpha: float) -> np.ndarray:
        """See `EProcess.lower_bounds`."""
        ...


@lru_cache(maxsize=4096)
def looks_up_to(rule: AllLooks, n: int, alpha: float, p0: float) -> tuple[int, ...]:
    """Geometric looks up to n, from the first that can prove p > p0; only n, where that is little more.

    Args:
        rule: Stopping rule.
        n: Maximum number of votes.
        alpha: Failure probability of the certificate.
        p0: Smallest probability to refute.

    Raises:
        InvalidInput: naming the smallest n, if n unanimous votes could only abstain.
    """
    check_alpha(alpha)
    count = 1
    smallest = smallest_unanimous(rule, p0, rule.level(alpha, 1))
    if smallest > n:
        asked = f"r = {rule.radii[0]:g}" if rule.radii else "any radius"
        raise InvalidInput(f"n = {n} cannot certify {asked} at alpha = {alpha}; the smallest n is {smallest}")
    # More looks mean a lower level for each, so a later first look: take the fewest looks that fit their own level.
    while (first := smallest_unanimous(rule, p0, rule.level(alpha, count))) < n:
        steps = math.ceil(math.log(n / first) / math.log(rule.growth) - 1e-9)
        sizes = tuple(sorted({round(first * (n / first) ** (i / steps)) for i in range(steps)} | {n}))
        if rule.level(alpha, len(sizes)) >= rule.level(alpha, count):
            return sizes
        count += 1
    return (n,)


@lru_cache(maxsize=4096)
def smallest_unanimous(rule: AllLooks, p0: float, alpha: float) -> int:
    """The smallest sample whose unanimous votes refute p <= p0 at one look.

    Args:
        rule: Stopping rule.
        p0: Probability to refute.
        alpha: Failure probability of the look.
    """
    low, high = 0, 1  # refutes at high, not at low
    while not rule.rejects(high, high, p0, alpha).item():
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if rule.rejects(middle, middle, p0, alpha).item() else (middle, high)
    return high


@lru_cache(maxsize=65536)
def needed(rule: AllLooks, samples: int, p0: float, alpha: float) -> int:
    """The fewest successes that refute p <= p0 at one look; samples + 1 where none do.

    Args:
        rule: Stopping rule.
        samples: Samples at the look.
        p0: Probability to refute.
        alpha: Failure probability of the look.
    """
    low, high = -1, samples + 1  # refutes from high on, not at low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if rule.rejects(middle, samples, p0, alpha).item() else (middle, high)
    return high


def open_thresholds(rule: AllLooks, thresholds: Sequence[float]) -> Sequence[float]:
    """The thresholds that a rule is to prove one by one: none under a tolerance, which asks for the full radius.

    Args:
        rule: Stopping rule.
        thresholds: Probabilities that its radii need under the noise.
    """
    return thresholds if rule.tolerance is None else ()


def _running_bound(rule: AllLooks, looks: Looks, alpha: float, thresholds: Sequence[float]) -> float:
    return _bound_of(rule, tuple((n, s) for n, s in looks), alpha, tuple(thresholds))


@lru_cache(maxsize=1024)
def _bound_of(rule: AllLooks, looks: Looks, alpha: float, thresholds: Sequence[float]) -> float:
    """The best of the bounds of all looks; a threshold that is proven is always reached, whatever rounds."""
    samples, successes = np.array(looks).T
    best = float(rule.lower_bounds(successes, samples, alpha).max())
    proven = [p0 for p0 in open_thresholds(rule, thresholds) if _proven(rule, looks, p0, alpha)]
    return max([best, *proven[-1:]])


def p_lower_at(rule: AllLooks, looks: Looks, n: int, alpha: float, thresholds: Sequence[float], at: float) -> float:
    """The bound at level `at`: it too holds at all looks at once, so also at the look where the rule stopped for alpha.

    Args:
        rule: Stopping rule.
        looks: Pairs (samples so far, successes so far).
        n: Maximum number of votes.
        alpha: Failure probability under which the looks were made.
        thresholds: Probabilities that the rule's radii need under the noise.
        at: Failure probability of the bound.
    """
    return _running_bound(
        rule, looks, rule.level(check_alpha(at), len(looks_up_to(rule, n, alpha, thresholds[0]))), thresholds
    )


def _proven(rule: AllLooks, looks: Looks, p0: float, alpha: float) -> bool:
    return any(successes >= needed(rule, samples, p0, alpha) for samples, successes in looks)


def decide(rule: AllLooks, looks: Looks, n: int, alpha: float, thresholds: Sequence[float]) -> Decision:
    """What the running bound says of the looks; the reasons are those of `Decision.why`.

    Args:
        rule: Stopping rule.
        looks: Pairs (samples so far, successes so far), the latest last.
        n: Maximum number of votes.
        alpha: Failure probability of the certificate.
        thresholds: Probabilities that the rule's radii need under the noise, ascending.
    """
    level = rule.level(alpha, len(looks_up_to(rule, n, alpha, thresholds[0])))
    p_lower = _running_bound(rule, looks, level, thresholds)
    samples, successes = looks[-1]
    if rule.tolerance is not None:
        smallest = thresholds[0]
        if within(rule, successes, samples, n, level).item():
            return Decision(True, p_lower, "tolerance")
    else:
        still = [p0 for p0 in thresholds if not _proven(rule, looks, p0, level)]
        if not still:
            return Decision(True, p_lower, "certified")
        smallest = still[0]
    if samples >= n:
        return Decision(True, p_lower, "cap")
    futile = successes <= hopeless(rule, samples, n, smallest, level)
    return Decision(futile, p_lower, "futile" if futile else "")


class Watch:
    """Whether a rule goes on after each look, told of one look after the other: `decide` without the bounds.

    Args:
        rule: Stopping rule.
        n: Maximum number of votes.
        alpha: Failure probability of the certificate.
        thresholds: Probabilities that the rule's radii need under the noise, ascending.
    """

    def __init__(self, rule: AllLooks, n: int, alpha: float, thresholds: Sequence[float]) -> None:
        self._rule, self._n = rule, n
        self._level = rule.level(alpha, len(looks_up_to(rule, n, alpha, thresholds[0])))
        self._still = list(thresholds)

    def __call__(self, samples: int, successes: int) -> bool:
        """Whether sampling goes on after a look.

        Args:
            samples: Samples so far, below n.
            successes: Successes so far.
        """
        return not self.is_within(successes, samples) and self.is_open(samples, successes)

    def is_within(self, successes: ArrayLike, samples: ArrayLike) -> bool:
        """Whether the tolerance of the rule is reached at some look; never under radii.

        Args:
            successes: Successes at each look.
            samples: Samples at each look.
        """
        rule = self._rule
        return rule.tolerance is not None and bool(within(rule, successes, samples, self._n, self._level).any())

    def is_open(self, samples: int, successes: int) -> bool:
        """Whether a threshold is neither proven nor out of reach after a look.

        Args:
            samples: Samples so far, below n.
            successes: Successes so far.
        """
        rule, level = self._rule, self._level
        if rule.tolerance is None:
            self._still = [p0 for p0 in self._still if successes < needed(rule, samples, p0, level)]
        return bool(self._still) and successes > hopeless(rule, samples, self._n, self._still[0], level)


def goes_on(rule: AllLooks, looks: Looks, n: int, alpha: float, thresholds: Sequence[float]) -> bool:
    """Whether a rule goes on after every one of these looks, none of them at n: `decide` without the bounds.

    Under a tolerance all looks are compared at once, so that the last bit of a comparison may be another than that of
    `decide`, which looks at one: ask it where this says no.

    Args:
        rule: Stopping rule.
        looks: Pairs (samples so far, successes so far), ascending.
        n: Maximum number of votes.
        alpha: Failure probability of the certificate.
        thresholds: Probabilities that the rule's radii need under the noise, ascending.
    """
    watch = Watch(rule, n, alpha, thresholds)
    if looks:
        samples, successes = np.array(looks, float).T
        if watch.is_within(successes, samples):
            return False
    return all(watch.is_open(samples, successes) for samples, successes in looks)


def within(rule: AllLooks, successes: ArrayLike, samples: ArrayLike, n: int, alpha: float) -> np.ndarray:
    """Whether the radius of a look is within the tolerance of what n samples with the same share of successes give.

    Args:
        rule: Stopping rule with a tolerance.
        successes: Successes at the look, of any shape.
        samples: Samples at the look, or at each of them.
        n: Maximum number of votes.
        alpha: Failure probability of the look.
    """
    s, keep = np.asarray(successes, float), 1.0 - (rule.tolerance or 0.0)
    now = sigmas_of(rule.lower_bounds(s, samples, alpha))
    return (now > 0) & (now >= keep * sigmas_of(rule.lower_bounds(np.rint(s / np.asarray(samples) * n), n, alpha)))


@lru_cache(maxsize=65536)
def hopeless(rule: AllLooks, samples: int, n: int, p0: float, alpha: float) -> int:
    """The most successes at a look that end the sampling as futile while p0 is open; −1 where none do.

    Args:
        rule: Stopping rule.
        samples: Samples at the look.
        n: Maximum number of votes.
        p0: Probability that is yet to be refuted.
        alpha: Failure probability of the look.
    """
    if rule.futility is None:
        return -1
    share = needed(rule, n, p0, alpha) / n
    if share > 1.0:  # n votes cannot prove it, whatever comes
        return samples
    return most_below(share, samples, rule.futility)


def most_below(share: float, samples: int, level: float) -> int:
    """The most successes whose upper Clopper–Pearson bound is below a share; −1 where none are.

    Args:
        share: Share of successes, at most 1.
        samples: Samples.
        level: Failure probability of the bound.
    """
    low, high = -1, samples  # below at low, not at high: all successes leave any p possible
    while high - low > 1:
        middle = (low + high) // 2
        upper = 1.0 - lower_confidence_bound(samples - middle, samples, level)
        low, high = (middle, high) if upper < share else (low, middle)
    return low

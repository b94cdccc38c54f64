"""Which image's votes are bought next, where as many images as possible are to be certified for so many queries.

A look is bought where the expected number of certificates a query is highest. What an image still takes follows from
its votes: they leave Beta(s + 1/2, f + 1/2) of its success probability p, and at each of five quantiles of that it is
certified at the first look at which s votes and a share p of those to come are enough. The worth of an image is the
most, over how long one is ready to go on, of the probability that it is certified by then over the queries that this
takes on average. An image that was not begun yet is worth what those begun so far were.

This orders purchases and proves nothing. A certificate holds whatever the order: the noise of one image is independent
of that of all others, and the bound of a stopping rule holds at all its looks at once, so that any reason may end them.
Source of the index: Sevcik 1974; Gittins 1979.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import numpy as np
from scipy.special import betaincc, betaincinv

from certibox.certification.batches import MOST_KEPT
from certibox.certification.pieces import Certifying
from certibox.certification.sampling import Sampling
from certibox.confidence.gaussian import NoiseLaw
from certibox.confidence.looks import needed
from certibox.confidence.sequential import EProcess, Rule
from certibox.confidence.stopping import asked

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)


class Spending:
    """The order in which votes are bought with so many queries; an `Order` of `Interleaving`.

    Args:
        queries: Number of queries that may be spent.
        sampling: Votes of a certificate, under a rule with one radius; a rule that is not certibox's is taken for an
            `EProcess` here.
        law: Law of the noise.
        num_classes: Number of classes K.
        returning: Number of images, the first ones, of which an earlier run has left votes.
    """

    def __init__(self, queries: int, sampling: Sampling, law: NoiseLaw, num_classes: int, returning: int = 0) -> None:
        assert sampling.rule is not None
        sizes, (self._p0,) = sampling.sizes(law, num_classes), asked(sampling.rule, law)
        rule = sampling.rule if isinstance(sampling.rule, Rule) else EProcess(radii=(0.0,))
        level = rule.level(sampling.alpha, len(sizes))
        self.left = queries
        """Queries that are not spent, nor promised to a look that has begun."""
        self._n0, self._sizes, self._returning = sampling.n0, np.array(sizes), returning
        self._enough = np.array([needed(rule, size, self._p0, level) for size in sizes])  # votes for the class, by look
        self._paid: dict[Certifying, int] = {}  # looks that the image has been paid for
        self._worth: dict[Certifying, tuple[int, float]] = {}  # at a number of looks
        self._costs: dict[Certifying, np.ndarray] = {}  # of the whole certificates of open images, at the quantiles
        self._ended: list[np.ndarray] = []  # of those that are finished

    def ended(self, queries: int, p_lower: float) -> None:
        """Learn from an image that is finished what others may cost.

        Args:
            queries: Number of queries that it took.
            p_lower: Lower bound that they proved.
        """
        self._ended.append(np.full(len(QUANTILES), queries if p_lower >= self._p0 else math.inf))

    def may_open(self, polls: Collection[Certifying]) -> bool:
        """Whether another image can be paid up to its first look; those that were begun before have been.

        Args:
            polls: Open images.
        """
        if sum(poll.blocks for poll in polls) > MOST_KEPT:  # many images wait here, most of them for long
            for poll in polls:
                poll.let_go()
        if self._returning:
            self._returning -= 1
            return True
        return self.left >= self._n0 + self._sizes[0]

    def first(self, polls: Iterable[Certifying]) -> list[Certifying]:
        """Open images whose votes come before those of another image, the best first.

        There are none before all images that an earlier run has begun are open again.

        Args:
            polls: Open images.
        """
        if self._returning:
            return []
        ranked, fresh = self._ranked(polls), self._worth_of_a_fresh_one()
        return [poll for worth, poll in ranked if worth >= fresh]

    def rest(self, polls: Iterable[Certifying]) -> list[Certifying]:
        """All open images, the best first: those that are left where no other can be begun.

        Args:
            polls: Open images.
        """
        return [poll for _, poll in self._ranked(polls)]

    def pays(self, poll: Certifying) -> bool:
        """Whether the look that an image wants is paid for; it is, if that is possible.

        Args:
            poll: Open image.
        """
        looks = len(poll.looks)
        if self._paid.get(poll) == looks:
            return True
        if poll.missing > self.left:
            return False
        self.left -= poll.missing
        self._paid[poll] = looks
        return True

    def _ranked(self, polls: Iterable[Certifying]) -> list[tuple[float, Certifying]]:
        """Images of which something is wanted, by falling worth; what is paid for already comes first."""
        ranked = []
        for poll in polls:
            if poll.wanted:
                paid = self._paid.get(poll) == len(poll.looks)
                ranked.append((math.inf if paid else self._worth_of(poll), poll))
        return sorted(ranked, key=lambda pair: -pair[0])

    def _worth_of(self, poll: Certifying) -> float:
        looks = len(poll.looks)
        if not looks:
            return math.inf
        known = self._worth.get(poll)
        if known is None or known[0] != looks:
            n, s = poll.looks[-1]
            p = betaincinv(s + 0.5, n - s + 0.5, QUANTILES)
            left = self._left(n, s, looks, p)
            worth = _worth(left)
            if worth == 0.0:  # a certificate is unlikely, and takes all that a certificate may take
                worth = float(betaincc(s + 0.5, n - s + 0.5, self._p0)) / max(1, self._sizes[-1] - n)
            known = self._worth[poll] = (looks, worth)
            self._costs[poll] = self._n0 + n + left
        return known[1]

    def _left(self, n: int, s: int, looks: int, p: np.ndarray) -> np.ndarray:
        """Votes up to the look that certifies, at each success probability (5,) from now on; infinity for none."""
        sizes = self._sizes[looks:]
        reached = s + p[:, None] * (sizes - n) >= self._enough[looks:]
        return np.where(reached.any(1), sizes[reached.argmax(1)] - n, np.inf)

    def _worth_of_a_fresh_one(self) -> float:
        """What an image that was not begun is worth, as those that were; no end before any was looked at."""
        for poll in [poll for poll in self._paid if poll.finished]:
            assert poll.decision is not None
            self.ended(self._n0 + poll.looks[-1][0], poll.decision.p_lower)
            for known in (self._paid, self._worth, self._costs):
                known.pop(poll, None)
        costs = [*self._ended, *self._costs.values()]
        return _worth(np.concatenate(costs)) if costs else math.inf


def _worth(costs: np.ndarray) -> float:
    """The most, over a limit, of the share of equally likely costs within it over the mean cost up to it."""
    within = np.sort(costs[np.isfinite(costs)])
    if not len(within):
        return 0.0
    count, total = np.arange(1, len(within) + 1), len(costs)
    mean = (within.cumsum() + (total - count) * within) / total
    return float((count / total / mean).max())

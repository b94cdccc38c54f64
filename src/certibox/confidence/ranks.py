"""Whether votes prove a class to be the likeliest, at any moment: no radius, and far fewer votes than for one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any, final

from scipy.special import bdtrc, bdtrik

from certibox.confidence.looks import hopeless, looks_up_to, most_below, needed
from certibox.confidence.sequential import SLACK, EProcess
from certibox.errors import InvalidInput

EVEN = 0.5  # probability that a vote for one of two equally likely classes is for the first


@final
@dataclass(frozen=True)
class RankDecision:
    """What the votes say after a look."""

    stop: bool
    """Whether sampling ends here."""
    label: int | None
    """Class that is proven to be the likeliest; None where none is."""
    p_value: float
    """Smallest alpha at which the class with the most votes would be answered, at most 1."""
    why: str
    """Reason of the end: "answered", "futile", "cap" (the maximum n is reached), or "" where sampling goes on."""


@final
@dataclass(frozen=True)
class RankVerification:
    """Answers with a class as soon as the votes prove that it is the likeliest of all K.

    Votes that come first give each class A a weight w_A = (v_A + 1/K) / (n0 + 1), which sum to 1; they are not used
    again, and without them the weights are equal. Of the later votes for A or a rival c alone, each is for A with
    probability p_A / (p_A + p_c), whatever the others are. If p_A <= p_c this is at most 1/2, and the wealth of
    `EProcess` against 1/2 ever reaches 1/a with probability at most a (Ville's inequality); at the maximum n, the
    binomial test of p_A <= p_c, given the number of votes for the two, rejects at level b with probability at most b.
    A is answered at a look where its wealth against *every* rival has reached 1/a with a = (1 - last) alpha w_A, or at
    n if that test rejects every rival at b = last alpha w_A. Let c be the likeliest class. To answer A instead, its
    evidence against c must be as strong though p_A <= p_c, which has probability at most a + b = alpha w_A; so some
    wrong answer has probability at most the sum of that over the wrong classes, which is at most alpha, whatever K and
    the first votes. Rivals need no correction, for all of them must be beaten (an intersection-union test).

    Both kinds of evidence fall with the votes of the rival, so that the class with the most votes and its strongest
    rival decide, and the final counts alone prove the answer.

    Source: Hung & Fithian 2019 for a fixed number of votes; Ville 1939; a last look of its own: Pocock 1977.

    Raises:
        InvalidInput: for settings out of range.
    """

    futility: float | None = 0.2
    """Level in (0, 1) at which sampling gives up: an upper Clopper-Pearson bound of this level on the leading class's
    share of the votes for it and its strongest rival is below the share that the maximum n needs. None never does."""
    growth: float = 1.1
    """Ratio of successive looks, at least 1.01."""
    all_in: float = 0.5
    """Share of the first wealth that bets on unanimous votes, in (0, 1)."""
    last: float = 0.2
    """Share of alpha that is kept for a test at the maximum n, in [0, 1): the larger it is, the more images near a tie
    are decided there, and the more votes all others take."""

    def __post_init__(self) -> None:
        _ = self.bets  # checks what they take
        if not 0.0 <= self.last < 1.0:
            raise InvalidInput(f"last is {self.last}; wanted a share of alpha of at least 0 and below 1")

    @cached_property
    def bets(self) -> EProcess:
        """The bets against each rival."""
        return EProcess(radii=(0.0,), futility=self.futility, growth=self.growth, all_in=self.all_in)

    def sizes(self, n: int, alpha: float) -> tuple[int, ...]:
        """Geometric looks up to n, from the smallest sample whose unanimous votes are an answer of weight 1.

        Args:
            n: Maximum number of votes.
            alpha: Probability of a wrong answer, in (0, 1).

        Raises:
            InvalidInput: naming the smallest n, if n unanimous votes could only abstain.
        """
        return looks_up_to(self.bets, n, alpha * (1.0 - self.last), EVEN)

    def decide(self, counts: Sequence[int], first: Sequence[int], n: int, alpha: float) -> RankDecision:
        """What the votes of one look say.

        Args:
            counts: Votes per class (K,), without the first ones.
            first: First votes per class (K,), zeros where there were none.
            n: Maximum number of votes.
            alpha: Probability of a wrong answer, in (0, 1).
        """
        leader = max(range(len(counts)), key=lambda c: (counts[c], first[c], -c))
        most, rival = counts[leader], max(count for c, count in enumerate(counts) if c != leader)
        level = alpha * (first[leader] + 1 / len(counts)) / (sum(first) + 1)
        both, votes = most + rival, sum(counts)
        wealth = float(self.bets.log_wealth(most, both, EVEN))
        p_value = alpha / level * math.exp(min(SLACK - wealth, 700.0)) / (1.0 - self.last)
        if votes >= n and self.last:
            p_value = min(p_value, alpha / level * float(bdtrc(most - 1, both, EVEN)) / self.last)
        answered, p_value = p_value <= alpha, min(1.0, p_value)
        if answered:
            return RankDecision(True, leader, p_value, "answered")
        if votes >= n:
            return RankDecision(True, None, p_value, "cap")
        later = max(both, round(both * n / votes))  # votes for the two of them, at the maximum n
        futile = most <= self.hopeless(both, later, level)
        return RankDecision(futile, None, p_value, "futile" if futile else "")

    def enough(self, votes: int, level: float) -> int:
        """The fewest votes for the leading class, of so many for it and its rival, that answer before the last look.

        Args:
            votes: Votes for the two of them.
            level: Alpha times the weight of the class.
        """
        return needed(self.bets, votes, EVEN, level * (1.0 - self.last))

    def hopeless(self, both: int, later: int, level: float) -> int:
        """The most votes for the leading class that end the sampling as futile; -1 where none do.

        Args:
            both: Votes for it and its rival.
            later: Votes for the two of them at the maximum n.
            level: Alpha times the weight of the class.
        """
        if self.futility is None:
            return -1
        if not self.last:
            return hopeless(self.bets, both, later, EVEN, level)
        return _out_of_reach(both, later, level * self.last, self.futility)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with "name": "rank-verification"."""
        return {"name": "rank-verification", **asdict(self)}


@lru_cache(maxsize=65536)
def _out_of_reach(both: int, later: int, level: float, futility: float) -> int:
    """The most successes of `both` whose upper bound lies below the share that a test of 1/2 needs of `later`."""
    share = (float(bdtrik(1.0 - level, later, EVEN)) + 1.0) / later  # P(more successes) is at most the level
    return most_below(share, both, futility)

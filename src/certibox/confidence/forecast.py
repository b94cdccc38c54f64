"""What a stopping rule will cost and prove at a known vote probability, by exact recursion over its looks.

For planning (how many queries will a data set take?) and for checking (how often is a bound false?), without
simulation. NumPy and SciPy; no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.special import bdtrik
from scipy.stats import binom

from certibox.confidence.looks import hopeless, looks_up_to, needed, open_thresholds, within
from certibox.confidence.ranks import EVEN, RankVerification
from certibox.confidence.sequential import Rule

ENDS: tuple[str, ...] = ("certified", "tolerance", "futile", "cap")
DROPPED = 1e-20  # probability below which a state is forgotten


@final
@dataclass(frozen=True)
class Forecast:
    """What a rule will do at a known p, by exact recursion."""

    samples: float
    """Expected number of samples."""
    proven: tuple[float, ...]
    """Chance that the bound ends above each p0 asked."""
    stops: dict[str, float]
    """Chance of each end: "certified", "tolerance", "futile", "cap"."""


def forecast(
    rule: Rule, p: float, n: int, alpha: float, thresholds: Sequence[float], proven: Sequence[float] = ()
) -> Forecast:
    """Expected samples and chances of a certificate whose votes succeed with probability p, without simulation.

    The recursion carries P(successes, how many of the p0 are proven, still sampling) from look to look: increments are
    binomial and independent of the past. Terms below `DROPPED` are dropped.

    Args:
        rule: Stopping rule of the certificate.
        p: Success probability of a vote.
        n: Maximum number of votes.
        alpha: Failure probability of the certificate, in (0, 1).
        thresholds: Probabilities that the rule's radii need under the noise: `stopping.asked(rule, law)`.
        proven: Ascending p0 for which the chance of proving p > p0 is asked, such as those of `thresholds`; with p
            itself, the chance of a false bound.
    """
    sizes = rule.sizes(n, alpha, thresholds)
    level = rule.level(alpha, len(sizes))
    marks = sorted({*proven, *open_thresholds(rule, thresholds)})
    state, low, before, samples = _start(len(marks)), 0, 0, 0.0
    reached, stops = np.zeros(len(marks) + 1), dict.fromkeys(ENDS, 0.0)
    for size in sizes:
        samples += (size - before) * state.sum()
        state, low = _advance(state, low, size - before, p)
        before = size
        state = _lift(state, low, [needed(rule, size, p0, level) for p0 in marks])
        for why, ends in _ends(rule, state.shape, low, size, n, marks, level, thresholds):
            stops[why] += float(state[ends].sum())
            reached += np.where(ends, state, 0.0).sum(axis=1)
            state = np.where(ends, 0.0, state)
        if state.sum(axis=0).max() <= DROPPED:
            break
    at_least = reached[::-1].cumsum()[::-1]
    return Forecast(float(samples), tuple(float(at_least[marks.index(p0) + 1]) for p0 in proven), stops)


def answer(rule: RankVerification, p: float, n: int, level: float) -> tuple[float, float]:
    """Expected votes, and the chance that a class is answered, of a prediction between it and one rival.

    Args:
        rule: Rule of the prediction.
        p: Probability that a vote for one of the two is for the class, above 1/2.
        n: Maximum number of votes for the two.
        level: Alpha times the weight of the class.
    """
    state, low, before, votes, answered = _start(0), 0, 0, 0.0, 0.0
    for size in looks_up_to(rule.bets, n, min(level * (1.0 - rule.last), 0.5), EVEN):
        votes += (size - before) * float(state.sum())
        state, low = _advance(state, low, size - before, p)
        before, successes = size, low + np.arange(state.shape[1])
        enough = rule.enough(size, level)
        if size >= n and rule.last:
            enough = min(enough, int(bdtrik(1.0 - level * rule.last, size, EVEN)) + 2)
        answered += float(state[0, successes >= enough].sum())
        goes_on = (successes < enough) & (successes > rule.hopeless(size, n, level))
        state = np.where(goes_on, state, 0.0)
        if size >= n or state.max() <= DROPPED:
            break
    return votes, answered


def _start(marks: int) -> np.ndarray:
    """All mass at no successes and nothing proven: (marks + 1, 1)."""
    state = np.zeros((marks + 1, 1))
    state[0] = 1.0
    return state


def _advance(state: np.ndarray, low: int, step: int, p: float) -> tuple[np.ndarray, int]:
    """Mass over (proven, successes) after `step` more votes, and the successes of its first column."""
    kept = np.flatnonzero(state.sum(axis=0) > DROPPED)
    state, low = state[:, kept[0] : kept[-1] + 1], low + int(kept[0])
    spread = 10.0 * math.sqrt(step * p * (1.0 - p)) + 50.0
    first, last = max(0, math.floor(step * p - spread)), min(step, math.ceil(step * p + spread))
    increments = binom.pmf(np.arange(first, last + 1), step, p)
    return np.stack([np.convolve(row, increments) for row in state]), low + first


def _lift(state: np.ndarray, low: int, needs: Sequence[int]) -> np.ndarray:
    """Move mass to the row of what this look proves, where that is more than was proven before."""
    lifted = state.copy()
    for row, need in enumerate(needs, start=1):  # needs ascend with p0
        column = max(0, need - low)
        lifted[row, column:] += lifted[:row, column:].sum(axis=0)
        lifted[:row, column:] = 0.0
    return lifted


def _ends(
    rule: Rule,
    shape: tuple[int, ...],
    low: int,
    size: int,
    n: int,
    marks: Sequence[float],
    level: float,
    asked: Sequence[float],
) -> Iterator[tuple[str, np.ndarray]]:
    """(why, where) of the states that stop at this look, in the order in which `looks.decide` asks."""
    successes = np.broadcast_to(low + np.arange(shape[1]), shape)
    if rule.tolerance is not None:
        yield "tolerance", np.broadcast_to(within(rule, successes[0], size, n, level), shape)
        open_p0 = [asked[0]] * shape[0]
    else:
        rows = [marks[:row] for row in range(shape[0])]
        open_p0 = [next((p0 for p0 in asked if p0 not in done), None) for done in rows]
        yield "certified", np.broadcast_to(np.array([[p0 is None] for p0 in open_p0]), shape)
    yield "cap", np.full(shape, size >= n)
    limits = [-1 if p0 is None else hopeless(rule, size, n, p0, level) for p0 in open_p0]
    yield "futile", successes <= np.array(limits)[:, None]

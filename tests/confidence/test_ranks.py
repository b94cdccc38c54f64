"""An answer is wrong with probability at most alpha, whatever the classes and whenever the votes end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from scipy.special import bdtrc
from scipy.stats import binom

from certibox.confidence import RankVerification
from certibox.confidence.sequential import SLACK
from certibox.errors import InvalidInput

RULES = [RankVerification(), RankVerification(last=0.0), RankVerification(futility=None, growth=1.3, last=0.8)]
ALPHAS = [0.2, 0.01]


def answers_of_two(rule: RankVerification, p: float, n: int, alpha: float, first: tuple[int, int]) -> tuple[float, ...]:
    """(P(class 0 is answered), P(class 1 is), expected votes) for votes that are for class 0 with probability p."""
    state, before, answered, votes = {0: 1.0}, 0, [0.0, 0.0], 0.0
    for size in rule.sizes(n, alpha):
        votes += (size - before) * sum(state.values())
        steps = binom.pmf(np.arange(size - before + 1), size - before, p)
        following: dict[int, float] = {}
        for s, mass in state.items():
            for more, chance in enumerate(steps):
                following[s + more] = following.get(s + more, 0.0) + mass * chance
        state, before = {}, size
        for s, mass in following.items():
            decision = rule.decide((s, size - s), first, n, alpha)
            if decision.label is not None:
                answered[decision.label] += mass
            elif not decision.stop:
                state[s] = mass
    assert not state
    return (*answered, votes)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("first", [(0, 0), (4, 1), (1, 4)])
def test_of_two_classes_the_wrong_one_is_answered_with_probability_at_most_its_share_of_alpha(
    rule: RankVerification, alpha: float, first: tuple[int, int]
) -> None:
    weight = (first[0] + 0.5) / (sum(first) + 1)
    for p in (0.5, 0.49, 0.45, 0.3):
        wrong = answers_of_two(rule, p, 120, alpha, first)[0]
        assert wrong <= alpha * weight * (1 + 1e-9)
    tight = answers_of_two(rule, 0.5, 120, alpha, first)[0]
    assert tight >= alpha * weight / 12  # and not by much less, where the two are equally likely


def vectorised(rule: RankVerification, counts: np.ndarray, n: int, alpha: float) -> np.ndarray:
    """Answers (m,) to votes (m, K) of one look without first votes, -1 for none: the rule written out again."""
    ordered, leader = np.sort(counts, 1), counts.argmax(1)
    most, both, votes = ordered[:, -1], ordered[:, -1] + ordered[:, -2], counts.sum(1)[0]
    level = alpha / counts.shape[1]
    enough = rule.bets.log_wealth(most, both, 0.5) >= SLACK - math.log(level * (1 - rule.last))
    if votes >= n and rule.last:
        enough |= bdtrc(most - 1, both, 0.5) <= level * rule.last
    return np.where(enough, leader, -1)


@pytest.mark.parametrize(
    "likely",
    [
        [0.1] * 10,
        [0.5, 0.5, *[0.0] * 8],
        [0.34, 0.33, 0.33, *[0.0] * 7],
        [0.2, *[0.8 / 9] * 9],
        [0.46, 0.45, *[0.09 / 8] * 8],
    ],
)
def test_of_ten_classes_a_wrong_one_is_answered_no_more_often_than_alpha(likely: Sequence[float]) -> None:
    """100,000 simulations at probabilities where it is hard; a class as likely as the first counts as wrong."""
    rule, n, alpha, count = RankVerification(futility=None), 300, 0.1, 100_000
    generator = np.random.default_rng(0)
    counts, open_, wrong, before = np.zeros((count, 10), dtype=np.int64), np.ones(count, dtype=bool), 0, 0
    for size in rule.sizes(n, alpha):
        counts += generator.multinomial(size - before, likely, count)
        before = size
        found = np.where(open_, vectorised(rule, counts, n, alpha), -1)
        for i in generator.integers(count, size=20):
            decision = rule.decide(counts[i].tolist(), [0] * 10, n, alpha)
            alone = vectorised(rule, counts[i : i + 1], n, alpha)[0]
            tie = np.sum(counts[i] == counts[i].max()) > 1
            assert tie or (-1 if decision.label is None else decision.label) == alone
        wrong += int((found > 0).sum())
        open_ &= found < 0
    assert wrong <= binom.ppf(1 - 1e-6, count, alpha)


def test_an_answer_follows_from_the_final_counts_and_falls_with_the_votes_of_the_rival() -> None:
    rule = RankVerification()
    evidence = [rule.decide((60, rival, 10), (0, 0, 0), 1000, 0.001).p_value for rival in range(10, 61)]
    assert all(a < b or b == 1.0 for a, b in pairwise(evidence))
    assert rule.decide((60, 5, 10), (0, 0, 0), 1000, 0.001).label == 0
    assert rule.decide((5, 60, 10), (0, 0, 0), 1000, 0.001).label == 1
    assert rule.decide((60, 58, 10), (0, 0, 0), 1000, 0.001).label is None


@pytest.mark.parametrize("rule", RULES)
def test_unanimous_votes_answer_within_a_vote_or_two_of_what_any_test_needs(rule: RankVerification) -> None:
    """A test of 1/2 needs log2(1 / level) unanimous votes; half the wealth bets on them, and `last` keeps its share."""
    alpha = 0.001
    least = next(n for n in range(1, 60) if rule.decide((n, 0), (n, 0), 1000, alpha).label == 0)
    assert math.log2(1 / alpha) <= least <= math.log2(2 / (alpha * (1 - rule.last))) + 1
    assert rule.sizes(1000, alpha)[0] <= least


def test_near_a_tie_a_last_look_with_half_of_alpha_decides_almost_as_often_as_votes_alone_do() -> None:
    p, n, alpha = 0.62, 120, 0.01
    alone = binom.sf(binom.isf(alpha / 2, n, 0.5), n, p)
    early = RankVerification(futility=None, last=0.5)
    without = RankVerification(futility=None, last=0.0)
    answered, kept = (answers_of_two(rule, p, n, alpha, (0, 0))[0] for rule in (without, early))
    assert answered < kept
    assert kept >= alone - 0.12


def test_clear_images_take_some_votes_and_hopeless_ones_are_given_up() -> None:
    rule = RankVerification()
    assert answers_of_two(rule, 0.99, 1000 // 5, 0.001, (0, 0))[2] <= 20
    assert answers_of_two(rule, 0.5, 200, 0.001, (0, 0))[2] <= 0.8 * 200
    decision = rule.decide((25, 25), (0, 0), 60, 0.001)
    assert (decision.stop, decision.label, decision.why) == (True, None, "futile")


@pytest.mark.parametrize("change", [{"last": 1.0}, {"last": -0.1}, {"futility": 0.0}, {"growth": 1.0}, {"all_in": 1.0}])
def test_settings_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(change))):
        RankVerification(**change)


def test_an_n_that_can_only_abstain_is_refused() -> None:
    with pytest.raises(InvalidInput, match="the smallest n is"):
        RankVerification().sizes(8, 0.001)

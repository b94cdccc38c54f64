"""Sequential rules: identities of the wealth, exact coverage by recursion, and the recursion against every path."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import binom, binomtest, norm

from certibox import confidence
from certibox.confidence import recorded, sequential
from certibox.confidence.forecast import forecast
from certibox.confidence.gaussian import Gaussian
from certibox.confidence.looks import goes_on, needed
from certibox.confidence.sequential import AlphaSpending, EProcess, Rule
from certibox.confidence.stopping import Decision, asked
from certibox.errors import InvalidInput

SIGMA, ALPHA = 0.25, 0.001
LAW = Gaussian(SIGMA)
MODES = {
    "one radius": {"radii": (0.25,)},
    "a grid": {"radii": (0.0, 0.0625, 0.125, 0.25)},
    "tolerance": {"tolerance": 0.1},
}
RULES = [
    pytest.param(kind(**mode, futility=futility), id=f"{kind.__name__}, {name}, futility {futility}")
    for kind in (EProcess, AlphaSpending)
    for name, mode in MODES.items()
    for futility in (0.05, None)
]
GRID = EProcess(radii=(0.125, 0.25))


def p0s(rule: Rule) -> tuple[float, ...]:
    """What the radii of a rule need under the noise of these tests."""
    return asked(rule, LAW)


def bet(u: float, successes: int, failures: int, p0: float) -> float:
    """The wealth of one who keeps the share u and stakes the rest at the odds 1/p0."""
    return u**failures * (u + (1 - u) / p0) ** successes


@pytest.mark.parametrize(("successes", "failures"), [(0, 0), (7, 0), (0, 5), (12, 3), (40, 1)])
@pytest.mark.parametrize("p0", [0.5, 0.84, 0.99])
def test_the_wealth_is_the_mixture_of_bets(successes: int, failures: int, p0: float) -> None:
    rule = EProcess(radii=(0.25,), all_in=0.3)
    mixed = 0.7 * quad(bet, 0, 1, args=(successes, failures, p0))[0] + 0.3 * bet(0.0, successes, failures, p0)
    wealth = np.exp(rule.log_wealth(successes, successes + failures, p0))
    assert wealth == pytest.approx(mixed, rel=1e-9)


@pytest.mark.parametrize("p0", [0.5, 0.84, 0.99])
def test_the_wealth_is_fair_at_p0_and_loses_below(p0: float) -> None:
    n = 50
    wealth = np.exp(GRID.log_wealth(np.arange(n + 1), n, p0))
    expected = [binom.pmf(np.arange(n + 1), n, p) @ wealth for p in (p0, 0.99 * p0, 0.9 * p0, 0.1)]
    assert expected[0] == pytest.approx(1.0, rel=1e-9)
    assert all(later < earlier for earlier, later in itertools.pairwise(expected))


@pytest.mark.parametrize(("n", "p0"), [(100, 0.6), (10_000, 0.84), (999_999, 0.84), (999_999, 0.99865)])
def test_the_wealth_is_a_martingale_at_p0_even_after_a_million_votes(n: int, p0: float) -> None:
    successes = np.unique(np.rint(n * np.array([p0, p0 + 0.3 * (1 - p0), 1.0])))
    now, up, down = (
        GRID.log_wealth(s, size, p0) for s, size in ((successes, n), (successes + 1, n + 1), (successes, n + 1))
    )
    after = np.logaddexp(math.log(p0) + up, math.log1p(-p0) + down)
    np.testing.assert_allclose(after, now, rtol=0, atol=sequential.SLACK / 2)


@pytest.mark.parametrize("samples", [20, 1000, 1_000_000])
def test_the_bound_of_the_wealth_is_its_largest_refuted_p0(samples: int) -> None:
    successes = np.unique(np.rint(samples * np.array([0.001, 0.3, 0.6, 0.9, 0.999, 1.0])))
    bounds = GRID.lower_bounds(successes, samples, ALPHA)
    some = bounds > 0
    wealth = GRID.log_wealth(successes[some], samples, bounds[some])
    np.testing.assert_allclose(wealth, -math.log(ALPHA), rtol=0, atol=1e-6)
    assert (wealth >= -math.log(ALPHA)).all(), "on the safe side"
    assert not GRID.lower_bounds(0, samples, ALPHA).any()


@pytest.mark.parametrize("rule", RULES)
def test_a_bound_is_false_with_probability_at_most_alpha_at_every_p(rule: Rule) -> None:
    n, alpha = 600, 0.05
    asked = [confidence.threshold(radius, SIGMA) for radius in rule.radii or (0.0,)]
    grid = [*np.linspace(0.02, 0.98, 13), *asked, *(float(np.nextafter(p0, 0)) for p0 in asked)]
    false = [forecast(rule, p, n, alpha, p0s(rule), proven=(p,)).proven[0] for p in grid]
    assert alpha / 10 < max(false) <= alpha


@pytest.mark.parametrize("rule", RULES)
def test_the_recursion_knows_every_path_of_votes(rule: Rule) -> None:
    coarse = type(rule)(**{**_settings(rule), "growth": 3.0})
    n, alpha, p = 24, 0.2, 0.9
    asked = (0.5, p)
    expected = {"samples": 0.0, "proven": np.zeros(len(asked))}
    stops: dict[str, float] = {}
    for looks, chance in _paths(coarse, n, alpha, p):
        decision = coarse.decide(looks, n, alpha, p0s(coarse))
        level = coarse.level(alpha, len(coarse.sizes(n, alpha, p0s(coarse))))
        proven = [any(s >= needed(coarse, m, p0, level) for m, s in looks) for p0 in asked]
        expected["samples"] += chance * looks[-1][0]
        expected["proven"] += chance * np.array(proven)
        stops[decision.why] = stops.get(decision.why, 0.0) + chance
    found = forecast(coarse, p, n, alpha, p0s(coarse), proven=asked)
    assert found.samples == pytest.approx(expected["samples"], rel=1e-12)
    assert found.proven == pytest.approx(expected["proven"], rel=1e-12)
    assert found.stops == pytest.approx({why: stops.get(why, 0.0) for why in found.stops}, abs=1e-14)
    assert len(stops) > 1


def _settings(rule: Rule) -> dict:
    return {key: value for key, value in rule.as_dict().items() if key != "name"}


def _paths(rule: Rule, n: int, alpha: float, p: float, before: tuple = ((0, 0),)):
    """Every run of looks until the rule stops, with its probability."""
    size = rule.sizes(n, alpha, p0s(rule))[len(before) - 1]
    samples, successes = before[-1]
    for more in range(size - samples + 1):
        looks = (*before, (size, successes + more))
        chance = float(binom.pmf(more, size - samples, p))
        if rule.decide(looks[1:], n, alpha, p0s(rule)).stop:
            yield looks[1:], chance
        else:
            yield from ((rest, chance * later) for rest, later in _paths(rule, n, alpha, p, looks))


@pytest.mark.parametrize("rule", [EProcess(radii=(0.25,)), AlphaSpending(radii=(0.25,))], ids=["e", "spending"])
def test_simulated_certificates_are_false_no_more_often_than_alpha(rule: Rule) -> None:
    n, runs = 1000, 100_000
    p = float(np.nextafter(confidence.threshold(0.25, SIGMA), 0))
    sizes = rule.sizes(n, ALPHA, p0s(rule))

    @cache
    def decide(look: int, successes: int) -> Decision:
        """With one radius, what was seen before matters only through having gone on."""
        looks = [*((size, 0) for size in sizes[:look]), (sizes[look], successes)]
        return rule.decide(looks, n, ALPHA, p0s(rule))

    rng, successes, false = np.random.default_rng(0), np.zeros(runs, dtype=int), 0
    for look, step in enumerate(np.diff(sizes, prepend=0)):
        successes = successes + rng.binomial(step, p, len(successes))
        values, counts = np.unique(successes, return_counts=True)
        decisions = [decide(look, int(value)) for value in values]
        false += sum(int(c) for d, c in zip(decisions, counts, strict=True) if d.p_lower > p)
        going = values[[not d.stop for d in decisions]]
        successes = successes[np.isin(successes, going)]
    assert not len(successes), "every certificate ends at the cap"
    assert binomtest(false, runs, ALPHA, alternative="greater").pvalue > 1e-4
    exact = forecast(rule, p, n, ALPHA, p0s(rule), proven=(p,)).proven[0]
    assert binomtest(false, runs, exact).pvalue > 1e-4


def test_one_look_of_alpha_spending_is_the_fixed_certificate() -> None:
    n = confidence.smallest_n(ALPHA, 0.25, SIGMA)
    rule = AlphaSpending(radii=(0.25,))
    assert rule.sizes(n, ALPHA, p0s(rule)) == (n,)
    for successes in (n, n - 1, n // 2):
        bound = confidence.lower_confidence_bound(successes, n, ALPHA)
        assert rule.decide([(n, successes)], n, ALPHA, p0s(rule)).p_lower == pytest.approx(bound, rel=1e-12)


@given(st.floats(0.0, 6.0), st.floats(0.05, 2.0))
def test_a_decided_radius_is_reached_despite_rounding(ratio: float, sigma: float) -> None:
    radius = ratio * sigma
    p0 = confidence.threshold(radius, sigma)
    assert confidence.radius(p0, sigma) >= radius
    assert confidence.radius(p0, sigma) > 0
    assert p0 == pytest.approx(norm.cdf(ratio), rel=1e-12)


@pytest.mark.parametrize("rule", [EProcess(radii=(0.25, 0.5)), AlphaSpending(radii=(0.25, 0.5))], ids=["e", "spending"])
def test_the_fewest_successes_that_prove_a_radius_reach_it(rule: Rule) -> None:
    n, p0 = 5000, confidence.threshold(0.5, SIGMA)
    sizes = rule.sizes(n, ALPHA, p0s(rule))
    level = rule.level(ALPHA, len(sizes))
    for k, size in enumerate(sizes):
        fewest = needed(rule, size, p0, level)
        if fewest > size:
            continue
        before = [(m, 0) for m in sizes[:k]]
        proven, short = (rule.decide([*before, (size, s)], n, ALPHA, p0s(rule)) for s in (fewest, fewest - 1))
        assert proven.why == "certified"
        assert confidence.radius(proven.p_lower, SIGMA) >= 0.5 > confidence.radius(short.p_lower, SIGMA)


@pytest.mark.parametrize("kind", [EProcess, AlphaSpending])
def test_looks_begin_where_unanimous_votes_decide_and_end_at_the_cap(kind: type[Rule]) -> None:
    rule = kind(radii=(0.5, 0.75))
    sizes = rule.sizes(20_000, ALPHA, p0s(rule))
    assert sizes[-1] == 20_000
    assert list(sizes) == sorted(set(sizes))
    ratios = np.diff(np.log(sizes))
    assert ratios.max() <= math.log(rule.growth) * 1.01
    level = rule.level(ALPHA, len(sizes))
    assert level * len(sizes) <= ALPHA or kind is EProcess
    p0 = confidence.threshold(0.5, SIGMA)
    first = sizes[0]
    assert rule.rejects(first, first, p0, level).all()
    assert rule.level(ALPHA, len(sizes) + 1) < level or not rule.rejects(first - 1, first - 1, p0, level).any()


@pytest.mark.parametrize("kind", [EProcess, AlphaSpending])
def test_a_cap_that_can_only_abstain_is_refused_with_the_smallest_one(kind: type[Rule]) -> None:
    rule = kind(radii=(0.75,))
    with pytest.raises(InvalidInput, match="the smallest n is") as refused:
        rule.sizes(1000, ALPHA, p0s(rule))
    smallest = int(str(refused.value).split()[-1])
    assert rule.sizes(smallest, ALPHA, p0s(rule)) == (smallest,)
    for n in range(smallest, smallest + 5 * smallest // 2, 97):
        assert rule.sizes(n, ALPHA, p0s(rule))[-1] == n
    with pytest.raises(InvalidInput, match=f"smallest n is {smallest}"):
        rule.sizes(smallest - 1, ALPHA, p0s(rule))


@pytest.mark.parametrize("kind", [EProcess, AlphaSpending])
def test_futility_saves_samples_and_makes_no_certificate(kind: type[Rule]) -> None:
    patient, hasty = (kind(radii=(0.25,), futility=level) for level in (None, 0.05))
    p0 = confidence.threshold(0.25, SIGMA)
    for p in (0.5, 0.8, 0.85, 0.9):
        slow, fast = (forecast(rule, p, 2000, ALPHA, p0s(rule), proven=(p0,)) for rule in (patient, hasty))
        assert fast.proven[0] <= slow.proven[0]
        assert fast.samples < slow.samples


@pytest.mark.parametrize("kind", [EProcess, AlphaSpending])
def test_a_tolerance_is_met(kind: type[Rule]) -> None:
    rule, n = kind(tolerance=0.1), 20_000
    looks = _looks(rule, n)
    decision = rule.decide(looks, n, ALPHA, p0s(rule))
    most = rule.lower_bounds(0.9 * n, n, rule.level(ALPHA, len(rule.sizes(n, ALPHA, p0s(rule))))).item()
    reached = confidence.radius(decision.p_lower, SIGMA) / confidence.radius(most, SIGMA)
    assert decision.why == "tolerance"
    assert 0.9 <= reached < 0.97
    assert looks[-1][0] < n / 4


@pytest.mark.parametrize("rule", RULES)
def test_a_record_replays_from_its_votes(rule: Rule) -> None:
    n = 2000
    kept = recorded.record(rule, n, ALPHA)
    assert recorded.rule_from_dict(kept) == rule
    looks = _looks(rule, n)
    decision = recorded.replay(kept, looks, LAW)
    assert decision.stop
    assert recorded.p_lower_at(kept, looks, LAW, at=ALPHA) == decision.p_lower
    assert rule.p_lower_at(looks, n, ALPHA, p0s(rule), at=ALPHA) == decision.p_lower
    bounds = [recorded.p_lower_at(kept, looks, LAW, at=at) for at in (1e-6, ALPHA, 0.05)]
    assert bounds == sorted(set(bounds)), "a smaller alpha proves less"


def _looks(rule: Rule, n: int) -> list[tuple[int, int]]:
    """The looks of a run whose votes succeed 9 times in 10."""
    looks: list[tuple[int, int]] = []
    for size in rule.sizes(n, ALPHA, p0s(rule)):
        looks.append((size, math.ceil(0.9 * size)))
        if rule.decide(looks, n, ALPHA, p0s(rule)).stop:
            break
    return looks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda looks: [], "were at"),
        (lambda looks: looks[1:], "due were"),
        (lambda looks: [(looks[0][0] + 1, looks[0][1]), *looks[1:]], "due were"),
        (lambda looks: [(looks[0][0], looks[0][0] + 1), *looks[1:]], "cannot follow"),
        (lambda looks: [*looks[:-1], (looks[-1][0], looks[-2][1] - 1)], "cannot follow"),
    ],
)
def test_a_broken_record_is_refused(change, message: str) -> None:
    rule = EProcess(radii=(0.25,))
    with pytest.raises(InvalidInput, match=message):
        recorded.replay(recorded.record(rule, 2000, ALPHA), change(_looks(rule, 2000)), LAW)


def test_a_record_that_goes_on_after_its_end_is_refused() -> None:
    rule = EProcess(radii=(0.25,))
    looks = _looks(rule, 2000)
    size = rule.sizes(2000, ALPHA, p0s(rule))[len(looks)]
    longer = [*looks, (size, looks[-1][1] + size - looks[-1][0])]
    with pytest.raises(InvalidInput, match=f"stops at look {len(looks)}"):
        recorded.replay(recorded.record(rule, 2000, ALPHA), longer, LAW)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one"),
        ({"radii": (0.25,), "tolerance": 0.1}, "exactly one"),
        ({"radii": ()}, "ascending"),
        ({"radii": (0.5, 0.25)}, "ascending"),
        ({"radii": (-0.1,)}, "ascending"),
        ({"radii": (math.nan,)}, "ascending"),
        ({"radii": 0.25}, "radii are 0.25; wanted numbers"),
        ({"radii": "0.25"}, "radii are '0.25'; wanted numbers"),
        ({"radii": [0.25, "far"]}, r"radii are \[0.25, 'far'\]; wanted numbers"),
        ({"radii": [0.25, None]}, r"radii are \[0.25, None\]; wanted numbers"),
        ({"radii": np.array(0.25)}, r"radii are array\(0.25\); wanted numbers"),
        ({"tolerance": 1.0}, "tolerance is 1"),
        ({"tolerance": 0.1, "futility": 0.0}, "futility is 0.0; wanted .* or None for never"),
        ({"tolerance": 0.1, "growth": 1.0}, "growth is 1.0"),
    ],
)
@pytest.mark.parametrize("kind", [EProcess, AlphaSpending])
def test_settings_that_make_no_sense_are_named(kind: type[Rule], settings: dict, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        kind(**settings)


@pytest.mark.parametrize("kind", [EProcess, AlphaSpending])
@pytest.mark.parametrize("radii", [[0.25, 0.5], np.array([0.25, 0.5]), [np.float32(0.25), 0.5]])
def test_radii_may_come_in_any_sequence(kind: type[Rule], radii: Sequence[float]) -> None:
    rule = kind(radii=radii)
    assert rule == kind(radii=(0.25, 0.5))
    assert hash(rule) == hash(kind(radii=(0.25, 0.5)))
    assert recorded.rule_from_dict(json.loads(json.dumps(rule.as_dict()))) == rule


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"name": "magic"}, "'magic'"),
        ({}, "None"),
        ({"name": "e-process", "radii": [0.25], "speed": 2}, "no setting 'speed'; wanted radii, tolerance"),
        ({"name": "alpha-spending", "radii": [0.25], "all_in": 0.5}, "no setting 'all_in'"),
        ({"name": "e-process", "radii": [0.25], "futility": "often"}, "futility is 'often'; wanted a number"),
        ({"name": "e-process", "radii": [0.25], "growth": None}, "growth is None; wanted a number"),
        ({"name": "e-process", "radii": [0.25, "far"]}, r"radii are \[0.25, 'far'\]; wanted numbers"),
        ({"name": "e-process", "radii": 0.25}, "radii are 0.25"),
        ({"name": "e-process", "tolerance": True}, "tolerance is True; wanted a number"),
        ({"name": "e-process", "radii": [0.25], "all_in": 1.0}, "all_in is 1"),
        ({"name": ["e-process"], "radii": [0.25]}, r"the stopping rule is \['e-process'\]"),
        ({"name": "e-process", "radii": [10**400]}, "wanted ascending radii"),
    ],
)
def test_a_rule_that_is_not_known_is_named(kept: dict, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        recorded.rule_from_dict(kept)


def test_a_record_without_its_cap_is_refused() -> None:
    rule = EProcess(radii=(0.25,))
    with pytest.raises(InvalidInput, match="cap None"):
        recorded.replay(rule.as_dict(), _looks(rule, 2000), LAW)


@pytest.mark.parametrize("kind", [EProcess, AlphaSpending])
def test_a_radius_that_the_cap_cannot_prove_takes_no_samples(kind: type[Rule]) -> None:
    rules = [kind(radii=radii) for radii in ((0.25,), (0.25, 0.9))]
    one, more = (forecast(rule, 0.99, 1000, ALPHA, p0s(rule)) for rule in rules)
    assert more.samples == pytest.approx(one.samples)
    assert more.stops["futile"] == pytest.approx(1.0)


def test_a_radius_beyond_what_samples_can_prove_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"10\.0 sigma"):
        confidence.threshold(2.5, 0.25)


# ------------------------------------------------------------------------------------------------- going on, in short


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_goes_on_in_short_where_it_goes_on_look_by_look(rule: Rule) -> None:
    n, thresholds = 2000, asked(rule, LAW)
    sizes, rng, seen = rule.sizes(n, ALPHA, thresholds), np.random.default_rng(0), set()
    for p in (0.0, 0.4, 0.7, 0.95, 1.0):
        votes = np.cumsum(rng.random(n) < p)
        looks = [(size, int(votes[size - 1])) for size in sizes[:-1]]
        goes = [not rule.decide(looks[: k + 1], n, ALPHA, thresholds).stop for k in range(len(looks))]
        for end in range(len(looks) + 1):
            assert goes_on(rule, looks[:end], n, ALPHA, thresholds) == all(goes[:end])
        seen |= set(goes)
    assert seen == {True, False}

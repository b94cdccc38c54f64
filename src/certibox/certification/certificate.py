"""What votes prove about one image: integer counts, and the bound and radius that follow from them. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from certibox import confidence
from certibox.confidence import sequential
from certibox.confidence.sequential import Rule, StoppingRule
from certibox.errors import InvalidInput


@dataclass(frozen=True)
class Certificate:
    """What n0 + n answers prove about g at one image; integer counts, so that another alpha costs nothing.

    label: the certified class, or None for an abstention. radius: l2, in pixels on [0, 1]; g is constant within it
    unless the bound failed (probability at most alpha over the seed). selected: the class that the n0 selection votes
    picked. counts: the n estimation votes per class, without n0. queries: n0 + n. image: SHA-256 of the float image.
    second_class: whether the radius also rests on an upper bound of the runner-up; half of alpha is then p_lower's.
    rule: the stopping rule of a sequential certificate as plain values, with the cap on n and the alpha under which
    it ran; None where n was fixed. looks: every look at the votes, as (samples, votes for `selected`) so far.
    """

    label: int | None
    radius: float
    p_lower: float
    selected: int
    counts: tuple[int, ...]
    n0: int
    n: int
    alpha: float
    sigma: float
    seed: int
    queries: int
    image: str
    second_class: bool = False
    rule: dict[str, Any] | None = field(default=None, hash=False)
    looks: tuple[tuple[int, int], ...] | None = None

    def at_alpha(self, alpha: float) -> Certificate:
        """The certificate that the same votes give at another alpha, fixed in advance; no query is spent.

        A sequential one was looked at and stopped under the alpha of its `rule`. The bounds of both rules hold at all
        looks at once, at every level, so they hold at its last look at the new level too, whatever ended the sampling;
        but the new alpha itself might have stopped sooner or gone on, so this is not the certificate of another run.
        Errors: `InvalidInput` if n votes cannot certify anything at alpha, or the looks are not where the rule's are.
        """
        p_lower, radius = self._bounds(alpha)
        label = self.selected if radius > 0 else None
        return replace(self, label=label, radius=radius, p_lower=p_lower, alpha=alpha)

    def replay(self) -> Certificate:
        """This certificate, computed again from its votes; `InvalidInput` unless that gives what it states.

        A sequential one must have looked where its rule looks, gone on where it goes on and stopped where it stops.
        """
        if self.n0 < 1 or self.queries != self.n0 + self.n:
            came = f"{self.queries} queries are stated, with n0 = {self.n0} and n = {self.n}"
            raise InvalidInput(f"{came}; wanted n0 >= 1 and their sum: discard it")
        if sum(self.counts) != self.n or not 0 <= self.selected < len(self.counts):
            came = f"n = {self.n} and class {self.selected} are stated, with the votes {list(self.counts)}"
            raise InvalidInput(f"{came}: discard it")
        if self.rule is not None:
            last, end = (self.looks or ())[-1:], (self.n, self.counts[self.selected])
            if self.second_class or last != (end,):
                came = f"the votes are {end[1]} of {end[0]}, second_class is {self.second_class}"
                raise InvalidInput(
                    f"the last look is {list(last)}, {came}; a rule bounds the top class alone: discard it"
                )
            ended = sequential.replay(self.rule, self.looks or (), _ran(self.rule), self.sigma).stop
            if not ended:
                raise InvalidInput(f"its looks end at {self.n} samples, where the rule goes on; discard it")
        again = self.at_alpha(self.alpha)
        pairs = ((again.radius, self.radius), (again.p_lower, self.p_lower))  # SciPy may round otherwise elsewhere
        if again.label != self.label or not all(math.isclose(*pair, rel_tol=1e-9) for pair in pairs):
            came = f"class {self.label} within {self.radius} (p_lower {self.p_lower})"
            follows = f"class {again.label} within {again.radius} ({again.p_lower})"
            raise InvalidInput(f"{came} is stated, but {follows} follows from the votes; discard it")
        return again

    def _bounds(self, alpha: float) -> tuple[float, float]:
        """The lower bound of the selected class's probability at level alpha, and the radius that the votes prove."""
        if self.rule is not None:
            p_lower = sequential.p_lower_at(self.rule, self.looks or (), _ran(self.rule), self.sigma, at=alpha)
            return p_lower, confidence.radius(p_lower, self.sigma)
        share = top_share(alpha, len(self.counts), self.second_class)
        require_certifiable(self.n, share)
        p_lower = confidence.lower_confidence_bound(self.counts[self.selected], self.n, share)
        if self.second_class:
            return p_lower, confidence.second_class_radius(self.counts, self.selected, alpha, self.sigma)
        return p_lower, confidence.radius(p_lower, self.sigma)

    def as_dict(self) -> dict[str, object]:
        """The fields as plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Prediction:
    """g's class at one image, or None (abstain) where the top two classes cannot be told apart at level alpha."""

    label: int | None
    counts: tuple[int, ...]
    p_value: float
    n: int
    alpha: float
    sigma: float
    seed: int
    queries: int


def require_certifiable(n: int, alpha: float) -> None:
    """Raise `InvalidInput`, naming the smallest n, if even n unanimous votes could only abstain at alpha."""
    smallest = confidence.smallest_n(alpha)
    if n < smallest:
        raise InvalidInput(
            f"n = {n} can only abstain at alpha = {alpha}, even with unanimous votes; the smallest n is {smallest}"
        )


def out_of_reach(rule: Rule, n: int, alpha: float, sigma: float) -> str | None:
    """A line that names the radii of `rule` that even n unanimous votes cannot certify; None where there are none.

    n certifies at least the smallest radius, or `sizes` refuses it. Each radius has the smallest n that can certify
    it beside the others: more looks may leave each a lower level, so that n is the fixed point of what its looks ask.
    """
    open_ = []
    for radius, p0 in zip(rule.radii or (), sequential.thresholds(rule, sigma), strict=True):
        smallest = n
        while (asked := sequential.smallest_unanimous(rule, p0, _level(rule, smallest, alpha, sigma))) > smallest:
            smallest = asked
        if smallest > n:
            open_.append(f"r = {radius:g} (the smallest n is {smallest:,})")
    return f"n = {n:,} cannot certify {', '.join(open_)}: 0 % there says nothing of the model" if open_ else None


def _level(rule: Rule, n: int, alpha: float, sigma: float) -> float:
    """The failure probability of each look of `rule` under the cap n."""
    return rule.level(alpha, len(rule.sizes(n, alpha, sigma)))


def top_share(alpha: float, num_classes: int, second_class: bool) -> float:
    """What of alpha bounds the top class: half, beside a runner-up; all of it for two classes, whose bound is one."""
    return alpha / 2 if second_class and num_classes > 2 else alpha


def rule_record(rule: StoppingRule, n: int, alpha: float) -> dict[str, Any]:
    """A rule as certificates keep it: the values of JSON, with its cap n and the alpha under which it runs."""
    kept = sequential.record(rule, n) | {"alpha": alpha}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in kept.items()}


def _ran(rule: Mapping[str, Any]) -> float:
    """The alpha under which a recorded rule ran."""
    if not isinstance(rule.get("alpha"), float):
        raise InvalidInput(f"the recorded rule has the alpha {rule.get('alpha')!r}; wanted the one it ran under")
    return rule["alpha"]

"""What votes prove about one image: integer counts, and the bound and radius that follow from them. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, final

from certibox.confidence import recorded
from certibox.confidence.binomial import lower_confidence_bound, top_two_bounds
from certibox.confidence.gaussian import Gaussian, NoiseLaw, smallest_n
from certibox.confidence.looks import smallest_unanimous
from certibox.confidence.sequential import RULES, Rule
from certibox.confidence.stopping import Decision, RuleTable, StoppingRule, asked
from certibox.errors import InvalidInput
from certibox.records.certificates import check_votes, plain_fields


@final
@dataclass(frozen=True)
class Certificate:
    """What n0 + n answers prove about g at one image; integer counts, so that another alpha costs nothing."""

    label: int | None
    """Certified class, or None for an abstention."""
    radius: float
    """Certified l2 radius, in pixels on [0, 1]; g is constant within it unless the bound failed (probability at most
    alpha over the seed). 0 for an abstention."""
    p_lower: float
    """Lower bound of the selected class's probability under the noise."""
    selected: int
    """Class that the n0 selection votes picked."""
    counts: tuple[int, ...]
    """Estimation votes per class (K,), without the n0 selection votes."""
    n0: int
    """Number of selection votes."""
    n: int
    """Number of estimation votes drawn; a stopping rule may have ended them below its maximum."""
    alpha: float
    """Failure probability of the certificate."""
    sigma: float
    """Standard deviation of the noise, in pixels on [0, 1]."""
    seed: int
    """Seed of the noise."""
    queries: int
    """Number of queries, n0 + n."""
    image: str
    """SHA-256 (hex) of the float image."""
    second_class: bool = False
    """Whether the radius also rests on an upper bound of the other classes; half of alpha is then `p_lower`'s."""
    rule: dict[str, Any] | None = field(default=None, hash=False)
    """Stopping rule as plain values, with the maximum n as "cap" and the "alpha" it ran under, and "spent" where the
    queries of a run may have ended the votes before the rule did; None for a fixed n."""
    looks: tuple[tuple[int, int], ...] | None = None
    """Looks of the rule at the votes: (samples, votes for `selected`) so far; None for a fixed n."""
    stream: int = 1
    """Version of the streams that the noise is drawn from: 1 kept 32 bits of a block's seed, 2 keeps all."""

    @property
    def law(self) -> NoiseLaw:
        """Law of the noise under which the votes were drawn."""
        return Gaussian(self.sigma)

    def at_alpha(self, alpha: float, rules: RuleTable | None = None) -> Certificate:
        """The certificate that the same votes give at another alpha, fixed in advance; no query is spent.

        A sequential one was looked at and stopped under the alpha of its `rule`. The bounds of certibox's rules hold at
        all looks at once, at every level, so they hold at its last look at the new level too, whatever ended the
        sampling; but the new alpha itself might have stopped sooner or gone on, so this is not the certificate of
        another run. A rule of your own is asked by its `p_lower_at`, and has no other alpha without one.

        Args:
            alpha: Failure probability of the certificate, in (0, 1), chosen without these votes.
            rules: Builders of stopping rules of your own, by the names in their `as_dict`.

        Raises:
            InvalidInput: if n votes cannot certify anything at alpha, the looks are not where the rule's are, or the
                rule is not known.
        """
        p_lower, radius = self._bounds(alpha, rules)
        label = self.selected if radius > 0 else None
        return replace(self, label=label, radius=radius, p_lower=p_lower, alpha=alpha)

    def replay(self, rules: RuleTable | None = None) -> Certificate:
        """This certificate, computed again from its votes; `InvalidInput` unless that gives what it states.

        A sequential one must have looked where its rule looks, gone on where it goes on and stopped where it stops.

        Args:
            rules: Builders of stopping rules of your own, by the names in their `as_dict`; a rule must be built as it
                was when the certificate was made, and certibox takes its bound as it is.
        """
        self._check_counts()
        self._check_path(rules)
        again = self.at_alpha(self.alpha, rules)
        self._check_bounds((again.p_lower, again.radius), again.label)
        return again

    def require_true(self, rules: RuleTable | None = None) -> None:
        """Raise `InvalidInput` unless this certificate follows from its votes, as far as its rule is known here.

        Args:
            rules: Builders of stopping rules of your own, by the names in their `as_dict`; of a rule that neither they
                nor certibox build, the bound is taken as stated.
        """
        if self.rule is not None and self.rule["name"] not in {**RULES, **(rules or {})}:
            return
        ended = self._check_path(rules)
        if self.rule is not None and ended is not None and self.rule["alpha"] == self.alpha:
            p_lower = ended.p_lower  # what `_bounds` would compute again
            radius = reach(self.law, recorded.rule_from_dict(self.rule, rules), p_lower)
        else:
            p_lower, radius = self._bounds(self.alpha, rules)
        self._check_bounds((p_lower, radius), self.selected if radius > 0 else None)

    def _check_path(self, rules: RuleTable | None) -> Decision | None:
        """What the rule says at the last look, with `InvalidInput` unless it ends the votes there and not before."""
        if self.rule is not None:
            last, end = (self.looks or ())[-1:], (self.n, self.counts[self.selected])
            if self.second_class or last != (end,):
                came = f"the votes are {end[1]} of {end[0]}, second_class is {self.second_class}"
                raise InvalidInput(
                    f"the last look is {list(last)}, {came}; a rule bounds the top class alone: discard it"
                )
            ended = recorded.replay(self.rule, self.looks or (), self.law, rules)
            if not ended.stop and not self.rule.get("spent"):  # then any look may be the last
                raise InvalidInput(f"its looks end at {self.n} samples, where the rule goes on; discard it")
            return ended
        return None

    def _check_bounds(self, follow: tuple[float, float], label: int | None) -> None:
        """Raise `InvalidInput` unless what follows from the votes, (p_lower, radius) and the class, is stated."""
        pairs = zip(follow, (self.p_lower, self.radius), strict=True)  # SciPy may round otherwise elsewhere
        if label != self.label or not all(math.isclose(*pair, rel_tol=1e-9) for pair in pairs):
            came = f"class {self.label} within {self.radius} (p_lower {self.p_lower})"
            follows = f"class {label} within {follow[1]} ({follow[0]})"
            raise InvalidInput(f"{came} is stated, but {follows} follows from the votes; discard it")

    def as_dict(self) -> dict[str, object]:
        """The fields as plain values, ready for JSON; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Certificate:
        """The certificate that `as_dict` gave, before or after it was JSON.

        The fields must fit each other, and the radius must follow from the votes; of a stopping rule of your own, the
        bound is taken as stated, and `replay` checks it.

        Args:
            values: Fields of a certificate by their names.

        Raises:
            InvalidInput: for fields that are missing, unknown, of another type, or contradict each other.
        """
        try:
            made = cls(**plain_fields(cls, json.loads(json.dumps(dict(values)))))
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"this is no certificate: {error}; wanted what Certificate.as_dict gave") from error
        check_votes(made, made.label, "the certificate")
        made.require_true()
        return made

    def _check_counts(self) -> None:
        """Raise `InvalidInput` unless the numbers of votes and queries fit each other."""
        if self.n0 < 1 or self.queries != self.n0 + self.n:
            came = f"{self.queries} queries are stated, with n0 = {self.n0} and n = {self.n}"
            raise InvalidInput(f"{came}; wanted n0 >= 1 and their sum: discard it")
        if sum(self.counts) != self.n or not 0 <= self.selected < len(self.counts):
            came = f"n = {self.n} and class {self.selected} are stated, with the votes {list(self.counts)}"
            raise InvalidInput(f"{came}: discard it")

    def _bounds(self, alpha: float, rules: RuleTable | None) -> tuple[float, float]:
        """The lower bound of the selected class's probability at level alpha, and the radius that the votes prove."""
        if self.rule is None:
            return fixed_bounds(self.law, self.counts, self.selected, alpha, self.second_class)
        p_lower = recorded.p_lower_at(self.rule, self.looks or (), self.law, alpha, rules)
        return p_lower, reach(self.law, recorded.rule_from_dict(self.rule, rules), p_lower)


@final
@dataclass(frozen=True)
class Prediction:
    """g's class at one image, or an abstention where the top two classes cannot be told apart at level alpha."""

    label: int | None
    """Class with the most votes, or None for an abstention."""
    counts: tuple[int, ...]
    """Votes per class (K,)."""
    p_value: float
    """P-value of "the top two classes are equally likely"; under a rule, the smallest alpha that it answers at."""
    n: int
    """Number of votes."""
    alpha: float
    """Probability of a wrong class that is accepted."""
    sigma: float
    """Standard deviation of the noise, in pixels on [0, 1]."""
    seed: int
    """Seed of the noise."""
    queries: int
    """Number of queries: n, and the first ones of a rule."""
    stream: int = 1
    """Version of the stream that the noise is drawn from, as in `Certificate`."""
    first: tuple[int, ...] = ()
    """First votes per class (K,), which weigh the classes under a rule and are not among `counts`."""
    rule: dict[str, Any] | None = field(default=None, hash=False)
    """Rule that ended the votes as plain values, with the maximum n as "cap"; None for a fixed n."""


def fixed_bounds(
    law: NoiseLaw, counts: Sequence[int], selected: int, alpha: float, second_class: bool
) -> tuple[float, float]:
    """The bound of the selected class's probability from a fixed number of votes, and the radius that they prove.

    Args:
        law: Law of the noise.
        counts: Estimation votes per class (K,).
        selected: Class that is certified, picked without these votes.
        alpha: Failure probability of the radius, in (0, 1).
        second_class: Whether an upper bound of the other classes takes half of alpha.

    Raises:
        InvalidInput: if even unanimous votes could only abstain.
    """
    share, n = top_share(alpha, len(counts), second_class), sum(counts)
    require_certifiable(n, share)
    p_lower = lower_confidence_bound(counts[selected], n, share)
    if second_class:
        return p_lower, law.second_class_radius(*top_two_bounds(counts, selected, alpha))
    return p_lower, law.radius(p_lower)


def reach(law: NoiseLaw, rule: StoppingRule, p_lower: float) -> float:
    """The radius of a rule's bound; a radius whose threshold the bound reaches is certified, however Φ⁻¹ rounds.

    Args:
        law: Law of the noise.
        rule: Stopping rule that gave the bound.
        p_lower: Lower bound of the selected class's probability.
    """
    decided = [r for r, p0 in zip(rule.radii or (), asked(rule, law), strict=False) if p0 <= p_lower]
    return max([law.radius(p_lower), *decided[-1:]])


def require_certifiable(n: int, alpha: float) -> None:
    """Raise `InvalidInput`, naming the smallest n, if even n unanimous votes could only abstain at alpha.

    Args:
        n: Number of estimation votes.
        alpha: Failure probability of the bound of the top class.
    """
    smallest = smallest_n(alpha)
    if n < smallest:
        raise InvalidInput(
            f"n = {n} can only abstain at alpha = {alpha}, even with unanimous votes; the smallest n is {smallest}"
        )


def out_of_reach(rule: StoppingRule, n: int, alpha: float, law: NoiseLaw) -> str | None:
    """A line that names the radii of `rule` that even n unanimous votes cannot certify; None where there are none.

    n certifies at least the smallest radius, or `sizes` refuses it. Each radius has the smallest n that can certify
    it beside the others: more looks may leave each a lower level, so that n is the fixed point of what its looks ask.

    Args:
        rule: Stopping rule; of one that is not certibox's nothing is known.
        n: Maximum number of votes.
        alpha: Failure probability of the certificate.
        law: Law of the noise.
    """
    if not isinstance(rule, Rule):
        return None
    open_, thresholds = [], asked(rule, law)
    for radius, p0 in zip(rule.radii or (), thresholds, strict=False):
        smallest = n
        while True:
            level = rule.level(alpha, len(rule.sizes(smallest, alpha, thresholds)))
            needed = smallest_unanimous(rule, p0, level)
            if needed <= smallest:
                break
            smallest = needed
        if smallest > n:
            open_.append(f"r = {radius:g} (the smallest n is {smallest:,})")
    return f"n = {n:,} cannot certify {', '.join(open_)}: 0 % there says nothing of the model" if open_ else None


def top_share(alpha: float, num_classes: int, second_class: bool) -> float:
    """What of alpha bounds the top class: half beside a bound of the others; all of it for two classes.

    Args:
        alpha: Failure probability of the radius.
        num_classes: Number of classes K.
        second_class: Whether the other classes are bounded too.
    """
    return alpha / 2 if second_class and num_classes > 2 else alpha

"""What a stopping rule is: a stranger's object that looks at votes at sizes fixed beforehand, and says when to stop.

Rules know probabilities and no noise: a certificate of radius r claims p > p0, where p0 is the probability that the law
of the noise needs for r (`NoiseLaw.needed_p`). `asked` makes these thresholds, once, from the radii of a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

from certibox.confidence.gaussian import NoiseLaw
from certibox.errors import InvalidInput

Looks = Sequence[tuple[int, int]]


@final
@dataclass(frozen=True)
class Decision:
    """What a rule says after a look."""

    stop: bool
    """Whether sampling ends here; it ends at the maximum n in any case."""
    p_lower: float
    """Lower bound on p that holds at this moment, in [0, 1); 0 when nothing is proven."""
    why: str
    """Reason of the end: "certified" (every radius asked is proven), "tolerance" (the radius is as near to what the
    maximum n would give as asked), "futile" (no open radius is in reach of the maximum n), "cap" (the maximum n is
    reached), or "" (sampling goes on). A rule of your own may say anything."""


@runtime_checkable
class StoppingRule(Protocol):
    """When to look at the votes, and when to stop; what `certify` takes as `rule`.

    Votes on the selected class are independent with success probability p. For every true p, the largest bound
    `Decision.p_lower` of all looks may exceed p with probability at most alpha. certibox takes a rule's bound as it is:
    a certificate under a rule whose bound is wrong is false more often than alpha, and nothing here can see that. A
    rule of your own is recorded in every certificate by its `as_dict`, and replayed by what you give as `rules`.
    """

    @property
    def radii(self) -> Sequence[float] | None:
        """Radii that the rule decides, in pixels, ascending; None where it decides none in particular."""
        ...

    def sizes(self, n: int, alpha: float, thresholds: Sequence[float]) -> tuple[int, ...]:
        """Ascending sample sizes of the looks; the last is n.

        Args:
            n: Maximum number of votes.
            alpha: Failure probability of the certificate, in (0, 1).
            thresholds: Probabilities that `radii` need under the noise, ascending; without radii, the one that any
                positive radius needs.

        Raises:
            InvalidInput: if even n unanimous votes could only abstain.
        """
        ...

    def decide(self, looks: Looks, n: int, alpha: float, thresholds: Sequence[float]) -> Decision:
        """What follows from the looks so far; a function of its arguments and the rule's settings alone.

        Args:
            looks: Pairs (samples so far, successes so far) at the first sizes, the latest last.
            n: Maximum number of votes.
            alpha: Failure probability of the certificate, in (0, 1).
            thresholds: Probabilities that `radii` need under the noise, as in `sizes`.
        """
        ...

    def as_dict(self) -> dict[str, Any]:
        """Settings as values of JSON, with the rule's "name" and its "radii"; keywords that build the rule again.

        Neither "cap" nor "alpha" may be among them: certificates add the maximum n and the alpha under these names.
        """
        ...


@runtime_checkable
class AnyLevelRule(StoppingRule, Protocol):
    """A rule whose bounds hold together at every failure probability; `Certificate.at_alpha` asks for one."""

    def p_lower_at(self, looks: Looks, n: int, alpha: float, thresholds: Sequence[float], at: float) -> float:
        """The bound that looks made for `alpha` give at another failure probability.

        Args:
            looks: Pairs (samples so far, successes so far) of a finished certificate.
            n: Maximum number of votes.
            alpha: Failure probability under which the looks were made.
            thresholds: Probabilities that `radii` need under the noise, as in `sizes`.
            at: Failure probability of the bound asked for, chosen without these votes.
        """
        ...


@runtime_checkable
class WatchedRule(StoppingRule, Protocol):
    """A rule that can tell cheaply that it goes on, without the bound that `decide` computes."""

    def watch(self, n: int, alpha: float, thresholds: Sequence[float]) -> Callable[[int, int], bool]:
        """A function that is told of each look in turn, samples and successes so far, and whether sampling goes on.

        Where it says yes, `decide` would not stop; where it says no, `decide` is asked.

        Args:
            n: Maximum number of votes.
            alpha: Failure probability of the certificate.
            thresholds: Probabilities that `radii` need under the noise, as in `sizes`.
        """
        ...


def watched(rule: StoppingRule, n: int, alpha: float, thresholds: Sequence[float]) -> Callable[[int, int], bool] | None:
    """What tells that a rule goes on, see `WatchedRule`; None for a rule that has to decide at every look.

    Args:
        rule: Stopping rule, of ours or of a stranger.
        n: Maximum number of votes.
        alpha: Failure probability of the certificate.
        thresholds: What `asked` gave for the rule.
    """
    return rule.watch(n, alpha, thresholds) if isinstance(rule, WatchedRule) else None


RuleTable = Mapping[str, Callable[..., StoppingRule]]  # name in records -> what builds the rule from its settings


def asked(rule: StoppingRule, law: NoiseLaw) -> tuple[float, ...]:
    """The thresholds of a rule: the probability that each of its radii needs, or that any positive radius needs.

    Args:
        rule: Stopping rule, of ours or of a stranger.
        law: Law of the noise.
    """
    radii = (0.0,) if rule.radii is None else rule.radii
    return tuple(law.needed_p(float(radius)) for radius in radii)


def due(rule: StoppingRule, n: int, alpha: float, thresholds: Sequence[float]) -> tuple[int, ...]:
    """The sample sizes at which a rule looks, checked.

    Args:
        rule: Stopping rule, of ours or of a stranger.
        n: Maximum number of votes.
        alpha: Failure probability of the certificate.
        thresholds: What `asked` gave for the rule.

    Raises:
        InvalidInput: if they do not ascend to n, or the rule refuses n.
    """
    sizes = tuple(int(size) for size in rule.sizes(n, alpha, thresholds))
    if not sizes or sizes[0] < 1 or sizes[-1] != n or list(sizes) != sorted(set(sizes)):
        came = f"the stopping rule {type(rule).__name__} looks at {list(sizes)} samples"
        raise InvalidInput(f"{came}; wanted ascending sizes that end at n = {n}")
    return sizes


def decided(rule: StoppingRule, looks: Looks, n: int, alpha: float, thresholds: Sequence[float]) -> Decision:
    """What a rule says of its looks, checked; at n it says to stop.

    Args:
        rule: Stopping rule, of ours or of a stranger.
        looks: Pairs (samples so far, successes so far), the latest last.
        n: Maximum number of votes.
        alpha: Failure probability of the certificate.
        thresholds: What `asked` gave for the rule.

    Raises:
        InvalidInput: if the answer is no `Decision` with a bound in [0, 1).
    """
    decision = rule.decide(looks, n, alpha, thresholds)
    if not isinstance(decision, Decision) or not 0.0 <= decision.p_lower < 1.0:
        came = f"the stopping rule {type(rule).__name__} decided {decision!r} after {looks[-1][0]} votes"
        raise InvalidInput(f"{came}; wanted a Decision with p_lower at least 0 and below 1")
    return Decision(bool(decision.stop) or looks[-1][0] >= n, float(decision.p_lower), str(decision.why))

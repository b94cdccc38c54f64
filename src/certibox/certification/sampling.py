"""How many votes a certificate may take, and when they end: one value, checked once. No torch."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, final

from certibox.certification.certificate import require_certifiable, top_share
from certibox.confidence import recorded
from certibox.confidence.binomial import check_alpha
from certibox.confidence.gaussian import NoiseLaw
from certibox.confidence.stopping import StoppingRule, asked, due
from certibox.errors import InvalidInput

# What the command line and `CertifiedClassifier` do unless told otherwise; studies/sequential_certification.py has the
# figures. Functions have no such defaults.
GRID = (0.5, 1.0, 2.0)  # radii that a sequential rule decides, in units of sigma
FIXED, SEQUENTIAL = (100, 10_000), (25, 100_000)  # n0 and n
EARLY = (5, 1_500)  # n0 and n of a prediction that ends early, chosen with the settings of its rule
ALPHA = 0.001


@final
@dataclass(frozen=True)
class Sampling:
    """The votes of a certificate: `certify`, `certify_dataset`, the command line and the paper's tables all take one.

    Raises:
        InvalidInput: if n0 < 1, alpha is outside (0, 1), n can only abstain at alpha, the rule is no `StoppingRule`, or
            a rule is given beside second_class.
    """

    n0: int
    """Number of votes that pick the class, at least 1. They never bound anything: a wrong class costs an abstention."""
    n: int
    """Number of votes that bound the class's probability; with a rule, the maximum of them."""
    alpha: float
    """Failure probability of a certificate, in (0, 1)."""
    rule: StoppingRule | None = None
    """Stopping rule, such as `EProcess`, or an object of your own; None draws all n votes."""
    second_class: bool = False
    """Whether the other classes are bounded from above too, with alpha split; for a fixed n only."""
    spent: bool = False
    """Whether something besides the rule, and blind to what is to come, may end the votes at any look: a number of
    queries to spend, see `certify_dataset`, or a time limit. For a rule only."""

    def __post_init__(self) -> None:
        plain = {  # as JSON has them
            "n0": _votes("n0", self.n0),
            "n": _votes("n", self.n),
            "alpha": _number(self.alpha),
            "second_class": bool(self.second_class),
            "spent": bool(self.spent),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        check_alpha(self.alpha)
        if self.spent and self.rule is None:
            raise InvalidInput("only a rule proves something before n; wanted a rule such as EProcess(radii=(0.25,))")
        if self.n0 < 1:
            raise InvalidInput(f"n0 is {self.n0}; wanted at least 1 vote that picks a class")
        if self.rule is None:
            require_certifiable(self.n, self.alpha)
            return
        recorded.check_rule(self.rule)
        if self.second_class:
            raise InvalidInput(
                "second_class is for a fixed n, and a rule bounds the top class alone; wanted one of them"
            )

    def sizes(self, law: NoiseLaw, num_classes: int) -> tuple[int, ...]:
        """Numbers of samples at which a certificate looks at its votes: those of the rule, or n alone.

        Args:
            law: Law of the noise.
            num_classes: Number of classes K.

        Raises:
            InvalidInput: if even unanimous votes could only abstain.
        """
        if self.rule is not None:
            return due(self.rule, self.n, self.alpha, asked(self.rule, law))
        require_certifiable(self.n, top_share(self.alpha, num_classes, self.second_class))
        return (self.n,)

    def reserve(self, images: int) -> int:
        """Queries that so many images are sure to take; with a rule, that the next of them may take.

        Args:
            images: Number of images.
        """
        return (images if self.rule is None else min(images, 1)) * (self.n0 + self.n)

    def record(self) -> dict[str, Any] | None:
        """The rule as certificates keep it, with the maximum n and alpha; None for a fixed n."""
        return recorded.record(self.rule, self.n, self.alpha, self.spent) if self.rule is not None else None

    def as_dict(self) -> dict[str, Any]:
        """The fields as values of JSON, the rule as certificates keep it."""
        plain = {"n0": self.n0, "n": self.n, "alpha": self.alpha, "second_class": self.second_class}
        return plain | {"rule": self.record()}


def sampling_of(
    sampling: Sampling | None,
    n0: int | None,
    n: int | None,
    alpha: float | None,
    rule: StoppingRule | None,
    second_class: bool,
) -> Sampling:
    """The sampling that was given whole, or by its parts.

    Args:
        sampling: Whole sampling; the parts must then be absent.
        n0: Number of votes that pick the class.
        n: Number of votes that bound its probability, at most.
        alpha: Failure probability of a certificate.
        rule: Stopping rule, None for a fixed n.
        second_class: Whether the other classes are bounded from above too.

    Raises:
        InvalidInput: for both or neither, and whatever `Sampling` refuses.
    """
    parts = {"n0": n0, "n": n, "alpha": alpha, "rule": rule, "second_class": second_class or None}
    if sampling is None:
        if n0 is None or n is None or alpha is None:
            missing = ", ".join(name for name in ("n0", "n", "alpha") if parts[name] is None)
            raise InvalidInput(f"{missing} not given; wanted n0, n and alpha, or sampling=Sampling(n0, n, alpha)")
        return Sampling(n0, n, alpha, rule, second_class)
    if not isinstance(sampling, Sampling):
        raise InvalidInput(f"sampling is a {type(sampling).__name__}; wanted certibox.Sampling(n0, n, alpha)")
    if twice := [name for name, value in parts.items() if value is not None]:
        raise InvalidInput(f"sampling and {twice[0]} are both given; wanted {twice[0]} inside Sampling(...)")
    return sampling


def whole(name: str, value: Any, least: int | None = None, of: str = "") -> int:
    """A whole number as an int, refused by its name where it is something else.

    Args:
        name: Name of the parameter.
        value: Number that came.
        least: Smallest number that is taken; None for any.
        of: Words that say what is counted.
    """
    try:
        number = operator.index(value)
    except TypeError as error:
        raise InvalidInput(f"{name} is {value!r}; wanted a whole number{of}") from error
    if least is not None and number < least:
        raise InvalidInput(f"{name} is {number}; wanted at least {least}")
    return number


def _votes(name: str, value: Any) -> int:
    """A number of votes as an int: whole floats such as 1e4 too."""
    return whole(name, int(value) if isinstance(value, float) and value.is_integer() else value, of=" of votes")


def _number(alpha: Any) -> float:
    try:
        return float(alpha)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"alpha is {alpha!r}; wanted a failure probability, such as 0.001") from error

"""What every row and certificate obeys, whoever wrote it: fields that do not contradict each other."""

from __future__ import annotations

import math
import re
from typing import Any, Protocol

from certibox.confidence.gaussian import NoiseLaw
from certibox.errors import InvalidInput
from certibox.storage.settings import LONGEST

MOST = 1 << 53  # the largest integer up to which floats hold all of them
VERSIONS = (1, 2)  # of the streams of noise, see `certification.noise`


_IMAGE = re.compile("[0-9a-f]{64}")


class Outcome(Protocol):
    """What every report needs to know of one image; `CertificateRow` and `PublishedRow` both satisfy it."""

    @property
    def idx(self) -> int: ...
    @property
    def label(self) -> int | None: ...
    @property
    def predict(self) -> int | None: ...
    @property
    def radius(self) -> float: ...
    @property
    def correct(self) -> bool | None: ...
    @property
    def seconds(self) -> float: ...


class Votes(Protocol):
    """What a certificate states of its votes; `CertificateRow` and `certification.Certificate` both satisfy it."""

    @property
    def radius(self) -> float: ...
    @property
    def selected(self) -> int: ...
    @property
    def p_lower(self) -> float: ...
    @property
    def counts(self) -> tuple[int, ...]: ...
    @property
    def n0(self) -> int: ...
    @property
    def n(self) -> int: ...
    @property
    def queries(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def image(self) -> str: ...
    @property
    def sigma(self) -> float: ...
    @property
    def law(self) -> NoiseLaw: ...
    @property
    def second_class(self) -> bool: ...
    @property
    def rule(self) -> dict[str, Any] | None: ...
    @property
    def looks(self) -> tuple[tuple[int, int], ...] | None: ...


def check_votes(votes: Votes, predict: int | None, where: str) -> None:
    """Raise `InvalidInput` for votes that contradict what is stated of them.

    Args:
        votes: Row or certificate.
        predict: Certified class; None for an abstention.
        where: Words that name the row or certificate in the message.
    """
    _check_radius(votes.radius, predict, where)
    require(0 < votes.alpha < 1, where, f"alpha {votes.alpha}, wanted strictly between 0 and 1")
    require(sum(votes.counts) == votes.n, where, f"{sum(votes.counts)} votes for n = {votes.n}")
    require(0 <= votes.selected < len(votes.counts), where, f"no votes for the selected class {votes.selected}")
    require(predict in (None, votes.selected), where, f"predict {predict}, but {votes.selected} selected")
    require(0 <= votes.p_lower <= 1, where, f"p_lower {votes.p_lower} outside [0, 1]")
    require(0 < votes.sigma < math.inf, where, f"sigma {votes.sigma}, wanted finite and > 0")
    queries = f"{votes.queries} queries are stated, with n0 = {votes.n0} and n = {votes.n}"
    require(votes.n0 >= 1 and votes.queries == votes.n0 + votes.n, where, f"{queries}; wanted n0 >= 1 and their sum")
    digest = f"image {shown(votes.image)}, wanted a SHA-256 as 64 hex digits"
    require(_IMAGE.fullmatch(votes.image) is not None, where, digest)
    require((votes.rule is None) == (votes.looks is None), where, "a rule and its looks go together")
    if votes.rule is not None and votes.looks is not None:
        _check_looks(votes, votes.rule, votes.looks, where)


def _check_looks(votes: Votes, rule: dict[str, Any], looks: tuple[tuple[int, int], ...], where: str) -> None:
    """What any sequential certificate obeys; whether its looks are where the rule puts them, a replay tells."""
    name, radii, cap, ran = (rule.get(key) for key in ("name", "radii", "cap", "alpha"))
    end = (votes.n, votes.counts[votes.selected])
    require(isinstance(name, str) and name != "", where, f"a rule with the name {shown(name)}, wanted one")
    require(radii is None or _ascending(radii), where, f"a rule with the radii {shown(radii)}, wanted ascending ones")
    most = f"wanted at most 2^53 of them, and no fewer than n = {votes.n}"
    require(type(cap) is int and votes.n <= cap <= MOST, where, f"a rule with the cap {shown(cap)}, {most}")
    require(type(ran) is float and 0 < ran < 1, where, f"a rule that ran at alpha = {shown(ran)}")
    require(looks[-1:] == (end,), where, f"the last look is {looks[-1:]}, but the votes are {end}")
    for (n, successes), (later_n, later) in zip(((0, 0), *looks), looks, strict=False):
        # Between two looks there is a sample at least, and each of them is a vote for `selected` or another class.
        require(0 <= later - successes <= later_n - n != 0, where, f"no look {later_n, later} follows {n, successes}")
    reached = votes.law.radius(votes.p_lower)
    require(
        math.isclose(votes.radius, reached, rel_tol=1e-9), where, f"radius {votes.radius}, not the {reached} of p_lower"
    )
    require(not votes.second_class, where, "a rule and a bound of the second class; there is no such certificate")


def _ascending(radii: Any) -> bool:
    """Whether these are radii that a rule can decide: finite numbers >= 0, each larger than the one before."""
    numbers = isinstance(radii, list) and radii and all(type(radius) in (int, float) for radius in radii)
    return bool(numbers and radii[0] >= 0 and radii[-1] < math.inf and radii == sorted(set(radii)))


def shown(value: Any) -> str:
    """A value in a message, cut to `settings.LONGEST` characters: it may be all that a stranger's file holds.

    Args:
        value: Value that came.
    """
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return f"a number of {value.bit_length()} bits"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _check_radius(radius: float, predict: int | None, where: str) -> None:
    require(math.isfinite(radius) and radius >= 0, where, f"radius {radius}, wanted finite and >= 0")
    require(predict is not None or radius == 0, where, f"radius {radius} on an abstention, wanted 0")


def require(holds: bool, where: str, contradiction: str) -> None:
    """Raise `InvalidInput` for what does not hold.

    Args:
        holds: Whether it holds.
        where: Words that name the row or certificate in the message.
        contradiction: What came, in words.
    """
    if not holds:
        raise InvalidInput(f"{where}: {contradiction}; fix what wrote it")


def check_outcome(row: Outcome) -> None:
    """Raise `InvalidInput` for an outcome that contradicts itself.

    Args:
        row: One image's outcome, of ours or published.
    """
    where = f"row of image {shown(row.idx)}"
    require(row.idx >= 0, where, f"idx {row.idx}, wanted a position from 0 on")
    require(row.label is None or row.label >= 0, where, f"label {row.label}, wanted a class from 0 on")
    require(row.predict is None or row.predict >= 0, where, f"predict {row.predict}, wanted a class from 0 on")
    require(0 <= row.seconds <= MOST, where, f"{row.seconds} seconds, wanted a time that is finite and >= 0")
    _check_radius(row.radius, row.predict, where)
    correct = None if row.label is None else row.predict == row.label
    require(row.correct is correct, where, f"correct is {row.correct} for label {row.label} and predict {row.predict}")


def check_stream(stream: int) -> int:
    """The version of a stream of noise, if there is such a one.

    Args:
        stream: Version.

    Raises:
        InvalidInput: There is no such version.
    """
    if isinstance(stream, bool) or stream not in VERSIONS:
        raise InvalidInput(f"stream is {stream!r}; wanted {' or '.join(str(known) for known in VERSIONS)}")
    return int(stream)

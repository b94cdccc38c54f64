"""What a request asks for, within what the server allows: how sure, how far, for how many queries and how long."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from certibox.certification.pieces import Drawn
from certibox.certification.sampling import ALPHA, EARLY, GRID, SEQUENTIAL, Sampling
from certibox.certification.smoothing import SmoothedClassifier
from certibox.confidence.ranks import RankVerification
from certibox.confidence.sequential import EProcess
from certibox.errors import InvalidInput, did_you_mean, one_line
from certibox.serving.protocol import Refused
from certibox.serving.tickets import Vote

KNOWN = ("alpha", "radius", "max_queries", "timeout_ms", "certify", "timeout")
_MICROSECONDS = "timeout"  # as clients of Triton give it


@dataclass(frozen=True)
class Limits:
    """What one request may take, and what it gets where it does not say.

    Raises:
        InvalidInput: A number is out of range.
    """

    n: int = 1000
    """Most queries an image where the request does not say."""
    max_queries: int = 10_000
    """Most queries an image that a request may ask for."""
    alpha: float = ALPHA
    """Failure probability of an answer where the request does not say."""
    max_images: int = 64
    """Most images in a request."""
    max_waiting: int = 256
    """Most images in flight; one more is answered 429."""
    max_body: int = 16 << 20
    """Most bytes of a request."""
    timeout: float = 60.0
    """Most seconds that a request may take."""

    def __post_init__(self) -> None:
        for name in ("n", "max_queries", "max_images", "max_waiting", "max_body"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidInput(f"{name} is {value!r}; wanted a whole number of at least 1")
        if self.n > self.max_queries:
            raise InvalidInput(f"n is {self.n}, above max_queries, {self.max_queries}; wanted at most that")
        if not (isinstance(self.timeout, int | float) and 0 < self.timeout < math.inf):
            raise InvalidInput(f"timeout is {self.timeout!r}; wanted seconds above 0")
        Sampling(SEQUENTIAL[0], max(1, self.n - SEQUENTIAL[0]), self.alpha, EProcess(radii=(0.0,)))


@dataclass(frozen=True)
class Terms:
    """What a request asks for."""

    certify: bool
    """Whether a radius is wanted, or a class alone."""
    alpha: float
    """Failure probability of the answer."""
    radius: float | None
    """The one radius to decide, in pixels on [0, 1]; None for sigma/2, sigma and 2 sigma."""
    queries: int
    """Most queries an image."""
    seconds: float
    """Most seconds."""

    def begin(self, smoothed: SmoothedClassifier, x: Tensor, drawn: Drawn) -> Vote:
        """The votes of an image, of which nothing is asked yet.

        Args:
            smoothed: Smoothed classifier.
            x: Image (c, h, w), float pixels on [0, 1].
            drawn: How its noise is drawn.

        Raises:
            InvalidInput: So many queries could only abstain.
        """
        if not self.certify:
            n0 = EARLY[0]
            return smoothed.begin_prediction(x, n0, max(1, self.queries - n0), self.alpha, RankVerification(), drawn)
        n0 = SEQUENTIAL[0]
        radii = tuple(share * smoothed.sigma for share in GRID) if self.radius is None else (self.radius,)
        n = max(1, self.queries - n0)  # what is too few is refused by name below
        return smoothed.begin(x, Sampling(n0, n, self.alpha, EProcess(radii=radii), spent=True), drawn)

    @property
    def first(self) -> int:
        """Queries of these that pick or weigh a class, before those that prove something."""
        return SEQUENTIAL[0] if self.certify else EARLY[0]


def terms_of(parameters: Mapping[str, Any], limits: Limits) -> Terms:
    """The terms of a request.

    Args:
        parameters: Its parameters.
        limits: What it may take.

    Raises:
        Refused: A parameter is unknown, or out of range.
    """
    for name in parameters:
        if name not in KNOWN:
            raise Refused(400, f"the parameter {one_line(name, 40)!r} is not known{did_you_mean(name, KNOWN)}")
    certify = parameters.get("certify", True)
    if not isinstance(certify, bool):
        raise Refused(400, f"certify is {one_line(certify, 40)}; wanted true or false")
    alpha = _number(parameters, "alpha", limits.alpha)
    if not 0 < alpha < 1:
        raise Refused(400, f"alpha is {alpha:g}; wanted a failure probability above 0 and below 1")
    radius = _number(parameters, "radius", None)
    if radius is not None and not certify:
        raise Refused(400, "radius was given with certify false, which decides none; leave one of them out")
    if radius is not None and not 0 <= radius < math.inf:
        raise Refused(400, f"radius is {radius:g}; wanted an l2 radius of at least 0")
    queries = parameters.get("max_queries", limits.n)
    if type(queries) is not int or queries < 1:
        raise Refused(400, f"max_queries is {one_line(queries, 40)}; wanted a whole number of at least 1")
    if queries > limits.max_queries:
        raise Refused(400, f"max_queries is {queries}; this server takes at most {limits.max_queries} an image")
    if _MICROSECONDS in parameters and "timeout_ms" in parameters:
        raise Refused(400, "timeout (microseconds) and timeout_ms were both given; leave one of them out")
    seconds = limits.timeout
    for name, unit in (("timeout_ms", 1e-3), (_MICROSECONDS, 1e-6)):
        given = _number(parameters, name, None)
        if given is not None and given <= 0:
            raise Refused(400, f"{name} is {given:g}; wanted a time above 0")
        seconds = seconds if given is None else min(seconds, given * unit)
    return Terms(certify, alpha, radius, queries, seconds)


def _number(parameters: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    value = parameters.get(name)
    if value is None:
        return otherwise
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(400, f"{name} is {one_line(value, 40)}; wanted a number")
    return float(value)

"""The law of the noise: the radius of a probability, and the probability of a radius. Φ lives here alone.

A `NoiseLaw` is a value. Smoothing asks it for noisy copies of an image, certificates ask it for the radius that a bound
on a probability proves, and stopping rules are given the probabilities that their radii need: nothing else in the
package knows how the noise is distributed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol, final

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_ndtr, ndtr, ndtri

from certibox.confidence.binomial import check_alpha, top_two_bounds
from certibox.errors import InvalidInput

if TYPE_CHECKING:  # the tensors come from the caller: this module loads no torch
    import torch
    from torch import Tensor


SMALLEST_SIGMA = 1e-6
"""The smallest standard deviation: pixels near 1 are 6e-8 apart in float32, and smaller noise is rounded away."""


class NoiseLaw(Protocol):
    """The law of the noise of smoothing: how noise is drawn, and what radius a probability certifies."""

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise, in pixels on [0, 1]."""
        ...

    def radius(self, p: float) -> float:
        """Certified l2 radius of a class of probability at least p, in pixels; 0 where p proves nothing.

        Args:
            p: Lower bound of the probability of the class under the noise.
        """
        ...

    def needed_p(self, radius: float) -> float:
        """The smallest probability that is sure to certify `radius`, and a radius above 0.

        Args:
            radius: Radius asked, in pixels; 0 asks for any positive radius.
        """
        ...

    def second_class_radius(self, p_a: float, p_b: float) -> float:
        """Certified l2 radius from bounds on the two likeliest classes, in pixels; 0 where p_a <= p_b.

        Args:
            p_a: Lower bound of the probability of the certified class.
            p_b: Upper bound of the probability of every other class.
        """
        ...

    def noisy(self, x: Tensor, out: Tensor, generator: torch.Generator) -> Tensor:
        """Fill `out` with noisy copies of an image, and return it.

        Args:
            x: Image (c, h, w), pixels on [0, 1].
            out: Tensor (n, c, h, w) that receives n noisy copies.
            generator: Source of the randomness; equal generators give equal copies.
        """
        ...


@final
@dataclass(frozen=True)
class Gaussian:
    """Noise δ ~ N(0, σ² I), added to the pixels.

    Raises:
        InvalidInput: if sigma is no finite number of at least `SMALLEST_SIGMA`.
    """

    sigma: float
    """Standard deviation of the noise, in pixels on [0, 1]."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", _checked(self.sigma))

    def radius(self, p: float) -> float:
        """Certified l2 radius σ Φ⁻¹(p), in pixels; 0 where p <= 1/2 (Cohen et al. 2019, Theorem 1).

        Args:
            p: Lower bound of the probability of the class under the noise.
        """
        return self.sigma * float(ndtri(p)) if p > 0.5 else 0.0

    def needed_p(self, radius: float) -> float:
        """The smallest p that is sure to give `radius(p) >= radius`, and > 0: Φ(radius / σ), rounded up.

        Args:
            radius: Radius asked, in pixels; 0 asks for any positive radius.

        Raises:
            InvalidInput: if radius / σ is so large that no float below 1 gives it.
        """
        return _needed_p(self, radius)

    def second_class_radius(self, p_a: float, p_b: float) -> float:
        """Certified l2 radius σ/2 (Φ⁻¹(p_a) − Φ⁻¹(p_b)), in pixels; 0 where p_a <= p_b (Cohen et al. 2019, Theorem 1).

        Args:
            p_a: Lower bound of the probability of the certified class.
            p_b: Upper bound of the probability of every other class; with 1 − p_a the radius is `radius(p_a)`.
        """
        return self.sigma / 2 * float(ndtri(p_a) - ndtri(p_b)) if p_a > p_b else 0.0

    def smallest_n(self, alpha: float, radius: float = 0.0) -> int:
        """The smallest n with which unanimous votes certify a radius above 0, or at least `radius`.

        n unanimous votes give the bound alpha^(1/n), which must exceed 1/2 (or reach Φ(radius / σ)). At alpha = 0.001:
        10, 301 for 2σ, 5,114 for 3σ.

        Args:
            alpha: Failure probability of the bound, in (0, 1).
            radius: Radius asked, in pixels; 0 asks for any positive radius.
        """
        check_alpha(alpha)
        n = max(1, math.ceil(math.log(alpha) / float(log_ndtr(radius / self.sigma))))
        strict = radius <= 0.0  # a radius of exactly 0 is an abstention
        return n + 1 if strict and alpha ** (1.0 / n) <= 0.5 else n

    def noisy(self, x: Tensor, out: Tensor, generator: torch.Generator) -> Tensor:
        """Fill `out` with x + δ, one draw a copy, and return it.

        Args:
            x: Image (c, h, w), pixels on [0, 1].
            out: Tensor (n, c, h, w) that receives n noisy copies.
            generator: Source of the randomness; equal generators give equal copies.
        """
        return out.normal_(0.0, self.sigma, generator=generator).add_(x)


def _checked(sigma: object) -> float:
    """A standard deviation as a float that noise in float32 can have."""
    try:
        number = float(sigma) if not isinstance(sigma, str | bool) else math.nan  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0.0 < number < math.inf:
        raise InvalidInput(f"sigma is {sigma!r}; wanted a positive standard deviation in pixels, such as 0.25")
    if number < SMALLEST_SIGMA:
        raise InvalidInput(
            f"sigma is {number:g}; wanted at least {SMALLEST_SIGMA:g}, in pixels on [0, 1]: smaller noise is rounded "
            "away when it is added to them"
        )
    return number


@lru_cache(maxsize=4096)
def _needed_p(law: Gaussian, radius: float) -> float:
    p = max(0.5, float(ndtr(radius / law.sigma)))
    while p < 1.0 and not (law.radius(p) >= radius and law.radius(p) > 0.0):
        p = float(np.nextafter(p, 1.0))
    if p >= 1.0:
        ratio = radius / law.sigma
        raise InvalidInput(f"radius {radius:g} is {ratio:.1f} sigma; no sample proves more than 8: ask for less")
    return p


def sigmas_of(p: ArrayLike) -> np.ndarray:
    """Φ⁻¹(p), elementwise: the Gaussian radius of a probability in units of sigma, negative below 1/2.

    Args:
        p: Probabilities on [0, 1], of any shape.
    """
    return ndtri(p)


def radius(p_lower: float, sigma: float) -> float:
    """Certified l2 radius σ Φ⁻¹(p_lower), in the units of σ; 0 when p_lower <= 1/2 (Cohen et al. 2019, Theorem 1).

    Args:
        p_lower: Lower bound of the probability of the class under the noise.
        sigma: Standard deviation of the noise, in pixels on [0, 1].
    """
    return Gaussian(sigma).radius(p_lower)


def threshold(radius: float, sigma: float) -> float:
    """The smallest p that is sure to give `radius`, and a radius above 0: Φ(radius / σ), rounded up.

    Args:
        radius: Radius asked, in pixels; 0 asks for any positive radius.
        sigma: Standard deviation of the noise, in pixels on [0, 1].

    Raises:
        InvalidInput: if radius / σ is so large that no float below 1 gives it, or σ is not positive.
    """
    return Gaussian(sigma).needed_p(radius)


def second_class_radius(counts: Sequence[int], selected: int, alpha: float, sigma: float) -> float:
    """Certified l2 radius σ/2 (Φ⁻¹(p_A) − Φ⁻¹(p_B)) from votes on all K classes, in the units of σ; 0 if p_A <= p_B.

    p_A and p_B are those of `top_two_bounds`, which says why both hold together. It pays where the rest of the votes is
    spread over several classes, and can certify p_A < 1/2; where one class holds nearly all the rest, or all votes
    agree, it gives slightly less than `radius` does, for alpha is split.

    Args:
        counts: Votes per class, (K,).
        selected: Class that is certified, picked without these votes.
        alpha: Failure probability of the radius, in (0, 1).
        sigma: Standard deviation of the noise, in pixels on [0, 1].
    """
    return Gaussian(sigma).second_class_radius(*top_two_bounds(counts, selected, alpha))


def smallest_n(alpha: float, radius: float = 0.0, sigma: float = 1.0) -> int:
    """The smallest n with which unanimous votes certify a radius above 0, or at least `radius`: `Gaussian.smallest_n`.

    Args:
        alpha: Failure probability of the bound, in (0, 1).
        radius: Radius asked, in the units of sigma; 0 asks for any positive radius.
        sigma: Standard deviation of the noise.
    """
    return Gaussian(sigma).smallest_n(alpha, radius)

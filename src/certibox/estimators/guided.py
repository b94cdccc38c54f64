"""Estimates that start from a surrogate's guess, and the measure of how good the guess is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, TypeGuard, final, runtime_checkable

import torch
from torch import Tensor

from certibox.errors import InvalidInput
from certibox.estimators.differences import (
    Block,
    Objective,
    Step,
    dimension_of,
    finite_difference,
    measured_slopes,
    settle_step,
)
from certibox.estimators.linear import Orthogonal
from certibox.storage import values


@runtime_checkable
class GuidedObjective(Protocol):
    """An objective with a surrogate that learns from its answers: what `Guided` wants."""

    def __call__(self, points: Tensor, active: Tensor | None = None) -> Tensor:
        """Losses (k, b), by queries; the surrogate is told the answers.

        Args:
            points: Points (k, b, d), k variants of each.
            active: Mask (k, b) of the points that are wanted; None for all.
        """
        ...

    def guess(self, points: Tensor) -> Tensor:
        """The surrogate's losses (k, b): differentiable, and no query.

        Args:
            points: Points (k, b, d), k variants of each.
        """
        ...

    def learn(self) -> None:
        """Let the surrogate learn from what it was told."""
        ...


@final
@dataclass(frozen=True)
class Guided:
    """Surrogate-guided estimate: the gradient of a surrogate g_s, corrected along q orthonormal directions.

        ĝ = t g_s + Σ w u [D_u ℓ − t D_u ℓ_s],   u_1 ∥ g_s with w = 1, the others random and orthogonal to it

    where D_u ℓ is the finite difference of the loss along u, and D_u ℓ_s the same difference of the surrogate's loss.
    Steps and curvature that the surrogate has learned cancel in the brackets.

    - Trust t = 1: every weight w is 1, and the estimate is g_s with its error removed along the q directions. The
      squared error is never above that of g_s, and is 0 at q = d.
    - Trust t = 0: the surrogate only chooses the first direction, and w = (d − 1)/(q − 1) makes the estimate unbiased.
    - Between, w is linear in t.
    - q = 0: the estimate is g_s itself. An image costs one query, from whose answer the surrogate learns.
    - q = "auto": every `probe_every` steps the cosine between g_s and the true gradient is measured (`alignment`).
      From the third measurement on, where the cosine is below `target`, as many directions are bought as lift the
      expected cosine to `target`, and t becomes the measured share of g_s that is true.

    With a jitter the surrogate sees how often each answer occurs around a point, which gives a slope to a box that
    answers in steps or with labels. Without a jitter, more votes pay only at a box with randomness of its own. A box
    that tells labels alone has no finite differences: q is 0 there, and mu is not used. Sources: control variates with
    a learned prior, as in Meier et al. NeurIPS 2019 and Cheng et al. NeurIPS 2019.

    Raises:
        InvalidInput: A value is out of its range, or the surrogate would learn from nothing.
    """

    q: int | Literal["auto"] = "auto"
    """Number of directions of correction, at most d; "auto" for as many as the measured cosine asks for."""
    mu: Step = "auto"
    """Step of the corrections and probes, in units of z; "auto" is measured when training starts."""
    central: bool = False
    """Whether the differences of corrections and probes are central."""
    surrogate: Literal["image", "latent"] = "image"
    """Inputs of the surrogate: `image` for a convolutional network on the images that the box sees, `latent` for a
    perceptron on the points themselves."""
    ask: float = 1.0
    """Share of a batch that is asked for answers to learn from, one image at least where it is not 0; below 1, the
    surrogate is used more often than it is told."""
    distill: int = 0
    """Number of further queries, spent on noisy and denoised images before the first step that wants a gradient."""
    jitter: float = 0.0
    """Standard deviation of Gaussian steps around z, in units of z, at which the answers are asked."""
    votes: int = 1
    """Number of answers a point that is asked about."""
    updates: int = 4
    """Number of optimizer steps of the surrogate a step of training."""
    target: float = 0.3
    """Cosine of the surrogate's gradient with the truth below which corrections are bought, where q is "auto"."""
    probe_every: int = 20
    """Number of steps between measurements of that cosine."""
    trust: float = 1.0
    """Trust t in the length of the guess, from 0 to 1."""

    def __post_init__(self) -> None:
        settle_step(self, self.mu, self.central)
        if not (isinstance(self.q, str) and self.q == "auto"):
            wanted = "a whole number of correcting directions, at least 0, or 'auto'"
            values.settle(self, q=values.whole("q", self.q, 0, wanted=wanted))
        values.known("surrogate", self.surrogate, SURROGATES)
        for name in ("ask", "target", "trust"):
            share = values.number(name, getattr(self, name), "a number from 0 to 1", low=0, high=1)
            values.settle(self, **{name: share})
        values.settle(self, jitter=values.number("jitter", self.jitter, "a finite number, at least 0", low=0))
        for name, least in (("distill", 0), ("votes", 1), ("updates", 1), ("probe_every", 1)):
            values.settle(self, **{name: values.whole(name, getattr(self, name), least)})
        if self.ask == 0 and not self.distill:
            raise InvalidInput("ask is 0 and distill too, so the surrogate would learn nothing; raise one of them")

    def estimate(
        self, objective: Objective, z: Tensor, generator: torch.Generator, live: Tensor | None = None
    ) -> Tensor:
        """See `GradientEstimator.estimate`; the objective must be a `GuidedObjective`."""
        if not _has_surrogate(objective):
            raise InvalidInput(
                "Guided got an objective without a surrogate; wanted guess and learn, see GuidedObjective"
            )
        if self.q == "auto":
            raise InvalidInput("q is 'auto', which training alone resolves; wanted a number here, see corrections")
        base = self._ask(objective, z, generator)
        objective.learn()
        guess = guessed_gradient(objective, z, live)
        if self.q == 0:
            return guess

        def residual(points: Tensor, *active: Tensor) -> Tensor:
            with torch.no_grad():
                return objective(points, *active) - self.trust * objective.guess(points)

        if base is not None:
            base = base - self.trust * objective.guess(z.unsqueeze(0)).detach()
        q, m = min(self.q, z.shape[1]), dimension_of(z, live)  # (b,)
        spread = ((m - 1) / (m.clamp(max=q) - 1).clamp(min=1)).clamp(min=1)  # makes the directions across unbiased
        blocks = _towards(guess, Orthogonal(q, 1.0).blocks(z, generator, live), 1 + (1 - self.trust) * (spread - 1))
        return self.trust * guess + finite_difference(residual, z, blocks, self.mu, self.central, base)

    def cost(self, d: int) -> int:
        """The most queries an image, rounded up: for q = "auto" with a surrogate that knows nothing, without probes.

        Args:
            d: Dimension of the points.
        """
        q = corrections(0.0, self.target, d) if self.q == "auto" else min(self.q, d)
        base = 0 if self._knows_base or self.central else 1
        return math.ceil(self.ask * self.votes) + (q * (2 if self.central else 1) + base if q else 0)

    def asked_of(self, batch: int) -> int:
        """Number of images of a batch that are asked for answers to learn from.

        Args:
            batch: Number of images of the batch.
        """
        return max(1, round(self.ask * batch)) if self.ask else 0

    @property
    def _knows_base(self) -> bool:
        """Whether ℓ(z) is among the answers that are asked anyway."""
        return self.ask == 1 and self.jitter == 0

    def _ask(self, objective: GuidedObjective, z: Tensor, generator: torch.Generator) -> Tensor | None:
        """Ask the answers to learn from; ℓ(z) (1, b) where that is what was asked."""
        b = len(z)
        asked = torch.randperm(b, generator=generator, device=z.device) < self.asked_of(b)
        points = z.expand(self.votes, *z.shape)
        if self.jitter:
            noise = torch.randn(points.shape, generator=generator, dtype=z.dtype, device=z.device)
            points = points + self.jitter * noise
        losses = objective(points, asked.expand(self.votes, b))
        return losses[:1] if self._knows_base else None


SURROGATES = ("image", "latent")


def _has_surrogate(objective: Objective) -> TypeGuard[GuidedObjective]:
    """By attribute: from Python 3.12 on, isinstance does not see what a wrapper passes on."""
    return hasattr(objective, "guess") and hasattr(objective, "learn")


def guessed_gradient(objective: GuidedObjective, z: Tensor, live: Tensor | None = None) -> Tensor:
    """Gradient (b, d) of the surrogate's guess; no query.

    Args:
        objective: Objective with a surrogate.
        z: Points (b, d).
        live: Mask (b, d) of the coordinates that matter, 0 elsewhere; None for all.
    """
    with torch.enable_grad():
        points = z.detach().clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(objective.guess(points.unsqueeze(0)).sum(), points)
    return gradient if live is None else gradient * live


@dataclass(frozen=True)
class Alignment:
    """How well a surrogate's gradient g_s agrees with the truth g: unbiased sums over a batch, up to curvature."""

    product: float
    """Sum of <g_s, g>."""
    guess: float
    """Sum of ‖g_s‖²."""
    truth: float
    """Sum of ‖g‖²."""

    @property
    def true_length(self) -> float:
        """The share of the guess's length that the truth confirms, <g_s, g> / ‖g_s‖², from 0 to 1."""
        return max(0.0, min(1.0, self.product / self.guess)) if self.guess else 0.0

    @property
    def cosine(self) -> float:
        """Of the batch's stacked gradients; 0 where either vanishes."""
        scale = math.sqrt(max(self.guess, 0.0) * max(self.truth, 0.0))
        return max(-1.0, min(1.0, self.product / scale)) if scale else 0.0

    def blended(self, other: Alignment, keep: float) -> Alignment:
        """An exponential average of two measurements.

        Args:
            other: Newer measurement.
            keep: Weight of this one; the rest is the other's.
        """
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Alignment(*(keep * mine + (1 - keep) * theirs for mine, theirs in pairs))


def alignment(
    objective: GuidedObjective,
    z: Tensor,
    generator: torch.Generator,
    *,
    directions: int,
    mu: Step,
    central: bool = False,
    live: Tensor | None = None,
) -> Alignment:
    """Measure a surrogate: one slope along its own gradient g_s, and random ones across it.

    Costs directions + 2 queries an image (2 (directions + 1) central). E over the random directions: the slope along
    g_s gives <g_s, g> and its own part of ‖g‖², the m others (d − 1)/m times theirs the rest of ‖g‖².

    Args:
        objective: Objective with a surrogate.
        z: Points (b, d).
        generator: Source of the random directions.
        directions: Number m of directions across g_s.
        mu: Step of the differences, in units of z.
        central: Whether the differences are central.
        live: Mask (b, d) of the coordinates that matter; None for all.
    """
    guess = guessed_gradient(objective, z, live)
    m = min(directions, z.shape[1] - 1)
    blocks = _towards(guess, Orthogonal(m + 1, 1.0).blocks(z, generator, live))
    measured = measured_slopes(objective, z, blocks, mu, central, None)
    slopes = torch.cat([block.weights * slopes for block, slopes in measured])  # (m + 1, b), 0 where not asked
    dimensions = dimension_of(z, live)
    used = (dimensions.clamp(max=m + 1) - 1).clamp(min=1)  # a point has no more directions than live coordinates
    across = slopes[1:].square().sum(0) * (dimensions - 1).clamp(min=0) / used
    product = (guess.norm(dim=1) * slopes[0]).sum()
    return Alignment(float(product), float(guess.square().sum()), float((slopes[0].square() + across).sum()))


def corrections(cosine: float, target: float, d: int) -> int:
    """Number of directions, the guess's own among them, that lift a guess to a wanted cosine; 0 if it is there.

    Projected on q directions, the first along the guess: E cos² = c² + (1 − c²)(q − 1)/(d − 1).

    Args:
        cosine: Cosine c of the guess with the truth.
        target: Wanted cosine.
        d: Dimension of the points.
    """
    c2 = max(cosine, 0.0) ** 2  # a guess that points away is worth nothing
    if c2 >= target**2:
        return 0
    return min(d, 1 + math.ceil((d - 1) * (target**2 - c2) / (1 - c2)))


def _towards(guess: Tensor, blocks: Iterator[Block], across: Tensor | None = None) -> Iterator[Block]:
    """Reflect orthonormal directions so that the first lies along `guess` (b, d); it weighs 1, all others `across`.

    One Householder reflection I − 2 v vᵀ a point takes u_1 to the guess's direction and keeps all angles.
    """
    mirror: Tensor | None = None
    first = True
    for block in blocks:
        if mirror is None:
            norm = guess.norm(dim=1, keepdim=True)
            aim = guess / norm.clamp_min(torch.finfo(guess.dtype).tiny)
            mirror = torch.where(norm > 0, block.directions[0] - aim, 0.0)
            mirror = mirror / mirror.norm(dim=1, keepdim=True).clamp_min(torch.finfo(guess.dtype).tiny)
        u = block.directions - 2 * torch.einsum("kbd,bd->kb", block.directions, mirror).unsqueeze(-1) * mirror
        weights = torch.ones_like(block.weights) if across is None else across.expand_as(block.weights).clone()
        if first:
            weights[0], first = 1.0, False
        yield Block(u, weights if block.active is None else weights * block.active, block.active)

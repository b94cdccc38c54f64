"""Gradient estimates from function values alone.

Every linear estimator is one tableau: directions u_i and weights w_i with E Σ w_i u_i u_iᵀ = I, fed to the one finite
difference of this module:

    RGE         u uniform on the unit sphere            w = d/q     relative squared error (d − 1)/q
    Orthogonal  u random and orthonormal, q <= d        w = d/q     (d − q)/q, so exact at q = d
    CGE         u = e_1 ... e_d                         w = 1       exact

each up to the curvature term of the difference: O(μ) forward, O(μ²) central. Sources: Zhang et al. ICLR 2022, eq. 3
and 4; Liu et al. 2020 for the errors.

An objective maps k variants of b points, (k, b, d), to losses (k, b). Where `live` says that only some coordinates
matter, estimators move only along those, and call `objective(points, active)` with a mask (k, b) of the points that
are wanted: the rest need no query and may return anything finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor

from certibox.errors import InvalidInput

CHUNK_ELEMENTS = 1 << 22  # elements of directions held at once: memory does not grow with q
Objective = Callable[..., Tensor]


@runtime_checkable
class GradientEstimator(Protocol):
    """What training asks of an estimator; implement it to bring your own."""

    def estimate(
        self, objective: Objective, z: Tensor, generator: torch.Generator, live: Tensor | None = None
    ) -> Tensor:
        """Gradient (b, d) of `objective` at z (b, d); `live` (b, d) bool marks the coordinates that matter."""
        ...

    def cost(self, d: int) -> int:
        """Queries that one estimate spends on one point of dimension d; raises `InvalidInput` if d does not fit."""
        ...


@dataclass(frozen=True)
class Block:
    """A slice of a tableau: directions (k, b, d), weights (k, b), and which of the k x b points are wanted."""

    directions: Tensor
    weights: Tensor
    active: Tensor | None


def finite_difference(objective: Objective, z: Tensor, blocks: Iterator[Block], mu: float, central: bool) -> Tensor:
    """Σ w u [ℓ(z + μ u) − ℓ(z)] / μ over the blocks of a tableau, or the central difference; (b, d) -> (b, d)."""
    gradient = torch.zeros_like(z)
    base = None if central else objective(z.unsqueeze(0))  # (1, b)
    for block in blocks:
        wanted = () if block.active is None else (block.active,)
        step = mu * block.directions
        forward = objective(z + step, *wanted)  # (k, b)
        slope = (forward - objective(z - step, *wanted)) / (2 * mu) if base is None else (forward - base) / mu
        gradient += torch.einsum("kb,kbd->bd", block.weights * slope, block.directions)
    return gradient


@final
@dataclass(frozen=True)
class RGE:
    """Random gradient estimate: q directions uniform on the unit sphere (eq. 3).

    mu: step, in units of z. central: two queries a direction and error O(μ²), else q + 1 queries and O(μ).
    """

    q: int
    mu: float
    central: bool = False

    def __post_init__(self) -> None:
        _check(self.mu, self.q)

    def estimate(
        self, objective: Objective, z: Tensor, generator: torch.Generator, live: Tensor | None = None
    ) -> Tensor:
        return finite_difference(objective, z, self._blocks(z, generator, live), self.mu, self.central)

    def cost(self, d: int) -> int:
        return 2 * self.q if self.central else self.q + 1

    def _blocks(self, z: Tensor, generator: torch.Generator, live: Tensor | None) -> Iterator[Block]:
        dimension = _dimension(z, live)  # (b,)
        for first, last in _chunks(self.q, z):
            u = torch.randn((last - first, *z.shape), generator=generator, dtype=z.dtype, device=z.device)
            if live is not None:
                u = u * live
            u = u / u.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny)
            weights = (dimension / self.q).expand(len(u), -1)
            yield Block(u, weights, None if live is None else (dimension > 0).expand(len(u), -1))


@final
@dataclass(frozen=True)
class CGE:
    """Coordinate-wise gradient estimate: one direction a coordinate (eq. 4); only live ones where those are known."""

    mu: float
    central: bool = False

    def __post_init__(self) -> None:
        _check(self.mu, 1)

    def estimate(
        self, objective: Objective, z: Tensor, generator: torch.Generator, live: Tensor | None = None
    ) -> Tensor:
        return finite_difference(objective, z, self._blocks(z, live), self.mu, self.central)

    def cost(self, d: int) -> int:
        return 2 * d if self.central else d + 1

    def _blocks(self, z: Tensor, live: Tensor | None) -> Iterator[Block]:
        b, d = z.shape
        marked = torch.ones_like(z, dtype=torch.bool) if live is None else live
        order = marked.to(torch.uint8).argsort(dim=1, descending=True, stable=True)  # live coordinates first
        count = marked.sum(dim=1)  # (b,)
        for first, last in _chunks(int(count.max()), z):
            slots = torch.arange(first, last, device=z.device)
            u = torch.zeros((last - first, b, d), dtype=z.dtype, device=z.device)
            active = slots.unsqueeze(1) < count  # (k, b)
            u.scatter_(2, order[:, first:last].T.unsqueeze(-1), active.to(z.dtype).unsqueeze(-1))
            yield Block(u, active.to(z.dtype), None if live is None else active)


@final
@dataclass(frozen=True)
class Orthogonal:
    """q random orthonormal directions: each is a row of the cosine transform under random signs.

    A row C_k of the orthonormal DCT-II with random coordinate signs s and a uniformly random k has E u uᵀ = I/d
    exactly, rows stay orthonormal, and any row is made on the spot: no QR, and no d x q matrix in memory.
    """

    q: int
    mu: float
    central: bool = False

    def __post_init__(self) -> None:
        _check(self.mu, self.q)

    def estimate(
        self, objective: Objective, z: Tensor, generator: torch.Generator, live: Tensor | None = None
    ) -> Tensor:
        self.cost(z.shape[1])
        return finite_difference(objective, z, self._blocks(z, generator, live), self.mu, self.central)

    def cost(self, d: int) -> int:
        if self.q > d:
            raise InvalidInput(
                f"Orthogonal wants q = {self.q} directions in {d} dimensions; q may be at most {d}: lower q, or use CGE"
            )
        return 2 * self.q if self.central else self.q + 1

    def _blocks(self, z: Tensor, generator: torch.Generator, live: Tensor | None) -> Iterator[Block]:
        marked = torch.ones_like(z, dtype=torch.bool) if live is None else live
        m = marked.sum(dim=1)  # (b,) dimensions that matter
        draws = torch.rand(z.shape, generator=generator, device=z.device)
        beyond = torch.arange(z.shape[1], device=z.device) >= m.unsqueeze(1)
        frequencies = draws.masked_fill(beyond, 2.0).argsort(dim=1)[
            :, : self.q
        ]  # (b, q), distinct, those below m first
        signs = torch.randint(0, 2, z.shape, generator=generator, device=z.device).to(z.dtype) * 2 - 1
        rank = marked.cumsum(dim=1) - 1  # place of each live coordinate among the live ones
        used = m.clamp(max=self.q)  # (b,)
        for first, last in _chunks(self.q, z):
            k = frequencies[:, first:last].T  # (k, b)
            u = _cosine_rows(k, rank, m.clamp(min=1), z.dtype) * (signs * marked)
            active = torch.arange(first, last, device=z.device).unsqueeze(1) < used
            weights = active * (m.to(z.dtype) / used.clamp(min=1))
            yield Block(u, weights, None if live is None else active)


def estimated_loss(
    objective: Objective,
    z: Tensor,
    estimator: GradientEstimator,
    generator: torch.Generator,
    live: Tensor | None = None,
) -> Tensor:
    """Losses (b,) at z (b, d) whose backward pass is the estimate: the bridge from queries to autograd (eq. 8).

    The value is the mean of the losses that the estimate evaluated, so it differs from ℓ(z) by O(μ) and costs no query
    of its own; it is 0 for a point that a central difference, with no live coordinate, asked nothing about.
    """
    return _EstimatedLoss.apply(z, objective, estimator, generator, live)  # pyright: ignore[reportReturnType]


class _EstimatedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, objective, estimator, generator, live):  # pyright: ignore
        total, count = torch.zeros_like(z[:, 0]), torch.zeros_like(z[:, 0])

        def record(points: Tensor, *wanted: Tensor) -> Tensor:
            nonlocal total, count
            losses = objective(points, *wanted)
            mask = wanted[0].to(losses.dtype) if wanted else torch.ones_like(losses)
            total, count = total + (losses * mask).sum(0), count + mask.sum(0)
            return losses

        gradient = estimator.estimate(record, z.detach(), generator, live)
        ctx.save_for_backward(gradient)
        return total / count.clamp(min=1)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore
        (gradient,) = ctx.saved_tensors
        return grad.unsqueeze(1) * gradient, None, None, None, None


def _cosine_rows(k: Tensor, j: Tensor, m: Tensor, dtype: torch.dtype) -> Tensor:
    """Row k of the orthonormal DCT-II of size m, at places j: (r, b), (b, d), (b,) -> (r, b, d)."""
    period = 4 * m.unsqueeze(1)  # reduce the angle in integers: float32 cosines of large angles lose digits
    angle = ((2 * j + 1) * k.unsqueeze(-1)) % period
    scale = (torch.where(k == 0, 1, 2) / m.to(dtype)).sqrt()
    return scale.unsqueeze(-1) * torch.cos(angle.to(dtype) * (2 * math.pi) / period.to(dtype))


def _dimension(z: Tensor, live: Tensor | None) -> Tensor:
    """How many coordinates of each point matter, as floats (b,)."""
    return torch.full_like(z[:, 0], z.shape[1]) if live is None else live.sum(dim=1).to(z.dtype)


def _chunks(directions: int, z: Tensor) -> Iterator[tuple[int, int]]:
    """Split `directions` so that a block of them holds at most `CHUNK_ELEMENTS` elements."""
    size = max(1, CHUNK_ELEMENTS // max(1, z.numel()))
    for first in range(0, directions, size):
        yield first, min(first + size, directions)


def _check(mu: float, q: int) -> None:
    if not mu > 0 or not math.isfinite(mu):
        raise InvalidInput(f"mu is {mu}; wanted a positive step in units of the embedding, such as 0.005 (the paper's)")
    if q < 1:
        raise InvalidInput(f"q is {q}; wanted at least 1 direction")

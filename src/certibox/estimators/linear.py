"""Unbiased and projected estimates from a tableau: RGE, CGE and random orthonormal directions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from certibox.errors import InvalidInput
from certibox.estimators.differences import (
    Block,
    GradientEstimator,
    Objective,
    Step,
    chunks,
    dimension_of,
    finite_difference,
    settle_step,
)
from certibox.storage import values


@final
@dataclass(frozen=True)
class RGE:
    """Random gradient estimate: q directions uniform on the unit sphere (eq. 3).

    Raises:
        InvalidInput: q or mu is out of its range.
    """

    q: int
    """Number of directions, at least 1."""
    mu: Step
    """Step of the differences, in units of z; "auto" is measured when training starts."""
    central: bool = False
    """Whether differences are central: 2q queries and an error O(μ²), else q + 1 queries and O(μ)."""

    def __post_init__(self) -> None:
        settle_step(self, self.mu, self.central, self.q)

    def estimate(
        self, objective: Objective, z: Tensor, generator: torch.Generator, live: Tensor | None = None
    ) -> Tensor:
        """See `GradientEstimator.estimate`."""
        return finite_difference(objective, z, self.blocks(z, generator, live), self.mu, self.central)

    def cost(self, d: int) -> int:
        """See `GradientEstimator.cost`."""
        return 2 * self.q if self.central else self.q + 1

    def blocks(self, z: Tensor, generator: torch.Generator, live: Tensor | None) -> Iterator[Block]:
        """The tableau in slices that fit in memory.

        Args:
            z: Points (b, d).
            generator: Source of the random directions.
            live: Mask (b, d) of the coordinates that matter; None for all.
        """
        dimension = dimension_of(z, live)  # (b,)
        for first, last in chunks(self.q, z):
            u = torch.randn((last - first, *z.shape), generator=generator, dtype=z.dtype, device=z.device)
            if live is not None:
                u = u * live
            u = u / u.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny)
            weights = (dimension / self.q).expand(len(u), -1)
            yield Block(u, weights, None if live is None else (dimension > 0).expand(len(u), -1))


@final
@dataclass(frozen=True)
class CGE:
    """Coordinate-wise gradient estimate: one direction a coordinate (eq. 4); only live ones where they are known.

    Raises:
        InvalidInput: mu is out of its range.
    """

    mu: Step
    """Step of the differences, in units of z; "auto" is measured when training starts."""
    central: bool = False
    """Whether differences are central: 2d queries and an error O(μ²), else d + 1 queries and O(μ)."""

    def __post_init__(self) -> None:
        settle_step(self, self.mu, self.central)

    def estimate(
        self, objective: Objective, z: Tensor, generator: torch.Generator, live: Tensor | None = None
    ) -> Tensor:
        """See `GradientEstimator.estimate`."""
        return finite_difference(objective, z, self.blocks(z, live), self.mu, self.central)

    def cost(self, d: int) -> int:
        """See `GradientEstimator.cost`."""
        return 2 * d if self.central else d + 1

    def blocks(self, z: Tensor, live: Tensor | None) -> Iterator[Block]:
        """The live coordinates as directions; see `RGE.blocks`."""
        b, d = z.shape
        marked = torch.ones_like(z, dtype=torch.bool) if live is None else live
        order = marked.to(torch.uint8).argsort(dim=1, descending=True, stable=True)  # live coordinates first
        count = marked.sum(dim=1)  # (b,)
        for first, last in chunks(int(count.max()), z):
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

    Raises:
        InvalidInput: q or mu is out of its range.
    """

    q: int
    """Number of directions, at least 1 and at most d."""
    mu: Step
    """Step of the differences, in units of z; "auto" is measured when training starts."""
    central: bool = False
    """Whether differences are central: 2q queries and an error O(μ²), else q + 1 queries and O(μ)."""

    def __post_init__(self) -> None:
        settle_step(self, self.mu, self.central, self.q)

    def estimate(
        self, objective: Objective, z: Tensor, generator: torch.Generator, live: Tensor | None = None
    ) -> Tensor:
        """See `GradientEstimator.estimate`."""
        self.cost(z.shape[1])
        return finite_difference(objective, z, self.blocks(z, generator, live), self.mu, self.central)

    def cost(self, d: int) -> int:
        """See `GradientEstimator.cost`."""
        if self.q > d:
            raise InvalidInput(
                f"Orthogonal wants q = {self.q} directions in {d} dimensions; q may be at most {d}: lower q, or use CGE"
            )
        return 2 * self.q if self.central else self.q + 1

    def blocks(self, z: Tensor, generator: torch.Generator, live: Tensor | None) -> Iterator[Block]:
        """Orthonormal directions in slices; see `RGE.blocks`."""
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
        for first, last in chunks(self.q, z):
            k = frequencies[:, first:last].T  # (k, b)
            u = _cosine_rows(k, rank, m.clamp(min=1), z.dtype) * (signs * marked)
            active = torch.arange(first, last, device=z.device).unsqueeze(1) < used
            weights = active * (m.to(z.dtype) / used.clamp(min=1))
            yield Block(u, weights, None if live is None else active)


@final
@dataclass(frozen=True)
class Subset:
    """Any estimator on a random share of the batch, scaled up so that the batch's mean gradient stays unbiased.

    Raises:
        InvalidInput: The share is not above 0 and up to 1, or the estimator is a `Guided`, which has its own `ask`.
    """

    estimator: GradientEstimator
    """Estimator for the chosen images."""
    share: float
    """Share of a batch's images that get an estimate, at least one; the others get 0 and are not asked about."""

    def __post_init__(self) -> None:
        wanted = "a share of the batch above 0, up to 1"
        values.settle(self, share=values.number("share", self.share, wanted, low=0, high=1, above=True))
        if isinstance(self.estimator, type) or not isinstance(self.estimator, GradientEstimator):
            raise InvalidInput(f"estimator is {values.shown(self.estimator)}; wanted one such as certibox.CGE(mu=0.05)")
        if hasattr(self.estimator, "ask"):
            raise InvalidInput(
                "Subset got a Guided, which has a share of its own; wanted Guided(ask=...) without Subset"
            )

    def estimate(
        self, objective: Objective, z: Tensor, generator: torch.Generator, live: Tensor | None = None
    ) -> Tensor:
        """See `GradientEstimator.estimate`."""
        b = len(z)
        chosen = torch.randperm(b, generator=generator, device=z.device)[: max(1, round(self.share * b))]
        inside = torch.zeros(b, dtype=torch.bool, device=z.device).index_fill(0, chosen, True)

        def of_chosen(points: Tensor, active: Tensor | None = None) -> Tensor:
            everywhere = z.expand(len(points), -1, -1).index_copy(1, chosen, points)
            wanted = inside.expand(len(points), b).clone()
            if active is not None:
                wanted[:, chosen] = active
            return objective(everywhere, wanted)[:, chosen]

        part = self.estimator.estimate(of_chosen, z[chosen], generator, None if live is None else live[chosen])
        return torch.zeros_like(z).index_copy(0, chosen, part * (b / len(chosen)))

    def cost(self, d: int) -> int:
        """Queries a point, on average over a large batch and rounded up; see `GradientEstimator.cost`."""
        return math.ceil(self.share * self.estimator.cost(d))


def _cosine_rows(k: Tensor, j: Tensor, m: Tensor, dtype: torch.dtype) -> Tensor:
    """Row k of the orthonormal DCT-II of size m, at places j: (r, b), (b, d), (b,) -> (r, b, d)."""
    period = 4 * m.unsqueeze(1)  # reduce the angle in integers: float32 cosines of large angles lose digits
    angle = ((2 * j + 1) * k.unsqueeze(-1)) % period
    scale = (torch.where(k == 0, 1, 2) / m.to(dtype)).sqrt()
    return scale.unsqueeze(-1) * torch.cos(angle.to(dtype) * (2 * math.pi) / period.to(dtype))

"""The one finite difference, over a tableau of directions and weights, and what every estimator is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from certibox.errors import InvalidInput
from certibox.storage import values

CHUNK_ELEMENTS = 1 << 22  # elements of directions held at once: memory does not grow with q
Objective = Callable[..., Tensor]
Step = float | Literal["auto"]  # mu, in units of z; "auto" is measured at the start of training


@runtime_checkable
class GradientEstimator(Protocol):
    """What training asks of an estimator; implement it to bring your own."""

    def estimate(
        self, objective: Objective, z: Tensor, generator: torch.Generator, live: Tensor | None = None
    ) -> Tensor:
        """Gradient (b, d) of an objective.

        Args:
            objective: Function of points (k, b, d) -> losses (k, b), by queries; see `certibox.estimators` on masks.
            z: Points (b, d).
            generator: Source of the random directions.
            live: Mask (b, d) of the coordinates that matter; None for all. An estimator may ignore it.
        """
        ...

    def cost(self, d: int) -> int:
        """Queries that one estimate spends on one point.

        Args:
            d: Dimension of the point.

        Raises:
            InvalidInput: The estimator does not fit the dimension.
        """
        ...


@dataclass(frozen=True)
class Block:
    """A slice of a tableau."""

    directions: Tensor
    """Directions u (k, b, d)."""
    weights: Tensor
    """Weights w (k, b)."""
    active: Tensor | None
    """Mask (k, b) of the points that are wanted; None for all."""


def finite_difference(
    objective: Objective, z: Tensor, blocks: Iterator[Block], mu: Step, central: bool, base: Tensor | None = None
) -> Tensor:
    """Σ w u [ℓ(z + μ u) − ℓ(z)] / μ over the blocks of a tableau, or the central difference: a gradient (b, d).

    Args:
        objective: Function of points (k, b, d) -> losses (k, b), called with a mask `active` where a block has one.
        z: Points (b, d).
        blocks: Slices of the tableau.
        mu: Step μ, in units of z.
        central: Whether the difference is central: two queries a direction, error of order μ².
        base: Losses ℓ(z) (1, b), where they are known already.

    Raises:
        InvalidInput: The step is "auto", which training alone resolves.
    """
    gradient = torch.zeros_like(z)
    for block, slopes in measured_slopes(objective, z, blocks, mu, central, base):
        gradient += torch.einsum("kb,kbd->bd", block.weights * slopes, block.directions)
    return gradient


def measured_slopes(
    objective: Objective, z: Tensor, blocks: Iterator[Block], mu: Step, central: bool, base: Tensor | None
) -> Iterator[tuple[Block, Tensor]]:
    """Each block with the slopes (k, b) of ℓ along its directions; see `finite_difference`."""
    if isinstance(mu, str):
        raise InvalidInput(f"mu is {mu!r}, which training alone resolves; wanted a number here, see choose_step")
    there = objective(z.unsqueeze(0)) if not central and base is None else base  # (1, b)
    for block in blocks:
        wanted = () if block.active is None else (block.active,)
        step = mu * block.directions
        forward = objective(z + step, *wanted)  # (k, b)
        if central or there is None:
            yield block, (forward - objective(z - step, *wanted)) / (2 * mu)
        else:
            yield block, (forward - there) / mu


def dimension_of(z: Tensor, live: Tensor | None) -> Tensor:
    """How many coordinates of each point matter, as floats (b,).

    Args:
        z: Points (b, d).
        live: Mask (b, d) of the coordinates that matter; None for all.
    """
    return torch.full_like(z[:, 0], z.shape[1]) if live is None else live.sum(dim=1).to(z.dtype)


def chunks(directions: int, z: Tensor) -> Iterator[tuple[int, int]]:
    """First and last of each part of the directions, so that a block holds at most `CHUNK_ELEMENTS` elements.

    Args:
        directions: Number of directions.
        z: Points (b, d) that each direction moves.
    """
    size = max(1, CHUNK_ELEMENTS // max(1, z.numel()))
    for first in range(0, directions, size):
        yield first, min(first + size, directions)


def settle_step(estimator: object, mu: Step, central: bool, q: int | None = None) -> None:
    """Check the fields that estimators share, and give them to one that is being made.

    Args:
        estimator: Frozen instance with fields of these names.
        mu: Step of the differences, in units of z, or "auto".
        central: Whether the differences are central.
        q: Number of directions, at least 1; None for an estimator without such a field.

    Raises:
        InvalidInput: A value is of another type, or out of its range.
    """
    if not (isinstance(mu, str) and mu == "auto"):
        wanted = "a positive step in units of the embedding, such as 0.005 (the paper's), or 'auto'"
        values.settle(estimator, mu=values.number("mu", mu, wanted, low=0, above=True))
    if q is not None:
        values.settle(estimator, q=values.whole("q", q, 1, wanted="a whole number of directions, at least 1"))
    values.yes_or_no("central", central)

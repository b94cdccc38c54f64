"""The one finite difference, over a tableau of directions and weights, and what every estimator is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from certibox.errors import InvalidInput

CHUNK_ELEMENTS = 1 << 22  # elements of directions held at once: memory does not grow with q
Objective = Callable[..., Tensor]
Step = float | Literal["auto"]  # mu, in units of z; "auto" is measured at the start of training


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


def finite_difference(
    objective: Objective, z: Tensor, blocks: Iterator[Block], mu: Step, central: bool, base: Tensor | None = None
) -> Tensor:
    """Σ w u [ℓ(z + μ u) − ℓ(z)] / μ over the blocks of a tableau, or the central difference; (b, d) -> (b, d).

    base: ℓ(z) (1, b), where it is known already. Errors: `InvalidInput` for a mu that is yet to be measured.
    """
    gradient = torch.zeros_like(z)
    for block, slopes in measured_slopes(objective, z, blocks, mu, central, base):
        gradient += torch.einsum("kb,kbd->bd", block.weights * slopes, block.directions)
    return gradient


def measured_slopes(
    objective: Objective, z: Tensor, blocks: Iterator[Block], mu: Step, central: bool, base: Tensor | None
) -> Iterator[tuple[Block, Tensor]]:
    """Each block with the slopes (k, b) of ℓ along its directions."""
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
    """How many coordinates of each point matter, as floats (b,)."""
    return torch.full_like(z[:, 0], z.shape[1]) if live is None else live.sum(dim=1).to(z.dtype)


def chunks(directions: int, z: Tensor) -> Iterator[tuple[int, int]]:
    """Split `directions` so that a block of them holds at most `CHUNK_ELEMENTS` elements."""
    size = max(1, CHUNK_ELEMENTS // max(1, z.numel()))
    for first in range(0, directions, size):
        yield first, min(first + size, directions)


def check_step(mu: Step, q: int) -> None:
    if mu != "auto" and (isinstance(mu, str) or not mu > 0 or not math.isfinite(mu)):
        raise InvalidInput(
            f"mu is {mu}; wanted a positive step in units of the embedding, such as 0.005 (the paper's), or 'auto'"
        )
    if not isinstance(q, int) or q < 1:
        raise InvalidInput(f"q is {q}; wanted a whole number of directions, at least 1")

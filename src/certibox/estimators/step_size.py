"""Choose the step μ of a finite difference by measurement, before training spends its queries.

A difference over a small step drowns in rounding (bfloat16, TF32, 8-bit endpoints) or falls between the stairs of a
tree ensemble; over a large one, in curvature. All of it shows in the same way: the answer at μ disagrees with the
answers at neighbouring steps. Rounding and stairs are new at every μ, and curvature grows with it, so the step that
agrees best with both neighbours suffers least from either. On a smooth box that is near the classical optimum,
(3 ε / |f‴|)^(1/3) for central and 2 (ε / |f″|)^(1/2) for forward differences, without knowing the noise ε or a
derivative. Sources for the balance: Gill, Murray & Wright, Practical Optimization, 1981; Moré & Wild, Estimating
Derivatives of Noisy Simulations, 2012.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from certibox.errors import InvalidInput

DIRECTIONS = 32  # along which each step is tried
STEPS, RATIO = 7, 4.0  # the steps tried: each a quarter of the one above
COORDINATE_TOP = 4.0  # the largest step of one coordinate, in root mean squares of z; on the sphere it is z's length
NOTHING = 0.95  # differences that have nothing to do with each other disagree by about 1
FLAT = 0.5  # standard errors of the paired difference: closer to the best than that is as good as the best
Objective = Callable[[Tensor, Tensor], Tensor]  # points (k, b, d), which are wanted (k, b) -> losses (k, b)


@dataclass(frozen=True)
class StepEvidence:
    """What the differences over one step said."""

    mu: float
    """Step that was tried."""
    disagreement: float
    """Mean over directions of |D_μ − D_ν| / max(|D_μ|, |D_ν|), averaged over the neighbours ν = μ/4 and 4μ: 0 where
    they agree, 3/4 where the differences do not grow with the step, about 1 where they are noise. Two differences of
    zero agree on nothing and count as 1, as does the missing neighbour of the first and last step."""
    zeros: float
    """Share of the differences that are exactly zero."""


@dataclass(frozen=True)
class StepChoice:
    """The chosen step, and why."""

    mu: float
    """Step that was chosen."""
    agreed: bool
    """Whether any step agreed with its neighbours; if not (answers that hardly ever change, such as hard labels), mu is
    the largest step tried, and any estimate is doubtful."""
    queries: int
    """Number of queries that finding it spent."""
    evidence: tuple[StepEvidence, ...]
    """What each step said, by growing mu."""

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON."""
        return asdict(self) | {"evidence": [asdict(row) for row in self.evidence]}


@dataclass(frozen=True)
class PrecisionCheck:
    """Whether differences under a faster arithmetic may stand for those in full precision; true where they may."""

    safe: bool
    """Whether they may."""
    error: float
    """|D_fast − D_full| / max(|D_fast|, |D_full|), over all directions as one vector; 1 where both are zero."""
    mu: float
    """Step of the differences."""
    queries: int
    """Number of queries that the check spent."""

    def __bool__(self) -> bool:
        return self.safe

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON."""
        return asdict(self)


def choose_step(
    objective: Objective,
    z: Tensor,
    generator: torch.Generator,
    *,
    coordinates: bool,
    central: bool,
    live: Tensor | None = None,
    directions: int = DIRECTIONS,
    largest: float | None = None,
) -> StepChoice:
    """The μ at which differences of `objective` around z (b, d) agree best with those at a quarter and at four times μ.

    Of the steps whose disagreement is within half a standard error of the least, in one run around it, the geometric
    middle is taken, the larger of two middles: measured best on the boxes of `studies/step_choice.py`.

    Queries: 14 · directions for central differences; 7 · directions + min(directions, points with a live coordinate)
    for forward ones. That is 448, and 256 where at least 32 points are given.

    Args:
        objective: Function of k variants of b points (k, b, d) and a mask (k, b) of the wanted ones -> losses (k, b).
        z: Points (b, d).
        generator: Source of the directions.
        coordinates: Whether directions are coordinate axes (CGE), else uniform on the unit sphere (RGE, Orthogonal).
        central: Whether the estimator will take central differences.
        live: Mask (b, d) of the coordinates that matter: no other is moved, and points without one are never asked.
        directions: Number of directions, spread over as many points as possible, the same at every step.
        largest: Largest of the 7 steps tried, a factor of 4 apart; by default 4 root mean squares of z's (live)
            coordinates, or for the sphere sqrt(d) of them.

    Raises:
        InvalidInput: Nothing is live, or z is zero and `largest` is not given.
    """
    z = z.detach()
    probe = _Probe.draw(z, generator, live, directions, coordinates)
    top = _largest_step(z, live, coordinates) if largest is None else largest
    _check_step(top, "largest")
    steps = [top / RATIO**power for power in reversed(range(STEPS))]
    base = None if central else probe.base(objective, z)
    slopes = torch.stack([probe.differences(objective, z, mu, base) for mu in steps])  # (steps, directions)
    scores = _scores(slopes)
    zeros = (slopes == 0).double().mean(1).tolist()
    means = scores.mean(1).tolist()
    agreed = min(means) < NOTHING
    return StepChoice(
        mu=steps[_flat_middle(scores) if agreed else -1],
        agreed=agreed,
        queries=STEPS * directions * (2 if central else 1) + (0 if central else probe.points),
        evidence=tuple(StepEvidence(*row) for row in zip(steps, means, zeros, strict=True)),
    )


def precision_is_safe(
    objective_full: Objective,
    objective_fast: Objective,
    z: Tensor,
    mu: float,
    generator: torch.Generator,
    *,
    coordinates: bool,
    central: bool,
    live: Tensor | None = None,
    directions: int = DIRECTIONS,
    tolerance: float = 0.05,
) -> PrecisionCheck:
    """Whether differences over μ come out the same, but for `tolerance`, under a faster arithmetic such as TF32.

    Differences that are all zero show nothing, and are not safe.

    Queries: 4 · directions for central differences; 2 · (directions + min(directions, points with a live coordinate))
    for forward ones. Half of them are asked of each objective.

    Args:
        objective_full: Losses in full precision, as for `choose_step`.
        objective_fast: The same losses in the faster arithmetic.
        z: Points (b, d).
        mu: Step of the differences, in units of z.
        generator: Source of the directions.
        coordinates: Whether directions are coordinate axes, as for `choose_step`.
        central: Whether the differences are central.
        live: Mask (b, d) of the coordinates that matter; None for all.
        directions: Number of directions.
        tolerance: Largest error that is safe, see `PrecisionCheck.error`.
    """
    _check_step(mu, "mu")
    z = z.detach()
    probe = _Probe.draw(z, generator, live, directions, coordinates)
    full, fast = (
        probe.differences(objective, z, mu, None if central else probe.base(objective, z))
        for objective in (objective_full, objective_fast)
    )
    error = float(_disagreement((full - fast).norm(), full.norm(), fast.norm()))
    return PrecisionCheck(
        safe=error < tolerance,
        error=error,
        mu=mu,
        queries=2 * (2 * directions if central else directions + probe.points),
    )


@dataclass(frozen=True)
class _Probe:
    """The same few directions at the same few points, for every step: directions (k, b, d), asked (k, b) bool."""

    directions: Tensor
    asked: Tensor

    @classmethod
    def draw(
        cls, z: Tensor, generator: torch.Generator, live: Tensor | None, directions: int, coordinates: bool
    ) -> _Probe:
        """A direction at each of `directions` points, or several where there are fewer points."""
        if directions < 2:
            raise InvalidInput(f"directions is {directions}; wanted at least 2 to tell agreement from chance")
        marked = torch.ones_like(z, dtype=torch.bool) if live is None else live
        count = marked.sum(dim=1)  # (b,)
        points = int((count > 0).sum())
        if points == 0:
            raise InvalidInput("none of the points has a live coordinate; wanted one to move along, or live=None")
        slots = torch.arange(-(-directions // points), device=z.device).unsqueeze(1)  # (k, 1)
        draws = torch.rand(len(z), generator=generator, device=z.device).masked_fill(count == 0, 2.0)
        asked = (count > 0) & (slots * points + draws.argsort().argsort() < directions)
        if coordinates:
            order = torch.rand(z.shape, generator=generator, device=z.device).masked_fill(~marked, 2.0).argsort(dim=1)
            chosen = order.T.gather(0, slots % count.clamp(min=1))  # (k, b): distinct until all were taken
            u = torch.zeros((len(slots), *z.shape), dtype=z.dtype, device=z.device)
            u.scatter_(2, chosen.unsqueeze(-1), 1.0)
        else:
            u = torch.randn((len(slots), *z.shape), generator=generator, dtype=z.dtype, device=z.device) * marked
            u = u / u.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny)
        return cls(u * asked.unsqueeze(-1), asked)

    @property
    def points(self) -> int:
        """How many points are asked about: all of them in the first variant."""
        return int(self.asked[0].sum())

    def base(self, objective: Objective, z: Tensor) -> Tensor:
        """Losses at z itself, (1, b)."""
        return objective(z.unsqueeze(0), self.asked[:1])

    def differences(self, objective: Objective, z: Tensor, mu: float, base: Tensor | None) -> Tensor:
        """Slopes along the directions, in double: central ones without a base, else forward ones. -> (directions,)"""
        step = mu * self.directions
        ahead = objective(z + step, self.asked).double()
        behind = objective(z - step, self.asked) if base is None else base.expand_as(ahead)
        return ((ahead - behind.double()) / (2 * mu if base is None else mu))[self.asked]


def _scores(slopes: Tensor) -> Tensor:
    """Disagreement of each difference with those at the steps below and above: (steps, n) -> (steps, n)."""
    below, above = slopes[:-1], slopes[1:]
    between = _disagreement((above - below).abs(), below.abs(), above.abs())
    missing = torch.ones_like(slopes[:1])
    return (torch.cat([missing, between]) + torch.cat([between, missing])) / 2


def _disagreement(distance: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The distance over the larger of the two; 1 for two zeros, and for what is not finite."""
    return (distance / torch.maximum(a, b)).nan_to_num(nan=1.0)


def _flat_middle(scores: Tensor) -> int:
    """Index of the middle of the run of steps around the best that are as good as it: (steps, n) -> int."""
    best = int(scores.mean(1).argmin())
    excess = scores - scores[best]  # paired: the same directions at every step
    flat = (excess.mean(1) <= FLAT * excess.std(1) / math.sqrt(scores.shape[1])).tolist()
    low = high = best
    while low > 0 and flat[low - 1]:
        low -= 1
    while high + 1 < len(flat) and flat[high + 1]:
        high += 1
    return (low + high + 1) // 2


def _largest_step(z: Tensor, live: Tensor | None, coordinates: bool) -> float:
    """From the root mean square of z's live coordinates: one of them moved by 4, or z moved by its own length."""
    values = (z if live is None else z[live]).double()
    rms = float(values.square().mean().sqrt())
    if not 0 < rms < math.inf:
        raise InvalidInput(
            f"z has a root mean square of {rms}, so no scale for a step; wanted a finite z other than zero, or a "
            "number for mu"
        )
    moved = len(z) if live is None else int(live.any(dim=1).sum())
    return rms * (COORDINATE_TOP if coordinates else math.sqrt(values.numel() / moved))


def _check_step(mu: float, name: str) -> None:
    if not 0 < mu < math.inf:
        raise InvalidInput(f"{name} is {mu}; wanted a positive finite step, in units of z")

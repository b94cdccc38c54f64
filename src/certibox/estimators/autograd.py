"""The bridge from queries to autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from certibox.estimators.differences import GradientEstimator, Objective


def estimated_loss(
    objective: Objective,
    z: Tensor,
    estimator: GradientEstimator,
    generator: torch.Generator,
    live: Tensor | None = None,
) -> Tensor:
    """Losses (b,) at z (b, d) whose backward pass is the estimate: the bridge from queries to autograd (eq. 8).

    The value is the mean of the losses that the estimate evaluated, so it differs from ℓ(z) by O(μ) and costs no query
    of its own. A point about which nothing was asked stands at the mean of the others, so that a batch has the mean of
    what was asked; at 0 where that is nothing.

    Args:
        objective: Function of points (k, b, d) -> losses (k, b), by queries.
        z: Points (b, d), through which the gradient goes on.
        estimator: Estimator of the gradient at z.
        generator: Source of the random directions.
        live: Mask (b, d) of the coordinates that matter; None for all.
    """
    return _EstimatedLoss.apply(z, objective, estimator, generator, live)  # pyright: ignore[reportReturnType]


class _EstimatedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, objective, estimator, generator, live):  # pyright: ignore
        recorder = _Recorder(objective, torch.zeros_like(z[:, 0]))
        gradient = estimator.estimate(recorder, z.detach(), generator, live)
        ctx.save_for_backward(gradient)
        losses, known = recorder.total / recorder.count.clamp(min=1), recorder.count > 0
        return torch.where(known, losses, losses.sum() / known.sum().clamp(min=1))

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore
        (gradient,) = ctx.saved_tensors
        return grad.unsqueeze(1) * gradient, None, None, None, None


class _Recorder:
    """An objective that sums up the losses (b,) that it was asked for; all else is the objective's own."""

    def __init__(self, objective: Objective, zeros: Tensor) -> None:
        self._objective, self.total, self.count = objective, zeros, zeros

    def __call__(self, points: Tensor, *wanted: Tensor) -> Tensor:
        losses = self._objective(points, *wanted)
        mask = wanted[0].to(losses.dtype) if wanted else torch.ones_like(losses)
        self.total, self.count = self.total + (losses * mask).sum(0), self.count + mask.sum(0)
        return losses

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

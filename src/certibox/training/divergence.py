"""When training has left the finite numbers: seen before the box is asked, and said with the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from certibox.errors import InvalidImages, TrainingDiverged


def require_finite(values: Tensor, what: str) -> None:
    """Refuse infinities and NaN; cheap where there are none.

    Args:
        values: Tensor of any shape.
        what: Words for the values, such as "the embedding is".

    Raises:
        TrainingDiverged: A value is not finite.
    """
    if not bool(values.sum().isfinite()) and not bool(values.isfinite().all()):  # a sum may overflow
        raise TrainingDiverged(f"{what} not finite")


def require_sound(loss: float, parameters: Iterable[nn.Parameter]) -> None:
    """Refuse what a step of an optimizer has made of weights, and of what.

    Args:
        loss: Loss that the step went down, or a sum with it.
        parameters: Parameters that the step has moved, with their gradients.

    Raises:
        TrainingDiverged: The loss, a gradient or a weight is not finite, or a gradient's square is not.
    """
    if not math.isfinite(loss):
        raise TrainingDiverged("the loss is not finite")
    moved = list(parameters)
    gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
    if gradients and not bool(get_total_norm(gradients).isfinite()):
        raise TrainingDiverged("a gradient is not finite, or too large for the optimizer to square")
    if moved and not bool(get_total_norm([parameter.detach() for parameter in moved], math.inf).isfinite()):
        raise TrainingDiverged("a weight is not finite")


@contextmanager
def said_with(step: int, advice: str) -> Iterator[None]:
    """Say at which step training diverged, and what to do, for whatever shows that it did.

    Args:
        step: Number of the step.
        advice: Words for what to do, and for what is kept.

    Raises:
        TrainingDiverged: The block met values that are not finite, or images that no box takes.
    """
    try:
        yield
    except (TrainingDiverged, InvalidImages) as error:
        raise TrainingDiverged(f"training diverged at step {step}: {error}; {advice}") from error
    except RuntimeError as error:
        if not torch.is_anomaly_enabled():
            raise
        reason = " ".join(str(error).split())[:200]  # the caller had torch look for NaN itself
        raise TrainingDiverged(f"training diverged at step {step}: {reason}; {advice}") from error

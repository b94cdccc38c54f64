"""Per-sample losses for each kind of answer, and the targets that a box's own clean answers give.

All are pure functions of outputs and targets; those of a differentiable box are differentiable too, so first- and
zeroth-order training share them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from certibox.errors import InvalidInput

PROBABILITY_FLOOR = 1e-6  # a probability of exactly 0 costs log(1e6) = 13.8 and has slope 0 below the floor
Loss = Callable[[Tensor, Tensor], Tensor]


def targets(outputs: Tensor, kind: str, hard: bool) -> Tensor:
    """Targets from the box's clean answers: labels (b,) when hard, class probabilities (b, K) when soft.

    For `values` the target is the answer itself. Labels admit only hard targets.

    Args:
        outputs: Answers of the box to clean images (b, ...).
        kind: Kind of the answers: logits, probabilities, labels, values or top-k.
        hard: Whether the targets are labels.
    """
    if kind == "values":
        return outputs
    if kind == "labels":
        if not hard:
            raise InvalidInput("targets are soft but the box answers with labels; wanted hard targets")
        return outputs
    if hard:
        return outputs.argmax(dim=1)
    return outputs.softmax(dim=1) if kind == "logits" else outputs


def predictions(outputs: Tensor, kind: str) -> Tensor:
    """Class labels (b,) from answers of a classifying kind."""
    return outputs if kind == "labels" else outputs.argmax(dim=1)


def logits_loss(outputs: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy (b,) of logits (b, K) against labels (b,) or probabilities (b, K)."""
    return F.cross_entropy(outputs, target, reduction="none")


def probabilities_loss(outputs: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy (b,) of probabilities (b, K), floored at `PROBABILITY_FLOOR`, against labels or probabilities."""
    logs = outputs.clamp_min(PROBABILITY_FLOOR).log()
    if target.ndim == 1:
        return -logs.gather(1, target.unsqueeze(1)).squeeze(1)
    return -(target * logs).sum(dim=1)


def labels_loss(outputs: Tensor, target: Tensor) -> Tensor:
    """Zero-one loss (b,) of labels (b,) against labels (b,)."""
    return (outputs != target).to(torch.get_default_dtype())


def values_loss(outputs: Tensor, target: Tensor) -> Tensor:
    """Mean squared error (b,) over all components of values (b, ...)."""
    return (outputs - target).unsqueeze(-1).flatten(1).square().mean(dim=1)


LOSSES: dict[str, Loss] = {
    "logits": logits_loss,
    "probabilities": probabilities_loss,
    "labels": labels_loss,
    "values": values_loss,
    "top-k": probabilities_loss,
}

"""What a box answers: the scores in what a model returns, as a tensor of the declared kind, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certibox.blackbox.base import BoxSpec
from certibox.errors import BadOutput

_SHAPES = {"logits": "(n, K)", "probabilities": "(n, K)", "labels": "(n,)", "values": "(n, ...)"}
_RANGE_TOLERANCE = 1e-4  # a probability may leave [0, 1] by this much
_SUM_TOLERANCE = 1e-2  # a row of probabilities may miss 1 by this much: endpoints often round to two or three decimals


def picked(answer: Any, key: str | None, spec: BoxSpec) -> Any:
    """The part of a model's answer that holds the scores: under a key, at a position or in an attribute.

    Args:
        answer: Answer of the model, as it came.
        key: Key, position or attribute; None for an answer that is the scores themselves.
        spec: Declaration of the box.

    Raises:
        BadOutput: The answer has no such part.
    """
    if key is None:
        return answer
    try:
        if isinstance(answer, Mapping):
            return answer[key]
        if isinstance(answer, list | tuple) and key.lstrip("-").isdigit():
            return answer[int(key)]
        return getattr(answer, key)
    except (KeyError, IndexError, AttributeError) as error:
        parts = list(answer) if isinstance(answer, Mapping) else type(answer).__name__
        raise BadOutput(f"box {spec.name} answered {parts}, which has no {key!r}; give another output_key") from error


def to_outputs(answer: object, spec: BoxSpec, device: torch.device) -> Tensor:
    """A model's answer (tensor, array or nested list) as a tensor of the kind that `spec` declares.

    Always a copy: a model may reuse its output buffer, and the copy of an inference tensor may enter an autograd graph.

    Args:
        answer: Answer of the model, as it came.
        spec: Declaration of the box.
        device: Device of the images, where the answer goes.

    Raises:
        BadOutput: The answer is no array of numbers; `check_outputs` judges the rest.
    """
    if not isinstance(answer, Tensor):
        try:
            answer = torch.from_numpy(np.array(answer))
        except (TypeError, ValueError) as error:
            raise BadOutput(
                f"box {spec.name} answered a {type(answer).__name__}; return one array of numbers"
            ) from error
    return _typed(answer.detach().to(device, copy=True), spec)


def check_outputs(
    outputs: Tensor, n: int, spec: BoxSpec, num_outputs: tuple[int, ...] | None = None, batch: str = "batch"
) -> Tensor:
    """The answer to n images, if it keeps the rules of its kind.

    It must be (n, K) with K >= 2 (logits, probabilities), (n,) integers in 0 ... num_classes - 1 (labels) or (n, ...)
    (values), shaped as before and finite; probabilities lie in [0, 1] within 1e-4 and sum to 1 within 1e-2.

    Args:
        outputs: Answer of the box.
        n: Number of images asked about.
        spec: Declaration of the box.
        num_outputs: Trailing shape of earlier answers (labels: ()), None before the first.
        batch: Name of the call in an error, as "batch 3 (32 images)".

    Returns:
        The answer without gradients, labels as int64 and all else as floats.

    Raises:
        BadOutput: The answer breaks a rule; the text names batch, rule and value.
    """
    if not isinstance(outputs, Tensor):
        raise BadOutput(f"{batch}: {spec.outputs} must be a tensor, got {type(outputs).__name__}")
    outputs = _typed(outputs.detach(), spec)
    broken = _broken_shape(tuple(outputs.shape), n, spec, num_outputs) or _broken_values(outputs, spec)
    if broken is not None:
        raise BadOutput(f"{batch}: {broken}")
    return outputs


def _broken_shape(shape: tuple[int, ...], n: int, spec: BoxSpec, num_outputs: tuple[int, ...] | None) -> str | None:
    """The rule on shapes that an answer breaks, with what came; None for a good one."""
    right_rank = {"labels": len(shape) == 1, "values": len(shape) >= 1}.get(spec.outputs, len(shape) == 2)
    if not right_rank:
        return f"{spec.outputs} must be {_SHAPES[spec.outputs]}, got shape {shape}"
    if shape[0] != n:
        return f"{n} images need {n} answers, got {shape[0]} (shape {shape})"
    if num_outputs is not None and shape[1:] != tuple(num_outputs):
        return f"answers to earlier images had shape {tuple(num_outputs)}, these have {shape[1:]}"
    if spec.outputs in ("logits", "probabilities"):
        if shape[1] < 2:
            return f"{spec.outputs} must cover at least 2 classes, got {shape[1]}"
        if spec.num_classes not in (None, shape[1]):
            return f"{spec.outputs} must cover num_classes = {spec.num_classes}, got {shape[1]}"
    return None


def _broken_values(outputs: Tensor, spec: BoxSpec) -> str | None:
    """The rule on values that an answer breaks, with what came; None for a good one."""
    if outputs.is_complex():
        return f"{spec.outputs} must be real numbers, got {outputs.dtype}"
    if outputs.numel() == 0:
        return None
    low, high = (extreme.item() for extreme in outputs.aminmax())  # NaN where there is one; a single pass over all
    if not (math.isfinite(low) and math.isfinite(high)):
        finite = outputs.isfinite()
        return f"{spec.outputs} must be finite, got {outputs[~finite][0].item()} ({(~finite).sum()} such values)"
    if spec.outputs in ("logits", "values"):
        return None
    if spec.outputs == "labels" and outputs.is_floating_point():  # whole ones were converted before
        return f"labels must be integers, got {outputs[outputs != outputs.round()][0].item()}"
    if spec.outputs == "labels":
        top = (spec.num_classes or 0) - 1
        return None if low >= 0 and high <= top else f"labels must be in 0..{top}, got {low if low < 0 else high}"
    if low < -_RANGE_TOLERANCE or high > 1 + _RANGE_TOLERANCE:
        return f"probabilities must be in [0, 1], got {low if low < -_RANGE_TOLERANCE else high:.6g}"
    sums = outputs.sum(1)
    worst = sums[(sums - 1).abs().argmax()].item()
    return None if abs(worst - 1) <= _SUM_TOLERANCE else f"probabilities of an image must sum to 1, got {worst:.6g}"


def _typed(outputs: Tensor, spec: BoxSpec) -> Tensor:
    """Whole labels as int64, scores and values at least as float32; anything else as it came, for the check to name."""
    if outputs.is_complex():
        return outputs
    if spec.outputs != "labels":
        return outputs if outputs.dtype in (torch.float32, torch.float64) else outputs.float()
    whole = not outputs.is_floating_point() or bool((outputs.isfinite() & (outputs == outputs.round())).all())
    return outputs.long() if whole else outputs

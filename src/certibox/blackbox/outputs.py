"""What a box answers: the scores in what a model returns, as a tensor of the declared kind, checked."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from certibox.blackbox.base import BoxSpec
from certibox.blackbox.numbers import as_numbers
from certibox.errors import BadOutput, Notice, OtherClasses

_SHAPES = {"logits": "(n, K)", "probabilities": "(n, K)", "labels": "(n,)", "values": "(n, ...)", "top-k": "(n, K)"}
_RANGE_TOLERANCE = 1e-4  # a probability may leave [0, 1] by this much
_NEAR_ONE = 0.3  # a sum that misses 1 by less is no sum of independent sigmoids, for all that one can tell
_SUM_TOLERANCE = 1e-2  # a row of probabilities may miss 1 by this much
_ROUNDED_TOLERANCE = 5e-2  # the most by which a row of rounded ones may
_STEPS = (10, 100, 255, 256, 1000, 10_000)  # roundings that are recognised: decimals and the levels of 8-bit networks


def picked(answer: Any, key: str | int | None, spec: BoxSpec) -> Any:
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
            return answer[key] if key in answer else answer[int(key)]
        if isinstance(answer, list | tuple) and str(key).lstrip("-").isdigit():
            return answer[int(key)]
        return getattr(answer, str(key))
    except (KeyError, IndexError, AttributeError, ValueError) as error:
        parts = list(answer) if isinstance(answer, Mapping) else f"a {type(answer).__name__}"
        raise BadOutput(f"box {spec.name} answered {parts}, which has no {key!r}; give another output_key") from error


def to_outputs(answer: object, spec: BoxSpec, device: torch.device, n: int | None = None) -> Tensor:
    """A model's answer (tensor, array, table or nested list) as a tensor of the kind that `spec` declares.

    Always a copy: a model may reuse its output buffer, and the copy of an inference tensor may enter an autograd graph.

    Args:
        answer: Answer of the model, as it came.
        spec: Declaration of the box.
        device: Device of the images, where the answer goes.
        n: Number of images asked about, where the caller knows it: the answer to one image may lack its first
            dimension.

    Raises:
        BadOutput: The answer is no array of numbers; `check_outputs` judges the rest.
    """
    found = in_columns(_typed(as_numbers(answer, spec).detach().to(device, copy=True), spec), spec, n)
    return completed(found) if spec.outputs == "top-k" and found.ndim == 2 else found


def completed(scores: Tensor) -> Tensor:
    """The largest probabilities of each image, with estimates of the classes that were left out as NaN.

    A class that is left out has at most the least probability that was said. All of them share what is missing to 1
    evenly, and stay below that bound, so that the top class is the one that was said. A row of NaN stays as it is.

    Args:
        scores: Probabilities (n, K), NaN where nothing was said.
    """
    missing = scores.isnan()
    said = torch.where(missing, torch.inf, scores).amin(1, keepdim=True)  # the least that was said
    rest = (1 - scores.nansum(1, keepdim=True)).clamp_min(0) / missing.sum(1, keepdim=True).clamp_min(1)
    bound = torch.nextafter(said, torch.zeros_like(said)).clamp_min(0)
    shares = torch.where(said.isfinite(), torch.minimum(rest, bound), torch.nan)
    return torch.where(missing, shares, scores)


def in_columns(scores: Tensor, spec: BoxSpec, n: int | None = None) -> Tensor:
    """Numbers in the shape of their kind: of a model with one output, which has two classes, both columns.

    A probability p, (n, 1) or (n,), becomes (1 - p, p), and a score s becomes (0, s). Labels (n, 1) become (n,). For
    one image, (K,) becomes (1, K). Whatever fits no such form comes back as it is, for `check_outputs` to name.
    Autograd can follow.

    Args:
        scores: Numbers that a model answered.
        spec: Declaration of the box.
        n: Number of images asked about; None where nobody knows.
    """
    shape = scores.shape
    if len(shape) == 2 and shape[1] > 1:
        return scores
    if n == 1 and (not shape or (len(shape) == 1 and shape[0] != 1)):  # one image, whose dimension is missing
        return in_columns(scores[None], spec, n)
    single = len(shape) == 2 and shape[1] == 1
    if spec.outputs == "labels":
        return scores[:, 0] if single else scores
    one_each = single or (len(shape) == 1 and n in (None, shape[0]))
    if spec.outputs in ("values", "top-k") or not one_each or spec.num_classes not in (None, 2):
        return scores
    score = scores.reshape(-1)
    score = score if score.dtype in (torch.float32, torch.float64) or score.is_complex() else score.float()
    return torch.stack([1 - score if spec.outputs == "probabilities" else torch.zeros_like(score), score], 1)


def check_outputs(
    outputs: Tensor, n: int, spec: BoxSpec, num_outputs: tuple[int, ...] | None = None, batch: str = "batch"
) -> Tensor:
    """The answer to n images, if it keeps the rules of its kind; of probabilities, what lies beyond 0 or 1 is clipped.

    It must be (n, K) with K >= 2 (logits, probabilities), (n,) integers in 0 ... num_classes - 1 (labels) or (n, ...)
    (values), shaped as before and finite; probabilities lie in [0, 1] within 1e-4 and sum to 1 within 1e-2. Where all
    of them are seen to be rounded, to 1 to 4 decimals or to 8 bits, each may be off by half a step: their sum may miss
    1 by K half steps, but never by more than 0.05. At the first answer (`num_outputs` is None) a warning says that
    logits look like probabilities.

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
        OtherClasses: The first answer is for another number of classes than is declared, or a label is beyond it.
    """
    if not isinstance(outputs, Tensor):
        raise BadOutput(f"{batch}: {spec.outputs} must be a tensor, got {type(outputs).__name__}")
    outputs = _typed(outputs.detach(), spec)
    if other := _other_classes(outputs, n, spec, num_outputs):
        raise OtherClasses(f"{batch}: {other}")
    broken = _broken_shape(tuple(outputs.shape), n, spec, num_outputs) or _broken_values(outputs, spec)
    if broken is not None:
        raise BadOutput(f"{batch}: {broken}")
    if num_outputs is None and spec.outputs == "logits":
        _warn_of_probabilities(outputs, spec)
    return outputs.clamp(0, 1) if spec.outputs in ("probabilities", "top-k") else outputs


def _warn_of_probabilities(logits: Tensor, spec: BoxSpec) -> None:
    """A word on logits that sum to 1: their softmax would be taken once more. One-hot rows are left alone."""
    within = bool(((logits >= 0) & (logits <= 1)).all()) and bool(((logits.sum(1) - 1).abs() < 1e-3).all())
    if within and not bool(((logits == 0) | (logits == 1)).all()):
        warnings.warn(
            f"the logits of box {spec.name} look like probabilities: those of each image sum to 1; declare "
            "outputs='probabilities' if they are",
            Notice,
            stacklevel=3,
        )


def _other_classes(outputs: Tensor, n: int, spec: BoxSpec, known: tuple[int, ...] | None) -> str | None:
    """What to say of an answer for other classes than are declared; None where it fits, or is wrong otherwise."""
    shape, declared = tuple(outputs.shape), spec.num_classes
    if declared is None or shape[:1] != (n,) or 0 in shape:
        return None
    if spec.outputs == "labels":
        high = int(outputs.max()) if len(shape) == 1 and outputs.dtype == torch.int64 and int(outputs.min()) >= 0 else 0
        came = f"labels must be in 0..{declared - 1}, got {high}, while num_classes is {declared}"
        return None if high < declared else f"{came}; give at least {high + 1} if the model has so many classes"
    if known is not None or spec.outputs == "values":
        return None
    fractions = len(shape) == 1 and bool((outputs.isfinite() & (outputs != outputs.real.round())).any())
    single = shape[1:] == (1,) or fractions  # whole numbers (n,) are labels
    count = 2 if single else shape[1] if len(shape) == 2 else declared
    what = "one score an image, which is for 2 classes," if single else f"for {count} classes"
    return None if count == declared else f"the box answers {what} while num_classes is {declared}; give {count}"


def _broken_shape(shape: tuple[int, ...], n: int, spec: BoxSpec, num_outputs: tuple[int, ...] | None) -> str | None:
    """The rule on shapes that an answer breaks, with what came; None for a good one."""
    right_rank = {"labels": len(shape) == 1, "values": len(shape) >= 1}.get(spec.outputs, len(shape) == 2)
    if not right_rank:
        return f"{spec.outputs} must be {_SHAPES[spec.outputs]}, got shape {shape}"
    if shape[0] != n:
        return f"{n} images need {n} answers, got {shape[0]} (shape {shape})"
    if num_outputs is not None and shape[1:] != tuple(num_outputs):
        return f"answers to earlier images had shape {tuple(num_outputs)}, these have {shape[1:]}"
    if spec.outputs in ("logits", "probabilities", "top-k") and shape[1] < 2:
        return f"{spec.outputs} must cover at least 2 classes, got {shape[1]}"
    return None


def _broken_values(outputs: Tensor, spec: BoxSpec) -> str | None:
    """The rule on values that an answer breaks, with what came; None for a good one."""
    if outputs.is_complex():
        return f"{spec.outputs} must be real numbers, got {outputs.dtype}"
    if outputs.numel() == 0:
        return None
    low, high = (extreme.item() for extreme in outputs.aminmax())  # NaN where there is one; a single pass over all
    if not (math.isfinite(low) and math.isfinite(high)):
        wrong = ~outputs.isfinite()
        return f"{spec.outputs} must be finite, got {_given(outputs, wrong)} ({wrong.sum()} such values)"
    if spec.outputs in ("logits", "values"):
        return None
    if spec.outputs == "labels" and outputs.is_floating_point():  # whole ones were converted before
        return f"labels must be integers, got {outputs[outputs != outputs.round()][0].item()}"
    if spec.outputs == "labels":
        top = (spec.num_classes or 0) - 1
        return None if low >= 0 and high <= top else f"labels must be in 0..{top}, got {low if low < 0 else high}"
    if low < -_RANGE_TOLERANCE or high > 1 + _RANGE_TOLERANCE:
        came = _given(outputs, (outputs < -_RANGE_TOLERANCE) | (outputs > 1 + _RANGE_TOLERANCE))
        return f"probabilities must be in [0, 1], got {came:.6g}; {_outside(outputs, low, high)}"
    if spec.outputs == "top-k":
        most = outputs.sum(1).max().item()
        return (
            None
            if most <= 1 + _ROUNDED_TOLERANCE
            else f"probabilities of an image must sum to at most 1, got {most:.6g}"
        )
    return _broken_sums(outputs)


def _given(outputs: Tensor, wrong: Tensor) -> float:
    """The worst of the values that are wrong; of (1 - p, p), which one output became, the p that the model gave."""
    if outputs.shape[1:] == (2,) and bool(wrong[:, 1].any()):
        outputs, wrong = outputs[:, 1], wrong[:, 1]
    found = outputs[wrong]
    return found[(found - 0.5).abs().argmax()].item()


def _outside(outputs: Tensor, low: float, high: float) -> str:
    """What probabilities that leave [0, 1] may be, and what to do."""
    if high <= 0 and bool(((outputs.exp().sum(1) - 1).abs() <= _SUM_TOLERANCE).all()):
        return "these look like log-probabilities: declare outputs='logits'"
    if outputs.shape[1:] == (2,) and high > 1 and bool((outputs == outputs.round()).all()):  # of one output, (1 - p, p)
        return "these look like labels: declare outputs='labels', or choose the output that holds scores"
    sums = outputs.sum(1)
    if low >= 0 and bool(((sums / sums.mean() - 1).abs() <= _ROUNDED_TOLERANCE).all()):
        return f"those of each image sum to about {sums.mean().item():.3g}: divide them by their sum"
    return "if they are logits, declare outputs='logits'"


def _broken_sums(probabilities: Tensor) -> str | None:
    """The sum that is not 1, with what it may mean; None where all are."""
    sums = probabilities.sum(1)
    worst, steps = sums[(sums - 1).abs().argmax()].item(), _steps(probabilities)
    # Half a step each, up to a limit, in single precision.
    rounding = min(_ROUNDED_TOLERANCE, probabilities.shape[1] * 0.5 / steps) + 1e-5 if steps else 0.0
    if abs(worst - 1) <= max(_SUM_TOLERANCE, rounding):
        return None
    if steps and abs(worst - 1) <= probabilities.shape[1] * 0.5 / steps:
        coarse = f"they are rounded to steps of 1/{steps}, too coarse for {probabilities.shape[1]} classes"
        what = f"{coarse}: answer with more digits, or divide them by their sum"
    elif abs(worst - 1) < _NEAR_ONE:
        what = "divide them by their sum, if they are shares of one whole"
    else:
        what = "these look like independent sigmoids: declare outputs='logits' if the largest decides, or answer with "
        what += "one label's column"
    return f"probabilities of an image must sum to 1, got {worst:.6g}; {what}"


def _steps(probabilities: Tensor) -> int | None:
    """The number of steps that all of these numbers are seen to be rounded to; None for numbers in full."""
    for steps in _STEPS:
        scaled = probabilities.double() * steps
        if bool(((scaled - scaled.round()).abs() < 1e-3).all()):
            return steps
    return None


def _typed(outputs: Tensor, spec: BoxSpec) -> Tensor:
    """Whole labels as int64, scores and values at least as float32; anything else as it came, for the check to name."""
    if outputs.is_complex():
        return outputs
    if spec.outputs != "labels":
        return outputs if outputs.dtype in (torch.float32, torch.float64) else outputs.float()
    whole = not outputs.is_floating_point() or bool((outputs.isfinite() & (outputs == outputs.round())).all())
    return outputs.long() if whole else outputs

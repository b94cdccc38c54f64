"""What every black box is: a `BoxSpec` that declares it, and a call from pixels in [0, 1] to plain tensors."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from certibox.errors import BadOutput, InvalidImages, InvalidInput, NotDifferentiable

OUTPUTS = ("logits", "probabilities", "labels", "values")

_SHAPES = {"logits": "(n, K)", "probabilities": "(n, K)", "labels": "(n,)", "values": "(n, ...)"}
_RANGE_TOLERANCE = 1e-4  # a probability may leave [0, 1] by this much
_SUM_TOLERANCE = 1e-2  # a row of probabilities may miss 1 by this much: endpoints often round to two or three decimals


@dataclass(frozen=True)
class BoxSpec:
    """Declares what a box answers and how pixels in [0, 1] become its input.

    outputs: "logits" or "probabilities" (n, K), "labels" (n,) integers, or "values" (n, ...), any real numbers.
    num_classes: K; required for labels, else a check on what the box answers.
    input_range: (lo, hi) that the model expects; a pixel x becomes lo + (hi - lo) x.
    clip: clip pixels to [0, 1] before anything else.
    levels: round pixels to the grid of `levels` equally spaced values on [0, 1]; implies `clip`.
    mean, std: normalisation per channel, in the units of `input_range`, after everything else.
    image_shape: (c, h, w); images of another shape are refused.
    batch_size: the number of images a call that serves the box best; never above `max_batch`.
    max_batch: the most images that one call may hold.
    name: what messages and records call the box.
    identity: a digest of the model itself, where an adapter can take one without a query; None for a function.

    Raises InvalidInput for a declaration that cannot hold.
    """

    outputs: str
    num_classes: int | None = None
    input_range: tuple[float, float] = (0.0, 1.0)
    clip: bool = False
    levels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_shape: tuple[int, int, int] | None = None
    batch_size: int = 256
    max_batch: int | None = None
    name: str = "box"
    identity: str | None = None

    def __post_init__(self) -> None:
        if self.outputs not in OUTPUTS:
            raise InvalidInput(f"outputs is {self.outputs!r}; give one of {', '.join(OUTPUTS)}")
        if self.num_classes is None and self.outputs == "labels":
            raise InvalidInput("outputs='labels' without num_classes; give the number of classes")
        for field, least in (("num_classes", 2), ("levels", 2), ("batch_size", 1), ("max_batch", 1)):
            value = getattr(self, field)
            if value is not None and not (_is_int(value) and value >= least):
                raise InvalidInput(f"{field} is {value!r}; give an integer of at least {least}")
        self._settle_tuples()
        # Equal behaviour is an equal declaration: say what is implied.
        _set(self, "clip", self.clip or self.levels is not None)
        _set(self, "batch_size", min(self.batch_size, self.max_batch or self.batch_size))

    def _settle_tuples(self) -> None:
        """Turns lists (from a configuration file) into tuples and checks them."""
        _set(self, "input_range", _floats("input_range", self.input_range))
        if len(self.input_range) != 2 or not self.input_range[0] < self.input_range[1]:
            raise InvalidInput(f"input_range is {self.input_range}; give (lo, hi) with lo < hi")
        for field in ("mean", "std"):
            if getattr(self, field) is not None:
                _set(self, field, _floats(field, getattr(self, field)))
        if self.std is not None and min(self.std) <= 0:
            raise InvalidInput(f"std is {self.std}; every entry must be above 0")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise InvalidInput(f"mean has {len(self.mean)} channels and std {len(self.std)}; give as many of each")
        if self.image_shape is None:
            return
        _set(self, "image_shape", tuple(self.image_shape))
        if len(self.image_shape) != 3 or not all(_is_int(size) and size >= 1 for size in self.image_shape):
            raise InvalidInput(f"image_shape is {self.image_shape}; give (channels, height, width), each at least 1")
        if self._channels not in (None, self.image_shape[0]):
            raise InvalidInput(f"mean or std has {self._channels} channels, image_shape is {self.image_shape}")

    @property
    def _channels(self) -> int | None:
        """The number of channels that the normalisation is for."""
        per_channel = self.mean or self.std
        return None if per_channel is None else len(per_channel)

    def check_images(self, x: Tensor) -> None:
        """Raises InvalidImages unless x is a float batch (n, c, h, w) of the declared shape."""
        shape = tuple(x.shape)
        if not x.is_floating_point():
            raise InvalidImages(f"images are {x.dtype}; give floats in [0, 1] (uint8 images divided by 255)")
        if len(shape) != 4:
            raise InvalidImages(f"images have shape {shape}; give a batch (n, channels, height, width)")
        if self.image_shape is not None and shape[1:] != self.image_shape:
            raise InvalidImages(f"images have shape {shape[1:]}; box {self.name} takes {self.image_shape}")
        if self._channels not in (None, shape[1]):
            raise InvalidImages(f"images have {shape[1]} channels; mean or std of box {self.name} has {self._channels}")

    def prepare(self, x: Tensor) -> Tensor:
        """Pixels as the model wants them: clip, round, map to the range, normalise. (n, c, h, w) -> (n, c, h, w)

        Keeps dtype and device, and returns x itself where nothing is declared. Raises InvalidImages (`check_images`).
        """
        self.check_images(x)
        if self.clip:
            x = x.clamp(0, 1)
        steps = 1
        if self.levels is not None:
            steps = self.levels - 1
            x = (x * steps).round()
        lo, hi = self.input_range
        if (lo, hi, steps) != (0, 1, 1):
            # Multiplied before divided, so that 256 levels on (0, 255) are exact integers: a model may truncate them.
            x = x * (hi - lo) / steps + lo
        if self.mean is not None:
            x = x - x.new_tensor(self.mean).view(-1, 1, 1)
        if self.std is not None:
            x = x / x.new_tensor(self.std).view(-1, 1, 1)
        return x

    def provenance(self) -> dict[str, Any]:
        """The declaration as plain JSON values, without batch sizes: those cannot change an answer."""
        fields = asdict(self)
        del fields["batch_size"], fields["max_batch"]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}

    @property
    def model_id(self) -> str:
        """A name that changes with the declaration, and with the model where that has an identity."""
        declared = json.dumps(self.provenance(), sort_keys=True)
        return f"{self.name}:{hashlib.sha256(declared.encode()).hexdigest()[:12]}"


class BlackBox(Protocol):
    """A model that can only be asked.

    A call takes float pixels in [0, 1] (n, c, h, w), at most `spec.max_batch` of them, and answers, on their device and
    without gradients: logits or probabilities float (n, K), labels int64 (n,), values float (n, ...).
    """

    @property
    def spec(self) -> BoxSpec: ...

    def __call__(self, x: Tensor) -> Tensor: ...


def differentiable(box: BlackBox) -> Callable[[Tensor], Tensor]:
    """The box as a function (n, c, h, w) -> outputs that autograd can follow.

    Raises NotDifferentiable for a box that has none, or whose gradient is zero wherever it exists.
    """
    if box.spec.outputs == "labels":
        reason = "answers with labels"
    elif box.spec.levels is not None:
        reason = f"rounds its input to {box.spec.levels} levels, so that they are zero"
    elif (function := getattr(box, "differentiable", None)) is None:
        reason = "gives none"
    else:
        return function
    raise NotDifferentiable(
        f"a first-order method needs gradients; box {box.spec.name} {reason}; use a zeroth-order method"
    )


def to_outputs(answer: object, spec: BoxSpec, device: torch.device) -> Tensor:
    """A model's answer (tensor, array or nested list) as a tensor of the kind that `spec` declares.

    Always a copy: a model may reuse its output buffer, and the copy of an inference tensor may enter an autograd graph.
    Raises BadOutput for an answer that is no array of numbers; `check_outputs` judges the rest.
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
    """The answer to n images, held to the rules of its kind.

    outputs: what the box returned. num_outputs: trailing shape of earlier answers (labels: ()), None before the first.
    batch: names the call in an error, as "batch 3 (32 images)".

    Returns the answer without gradients, labels as int64 and all else as floats. Raises BadOutput, naming batch, rule
    and value, unless it is (n, K) with K >= 2 (logits, probabilities), (n,) integers in 0 ... num_classes - 1 (labels)
    or (n, ...) (values), shaped as before and finite; probabilities lie in [0, 1] within 1e-4 and sum to 1 within 1e-2.
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
    if outputs.is_floating_point() and not (finite := outputs.isfinite()).all():
        return f"{spec.outputs} must be finite, got {outputs[~finite][0].item()} ({(~finite).sum()} such values)"
    if outputs.numel() == 0 or spec.outputs in ("logits", "values"):
        return None
    if spec.outputs == "labels" and outputs.is_floating_point():  # whole ones were converted before
        return f"labels must be integers, got {outputs[outputs != outputs.round()][0].item()}"
    low, high = (extreme.item() for extreme in outputs.aminmax())
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
        return outputs if outputs.dtype == torch.float64 else outputs.float()
    whole = not outputs.is_floating_point() or bool((outputs.isfinite() & (outputs == outputs.round())).all())
    return outputs.long() if whole else outputs


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _floats(field: str, values: Any) -> tuple[float, ...]:
    """A declared sequence of numbers as a tuple of finite floats, at least one."""
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise InvalidInput(f"{field} is {values!r}; give a sequence of finite numbers")
    return numbers


def _set(spec: BoxSpec, field: str, value: object) -> None:
    """Settles a field while the frozen value is being made."""
    object.__setattr__(spec, field, value)

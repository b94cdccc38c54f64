"""What every black box is: a `BoxSpec` that declares it, and a call from pixels in [0, 1] to plain tensors."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from certibox.data.pixels import as_images
from certibox.errors import BadOutput, InvalidImages, InvalidInput, NotDifferentiable, did_you_mean

OUTPUTS = ("logits", "probabilities", "labels", "values")

_LEAST = {"num_classes": 2, "levels": 2, "batch_size": 1, "max_batch": 1, "concurrency": 1}
_SHAPES = {"logits": "(n, K)", "probabilities": "(n, K)", "labels": "(n,)", "values": "(n, ...)"}
_RANGE_TOLERANCE = 1e-4  # a probability may leave [0, 1] by this much
_SUM_TOLERANCE = 1e-2  # a row of probabilities may miss 1 by this much: endpoints often round to two or three decimals


@dataclass(frozen=True)
class BoxSpec:
    """Declares what a box answers and how pixels in [0, 1] become its input.

    Raises:
        InvalidInput: The declaration cannot hold.
    """

    outputs: str
    """Kind of the answers: "logits" or "probabilities" (n, K), "labels" (n,) integers, "values" (n, ...) reals."""
    num_classes: int | None = None
    """Number of classes K; required for labels, else a check on what the box answers."""
    input_range: tuple[float, float] = (0.0, 1.0)
    """Range (lo, hi) that the model expects; a pixel x becomes lo + (hi - lo) x."""
    clip: bool = False
    """Whether pixels are clipped to [0, 1] before anything else."""
    levels: int | None = None
    """Number of equally spaced values on [0, 1] that pixels are rounded to; implies `clip`."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel to subtract, in the units of `input_range`, after everything above."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel to divide by, in the units of `input_range`, after everything above."""
    image_shape: tuple[int, int, int] | None = None
    """Shape (c, h, w) of an image; images of another shape are refused."""
    batch_size: int = 256
    """Number of images a call that serves the box best; never above `max_batch`."""
    max_batch: int | None = None
    """Most images that one call may hold."""
    name: str = "box"
    """Name of the box in messages and records."""
    identity: str | None = None
    """Digest of the model itself, where an adapter can take one without a query; None for a function."""
    concurrency: int = 1
    """Most calls that may be under way at once, whatever the number of threads; more than 1 serves a remote model."""

    def __post_init__(self) -> None:
        if self.outputs not in OUTPUTS:
            meant = did_you_mean(self.outputs, OUTPUTS)
            raise InvalidInput(f"outputs is {self.outputs!r}; give one of {', '.join(OUTPUTS)}{meant}")
        if self.num_classes is None and self.outputs == "labels":
            raise InvalidInput("outputs='labels' without num_classes; give the number of classes")
        for field, least in _LEAST.items():
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

    @property
    def summary(self) -> str:
        """The declaration in a few words, without what a URL as name may hold of passwords and keys."""
        parts = [f"{_without_secrets(self.name)}: {self.outputs}"]
        if self.num_classes is not None:
            parts.append(f"{self.num_classes} classes")
        if self.image_shape is not None:
            parts.append(f"images {'x'.join(map(str, self.image_shape))}")
        return ", ".join(parts)

    def check_images(self, x: Tensor) -> None:
        """Refuse what is no batch of images of the declared shape.

        Args:
            x: Images (n, c, h, w), floats.

        Raises:
            InvalidImages: The images are integers or have another shape.
        """
        shape = tuple(as_images(x).shape)
        if self.image_shape is not None and shape[1:] != self.image_shape:
            raise InvalidImages(f"images have shape {shape[1:]}; box {self.name} takes {self.image_shape}")
        if self._channels not in (None, shape[1]):
            raise InvalidImages(f"images have {shape[1]} channels; mean or std of box {self.name} has {self._channels}")

    def prepare(self, x: Tensor) -> Tensor:
        """Pixels as the model wants them: clip, round, map to the range, normalise. (n, c, h, w) -> (n, c, h, w)

        Args:
            x: Images (n, c, h, w), floats on [0, 1].

        Returns:
            Images of the same dtype on the same device; x itself where nothing is declared.

        Raises:
            InvalidImages: The images do not fit, see `check_images`.
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
        """The declaration as plain JSON values, without batch sizes and concurrency: those cannot change an answer."""
        fields = asdict(self)
        del fields["batch_size"], fields["max_batch"], fields["concurrency"]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}

    @property
    def model_id(self) -> str:
        """A name that changes with the declaration, and with the model where that has an identity."""
        declared = json.dumps(self.provenance(), sort_keys=True)
        return f"{self.name}:{hashlib.sha256(declared.encode()).hexdigest()[:12]}"


class BlackBox(Protocol):
    """A model that can only be asked: a declaration, and a call that answers."""

    @property
    def spec(self) -> BoxSpec:
        """Declaration of the model."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Answers to images, on their device and without gradients.

        Args:
            x: Images (n, c, h, w), float pixels on [0, 1], at most `spec.max_batch` of them.

        Returns:
            Logits or probabilities (n, K) of floats, labels (n,) of int64, or values (n, ...) of floats.
        """
        ...


def differentiable(box: BlackBox) -> Callable[[Tensor], Tensor]:
    """The box as a function (n, c, h, w) -> outputs that autograd can follow.

    Args:
        box: Black box.

    Raises:
        NotDifferentiable: The box has no gradient, or one that is zero wherever it exists.
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


def _without_secrets(name: object) -> str:
    """A name on one line. Of a URL, without user, password and what follows a question mark."""
    line = " ".join(str(name).split())
    return re.sub(r"\?.*", "?...", re.sub(r"//[^/@]*@", "//...@", line)) if "://" in line else line


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

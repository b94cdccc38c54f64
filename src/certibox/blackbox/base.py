"""What every black box is: a `BoxSpec` that declares it, and a call from pixels in [0, 1] to plain tensors."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from certibox.data.pixels import as_images
from certibox.errors import InvalidImages, InvalidInput, NotDifferentiable, masked, one_line, one_of

OUTPUTS = ("logits", "probabilities", "labels", "values", "top-k")
LAYOUTS = ("NCHW", "NHWC", "flat", "flat-NHWC")
DTYPES = ("float32", "float64", "float16", "uint8")
BILLED = ("image", "request", "attempt")

_LARGEST = 3.4e38  # in single precision
_EIGHT_BITS = 200  # a range as wide as this is that of 8-bit pixels
_LATER = {"layout": "NCHW", "dtype": None, "takes_nan": False}
_KINDS = {  # field -> types that it may have, in words too
    "clip": ((bool, np.bool_), "True or False"),
    "takes_nan": ((bool, np.bool_), "True or False"),
    "name": (str, "a text"),
    "identity": ((str, type(None)), "a text, such as a digest or a version"),
    "image_shape": ((tuple, list, type(None)), "(channels, height, width)"),
}
_LEAST = {"num_classes": 2, "levels": 2, "batch_size": 1, "max_batch": 1, "concurrency": 1}


@dataclass(frozen=True)
class BoxSpec:
    """Declares what a box answers and how pixels become its input.

    Pixels are on [0, 1] where they are clean. With noise on them, and behind a defense, they leave that range unless
    `clip` or `levels` is declared.

    Raises:
        InvalidInput: The declaration cannot hold.
    """

    outputs: str
    """Kind of the answers: "logits" or "probabilities" (n, K), "labels" (n,) integers, "values" (n, ...) reals, or
    "top-k", probabilities (n, K) of which the box says the largest alone. It leaves the others out as NaN. Each of them
    is known up to a bound, the least that was said, and gets an even share of what is missing to 1, below that bound.
    Votes need the top class alone, which is exact; a loss of a class that was left out is an estimate."""
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
    """Name of the box in messages and records, without what a URL may hold of passwords and keys."""
    identity: str | None = None
    """Digest of the model itself, joined with what its user gave; None for a function of which nobody gave one."""
    concurrency: int = 1
    """Most calls that may be under way at once, whatever the number of threads; more than 1 serves a remote model."""
    layout: str = "NCHW"
    """Order of the numbers that the model takes: "NCHW" (n, c, h, w), "NHWC" (n, h, w, c), "flat" (n, c * h * w) or
    "flat-NHWC" (n, h * w * c)."""
    dtype: str | None = None
    """Type of the numbers that the model takes: "float32", "float64", "float16", or "uint8", which is
    `input_range=(0, 255)` with `levels=256`; None for the adapter's own."""
    takes: tuple[int | None, ...] | None = None
    """Sizes of one image in the order of `layout`, as (3, None, None), where the model itself fixes them, None for a
    size that is free; (3072,) for a model of flat images."""
    takes_nan: bool = False
    """Whether pixels may be NaN or infinite; else such images are refused, and not paid for."""
    bills: str = "image"
    """What a provider bills, and a budget counts: "image", every image that was answered, or may have been; "request",
    every call that was, whatever the number of its images; or "attempt", every image of every call, refused ones too.
    """

    def __post_init__(self) -> None:
        for field, known in (("outputs", OUTPUTS), ("layout", LAYOUTS), ("dtype", DTYPES), ("bills", BILLED)):
            came = getattr(self, field)
            if not (isinstance(came, str) and came in known) and not (field == "dtype" and came is None):
                raise InvalidInput(f"{field} is {came!r}; give {one_of(came, known)}")
        for field, (kinds, wanted) in _KINDS.items():
            if not isinstance(came := getattr(self, field), kinds):
                raise InvalidInput(f"{field} is {came!r}; give {wanted}")
        if self.num_classes is None and self.outputs == "labels":
            raise InvalidInput("outputs='labels' without num_classes; give the number of classes")
        for field, least in _LEAST.items():
            value = getattr(self, field)
            if value is not None and not (_is_int(value) and value >= least):
                raise InvalidInput(f"{field} is {value!r}; give an integer of at least {least}")
            _set(self, field, None if value is None else int(value))
        self._settle_tuples()
        self._settle_integers()
        _set(self, "name", masked(self.name))  # it stands in messages, rows and files
        # Equal behaviour is an equal declaration: say what is implied.
        _set(self, "clip", bool(self.clip) or self.levels is not None)
        _set(self, "batch_size", min(self.batch_size, self.max_batch or self.batch_size))

    def _settle_integers(self) -> None:
        """What an input of whole numbers implies: pixels 0 to 255, on the grid."""
        if self.dtype != "uint8":
            return
        if self.mean is not None or self.std is not None:
            raise InvalidInput("mean or std was given for a uint8 input, which is not normalised; leave them out")
        if self.input_range not in ((0.0, 1.0), (0.0, 255.0)):
            raise InvalidInput(f"input_range is {self.input_range}, but a uint8 input has (0, 255); leave it out")
        _set(self, "input_range", (0.0, 255.0))
        _set(self, "levels", self.levels or 256)

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
        if len(self.image_shape) != 3 or not all(_is_int(size) and size >= 1 for size in self.image_shape):
            raise InvalidInput(f"image_shape is {self.image_shape}; give (channels, height, width), each at least 1")
        _set(self, "image_shape", tuple(map(int, self.image_shape)))
        if self._channels not in (None, self.image_shape[0]):
            raise InvalidInput(f"mean or std has {self._channels} channels, image_shape is {self.image_shape}")
        if not self._fits(self.image_shape):
            raise InvalidInput(f"image_shape is {self.image_shape}; {self._takes(self.image_shape)}")

    def _fits(self, shape: tuple[int, ...], layout: str | None = None) -> bool:
        """Whether images (c, h, w), arranged in a layout, have the sizes that the model takes."""
        if self.takes is None:
            return True
        came = (math.prod(shape),) if len(self.takes) == 1 else _arranged(shape, layout or self.layout)
        return len(came) == len(self.takes) and all(a in (b, None) for a, b in zip(self.takes, came, strict=True))

    def _takes(self, shape: tuple[int, ...]) -> str:
        """What the model takes instead of images (c, h, w), and the layout in which it would take them."""
        if self.takes is not None and len(self.takes) == 1:
            return f"box {self.name} takes {self.takes[0]} numbers an image, these have {math.prod(shape)}"
        wanted = ", ".join("?" if size is None else str(size) for size in self.takes or ())
        fitting = [layout for layout in LAYOUTS if self._fits(shape, layout)]
        advice = f"; give layout={fitting[0]!r} (--layout {fitting[0]})" if fitting else ""
        return f"box {self.name} takes ({wanted}) in layout {self.layout}{advice}"

    @property
    def _channels(self) -> int | None:
        """The number of channels that the normalisation is for."""
        per_channel = self.mean or self.std
        return None if per_channel is None else len(per_channel)

    @property
    def summary(self) -> str:
        """The declaration in a few words, without what a URL as name may hold of passwords and keys."""
        parts = [f"{one_line(self.name)}: {self.outputs}"]
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
        if not self._fits(shape[1:]):
            raise InvalidImages(f"images have shape {shape[1:]}; {self._takes(shape[1:])}")
        if self.image_shape is not None and shape[1:] != self.image_shape:
            raise InvalidImages(f"images have shape {shape[1:]}; box {self.name} takes {self.image_shape}")
        if self._channels not in (None, shape[1]):
            raise InvalidImages(f"images have {shape[1]} channels; mean or std of box {self.name} has {self._channels}")

    def prepare(self, x: Tensor) -> Tensor:
        """Pixels as the model wants them: clip, round, map to the range, normalise. (n, c, h, w) -> (n, c, h, w)

        Args:
            x: Images (n, c, h, w), floats, on [0, 1] where they are clean.

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

    def arrange(self, prepared: Tensor) -> Tensor:
        """Prepared images in the model's own order, see `layout`: a view where torch can give one.

        Args:
            prepared: Images (n, c, h, w), as `prepare` returns them.

        Returns:
            The same numbers, (n, c, h, w), (n, h, w, c) or (n, c * h * w).
        """
        images = prepared.permute(0, 2, 3, 1) if self.layout.endswith("NHWC") else prepared
        return images.flatten(1) if self.layout.startswith("flat") else images

    @property
    def doubt(self) -> str | None:
        """What looks wrong about mean and std beside `input_range`, in whose units they are; None for a good pair."""
        lo, hi = self.input_range
        mean, std = self.mean or (), self.std or ()
        small = 0 < max(mean, default=0) < 1 or max(std, default=1) < 1
        if any(not lo <= value <= hi for value in mean) or max(std, default=0) > hi - lo:
            wrong = "lies outside of" if mean and not lo <= min(mean) <= max(mean) <= hi else "is larger than"
        elif hi - lo >= _EIGHT_BITS and small:
            wrong = "is in units of [0, 1] beside"
        else:
            return None
        pairs = list(zip(mean or (0.0,) * len(std), std or (1.0,) * len(mean), strict=True))
        most = max(abs(end - middle) / width for end in (lo, hi) for middle, width in pairs)
        return (
            f"mean {self.mean} and std {self.std} of box {self.name}: one {wrong} input_range {self.input_range}, so "
            f"that the model gets numbers up to {most:,.0f}; give input_range, mean and std in the same units"
        )

    def provenance(self) -> dict[str, Any]:
        """The declaration as plain JSON values, without what cannot change an answer: batch sizes, say."""
        fields = asdict(self)
        for name in ("batch_size", "max_batch", "concurrency", "takes", "bills"):
            del fields[name]
        # Later fields at their defaults are left out: they must not rename what was measured before they were there.
        fields = {key: value for key, value in fields.items() if key not in _LATER or value != _LATER[key]}
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
            x: Images (n, c, h, w), float pixels, on [0, 1] where they are clean; at most `spec.max_batch`.

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
    elif getattr(box, "is_quantised", False):
        reason = "computes in whole numbers, which have none"
    elif (function := getattr(box, "differentiable", None)) is None:
        reason = "gives none"
    else:
        return function
    raise NotDifferentiable(
        f"a first-order method needs gradients; box {box.spec.name} {reason}; use a zeroth-order method"
    )


def is_told_apart(box: BlackBox) -> bool:
    """Whether the identity of a box, or a name that its user gave, tells it from another; else only answers can.

    A model behind an address may become another without a word: there only an identity that its user gave counts.

    Args:
        box: Black box.
    """
    if getattr(box, "may_change", False):
        return bool(getattr(box, "is_named", False))
    vouched = getattr(box, "vouched", box.spec.name != BoxSpec.name)
    return box.spec.identity is not None or bool(vouched)


def _arranged(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """The sizes of an image (c, h, w) in a layout."""
    sizes = (*shape[1:], shape[0]) if layout.endswith("NHWC") else shape
    return (math.prod(sizes),) if layout.startswith("flat") else sizes


def _is_int(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _floats(field: str, values: Any) -> tuple[float, ...]:
    """A declared sequence of numbers as a tuple of finite floats, at least one."""
    try:
        numbers = () if isinstance(values, str | bytes) else tuple(float(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if not numbers or not all(abs(number) <= _LARGEST for number in numbers):  # False for NaN
        raise InvalidInput(f"{field} is {values!r}; give a sequence of finite numbers")
    return numbers


def _set(spec: BoxSpec, field: str, value: object) -> None:
    """Settles a field while the frozen value is being made."""
    object.__setattr__(spec, field, value)

"""What a served model takes and gives: the box's own input, so that its clients go on, and a certificate's outputs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certibox.blackbox.base import BoxSpec
from certibox.blackbox.inference_model import ANSWERS, DATATYPES
from certibox.certification.smoothing import SmoothedClassifier
from certibox.errors import InvalidInput
from certibox.serving.protocol import InferRequest, Refused

PLATFORM = "certibox_smoothed"  # by which a gateway knows another one
OUTPUTS = {"label": "INT64", "abstained": "BOOL", "radius": "FP64", "p_lower": "FP64", "queries": "INT64"}
SHARES = "shares"  # name of the vote shares where the box has no name for its answers
_FLOATS = ("FP32", "FP64", "FP16")
_OUTSIDE = 1e-3  # how far pixels may lie outside [0, 1], for rounding


@dataclass(frozen=True)
class Answer:
    """What votes say of one image."""

    label: int | None
    """Class; None for an abstention."""
    radius: float
    """Certified l2 radius, in pixels on [0, 1]; 0 for an abstention and for a prediction."""
    p_lower: float
    """Lower bound of the class's probability under the noise; 0 for a prediction."""
    counts: tuple[int, ...]
    """Votes per class (K,)."""
    queries: int
    """Queries that the box was asked for this image."""


@dataclass(frozen=True)
class Signature:
    """Input and outputs of the served model."""

    name: str
    """Name of the model in addresses."""
    version: str
    """Digest of the base classifier's name and sigma: another one is another model."""
    spec: BoxSpec
    """Declaration of the input."""
    image_shape: tuple[int, int, int]
    """Shape (c, h, w) of an image."""
    num_classes: int
    """Number of classes K."""
    input: str = "input"
    """Name of the input."""
    datatype: str = "FP32"
    """Datatype of the input."""
    output: str = SHARES
    """Name of the output that stands for the box's own."""
    output_datatype: str = "FP32"
    """Datatype of it."""

    @property
    def outputs(self) -> dict[str, str]:
        """Datatypes of all outputs, by name, the box's own first."""
        return {self.output: self.output_datatype, **OUTPUTS}

    def metadata(self) -> dict[str, Any]:
        """Metadata of the model, as the protocol has them."""
        _, *sizes = self._shape(1)
        own = [] if self._gives_labels else [self.num_classes]
        outputs = [
            {"name": name, "datatype": datatype, "shape": [-1, *own] if name == self.output else [-1]}
            for name, datatype in self.outputs.items()
        ]
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": PLATFORM,
            "inputs": [{"name": self.input, "datatype": self.datatype, "shape": [-1, *sizes]}],
            "outputs": outputs,
        }

    @property
    def _gives_labels(self) -> bool:
        return self.spec.outputs == "labels"

    def _shape(self, images: int) -> tuple[int, ...]:
        c, h, w = self.image_shape
        if self.spec.layout.startswith("flat"):
            return images, c * h * w
        return (images, h, w, c) if self.spec.layout == "NHWC" else (images, c, h, w)

    def images(self, request: InferRequest, most: int) -> Tensor:
        """The images of a request, (n, c, h, w) float32 on [0, 1]: what the box's own client made of them undone.

        Args:
            request: Request for an answer.
            most: Most images that it may have.

        Raises:
            Refused: The input is not what the model takes.
        """
        if list(request.inputs) != [self.input]:
            came = ", ".join(repr(name[:40]) for name in request.inputs) or "none"
            raise Refused(400, f"the inputs are {came}; the model {self.name} takes one input, {self.input!r}")
        array, datatype = request.inputs[self.input], request.datatypes[self.input]
        if datatype != self.datatype and not (datatype in _FLOATS and self.datatype in _FLOATS):
            raise Refused(400, f"input {self.input!r} is {datatype}; the model {self.name} takes {self.datatype}")
        shape = self._shape(len(array) if array.ndim else 0)
        if array.ndim == 0 or array.shape[1:] != shape[1:] or len(array) < 1:
            wanted = ", ".join(map(str, shape[1:]))
            came = ", ".join(map(str, array.shape))
            raise Refused(400, f"input {self.input!r} has shape [{came}]; wanted [n, {wanted}] with n of at least 1")
        if len(array) > most:
            raise Refused(413, f"the request holds {len(array)} images; wanted at most {most}")
        return self.pixels(array)

    def pixels(self, array: np.ndarray) -> Tensor:
        """Images (n, c, h, w), float32 on [0, 1], from what the box takes; the inverse of its preparation.

        Args:
            array: Images in the box's own layout, range and normalisation.

        Raises:
            Refused: They are not finite, or lie outside [0, 1].
        """
        spec, (c, h, w) = self.spec, self.image_shape
        x = torch.from_numpy(np.array(array, dtype=np.float64))
        x = x.reshape(-1, h, w, c).permute(0, 3, 1, 2) if spec.layout.endswith("NHWC") else x.reshape(-1, c, h, w)
        if spec.std is not None:
            x = x * x.new_tensor(spec.std).view(-1, 1, 1)
        if spec.mean is not None:
            x = x + x.new_tensor(spec.mean).view(-1, 1, 1)
        lo, hi = spec.input_range
        pixels = ((x - lo) / (hi - lo)).float().contiguous()
        if not bool(pixels.isfinite().all()):
            raise Refused(400, f"input {self.input!r} holds NaN or infinity")
        low, high = (float(pixel) for pixel in pixels.aminmax())
        if low < -_OUTSIDE or high > 1 + _OUTSIDE:
            lo, hi = (math.floor(lo), math.ceil(hi)) if spec.mean is None and spec.std is None else (lo, hi)
            came = f"input {self.input!r} has pixels from {low:.4g} to {high:.4g} in units of [0, 1]"
            raise Refused(400, f"{came}; wanted clean images, prepared as the model {self.name} takes them")
        return pixels

    def tensors(self, answers: Sequence[Answer]) -> dict[str, tuple[str, np.ndarray]]:
        """Datatype and values of every output, by name.

        Args:
            answers: What was found, an image each.
        """
        labels = np.array([-1 if one.label is None else one.label for one in answers])
        counts = np.array([one.counts for one in answers], dtype=np.float64)
        own = labels if self._gives_labels else counts / np.maximum(counts.sum(1, keepdims=True), 1)
        values = {
            self.output: own,
            "label": labels,
            "abstained": labels < 0,
            "radius": np.array([one.radius for one in answers]),
            "p_lower": np.array([one.p_lower for one in answers]),
            "queries": np.array([one.queries for one in answers]),
        }
        return {name: (datatype, values[name].astype(ANSWERS[datatype])) for name, datatype in self.outputs.items()}

    @staticmethod
    def always(answers: Sequence[Answer]) -> tuple[str, ...]:
        """Names of outputs that an answer has whatever was asked: a label of -1 never stands without its reason.

        Args:
            answers: What was found, an image each.
        """
        return ("abstained",) if any(one.label is None for one in answers) else ()


def signature_of(smoothed: SmoothedClassifier, name: str, image_shape: tuple[int, int, int] | None) -> Signature:
    """The signature of a smoothed classifier, as its box declares it.

    Args:
        smoothed: Smoothed classifier that is served.
        name: Name of the model in addresses.
        image_shape: Shape (c, h, w) of an image; None to take it from the defense or the box.

    Raises:
        InvalidInput: The shape is not known, or the name cannot stand in an address.
    """
    if not name or not all(letter.isalnum() or letter in "-_." for letter in name) or not name.isascii():
        raise InvalidInput(f"name is {name!r}; wanted letters, digits, '-', '_' and '.', as they stand in an address")
    owner = smoothed.owner
    client = getattr(owner, "client", owner)
    box: Any = getattr(client, "box", None)
    spec = getattr(client, "spec", None) or BoxSpec("probabilities", num_classes=smoothed.num_classes)
    shape = image_shape or getattr(owner, "image_shape", None) or spec.image_shape or _taken(spec)
    if shape is None:
        raise InvalidInput("the shape of an image is not known; wanted image_shape, as [3, 32, 32]")
    own: dict[str, Any] = {}
    own["datatype"] = next(kind for kind, dtype in DATATYPES.items() if dtype == (spec.dtype or "float32"))
    if isinstance(found := getattr(box, "input", None), str):
        own["input"] = found
    labels = spec.outputs == "labels"
    own |= {"output_datatype": "INT64" if labels else "FP32"}
    if isinstance(found := getattr(box, "output", None), str) and found not in OUTPUTS:
        own["output"] = found
        datatype = next((port.get("datatype") for port in box.metadata.ports("outputs") if port["name"] == found), None)
        fitting = ANSWERS.keys() - {"BOOL", *_FLOATS} if labels else {"FP32", "FP64"}
        own["output_datatype"] = datatype if datatype in fitting else own["output_datatype"]
    elif labels:
        own["output"] = "labels"
    version = hashlib.sha256(f"{smoothed.model_id} {smoothed.sigma!r}".encode()).hexdigest()[:12]
    c, h, w = shape
    return Signature(name, version, spec, (c, h, w), smoothed.num_classes, **own)


def require_unsmoothed(smoothed: SmoothedClassifier) -> None:
    """Refuse a box that is a gateway itself: noise on noise costs n times n queries, and certifies another classifier.

    Args:
        smoothed: Smoothed classifier that is to be served.

    Raises:
        InvalidInput: The metadata of the box say that it is a gateway.
    """
    owner = smoothed.owner
    box: Any = getattr(getattr(owner, "client", owner), "box", None)
    if getattr(getattr(box, "metadata", None), "model", {}).get("platform") == PLATFORM:
        came = f"the box {box.spec.name} is a certibox gateway, whose answers are smoothed already"
        raise InvalidInput(f"{came}; wanted the model behind it, or smooth_twice")


def _taken(spec: BoxSpec) -> tuple[int, int, int] | None:
    """The shape (c, h, w) that the model itself fixes."""
    sizes = spec.takes or ()
    if len(sizes) != 3 or not all(sizes):
        return None
    a, b, c = (int(size or 0) for size in sizes)
    return (c, a, b) if spec.layout == "NHWC" else (a, b, c)

"""Models × the layouts and the types of numbers that they take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor, nn

from accepted.linear import SHAPE, asked, require_equal, scores, some_images
from accepted.models import CLASSES, Made, classifier
from accepted.table import Table
from certibox.blackbox import BoxSpec
from file_makers import FLOAT, Quantised, linear_map, linear_onnx, linear_tflite

LAYOUTS = ("NCHW", "NHWC", "flat", "flat-NHWC")
TYPES = ("float32", "float64", "float16", "uint8")
_ERRORS = {"float16": 0.05, "uint8": 0.05}  # of rounding images; of half precision


def in_layout(images: Any, layout: str) -> Any:
    """Images (n, c, h, w), arrays or tensors, in a layout."""
    last = layout.endswith("NHWC")
    turned = (
        (np.moveaxis(images, 1, 3) if isinstance(images, np.ndarray) else images.permute(0, 2, 3, 1))
        if last
        else images
    )
    return turned.reshape(len(images), -1) if layout.startswith("flat") else turned


def weights(layout: str) -> Tensor:
    """The matrix (K, d) for images that are flattened from a layout."""
    return in_layout(linear_map()[0].reshape(CLASSES, *SHAPE), layout).reshape(CLASSES, -1)


def _expected(layout: str) -> tuple[int, ...]:
    return tuple(in_layout(torch.zeros(1, *SHAPE), layout).shape[1:])


class Layered(nn.Module):
    """A module that takes images in one layout and one type alone."""

    def __init__(self, layout: str, dtype: str) -> None:
        super().__init__()
        self.takes, self.dtype = _expected(layout), getattr(torch, dtype)
        self.scale = 255.0 if dtype == "uint8" else 1.0
        self.layer = nn.Linear(24, CLASSES)
        self.layer.weight.data, self.layer.bias.data = weights(layout).clone(), linear_map()[1].clone()
        if dtype != "uint8":
            self.layer.to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        assert tuple(x.shape[1:]) == self.takes
        assert x.dtype == self.dtype
        return self.layer(x.flatten(1).to(self.layer.weight.dtype) / self.scale)


def _module(layout: str, dtype: str, folder: Path) -> Made:
    return Made(Layered(layout, dtype), {"layout": layout, "dtype": dtype})


def _exported(layout: str, dtype: str, folder: Path) -> Made:
    example = torch.zeros(4, *_expected(layout)).to(getattr(torch, dtype))
    module = Layered(layout, dtype).eval()
    torch._dynamo.reset()  # torch 2.6 exports one piece of code 8 times a process
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    return Made(program, {"layout": layout, "dtype": dtype})


def _function(layout: str, dtype: str, folder: Path) -> Made:
    weight, bias = weights(layout).double().numpy(), linear_map()[1].double().numpy()

    def predict(images: np.ndarray) -> np.ndarray:
        assert images.shape[1:] == _expected(layout)
        assert images.dtype == dtype
        flat = images.reshape(len(images), -1).astype("f8") / (255 if dtype == "uint8" else 1)
        return flat @ weight.T + bias

    return Made(predict, {"layout": layout, "dtype": dtype})


def _estimator(make: Callable[..., Any]) -> Callable[[str, str, Path], Made]:
    def build(layout: str, dtype: str, folder: Path) -> Made:
        weight = weights(layout) / (255 if dtype == "uint8" else 1)
        estimator = make("logits", weight, linear_map()[1])
        decide = estimator.decision_function

        def watched(images: np.ndarray) -> np.ndarray:
            assert images.shape[1:] == (24,)
            assert images.dtype == dtype
            return decide(images)

        estimator.decision_function = watched
        return Made(estimator, {"layout": layout, "dtype": dtype})

    return build


_ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
    "uint8": TensorProto.UINT8,
}


def _onnx(layout: str, dtype: str, folder: Path) -> Made:
    """The map that flattens images as they come: its answers are those to the images in the order of the file."""
    path = linear_onnx(folder / "model.onnx", shape=_expected(layout), dtype=_ONNX_TYPES[dtype])
    return Made(path, {"layout": layout} if layout.endswith("NHWC") else {})


_TFLITE_TYPES: dict[str, Quantised] = {"float32": FLOAT, "uint8": ("uint8", 1.0, 0)}


def _tflite(layout: str, dtype: str, folder: Path) -> Made:
    kind = _TFLITE_TYPES.get(dtype, FLOAT)
    if dtype == "uint8":  # a grid of whole numbers: the pixels themselves, five of them
        chosen = np.eye(24)[:CLASSES]
        return Made(linear_tflite(folder / "m.tflite", chosen, _expected(layout), kind, kind))
    path = linear_tflite(folder / "m.tflite", linear_map()[0].numpy(), _expected(layout), bias=linear_map()[1].numpy())
    return Made(
        path, ({} if dtype == "float32" else {"dtype": dtype}) | ({"layout": "flat"} if layout == "flat" else {})
    )


class Protocol:
    """A box that prepares and arranges by its own declaration."""

    def __init__(self, layout: str, dtype: str) -> None:
        self.module = Layered(layout, dtype)
        self.spec = BoxSpec("logits", layout=layout, dtype=dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return self.module(self.spec.arrange(self.spec.prepare(x)).to(self.module.dtype)).detach()


BUILDERS: dict[str, Callable[[str, str, Path], Made]] = {
    "torch module": _module,
    "exported program": _exported,
    "function": _function,
    "scikit-learn classifier": _estimator(classifier),
    "ONNX file": _onnx,
    "TensorFlow Lite file": _tflite,
    "object of the box protocol": lambda layout, dtype, folder: Made(Protocol(layout, dtype)),
}


def attempt(row: str, column: str, folder: Path) -> None:
    usual = "NHWC" if row.startswith("Tensor") else "NCHW"
    layout, dtype = (column, "float32") if column in LAYOUTS else (usual, column)
    made = BUILDERS[row](layout, dtype, folder)
    answer = asked(made.model, "logits", **made.declared)
    if row.endswith("file"):
        _require_flattened(answer, layout, dtype, row.startswith("Tensor"))
        return
    require_equal(answer, "logits", error=_ERRORS.get(dtype, 1e-4))


def _require_flattened(answer: Tensor, layout: str, dtype: str, is_tflite: bool) -> None:
    """Hold the answer of a file against the same map of the images in the file's own order."""
    ordered = in_layout(some_images(), layout).reshape(-1, *SHAPE)
    wanted = scores(ordered)
    if dtype == "uint8":
        whole = (255 * ordered).round()
        wanted = whole.flatten(1)[:, :CLASSES] if is_tflite else scores(whole)
    torch.testing.assert_close(answer, wanted, atol=_ERRORS.get(dtype, 1e-4), rtol=1e-4)


_ALL, _READ = ("yes",) * 8, "yes, read from the file"
CELLS = {
    "torch module": _ALL,
    "exported program": _ALL,
    "function": _ALL,
    "scikit-learn classifier": ("yes, as a row", "yes, as a row", "yes", "yes", *("yes",) * 4),
    "ONNX file": (_READ, "yes", _READ, "yes", *(_READ,) * 4),
    "TensorFlow Lite file": (_READ, _READ, "yes", _READ, _READ, *("no: the file takes float32",) * 2, _READ),
    "object of the box protocol": ("yes, in its `spec`",) * 8,
}
REASONS = {"the file takes float32": r"dtype is 'float(64|16)', but .*m.tflite takes float32; leave dtype out"}
TABLE = Table("model", (*LAYOUTS, *TYPES), CELLS, attempt, REASONS)

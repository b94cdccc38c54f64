"""Black boxes: what can be asked, and one adapter a kind of model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import nn

from certibox.blackbox.base import OUTPUTS, BlackBox, BoxSpec, differentiable, is_told_apart
from certibox.blackbox.connection import Connection
from certibox.blackbox.endpoint import Endpoint, EndpointBox
from certibox.blackbox.function import FunctionBox
from certibox.blackbox.inference_grpc import InferenceGrpcBox
from certibox.blackbox.inference_protocol import PATH, InferenceProtocolBox
from certibox.blackbox.model_files import ELSEWHERE, advice_on
from certibox.blackbox.onnx import OnnxBox
from certibox.blackbox.outputs import check_outputs
from certibox.blackbox.recorded import RecordedBox
from certibox.blackbox.sklearn import SklearnBox
from certibox.blackbox.tflite import TfliteBox
from certibox.blackbox.torch_module import TorchBox
from certibox.data.pixels import as_images
from certibox.errors import InvalidInput, Notice, one_line

__all__ = [
    "MODEL_FILES",
    "OUTPUTS",
    "WEIGHT_FILES",
    "BlackBox",
    "BoxSpec",
    "Connection",
    "Endpoint",
    "EndpointBox",
    "FunctionBox",
    "InferenceGrpcBox",
    "InferenceProtocolBox",
    "OnnxBox",
    "RecordedBox",
    "SklearnBox",
    "TfliteBox",
    "TorchBox",
    "advice_on",
    "as_blackbox",
    "as_images",
    "check_outputs",
    "differentiable",
    "is_address",
    "is_told_apart",
]

_FILES = {".onnx": OnnxBox, ".tflite": TfliteBox}  # by the end of the name
MODEL_FILES = tuple(_FILES)
WEIGHT_FILES = frozenset((*_FILES, *ELSEWHERE, ".npy", ".npz", ".bin", ".ubj", ".gguf"))  # ends of their names
_ONLY = {  # what only some adapters take, and whose that is
    "input_name": ((OnnxBox, TfliteBox, InferenceProtocolBox, InferenceGrpcBox), "files and servers of models"),
    "output_name": ((OnnxBox, TfliteBox, InferenceProtocolBox, InferenceGrpcBox), "files and servers of models"),
    "connection": ((InferenceProtocolBox, InferenceGrpcBox), "models at an address"),
    "output_key": ((TorchBox, FunctionBox), "torch modules and functions"),
}
_ESTIMATOR_METHODS = ("predict_proba", "decision_function", "predict")
_SCORES = _ESTIMATOR_METHODS[:2]  # what no other kind of model has


def as_blackbox(
    model: Any,
    outputs: str | None = None,
    *,
    num_classes: int | None = None,
    input_range: tuple[float, float] = (0.0, 1.0),
    layout: str = "NCHW",
    dtype: str | None = None,
    clip: bool | None = None,
    levels: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    image_shape: tuple[int, int, int] | None = None,
    batch_size: int | None = None,
    max_batch: int | None = None,
    name: str | None = None,
    identity: str | None = None,
    input_name: str | None = None,
    output_name: str | None = None,
    output_key: str | int | None = None,
    concurrency: int | None = None,
    takes_nan: bool | None = None,
    connection: Connection | None = None,
    bills: str | None = None,
) -> BlackBox:
    """A model as a black box that takes float pixels (n, c, h, w), on [0, 1] where they are clean.

    Nothing is asked of the model here. What it sees lies on [0, 1] too, before `input_range`, if pixels are clipped
    (see `clip`).

    The parameters below `outputs` declare the model. Where one is not given, the adapter knows better (the name, the
    batch size, the classes of an estimator, the shapes of a file) or `BoxSpec` has a default.

    Args:
        model: Torch module, also compiled, scripted, quantised or exported; function on numpy float32 (n, c, h, w);
            fitted scikit-learn estimator, or an object with `predict_proba` or `decision_function`; path of an ONNX
            or TensorFlow Lite file; address of a model under the Open Inference Protocol, as
            "http://127.0.0.1:8080/v2/models/digits" or "grpc://127.0.0.1:8081/digits", whose metadata are read; an
            `Endpoint`; or a black box, which comes back as it is.
        outputs: Kind of the answers: "logits", "probabilities", "labels", "values", or "top-k" for probabilities with
            NaN for the classes that are left out.
        num_classes: Number of classes K; required for labels of a model that does not say.
        input_range: Range (lo, hi) that the model expects of pixels.
        layout: Order of the numbers that the model takes: "NCHW" (n, c, h, w), "NHWC" (n, h, w, c), "flat"
            (n, c * h * w) or "flat-NHWC" (n, h * w * c); an estimator takes flat ones in any case.
        dtype: Type of the numbers that the model takes: "float32", "float64", "float16" or "uint8"; None for the
            adapter's own.
        clip: Whether pixels are clipped to [0, 1] first: noise and defenses take them out of that range. By default
            they are, but for torch modules, whose gradients clipping would cut: such a model sees -1.0 or 1.8.
        levels: Number of equally spaced values on [0, 1] that pixels are rounded to, as 256 for 8-bit images.
        mean: Mean of each channel to subtract, in the units of `input_range`.
        std: Standard deviation of each channel to divide by, in the units of `input_range`.
        image_shape: Shape (c, h, w) of an image; others are refused.
        batch_size: Number of images a call that serves the model best.
        max_batch: Most images that one call may hold.
        name: Name of the box in messages and records. One that you give vouches for a function, which nothing else can
            tell from another: give another name to another model.
        identity: Digest or version of what decides the answers and the adapter cannot see, such as that of a server. It
            is joined with what the adapter sees itself: weights, settings and code of a torch module, all that an
            estimator learned, the bytes of a file.
        input_name: Name of the input of a file that takes the images, where it has several.
        output_name: Name of the output of a file to answer with.
        output_key: Key or position of the answers in what a model returns, where that is a dictionary, a tuple or an
            object with attributes.
        concurrency: Most calls that may be under way at once, for a model that takes calls from several threads.
        takes_nan: Whether the model takes pixels that are NaN or infinite, which are refused by default.
        connection: Limits and secrets of an address.
        bills: What a provider bills and a budget counts: "image", the default, "request" or "attempt"; see `BoxSpec`.

    Returns:
        A black box.

    Warns:
        UserWarning: Mean and std do not seem to be in the units of `input_range`.

    Raises:
        InvalidInput: The model is of another kind, or the declaration cannot hold.
        UnreadableFile: The file is missing or broken.
        NotAnswered: The server of an address cannot be reached, or has no such model.
    """
    given = {
        "num_classes": num_classes,
        "input_range": None if input_range == (0, 1) else input_range,
        "layout": None if layout == "NCHW" else layout,
        "dtype": dtype,
        "clip": clip,
        "levels": levels,
        "mean": mean,
        "std": std,
        "image_shape": image_shape,
        "batch_size": batch_size,
        "max_batch": max_batch,
        "name": name,
        "identity": identity,
        "input_name": input_name,
        "output_name": output_name,
        "output_key": output_key,
        "concurrency": concurrency,
        "takes_nan": takes_nan,
        "connection": connection,
        "bills": bills,
    }
    declared = {field: value for field, value in given.items() if value is not None}
    if _is_blackbox(model):
        refused = [*declared, *(["outputs"] if outputs not in (None, model.spec.outputs) else [])]
        if refused:
            raise InvalidInput(
                f"{', '.join(refused)} given for box {model.spec.name}, which has a spec; leave that out"
            )
        return model
    adapter = _adapter(model, name)
    if outputs is None:
        raise InvalidInput(f"outputs was not given; say what the model answers: {', '.join(OUTPUTS)}")
    if not isinstance(output_key, str | int | None):
        raise InvalidInput(f"output_key is {output_key!r}; give a key, a position or the name of an attribute")
    for field, (adapters, owners) in _ONLY.items():
        if field in declared and adapter not in adapters:
            shown = model if isinstance(model, str | Path) else f"a {type(model).__name__}"
            raise InvalidInput(f"{field}={declared[field]!r} was given for {shown}; only {owners} have it")
    if outputs == "top-k" and adapter not in (FunctionBox, EndpointBox):
        raise InvalidInput("outputs is 'top-k', which only functions and endpoints have; give the kind of all answers")
    box = adapter(model, outputs, **declared)
    if (doubt := box.spec.doubt) is not None:
        warnings.warn(doubt, Notice, stacklevel=2)
    return box


def _is_blackbox(model: object) -> TypeGuard[BlackBox]:
    return callable(model) and isinstance(getattr(model, "spec", None), BoxSpec)


def _adapter(model: object, name: str | None) -> Callable[..., BlackBox]:
    """The adapter for a kind of model. Raises InvalidInput where there is none."""
    if isinstance(model, type):
        raise InvalidInput(f"model is the class {model.__name__}; give an instance of it")
    if isinstance(model, nn.Module) or type(model).__module__.startswith("torch.export"):
        return TorchBox
    if isinstance(model, Endpoint):
        return EndpointBox
    if isinstance(model, str) and is_address(model):
        return _address_adapter(model)
    if isinstance(model, str | Path):
        return _file_adapter(Path(model), name)
    if isinstance(model, torch.jit.ScriptFunction):
        raise InvalidInput(
            "model is a scripted function of tensors; give a function of arrays such as "
            "lambda images: model(torch.from_numpy(images))"
        )
    if hasattr(model, "get_params") and any(hasattr(model, method) for method in _ESTIMATOR_METHODS):
        return SklearnBox
    if callable(model):
        return FunctionBox
    if any(hasattr(model, method) for method in _SCORES):
        return SklearnBox
    if hasattr(model, "predict"):
        raise InvalidInput(
            f"model is a {type(model).__name__}, whose predict may take and answer anything; give a function such as "
            "lambda images: model.predict(images)"
        )
    raise _no_model(model, name)


def is_address(model: str) -> bool:
    """Whether a text is the address of a model, and no file.

    Args:
        model: Text.
    """
    return model.partition("://")[0].lower() in ("http", "https", "grpc", "grpcs") and "://" in model


def _address_adapter(url: str) -> Callable[..., BlackBox]:
    """The adapter for an address, by its path."""
    if PATH.fullmatch(url):
        return InferenceProtocolBox
    if url.lower().startswith("grpc"):
        return InferenceGrpcBox
    raise InvalidInput(
        f"model is {one_line(url)}, no address of the Open Inference Protocol; wanted "
        "http://.../v2/models/NAME, grpc://HOST:PORT/NAME, or a description of the endpoint (certibox.Endpoint, "
        "--endpoint FILE)"
    )


def _file_adapter(path: Path, name: str | None) -> Callable[..., BlackBox]:
    """The adapter for a model file, by the end of its name. Raises InvalidInput where there is none."""
    adapter = _FILES.get(path.suffix.lower())
    if adapter is not None:
        return adapter
    advice = advice_on(path)
    raise _no_model(str(path), name) if advice is None else InvalidInput(advice)


def _no_model(model: object, name: str | None = None) -> InvalidInput:
    shown = repr(model)[:80] if isinstance(model, str | int | float) else f"a {type(model).__name__}"
    shown = shown if name is None else f"{name}, {shown}"
    return InvalidInput(
        f"model is {shown}; give a torch module, a function on numpy float32 (n, c, h, w), a fitted scikit-learn "
        f"estimator, the path of a file that ends in {' or '.join(MODEL_FILES)}, or the address of a model"
    )

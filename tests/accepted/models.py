"""Models × what they answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from accepted.linear import ROUNDING, SHAPE, asked, require_equal, some_images
from accepted.table import Table
from certibox import QueryClient
from certibox.blackbox import BoxSpec, as_blackbox
from file_makers import CLASSES, PIXELS, linear_map, linear_onnx, linear_tflite

Part = str  # what a model answers
_PART = "part of a dictionary, tuple or file"
_ONE = ("one score, (n, 1) or (n,)", "one sigmoid, (n, 1) or (n,)")
COLUMNS = ("logits (n, K)", "probabilities (n, K)", "labels (n,)", "values (n, ...)", *_ONE, _PART, "gradients")
PARTS: dict[str, tuple[str, tuple[Part, ...]]] = {  # column -> declared kind, forms of the answer
    "logits (n, K)": ("logits", ("logits",)),
    "probabilities (n, K)": ("probabilities", ("probabilities",)),
    "labels (n,)": ("labels", ("labels",)),
    "values (n, ...)": ("values", ("values",)),
    "one score, (n, 1) or (n,)": ("logits", ("score", "flat score")),
    "one sigmoid, (n, 1) or (n,)": ("probabilities", ("sigmoid", "flat sigmoid")),
    _PART: ("logits", ("dictionary", "tuple")),
    "gradients": ("logits", ("logits",)),
}


@dataclass(frozen=True)
class Made:
    """A model, and what is declared of it beside its outputs."""

    model: Any
    declared: dict[str, Any] = field(default_factory=dict)
    error: float = ROUNDING


# ------------------------------------------------------------------------------------------------------------- torch


class Largest(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1)


class InDictionary(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"scores": x, "size": x.norm()}


class InTuple(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.norm(), x


_HEADS: dict[Part, Callable[[], list[nn.Module]]] = {
    "logits": list,
    "values": list,
    "score": list,
    "probabilities": lambda: [nn.Softmax(1)],
    "labels": lambda: [Largest()],
    "flat score": lambda: [nn.Flatten(0)],
    "sigmoid": lambda: [nn.Sigmoid()],
    "flat sigmoid": lambda: [nn.Sigmoid(), nn.Flatten(0)],
    "dictionary": lambda: [InDictionary()],
    "tuple": lambda: [InTuple()],
}
_KEYS: dict[Part, dict[str, Any]] = {"dictionary": {"output_key": "scores"}, "tuple": {"output_key": 1}}


def classes_of(part: Part) -> int:
    return 1 if part.split()[-1] in ("score", "sigmoid") else CLASSES


def network(part: Part) -> nn.Sequential:
    weight, bias = linear_map(classes_of(part))
    layer = nn.Linear(PIXELS, len(weight))
    layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
    return nn.Sequential(nn.Flatten(), layer, *_HEADS[part]())


def declared(part: Part) -> dict[str, Any]:
    return ({"num_classes": CLASSES} if part == "labels" else {}) | _KEYS.get(part, {})


def _exported(module: nn.Module) -> Any:
    torch._dynamo.reset()  # torch 2.6 exports one piece of code 8 times a process
    batch = torch.export.Dim("batch")
    return torch.export.export(module.eval(), (torch.zeros(4, *SHAPE),), dynamic_shapes=({0: batch},))


def _traced(module: nn.Module) -> Any:
    return torch.jit.trace(module.eval(), torch.zeros(4, *SHAPE), strict=False)


def quantised(module: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, torch.qint8)


def _torch(wrap: Callable[[nn.Module], Any], error: float = ROUNDING) -> Callable[[Part, Path], Made]:
    return lambda part, folder: Made(wrap(network(part)), declared(part), error)


# --------------------------------------------------------------------------------------------------------- functions


def on_numpy(part: Part) -> Callable[[np.ndarray], Any]:
    weight, bias = (tensor.numpy() for tensor in linear_map(classes_of(part)))

    def scores(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1) @ weight.T + bias

    def powers(images: np.ndarray) -> np.ndarray:
        return np.exp(scores(images))

    answers: dict[Part, Callable[[np.ndarray], Any]] = {
        "probabilities": lambda images: powers(images) / powers(images).sum(1, keepdims=True),
        "labels": lambda images: scores(images).argmax(1),
        "flat score": lambda images: scores(images)[:, 0],
        "sigmoid": lambda images: powers(images) / (1 + powers(images)),
        "flat sigmoid": lambda images: (powers(images) / (1 + powers(images)))[:, 0],
        "dictionary": lambda images: {"size": 0.0, "scores": scores(images)},
        "tuple": lambda images: (0.0, scores(images)),
    }
    return answers.get(part, scores)


def _on_torch(part: Part) -> Callable[[np.ndarray], Any]:
    module = network(part)
    return lambda images: module(torch.from_numpy(images))


class Callables:
    """An object that is called, and one whose method is."""

    def __init__(self, part: Part) -> None:
        self.function = on_numpy(part)

    def __call__(self, images: np.ndarray) -> Any:
        return self.function(images)

    def classify(self, images: np.ndarray) -> Any:
        return self.function(images)


# -------------------------------------------------------------------------------------------------------- estimators


def classifier(part: Part, weight: Tensor | None = None, bias: Tensor | None = None) -> Any:
    """A logistic regression with the weights of the linear model; of one score, for two classes."""
    from sklearn.linear_model import LogisticRegression

    own_weight, own_bias = linear_map(classes_of(part))
    made: Any = LogisticRegression()
    made.coef_ = (own_weight if weight is None else weight).double().numpy()
    made.intercept_ = (own_bias if bias is None else bias).double().numpy()
    made.classes_ = np.arange(max(2, len(made.coef_)))
    made.n_features_in_ = PIXELS
    return made


def pipeline(part: Part) -> Any:
    """The same behind a scaling that its weights undo."""
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(np.random.default_rng(0).random((9, PIXELS)))
    mean, scale = (torch.from_numpy(numbers) for numbers in (scaler.mean_, scaler.scale_))
    weight, bias = (tensor.double() for tensor in linear_map(classes_of(part)))
    return Pipeline([("scale", scaler), ("classify", classifier(part, weight * scale, bias + weight @ mean))])


def regressor(part: Part) -> Any:
    from sklearn.linear_model import LinearRegression

    made: Any = LinearRegression()
    made.coef_, made.intercept_ = (tensor.double().numpy() for tensor in linear_map())
    made.n_features_in_ = PIXELS
    return made


# ------------------------------------------------------------------------------------------------------ files, boxes

_ONNX = {"score": "logits", "flat score": "flat logits", "flat sigmoid": "flat sigmoid"}
_TFLITE = {"probabilities": "SOFTMAX", "labels": "ARG_MAX", "sigmoid": "LOGISTIC"}


def onnx_file(part: Part, folder: Path) -> Made:
    several = part in _KEYS
    outputs = ("values", "logits") if several else (_ONNX.get(part, part),)
    path = linear_onnx(folder / "model.onnx", outputs, shape=SHAPE, classes=classes_of(part))
    return Made(path, {"output_name": "logits"} if several else _without_key(part))


def tflite_file(part: Part, folder: Path) -> Made:
    weight, bias = linear_map(classes_of(part))
    last = weight.reshape(-1, *SHAPE).permute(0, 2, 3, 1).flatten(1)
    then = ("y", "SOFTMAX") if part in _KEYS else (_TFLITE.get(part.removeprefix("flat "), "y"),)
    size = (SHAPE[1], SHAPE[2], SHAPE[0])
    path = linear_tflite(folder / "model.tflite", last.numpy(), size, bias=bias.numpy(), then=then)
    return Made(path, {"output_name": "y"} if part in _KEYS else _without_key(part))


def _without_key(part: Part) -> dict[str, Any]:
    return {} if part in _KEYS else declared(part)


class Protocol:
    """An object of the box protocol: a declaration, and a call on tensors."""

    def __init__(self, part: Part, outputs: str) -> None:
        self.module = network(part)
        self.spec = BoxSpec(outputs, num_classes=CLASSES if part == "labels" else None)

    def __call__(self, x: Tensor) -> Tensor:
        return self.module(self.spec.prepare(x)).detach()

    def differentiable(self, x: Tensor) -> Tensor:
        return self.module(x)


def _protocol(part: Part, folder: Path) -> Made:
    kinds = {"dictionary": "logits", "tuple": "logits"} | {
        name: kind for kind, names in PARTS.values() for name in names
    }
    return Made(Protocol(part, kinds[part]), _KEYS.get(part, {}))  # its answer is never looked into


def _plain(make: Callable[[Part], Any]) -> Callable[[Part, Path], Made]:
    return lambda part, folder: Made(make(part), declared(part))


BUILDERS: dict[str, tuple[Callable[[Part, Path], Made], ...]] = {
    "torch module": (_torch(lambda module: module),),
    "compiled module": (_torch(lambda module: torch.compile(module, backend="eager")),),
    "scripted module": (_torch(torch.jit.script),),
    "traced module": (_torch(_traced),),
    "exported program": (_torch(_exported),),
    "module quantised to int8": tuple(
        _torch(lambda module, wrap=wrap: wrap(quantised(module)), error=0.1)
        for wrap in (nn.Sequential, torch.jit.script, _traced)
    ),
    "function on numpy": (_plain(on_numpy),),
    "function with torch inside": (_plain(_on_torch),),
    "callable object, bound method": (_plain(Callables), _plain(lambda part: Callables(part).classify)),
    "scikit-learn classifier": (_plain(classifier),),
    "pipeline of scikit-learn": (_plain(pipeline),),
    "regressor of scikit-learn": (_plain(regressor),),
    "ONNX file": (onnx_file,),
    "TensorFlow Lite file": (tflite_file,),
    "object of the box protocol": (_protocol,),
}


def attempt(row: str, column: str, folder: Path) -> None:
    kind, parts = PARTS[column]
    for builder in BUILDERS[row]:
        for part in parts:
            made = builder(part, folder)
            if column == "gradients":
                _require_gradient(made, "values" if row.startswith("regressor") else kind)
            else:
                require_equal(asked(made.model, kind, **made.declared), kind, classes_of(part), made.error)


def _require_gradient(made: Made, kind: str) -> None:
    x = some_images().requires_grad_()
    answer = QueryClient(as_blackbox(made.model, kind, **made.declared)).white(x)
    (found,) = torch.autograd.grad(answer[:, 1].sum(), x)
    torch.testing.assert_close(found, linear_map()[0][1].reshape(1, *SHAPE).expand_as(found))


_YES, _KEY = ("yes",) * 4, "yes, by `output_key`"
_OF_TORCH = (*_YES, "yes", "yes", _KEY, "yes")
_OF_FUNCTIONS = (*_YES, "yes", "yes", _KEY, "no: has none")
_OF_FILES = (*_YES, "yes", "yes", "yes, by `output_name`", "no: has none")
_OF_CLASSIFIERS = ("yes", "yes", "yes", "no: classifies", "yes", "yes", "no: answers one thing", "no: has none")
CELLS = {
    "torch module": _OF_TORCH,
    "compiled module": _OF_TORCH,
    "scripted module": _OF_TORCH,
    "traced module": _OF_TORCH,
    "exported program": _OF_TORCH,
    "module quantised to int8": (*_YES, "yes", "yes", _KEY, "no: whole numbers"),
    "function on numpy": _OF_FUNCTIONS,
    "function with torch inside": _OF_FUNCTIONS,
    "callable object, bound method": _OF_FUNCTIONS,
    "scikit-learn classifier": _OF_CLASSIFIERS,
    "pipeline of scikit-learn": _OF_CLASSIFIERS,
    "regressor of scikit-learn": (
        *("no: has no classes",) * 3,
        "yes",
        "no: has no classes",
        "no: has no classes",
        "no: answers one thing",
        "no: has none",
    ),
    "ONNX file": _OF_FILES,
    "TensorFlow Lite file": _OF_FILES,
    "object of the box protocol": (*_YES, *("no: makes two columns itself",) * 2, "no: chooses itself", "yes"),
}
REASONS = {
    "whole numbers": r"box \w+ computes in whole numbers, which have none; use a zeroth-order method",
    "has none": r"first-order method needs gradients; box .* gives none; use a zeroth-order method",
    "classifies": r"outputs is 'values'; this \w+ offers logits, probabilities, labels",
    "has no classes": r"outputs is '\w+'; this LinearRegression offers values",
    "answers one thing": r"output_key='scores' was given for a \w+; only torch modules and functions have it",
    "makes two columns itself": r"(must cover at least 2 classes, got 1|must be \(n, K\), got shape)",
    "chooses itself": r"output_key given for box box, which has a spec; leave that out",
}
TABLE = Table("model", COLUMNS, CELLS, attempt, REASONS)

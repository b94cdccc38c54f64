"""Models × what their identity pins without a query, and what pixels they see by default."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from accepted.linear import SHAPE, some_images
from accepted.models import network, quantised
from accepted.table import Table
from certibox import QueryClient
from certibox.blackbox import BoxSpec, as_blackbox
from certibox.commands.models import load_model
from file_makers import linear_map, linear_onnx, linear_tflite, onnx_with_weights_elsewhere

COLUMNS = ("the same, made again", "other numbers", "other code or settings", "pixels beyond [0, 1]")
Build = Callable[[Path, bool, bool], tuple[Any, dict[str, Any]]]  # folder, other numbers?, other code?


def _changed(module: nn.Sequential, numbers: bool, code: bool) -> nn.Sequential:
    """The module with another weight, or with another layer that has none."""
    if numbers:
        module[1].get_parameter("weight").data[0, 0] += 1
    return nn.Sequential(*module, nn.ReLU()) if code else module


def _module(folder: Path, numbers: bool, code: bool) -> tuple[Any, dict[str, Any]]:
    return _changed(network("logits"), numbers, code), {}


def _scripted(folder: Path, numbers: bool, code: bool) -> tuple[Any, dict[str, Any]]:
    return torch.jit.script(_module(folder, numbers, code)[0]), {}


def _quantised(folder: Path, numbers: bool, code: bool) -> tuple[Any, dict[str, Any]]:
    return torch.jit.script(quantised(_module(folder, numbers, code)[0])), {}


def _exported(folder: Path, numbers: bool, code: bool) -> tuple[Any, dict[str, Any]]:
    module = _module(folder, numbers, code)[0].eval()
    torch._dynamo.reset()  # torch 2.6 exports one piece of code 8 times a process
    batch = torch.export.Dim("batch")
    return torch.export.export(module, (torch.zeros(4, *SHAPE),), dynamic_shapes=({0: batch},)), {}


def _forest(folder: Path, numbers: bool, code: bool) -> tuple[Any, dict[str, Any]]:
    from sklearn.ensemble import RandomForestClassifier

    data = np.random.default_rng(int(numbers)).random((20, 24))
    return RandomForestClassifier(3, random_state=0, max_depth=2 if code else 3).fit(data, np.arange(20) % 3), {}


def _pipeline(folder: Path, numbers: bool, code: bool) -> tuple[Any, dict[str, Any]]:
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    data = np.random.default_rng(int(numbers)).random((20, 24))
    made = make_pipeline(FunctionTransformer(np.sqrt if code else np.square), KNeighborsClassifier(3))
    return made.fit(data, np.arange(20) % 3), {}


def _function(folder: Path, numbers: bool, code: bool) -> tuple[Any, dict[str, Any]]:
    weight = linear_map()[0].numpy() + numbers

    def predict(images: np.ndarray) -> np.ndarray:
        answers = images.reshape(len(images), -1) @ weight.T
        return answers.clip(0) if code else answers

    return predict, {}


def _named(folder: Path, numbers: bool, code: bool) -> tuple[Any, dict[str, Any]]:
    predict, _ = _function(folder, numbers, code)
    return predict, {"name": f"mine-{1 + numbers + 2 * code}"}


_PROGRAM = """
import numpy as np
from {neighbour} import change

WEIGHT = np.load("{folder}/weight.npy")


def predict(images):
    return change(images.reshape(len(images), -1) @ WEIGHT.T)
"""


def _program(folder: Path, numbers: bool, code: bool) -> tuple[Any, dict[str, Any]]:
    """A file that reads its numbers from another file, and has its code from a neighbour."""
    neighbour = "neighbour_of_a_cell"
    np.save(folder / "weight.npy", linear_map()[0].numpy() + numbers)
    (folder / f"{neighbour}.py").write_text(f"def change(answers):\n    return answers{' + 1' if code else ''}\n")
    (folder / "box.py").write_text(_PROGRAM.format(neighbour=neighbour, folder=folder))
    sys.modules.pop(neighbour, None)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode  # two versions of one second have one cache
    path = sys.path[:]
    try:
        model, identity = load_model(f"{folder}/box.py:predict")
    finally:
        sys.dont_write_bytecode, sys.path[:] = before, path
        sys.modules.pop(neighbour, None)
    return model, {"identity": identity, "name": "box.py:predict"}


def _onnx(folder: Path, numbers: bool, code: bool) -> tuple[Any, dict[str, Any]]:
    outputs = ("logits", "labels") if code else ("logits",)
    return linear_onnx(folder / "m.onnx", outputs, shape=SHAPE, classes=4 if numbers else 5), {}


def _onnx_elsewhere(folder: Path, numbers: bool, code: bool) -> tuple[Any, dict[str, Any]]:
    weight = linear_map()[0].numpy().T + numbers
    return onnx_with_weights_elsewhere(folder / "m.onnx", "w.bin" if not code else "v.bin", weight), {}


def _tflite(folder: Path, numbers: bool, code: bool) -> tuple[Any, dict[str, Any]]:
    weight = linear_map()[0].numpy() + numbers
    return linear_tflite(folder / "m.tflite", weight, (2, 4, 3), then=("y", "ARG_MAX") if code else ()), {}


class Protocol:
    """A box that names itself: by a digest, and by what it declares."""

    def __init__(self, numbers: bool, code: bool) -> None:
        self.module = _changed(network("logits"), numbers, code)
        self.spec = BoxSpec("logits", identity=f"version {1 + numbers + 2 * code}")

    def __call__(self, x: Tensor) -> Tensor:
        return self.module(self.spec.prepare(x)).detach()


BUILDERS: dict[str, Build] = {
    "torch module": _module,
    "scripted module": _scripted,
    "scripted module, quantised to int8": _quantised,
    "exported program": _exported,
    "forest of scikit-learn": _forest,
    "pipeline of scikit-learn": _pipeline,
    "function in Python": _function,
    "function in Python with a `name`": _named,
    "`--model file.py:name`": _program,
    "ONNX file": _onnx,
    "ONNX file with weights beside it": _onnx_elsewhere,
    "TensorFlow Lite file": _tflite,
    "object of the box protocol": lambda folder, numbers, code: (Protocol(numbers, code), {}),
}


def _client(row: str, folder: Path, numbers: bool = False, code: bool = False) -> QueryClient:
    model, declared = BUILDERS[row](folder, numbers, code)
    outputs = "probabilities" if "scikit-learn" in row else "logits"
    return QueryClient(as_blackbox(model, outputs, **declared))


def attempt(row: str, column: str, folder: Path) -> None:
    cell, first = CELLS[row][COLUMNS.index(column)], _client(row, folder)
    if column == "pixels beyond [0, 1]":
        _require_clipped(first, cell == "clipped")
        return
    change = {"other numbers": {"numbers": True}, "other code or settings": {"code": True}}.get(column, {})
    known, identity = first.told_apart, _identity(first)
    second = _client(row, folder, **change)
    assert first.queries == second.queries == 0
    assert known == (not cell.startswith("unknown"))
    assert (_identity(second) == identity) == (cell in ("same", _UNKNOWN))


def _identity(client: QueryClient) -> str:
    """What tells the model from another; of a function, its name."""
    assert (client.spec.identity or "") in str(client.spec.provenance())
    return client.spec.identity or client.spec.name


def _require_clipped(client: QueryClient, clipped: bool) -> None:
    images = some_images()
    beyond = images + torch.where(images > 0.5, 0.7, -0.7)  # what clipping makes whole numbers of
    assert client.spec.clip == clipped
    assert bool((client(beyond) == client(beyond.clamp(0, 1))).all()) == clipped


_UNKNOWN = "unknown: give a `name`"
_CLIPPED, _SEEN = "clipped", "seen as they are"
_PINNED = ("same", "another", "another")
CELLS = dict.fromkeys(BUILDERS, (*_PINNED, _CLIPPED)) | {
    "torch module": (*_PINNED, _SEEN),
    "scripted module": (*_PINNED, _SEEN),
    "scripted module, quantised to int8": (*_PINNED, _SEEN),
    "exported program": (*_PINNED, _SEEN),
    "function in Python": (*(_UNKNOWN,) * 3, _CLIPPED),
    "function in Python with a `name`": ("same", "another, where the name is", "another, where the name is", _CLIPPED),
    "object of the box protocol": (
        "same",
        "another, as its `spec` says",
        "another, as its `spec` says",
        "as its `spec` says",
    ),
}
TABLE = Table("model", COLUMNS, CELLS, attempt, {})

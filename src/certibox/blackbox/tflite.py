"""A TensorFlow Lite file as a black box, run by LiteRT on the CPU: floats, or whole numbers on the file's own grids."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certibox.blackbox.base import BoxSpec
from certibox.blackbox.identity import joined
from certibox.blackbox.model_files import (
    SCORES,
    ImageInput,
    Port,
    agreed_type,
    choose_input,
    choose_output,
    classes_of,
    fits,
    read_whole,
    require_model_file,
    settled,
    sizes,
)
from certibox.blackbox.outputs import to_outputs
from certibox.errors import BadOutput, InvalidInput, UnreadableFile

_KIND = "a TensorFlow Lite model"
_FLOATS, _GRIDS, _LABELS = ("float32", "float16"), ("int8", "uint8", "int16"), ("int32", "int64")
# What pixels 0 to 255 become before they are put on a grid of 8 bits, as models of images are trained.
_USUAL = ((0.0, 255.0), (0.0, 1.0), (-1.0, 1.0), (-128.0, 127.0), (-0.5, 0.5))
_FLOAT_ERROR = 1e-6  # of a scale, which is a float32
_GREY_LEVELS = 256
_ROUNDED_SUM = 0.05  # probabilities whose sum may miss 1 by more than this, for their grid alone, are divided by it


@dataclass(frozen=True)
class Grid:
    """Whole numbers q that stand for the real numbers scale * (q - zero)."""

    scale: float
    """Distance of two neighbours."""
    zero: int
    """Whole number that stands for 0."""
    low: int
    """Least whole number of the type."""
    high: int
    """Greatest whole number of the type."""

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest real number on the grid."""
        return self.scale * (self.low - self.zero), self.scale * (self.high - self.zero)

    def whole(self, real: np.ndarray) -> np.ndarray:
        """The nearest whole numbers, as float64; what lies beyond the grid becomes its end.

        Args:
            real: Real numbers.
        """
        return (np.rint(real.astype(np.float64) / self.scale) + self.zero).clip(self.low, self.high)

    def real(self, whole: np.ndarray) -> np.ndarray:
        """The real numbers that whole numbers stand for, as float32.

        Args:
            whole: Whole numbers on the grid.
        """
        return (self.scale * (whole.astype(np.float64) - self.zero)).astype(np.float32)

    def input_range(self) -> tuple[float, float] | None:
        """The ends of the grid, where it has one step a grey level, as the usual ranges of images do; else None."""
        (low, high), steps = self.range, self.high - self.low
        for known in _USUAL if steps == _GREY_LEVELS - 1 else ():
            distance = max(abs(low - known[0]), abs(high - known[1]))
            if distance <= self.scale:
                return known if distance <= _FLOAT_ERROR * high else (low, high)
        return None

    def levels(self, low: float, high: float) -> int | None:
        """The number of its values from one end of a range to the other; None where the ends are not on the grid.

        Args:
            low: Lower end.
            high: Upper end.
        """
        places = [low / self.scale, high / self.scale]
        if any(abs(place - round(place)) > 1e-3 for place in places):
            return None
        return round(places[1]) - round(places[0]) + 1

    def takes(self, low: float, high: float) -> bool:
        """Whether a range is meant for this grid: it may reach beyond an end, but not by half of the grid.

        Args:
            low: Lower end.
            high: Upper end.
        """
        ends = self.range
        slack = (ends[1] - ends[0]) / 2
        return ends[0] - slack <= low and high <= ends[1] + slack


class TfliteBox:
    """A TensorFlow Lite model with one input of images: (n, h, w, c), (n, c, h, w), grey (n, h, w) or flat (n, d).

    A float input takes pixels on `input_range`, which the file cannot say: give (0, 255) where the model was trained
    so. An int8, uint8 or int16 input takes whole numbers, whose scale and zero point the file has. Where its grid has
    a step a grey level, as int8 with pixel - 128, `input_range` and `levels=256` follow; else `input_range`, or `mean`
    and `std`, say what a pixel becomes before it is put on the grid. Whole answers become the real numbers that they
    stand for, as (q + 128) / 256. Where the grid is too coarse for probabilities of that many classes to sum to 1
    within 0.05, they are divided by their sum.

    The model is run on as many images at a time as its file says, mostly one: LiteRT is no faster with more. Each
    thread that calls, up to `concurrency`, has an interpreter of one thread.

    Args:
        path: File of the model.
        outputs: Kind of the answers, as in `BoxSpec`.
        output_name: Name of the output to answer with; needed where several would fit.
        input_name: Name of the input that takes the images.
        declared: Other fields of `BoxSpec`; pixels are clipped by default.

    Raises:
        UnreadableFile: The file is missing or broken.
        InvalidInput: The model has another form, the file contradicts the declaration, or ai-edge-litert is missing.
    """

    answers_alone = True
    """Whether an image is answered alone, whatever else is in the batch."""

    def __init__(
        self,
        path: str | Path,
        outputs: str,
        output_name: str | None = None,
        input_name: str | None = None,
        **declared: Any,
    ) -> None:
        declared.setdefault("clip", True)
        self._path, self._content = Path(path).absolute(), _content(Path(path))
        self._digest = hashlib.sha256(self._content).hexdigest()
        self._own = threading.local()
        self.free_batch_size = "batch_size" not in declared  # the file has its own way with any number
        interpreter = self._interpreter()
        inputs = {_port(node): node for node in interpreter.get_input_details()}
        answers = {_port(node): node for node in interpreter.get_output_details()}
        port = choose_input(list(inputs), input_name, (*_FLOATS, *_GRIDS), str(path))
        result = choose_output(list(answers), output_name, outputs, [lambda p: _fits(p, outputs)], str(path))
        node, output = inputs[port], answers[result]
        image = ImageInput(f"input {port.name} of {path}", port.shape)
        self._input, self._output = node["index"], output["index"]
        self._at_once, self._rank = int(node["shape"][0]) if len(node["shape"]) else 1, len(node["shape"])
        self._type, self._grid, self._answers = node["dtype"], _grid(node), _grid(output)
        declared["identity"] = joined(declared.get("identity"), self._digest)
        declared.setdefault("name", Path(path).name)
        declared = agreed_type(declared, port.type, str(path))
        if not image.channels_first:
            declared.setdefault("layout", "NHWC")
        fixed = image.fixed(declared)
        if classes := classes_of(outputs, result.shape, self._at_once):
            fixed["num_classes"] = classes
        if self._grid is not None:
            declared = _on_grid(self._grid, declared, str(path))
        self.spec = BoxSpec(outputs, **settled(declared, fixed, str(path)))
        self._sums_to_1 = _is_coarse(self._answers, self.spec)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec.summary})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_own", "_content")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _own=threading.local(), _content=_content(state["_path"]))
        if hashlib.sha256(self._content).hexdigest() != self._digest:
            raise UnreadableFile(f"{self._path} has changed since box {self.spec.name} was made; restore it")

    def __call__(self, x: Tensor) -> Tensor:  # (n, c, h, w) -> outputs
        """See `BlackBox.__call__`."""
        images = self.spec.arrange(self.spec.prepare(x.detach()).cpu()).numpy()
        images = images[:, 0] if self._rank == 3 else images  # grey ones, without an axis for the channel
        if self._grid is not None:
            images = self._grid.whole(images)
        images = np.ascontiguousarray(images, dtype=self._type)
        starts = range(0, len(images), self._at_once)
        answer = np.concatenate([self._run(images[start : start + self._at_once]) for start in starts])
        return to_outputs(torch.from_numpy(self._in_reals(answer)), self.spec, x.device)

    def _run(self, images: np.ndarray) -> np.ndarray:
        """The file's answer to as many images as it takes at once, or fewer; one answer an image."""
        n, interpreter = len(images), self._interpreter()
        if n < self._at_once:
            images = np.concatenate([images, np.repeat(images[-1:], self._at_once - n, axis=0)])
        if self._own.shape != images.shape:
            interpreter.resize_tensor_input(self._input, images.shape)
            interpreter.allocate_tensors()
            self._own.shape = images.shape
        interpreter.set_tensor(self._input, images)
        interpreter.invoke()
        answer = interpreter.get_tensor(self._output)
        if self._at_once == 1 and answer.shape[:1] != (1,):
            answer = answer[None]  # the axis of the only image was dropped
        if answer.shape[:1] != (self._at_once,):
            raise BadOutput(f"box {self.spec.name} answered {self._at_once} images in shape {answer.shape}")
        return answer[:n]

    def _in_reals(self, answer: np.ndarray) -> np.ndarray:
        """What the numbers of an answer stand for."""
        reals = answer if self._answers is None else self._answers.real(answer)
        if not self._sums_to_1:
            return reals
        sums = reals.sum(1, keepdims=True)
        return reals / np.where(sums > 0, sums, 1)

    def _interpreter(self) -> Any:
        """The interpreter of this thread: LiteRT lets no two threads use one."""
        if not hasattr(self._own, "interpreter"):
            self._own.interpreter = _interpreter(self._path, self._content)
            self._own.shape = None
        return self._own.interpreter


def _content(path: Path) -> bytes:
    require_model_file(path, _KIND)
    return read_whole(path)


def _interpreter(path: Path, content: bytes) -> Any:
    """An interpreter of one thread, ready to run."""
    try:
        with _without_notes():
            from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise InvalidInput(f"{path} needs ai-edge-litert; run pip install 'certibox[tflite]'") from error
    try:
        with _without_notes():
            interpreter = Interpreter(model_content=content, num_threads=1)
            interpreter.allocate_tensors()
    except Exception as error:  # of several classes, by what is wrong
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UnreadableFile(f"{path} is no TensorFlow Lite model that LiteRT can load: {reason}") from error
    return interpreter


_NOTES = threading.Lock()


@contextmanager
def _without_notes() -> Iterator[None]:
    """Keeps standard error free of what LiteRT notes down there below Python; its errors are raised too."""
    with _NOTES:
        try:
            kept = os.dup(2)
        except OSError:  # there is no standard error
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


def _port(node: dict[str, Any]) -> Port:
    """An input or output in the words of all files."""
    signature = node.get("shape_signature", ())
    shape = [int(size) for size in (signature if len(signature) else node["shape"])]
    return Port(node["name"], np.dtype(node["dtype"]).name, sizes(shape) or None)


def _grid(node: dict[str, Any]) -> Grid | None:
    """The grid of an input or output of whole numbers; without a scale the numbers stand for themselves."""
    if np.dtype(node["dtype"]).name not in _GRIDS:
        return None
    scale, zero = node["quantization"]
    limits = np.iinfo(node["dtype"])
    return Grid(float(scale) or 1.0, int(zero), int(limits.min), int(limits.max))


def _fits(port: Port, outputs: str) -> bool:
    return port.type in (_LABELS if outputs == "labels" else (*_FLOATS, *_GRIDS)) and fits(outputs, port.shape)


def _on_grid(grid: Grid, declared: dict[str, Any], where: str) -> dict[str, Any]:
    """The declaration of a box that takes whole numbers: where pixels lie on the grid, and how many levels they have.

    Raises:
        InvalidInput: The range is unknown, or it lies elsewhere.
    """
    low, high = grid.range
    normalised = declared.get("mean") is not None or declared.get("std") is not None
    if "input_range" not in declared and not normalised:
        usual = grid.input_range()
        if usual is None and not (grid.takes(0, 1) and high - low <= 2):
            raise InvalidInput(
                f"{where} takes the numbers {low:.4g} to {high:.4g} in steps of {grid.scale:.4g}, and cannot say what "
                "pixels become; give input_range, or mean and std, as in training"
            )
        declared = declared | ({} if usual is None else {"input_range": usual})
    ends = _ends(declared)
    if not grid.takes(*ends):
        raise InvalidInput(
            f"input_range, mean and std make pixels {ends[0]:.4g} to {ends[1]:.4g}; {where} takes {low:.4g} to "
            f"{high:.4g}"
        )
    if not normalised and (levels := grid.levels(*ends)) is not None and levels >= 2:
        declared.setdefault("levels", levels)
    return declared


def _ends(declared: dict[str, Any]) -> tuple[float, float]:
    """The least and the greatest number that a pixel may become."""
    low, high = declared.get("input_range", (0.0, 1.0))
    mean, std = np.asarray(declared.get("mean") or (0.0,)), np.asarray(declared.get("std") or (1.0,))
    return float(((low - mean) / std).min()), float(((high - mean) / std).max())


def _is_coarse(grid: Grid | None, spec: BoxSpec) -> bool:
    """Whether rounding to the grid alone may take probabilities farther from a sum of 1 than an answer may be."""
    if grid is None or spec.outputs != SCORES[1] or spec.num_classes is None:
        return False
    return spec.num_classes * grid.scale / 2 > _ROUNDED_SUM

"""An ONNX file as a black box, run by onnxruntime on the CPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certibox.blackbox import onnx_file
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
    require_model_file,
    settled,
    sizes,
)
from certibox.blackbox.outputs import to_outputs
from certibox.blackbox.pace import Pace
from certibox.errors import BadOutput, InvalidImages, InvalidInput, UnreadableFile

_KIND = "an ONNX model"
_INPUT_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}
_INPUT_TYPES["tensor(uint8)"] = "uint8"
_FLOATS = ("tensor(float)", "tensor(double)", "tensor(float16)")
_WHOLE = tuple(f"tensor({sign}int{bits})" for sign in ("", "u") for bits in (8, 16, 32, 64))
_MAPS = "seq(map("  # skl2onnx's ZipMap: a dictionary from class to score an image
_SILENT = 4  # fatal errors alone are printed; all others are raised too
# What onnxruntime says of a file that is whole, but beyond it: what that means.
_BEYOND = {
    r"(\S+) is not a registered function/op": "it uses the operator {0}, which onnxruntime does not have",
    r"No Op registered for (\S+)": "it uses the operator {0}, which onnxruntime does not have in that opset",
    r"Opset (\d+) is under development.*till opset (\d+)": "it is of opset {0}, onnxruntime knows opsets up to {1}",
    r"Unsupported model IR version: (\d+), max supported IR version: (\d+)": "it is of IR version {0}, onnxruntime "
    "knows versions up to {1}",
}


class OnnxBox:
    """An ONNX model with one input of images: (n, c, h, w), (n, h, w, c), grey (n, h, w) or flat (n, d).

    It takes floats of 16, 32 or 64 bits, or uint8, which is `input_range=(0, 255)` with `levels=256`. Images that are
    (n, h, w, c) need `layout="NHWC"`; flat ones may be `layout="flat-NHWC"`. A fixed batch dimension becomes
    `spec.max_batch`; a smaller batch is padded with its last image and the answers are cut. What else the file fixes
    becomes `spec.image_shape`, `spec.takes` and `spec.num_classes`. One score an image is that of the second of two
    classes, and the dictionaries of skl2onnx (ZipMap) become columns in their order.

    Args:
        path: File of the model. Weights that lie in other files must lie in its folder.
        outputs: Kind of the answers, as in `BoxSpec`.
        output_name: Name of the output to answer with; needed where several would fit.
        input_name: Name of the input that takes the images.
        declared: Other fields of `BoxSpec`; pixels are clipped by default.

    Raises:
        UnreadableFile: The file, or one of its weights, is missing or broken.
        InvalidInput: The model has another form, the file contradicts the declaration, or onnxruntime is missing.
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
        self._path = Path(path).absolute()
        self._session, self._digest = _open(Path(path))
        inputs, answers = _ports(path, self._session.get_inputs()), _ports(path, self._session.get_outputs())
        port = choose_input(inputs, input_name, tuple(_INPUT_TYPES), str(path))
        tests = [lambda p: _fits(p, outputs) and _is_usual(p, outputs), lambda p: _fits(p, outputs)]
        output = choose_output(answers, output_name, outputs, tests, str(path))
        image = ImageInput(f"input {port.name} of {path}", port.shape)
        self._input_name, self._output_name = port.name, output.name
        self._type, self._rank, self._fixed_batch = _INPUT_TYPES[port.type], len(port.shape or ()), image.batch
        self.free_batch_size = "batch_size" not in declared  # what is fastest may be measured
        declared["identity"] = joined(declared.get("identity"), self._digest)
        declared = agreed_type(declared, self._type, str(path))
        self.spec = _spec(path, image, output, outputs, self._type, declared)
        self._pace = Pace(self.spec.batch_size) if self.free_batch_size and self._fixed_batch is None else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec.summary})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_session"}  # of this process

    def __setstate__(self, state: dict[str, Any]) -> None:
        session, digest = _open(state["_path"])
        vars(self).update(state, _session=session)
        if digest != self._digest:
            raise UnreadableFile(f"{self._path} has changed since box {self.spec.name} was made; restore it")

    def __call__(self, x: Tensor) -> Tensor:  # (n, c, h, w) -> outputs
        """See `BlackBox.__call__`."""
        images = self.spec.arrange(self.spec.prepare(x.detach()).cpu())
        images = images[:, 0] if self._rank == 3 else images  # grey ones, without an axis for the channel
        answer = self._run(images) if self._pace is None else self._pace.in_parts(self._run, images)
        return to_outputs(answer, self.spec, x.device)

    def _run(self, arranged: Tensor) -> Tensor:
        """The file's answer to images as it takes them, one answer an image."""
        images, n = arranged.numpy(), len(arranged)
        if self._type == "uint8":
            images = images.round()  # on the grid already, but for float error where levels is not 256
        if self._fixed_batch is not None:
            if n > self._fixed_batch:
                raise InvalidImages(
                    f"{n} images in one call; box {self.spec.name} takes {self._fixed_batch}, ask in parts"
                )
            images = np.concatenate([images, np.repeat(images[-1:], self._fixed_batch - n, axis=0)])
        feed = {self._input_name: np.ascontiguousarray(images, dtype=self._type)}
        answer = _numbers(self._session.run([self._output_name], feed)[0])
        if len(images) == 1 and answer.shape[:1] != (1,):
            answer = answer[None]  # the axis of the only image was dropped
        if answer.shape[:1] != (len(images),):
            raise BadOutput(f"box {self.spec.name} answered {len(images)} images in shape {answer.shape}")
        return torch.from_numpy(answer[:n])


def _open(path: Path) -> tuple[Any, str]:
    """The file's session and identity. A missing file is named before a missing package."""
    require_model_file(path, _KIND)
    try:
        import onnxruntime
    except ImportError as error:
        raise InvalidInput(f"{path} needs onnxruntime; run pip install 'certibox[onnx]'") from error
    identity = onnx_file.identity(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT

    def session(model: str | bytes) -> Any:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)

    return _loaded(path, session, options), identity


def _loaded(path: Path, session: Callable[[str | bytes], Any], options: Any) -> Any:
    """The session of a file; where sizes are 0, that of the same model with such sizes free."""
    try:
        found, problem = session(str(path)), None
        if all(0 not in (node.shape or ()) for node in found.get_inputs()):
            return found
    except Exception as error:  # onnxruntime has a dozen unrelated classes for a file that it cannot load
        problem = error
    freed = onnx_file.with_free_sizes(path)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    try:
        if freed is not None:
            return session(freed)
    except Exception as error:  # as above
        problem = error
    raise UnreadableFile(f"{path} is no ONNX model that onnxruntime can load: {_reason(problem)}") from problem


def _reason(error: Exception | None) -> str:
    """What onnxruntime says, in words where they are known, else without its codes and its own source files."""
    text = " ".join(str(error).split()) or type(error).__name__
    for pattern, words in _BEYOND.items():
        if found := re.search(pattern, text):
            return words.format(*found.groups())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .* failed:)?", "", text)
    text = re.sub(r"\S*onnxruntime_src/\S+ ", "", text)
    return text[:300]


def _ports(path: str | Path, nodes: list[Any]) -> list[Port]:
    """Inputs or outputs of a session."""
    try:
        return [Port(node.name, node.type, sizes(node.shape) or None) for node in nodes]
    except UnicodeDecodeError as error:
        raise UnreadableFile(f"{path} is no ONNX model that onnxruntime can load: {_reason(error)}") from error


def _fits(port: Port, outputs: str) -> bool:
    if port.type.startswith(_MAPS):
        return outputs in SCORES
    return port.type in (_FLOATS if outputs in SCORES else (*_WHOLE, *_FLOATS)) and fits(outputs, port.shape)


def _is_usual(port: Port, outputs: str) -> bool:
    """Whether an output that fits has the usual form of its kind: whole labels, a score a class."""
    if outputs == "labels":
        return port.type in _WHOLE
    return outputs not in SCORES or len(port.shape or ()) != 1


def _numbers(answer: Any) -> np.ndarray:
    """An answer as one array; of dictionaries, their values in the order of the first."""
    if isinstance(answer, list) and answer and isinstance(answer[0], dict):
        return np.array([[row[key] for key in answer[0]] for row in answer], dtype=np.float32)
    return np.asarray(answer)


def _spec(
    path: str | Path, image: ImageInput, output: Port, outputs: str, own_type: str, declared: dict[str, Any]
) -> BoxSpec:
    """The declaration, with what the file fixes."""
    fixed = image.fixed(declared)
    if classes := classes_of(outputs, output.shape, image.batch):
        fixed["num_classes"] = classes
    if own_type == "uint8":
        fixed["input_range"] = (0.0, 255.0)
        if declared.get("mean") is not None or declared.get("std") is not None:
            raise InvalidInput(f"mean or std was given, but {path} takes uint8 images; leave them out")
        declared.setdefault("levels", 256)
    if image.batch is not None:
        declared["max_batch"] = min(image.batch, declared.get("max_batch") or image.batch)
    declared.setdefault("name", Path(path).name)
    return BoxSpec(outputs, **settled(declared, fixed, str(path)))

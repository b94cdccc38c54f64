"""An ONNX file as a black box, run by onnxruntime on the CPU."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certibox.blackbox.base import BoxSpec
from certibox.blackbox.outputs import to_outputs
from certibox.blackbox.pace import Pace
from certibox.errors import InvalidImages, InvalidInput, UnreadableFile

_INPUT_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}
_FLOATS = ("tensor(float)", "tensor(double)", "tensor(float16)")


class OnnxBox:
    """An ONNX model with one image input (n, c, h, w) of type float, double, float16 or uint8.

    A fixed batch dimension becomes `spec.max_batch`; a smaller batch is padded with its last image and the answers are
    cut. A fixed image shape becomes `spec.image_shape`, a fixed number of scores `spec.num_classes`. A uint8 input is
    `input_range=(0, 255)` with `levels=256`.

    Args:
        path: File of the model.
        outputs: Kind of the answers, as in `BoxSpec`.
        output_name: Name of the output to answer with; needed where several would fit.
        input_name: Name of the input that takes the images; needed where there are several.
        declared: Other fields of `BoxSpec`; pixels are clipped by default.

    Raises:
        UnreadableFile: The file is missing or broken.
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
        self._path, self._session = Path(path).absolute(), _open(Path(path))
        self._digest = hashlib.sha256(self._path.read_bytes()).hexdigest()
        nodes = self._session.get_inputs()
        names = ", ".join(node.name for node in nodes)
        image = next((node for node in nodes if node.name == (input_name or node.name)), None)
        if image is None or len(nodes) != 1:
            raise InvalidInput(f"{path} has the inputs {names}; give a model with one, the images")
        if image.type not in _INPUT_TYPES or len(image.shape) != 4:
            raise InvalidInput(
                f"input {image.name} of {path} is {image.type} {image.shape}; give one of float or uint8, (n, c, h, w)"
            )
        self._input_name, self._dtype = image.name, _INPUT_TYPES[image.type]
        output = _choose_output(path, self._session.get_outputs(), outputs, output_name)
        self._output_name = output.name
        batch = image.shape[0]
        self._fixed_batch: int | None = batch if isinstance(batch, int) else None
        self.free_batch_size = "batch_size" not in declared  # what is fastest may be measured
        declared.setdefault("identity", self._digest)
        self.spec = _spec(path, image, output, outputs, declared)
        self._pace = Pace(self.spec.batch_size) if self.free_batch_size and self._fixed_batch is None else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec.summary})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_session"}  # of this process

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _session=_open(state["_path"]))
        if hashlib.sha256(self._path.read_bytes()).hexdigest() != self._digest:
            raise UnreadableFile(f"{self._path} has changed since box {self.spec.name} was made; restore it")

    def __call__(self, x: Tensor) -> Tensor:  # (n, c, h, w) -> outputs
        """See `BlackBox.__call__`."""
        images = self.spec.prepare(x.detach()).cpu()
        answer = self._run(images) if self._pace is None else self._pace.in_parts(self._run, images)
        return to_outputs(answer, self.spec, x.device)

    def _run(self, prepared: Tensor) -> Tensor:
        """The file's answer to prepared images (n, c, h, w)."""
        images, n = prepared.numpy(), len(prepared)
        if self._dtype == np.uint8:
            images = images.round()  # on the grid already, but for float error where levels is not 256
        if self._fixed_batch is not None:
            if n > self._fixed_batch:
                raise InvalidImages(
                    f"{n} images in one call; box {self.spec.name} takes {self._fixed_batch}, ask in parts"
                )
            images = np.concatenate([images, np.repeat(images[-1:], self._fixed_batch - n, axis=0)])
        feed = {self._input_name: np.ascontiguousarray(images, dtype=self._dtype)}
        answer = np.asarray(self._session.run([self._output_name], feed)[0])
        # An answer of another length than the batch stays whole, for the check of outputs to name.
        if self._fixed_batch is not None and np.shape(answer)[:1] == (self._fixed_batch,):
            answer = answer[:n]
        return torch.from_numpy(answer)


def _open(path: Path) -> Any:
    """The file's session. A missing file is named before a missing package."""
    if not path.is_file():
        raise UnreadableFile(f"no file {path}; give the path of an ONNX model")
    try:
        import onnxruntime
    except ImportError as error:
        raise InvalidInput(f"{path} needs onnxruntime; run pip install 'certibox[onnx]'") from error
    try:
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen unrelated classes for a file that it cannot load
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnreadableFile(f"{path} is no ONNX model that onnxruntime can load: {detail}") from error


def _choose_output(path: str | Path, nodes: list[Any], outputs: str, name: str | None) -> Any:
    """The output to answer with: the named one, the only one, or the only one whose type and rank fit the kind."""
    names = ", ".join(node.name for node in nodes)
    if name is not None:
        nodes = [node for node in nodes if node.name == name]
        if not nodes:
            raise InvalidInput(f"output_name is {name!r}; {path} has {names}")
    elif len(nodes) > 1:
        nodes = [node for node in nodes if _fits(node, outputs)]
    if len(nodes) != 1:
        raise InvalidInput(
            f"{path} has the outputs {names}, {len(nodes)} of which fit {outputs}; choose by output_name"
        )
    return nodes[0]


def _fits(node: Any, outputs: str) -> bool:
    if outputs == "labels":
        return len(node.shape or ()) == 1
    return node.type in _FLOATS and (outputs == "values" or len(node.shape or ()) == 2)


def _spec(path: str | Path, image: Any, output: Any, outputs: str, declared: dict[str, Any]) -> BoxSpec:
    """The declaration, with what the file fixes."""
    fixed: dict[str, Any] = {}
    if all(isinstance(size, int) for size in image.shape[1:]):
        fixed["image_shape"] = tuple(image.shape[1:])
    if outputs in ("logits", "probabilities") and len(output.shape or ()) == 2 and isinstance(output.shape[1], int):
        fixed["num_classes"] = output.shape[1]
    if image.type == "tensor(uint8)":
        fixed["input_range"] = (0.0, 255.0)
        if declared.get("mean") is not None or declared.get("std") is not None:
            raise InvalidInput(f"mean or std was given, but {path} takes uint8 images; leave them out")
        declared.setdefault("levels", 256)
    for field, value in fixed.items():
        given = declared.get(field)
        if given is not None and (tuple(given) if isinstance(value, tuple) else given) != value:
            raise InvalidInput(f"{field} is {given}; {path} fixes it to {value}")
    if isinstance(batch := image.shape[0], int):
        fixed["max_batch"] = min(batch, declared.get("max_batch") or batch)
    declared.setdefault("name", Path(path).name)
    return BoxSpec(outputs, **(declared | fixed))

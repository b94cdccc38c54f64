"""What the adapters of model files share: which files are opened at all, and what the sizes in a file declare."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certibox.errors import InvalidInput, UnreadableFile
from certibox.storage.places import kind_of

MOST_BYTES = 2**31  # neither protobuf nor a flatbuffer holds more; larger weights lie in files of their own
COLOURS = (1, 3)  # numbers of channels that tell (n, h, w, c) from (n, c, h, w)
SCORES = ("logits", "probabilities")

_PICKLE = ("a pickle, which may run code", "joblib.load")
ELSEWHERE = {  # files of models that no adapter opens: what they are, what loads them
    ".pt": ("a PyTorch file", "torch.load"),
    ".pth": ("a PyTorch file", "torch.load"),
    ".ckpt": ("a checkpoint", "torch.load"),
    ".pt2": ("an exported PyTorch program", "torch.export.load"),
    ".pte": ("an ExecuTorch program", "executorch.runtime"),
    ".pkl": _PICKLE,
    ".pickle": _PICKLE,
    ".joblib": _PICKLE,
    ".h5": ("a Keras model", "keras.models.load_model"),
    ".hdf5": ("a Keras model", "keras.models.load_model"),
    ".keras": ("a Keras model", "keras.models.load_model"),
    ".safetensors": ("weights without a network", "safetensors.torch.load_file"),
    ".pb": ("a TensorFlow graph", "tensorflow.saved_model.load"),
    ".mlmodel": ("a Core ML model", "coremltools.models.MLModel"),
    ".mlpackage": ("a Core ML model", "coremltools.models.MLModel"),
    ".ort": ("a model in onnxruntime's own form", "onnxruntime.InferenceSession"),
    ".engine": ("a TensorRT engine", "the runtime of TensorRT"),
    ".xml": ("an OpenVINO model", "openvino.Core().read_model"),
}


def advice_on(path: str | Path) -> str | None:
    """One line that says what to do with a model file that no adapter opens; None for another name.

    Args:
        path: Name of the file.
    """
    found = ELSEWHERE.get(Path(path).suffix.lower())
    if found is None:
        return None
    what, loader = found
    return (
        f"model is {str(path)!r}, {what}, which certibox does not open; write a Python file whose function loads it "
        f"({loader}) and answers for images, and give that function (--model file.py:function)"
    )


def require_model_file(path: Path, kind: str) -> None:
    """Refuse what cannot be the file of a model, without opening it.

    Args:
        path: Path that was given.
        kind: Kind of file that is wanted, as "an ONNX model".

    Raises:
        UnreadableFile: There is no such file, or it is a directory, a pipe, a device, empty or too large.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise UnreadableFile(f"no file {path}; give the path of {kind}") from error
    if special := kind_of(found.st_mode):
        raise UnreadableFile(f"{path} is {special}; give the path of {kind}")
    if not 0 < found.st_size < MOST_BYTES:
        size = f"{found.st_size / 2**30:.1f} GiB" if found.st_size else "0 bytes"
        raise UnreadableFile(f"{path} has {size}; give the path of {kind} of less than 2 GiB")


def read_whole(path: Path) -> bytes:
    """The bytes of a file.

    Args:
        path: Path of the file.

    Raises:
        UnreadableFile: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableFile(f"{path} cannot be read: {error.strerror}") from error


def digest_of(path: Path) -> str:
    """SHA-256 of a file, read piece by piece.

    Args:
        path: Path of the file.

    Raises:
        UnreadableFile: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnreadableFile(f"{path} cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class Port:
    """An input or an output of a file."""

    name: str
    """Its name in the file."""
    type: str
    """Type of its numbers, in the words of the runtime."""
    shape: tuple[int | None, ...] | None
    """Sizes with the batch first, None for one that is free; None where the file does not even say how many."""

    @property
    def form(self) -> str:
        """Name, type and sizes, for messages."""
        return f"{self.name} {self.type} {shown(self.shape)}"


def choose_input(ports: Sequence[Port], name: str | None, types: Sequence[str], where: str) -> Port:
    """The input that takes the images: the only one that must be given.

    Args:
        ports: Inputs without a default.
        name: Name that the user gave; None for none.
        types: Types that can be fed.
        where: Name of the file, for messages.

    Raises:
        InvalidInput: There is none of that name, there are several, or it is of another type.
    """
    names = ", ".join(port.name for port in ports) or "none"
    if name is not None and all(port.name != name for port in ports):
        raise InvalidInput(f"input_name is {name!r}; {where} has {names}")
    if len(ports) != 1:
        raise InvalidInput(
            f"{where} has the inputs {names} and needs them all; give a model with one, the images, or a function that "
            "fills in the others"
        )
    if ports[0].type not in types:
        raise InvalidInput(
            f"input {names} of {where} is {ports[0].type}; give a model that takes one of {', '.join(types)}, or a "
            "function that converts the images"
        )
    return ports[0]


def choose_output(
    ports: Sequence[Port], name: str | None, outputs: str, tests: Sequence[Callable[[Port], bool]], where: str
) -> Port:
    """The output to answer with: the named one, or the only one that can hold answers of the kind.

    Args:
        ports: Outputs.
        name: Name that the user gave; None for none.
        outputs: Kind of the answers.
        tests: Whether a port fits: the first of these tests that any passes decides.
        where: Name of the file, for messages.

    Raises:
        InvalidInput: There is none of that name, none fits, or several do.
    """
    forms = ", ".join(port.form for port in ports)
    if name is not None:
        ports = [port for port in ports if port.name == name]
        if not ports:
            raise InvalidInput(f"output_name is {name!r}; {where} has {forms}")
    fitting = next((found for test in tests if (found := [port for port in ports if test(port)])), [])
    if len(fitting) > 1:
        raise InvalidInput(
            f"{where} has the outputs {forms}, {len(fitting)} of which fit {outputs}; choose by output_name"
        )
    if not fitting:
        came = ", ".join(port.form for port in ports)
        raise InvalidInput(
            f"outputs is {outputs!r}, but {where} answers {came}; give the kind that it answers, or a model that "
            f"answers {_ANSWERS.get(outputs, 'floats (n, K)')}"
        )
    return fitting[0]


_ANSWERS = {"labels": "whole numbers (n,) from 0 to K - 1", "values": "one array of numbers"}  # else scores


@dataclass(frozen=True)
class ImageInput:
    """The input of a file that takes the images."""

    where: str
    """Name of the input and of its file, for messages."""
    shape: tuple[int | None, ...] | None
    """Sizes with the batch first, None for one that is free; None where the file does not even say how many."""

    @property
    def batch(self) -> int | None:
        """The number of images that a call must hold; None where it is free."""
        return self.shape[0] if self.shape else None

    def fixed(self, declared: dict[str, Any]) -> dict[str, Any]:
        """The fields of `BoxSpec` that these sizes fix.

        Args:
            declared: Fields that the user gave.

        Raises:
            InvalidInput: These are no images, or their layout is another than the one that was given.
        """
        if self.shape is None:
            return {}
        rank, layout = len(self.shape), declared.get("layout", "NCHW")
        if rank == 2:
            flat = "flat-NHWC" if layout.endswith("NHWC") else "flat"
            return {"layout": flat, "takes": self.shape[1:]}
        if rank == 3 and self.shape[0] in (None, 1):  # grey images without an axis for the channel
            return {"layout": "NCHW"} | _image_shape((1, *self.shape[1:]), "NCHW")
        if rank != 4:
            raise InvalidInput(f"{self.where} is {self.shown}; {_WANTED}")
        if layout.startswith("flat"):
            raise InvalidInput(f"layout is {layout!r}, but {self.where} is {self.shown}; give 'NCHW' or 'NHWC'")
        if "layout" not in declared and "image_shape" not in declared and self.channels_last:
            c, h, w = self.shape[1:]
            raise InvalidInput(
                f"{self.where} is {self.shown}, which looks like (n, height, width, channels); give layout='NHWC' "
                f"(--layout NHWC), or image_shape=({c}, {h}, {w}) if it is (n, channels, height, width)"
            )
        return {"layout": layout} | _image_shape(self.shape[1:], layout)

    @property
    def channels_last(self) -> bool:
        """Whether the last of four sizes is a number of channels and the second is none."""
        return self._has_channels(at=3, not_at=1)

    @property
    def channels_first(self) -> bool:
        """Whether the second of four sizes is a number of channels and the last is none."""
        return self._has_channels(at=1, not_at=3)

    def _has_channels(self, at: int, not_at: int) -> bool:
        if self.shape is None or len(self.shape) != 4:
            return False
        return self.shape[at] in COLOURS and self.shape[not_at] not in (None, *COLOURS)

    @property
    def shown(self) -> str:
        """The sizes as a reader knows them, (n, 3, ?, ?)."""
        return shown(self.shape)


_WANTED = "give a model of (n, channels, height, width), (n, height, width, channels) or flat images (n, d)"


def _image_shape(sizes: tuple[int | None, ...], layout: str) -> dict[str, Any]:
    """The sizes of one image as fields: what images are held against, and their whole shape where all sizes are."""
    fields: dict[str, Any] = {"takes": sizes}
    if None not in sizes:
        fields["image_shape"] = (sizes[2], *sizes[:2]) if layout == "NHWC" else sizes
    return fields


def sizes(shape: Sequence[Any] | None) -> tuple[int | None, ...]:
    """Sizes as they stand in a file: whole numbers above 0, and None for a name, a 0 or a -1.

    Args:
        shape: Sizes as the runtime gives them.
    """
    return tuple(int(size) if isinstance(size, int) and size > 0 else None for size in shape or ())


def shown(shape: Sequence[int | None] | None) -> str:
    """Sizes as text, with n for a free batch and ? for another free size.

    Args:
        shape: Sizes with the batch first; None where their number is unknown.
    """
    if shape is None:
        return "of any shape"
    names = ["n" if i == 0 and size is None else "?" if size is None else str(size) for i, size in enumerate(shape)]
    return f"({', '.join(names)}{',' if len(names) == 1 else ''})"


def classes_of(outputs: str, shape: Sequence[int | None] | None, batch: int | None) -> int | None:
    """The number of classes that an output of this shape has; None where the file leaves it open.

    One score an image, (n, 1) or (n,), is that of the second of two classes.

    Args:
        outputs: Kind of the answers.
        shape: Sizes of the output with the batch first; None where their number is unknown.
        batch: Number of images that a call must hold; None where it is free.
    """
    if outputs not in SCORES or not shape:
        return None
    alone = len(shape) == 1 and batch == 1 and shape[0] not in (None, 1)  # (K,) for the one image
    classes = shape[-1] if len(shape) == 2 or alone else 1
    return 2 if classes == 1 else classes


def fits(outputs: str, shape: Sequence[int | None] | None) -> bool:
    """Whether an output of this shape can hold answers of this kind.

    Args:
        outputs: Kind of the answers.
        shape: Sizes of the output with the batch first; None where their number is unknown.
    """
    if shape is None or outputs == "values":
        return True
    if outputs == "labels":
        return len(shape) == 1 or (len(shape) == 2 and shape[1] in (None, 1))
    return len(shape) in (1, 2)


def settled(declared: dict[str, Any], fixed: dict[str, Any], where: str) -> dict[str, Any]:
    """What the user declared, with what the file fixes.

    Args:
        declared: Fields that the user gave.
        fixed: Fields that the file fixes.
        where: Name of the file, for messages.

    Raises:
        InvalidInput: The two contradict each other.
    """
    for field, value in fixed.items():
        given = declared.get(field)
        if field == "layout" or given is None:
            continue
        if (tuple(given) if isinstance(value, tuple) and isinstance(given, list | tuple) else given) != value:
            raise InvalidInput(f"{field} is {given}; {where} fixes it to {value}")
    return declared | fixed


def agreed_type(declared: dict[str, Any], own: str, where: str) -> dict[str, Any]:
    """What the user declared, without the type of the numbers: the file has its own.

    Args:
        declared: Fields that the user gave.
        own: Name of the type that the file takes.
        where: Name of the file, for messages.

    Raises:
        InvalidInput: Another type was given.
    """
    given = declared.get("dtype")
    if given not in (None, own):
        raise InvalidInput(f"dtype is {given!r}, but {where} takes {own}; leave dtype out")
    return {field: value for field, value in declared.items() if field != "dtype"}

"""What a model behind the Open Inference Protocol v2 is, whichever way it is asked: metadata, names, sizes, answers."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from certibox.blackbox.base import BoxSpec
from certibox.blackbox.connection import LARGEST, Connection, served
from certibox.blackbox.http import ServedVersion
from certibox.blackbox.inputs import as_array
from certibox.blackbox.outputs import to_outputs
from certibox.errors import BadOutput, InvalidInput, one_line

DATATYPES = {"FP32": "float32", "FP64": "float64", "FP16": "float16", "UINT8": "uint8"}
ANSWERS = {  # datatype -> little-endian type of NumPy
    **{f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    "BOOL": "|b1",
}
_BINARY = ("binary_tensor_data", "binary_tensor_data_extension")  # names of the extension in metadata


@dataclass(frozen=True)
class Metadata:
    """What a server says of itself and of a model."""

    server: dict[str, Any]
    model: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all of it, the names and versions of server and model among it."""
        return hashlib.sha256(json.dumps([self.server, self.model], sort_keys=True).encode()).hexdigest()

    @property
    def is_binary(self) -> bool:
        """Whether the server says that it takes tensors in binary form."""
        extensions = self.server.get("extensions")
        return isinstance(extensions, list) and any(name in _BINARY for name in extensions)

    def ports(self, kind: str) -> list[dict[str, Any]]:
        """The inputs or outputs that the model lists; none where it lists none.

        Args:
            kind: "inputs" or "outputs".
        """
        found = self.model.get(kind)
        return (
            [port for port in found if isinstance(port, dict) and port.get("name")] if isinstance(found, list) else []
        )


class Answered(NamedTuple):
    """What a server answered to one request."""

    ident: object
    """Number of the request that it names; None or "" where it names none."""
    version: object
    """Version of the model that it names; None or "" where it names none."""
    tensors: dict[str, np.ndarray]
    """Outputs by name, (n, ...)."""


class InferenceModelBox(ABC):
    """A model behind the Open Inference Protocol: all but the way to ask it.

    Args:
        address: Address of the model, its name in messages and records.
        metadata: What its server says.
        version: Version that must answer; None for that of the first answer.
        outputs: Kind of the answers, as in `BoxSpec`.
        input_name: Name of the input that takes the images; by default the only one.
        output_name: Name of the output to answer with; by default the only one, or the server's own choice.
        connection: Limits and secrets.
        declared: Other fields of `BoxSpec`.

    Raises:
        InvalidInput: Metadata and declaration disagree.
    """

    is_adaptive = True
    """Whether the number of calls at once follows what the server bears."""
    may_change = True
    """Whether the model may become another without a word: its identity alone does not vouch for it."""
    binary = True
    """Whether tensors are sent in binary form."""
    largest_request = LARGEST
    """Most bytes of a request where the connection does not say."""

    def __init__(
        self,
        address: str,
        metadata: Metadata,
        version: str | None,
        outputs: str,
        input_name: str | None,
        output_name: str | None,
        connection: Connection,
        declared: dict[str, Any],
    ) -> None:
        self.model, self.metadata, self.connection = address, metadata, connection
        port = _chosen(metadata.ports("inputs"), input_name, "input", address)
        answer = _chosen(metadata.ports("outputs"), output_name, "output", address)
        self.input = port.get("name") or "input"
        self.output = answer.get("name")
        declared["dtype"] = _agreed_dtype(declared.get("dtype"), port.get("datatype"), address)
        self.datatype = next(name for name, dtype in DATATYPES.items() if dtype == (declared["dtype"] or "float32"))
        if self.datatype == "FP16" and not self.binary:
            raise InvalidInput(f"{address} takes FP16, which JSON does not have; say that it takes binary tensors")
        self._version = ServedVersion(address, version)
        self._lock = threading.Lock()
        self._requests = 0
        self.is_named = declared.get("identity") is not None
        self.spec = _spec(outputs, port, answer, address, served(declared, address, metadata.digest))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec.summary})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def images_at_once(self, image_shape: tuple[int, ...]) -> int:
        """The most images of a shape that one request can hold in the bytes that it may have.

        Args:
            image_shape: Shape (c, h, w) of an image.
        """
        values = math.prod(image_shape)
        each = values * (np.dtype(self.spec.dtype or "float32").itemsize if self.binary else 25)
        most = self.connection.largest_request or self.largest_request
        return max(1, (most - 1024) // max(1, each))

    def __call__(self, x: Tensor) -> Tensor:  # (n, c, h, w) -> outputs
        """See `BlackBox.__call__`."""
        images = as_array(self.spec, x)
        with self._lock:
            self._requests += 1
            ident = str(self._requests)
        answer = self._answered(images, ident)
        if answer.ident not in (None, "", ident):
            raise self.bad(f"request {one_line(answer.ident, 40)} where {ident} was asked")
        if answer.version not in (None, ""):
            self._version.check(str(answer.version))
        names = list(answer.tensors)
        if self.output is not None and self.output not in names:
            raise self.bad(f"the outputs {', '.join(names) or 'none'}, without {self.output}")
        if self.output is None and len(names) != 1:
            raise self.bad(f"the outputs {', '.join(names) or 'none'}; choose one by output_name")
        found = answer.tensors[self.output or names[0]]
        if found.shape[:1] != (len(images),):
            raise self.bad(f"shape {tuple(found.shape)} to {len(images)} images")
        return to_outputs(found, self.spec, x.device, len(images))

    @abstractmethod
    def _answered(self, images: np.ndarray, ident: str) -> Answered:
        """The answer to one request, which is sent once."""

    def wants(self, output: str) -> bool:
        """Whether an output of an answer is of use.

        Args:
            output: Name of the output.
        """
        return self.output in (None, output)

    def bad(self, came: str) -> BadOutput:
        """The error of a wrong answer.

        Args:
            came: What came.
        """
        return BadOutput(f"box {self.model} answered {came}")


def little_endian(images: np.ndarray) -> bytes:
    """The numbers of a tensor as the protocol's binary form has them.

    Args:
        images: Tensor in row-major order.
    """
    return images.astype(images.dtype.newbyteorder("<"), copy=False).tobytes()


def _chosen(ports: list[dict[str, Any]], name: str | None, kind: str, model: str) -> dict[str, Any]:
    """The input or output of a name, or the only one. Where the server lists none, the name is taken as it is."""
    names = [str(port["name"]) for port in ports]
    if not ports:
        return {"name": name}
    if name is None and len(ports) > 1:
        raise InvalidInput(f"{model} has the {kind}s {', '.join(names)}; choose one by {kind}_name")
    if name is not None and name not in names:
        raise InvalidInput(f"{model} has no {kind} {name!r}, but {', '.join(names)}")
    return ports[0] if name is None else ports[names.index(name)]


def _agreed_dtype(declared: str | None, datatype: object, model: str) -> str | None:
    """The type of the numbers that are sent: as declared, else as the metadata say."""
    if datatype is None or (declared is not None and DATATYPES.get(str(datatype)) == declared):
        return declared
    if (own := DATATYPES.get(str(datatype))) is None:
        if declared is not None:
            return declared
        raise InvalidInput(f"{model} takes {one_line(datatype, 30)}; wanted {', '.join(DATATYPES)}, or give dtype")
    if declared is not None:
        raise InvalidInput(f"dtype is {declared!r}, but {model} takes {datatype}")
    return None if own == "float32" else own


def _spec(outputs: str, port: dict[str, Any], answer: dict[str, Any], model: str, declared: dict[str, Any]) -> BoxSpec:
    """The declaration, with what the metadata say of sizes and classes."""
    sizes = port.get("shape")
    if isinstance(sizes, list) and len(sizes) in (2, 4) and all(type(size) is int for size in sizes):
        batch, *rest = sizes
        declared["takes"] = tuple(size if size > 0 else None for size in rest)
        if batch > 0:
            declared["max_batch"] = min(batch, declared.get("max_batch") or batch)
        if len(rest) == 1:
            declared.setdefault("layout", "flat")
            declared["takes"] = declared["takes"] if declared["takes"][0] else None
    scores = answer.get("shape")
    if isinstance(scores, list) and len(scores) == 2 and outputs in ("logits", "probabilities"):
        classes = scores[1] if type(scores[1]) is int and scores[1] > 1 else None
        given = declared.setdefault("num_classes", classes)
        if classes is not None and given != classes:
            raise InvalidInput(f"num_classes is {given}, but {model} answers {classes} scores")
    return BoxSpec(outputs, **{key: value for key, value in declared.items() if value is not None})

"""A model behind the Open Inference Protocol v2 (KServe, MLServer, Triton, OpenVINO, ...), over REST.

What the server's metadata say is read once, when the box is made; no tensor is sent then. What they leave open, the
user says: MLServer, for one, may list no inputs at all.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import numpy as np
from torch import Tensor

from certibox.blackbox.base import BoxSpec
from certibox.blackbox.connection import Connection, connection_of, served
from certibox.blackbox.http import Reply, ServedVersion, Server
from certibox.blackbox.inputs import as_array
from certibox.blackbox.json_text import parsed, written
from certibox.blackbox.outputs import to_outputs
from certibox.errors import BadOutput, InvalidInput, NotAnswered, one_line

PATH = re.compile(
    r"(?P<base>https?://[^/]+(?:/.*)?)/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?(?:/infer)?/?"
)
DATATYPES = {"FP32": "float32", "FP64": "float64", "FP16": "float16", "UINT8": "uint8"}
_ANSWERS = {  # datatype -> little-endian type of NumPy
    **{f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    "BOOL": "|b1",
}
_LENGTH = "inference-header-content-length"
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


class InferenceProtocolBox:
    """A model at `.../v2/models/NAME`, or `.../v2/models/NAME/versions/VERSION`, asked over HTTP.

    Names, datatype and sizes come from the server's metadata where they are there. Tensors go in binary form where the
    metadata list that extension, or where `connection.binary` says so, else as JSON numbers that read back to the same
    floats. Answers may come in either form. The first answer's model version is kept: another one later raises
    `BoxChanged`.

    Args:
        url: Address of the model.
        outputs: Kind of the answers, as in `BoxSpec`.
        input_name: Name of the input that takes the images; by default the only one.
        output_name: Name of the output to answer with; by default the only one, or the server's own choice.
        connection: Limits and secrets, or their names as a dictionary.
        declared: Other fields of `BoxSpec`; pixels are clipped by default, 32 images go in a request, and up to 8
            requests are under way at once.

    Raises:
        InvalidInput: The address is none of the protocol, or metadata and declaration disagree.
        NotAnswered: The server is not there, or has no such model.
    """

    is_adaptive = True
    """Whether the number of calls at once follows what the server bears."""
    may_change = True
    """Whether the model may become another without a word: its identity alone does not vouch for it."""

    def __init__(
        self,
        url: str,
        outputs: str,
        input_name: str | None = None,
        output_name: str | None = None,
        connection: Connection | dict[str, Any] | None = None,
        **declared: Any,
    ) -> None:
        self.connection = connection_of(connection)
        found = PATH.fullmatch(url)
        if found is None:
            raise InvalidInput(f"{one_line(url)} is no address of a model; wanted .../v2/models/NAME")
        version = f"/versions/{found['version']}" if found["version"] else ""
        self._model = f"{found['base']}/v2/models/{found['model']}{version}"
        self._server = Server(f"{self._model}/infer", self.connection)
        self.metadata = self._read(f"{found['base']}/v2")
        port = _chosen(self.metadata.ports("inputs"), input_name, "input", self._model)
        answer = _chosen(self.metadata.ports("outputs"), output_name, "output", self._model)
        self._input = port.get("name") or "input"
        self._output = answer.get("name")
        declared["dtype"] = _agreed_dtype(declared.get("dtype"), port.get("datatype"), self._model)
        self._datatype = next(name for name, dtype in DATATYPES.items() if dtype == (declared["dtype"] or "float32"))
        self._binary = self.metadata.is_binary if self.connection.binary is None else self.connection.binary
        if self._datatype == "FP16" and not self._binary:
            raise InvalidInput(f"{self._model} takes FP16, which JSON does not have; say that it takes binary tensors")
        self._version = ServedVersion(self._model, found["version"] and unquote(found["version"]))
        self._lock = threading.Lock()
        self._requests = 0
        self.is_named = declared.get("identity") is not None
        declared = served(declared, self._model, self.metadata.digest)
        self.spec = _spec(outputs, port, answer, self._model, declared)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec.summary})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def images_at_once(self, image_shape: tuple[int, ...]) -> int:
        """The most images of a shape that one request can hold in `connection.largest_request` bytes.

        Args:
            image_shape: Shape (c, h, w) of an image.
        """
        values = math.prod(image_shape)
        each = values * (np.dtype(self.spec.dtype or "float32").itemsize if self._binary else 25)
        return max(1, (self.connection.largest_request - 1024) // max(1, each))

    def __call__(self, x: Tensor) -> Tensor:  # (n, c, h, w) -> outputs
        """See `BlackBox.__call__`."""
        images = as_array(self.spec, x)
        with self._lock:
            self._requests += 1
            ident = str(self._requests)
        content, headers = self._request(images, ident)
        reply = self._server.post(content, headers)
        return to_outputs(self._answer(reply, ident, len(images)), self.spec, x.device, len(images))

    def _request(self, images: np.ndarray, ident: str) -> tuple[bytes, dict[str, str]]:
        """The body and the headers of a request."""
        tensor: dict[str, Any] = {"name": self._input, "shape": list(images.shape), "datatype": self._datatype}
        wanted: dict[str, Any] = {"id": ident, "inputs": [tensor]}
        if not self._binary:
            tensor["data"] = images.reshape(-1)
            if self._output is not None:
                wanted["outputs"] = [{"name": self._output}]
            return written(wanted), {"Content-Type": "application/json"}
        raw = images.astype(images.dtype.newbyteorder("<"), copy=False).tobytes()
        tensor["parameters"] = {"binary_data_size": len(raw)}
        if self._output is None:
            wanted["parameters"] = {"binary_data_output": True}
        else:
            wanted["outputs"] = [{"name": self._output, "parameters": {"binary_data": True}}]
        head = written(wanted)
        kind = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
        return head + raw, kind

    def _answer(self, reply: Reply, ident: str, n: int) -> np.ndarray:
        """The scores in a reply, (n, ...)."""
        head, raw = reply.body, b""
        if (length := reply.headers.get(_LENGTH)) is not None:
            if not length.isdigit() or int(length) > len(reply.body):
                raise self._bad(f"a header of {one_line(length, 40)} bytes in a body of {len(reply.body)}")
            head, raw = reply.body[: int(length)], reply.body[int(length) :]
        answer = parsed(head, f"box {self._model}")
        if not isinstance(answer, dict) or not isinstance(answer.get("outputs"), list):
            raise self._bad("JSON without a list of outputs")
        if answer.get("id") not in (None, "", ident):
            raise self._bad(f"request {one_line(answer['id'], 40)} where {ident} was asked")
        if (version := answer.get("model_version")) not in (None, ""):
            self._version.check(str(version))
        tensors = self._tensors(answer["outputs"], raw)
        names = list(tensors)
        if self._output is not None and self._output not in tensors:
            raise self._bad(f"the outputs {', '.join(names) or 'none'}, without {self._output}")
        if self._output is None and len(names) != 1:
            raise self._bad(f"the outputs {', '.join(names) or 'none'}; choose one by output_name")
        found = tensors[self._output or names[0]]
        if found.shape[:1] != (n,):
            raise self._bad(f"shape {tuple(found.shape)} to {n} images")
        return found

    def _tensors(self, outputs: list[Any], raw: bytes) -> dict[str, np.ndarray]:
        """All outputs of an answer by name: those in binary form follow one another in `raw`."""
        found, start = {}, 0
        for output in outputs:
            if not isinstance(output, dict) or "name" not in output:
                raise self._bad("an output without a name")
            name, parameters = one_line(output["name"], 60), output.get("parameters")
            shape, kind = output.get("shape"), _ANSWERS.get(str(output.get("datatype")))
            size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
            wanted = self._output in (None, output["name"])
            if not isinstance(shape, list) or not all(type(length) is int and length >= 0 for length in shape):
                raise self._bad(f"output {name} of shape {one_line(shape, 60)}")
            if kind is None:
                if wanted:
                    raise self._bad(f"output {name} of datatype {one_line(output.get('datatype'), 30)}")
                start += size if type(size) is int else 0
                continue
            if size is not None:
                if (
                    type(size) is not int
                    or size != math.prod(shape) * np.dtype(kind).itemsize
                    or start + size > len(raw)
                ):
                    raise self._bad(
                        f"output {name} of shape {shape} in {one_line(size, 30)} bytes of {len(raw) - start}"
                    )
                values, start = np.frombuffer(raw, kind, math.prod(shape), start), start + size
            elif wanted:
                values = _flat(output.get("data"), np.dtype(kind), name, self._model)
            else:
                continue
            if values.size != math.prod(shape):
                raise self._bad(f"{values.size} values in output {name} of shape {shape}")
            found[str(output["name"])] = values.reshape(shape)
        return found

    def _bad(self, came: str) -> BadOutput:
        return BadOutput(f"box {self._model} answered {came}")

    def _read(self, server: str) -> Metadata:
        """The server's metadata, and those of the model."""
        about = _object(self._server.get(server))
        reply = self._server.get(self._model)
        if reply.status in (400, 404):
            raise NotAnswered(f"{server} has no model at {self._model} (status {reply.status}), or is not ready")
        if reply.status in (401, 403):
            raise NotAnswered(f"{self._model} refuses access (status {reply.status}); give token_env or token_file")
        model = _object(reply)
        kept = {"name", "version", "extensions"}
        return Metadata({key: about[key] for key in kept & set(about)}, model)


def _object(reply: Reply) -> dict[str, Any]:
    """A JSON object of metadata; empty where the server gives none."""
    if reply.status != 200:
        return {}
    try:
        found = json.loads(reply.body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


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


def _flat(data: Any, kind: np.dtype[Any], name: str, model: str) -> np.ndarray:
    """The numbers of a tensor in JSON, flat or nested, as a flat array."""
    if not isinstance(data, list):
        raise BadOutput(f"box {model} answered output {name} without data")
    try:
        found = np.array(data)
    except ValueError:
        found = np.array(None)
    if found.dtype.kind not in "biuf":
        what = "null, which stands for NaN," if _has_none(data) else "no numbers"
        raise BadOutput(f"box {model} answered {what} in output {name}")
    return found.reshape(-1).astype(kind)


def _has_none(data: Any) -> bool:
    return any(_has_none(value) if isinstance(value, list) else value is None for value in data)

"""A model behind the Open Inference Protocol v2 (KServe, MLServer, Triton, OpenVINO, ...), over REST.

What the server's metadata say is read once, when the box is made; no tensor is sent then. What they leave open, the
user says: MLServer, for one, may list no inputs at all.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any
from urllib.parse import unquote

import numpy as np

from certibox.blackbox.connection import Connection, connection_of
from certibox.blackbox.http import Reply, Server
from certibox.blackbox.inference_model import ANSWERS, Answered, InferenceModelBox, Metadata, little_endian
from certibox.blackbox.json_text import parsed, written
from certibox.errors import BadOutput, InvalidInput, NotAnswered, one_line

PATH = re.compile(
    r"(?P<base>https?://[^/]+(?:/.*)?)/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?(?:/infer)?/?"
)
_LENGTH = "inference-header-content-length"


class InferenceProtocolBox(InferenceModelBox):
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

    def __init__(
        self,
        url: str,
        outputs: str,
        input_name: str | None = None,
        output_name: str | None = None,
        connection: Connection | dict[str, Any] | None = None,
        **declared: Any,
    ) -> None:
        limits, found = connection_of(connection), PATH.fullmatch(url)
        if found is None:
            raise InvalidInput(f"{one_line(url)} is no address of a model; wanted .../v2/models/NAME")
        version = f"/versions/{found['version']}" if found["version"] else ""
        model = f"{found['base']}/v2/models/{found['model']}{version}"
        self._server = Server(f"{model}/infer", limits)
        metadata = _metadata(self._server, f"{found['base']}/v2", model)
        self.binary = metadata.is_binary if limits.binary is None else limits.binary
        pinned = unquote(found["version"]) if found["version"] else None
        super().__init__(model, metadata, pinned, outputs, input_name, output_name, limits, declared)

    def _answered(self, images: np.ndarray, ident: str) -> Answered:
        content, headers = self._request(images, ident)
        reply = self._server.post(content, headers)
        head, raw = reply.body, b""
        if (length := reply.headers.get(_LENGTH)) is not None:
            if not length.isdigit() or int(length) > len(reply.body):
                raise self.bad(f"a header of {one_line(length, 40)} bytes in a body of {len(reply.body)}")
            head, raw = reply.body[: int(length)], reply.body[int(length) :]
        answer = parsed(head, f"box {self.model}")
        if not isinstance(answer, dict) or not isinstance(answer.get("outputs"), list):
            raise self.bad("JSON without a list of outputs")
        return Answered(answer.get("id"), answer.get("model_version"), self._tensors(answer["outputs"], raw))

    def _request(self, images: np.ndarray, ident: str) -> tuple[bytes, dict[str, str]]:
        """The body and the headers of a request."""
        tensor: dict[str, Any] = {"name": self.input, "shape": list(images.shape), "datatype": self.datatype}
        wanted: dict[str, Any] = {"id": ident, "inputs": [tensor]}
        if not self.binary:
            tensor["data"] = images.reshape(-1)
            if self.output is not None:
                wanted["outputs"] = [{"name": self.output}]
            return written(wanted), {"Content-Type": "application/json"}
        raw = little_endian(images)
        tensor["parameters"] = {"binary_data_size": len(raw)}
        if self.output is None:
            wanted["parameters"] = {"binary_data_output": True}
        else:
            wanted["outputs"] = [{"name": self.output, "parameters": {"binary_data": True}}]
        head = written(wanted)
        kind = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
        return head + raw, kind

    def _tensors(self, outputs: list[Any], raw: bytes) -> dict[str, np.ndarray]:
        """All outputs of an answer by name: those in binary form follow one another in `raw`."""
        found, start = {}, 0
        for output in outputs:
            if not isinstance(output, dict) or "name" not in output:
                raise self.bad("an output without a name")
            name, parameters = one_line(output["name"], 60), output.get("parameters")
            shape, kind = output.get("shape"), ANSWERS.get(str(output.get("datatype")))
            size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
            wanted = self.wants(output["name"])
            if not isinstance(shape, list) or not all(type(length) is int and length >= 0 for length in shape):
                raise self.bad(f"output {name} of shape {one_line(shape, 60)}")
            if kind is None:
                if wanted:
                    raise self.bad(f"output {name} of datatype {one_line(output.get('datatype'), 30)}")
                start += size if type(size) is int else 0
                continue
            if size is not None:
                if (
                    type(size) is not int
                    or size != math.prod(shape) * np.dtype(kind).itemsize
                    or start + size > len(raw)
                ):
                    raise self.bad(
                        f"output {name} of shape {shape} in {one_line(size, 30)} bytes of {len(raw) - start}"
                    )
                values, start = np.frombuffer(raw, kind, math.prod(shape), start), start + size
            elif wanted:
                values = _flat(output.get("data"), np.dtype(kind), name, self.model)
            else:
                continue
            if values.size != math.prod(shape):
                raise self.bad(f"{values.size} values in output {name} of shape {shape}")
            found[str(output["name"])] = values.reshape(shape)
        return found


def _metadata(server: Server, root: str, model: str) -> Metadata:
    """The server's metadata, and those of the model."""
    about = _object(server.get(root))
    reply = server.get(model)
    if reply.status in (400, 404):
        raise NotAnswered(f"{root} has no model at {model} (status {reply.status}), or is not ready")
    if reply.status in (401, 403):
        raise NotAnswered(f"{model} refuses access (status {reply.status}); give token_env or token_file")
    kept = {"name", "version", "extensions"}
    return Metadata({key: about[key] for key in kept & set(about)}, _object(reply))


def _object(reply: Reply) -> dict[str, Any]:
    """A JSON object of metadata; empty where the server gives none."""
    if reply.status != 200:
        return {}
    try:
        found = json.loads(reply.body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


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

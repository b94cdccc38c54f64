"""The Open Inference Protocol v2 as a server meets it: requests and answers as bytes, in JSON and in binary form.

Source: the protocol's REST specification, and its binary tensor data extension.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from certibox.blackbox.connection import required
from certibox.blackbox.inference_model import ANSWERS, little_endian
from certibox.blackbox.json_text import written
from certibox.errors import one_line

HEADER = "Inference-Header-Content-Length"  # length of the JSON before the binary parts
FAULT = "the server failed; its log says how"  # what a client is told of a fault of ours
NESTED = 8  # most dimensions of a tensor
_KINDS = {"i": "iu", "u": "iu", "f": "iuf", "b": "b"}  # kinds of numbers in JSON that a datatype takes


class Refused(Exception):
    """A request that is not answered, and why.

    Args:
        status: HTTP status.
        reason: Text of the error, one line.
        headers: Headers of the answer.
    """

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, dict(headers or {})


@dataclass(frozen=True)
class Wanted:
    """An output that a request asks for."""

    name: str
    """Name of the output."""
    binary: bool
    """Whether it is wanted in binary form."""


@dataclass(frozen=True)
class InferRequest:
    """A request for an answer, as far as the protocol knows it."""

    ident: str
    """Its id, which the answer repeats; "" where it has none."""
    parameters: dict[str, Any]
    """Its parameters, without those of the protocol's extensions."""
    inputs: dict[str, np.ndarray]
    """Tensors by name."""
    datatypes: dict[str, str]
    """Datatype of each."""
    outputs: list[Wanted] = field(default_factory=list)
    """Outputs that it asks for; none where it leaves the choice to the server."""
    binary: bool = False
    """Whether outputs that it does not name are wanted in binary form."""


def decompressed(body: bytes, encoding: str, most: int) -> bytes:
    """The body of a request as it was before it was compressed.

    Args:
        body: Body as it came.
        encoding: Value of the header Content-Encoding, in lower case; "" for none.
        most: Most bytes that it may have.

    Raises:
        Refused: It is something else, or too large.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise Refused(415, f"content encoding {one_line(encoding, 40)!r}; wanted gzip, deflate or none")
    try:
        reader = zlib.decompressobj(31 if encoding == "gzip" else 15)
        plain = reader.decompress(body, most + 1)
    except zlib.error as error:
        raise Refused(400, f"the body is no {encoding} ({error})") from error
    if len(plain) > most:
        raise Refused(413, f"the body has more than {most:,} bytes")
    if not reader.eof or reader.unused_data:
        raise Refused(400, f"the body is no whole {encoding}")
    return plain


def compressed(body: bytes, accepted: str) -> tuple[bytes, str]:
    """The body of an answer in the form that a client accepts, and its content encoding, "" where it is plain.

    Args:
        body: Body of the answer.
        accepted: Value of the header Accept-Encoding.
    """
    parts = [part.replace(" ", "").lower().partition(";q=") for part in accepted.split(",")]
    forms = {form for form, _, weight in parts if weight.strip("0.") or not weight}
    if len(body) < 1024 or not forms & {"gzip", "deflate"}:
        return body, ""
    return (gzip.compress(body, 1), "gzip") if "gzip" in forms else (zlib.compress(body, 1), "deflate")


def read_request(body: bytes, header: str | None) -> InferRequest:
    """A request for an answer, from its body.

    Args:
        body: Body, not compressed.
        header: Value of the header `HEADER`; None where there is none.

    Raises:
        Refused: The body breaks the protocol.
    """
    head, raw = _split(body, header)
    try:
        asked = required("orjson").loads(head)
    except ValueError as error:
        raise Refused(400, f"the request is no JSON ({one_line(error, 120)})") from error
    if not isinstance(asked, dict):
        raise Refused(400, 'the request is no object; wanted {"inputs": [...]}')
    ident = asked.get("id", "")
    if not isinstance(ident, str) or len(ident) > 512:
        raise Refused(400, "id is no text of at most 512 characters")
    parameters = dict(_mapping(asked, "parameters", "the request"))
    binary = _flag(parameters.pop("binary_data_output", False), "binary_data_output")
    inputs, datatypes = _inputs(asked, raw)
    return InferRequest(ident, parameters, inputs, datatypes, _outputs(asked, binary), binary)


def _split(body: bytes, header: str | None) -> tuple[bytes, bytes]:
    if header is None:
        return body, b""
    length = int(header) if header.isascii() and header.isdigit() and len(header) < 16 else -1
    if not 0 <= length <= len(body):
        came = one_line(header, 40)
        raise Refused(400, f"{HEADER} is {came!r}; wanted a number of bytes from 0 to {len(body)}, those of the body")
    return body[:length], body[length:]


def _mapping(holder: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    found = holder.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Refused(400, f"{name} of {where} is no object")
    return found


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise Refused(400, f"{name} is {one_line(value, 40)}; wanted true or false")
    return value


def _listed(asked: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    found = asked.get(kind)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise Refused(400, f"{kind} is no list of objects")
    names = [one.get("name") for one in found]
    for name in names:
        if not isinstance(name, str) or not name:
            raise Refused(400, f"one of the {kind} has the name {one_line(name, 40)}; wanted a text")
        if names.count(name) > 1:
            raise Refused(400, f"{kind} has {one_line(name, 40)!r} twice")
    return found


def _outputs(asked: Mapping[str, Any], binary: bool) -> list[Wanted]:
    found = []
    for output in _listed(asked, "outputs"):
        name, parameters = output["name"], _mapping(output, "parameters", f"output {one_line(output['name'], 40)!r}")
        for unknown in parameters.keys() - {"binary_data"}:
            raise Refused(400, f"output {one_line(name, 40)!r} has the parameter {one_line(unknown, 40)!r}, not known")
        found.append(Wanted(name, _flag(parameters.get("binary_data", binary), "binary_data")))
    return found


def _inputs(asked: Mapping[str, Any], raw: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    tensors, datatypes, at = {}, {}, 0
    for tensor in _listed(asked, "inputs"):
        name = tensor["name"]
        where = f"input {one_line(name, 40)!r}"
        parameters = _mapping(tensor, "parameters", where)
        datatype = tensor.get("datatype")
        if not isinstance(datatype, str) or datatype not in ANSWERS:
            raise Refused(400, f"{where} has the datatype {one_line(datatype, 40)}; wanted {', '.join(ANSWERS)}")
        shape = _shape(tensor.get("shape"), where)
        if "binary_data_size" in parameters:
            size = parameters["binary_data_size"]
            if "data" in tensor:
                raise Refused(400, f"{where} has data and binary_data_size; wanted one of them")
            wanted = math.prod(shape) * np.dtype(ANSWERS[datatype]).itemsize
            if type(size) is not int or size != wanted or size > len(raw) - at:
                came = f"binary_data_size of {where} is {one_line(size, 40)}, with {len(raw) - at} bytes left"
                raise Refused(400, f"{came}; its shape and datatype want {wanted}")
            tensors[name] = np.frombuffer(raw, ANSWERS[datatype], math.prod(shape), at).reshape(shape)
            at += size
        else:
            tensors[name] = _from_json(tensor.get("data"), datatype, shape, where)
        datatypes[name] = datatype
    if at != len(raw):
        raise Refused(400, f"{len(raw) - at} bytes after the tensors belong to none of them")
    return tensors, datatypes


def _shape(shape: object, where: str) -> tuple[int, ...]:
    if not isinstance(shape, list) or len(shape) > NESTED or not all(type(size) is int for size in shape):
        raise Refused(400, f"shape of {where} is no list of at most {NESTED} whole numbers")
    if any(not 0 <= size < 2**31 for size in shape):
        raise Refused(400, f"shape of {where} is {shape}; wanted sizes of at least 0")
    return tuple(shape)


def _from_json(data: object, datatype: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    if not isinstance(data, list):
        raise Refused(400, f"{where} has no list as data, and no binary_data_size")
    if datatype == "FP16":
        raise Refused(400, f"{where} is FP16 in JSON; wanted it in binary form")
    kind = np.dtype(ANSWERS[datatype])
    try:
        array = np.array(data) if data else np.zeros(0, kind)
    except (ValueError, OverflowError) as error:  # ragged, say
        raise Refused(400, f"data of {where} is no array of numbers ({one_line(error, 80)})") from error
    if array.dtype.kind not in _KINDS[kind.kind]:
        raise Refused(400, f"data of {where} holds something else than numbers of type {datatype}")
    if array.size != math.prod(shape):
        raise Refused(400, f"data of {where} has {array.size} numbers; its shape {list(shape)} wants another count")
    if array.ndim != 1 and array.shape != shape:
        raise Refused(400, f"data of {where} is nested as {list(array.shape)}; its shape is {list(shape)}")
    if kind.kind in "iu" and array.size:
        limits = np.iinfo(kind)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise Refused(400, f"data of {where} leaves the range of {datatype}")
    with np.errstate(over="ignore"):  # to infinity, which no image may hold
        return array.astype(kind).reshape(shape)


def written_answer(
    name: str,
    version: str,
    request: InferRequest,
    tensors: Mapping[str, tuple[str, np.ndarray]],
    parameters: Mapping[str, Any],
    always: Sequence[str] = (),
) -> tuple[bytes, dict[str, str]]:
    """The body and headers of an answer.

    Args:
        name: Name of the model.
        version: Its version.
        request: Request that is answered.
        tensors: Datatype and values of every output, by name, the first one first.
        parameters: Parameters of the answer.
        always: Names of outputs that are sent even where others were asked for.
    """
    chosen = list(request.outputs) or [Wanted(output, request.binary) for output in tensors]
    chosen += [Wanted(more, request.binary) for more in always if more not in {one.name for one in chosen}]
    outputs, raw = [], []
    for output in chosen:
        datatype, values = tensors[output.name]
        values = np.ascontiguousarray(values, dtype=np.dtype(ANSWERS[datatype]))
        one: dict[str, Any] = {"name": output.name, "datatype": datatype, "shape": list(values.shape)}
        if output.binary:
            raw.append(little_endian(values))
            one["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            one["data"] = values.reshape(-1)
        outputs.append(one)
    answer: dict[str, Any] = {"model_name": name, "model_version": version}
    answer |= {"id": request.ident} if request.ident else {}
    head = written({**answer, "parameters": dict(parameters), "outputs": outputs})
    if not raw:
        return head, {"Content-Type": "application/json"}
    return b"".join([head, *raw]), {"Content-Type": "application/octet-stream", HEADER: str(len(head))}


def written_error(reason: str) -> bytes:
    """The body of an error.

    Args:
        reason: Text of the error.
    """
    return json.dumps({"error": reason}).encode()

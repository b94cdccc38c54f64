"""Requests that break the protocol, the terms of a server, or the model's input: each by one change to a right one."""

from __future__ import annotations

import copy
import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from certibox.serving.protocol import HEADER
from gateways import PATH, SHAPE

INFER = f"{PATH}/infer"
MOST_BODY, MOST_IMAGES, MOST_QUERIES = 20_000, 8, 1000
KINDS: dict[str, Any] = {
    "null": None,
    "a flag": True,
    "a number": 7,
    "a negative number": -1,
    "a fraction": 0.5,
    "a text": "x",
    "an empty text": "",
    "an empty list": [],
    "a list of lists": [[], []],
    "a list of texts": ["x"],
    "an empty object": {},
    "an object": {"x": 1},
}
RIGHT: dict[str, Any] = {
    "id": "seven",
    "inputs": [{"name": "input", "shape": [1, *SHAPE], "datatype": "FP32", "data": [0.25] * 16}],
    "outputs": [{"name": "label", "parameters": {"binary_data": False}}],
    "parameters": {"alpha": 0.01},
}
HARMLESS = {  # kinds that a field may have
    "id": {"a text", "an empty text"},
    "outputs": {"null", "an empty list"},
    "parameters": {"null", "an empty object"},
    "inputs[0].parameters": {"null", "an empty object", "an object"},
    "outputs[0].parameters": {"null", "an empty object"},
    "alpha": {"null", "a fraction"},
    "radius": {"null", "a number", "a fraction"},
    "max_queries": set(),
    "timeout_ms": {"null", "a number", "a fraction"},
    "timeout": {"null", "a number", "a fraction"},
    "certify": {"a flag"},
    "binary_data_output": {"a flag"},
}


class Bad(NamedTuple):
    """A request that is to be refused."""

    name: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def _posted(name: str, body: Any, **headers: str) -> Bad:
    return Bad(name, "POST", INFER, headers, body if isinstance(body, bytes) else json.dumps(body).encode())


def _changed(*path: str | int, value: Any) -> dict[str, Any]:
    """The right request with another value at one place."""
    request = copy.deepcopy(RIGHT)
    holder: Any = request
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    return request


def _without(*path: str | int) -> dict[str, Any]:
    request = copy.deepcopy(RIGHT)
    holder: Any = request
    for step in path[:-1]:
        holder = holder[step]
    del holder[path[-1]]
    return request


def _texts() -> Iterator[Bad]:
    """Bodies that are no JSON, or no object."""
    right = json.dumps(RIGHT).encode()
    for cut in range(1, len(right), len(right) // 15):
        yield _posted(f"cut after {cut} bytes", right[:cut])
    texts = {
        "nothing": b"",
        "spaces": b"   ",
        "a byte of zero": b"\0",
        "no UTF-8": b'{"id": "\xff\xfe"}',
        "a mark of byte order": b"\xef\xbb\xbf" + right,
        "UTF-16": json.dumps(RIGHT).encode("utf-16"),
        "two objects": right + right,
        "a trailing comma": right[:-1] + b",}",
        "single quotes": right.replace(b'"', b"'"),
        "NaN": right.replace(b"0.25", b"NaN"),
        "Infinity": right.replace(b"0.25", b"-Infinity"),
        "a huge exponent": right.replace(b"0.25", b"1e999"),
        "a hexadecimal number": right.replace(b"0.25", b"0x10"),
        "lists a thousand deep": b"[" * 1000 + b"]" * 1000,
        "objects a thousand deep": b'{"a":' * 1000 + b"1" + b"}" * 1000,
        "data a hundred deep": right.replace(b"[0.25", b"[" * 100 + b"0.25").replace(b"0.25]", b"0.25" + b"]" * 100),
        "a form": b"inputs=1&parameters=2",
        "XML": b"<inputs/>",
        "protocol buffers": b"\n\x08defended*\x05input",
    }
    for name, text in texts.items():
        yield _posted(name, text)
    for name, value in KINDS.items():
        yield _posted(f"the whole is {name}", value)


def _fields() -> Iterator[Bad]:
    """Fields of another kind, or left out."""
    places: dict[str, tuple[str | int, ...]] = {
        "id": ("id",),
        "inputs": ("inputs",),
        "outputs": ("outputs",),
        "parameters": ("parameters",),
        "inputs[0]": ("inputs", 0),
        "inputs[0].name": ("inputs", 0, "name"),
        "inputs[0].shape": ("inputs", 0, "shape"),
        "inputs[0].datatype": ("inputs", 0, "datatype"),
        "inputs[0].data": ("inputs", 0, "data"),
        "inputs[0].parameters": ("inputs", 0, "parameters"),
        "outputs[0]": ("outputs", 0),
        "outputs[0].name": ("outputs", 0, "name"),
        "outputs[0].parameters": ("outputs", 0, "parameters"),
        "binary_data": ("outputs", 0, "parameters", "binary_data"),
    }
    for place, path in places.items():
        for kind, value in KINDS.items():
            harmless = {"a flag"} if place == "binary_data" else HARMLESS.get(place, set())
            if kind not in harmless:
                yield _posted(f"{place} is {kind}", _changed(*path, value=value))
    for path in (("inputs",), ("inputs", 0, "name"), ("inputs", 0, "shape"), ("inputs", 0, "datatype")):
        yield _posted(f"{path[-1]} is missing", _without(*path))
    yield _posted("data is missing", _without("inputs", 0, "data"))
    yield _posted("an output has no name", _without("outputs", 0, "name"))
    one = RIGHT["inputs"][0]
    yield _posted("the input stands twice", {**RIGHT, "inputs": [one, one]})
    yield _posted("a second input", {**RIGHT, "inputs": [one, {**one, "name": "mask"}]})
    yield _posted("an output stands twice", {**RIGHT, "outputs": [{"name": "label"}] * 2})
    yield _posted("an id of 10,000 letters", {**RIGHT, "id": "x" * 10_000})


def _tensors() -> Iterator[Bad]:
    """Shapes, datatypes and data that do not fit."""
    shapes: list[list[Any]] = [
        [0, *SHAPE],
        [-1, *SHAPE],
        [2, *SHAPE],
        [1, 4, 4, 1],
        [16],
        [],
        [1, 16],
        [1, 1, *SHAPE],
        [1.0, *SHAPE],
        ["1", *SHAPE],
        [True, *SHAPE],
        [None, *SHAPE],
        [1, 1, 4, 2**31],
        [2**40, 2**40, 2**40, 2**40],
        [1, 1, 4, -4],
        [1] * 9,
        [0, 0, 0, 0],
    ]
    for shape in shapes:
        yield _posted(f"shape {shape}", _changed("inputs", 0, "shape", value=shape))
    for datatype in ("fp32", "FP8", "FLOAT", "BF16", "float32", "INT4", "BYTES", "FP16", "BOOL", "INT64", "UINT8"):
        yield _posted(f"datatype {datatype}", _changed("inputs", 0, "datatype", value=datatype))
    datas: dict[str, Any] = {
        "too few": [0.25] * 15,
        "too many": [0.25] * 17,
        "ragged": [[0.25] * 4, [0.25] * 12],
        "nested otherwise": [[0.25] * 16],
        "texts": ["0.25"] * 16,
        "one text": [0.25] * 15 + ["0.25"],
        "one null": [0.25] * 15 + [None],
        "one flag": [True] * 16,
        "one object": [0.25] * 15 + [{}],
        "huge": [0.25] * 15 + [1e300],
        "above 1": [0.25] * 15 + [1.5],
        "bytes": [255] * 16,
        "below 0": [0.25] * 15 + [-0.5],
        "huge whole numbers": [10**30] * 16,
    }
    for name, data in datas.items():
        yield _posted(f"data: {name}", _changed("inputs", 0, "data", value=data))
    many = [{**RIGHT["inputs"][0], "shape": [MOST_IMAGES + 1, *SHAPE], "data": [0.25] * 16 * (MOST_IMAGES + 1)}]
    yield _posted("too many images", {**RIGHT, "inputs": many})
    yield _posted("no output of the model", _changed("outputs", 0, "name", value="labels"))
    yield _posted("an unknown parameter of an output", _changed("outputs", 0, "parameters", value={"class": 3}))


def _terms() -> Iterator[Bad]:
    """Parameters out of range."""
    values: dict[str, list[Any]] = {
        "alpha": [0, 1, -0.1, 2, 1e300, "0.01"],
        "radius": [-1, -1e-9, "0.1", 1e308 * 10],
        "max_queries": [0, -5, 1.5, "100", MOST_QUERIES + 1, 10**18, 2**70, 1, 26],
        "timeout_ms": [0, -1, "100"],
        "timeout": [0, -1, "100"],
        "certify": [0, 1, "false"],
        "binary_data_output": [0, 1, "yes"],
    }
    for name, wrong in values.items():
        for kind, value in KINDS.items():
            if kind not in HARMLESS[name]:
                yield _posted(f"{name} is {kind}", {**RIGHT, "parameters": {name: value}})
        for value in wrong:
            yield _posted(f"{name} = {value}", {**RIGHT, "parameters": {name: value}})
    for name in ("Alpha", "max_querys", "", "σ", "sequence_id", "priority", "__class__", "x" * 1000):
        yield _posted(f"the parameter {name[:20]!r}", {**RIGHT, "parameters": {name: 1}})
    yield _posted("a radius of no certificate", {**RIGHT, "parameters": {"certify": False, "radius": 0.1}})
    yield _posted("two times", {**RIGHT, "parameters": {"timeout": 5, "timeout_ms": 5}})


def _binary() -> Iterator[Bad]:
    """The binary form, broken."""
    raw = np.full(16, 0.25, "f4").tobytes()
    one = {"name": "input", "shape": [1, *SHAPE], "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}

    def sent(name: str, change: dict[str, Any], tail: bytes = raw, header: str | None = None) -> Bad:
        head = json.dumps({"inputs": [{**one, **change}]}).encode()
        return _posted(name, head + tail, **{HEADER: str(len(head)) if header is None else header})

    whole = len(json.dumps({"inputs": [one]}))
    for header in ("-1", "0", "x", "", "1e2", "0x40", " ", "9" * 30, "²", str(whole - 1), str(whole + 1), str(10**6)):
        yield sent(f"a header's length of {header[:12]!r}", {}, header=header)
    for size in (0, -1, 63, 65, 128, 64.0, "64", None, True, [64], 2**40):
        yield sent(f"binary_data_size {size}", {"parameters": {"binary_data_size": size}})
    yield sent("half of the bytes", {}, raw[:32])
    yield sent("no bytes", {}, b"")
    yield sent("bytes to spare", {}, raw + b"x")
    yield sent("bytes and data", {"data": [0.25] * 16})
    yield sent("bytes and neither data nor size", {"parameters": {}})
    yield sent("NaN in bytes", {}, np.full(16, np.nan, "f4").tobytes())
    yield sent("infinity in bytes", {}, np.full(16, np.inf, "f4").tobytes())
    yield sent("pixels of 255 in bytes", {}, np.full(16, 255, "f4").tobytes())
    yield sent("half precision of single size", {"datatype": "FP16"})
    yield sent("texts in bytes", {"datatype": "BYTES"})
    yield _posted("a size without a header", json.dumps({"inputs": [one]}).encode() + raw)


def _packed() -> Iterator[Bad]:
    """Compressed bodies, broken."""
    right = json.dumps(RIGHT).encode()
    for encoding, packed in (("gzip", gzip.compress(right)), ("deflate", zlib.compress(right))):
        yield _posted(f"{encoding} of plain text", right, content_encoding=encoding)
        yield _posted(f"{encoding} cut short", packed[:-6], content_encoding=encoding)
        yield _posted(f"{encoding} with a tail", packed + b"x", content_encoding=encoding)
        yield _posted(f"{encoding} twice over", gzip.compress(packed), content_encoding=encoding)
    yield _posted("a bomb", gzip.compress(b" " * 10_000_000), content_encoding="gzip")
    for encoding in ("br", "zstd", "gzip, gzip", "x"):
        yield _posted(f"encoding {encoding}", right, content_encoding=encoding)
    yield _posted("a body that is too large", b" " * (MOST_BODY + 1))
    yield _posted("a length that is too large", right, content_length="999999999999")


def _places() -> Iterator[Bad]:
    """Addresses and methods that are not there."""
    body = json.dumps(RIGHT).encode()
    for method, path in (
        ("GET", INFER),
        ("PUT", INFER),
        ("DELETE", INFER),
        ("PATCH", INFER),
        ("OPTIONS", INFER),
        ("POST", "/v2"),
        ("POST", PATH),
        ("DELETE", PATH),
        ("POST", "/v2/health/live"),
        ("POST", "/metrics"),
        ("POST", f"{INFER}/"),
        ("POST", f"{INFER}/more"),
        ("POST", f"{PATH}/versions/1000/infer"),
        ("POST", f"{PATH}/versions//infer"),
        ("POST", f"{PATH}/generate"),
        ("POST", "/v2/models/other/infer"),
        ("POST", "/v2/models//infer"),
        ("POST", "/v2/models/../models/defended/infer"),
        ("POST", "/v2/models/defended%00/infer"),
        ("POST", f"/v2/models/{'x' * 3000}/infer"),
        ("POST", "/v1/models/defended:predict"),
        ("POST", "/v2/repository/index"),
        ("POST", "/"),
        ("GET", "/favicon.ico"),
        ("GET", "/docs"),
        ("GET", "/page/samples/-1"),
        ("GET", "/page/samples/99999999999999999999"),
        ("GET", "/page/samples/٣"),
        ("GET", "/page/answer"),
        ("PUT", "/page/model"),
    ):
        yield Bad(f"{method} {path[:60]}", method, path, {}, body if method != "GET" else b"")


def _page() -> Iterator[Bad]:
    """What the page could not have sent."""
    for kind, value in KINDS.items():
        yield Bad(f"pixels are {kind}", "POST", "/page/answer", {}, json.dumps({"pixels": value}).encode())
        yield Bad(f"the page sends {kind}", "POST", "/page/answer", {}, json.dumps(value).encode())
    for name, text in (("no base64", "?" * 24), ("too short", "AAAA"), ("no ASCII", "é" * 24)):
        yield Bad(f"pixels: {name}", "POST", "/page/answer", {}, json.dumps({"pixels": text}).encode())


def bad_requests() -> list[Bad]:
    """All of them."""
    parts = (_texts, _fields, _tensors, _terms, _binary, _packed, _places, _page)
    return [bad for part in parts for bad in part()]

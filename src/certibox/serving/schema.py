"""What the paths of a gateway take and give, for the OpenAPI description of it."""

from __future__ import annotations

from typing import Any

_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string", "enum": ["FP32", "FP64", "FP16", "UINT8"]},
        "parameters": {"type": "object"},
        "data": {"type": "array", "items": {}},
    },
}
_PARAMETERS = {
    "type": "object",
    "properties": {
        "alpha": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        "radius": {"type": "number", "minimum": 0},
        "max_queries": {"type": "integer", "minimum": 1},
        "timeout_ms": {"type": "number", "exclusiveMinimum": 0},
        "certify": {"type": "boolean"},
        "binary_data_output": {"type": "boolean"},
    },
}
_OUTPUT = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
}
_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": _PARAMETERS,
        "inputs": {"type": "array", "items": _TENSOR, "minItems": 1, "maxItems": 1},
        "outputs": {"type": "array", "items": _OUTPUT},
    },
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}
_ANSWER = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "parameters": {"type": "object"},
        "outputs": {"type": "array", "items": {"type": "object", "required": ["name", "shape", "datatype"]}},
    },
}
INFER: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": _REQUEST}},
    }
}
_WHY = {
    400: "The request breaks the protocol, or asks for what is not there.",
    401: "No token, or one that is not known.",
    402: "A budget cannot pay the request.",
    413: "Too many bytes or images.",
    415: "A content encoding that is not known.",
    429: "As many images are in flight as are taken at a time; nothing was spent.",
    500: "The server failed.",
    502: "The model behind it failed.",
    503: "The model behind it cannot answer now, or is another one.",
    504: "The time of the request ran out before its votes said anything.",
}


def answers_of(path: str) -> dict[int | str, dict[str, Any]]:
    """The answers that a path gives besides success, for its description.

    Args:
        path: Path of the address.
    """
    error = {"application/json": {"schema": _ERROR}}
    if path.endswith("/infer"):
        content = {"application/json": {"schema": _ANSWER}, "application/octet-stream": {"schema": {"type": "string"}}}
        return {
            200: {"description": "An answer.", "content": content},
            **{code: {"description": why, "content": error} for code, why in _WHY.items()},
        }
    return {503: {"description": _WHY[503], "content": error}} if path.endswith("/ready") else {}

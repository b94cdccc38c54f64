"""What the bytes of an ONNX file say that onnxruntime does not: which files hold its weights, and sizes of 0.

The bytes are a protobuf message: fields of a number, a type and a content, some of which are messages again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

from certibox.blackbox.model_files import digest_of, read_whole
from certibox.errors import UnreadableFile

# Of each message, the fields that lead to weights or sizes: number -> message. The numbers are those of onnx.proto.
MESSAGES: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {
        1: "NodeProto",
        5: "TensorProto",
        11: "ValueInfoProto",
        12: "ValueInfoProto",
        13: "ValueInfoProto",
        15: "SparseTensorProto",
    },
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
    "ValueInfoProto": {2: "TypeProto"},
    "TypeProto": {1: "Tensor"},
    "Tensor": {2: "TensorShapeProto"},
    "TensorShapeProto": {1: "Dimension"},
}
_VARINT, _EIGHT_BYTES, _CONTENT, _FOUR_BYTES = 0, 1, 2, 5  # types of fields
_NO_SIZE, _FREE_SIZE = b"\x08\x00", b"\x12\x00"  # a dimension of value 0, and one whose name is empty


def identity(path: Path) -> str:
    """SHA-256 of the file, and of the files that hold its weights where it has such.

    Args:
        path: Path of the model.

    Raises:
        UnreadableFile: A file of weights is missing or lies outside the folder of the model.
    """
    own = digest_of(path)
    weights = {name: digest_of(path.parent / name) for name in weight_files(path)}
    return hashlib.sha256(json.dumps([own, weights]).encode()).hexdigest() if weights else own


def weight_files(path: Path) -> list[str]:
    """The names of the files beside the model that hold weights of it, sorted.

    Args:
        path: Path of the model.

    Raises:
        UnreadableFile: One is missing or lies outside the folder of the model, or the model is damaged.
    """
    content = read_whole(path)
    if b"location" not in content:
        return []
    with _damage_named(path):
        found = [content[start:end] for kind, start, end in messages(content) if kind == "StringStringEntryProto"]
        entries = [dict(_entry(entry)) for entry in found]
    names = sorted({entry.get(2, "") for entry in entries if entry.get(1) == "location"})
    for name in names:
        if _leaves(name):
            raise UnreadableFile(f"{path} wants weights from {name!r}, outside its folder; export it anew")
        if not (path.parent / name).is_file():
            raise UnreadableFile(
                f"{path} wants its weights from {name!r}, which is no file beside it; restore that file"
            )
    return names


def with_free_sizes(path: Path) -> bytes | None:
    """The bytes of the model with sizes of 0 made free, for some exporters write 0 where they know none; else None.

    Args:
        path: Path of the model.

    Raises:
        UnreadableFile: The model is damaged.
    """
    content = bytearray(read_whole(path))
    before = bytes(content)
    with _damage_named(path):
        for kind, start, end in messages(before):
            if kind == "Dimension" and content[start:end] == _NO_SIZE:
                content[start:end] = _FREE_SIZE
    return bytes(content) if content != before else None


def messages(content: bytes) -> Iterator[tuple[str, int, int]]:
    """The messages inside a model that lead to weights or sizes: kind, start and end.

    Args:
        content: Bytes of the model.

    Raises:
        ValueError: The bytes are no protobuf message.
    """
    waiting = [("ModelProto", 0, len(content))]
    while waiting:
        kind, start, end = waiting.pop()
        yield kind, start, end
        inner = MESSAGES.get(kind, {})
        if inner:
            waiting += [(inner[number], a, b) for number, _, a, b in _fields(content, start, end) if number in inner]


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (IndexError, ValueError) as error:
        raise UnreadableFile(
            f"{path} is no ONNX model that onnxruntime can load: it is damaged or cut short"
        ) from error


def _fields(content: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of a message: number, type, start and end of the content."""
    while start < end:
        key, start = _varint(content, start)
        kind = key & 7
        stop = start
        if kind == _VARINT:
            stop = _varint(content, start)[1]
        elif kind == _CONTENT:
            length, start = _varint(content, start)
            stop = start + length
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            stop = start + (8 if kind == _EIGHT_BYTES else 4)
        else:
            raise ValueError(f"a field of type {kind}")
        if stop > end:
            raise ValueError("a field beyond its message")
        yield key >> 3, kind, start, stop
        start = stop


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A whole number of seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _entry(content: bytes) -> Iterator[tuple[int, str]]:
    """The key (1) and the value (2) of an entry."""
    for number, kind, start, end in _fields(content, 0, len(content)):
        if kind == _CONTENT:
            yield number, os.fsdecode(content[start:end])


def _leaves(name: str) -> bool:
    """Whether a path leads out of the folder that it begins in, on any system."""
    forms: tuple[PurePath, ...] = (PurePosixPath(name), PureWindowsPath(name))
    return any(form.is_absolute() or form.drive or ".." in form.parts for form in forms)

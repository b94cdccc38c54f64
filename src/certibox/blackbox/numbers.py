"""The numbers in what a model returns, whatever holds them: arrays, tables, nested lists, objects of numbers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certibox.blackbox.base import BoxSpec
from certibox.errors import BadOutput

_NATIVE = frozenset(map(np.dtype, ("?", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "c8", "c16")))  # of torch
_WIDER = {"b": "?", "i": "i8", "u": "i8", "f": "f8", "c": "c16"}  # what all others of a kind become
_CONVERSIONS = ("to_numpy", "toarray")  # of tables and of sparse matrices
_WORDS = {"U": "str", "S": "bytes", "M": "datetime64", "m": "timedelta64", "V": "records", "T": "str"}


def as_numbers(answer: object, spec: BoxSpec) -> Tensor:
    """A model's answer as a dense tensor; a tensor keeps its device and its gradient.

    Args:
        answer: Tensor, array of any numeric type, data frame, sparse matrix, nested list, or what numpy makes one of.
        spec: Declaration of the box.

    Raises:
        BadOutput: The answer holds no numbers, or holds several parts; the text names what came.
    """
    if isinstance(answer, Tensor):
        return answer if answer.layout is torch.strided and not answer.is_quantized else _dense(answer)
    if type(answer) is np.ndarray and answer.dtype in _NATIVE and answer.dtype.isnative:  # the usual one
        return torch.from_numpy(np.array(answer))
    if inspect.iscoroutine(answer):
        answer.close()
        raise BadOutput(f"box {spec.name} answered a coroutine; give a function that waits for it and returns numbers")
    if parts := _parts(answer):
        raise BadOutput(
            f"box {spec.name} answered a {type(answer).__name__} with {', '.join(parts)}, where one array of numbers "
            "was wanted; choose by output_key"
        )
    try:
        found = _array(answer)
        return found if isinstance(found, Tensor) else torch.from_numpy(found)
    except Exception as error:  # whatever the conversion of a stranger's object raises
        raise BadOutput(f"box {spec.name} answered {_told(answer)}; return one array of numbers") from error


def _dense(tensor: Tensor) -> Tensor:
    return tensor.dequantize() if tensor.is_quantized else tensor.to_dense()


def _parts(answer: Any) -> list[str]:
    """Names of the parts of an answer that holds several things; none for one that can be an array."""
    if any(hasattr(answer, conversion) for conversion in ("__array__", *_CONVERSIONS)):
        return []
    if isinstance(answer, Mapping):
        return [repr(key) for key in answer]
    if is_dataclass(answer) and not isinstance(answer, type):
        return [field.name for field in fields(answer)]
    if isinstance(answer, tuple) and (names := getattr(answer, "_fields", ())):
        return list(names)
    if isinstance(answer, list | tuple):
        shapes = [tuple(part.shape) if hasattr(part, "shape") else None for part in answer]
        several = len(set(shapes)) > 1 or any(shape is not None and len(shape) > 1 for shape in shapes)
        return [f"{i} of shape {shape}" for i, shape in enumerate(shapes)][:8] if several and None not in shapes else []
    held = getattr(answer, "__dict__", {})
    return [name for name, part in held.items() if isinstance(part, Tensor | np.ndarray)]


def _array(answer: Any) -> np.ndarray | Tensor:
    """A new array of a type that torch knows; of a list of tensors, their stack."""
    for conversion in _CONVERSIONS:
        if hasattr(answer, conversion):
            answer = getattr(answer, conversion)()
    if isinstance(answer, list | tuple) and answer and all(isinstance(part, Tensor) for part in answer):
        return torch.stack(list(answer))
    if isinstance(answer, np.ma.MaskedArray) and np.ma.getmaskarray(answer).any():
        raise ValueError("some numbers are masked")
    array = np.array(answer)
    if array.dtype.hasobject and not array.dtype.names:
        array = _of_objects(array)
    if array.dtype in _NATIVE and array.dtype.isnative:
        return array
    if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
        return array.astype(np.float64)
    if array.dtype.kind == "V" and not array.dtype.names and np.can_cast(array.dtype, np.float64):  # as bfloat16
        return array.astype(np.float64)
    return array.astype(_WIDER[array.dtype.kind])


def _of_objects(array: np.ndarray) -> np.ndarray:
    """Numbers that numpy holds as Python's objects: Decimal, Fraction, long integers, or rows that are arrays."""
    found = [_number(item) for item in array.ravel()]
    return np.stack(found).reshape(*array.shape, *np.shape(found[0])) if found else array.astype(np.float64)


def _number(item: Any) -> Any:
    if isinstance(item, str | bytes | bytearray):
        raise TypeError(f"{item!r} is a text")
    return np.asarray(item, dtype=np.float64) if hasattr(item, "__len__") else np.float64(float(item))


def _told(answer: Any) -> str:
    """An answer without numbers in a few words, with the type of what it holds."""
    kind = "an array" if isinstance(answer, np.ndarray) else f"a {type(answer).__name__}"
    if np.ma.isMaskedArray(answer):
        return "an array with masked numbers"
    try:
        array = np.asarray(answer)
    except Exception:  # as above; ragged lists too
        return kind
    if array.ndim == 0 and not isinstance(answer, np.ndarray):
        return kind
    if array.dtype.hasobject and not array.dtype.names:
        return f"{kind} of {next((type(item).__name__ for item in array.ravel() if not _is_number(item)), 'objects')}"
    return f"{kind} of {_WORDS.get(array.dtype.kind, array.dtype)}"


def _is_number(item: Any) -> bool:
    try:
        _number(item)
    except Exception:  # as above
        return False
    return True

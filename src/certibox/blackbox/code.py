"""What Python code does, as plain values: bytecode and what it reads, without names of files, lines or addresses."""

from __future__ import annotations

import dis
import sys
import sysconfig
from collections.abc import Iterator
from functools import cached_property, partial, partialmethod
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

# Their code is told by its name: an upgrade of torch must not rename every model that stands on it.
_OF_NETWORKS = ("certibox", "torch", "torchvision", "torchaudio", "timm", "transformers", "keras", "tensorflow", "jax")
_OF_NUMBERS = ("numpy", "scipy", "sklearn", "pandas", "polars", "joblib", "xgboost", "lightgbm", "catboost", "skimage")
_LIBRARIES = frozenset((*_OF_NETWORKS, *_OF_NUMBERS, "flax", "onnx", "onnxruntime", "PIL", "cv2"))
_STANDARD = sysconfig.get_paths()["stdlib"]
_ASKED = frozenset(("forward", "__call__", "predict", "predict_proba", "decision_function", "transform"))
_FITTING = ("fit", "partial_fit", "fit_transform", "fit_predict")
_TEXTS = ("__repr__", "__str__", "extra_repr", "__annotate__", "__annotate_func__")
_NEVER_ASKED = frozenset(("__init__", *_FITTING, *_TEXTS))
_WRAPPERS = {  # what holds a function -> the functions in it
    property: lambda held: (held.fget,),
    staticmethod: lambda held: (held.__func__,),
    classmethod: lambda held: (held.__func__,),
    cached_property: lambda held: (held.func,),
    partial: lambda held: (held.func, held.args, held.keywords),
    partialmethod: lambda held: (held.func, held.args, held.keywords),
    MethodType: lambda held: (held.__func__, held.__self__),
}
_MADE_IN_PYTHON = 1 << 9  # flag of a class that a class statement made
PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic)


def library(module: object) -> str | None:
    """The library that a module belongs to, where its name says what its code does; None for anybody's own code.

    Args:
        module: Dotted name of a module.
    """
    root = str(module).partition(".")[0]
    return root if root in _LIBRARIES or _is_of_python(root) else None


def _is_of_python(root: str) -> bool:
    """Whether a module is one of Python's own, and not somebody's `test.py`."""
    if root not in sys.stdlib_module_names or root == "__main__" or (found := sys.modules.get(root)) is None:
        return False
    return (getattr(found, "__file__", None) or _STANDARD).startswith(_STANDARD)


def _library_of(code: FunctionType | type) -> str | None:
    """The library of a function or class. Code of Python's own name, but made in Python, comes from `exec`."""
    compiled = isinstance(code, type) and not code.__flags__ & _MADE_IN_PYTHON
    return None if code.__module__ == "builtins" and not compiled else library(code.__module__)


def is_pinned(value: object) -> bool:
    """Whether a value means the same in another process: numbers, texts, code, and containers of them.

    Args:
        value: Any value, such as a global variable that code reads.
    """
    if isinstance(value, (*PLAIN, np.ndarray, Tensor, nn.Module, FunctionType, type, *_WRAPPERS)):
        return True
    if isinstance(value, dict):
        return all(is_pinned(key) and is_pinned(item) for key, item in value.items())
    return isinstance(value, list | tuple | set | frozenset | range | slice) and (
        isinstance(value, range | slice) or all(map(is_pinned, value))
    )


def of_function(function: Any) -> tuple[Any, ...] | None:
    """What a function does, as values that may hold further functions; None for what is no function.

    Args:
        function: Function, method, partial function, property or code.
    """
    if isinstance(function, CodeType):
        return ("code", *_of_code(function))
    if isinstance(function, FunctionType):
        return _of_python(function)
    for kind, parts in _WRAPPERS.items():
        if isinstance(function, kind):
            return (kind.__name__, *parts(function))
    if isinstance(function, BuiltinFunctionType | np.ufunc):
        owner = getattr(function, "__self__", None)
        owner = None if isinstance(owner, ModuleType) else owner
        return ("builtin", getattr(function, "__qualname__", function.__name__), owner)
    return None


def _of_python(function: FunctionType) -> tuple[Any, ...]:
    if (root := _library_of(function)) is not None and not function.__closure__:
        return ("function", root, function.__qualname__)
    read, written = _names(function.__code__, "LOAD_GLOBAL", "LOAD_NAME"), _written(function.__code__)
    variables = {name: function.__globals__[name] for name in read & function.__globals__.keys() - written}
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    held = {name: _content(cell) for name, cell in cells if name not in written}
    return (
        "function",
        function.__code__,
        function.__defaults__,
        function.__kwdefaults__,
        {name: value for name, value in variables.items() if is_pinned(value)},
        held,
    )


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _of_code(code: CodeType) -> Iterator[Any]:
    """Bytecode, names and constants in the order in which they are used: no text that only documents."""
    steps = list(dis.get_instructions(code))
    yield str([(step.opcode, step.arg if step.opcode not in dis.hasconst else None) for step in steps])
    yield [step.argval for step in steps if step.opcode in dis.hasconst]
    yield (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & 0x2F)
    yield (*code.co_names, "/", *code.co_freevars, "/", *code.co_cellvars)
    yield code.co_exceptiontable


def of_class(kind: type) -> tuple[Any, ...]:
    """What the objects of a class do: the names of libraries' classes, and the members of anybody's own.

    Args:
        kind: Class.
    """
    parts = []
    for base in kind.__mro__[:-1]:
        name = base.__qualname__.rpartition("<locals>.")[2]
        if (root := _library_of(base)) is not None:
            parts.append((root, name))
        else:
            parts.append((name, {key: member for key, member in vars(base).items() if _counts(key, member)}))
    return ("class", *parts)


def _counts(name: str, member: object) -> bool:
    """Whether a member of a class can decide an answer."""
    code = isinstance(member, (FunctionType, *_WRAPPERS))
    return name not in _NEVER_ASKED and (code or not name.startswith("__")) and is_pinned(member)


def written_by(kind: type) -> set[str]:
    """Names of the attributes that an object sets while it is asked, such as a cache or a counter: no settings.

    Args:
        kind: Class of the object.
    """
    own = [base for base in kind.__mro__ if _library_of(base) is None]
    methods = {name: member for base in reversed(own) for name, member in vars(base).items()}
    waiting, seen, found = [name for name in methods if name in _ASKED], set[str](), set[str]()
    while waiting:
        seen.add(name := waiting.pop())
        for code in _codes(methods[name]):
            found |= _names(code, "STORE_ATTR")
            called = _names(code, "LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR") & methods.keys()
            waiting += [other for other in called - seen if other not in _NEVER_ASKED]
    return found


def _codes(member: Any) -> Iterator[CodeType]:
    if isinstance(member, FunctionType):
        yield member.__code__
    elif (wrapped := next((parts for kind, parts in _WRAPPERS.items() if isinstance(member, kind)), None)) is not None:
        for part in wrapped(member):
            yield from _codes(part)


def _written(code: CodeType) -> set[str]:
    return _names(code, "STORE_GLOBAL", "STORE_DEREF", "DELETE_GLOBAL", "DELETE_DEREF")


def _names(code: CodeType, *operations: str) -> set[str]:
    """The names that these operations of some code, and of the functions inside it, work on."""
    found = {str(step.argval) for step in dis.get_instructions(code) if step.opname in operations}
    return found.union(*(_names(inner, *operations) for inner in code.co_consts if isinstance(inner, CodeType)))

"""Each parameter of a public function, and each field of a public dataclass, is documented on a line of its own.

`undocumented` finds what is missing in a room; `ROOMS` are the rooms that have nothing missing. To see what a room
lacks: `python tests/test_parameters.py training report`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import pairwise
from typing import Any

import pytest

ROOMS = ("data",)
ARGUMENT = re.compile(r"^    \*{0,2}(\w+)(?: \([^)]*\))?: +(\S.*)$", re.MULTILINE)


def undocumented(room: str) -> list[str]:
    """What the public names of `certibox.<room>` leave without a line: "train: gamma", "Images: labels"."""
    module = importlib.import_module(f"certibox.{room}")
    listed = getattr(module, "__all__", None) or [name for name, _ in inspect.getmembers(module) if name[0] != "_"]
    missing = []
    for name in sorted(listed):
        value = getattr(module, name)
        ours = getattr(value, "__module__", "").startswith("certibox.")
        if ours and (inspect.isclass(value) or inspect.isfunction(value)):
            missing += [f"{name}{part}" for part in _missing(value)]
    return missing


def _missing(value: Any) -> Iterator[str]:
    if not inspect.isclass(value):
        yield from (f": {part}" for part in _of_function(value))
        return
    described = {} if is_dataclass(value) else arguments(value)
    if is_dataclass(value):
        own = field_docstrings(value)
        yield from (f": {item.name}" for item in fields(value) if item.name[0] != "_" and not own.get(item.name))
    elif "__init__" in vars(value) and not getattr(value, "_is_protocol", False):
        yield from (f": {part}" for part in parameters(value.__init__) if part not in described)
    for name, member in vars(value).items():
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if inspect.isfunction(function) and (name[0] != "_" or name == "__call__"):
            yield from (f".{name}: {part}" for part in _of_function(function))


def _of_function(function: Any) -> list[str]:
    wanted = parameters(function)
    described = arguments(function)
    return [part for part in wanted if part not in described] if function.__doc__ else ["(no docstring)"]


def parameters(function: Any) -> list[str]:
    """The names that a caller may give."""
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls") and name[0] != "_"]


def arguments(value: Any) -> dict[str, str]:
    """Parameter -> its line, from the section `Args:` of a docstring."""
    section = re.search(r"^Args:\n((?:(?:    .*)?\n)*)", (inspect.getdoc(value) or "") + "\n", re.MULTILINE)
    return dict(ARGUMENT.findall(section[1])) if section else {}


def field_docstrings(kind: type) -> dict[str, str]:
    """Field -> the string below it, also of the bases."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if is_dataclass(base):
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
            assert isinstance(body, ast.ClassDef)
            found |= _strings_below(body.body)
    return found


def _strings_below(statements: list[ast.stmt]) -> dict[str, str]:
    found = {}
    for item, below in pairwise(statements):
        match item, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = text
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_parameter_has_a_line_of_its_own(room: str) -> None:
    assert undocumented(room) == []


def documented(x: int, *rest: int, scale: float = 1.0) -> float:
    """A function as it should be.

    Args:
        x: Number to begin with.
        *rest: Numbers to add,
            one after the other: as many as wanted.
        scale: Factor of the sum.

    Returns: The sum: scaled.
    """
    return (x + sum(rest)) * scale


def in_a_paragraph(x: int, scale: float = 1.0) -> float:
    """A function as it should not be. x: a number. scale: its factor."""
    return x * scale


def test_the_checker_sees_what_is_missing() -> None:
    assert arguments(documented) == {
        "x": "Number to begin with.",
        "rest": "Numbers to add,",
        "scale": "Factor of the sum.",
    }
    assert _of_function(documented) == []
    assert _of_function(in_a_paragraph) == ["x", "scale"]
    assert _of_function(lambda x: x) == ["(no docstring)"]


if __name__ == "__main__":
    for asked in sys.argv[1:]:
        for line in undocumented(asked):
            print(f"{asked}  {line}")

"""Each parameter of a public function, and each field of a public dataclass, is documented on a line of its own.

`undocumented` finds what is missing in a room or module; `ROOMS` has every room, with its modules that are reachable by
name. To see what is missing: `python tests/test_parameters.py training report.tables`, or everything without a name.
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
from typing import Any, TypedDict, Unpack, get_args, get_type_hints

import pytest

from certibox.training.defenses import train
from certibox.training.settings import TrainingSettings
from places import ROOT

ROOMS = {  # room -> modules whose names are public beside those of the room
    "blackbox": "base code function identity model_files numbers onnx onnx_file outputs sklearn tflite torch_module",
    "certification": "certificate dataset noise pilot sampling sigma smoothing stored votes",
    "confidence": "binomial bootstrap forecast gaussian looks recorded sequential stopping",
    "data": "augmentation pixels",
    "defense": "autoencoders pipeline released saved",
    "errors": "",
    "estimators": "autograd differences guided linear step_size table",
    "networks": "autoencoder classifiers devices dncnn reconstructor surrogate",
    "paper": "blocks cells claims dry_run gpu logbook measured plans plots provenance results runner shipped suite "
    "summary table_page words",
    "planning": "",
    "queries": "client concurrency copying fingerprint journal ledger meter",
    "reconstruction": "evaluation measurements metrics",
    "records": "certificates tsv",
    "report": "numbers page pictures tables",
    "seeds": "switches",
    "serving": "accounts asgi audit engine gateway heads health metrics protocol shares signature terms tickets",
    "storage": "files settings tensors values",
    "training": "checks defenses divergence methods schedules settings stability steps supervised",
}
PLACES = [f"{room}.{module}".rstrip(".") for room in ROOMS for module in ("", *ROOMS[room].split())]
ARGUMENT = re.compile(r"^    \*{0,2}(\w+)(?: \([^)]*\))?: +(\S.*)$", re.MULTILINE)
REFERENCE = re.compile(r"\b[Ss]ee `([\w.]+)`")


def undocumented(place: str) -> list[str]:
    """What the public names of a room or module leave without a line: "train: gamma", "Images: labels"."""
    module = importlib.import_module(f"certibox.{place}")
    own = [name for name, value in inspect.getmembers(module) if getattr(value, "__module__", "") == module.__name__]
    missing = []
    for name in sorted(getattr(module, "__all__", None) or own):
        value = getattr(module, name)
        ours = getattr(value, "__module__", "").startswith("certibox.")
        if name[0] != "_" and ours and (inspect.isclass(value) or inspect.isfunction(value)):
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
    if not function.__doc__:
        return ["(no docstring)"]
    described = set(arguments(function)).union(*map(arguments, referred(function)))
    return [part for part in parameters(function) if part not in described]


def parameters(function: Any) -> list[str]:
    """The names that a caller may give; keywords that a TypedDict names are its keys."""
    names = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD and "Unpack[" in str(parameter.annotation):
            (keywords,) = get_args(get_type_hints(function)[name])
            names += keywords.__annotations__
        elif name not in ("self", "cls") and name[0] != "_":
            names.append(name)
    return names


def referred(function: Any) -> list[Any]:
    """What a docstring points at by "See `GradientEstimator.estimate`", found in its module or in its room."""
    room = function.__module__.split(".")[1] if function.__module__.startswith("certibox.") else ""
    places = [importlib.import_module(f"certibox.{place}") for place in PLACES if place.split(".")[0] == room]
    known = [function.__globals__, *map(vars, places)]
    found = []
    for path in REFERENCE.findall(function.__doc__):
        first, *rest = path.split(".")
        value = next((names[first] for names in known if first in names), None)
        for name in rest:
            value = getattr(value, name, None)
        if value is not None:
            found.append(value)
    return found


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


@pytest.mark.parametrize("place", PLACES)
def test_every_public_parameter_has_a_line_of_its_own(place: str) -> None:
    assert undocumented(place) == []


def test_every_room_is_listed() -> None:
    """The command line has no names of its own for Python: its options are checked by its help."""
    there = {path.stem for path in (ROOT / "src" / "certibox").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert there - {"__init__", "__pycache__", "cli", "commands"} == set(ROOMS)


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


def as_documented(x: int, *rest: int, scale: float = 1.0) -> float:
    """The same; see `documented`."""
    return documented(x, *rest, scale=scale)


def as_undocumented(x: int, scale: float = 1.0, more: int = 0) -> float:
    """The same and more. See `in_a_paragraph`, and see `nothing`."""
    return in_a_paragraph(x, scale) + more


class Keywords(TypedDict, total=False):
    scale: float


def spelt_out(**keywords: Unpack[Keywords]) -> Keywords:
    """What came, and nothing else."""
    return keywords


def test_the_checker_follows_what_a_docstring_points_at() -> None:
    assert referred(as_documented) == [documented]
    assert _of_function(as_documented) == []
    assert referred(as_undocumented) == [in_a_paragraph]
    assert _of_function(as_undocumented) == ["x", "scale", "more"]


def test_keywords_of_a_typed_dict_are_parameters() -> None:
    assert parameters(spelt_out) == _of_function(spelt_out) == ["scale"]
    assert {item.name for item in fields(TrainingSettings)} < set(parameters(train))


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
    for asked in sys.argv[1:] or PLACES:
        for line in undocumented(asked):
            print(f"{asked}  {line}")

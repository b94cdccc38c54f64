"""Every parameter of a public name has a line of its own, and every field of a public dataclass its docstring."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

ROOMS = ("defense", "estimators", "networks", "planning", "reconstruction", "training")
MORE = {"networks": ["autoencoder.paper_autoencoder"], "training": ["supervised.fit", "methods.Method"]}
PLANNING = ["Cost", "expected_samples", "plan", "unseen"]


def public() -> list[Any]:
    """Functions and classes of the rooms; classes that only their own factories make have no parameters to explain."""
    found = []
    for room in ROOMS:
        module = importlib.import_module(f"certibox.{room}")
        for name in (*(PLANNING if room == "planning" else module.__all__), *MORE.get(room, [])):
            place, _, last = name.rpartition(".")
            made = getattr(importlib.import_module(f"certibox.{room}.{place}") if place else module, last)
            own = inspect.isclass(made) and "__init__" in vars(made) and not getattr(made, "_is_protocol", False)
            if inspect.isfunction(made) or own:
                found.append(pytest.param(made, id=f"{room}.{name}"))
    return found


def documented(text: str) -> dict[str, str]:
    """The parameters of a docstring's `Args:`, each with its first line."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", f"{text}\n", re.M)
    return dict(re.findall(r"^    (\w+): (.*)$", section[1], re.M)) if section else {}


def parameters(made: Any) -> list[str]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [name for name, item in inspect.signature(made).parameters.items() if item.kind not in kinds]


def field_docs(made: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(made))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for item, after in zip(body.body, body.body[1:], strict=False):
        named = isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        if named and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[item.target.id] = str(after.value.value)
    return found


@pytest.mark.parametrize("made", public())
def test_every_parameter_has_a_line_of_its_own(made: Any) -> None:
    if is_dataclass(made) and isinstance(made, type):
        lines, wanted = field_docs(made), [item.name for item in fields(made) if not item.name.startswith("_")]
    else:
        lines, wanted = documented(inspect.getdoc(made) or ""), parameters(made)
    assert set(wanted) <= set(lines), sorted(set(wanted) - set(lines))
    for name in wanted:
        assert re.match(r"[A-Z|]", lines[name]), f"{name}: {lines[name]}"


def test_the_rooms_have_public_names() -> None:
    assert len(public()) > 50

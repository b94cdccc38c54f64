"""Estimators by name: built from plain settings in one place, and written down as runs always did."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor

import certibox as cb
from certibox.commands.options import EstimatorOptions
from certibox.errors import InvalidInput
from certibox.estimators import CGE, ESTIMATORS, RGE, Guided, Orthogonal, Subset, build_estimator, estimator_record
from certibox.paper.plans import Estimator
from certibox.paper.stages import estimator_of


class Strange:
    """A stranger's estimator with a field that JSON has no word for."""

    def __init__(self) -> None:
        self.steps, self.kind = 3, (1, 2)

    def estimate(self, objective: Any, z: Tensor, generator: torch.Generator, live: Tensor | None = None) -> Tensor:
        return z

    def cost(self, d: int) -> int:
        return 0


@pytest.mark.parametrize(
    ("name", "settings", "wanted"),
    [
        ("cge", {"mu": 0.1}, CGE(0.1)),
        ("cge", {"mu": "auto", "central": True, "q": None}, CGE("auto", True)),
        ("rge", {"q": 20, "mu": 0.1}, RGE(20, 0.1)),
        ("orthogonal", {"q": 4, "mu": 0.1, "share": 0.5}, Subset(Orthogonal(4, 0.1), 0.5)),
        ("guided", {}, Guided()),
        (
            "guided",
            {"q": 2, "mu": 0.1, "surrogate": "latent", "distill": 9},
            Guided(2, 0.1, surrogate="latent", distill=9),
        ),
    ],
)
def test_settings_become_the_estimator(name: str, settings: dict[str, Any], wanted: Any) -> None:
    assert build_estimator(name, **settings) == wanted


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("guidd", {}, r"estimator is 'guidd'; wanted one of guided, cge, rge, orthogonal; did you mean guided\?"),
        ("rge", {"q": 2, "mu": 0.1, "centrl": True}, r"rge has no setting 'centrl'; .*; did you mean central\?"),
        ("cge", {"mu": 0.1, "distill": 9}, "cge has no setting 'distill'; wanted some of mu, central$"),
        ("rge", {"mu": 0.1}, "rge got no q"),
        ("orthogonal", {}, "orthogonal got no q and no mu"),
        ("rge", {"q": "auto", "mu": 0.1}, "q is 'auto'; wanted a whole number"),
        ("guided", {"share": 0.5}, "Subset got a Guided"),
    ],
)
def test_settings_that_do_not_fit_are_refused(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        build_estimator(name, **settings)


def test_records_are_the_type_and_its_fields() -> None:
    assert estimator_record(RGE(q=20, mu=0.005)) == {"name": "RGE", "q": 20, "mu": 0.005, "central": False}
    subset = Subset(CGE(mu=0.05), 0.125)
    assert estimator_record(subset) == {"name": "Subset", "estimator": repr(CGE(mu=0.05)), "share": 0.125}
    assert estimator_record(Guided()) == {"name": "Guided"} | {item.name: item.default for item in fields(Guided)}
    assert estimator_record(Strange()) == {"name": "Strange", "steps": 3, "kind": "(1, 2)"}


@pytest.mark.parametrize("kind", [EstimatorOptions, Estimator])
def test_options_and_plans_name_the_table(kind: type) -> None:
    hint = get_type_hints(kind)["estimator" if kind is EstimatorOptions else "name"]
    assert sorted(get_args(hint)) == sorted(ESTIMATORS) == sorted(cb.ESTIMATORS)


def test_options_and_plans_build_from_it() -> None:
    assert EstimatorOptions().build_estimator() == Guided()
    assert EstimatorOptions(estimator="rge").build_estimator() == RGE(20, "auto")
    assert EstimatorOptions(estimator="cge", mu=0.1, central=True).build_estimator() == CGE(0.1, True)
    assert EstimatorOptions(q=3, jitter=0.1, votes=2).build_estimator() == Guided(3, jitter=0.1, votes=2)
    with pytest.raises(InvalidInput, match="q is auto, which guided alone measures; wanted a number for rge"):
        EstimatorOptions(estimator="rge", q="auto").build_estimator()
    assert estimator_of(None) is None
    assert estimator_of(Estimator("cge", 0.1, share=0.5)) == Subset(CGE(0.1), 0.5)
    assert estimator_of(Estimator("guided", 0.1, "auto", guided={"ask": 0.5})) == Guided(mu=0.1, ask=0.5)
    with pytest.raises(InvalidInput, match="rge has no setting 'ask'"):
        estimator_of(Estimator("rge", 0.1, 2, guided={"ask": 0.5}))

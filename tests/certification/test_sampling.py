"""One guard for n0, n, alpha and rule; every way to certify takes it, and gives what the keywords give."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import certibox as cb
from certibox.certification.dataset import certify_dataset
from certibox.certification.sampling import Sampling
from certibox.certification.smoothing import SmoothedClassifier
from certibox.confidence import EProcess, Gaussian
from certibox.confidence.recorded import record
from certibox.data import Images
from certibox.errors import InvalidInput
from doubles import CountingBox, LinearBox

SIGMA = 0.25
RULE = EProcess(radii=(0.0625, 0.125))


def box() -> CountingBox:
    return CountingBox(LinearBox(torch.randn(3, 6, generator=torch.Generator().manual_seed(1))))


def pictures() -> Images:
    pixels = torch.randint(0, 256, (3, 1, 2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Images(pixels, None, "random")


@pytest.mark.parametrize("parts", [{}, {"rule": RULE}, {"second_class": True}])
def test_a_sampling_is_its_parts(parts: dict[str, Any], tmp_path: Path) -> None:
    smoothed, x = SmoothedClassifier(box(), 3, SIGMA), pictures().floats([0])[0]
    whole = Sampling(5, 200, 0.05, **parts)
    by_parts: dict[str, Any] = {"n0": 5, "n": 200, "alpha": 0.05, **parts}
    assert smoothed.certify(x, sampling=whole, seed=0) == smoothed.certify(x, seed=0, **by_parts)
    rows, out = certify_dataset(smoothed, pictures(), sampling=whole, seed=0), tmp_path / "rows.jsonl"
    others = certify_dataset(smoothed, pictures(), seed=0, out=out, **by_parts)
    assert [replace(row, seconds=0.0) for row in rows] == [replace(row, seconds=0.0) for row in others]
    assert certify_dataset(smoothed, pictures(), sampling=whole, seed=0, out=out) == others  # the same configuration


@pytest.mark.parametrize(
    ("change", "came"),
    [
        ({"n0": 0}, "n0 is 0; wanted at least 1"),
        ({"n0": 2.5}, "n0 is 2.5; wanted a whole number"),
        ({"n0": "5"}, "n0 is '5'; wanted a whole number"),
        ({"n": math.nan}, "n is nan; wanted a whole number"),
        ({"n": math.inf}, "n is inf; wanted a whole number"),
        ({"n": 4}, "n = 4 .* smallest n is 5"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": 1}, "alpha is 1"),
        ({"alpha": "small"}, "alpha is 'small'; wanted a failure probability"),
        ({"alpha": None}, "alpha is None"),
        ({"rule": 0.25}, "rule is a float; wanted a stopping rule"),
        ({"rule": RULE, "second_class": True}, "second_class is for a fixed n"),
    ],
)
def test_what_certifies_nothing_is_refused_when_it_is_said(change: dict[str, Any], came: str) -> None:
    given: dict[str, Any] = {"n0": 5, "n": 200, "alpha": 0.05, **change}
    with pytest.raises(InvalidInput, match=came) as error:
        Sampling(**given)
    assert "\n" not in str(error.value)


def test_numbers_are_pythons_and_whole_floats_are_counts() -> None:
    made = Sampling(np.int64(5), 1e4, np.float64(0.05), second_class=np.True_)  # pyright: ignore[reportArgumentType]
    assert made == Sampling(5, 10_000, 0.05, second_class=True)
    assert [type(value) for value in (made.n0, made.n, made.alpha, made.second_class)] == [int, int, float, bool]


def test_a_sampling_knows_its_looks_and_its_record() -> None:
    law = Gaussian(SIGMA)
    assert Sampling(5, 200, 0.05).sizes(law, 3) == (200,)
    assert Sampling(5, 200, 0.05).as_dict() == {"n0": 5, "n": 200, "alpha": 0.05, "second_class": False, "rule": None}
    made = Sampling(5, 200, 0.05, RULE)
    assert made.sizes(law, 3) == RULE.sizes(200, 0.05, [law.needed_p(radius) for radius in (0.0625, 0.125)])
    assert made.as_dict()["rule"] == made.record() == record(RULE, 200, 0.05)


@pytest.mark.parametrize(
    ("given", "came"),
    [
        ({}, "n0, n, alpha not given; wanted n0, n and alpha, or sampling"),
        ({"n0": 5, "alpha": 0.05}, "n not given"),
        ({"sampling": Sampling(5, 200, 0.05), "n": 100}, "sampling and n are both given"),
        ({"sampling": Sampling(5, 200, 0.05), "rule": RULE}, "sampling and rule are both given"),
        ({"sampling": Sampling(5, 200, 0.05), "second_class": True}, "sampling and second_class are both given"),
        ({"sampling": (5, 200, 0.05)}, "sampling is a tuple; wanted certibox.Sampling"),
    ],
)
def test_the_two_spellings_do_not_mix(given: dict[str, Any], came: str) -> None:
    inner = box()
    smoothed = SmoothedClassifier(inner, 3, SIGMA)
    with pytest.raises(InvalidInput, match=came):
        smoothed.certify(pictures().floats([0])[0], seed=0, **given)
    with pytest.raises(InvalidInput, match=came):
        certify_dataset(smoothed, pictures(), seed=0, **given)
    assert inner.calls == 0


def test_the_public_names_are_these() -> None:
    assert cb.Sampling is cb.certification.Sampling is Sampling
    assert (cb.Gaussian, cb.StoppingRule, cb.Rule) == (Gaussian, cb.confidence.StoppingRule, cb.confidence.Rule)
    assert (
        cb.CertificateRow
        is cb.certification.certify_dataset(
            SmoothedClassifier(box(), 3, SIGMA), pictures(), n0=1, n=20, alpha=0.05, seed=0
        )[0].__class__
    )

"""The edges of the smoothed classifier: NumPy images, batches, what it says of itself, dictionaries, and the ledger."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import certibox as cb
from certibox.blackbox import as_blackbox
from certibox.certification.certificate import Certificate, Prediction
from certibox.certification.dataset import certify_dataset
from certibox.certification.smoothing import SmoothedClassifier
from certibox.confidence import EProcess
from certibox.data import Images
from certibox.defense.pipeline import RobustPipeline
from certibox.defense.saved import Defense
from certibox.errors import BudgetExceeded, InvalidInput
from certibox.queries.client import QueryClient
from doubles import CountingBox, LinearBox

SIGMA = 0.25
VOTES: dict[str, Any] = {"n0": 5, "n": 200, "alpha": 0.05, "seed": 3}
RULE = EProcess(radii=(0.0625, 0.125))


def linear() -> LinearBox:
    return LinearBox(torch.randn(3, 6, generator=torch.Generator().manual_seed(1)))


def smoothed() -> SmoothedClassifier:
    return SmoothedClassifier(linear(), 3, SIGMA)


def batch(count: int = 5) -> Tensor:
    return torch.rand(count, 1, 2, 3, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------------- arrays and batches


@pytest.mark.parametrize("kind", [np.float32, np.float64, ">f4"])
def test_a_numpy_image_is_the_tensor_of_its_pixels(kind: Any) -> None:
    for x in batch():
        array = x.numpy().astype(kind)
        assert smoothed().certify(array, **VOTES) == smoothed().certify(x, **VOTES)
        assert smoothed().predict(array, n=50, alpha=0.05, seed=3) == smoothed().predict(x, n=50, alpha=0.05, seed=3)


def test_a_view_of_an_array_that_cannot_be_written_is_taken_and_left_alone() -> None:
    whole = batch(1)[0].numpy()
    array = whole[:, ::-1, ::-1]
    array.setflags(write=False)
    before = array.copy()
    assert smoothed().certify(array, **VOTES) == smoothed().certify(torch.from_numpy(before), **VOTES)
    assert np.array_equal(array, before)


@pytest.mark.parametrize("change", [{}, {"rule": RULE}, {"second_class": True}])
@pytest.mark.parametrize("array", [False, True])
def test_a_batch_is_certified_as_one_by_one(change: dict[str, Any], array: bool) -> None:
    images, inner = batch(), CountingBox(linear())
    made = SmoothedClassifier(inner, 3, SIGMA).certify(images.numpy() if array else images, **VOTES, **change)
    assert isinstance(made, list)
    assert made == [smoothed().certify(x, **VOTES, **change) for x in images]
    assert inner.images == sum(certificate.queries for certificate in made)
    assert len({certificate.image for certificate in made}) == len(images)


@pytest.mark.parametrize("array", [False, True])
def test_a_batch_is_predicted_as_one_by_one(array: bool) -> None:
    images = batch()
    made = smoothed().predict(images.numpy() if array else images, n=50, alpha=0.05, seed=3)
    assert made == [smoothed().predict(x, n=50, alpha=0.05, seed=3) for x in images]
    assert all(isinstance(prediction, Prediction) for prediction in made)


def test_a_batch_of_one_is_a_list_of_one() -> None:
    (made,) = smoothed().certify(batch(1), **VOTES)
    assert made == smoothed().certify(batch(1)[0], **VOTES)


def test_a_journal_is_for_one_image() -> None:
    class Journal:
        def recall(self, stream: str) -> list[tuple[int, int, np.ndarray]]:
            return []

        def note(self, stream: str, start: int, stop: int, votes: np.ndarray) -> None:
            raise AssertionError("no vote was to be drawn")

    with pytest.raises(InvalidInput, match="a journal keeps the votes of one image"):
        smoothed().certify(batch(), **VOTES, journal=Journal())


# --------------------------------------------------------------------------------------------- what it says of itself


def bright(x: Tensor) -> Tensor:
    return (x.mean((1, 2, 3)) > 0.5).long()


def test_a_smoothed_classifier_says_what_it_smooths() -> None:
    assert repr(SmoothedClassifier(bright, 2, 0.5)) == "SmoothedClassifier(bright, num_classes=2, sigma=0.5)"
    assert repr(smoothed()) == "SmoothedClassifier(LinearBox, num_classes=3, sigma=0.25)"
    metered = client()
    assert repr(SmoothedClassifier(metered, 3, SIGMA)) == (
        f"SmoothedClassifier({metered.model_id}, num_classes=3, sigma=0.25)"
    )


# ----------------------------------------------------------------------------------------------------- dictionaries


@pytest.mark.parametrize("change", [{}, {"rule": RULE}, {"second_class": True}])
def test_a_certificate_comes_back_from_its_dictionary(change: dict[str, Any]) -> None:
    for made in smoothed().certify(batch(), **VOTES, **change):
        assert Certificate.from_dict(made.as_dict()) == made
        again = Certificate.from_dict(json.loads(json.dumps(made.as_dict())))
        assert again == made
        assert again.replay() == made
        assert hash(again) == hash(made)


def changed(made: Certificate) -> dict[str, dict[str, Any]]:
    values = made.as_dict()
    return {
        "the fields are not those of a certificate": {k: v for k, v in values.items() if k != "alpha"},
        "fields are not those": {**values, "speed": 2},
        "n is 200.5": {**values, "n": 200.5},
        "second_class is 1": {**values, "second_class": 1},
        "counts is 'abc'": {**values, "counts": "abc"},
        "not all integers >= 0": {**values, "counts": [-1, 0, made.n + 1]},
        "not JSON serializable": {**values, "image": object()},
        "votes for n =": {**values, "n": made.n + 1},
        "no votes for the selected class 7": {**values, "selected": 7},
        "wanted finite and >= 0": {**values, "radius": -1.0},
        "on an abstention": {**values, "label": None},
        "but .* selected": {**values, "label": (made.selected + 1) % 3},
        "p_lower nan": {**values, "p_lower": float("nan")},
        "sigma 0.0, wanted": {**values, "sigma": 0.0},
        "go together": {**values, "looks": None},
        "queries are stated": {**values, "queries": 1},
        "n0 = 0": {**values, "n0": 0, "queries": made.n},
        "cap 3": {**values, "rule": (made.rule or {}) | {"cap": 3}},
    }


def test_a_dictionary_of_no_certificate_is_refused_in_one_line() -> None:
    made = next(c for c in smoothed().certify(batch(20), **VOTES, rule=RULE) if c.label is not None)
    for came, values in changed(made).items():
        with pytest.raises(InvalidInput, match=came) as error:
            print(came, Certificate.from_dict(values))
        assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------------------------------------- phases


def client(**settings: Any) -> QueryClient:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 3))
    return QueryClient(as_blackbox(module, "logits", name="linear"), **settings)


def images() -> Images:
    pixels = torch.randint(0, 256, (3, 1, 2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Images(pixels, None, "random")


def defense(metered: QueryClient) -> Defense:
    return Defense(RobustPipeline(None), metered, "DS", SIGMA, (1, 2, 3), 3)


@pytest.mark.parametrize("base", [lambda c: c, lambda c: defense(c).outputs], ids=["client", "defense"])
@pytest.mark.parametrize("ledger", [False, True])
def test_a_data_set_is_booked_under_certify(base: Any, ledger: bool, tmp_path: Path) -> None:
    metered = client(ledger=tmp_path / "ledger.sqlite") if ledger else client()
    rows = certify_dataset(SmoothedClassifier(base(metered), 3, SIGMA), images(), **VOTES)
    assert metered.spent == {"certify": sum(row.queries for row in rows)}
    if ledger:
        assert client(ledger=tmp_path / "ledger.sqlite").spent == metered.spent
    metered(batch(2))
    assert metered.spent["query"] == 2  # the phase ended with the data set


def test_the_phase_that_a_caller_named_stands() -> None:
    metered = client()
    with metered.phase("certify (a) bare model"):
        rows = certify_dataset(SmoothedClassifier(metered, 3, SIGMA), images(), **VOTES)
    assert metered.spent == {"certify (a) bare model": sum(row.queries for row in rows)}


def test_the_phase_ends_with_an_interruption_too(tmp_path: Path) -> None:
    metered = client(budget=300)
    with pytest.raises(BudgetExceeded):
        certify_dataset(SmoothedClassifier(metered, 3, SIGMA), images(), **VOTES, out=tmp_path / "rows.jsonl")
    assert set(metered.spent) == {"certify"}
    with metered.default_phase("query"):
        pass
    metered.budget = None
    metered(batch(1))
    assert metered.spent["query"] == 1


def test_a_bare_function_is_certified_without_a_book() -> None:
    rows = certify_dataset(SmoothedClassifier(bright, 2, SIGMA), images(), **VOTES)
    assert [replace(row, seconds=0.0).model for row in rows] == ["base classifier"] * 3
    assert isinstance(rows[0], cb.CertificateRow)

"""Training against closed forms: first order is the oracle of zeroth order, counts are exact, stops change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from certibox.blackbox import TorchBox, as_blackbox
from certibox.commands import cost as query_cost
from certibox.data import Images
from certibox.estimators import CGE, RGE, Orthogonal
from certibox.queries.client import QueryClient
from certibox.training.schedules import Phase, Schedule
from doubles import CountingBox
from training_runs import (
    BATCH,
    D_Z,
    D,
    K,
    bottleneck,
    distance,
    fit,
    last_weights,
    linear,
    pictures,
    rows,
    smooth_model,
    start_of,
)


@pytest.mark.parametrize("method", ["ZO-DS", "ZO-AE-DS"])
@pytest.mark.parametrize(
    ("name", "estimator"),
    [
        ("cge", CGE(0.05)),
        ("cge", CGE(0.05, central=True)),
        ("rge", RGE(5, 0.05)),
        ("rge", RGE(5, 0.05, central=True)),
        ("orthogonal", Orthogonal(4, 0.05)),
        ("orthogonal", Orthogonal(4, 0.05, central=True)),
    ],
)
def test_the_spending_is_the_plan(name: str, estimator: Any, method: str) -> None:
    box, epochs, votes, d = linear(), 2, 3, D_Z if method == "ZO-AE-DS" else D
    defense = fit(
        box,
        method,
        estimator=estimator,
        schedule=Schedule((Phase(1, 0.01, objective="denoise"), Phase(epochs, 0.01)), BATCH),
        validation_votes=votes,
        skip_dead=False,
    )
    plan = query_cost.QueryCost(
        method=method,  # pyright: ignore[reportArgumentType]
        train_images=20,
        epochs=epochs,
        validation=0.2,
        validation_votes=votes,
        d_z=d,
        estimator=name,  # pyright: ignore[reportArgumentType]
        q=getattr(estimator, "q", None),
        mu=0.05,
        central=estimator.central,
    )
    per_image = {"cge": d, "rge": 5, "orthogonal": 4}[name]
    per_image = 2 * per_image if estimator.central else per_image + 1
    expected = 20 + epochs * 16 * per_image + (epochs + 1) * 4 * votes
    assert box.images == defense.client.queries == query_cost.cost_of(plan).total == expected
    assert defense.client.spent == {f"train {method} ({type(estimator).__name__})": expected}
    assert defense.client.white_passes == 0


def test_denoised_smoothing_never_asks() -> None:
    def never(x: np.ndarray) -> np.ndarray:
        raise AssertionError("asked")

    defense = fit(as_blackbox(never, "logits", num_classes=K), "DS", gamma=None)
    assert defense.client.attempts == defense.client.white_passes == 0
    assert defense.num_classes == K


@pytest.mark.parametrize("method", ["FO-DS", "FO-AE-DS"])
def test_first_order_pays_for_targets_alone(method: str) -> None:
    defense = fit(TorchBox(smooth_model(), "logits"), method, schedule=Schedule((Phase(3, 0.01),), BATCH))
    assert defense.client.spent == {f"train {method}": 20}
    assert defense.client.queries == defense.client.attempts == 20
    assert defense.client.white_passes == 3 * 16 + 4 * 4 * 2
    assert defense.num_classes == K


def test_randomized_smoothing_learns_from_labels_and_asks_nothing() -> None:
    client = QueryClient(TorchBox(smooth_model(), "logits"), budget=0)
    defense = fit(client, "RS", gamma=None, images=pictures().select([0, 1, 3, 4, 6, 7, 9, 10]))  # labels 0 and 1 only
    assert client.attempts == client.white_passes == 0
    assert defense.num_classes == K  # as the network answers, not as the labels happen to be
    assert defense.outputs(pictures().floats()).shape == (20, K)
    assert client.attempts == 0


def test_randomized_smoothing_without_labels_learns_from_the_box() -> None:
    unlabelled = Images(pictures().images, None, "unlabelled")
    defense = fit(TorchBox(smooth_model(), "logits"), "RS", images=unlabelled)
    assert defense.client.queries == 20


@pytest.mark.parametrize("augmentation", ["none", "crop-flip", "flips"])
@pytest.mark.parametrize("client_batch", [3, 256])
def test_targets_are_asked_once_about_the_clean_images(augmentation: str, client_batch: int) -> None:
    seen: list[np.ndarray] = []

    def noting(x: np.ndarray) -> np.ndarray:
        seen.extend(x)
        return np.zeros((len(x), K), dtype=np.float32)

    client, images = QueryClient(as_blackbox(noting, "logits"), batch_size=client_batch), pictures()
    fit(client, "ZO-AE-DS", augmentation=augmentation, schedule=Schedule((Phase(2, 0.01),), BATCH))
    clean = {image.numpy().tobytes() for image in images.floats()}
    assert sorted(x.tobytes() for x in seen[:20]) == sorted(clean)
    assert not any(x.tobytes() in clean for x in seen[20:])


@pytest.mark.parametrize(
    ("outputs", "targets", "classes"),
    [("labels", "hard", K), ("values", "hard", None), ("probabilities", "hard", K), ("probabilities", "soft", K)],
)
@pytest.mark.parametrize("method", ["ZO-DS", "ZO-AE-DS"])
def test_a_numpy_box_of_any_kind_trains_end_to_end(
    method: str, outputs: str, targets: str, classes: int | None, tmp_path: Path
) -> None:
    reference = linear(outputs).box

    def answer(x: np.ndarray) -> np.ndarray:
        return reference(torch.from_numpy(x)).numpy()

    box = CountingBox(as_blackbox(answer, outputs, num_classes=classes, clip=False))
    defense = fit(box, method, estimator=RGE(4, 0.5), targets=targets, skip_dead=False, out=tmp_path)
    (row,) = rows(tmp_path)
    assert box.images == defense.client.queries == row["queries"] == 20 + 16 * 5 + 2 * 4 * 2
    assert defense.num_classes == classes
    assert row["loss"] == pytest.approx(row["denoise"] + 0.7 * row["stability"], rel=1e-5)
    if outputs == "labels":  # 5 answers to each of 8 images, right or wrong
        assert (row["stability"] * 2 * 40) == pytest.approx(round(row["stability"] * 2 * 40), abs=1e-3)
        assert 0 <= row["stability"] <= 1
    if outputs == "values":
        assert row["validation"] < 0  # minus a squared error
    else:
        assert row["validation"] * 8 == round(row["validation"] * 8)
    assert torch.equal(defense.outputs(pictures().floats()), reference(defense.robustify(pictures().floats())))


@pytest.mark.parametrize("method", ["ZO-DS", "ZO-AE-DS"])
def test_a_box_that_always_answers_the_same_teaches_nothing(method: str, tmp_path: Path) -> None:
    """Its differences are exactly zero, so what is left is DS, bit for bit."""
    box = as_blackbox(lambda x: np.zeros(len(x), dtype=np.int64), "labels", num_classes=K)
    fit(box, method, estimator=RGE(3, 0.1), out=tmp_path / method)
    fit(box, "DS", out=tmp_path / "DS")
    trained, plain = last_weights(tmp_path / method), last_weights(tmp_path / "DS")
    assert distance(plain, start_of("DS", False)) > 0
    for name, value in plain.items():
        assert torch.equal(trained[name], value)
    for name in trained.keys() - plain.keys():  # the autoencoder
        assert torch.equal(trained[name], bottleneck().state_dict()[name.removeprefix("autoencoder.")])
    (row,) = rows(tmp_path / method)
    assert (row["stability"], row["validation"]) == (0.0, 1.0)

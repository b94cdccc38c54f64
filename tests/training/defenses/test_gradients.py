"""Training against closed forms: first order is the oracle of zeroth order, counts are exact, stops change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from certibox.blackbox import BlackBox, TorchBox
from certibox.defense.saved import Defense
from certibox.estimators import CGE, GradientEstimator, Orthogonal
from certibox.training.defenses import METHODS
from certibox.training.schedules import Phase, Schedule
from training_runs import (
    BATCH,
    D_Z,
    D,
    Own,
    bottleneck,
    distance,
    fit,
    last_weights,
    rows,
    smooth_model,
    start_of,
)


def one_step(box: BlackBox, method: str, out: Path, double: bool, optimizer: str, **change: Any) -> Defense:
    """One step over all the images shown, with every term in the objective."""
    schedule = Schedule((Phase(1, 0.05, optimizer),), 16)  # pyright: ignore[reportArgumentType]
    own = bottleneck(double) if METHODS[method].bottleneck else None
    weighted = {"denoise_weight": 0.02, "reconstruction_weight": 0.03, "gamma": 0.9}
    settings = {"denoiser": Own(double), "autoencoder": own, "schedule": schedule, "out": out}
    return fit(box, method, **(weighted | settings | change))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("skip_dead", [True, False], ids=["live", "all"])
@pytest.mark.parametrize(
    ("outputs", "targets"), [("logits", "hard"), ("logits", "soft"), ("probabilities", "soft"), ("values", "hard")]
)
def test_a_step_with_the_autoencoder_is_that_of_first_order(
    outputs: str, targets: str, skip_dead: bool, optimizer: str, tmp_path: Path
) -> None:
    box = TorchBox(smooth_model(True, outputs), outputs)
    one_step(box, "FO-AE-DS", tmp_path / "fo", True, optimizer, targets=targets)
    estimator = CGE(1e-5, central=True)
    settings = {"estimator": estimator, "skip_dead": skip_dead, "targets": targets}
    one_step(box, "ZO-AE-DS", tmp_path / "zo", True, optimizer, **settings)
    first, zeroth, start = last_weights(tmp_path / "fo"), last_weights(tmp_path / "zo"), start_of("FO-AE-DS", True)
    assert distance(first, start) > 1e-3
    assert distance(zeroth, first) < 1e-6 * distance(first, start)
    (a,), (b,) = rows(tmp_path / "fo"), rows(tmp_path / "zo")
    for term in ("denoise", "reconstruction"):
        assert b[term] == a[term]
    if not skip_dead:  # the mean over the differences' points; with it, the mean of the live ones
        assert b["stability"] == pytest.approx(a["stability"], rel=1e-8)
    assert b["validation"] == pytest.approx(a["validation"], rel=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("estimator", [CGE(1e-5, central=True), Orthogonal(D, 1e-5, central=True)])
def test_a_step_in_pixel_space_is_that_of_first_order(
    estimator: GradientEstimator, optimizer: str, tmp_path: Path
) -> None:
    box = TorchBox(smooth_model(True), "logits")
    without = {"reconstruction_weight": 0.0}
    one_step(box, "FO-DS", tmp_path / "fo", True, optimizer, **without)
    one_step(box, "ZO-DS", tmp_path / "zo", True, optimizer, estimator=estimator, **without)
    first, zeroth, start = last_weights(tmp_path / "fo"), last_weights(tmp_path / "zo"), start_of("FO-DS", True)
    assert distance(zeroth, first) < 1e-6 * distance(first, start)


@pytest.mark.parametrize("method", ["DS", "AE-DS"])
def test_a_step_in_single_precision_is_nearly_that_of_first_order(method: str, tmp_path: Path) -> None:
    box = TorchBox(smooth_model(), "logits")
    one_step(box, f"FO-{method}", tmp_path / "fo", False, "sgd")
    one_step(box, f"ZO-{method}", tmp_path / "zo", False, "sgd", estimator=CGE(1e-2, central=True))
    first, zeroth, start = (
        last_weights(tmp_path / "fo"),
        last_weights(tmp_path / "zo"),
        start_of(f"FO-{method}", False),
    )
    assert distance(zeroth, first) < 1e-3 * distance(first, start)


def test_without_the_estimate_the_steps_differ(tmp_path: Path) -> None:
    """The oracle can fail: gamma moves the weights by far more than the tolerances above."""
    box = TorchBox(smooth_model(True), "logits")
    one_step(box, "FO-AE-DS", tmp_path / "with", True, "sgd")
    one_step(box, "FO-AE-DS", tmp_path / "without", True, "sgd", gamma=0.0)
    start, stepped = start_of("FO-AE-DS", True), last_weights(tmp_path / "with")
    assert distance(last_weights(tmp_path / "without"), stepped) > 0.1 * distance(stepped, start)


@pytest.mark.parametrize("central", [False, True])
def test_live_coordinates_give_the_same_training_for_fewer_queries(central: bool, tmp_path: Path) -> None:
    """Up to the rounding of sums in another order; each live coordinate is paid for, and none that is dead."""
    own, alive = bottleneck(True), []
    own.encoder.register_forward_hook(
        lambda module, _, z: alive.append(int((z > 0).sum())) if module.training else None
    )
    per_point, per_image = (2, 0) if central else (1, 1)
    schedule, spent = Schedule((Phase(3, 0.01),), BATCH), {}
    for skip_dead in (True, False):
        alive.clear()
        defense = fit(
            TorchBox(smooth_model(True), "logits"),
            "ZO-AE-DS",
            estimator=CGE(1e-4, central),
            skip_dead=skip_dead,
            autoencoder=own,
            denoiser=Own(True),
            schedule=schedule,
            out=tmp_path / str(skip_dead),
        )
        spent[skip_dead] = defense.client.queries - 20 - 4 * 4 * 2 - 3 * 16 * per_image
        assert spent[skip_dead] == per_point * (sum(alive) if skip_dead else 3 * 16 * D_Z)
    assert 0 < spent[True] < 0.9 * spent[False]
    a, b = last_weights(tmp_path / "True"), last_weights(tmp_path / "False")
    assert distance(a, b) < 1e-9 * distance(a, start_of("ZO-AE-DS", True))
    assert sum(row["live"] for row in rows(tmp_path / "True")) * 16 == pytest.approx(sum(alive))
    assert all("live" not in row for row in rows(tmp_path / "False"))

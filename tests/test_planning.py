"""`certibox.plan` from Python: to the query what training spends, and what it wants said in plain values."""

from __future__ import annotations

import re
from typing import Any

import pytest

import certibox as cb
from certibox.errors import InvalidInput
from certibox.estimators import CGE, RGE, Guided, Orthogonal, Subset
from certibox.queries.client import QueryClient
from certibox.training.defenses import train
from certibox.training.schedules import Phase, Schedule
from certibox.training.settings import TrainingSettings
from doubles import CountingBox
from training_runs import D_Z, SEED, SIGMA, D, Own, bottleneck, linear, pictures

SCHEDULE = Schedule((Phase(1, 0.01, objective="denoise"), Phase(3, 0.01), Phase(2, 0.001, "sgd")), 6)
USUAL: dict[str, Any] = {"sigma": SIGMA, "schedule": SCHEDULE, "seed": SEED, "gamma": 1.0, "skip_dead": False}


@pytest.mark.parametrize("method", ["ZO-DS", "ZO-AE-DS"])
@pytest.mark.parametrize(
    "estimator",
    [
        CGE(0.05),
        RGE(3, "auto", central=True),
        Subset(CGE(0.05), 0.4),  # 2 of 6 images, and 2 of the last 4
        Subset(Orthogonal(2, "auto"), 0.1),  # one image a step
        Guided(0, ask=0.5),
        Guided(2, 0.05, distill=7),
        Guided(distill=2000),
    ],
)
@pytest.mark.parametrize("every", [None, 2])
def test_train_spends_what_its_settings_plan(estimator: Any, method: str, every: int | None) -> None:
    """Phases on the full objective count, wherever they stand; each is validated at its end."""
    settings = TrainingSettings(method, estimator=estimator, validation_votes=3, validate_every=every, **USUAL)
    box = CountingBox(linear())
    client = QueryClient(box)
    autoencoder = bottleneck() if method == "ZO-AE-DS" else None
    train(client, pictures(20), settings, denoiser=Own(), autoencoder=autoencoder, validation=0.2)
    cost = cb.plan(settings, train_images=20, validation=0.2, d_z=D_Z if autoencoder else D)
    assert box.images == client.queries == cost.total
    assert cost.validation == 4 * 3 * (1 + (5 if every is None else 2 + 1))
    assert cost.targets == 20


def test_settings_and_their_values_plan_the_same() -> None:
    settings = TrainingSettings("ZO-AE-DS", estimator=RGE(3, 0.1), validate_every=2, **USUAL)
    shared: dict[str, Any] = {"train_images": 50, "d_z": 9, "certify_images": 3, "n0": 5, "n": 400, "alpha": 0.01}
    shared["rule"] = cb.EProcess(radii=(0.1,))
    words: dict[str, Any] = {"method": "ZO-AE-DS", "estimator": RGE(3, 0.1), "schedule": SCHEDULE, "validate_every": 2}
    assert cb.plan(settings, **shared) == cb.plan(**words, sigma=SIGMA, **shared)
    with pytest.raises(InvalidInput, match="plan got settings and method, schedule beside them"):
        cb.plan(settings, method="DS", schedule=SCHEDULE)


def test_nothing_planned_is_nothing_spent() -> None:
    assert cb.plan() == cb.Cost(targets=0, measuring=0, training=0, validation=0, certification=0, serving=0)
    assert cb.plan(method="DS", train_images=100).total == 0
    assert cb.plan(method="RS", train_images=100).total == 100
    assert cb.plan(serve_answers=7, serve_n=100).serving == cb.plan(serve_answers=7, serve_n=100).total == 700


def test_a_rule_counts_its_maximum_and_names_what_is_out_of_reach() -> None:
    rule = cb.EProcess(radii=(0.5, 1.0, 2.0))
    units = cb.plan(certify_images=4, n0=25, n=50, alpha=0.001, rule=rule)
    assert units.certification == 4 * 75
    assert units.beyond is not None
    assert re.search(r"cannot certify r = 2 .*\(r in units of sigma\)$", units.beyond)
    pixels = cb.plan(certify_images=4, n0=25, n=50, alpha=0.001, rule=cb.EProcess(radii=(0.15, 0.6)), sigma=0.3)
    assert pixels.beyond is not None
    assert "r = 0.6" in pixels.beyond
    assert "units" not in pixels.beyond


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"train_images": 9}, "method is None; wanted one of RS, DS"),
        ({"train_images": 9, "method": "ZO-D"}, "method is 'ZO-D'; wanted .*; did you mean ZO-DS"),
        ({"train_images": 9, "method": "ZO-DS"}, "schedule is not given; wanted one such as certibox.one_cycle"),
        ({"train_images": 9, "method": "ZO-DS", "schedule": SCHEDULE}, "ZO-DS got no estimator"),
        (
            {"train_images": 9, "method": "ZO-DS", "schedule": SCHEDULE, "estimator": CGE(0.1)},
            "d_z is not given; wanted the dimension that the estimator works on, such as 192",
        ),
        ({"certify_images": 9}, "n is not given"),
        ({"certify_images": 9, "n": 100}, "n0 is None and alpha is None; wanted at least 1 vote"),
        ({"certify_images": 9, "n": 100, "n0": 0, "alpha": 0.1}, "n0 is 0"),
        ({"certify_images": 9, "n": 100, "n0": 2.5, "alpha": 0.1}, "n0 is 2.5; wanted a whole number of votes"),
        ({"certify_images": 9, "n": 100, "n0": 2, "alpha": 1.5}, "alpha is 1.5"),
        ({"certify_images": 9, "n": 2, "n0": 1, "alpha": 0.1}, "n = 2 can only abstain .* smallest n is"),
        ({"pilot": [], "n": 100}, "a pilot tells when a stopping rule ends, and there is none"),
        ({"pilot": [], "n": 100, "rule": cb.EProcess(radii=(0.1,))}, "the pilot has 0 rows; wanted at least 2"),
        ({"pilot": [], "rule": cb.EProcess(radii=(0.1,))}, "n is not given"),
        ({"serve_answers": 9}, "serve_n is not given"),
        ({"serve_answers": -1}, "serve_answers is -1; wanted at least 0"),
        ({"method": "ZO-DS"}, "train_images is not given; wanted the number of images to train on, or 0"),
        ({"method": "ZO-DS", "train_images": "9"}, "train_images is '9'; wanted at least 0, a whole number"),
        ({"method": "ZO-DS", "train_images": 10**400}, "train_images is a number of too many digits; wanted at most"),
        ({"train_images": 9, "method": "DS", "validation": "half"}, "validation is 'half'; wanted a share"),
        ({"validate_every": 0}, "validate_every is 0; wanted at least 1"),
    ],
)
def test_what_is_missing_or_wrong_is_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        cb.plan(**given)
    assert "\n" not in str(caught.value)
    assert "--" not in str(caught.value)  # flags are the command's


def test_a_pilot_has_its_own_sigma_and_alpha() -> None:
    smoothed = cb.SmoothedClassifier(linear(), 3, SIGMA)
    pilot = cb.certify_dataset(smoothed, pictures(3), n0=5, n=50, alpha=0.01, seed=0)
    shared: dict[str, Any] = {"certify_images": 9, "n0": 5, "n": 60, "rule": cb.EProcess(radii=(0.1,)), "pilot": pilot}
    cost = cb.plan(**shared)
    assert cost.piloted == 3
    assert cost.samples is not None
    assert cost.certification == round(9 * (5 + cost.samples[0]))
    assert cb.plan(**shared, sigma=SIGMA, alpha=0.01) == cost
    for name in ("sigma", "alpha"):
        other: dict[str, Any] = {name: 0.5}
        with pytest.raises(InvalidInput, match=rf"{name} is 0\.5, the pilot's is"):
            cb.plan(**shared, **other)


def test_settings_without_a_number_of_images_are_not_a_plan_of_nothing() -> None:
    settings = TrainingSettings("ZO-DS", estimator=RGE(3, 0.05), **USUAL)
    with pytest.raises(InvalidInput, match="train_images is not given"):
        cb.plan(settings)
    assert cb.plan(settings, train_images=0).total == 0
    assert cb.plan(settings, train_images=20, d_z=D).total > 0


@pytest.mark.parametrize(
    ("method", "estimator", "change", "said"),
    [
        ("ZO-AE-DS", CGE(0.05), {}, True),
        ("ZO-AE-DS", Subset(CGE(0.05), 0.5), {}, True),
        ("ZO-AE-DS", CGE(0.05), {"live": 0.5}, False),
        ("ZO-AE-DS", RGE(3, 0.05), {}, False),
        ("ZO-DS", CGE(0.05), {}, False),
    ],
)
def test_what_live_coordinates_may_save_is_said(
    method: str, estimator: Any, change: dict[str, Any], said: bool
) -> None:
    cost = cb.plan(method=method, estimator=estimator, schedule=SCHEDULE, train_images=20, d_z=D_Z, **change)
    assert (cost.at_most is not None) is said
    all_asked = TrainingSettings(method, estimator=estimator, **USUAL)  # with skip_dead off, each is asked about
    assert cb.plan(all_asked, train_images=20, d_z=D_Z, **change).at_most is None

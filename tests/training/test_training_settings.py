"""A training run as one value: checked once, spelt in either way, and written down as it always was."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from typing import Any, get_args, get_type_hints

import pytest

import certibox as cb
from certibox.blackbox import TorchBox
from certibox.commands.training import Train
from certibox.errors import InvalidInput
from certibox.estimators import CGE
from certibox.paper.plans import Defense
from certibox.paper.stages import settings_of
from certibox.queries.client import QueryClient
from certibox.storage.files import read_json
from certibox.training.defenses import train
from certibox.training.methods import METHODS, SCHEMES
from certibox.training.schedules import Phase, Schedule
from certibox.training.settings import SettingsKeywords, TrainingSettings
from training_runs import EPOCH, SEED, SIGMA, Own, bottleneck, linear, pictures, same_run, smooth_model, weights

USUAL: dict[str, Any] = {"method": "ZO-DS", "sigma": SIGMA, "schedule": EPOCH, "seed": SEED}
USUAL |= {"estimator": CGE(0.05), "gamma": 0.7, "validation_votes": 2, "patience": 3, "validate_every": 2}


def changed(values: dict[str, Any]) -> dict[str, Any]:
    """The usual settings with other values."""
    return {**USUAL, **values}


def test_settings_and_keywords_are_the_same_run(tmp_path) -> None:
    made = []
    for name, settings, keywords in (("value", TrainingSettings(**USUAL), {}), ("words", None, USUAL)):
        client = QueryClient(linear())
        out = tmp_path / name
        made.append(train(client, pictures(), settings, denoiser=Own(), validation=0.2, out=out, **keywords))
    assert weights(made[0]) == weights(made[1])
    same_run(tmp_path / "value", tmp_path / "words")
    configs = [read_json(tmp_path / name / "config.json") for name in ("value", "words")]
    assert configs[0] == configs[1]
    assert (configs[0]["patience"], configs[0]["validate_every"]) == (3, 2)
    assert configs[0].items() >= {"hard_targets": True, "gamma": 0.7, "validation_votes": 2}.items()


def test_the_keywords_of_train_are_the_fields_of_the_settings() -> None:
    assert list(SettingsKeywords.__annotations__) == [item.name for item in fields(TrainingSettings)]
    required = [item.name for item in fields(TrainingSettings) if item.default is MISSING]
    assert required == ["method", "sigma", "schedule", "seed"]
    text = train.__doc__ or ""
    assert all(f"        {item.name}: " in text for item in fields(TrainingSettings))


@pytest.mark.parametrize(
    ("keyword", "meant"),
    [("sigm", "sigma"), ("estimater", "estimator"), ("autoencodr", "autoencoder"), ("chekpoint_every", "checkpoint")],
)
def test_a_misspelt_keyword_is_named_with_the_one_that_was_meant(keyword: str, meant: str) -> None:
    box = linear()
    with pytest.raises(InvalidInput, match=rf"train has no keyword '{keyword}'; .* did you mean {meant}"):
        train(QueryClient(box), pictures(), **changed({keyword: 1}))
    assert box.calls == 0


def test_what_is_missing_or_came_twice_is_named() -> None:
    client = QueryClient(linear())
    with pytest.raises(InvalidInput, match="train got no sigma, seed; wanted them as keywords, or one Training"):
        train(client, pictures(), method="DS", schedule=EPOCH)
    with pytest.raises(InvalidInput, match=r"train got settings and gamma beside them; .*replace\(settings"):
        train(client, pictures(), TrainingSettings(**USUAL), gamma=1.0)
    with pytest.raises(InvalidInput, match="settings is str; wanted TrainingSettings, or its fields as keywords"):
        train(client, pictures(), "ZO-DS")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidInput, match=r"schedule is 'one-cycle'; wanted a Schedule such as certibox\.one_cycle"):
        TrainingSettings(**changed({"schedule": "one-cycle"}))


@pytest.mark.parametrize(
    ("name", "came", "meant"),
    [
        ("method", "ZO-AEDS", "ZO-AE-DS"),
        ("method", "zo-ae-ds", "ZO-AE-DS"),
        ("scheme", "denoiser+encodr", r"denoiser\+encoder"),
        ("targets", "sotf", "soft"),
        ("augmentation", "crop-flips", "crop-flip"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(name: str, came: str, meant: str) -> None:
    with pytest.raises(InvalidInput, match=rf"{name} is '{came.replace('+', '.')}'; .*; did you mean {meant}\?$"):
        TrainingSettings(**changed({name: came}))


def test_a_misspelt_network_is_answered_with_the_nearest() -> None:
    with pytest.raises(InvalidInput, match=r"denoiser is 'dncnn-wid'; .*; did you mean dncnn-wide\?"):
        train(QueryClient(linear()), pictures(), TrainingSettings(**USUAL), denoiser="dncnn-wid")


@pytest.mark.parametrize(
    ("method", "gamma", "weight"),
    [("ZO-DS", 0.5, 0.5), ("DS", 0.5, 0.0), ("DS", None, 0.0), ("RS", None, 1.0), ("RS", 0.0, 0.0)],
)
def test_the_weight_of_the_stability_term_is_what_the_method_makes_of_gamma(
    method: str, gamma: float | None, weight: float
) -> None:
    settings = TrainingSettings(**USUAL | {"method": method, "gamma": gamma})
    assert settings.stability_weight == settings.record()["gamma"] == weight


def test_the_names_in_the_options_and_plans_are_those_of_the_tables() -> None:
    hints = get_type_hints(Train)
    assert set(hints) >= {item.name for item in fields(TrainingSettings)}
    assert get_args(hints["method"]) == tuple(METHODS)
    assert get_args(hints["scheme"]) == SCHEMES
    assert get_args(get_type_hints(Defense)["method"]) == ("none", "identity", *METHODS)


def test_the_command_line_and_plans_spell_the_same_settings() -> None:
    options = Train(
        model="m", outputs="logits", data="d", out="o", sigma=0.25, gamma=2.0, estimator="cge", mu=0.1, epochs=3,
        denoise_epochs=0, train_batch_size=16, targets="soft", augmentation="flip", validation_votes=1,
        validate_every=2, seed=5,
    )  # fmt: skip
    schedule = Schedule((Phase(3, 1e-3, shape="one-cycle"),), 16)
    wanted = TrainingSettings(
        "ZO-AE-DS", 0.25, schedule, 5, CGE(0.1), 2.0, targets="soft", augmentation="flip", validation_votes=1,
        validate_every=2,
    )  # fmt: skip
    assert options.build_settings() == wanted
    planned = Defense("DS", 0.5, schedule.phases, 16, gamma=3.0, validate_every=4)
    assert settings_of(planned, 7) == TrainingSettings(
        "DS", 0.5, schedule, 7, gamma=3.0, validation_votes=1, validate_every=4
    )
    assert replace(settings_of(planned, 7), seed=8) == settings_of(planned, 8)


def test_soft_targets_are_those_of_the_settings() -> None:
    settings = TrainingSettings("FO-AE-DS", SIGMA, EPOCH, SEED, gamma=1.0, targets="soft")
    client = QueryClient(TorchBox(smooth_model(), "logits"))
    defense = cb.train(client, pictures(), settings, denoiser=Own(), autoencoder=bottleneck())
    assert defense.facts["hard_targets"] is False


@pytest.mark.parametrize("came", ["guidd", "rge", 3, cb.Guided])
def test_what_estimates_nothing_is_refused_before_anything_is_asked(came: Any) -> None:
    meant = {"guidd": r"; did you mean Guided\?", "rge": r"; did you mean RGE\?"}.get(str(came), "")
    with pytest.raises(InvalidInput, match=rf"wanted an estimator such as certibox\.Guided\(\){meant}$"):
        TrainingSettings(**changed({"estimator": came}))
    with pytest.raises(InvalidInput, match=r"wanted an estimator such as"):
        cb.plan(method="ZO-DS", estimator=came, schedule=EPOCH, train_images=10)


def test_a_misspelt_keyword_beside_settings_is_named_too() -> None:
    misspelt: dict[str, Any] = {"autoencodr": 1}
    with pytest.raises(InvalidInput, match=r"train has no keyword 'autoencodr'; .* did you mean autoencoder\?"):
        train(QueryClient(linear()), pictures(), TrainingSettings(**USUAL), **misspelt)

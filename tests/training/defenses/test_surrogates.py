"""Training against closed forms: first order is the oracle of zeroth order, counts are exact, stops change nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from certibox.blackbox import BoxSpec, TorchBox, as_blackbox
from certibox.defense.pipeline import RobustPipeline
from certibox.errors import (
    BoxFailed,
    BudgetExceeded,
)
from certibox.estimators import CGE, RGE, Guided, Orthogonal, Subset
from certibox.storage.tensors import module_digest, read_tensors, write_tensors
from certibox.training.defenses import METHODS
from certibox.training.schedules import Phase, Schedule
from doubles import CountingBox
from training_runs import (
    BATCH,
    D,
    K,
    Own,
    bottleneck,
    calls,
    distance,
    fit,
    last_weights,
    linear,
    resumable,
    rows,
    same_run,
    smooth_model,
    start_of,
    weights,
)

PROBE = 8  # images of a probe, each asked at z, along the guess and across it


def guided(q: Any = 0, mu: Any = 0.05, **change: Any) -> Guided:
    return Guided(q, mu, **{"surrogate": "latent", "probe_every": 1, **change})


@pytest.mark.parametrize("surrogate", ["image", "latent"])
@pytest.mark.parametrize("method", ["ZO-DS", "ZO-AE-DS"])
@pytest.mark.parametrize(("change", "a_step", "before"), [({}, 1, 0), ({"distill": 11}, 1, 11), ({"q": 2}, 3, 0)])
def test_guidance_pays_one_answer_an_image_and_step(
    change: dict[str, Any], a_step: int, before: int, method: str, surrogate: str, tmp_path: Path
) -> None:
    box, epochs = linear(), 2
    estimator = guided(**change, surrogate=surrogate)
    schedule = Schedule((Phase(1, 0.01, objective="denoise"), Phase(epochs, 0.01)), BATCH)
    defense = fit(box, method, estimator=estimator, schedule=schedule, skip_dead=False, out=tmp_path)
    assert box.images == defense.client.queries == 20 + before + epochs * 16 * a_step + (epochs + 1) * 4 * 2
    assert defense.client.spent == {f"train {method} (Guided)": box.images}
    assert distance(last_weights(tmp_path), start_of(method, False)) > 0


class Answers:
    """A box that answers with what `make` makes of the logits of `linear()`."""

    def __init__(self, outputs: str, make: Callable[[Tensor], Tensor]) -> None:
        self.spec = BoxSpec(outputs, name="answers")
        self.box, self.make = linear().box, make

    def __call__(self, x: Tensor) -> Tensor:
        return self.make(self.box(x))


# Kind of outputs, a form in which a box may answer, and the plain form of the same.
ANSWERS: dict[str, tuple[str, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "soft targets": ("probabilities", lambda logits: logits.double().softmax(1), lambda logits: logits.softmax(1)),
    "double values": ("values", Tensor.double, lambda logits: logits),
    "one value an image": ("values", lambda logits: logits[:, 0], lambda logits: logits[:, :1]),
    "images": ("values", lambda logits: logits.reshape(-1, K, 1, 1), lambda logits: logits),
    "large images": (
        "values",
        lambda logits: 1e5 * (1 + logits.reshape(-1, K, 1, 1)),
        lambda logits: 1e5 * (1 + logits),
    ),
}


@pytest.mark.parametrize("q", [0, 2])
@pytest.mark.parametrize("surrogate", ["image", "latent"])
@pytest.mark.parametrize("answers", ANSWERS)
def test_a_surrogate_learns_whatever_a_box_may_answer(answers: str, surrogate: str, q: int) -> None:
    """In double precision as in single, with one axis, two or four: the same weights as for the plain form."""
    outputs, form, plain = ANSWERS[answers]
    targets = {"targets": "soft"} if answers == "soft targets" else {}
    gamma = 1e-10 if answers == "large images" else 0.7
    made = [
        fit(box, "ZO-AE-DS", estimator=guided(q, surrogate=surrogate), gamma=gamma, **targets)
        for box in (Answers(outputs, form), Answers(outputs, plain))
    ]
    for name, value in made[0].pipeline.state_dict().items():
        torch.testing.assert_close(value, made[1].pipeline.state_dict()[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("jittered", [False, True], ids=["at z", "jittered"])
def test_a_share_of_the_images_is_asked(jittered: bool) -> None:
    estimator = guided(ask=0.25, **({"jitter": 0.1, "votes": 3} if jittered else {}))
    defense = fit(linear(), "ZO-DS", estimator=estimator)
    assert defense.client.queries == 20 + 2 * 2 * (3 if jittered else 1) + 2 * 4 * 2


@pytest.mark.parametrize(("target", "q"), [(0.0, 0), (1.0, D)])
@pytest.mark.parametrize("every", [1, 2])
def test_auto_pays_for_its_probes_and_logs_what_they_show(every: int, target: float, q: int, tmp_path: Path) -> None:
    """A row's q is the mean over the epoch's two steps of 8 images each."""
    schedule = Schedule((Phase(4, 0.01),), BATCH)
    estimator = guided("auto", target=target, probe_every=every)
    fit(linear(), "ZO-DS", estimator=estimator, schedule=schedule, out=tmp_path)
    spent, probes = 20 + 4 * 2, PROBE * (PROBE + 2) * 2 // every
    for row in rows(tmp_path):
        spent += 16 + 16 * row["q"] + probes + 4 * 2
        assert row["queries"] == spent
        assert -1 <= row["cosine"] <= 1
    assert rows(tmp_path)[-1]["q"] == q


def test_a_given_number_of_corrections_is_not_measured(tmp_path: Path) -> None:
    fit(linear(), "ZO-DS", estimator=guided(2), out=tmp_path)
    assert not {"cosine", "q"} & rows(tmp_path)[0].keys()


@pytest.mark.parametrize("method", ["ZO-DS", "ZO-AE-DS"])
def test_a_guided_step_with_every_direction_is_that_of_first_order(method: str, tmp_path: Path) -> None:
    """Whatever the surrogate believes: corrections along all of z leave nothing of it."""
    box, without = TorchBox(smooth_model(True), "logits"), {"reconstruction_weight": 0.0}
    own = bottleneck(True) if METHODS[method].bottleneck else None
    step = {"denoiser": Own(True), "autoencoder": own, "schedule": Schedule((Phase(1, 0.05, "sgd"),), 16)}
    settings: dict[str, Any] = {"denoise_weight": 0.02, "skip_dead": False, **without, **step}
    fit(box, method.replace("ZO", "FO"), out=tmp_path / "fo", **settings)
    fit(box, method, out=tmp_path / "zo", estimator=guided(D, 1e-2, central=True), **settings)
    fit(box, method, out=tmp_path / "guess", estimator=guided(0), **settings)
    first, zeroth, guess = (last_weights(tmp_path / name) for name in ("fo", "zo", "guess"))
    moved = distance(first, start_of(method, True))
    assert distance(zeroth, first) < 1e-3 * moved  # differences over 0.01, and a surrogate in single precision
    assert distance(guess, first) > 0.1 * moved


def test_labels_are_learned_from_and_never_corrected(tmp_path: Path) -> None:
    """A step of a label is 0 or a leap, so "auto" buys nothing, measures nothing, and is q = 0."""
    for name, q, mu in (("auto", "auto", "auto"), ("none", 0, 0.05)):
        estimator = guided(q, mu, jitter=0.1, votes=2)
        defense = fit(linear("labels"), "ZO-DS", estimator=estimator, out=tmp_path / name)
        assert defense.client.queries == 20 + 16 * 2 + 2 * 4 * 2
        assert "step" not in defense.facts
    auto, none = last_weights(tmp_path / "auto"), last_weights(tmp_path / "none")
    assert distance(auto, none) == 0
    assert "q" not in rows(tmp_path / "auto")[0]


@pytest.mark.parametrize("estimator", [CGE("auto"), RGE(3, "auto"), Orthogonal(3, "auto", True), guided(2, "auto")])
def test_a_measured_step_is_paid_for_once_and_told(estimator: Any, tmp_path: Path) -> None:
    model, schedule = smooth_model(), Schedule((Phase(2, 0.01),), BATCH)
    defense = fit(TorchBox(model, "logits"), "ZO-DS", estimator=estimator, schedule=schedule, out=tmp_path)
    step, central = defense.facts["step"], estimator.central
    assert step["queries"] == (14 * 32 if central else 7 * 32 + 8)
    assert len(step["evidence"]) == 7
    assert step["mu"] in [row["mu"] for row in step["evidence"]]
    expected = 20 + 32 * estimator.cost(D) + step["queries"] + 3 * 4 * 2
    assert defense.client.queries == expected == rows(tmp_path)[-1]["queries"]
    known = replace(estimator, mu=step["mu"])  # the same run, had the step been known
    fit(TorchBox(model, "logits"), "ZO-DS", estimator=known, schedule=schedule, out=tmp_path / "known")
    assert distance(last_weights(tmp_path), last_weights(tmp_path / "known")) == 0


def test_a_step_that_is_never_taken_is_not_measured() -> None:
    defense = fit(linear(), "ZO-DS", estimator=guided(0, "auto"))
    assert "step" not in defense.facts
    assert defense.client.queries == 20 + 16 + 2 * 4 * 2


@pytest.mark.parametrize(
    ("estimator", "asked"),
    [(CGE("auto"), 16), (RGE(3, "auto", True), 0), (Subset(CGE("auto"), 0.5), 8), (guided(2, "auto"), 16)],
)
def test_a_step_is_not_measured_while_no_coordinate_is_live(estimator: Any, asked: int) -> None:
    dead = bottleneck()
    convolution = dead.encoder[0]  # pyright: ignore[reportIndexIssue]
    nn.init.constant_(convolution.bias, -1e3)
    defense = fit(linear(), "ZO-AE-DS", autoencoder=dead, estimator=estimator)
    assert "step" not in defense.facts
    assert defense.client.queries == 20 + asked + 2 * 4 * 2  # at most the losses themselves


LEARNING = {
    "distilled": guided(0, distill=11, surrogate="image"),
    "corrected": guided(2, "auto"),
    "auto": guided("auto", "auto", target=0.6, probe_every=2, jitter=0.1),
}


@pytest.mark.parametrize("name", list(LEARNING))
def test_a_failure_while_a_surrogate_learns_costs_the_batch_in_flight(name: str, tmp_path: Path) -> None:
    learning = {"estimator": LEARNING[name], "reconstruction_weight": 0.0}
    plain = resumable("ZO-DS", tmp_path / "plain", **learning)
    total = calls(plain)
    for at in (5, total // 2, total - 4):  # while it is distilled or mu is measured; in training; late
        out = tmp_path / str(at)
        with pytest.raises((BoxFailed, ConnectionError), match="the line is dead"):
            resumable("ZO-DS", out, at, **learning)
        resumed = resumable("ZO-DS", out, **learning)
        assert weights(resumed) == weights(plain)
        same_run(out, tmp_path / "plain")  # the surrogate, its optimizer and memory among the tensors
        assert resumed.client.queries == plain.client.queries
        assert 0 < resumed.client.attempts - resumed.client.queries == resumed.client.lost <= 7
        assert json.dumps(resumed.facts) == json.dumps(plain.facts)
    kept = read_tensors(tmp_path / "plain" / "checkpoint.safetensors")[0]
    assert {"memory.network", "memory.optimizer", "memory.memory"} <= {".".join(key.split(".")[:2]) for key in kept}


def test_a_spent_budget_keeps_what_a_surrogate_learned(tmp_path: Path) -> None:
    learning = {"estimator": LEARNING["corrected"], "reconstruction_weight": 0.0}
    plain = resumable("ZO-DS", tmp_path / "plain", **learning)
    for share in (0.3, 0.8):
        with pytest.raises(BudgetExceeded):
            resumable("ZO-DS", tmp_path / "out", budget=int(share * plain.client.queries), **learning)
    resumed = resumable("ZO-DS", tmp_path / "out", budget=plain.client.queries, **learning)
    assert weights(resumed) == weights(plain)
    same_run(tmp_path / "out", tmp_path / "plain")
    assert (resumed.client.queries, resumed.client.left) == (plain.client.queries, 0)


def test_without_a_ledger_a_surrogate_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    learning = {"estimator": LEARNING["auto"], "reconstruction_weight": 0.0, "ledger": False}
    plain = resumable("ZO-DS", tmp_path / "plain", **learning)
    with pytest.raises((BoxFailed, ConnectionError)):
        resumable("ZO-DS", tmp_path / "out", calls(plain) - 4, **learning)
    resumed = resumable("ZO-DS", tmp_path / "out", **learning)
    assert weights(resumed) == weights(plain)
    assert json.dumps(resumed.facts) == json.dumps(plain.facts)  # the step is not measured again
    assert calls(resumed) < calls(plain) / 2
    same_run(tmp_path / "out", tmp_path / "plain")


def test_a_run_of_an_earlier_release_goes_on(tmp_path: Path) -> None:
    """Its checkpoint knows neither patience nor a memory."""
    plain = resumable("ZO-DS", tmp_path / "plain")
    with pytest.raises((BoxFailed, ConnectionError)):
        resumable("ZO-DS", tmp_path / "out", calls(plain) - 2)
    file = tmp_path / "out" / "checkpoint.safetensors"
    tensors, facts = read_tensors(file)
    assert not any(name.startswith("memory") for name in tensors)
    write_tensors(file, tensors, {key: facts[key] for key in facts.keys() - {"stale", "notes"}})
    assert weights(resumable("ZO-DS", tmp_path / "out")) == weights(plain)


def test_patience_ends_training_and_a_stopped_run_stays_stopped(tmp_path: Path) -> None:
    """A box that always answers the same keeps every vote from the start: no epoch is better."""
    box = CountingBox(as_blackbox(lambda x: np.zeros(len(x), dtype=np.int64), "labels", num_classes=K))
    settings: dict[str, Any] = {"estimator": RGE(3, 0.1), "schedule": Schedule((Phase(9, 0.01),), BATCH), "patience": 2}
    first = fit(box, "ZO-DS", out=tmp_path, **settings)
    assert len(rows(tmp_path)) == 2
    assert weights(first) == module_digest(RobustPipeline(Own()).to(memory_format=torch.channels_last))  # pyright: ignore
    asked = box.images
    assert weights(fit(box, "ZO-DS", out=tmp_path, **settings)) == weights(first)
    assert (box.images, len(rows(tmp_path))) == (asked, 2)

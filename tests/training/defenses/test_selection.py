"""Training against closed forms: first order is the oracle of zeroth order, counts are exact, stops change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from certibox.blackbox import TorchBox
from certibox.networks import dncnn
from certibox.storage.tensors import read_tensors
from certibox.training.schedules import Phase, Schedule
from certibox.training.supervised import pretrain_autoencoder
from training_runs import (
    BATCH,
    EPOCH,
    SEED,
    bottleneck,
    distance,
    fit,
    grey,
    last_weights,
    linear,
    listening,
    pictures,
    rows,
    smooth_model,
    weights,
)


def wrecked(*before: Phase) -> Schedule:
    return Schedule((*before, Phase(1, 50.0)), BATCH)


@pytest.mark.parametrize("method", ["DS", "FO-DS", "ZO-DS", "ZO-AE-DS"])
def test_training_never_ends_below_its_start(method: str, tmp_path: Path) -> None:
    """A rate that wrecks the weights leaves those of the start, which are a candidate too."""
    identity = dncnn(1, 3, 4)  # untrained it changes nothing
    model = smooth_model()
    with torch.no_grad():
        model[3].bias[0] += 9.0  # one class for nearly every image
    box = TorchBox(model, "logits")
    images = replace(pictures(40), labels=None)
    own = pretrain_autoencoder(images, bottleneck(), schedule=EPOCH, seed=0) if method == "ZO-AE-DS" else None
    defense = fit(
        box, method, denoiser=identity, autoencoder=own, images=images, schedule=wrecked(), out=tmp_path, sigma=0.05
    )
    start = {f"denoiser.{name}": value for name, value in identity.state_dict().items()}
    assert distance(last_weights(tmp_path), last_weights(tmp_path) | start) > 10
    selected = defense.pipeline.state_dict()
    assert all(torch.equal(selected[name], value) for name, value in start.items())
    best = read_tensors(tmp_path / "checkpoint.safetensors")[1]
    assert best["best_epoch"] is None
    assert best["best"] >= rows(tmp_path)[0]["validation"]


def test_the_best_epoch_is_kept(tmp_path: Path) -> None:
    """The selected weights are those of a run that stopped at the best epoch, whatever came after."""
    learning = Phase(3, 0.02, "sgd")
    went_on = fit(linear(), "DS", images=grey(40), schedule=wrecked(learning), out=tmp_path / "went on")
    scores = [row["validation"] for row in rows(tmp_path / "went on")]
    best = scores.index(max(scores))
    until = Schedule((replace(learning, epochs=best + 1),), BATCH)
    stopped = fit(linear(), "DS", images=grey(40), schedule=until, out=tmp_path / "stopped")
    facts = read_tensors(tmp_path / "went on" / "checkpoint.safetensors")[1]
    assert (facts["best"], facts["best_epoch"]) == (scores[best], best)
    assert weights(went_on) == weights(stopped)
    assert distance(last_weights(tmp_path / "went on"), last_weights(tmp_path / "stopped")) > 10


def test_the_score_is_the_share_of_noisy_votes_that_keep_the_clean_answer(tmp_path: Path) -> None:
    denoiser, box = dncnn(1, 3, 4), linear()  # untrained the denoiser changes nothing
    heard = listening(denoiser)
    images = pictures(60)
    idle = Schedule((Phase(1, 1e-30, "sgd"),), BATCH)  # and so small a rate leaves it so
    fit(box, "ZO-DS", denoiser=denoiser, images=images, schedule=idle, validation_votes=5, out=tmp_path)
    start = [x for training, x in heard if not training][:5]
    held = images.split(0.2, SEED)[1]
    clean = box.box(held.floats()).argmax(1)
    kept = [float((box.box(x).argmax(1) == clean).float().mean()) for x in start]
    assert read_tensors(tmp_path / "checkpoint.safetensors")[1]["best"] == pytest.approx(sum(kept) / 5)
    assert 0 < sum(kept) < 5


def test_denoised_smoothing_is_selected_by_squared_error(tmp_path: Path) -> None:
    denoiser = dncnn(1, 3, 4)
    heard = listening(denoiser)
    images = pictures(60)
    fit(linear(), "DS", denoiser=denoiser, images=images, schedule=wrecked(), out=tmp_path)
    start = torch.stack([x for training, x in heard if not training][:2])
    error = (start - images.split(0.2, SEED)[1].floats()).square().sum((2, 3, 4)).mean()
    assert read_tensors(tmp_path / "checkpoint.safetensors")[1]["best"] == pytest.approx(-error.item(), rel=1e-5)

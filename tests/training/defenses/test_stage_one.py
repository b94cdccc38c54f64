"""Training against closed forms: first order is the oracle of zeroth order, counts are exact, stops change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from certibox.data import load_images
from certibox.errors import (
    CertiboxError,
    ConfigMismatch,
)
from certibox.estimators import RGE, Orthogonal
from certibox.networks import Autoencoder, fitting_autoencoder
from certibox.storage.tensors import module_digest, read_tensors, under
from certibox.training import defenses as training
from certibox.training.schedules import Phase, Schedule
from certibox.training.supervised import pretrain_autoencoder
from training_runs import BATCH, bottleneck, fit, last_weights, linear, pictures, rows


class Stop(Exception):
    pass


def stopping(after: int) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, text: str) -> None:
        if done == after:
            raise Stop

    return progress


def test_the_autoencoder_learns_and_is_selected_on_validation_images(tmp_path: Path) -> None:
    digits, start = load_images("digits", limit=100), fitting_autoencoder((1, 8, 8), 8, width=4)
    before = module_digest(start)
    schedule = Schedule((Phase(15, 3e-3),), 16)
    trained = pretrain_autoencoder(digits, start, schedule=schedule, seed=0, out=tmp_path)
    assert module_digest(start) == before
    held = digits.split(0.1, 0)[1].floats()

    def error(autoencoder: Autoencoder) -> float:
        with torch.inference_mode():
            return (autoencoder.eval()(held) - held).square().sum((1, 2, 3)).mean().item()

    assert error(trained) < 0.7 * error(start)
    assert error(trained) == pytest.approx(-max(row["validation"] for row in rows(tmp_path)), rel=1e-5)
    assert not any(parameter.requires_grad for parameter in trained.parameters())


def test_progress_tells_the_autoencoder_from_what_comes_after_it() -> None:
    told: list[tuple[int, int, str]] = []
    schedule = Schedule((Phase(1, 0.01),), BATCH)
    stages = {"autoencoder_schedule": schedule, "schedule": Schedule((Phase(2, 0.01),), BATCH)}
    fit(linear(), "ZO-AE-DS", **stages, progress=lambda *step: told.append(step))
    first = [(done, 2, "autoencoder, epoch 1/1") for done in (1, 2)]
    assert told == first + [(done, 4, f"epoch {(done + 1) // 2}/2") for done in (1, 2, 3, 4)]


@pytest.mark.parametrize("after", [1, 5, 6, 14])
def test_the_pre_training_of_an_autoencoder_resumes_exactly(after: int, tmp_path: Path) -> None:
    def pretrained(out: Path, **change: Any) -> str:
        schedule = Schedule((Phase(2, 0.01), Phase(1, 0.01, "sgd")), 4)
        settings: dict[str, Any] = {"augmentation": "flip", "schedule": schedule, "seed": 3, **change}
        own = bottleneck(normalised=True)
        return module_digest(pretrain_autoencoder(pictures(), own, out=out, **settings))

    plain = pretrained(tmp_path / "plain")
    with pytest.raises(Stop):
        pretrained(tmp_path / "out", progress=stopping(after))
    assert pretrained(tmp_path / "out") == plain
    assert rows(tmp_path / "out") == rows(tmp_path / "plain")
    with pytest.raises(ConfigMismatch, match="seed is 3 there and 4 here"):
        pretrained(tmp_path / "out", seed=4)


def test_an_autoencoder_that_is_not_given_is_pre_trained_without_queries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "STAGE1_STEPS", 6)
    box = linear()
    defense = fit(box, "ZO-AE-DS", autoencoder=None, estimator=RGE(2, 0.1), out=tmp_path)
    assert box.images == 20 + 16 * 3 + 2 * 4 * 2
    own = last_weights(tmp_path / "autoencoder")
    decoder = {name: value for name, value in own.items() if name.startswith("decoder.")}
    assert decoder
    selected = under("best", read_tensors(tmp_path / "autoencoder" / "checkpoint.safetensors")[0])
    after = defense.pipeline.state_dict()
    assert all(torch.equal(after[f"autoencoder.{name}"], selected[name]) for name in decoder)


def test_what_cannot_train_is_refused_before_an_autoencoder_is_pre_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(training, "pretrain_autoencoder")
    for method, change, message in (
        ("FO-AE-DS", {}, "gives none"),
        ("ZO-AE-DS", {"estimator": Orthogonal(9, 0.1)}, "9 directions in 8 dimensions"),  # half of the pixels
        ("ZO-AE-DS", {"denoiser": "dncm"}, "denoiser is 'dncm'"),
        ("ZO-AE-DS", {"validation": pictures(3, shape=(1, 8, 8))}, "validation images have shape"),
    ):
        with pytest.raises(CertiboxError, match=message):
            fit(linear(), method, autoencoder=None, **change)

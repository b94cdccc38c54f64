"""Training against closed forms: first order is the oracle of zeroth order, counts are exact, stops change nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from certibox.blackbox import as_blackbox
from certibox.errors import (
    CertiboxError,
    InvalidInput,
    NotDifferentiable,
)
from certibox.estimators import CGE, Orthogonal
from certibox.networks import fitting_autoencoder
from certibox.queries.client import QueryClient
from certibox.training.defenses import train
from certibox.training.schedules import Phase, Schedule
from doubles import LinearBox
from training_runs import BATCH, D_Z, EPOCH, MIXED, SIGMA, D, K, fit, linear, pictures

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("ZO-AE-DS", {"sigma": 0.0}, "sigma is 0"),
    ("ZO-AE-DS", {"sigma": math.nan}, "sigma is nan"),
    ("ZO-AE-DS", {"sigma": math.inf}, "sigma is inf"),
    ("ZO-AE-DS", {"scheme": "encoder"}, "scheme is 'encoder'; wanted one of denoiser, denoiser"),
    ("ZO-AE-DS", {"scheme": "denoiser+autoencoder"}, "ZO-AE-DS cannot train the decoder"),
    ("ZO-AE-DS", {"estimator": None}, "ZO-AE-DS got no estimator"),
    ("ZO-DS", {"estimator": None}, "ZO-DS got no estimator"),
    ("ZO-AE-DS", {"gamma": None}, r"ZO-AE-DS got no gamma; .* such as 1\.0"),
    ("FO-DS", {"gamma": None}, "FO-DS got no gamma"),
    ("ZO-AE-DS", {"gamma": -1.0}, "wanted a finite weight, at least 0"),
    ("ZO-AE-DS", {"gamma": math.nan}, "wanted a finite weight, at least 0"),
    ("ZO-AE-DS", {"denoise_weight": math.nan}, "wanted a finite weight, at least 0"),
    ("ZO-AE-DS", {"reconstruction_weight": math.inf}, "wanted a finite weight, at least 0"),
    ("RS", {"schedule": MIXED}, "RS has no denoiser, but the schedule has a phase with objective 'denoise'"),
    ("RS", {}, "RS got no classifier, and box linear holds no module"),
    ("ZO-AE-DS", {"augmentation": "blur"}, "augmentation is 'blur'; wanted one of none, crop-flip"),
    ("ZO-AE-DS", {"validation_votes": 0}, "validation_votes is 0"),
    ("ZO-AE-DS", {"targets": "firm"}, "targets is 'firm'; wanted one of hard, soft"),
    ("ZO-AE-DS", {"denoiser": "dncm"}, "denoiser is 'dncm'; wanted a module or one of dncnn, dncnn-wide, unet"),
    ("ZO-DS", {"denoiser": nn.Identity()}, "ZO-DS with scheme denoiser.encoder has nothing to train"),
    ("ZO-AE-DS", {"denoiser": nn.Identity(), "scheme": "denoiser"}, "ZO-AE-DS with scheme denoiser has nothing"),
    ("ZO-AE-DS", {"autoencoder": fitting_autoencoder((1, 8, 8), 4, 2)}, r"takes images \(1, 8, 8\), the data has"),
    ("ZO-AE-DS", {"estimator": Orthogonal(D_Z + 1, 0.1)}, "Orthogonal wants q = 7 directions in 6 dimensions"),
    ("ZO-DS", {"estimator": Orthogonal(D + 1, 0.1)}, "Orthogonal wants q = 17 directions in 16 dimensions"),
    ("ZO-DS", {"validation": 1.0}, r"share 1\.0 of 20 images leaves a part empty"),
    ("ZO-DS", {"validation": pictures(3, shape=(1, 8, 8))}, r"validation images have shape \(1, 8, 8\)"),
    ("ZO-DS", {"checkpoint_every": 0}, "checkpoint_every is 0"),
    ("ZO-DS", {"validation": 0.95}, "there is 1 image to train on"),
]


@pytest.mark.parametrize(("method", "change", "message"), REFUSED)
def test_bad_values_are_refused_in_one_line_and_without_queries(
    method: str, change: dict[str, Any], message: str
) -> None:
    box = LinearBox(torch.zeros(K, D))
    client = QueryClient(box)
    with pytest.raises(InvalidInput, match=message) as caught:
        fit(client, method, **change)
    assert "\n" not in str(caught.value)
    assert client.attempts == 0


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InvalidInput, match="method is 'XY'; wanted one of RS, DS, FO-DS, FO-AE-DS, ZO-DS, ZO-AE-DS"):
        train(QueryClient(linear()), pictures(), method="XY", sigma=SIGMA, schedule=EPOCH, seed=0)


def test_soft_targets_of_labels_are_refused_without_queries() -> None:
    box = linear("labels")
    with pytest.raises(InvalidInput, match="targets are soft but the box answers with labels"):
        fit(box, "ZO-DS", targets="soft")
    assert box.calls == 0


@pytest.mark.parametrize("method", ["RS", "FO-DS", "FO-AE-DS"])
def test_first_order_refuses_a_box_without_gradients(method: str) -> None:
    box = linear()
    with pytest.raises(NotDifferentiable, match="a first-order method needs gradients; box linear gives none"):
        fit(box, method)
    assert box.calls == 0


@pytest.mark.parametrize("method", ["ZO-DS", "ZO-AE-DS"])
def test_a_step_below_the_grid_of_the_box_is_refused_and_a_larger_one_may_follow(method: str, tmp_path: Path) -> None:
    def constant(x: np.ndarray) -> np.ndarray:
        return np.zeros((len(x), K), dtype=np.float32)

    client = QueryClient(as_blackbox(constant, "logits", levels=256))
    with pytest.raises(
        InvalidInput, match=r"mu = 0\.0001 is too small for a box with 256 grey levels: only .* raise mu"
    ):
        fit(client, method, estimator=CGE(1e-4), out=tmp_path)
    assert client.attempts == 0
    fit(client, method, estimator=CGE(1.0), out=tmp_path)  # as advised, in the same directory
    assert client.queries > 0


def test_a_diverging_loss_is_named(tmp_path: Path) -> None:
    schedule = Schedule((Phase(2, 1e30, "sgd"),), BATCH)
    with pytest.raises(CertiboxError, match="training diverged at step 1: the loss is not finite") as caught:
        fit(linear(), "DS", schedule=schedule, out=tmp_path)
    assert "\n" not in str(caught.value)

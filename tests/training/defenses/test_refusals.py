"""Training against closed forms: first order is the oracle of zeroth order, counts are exact, stops change nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from certibox.blackbox import as_blackbox
from certibox.errors import (
    BudgetExceeded,
    CertiboxError,
    InvalidInput,
    NotDifferentiable,
)
from certibox.estimators import CGE, RGE, Guided, Orthogonal, Subset
from certibox.networks import fitting_autoencoder
from certibox.queries.client import QueryClient
from certibox.training.defenses import train
from certibox.training.schedules import Phase, Schedule, one_cycle
from certibox.training.supervised import pretrain_autoencoder
from doubles import LinearBox
from training_runs import BATCH, D_Z, EPOCH, MIXED, SIGMA, D, K, bottleneck, fit, linear, pictures

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
    ("ZO-AE-DS", {"autoencoder": fitting_autoencoder((1, 4, 4), 17, 2)}, "d_z is 17, but an image has 16 numbers"),
    (
        "ZO-DS",
        {"sigma": 64.0},
        r"sigma is 64\.0, but no two images of shape .* apart than 4; .* 255",
    ),
    ("ZO-DS", {"sigma": 5e-324}, "sigma is 5e-324; wanted a standard deviation .* at least 1e-06"),
    ("ZO-DS", {"sigma": "0.25"}, "sigma is '0.25'; wanted a standard deviation"),
    ("ZO-DS", {"sigma": True}, "sigma is True"),
    ("ZO-DS", {"sigma": 10**400}, "sigma is a number of too many digits"),
    ("ZO-DS", {"seed": 0.5}, r"seed is 0\.5; wanted a whole number"),
    ("ZO-DS", {"seed": "0"}, "seed is '0'"),
    ("ZO-DS", {"seed": 2**70}, "seed is 1180591620717411303424"),
    ("ZO-DS", {"gamma": "1"}, "gamma is '1'"),
    ("ZO-DS", {"skip_dead": 1}, "skip_dead is 1; wanted True or False"),
    ("ZO-DS", {"validation_votes": 10**400}, "validation_votes is a number of too many digits; wanted at most"),
    ("ZO-DS", {"patience": 1.5}, r"patience is 1\.5; wanted a whole number"),
    ("ZO-DS", {"scheme": ["denoiser"]}, r"scheme is \['denoiser'\]; wanted one of"),
    ("ZO-DS", {"augmentation": {}}, "augmentation is {}; wanted one of"),
    ("ZO-DS", {"validation": "0.1"}, "validation is '0.1'; wanted images, or a share"),
    ("ZO-DS", {"validation": math.nan}, "share nan of 20 images leaves a part empty"),
    ("ZO-DS", {"schedule": Schedule((Phase(0, 0.1),), 4)}, "the schedule has 0 epochs, so nothing would train"),
    ("ZO-DS", {"images": pictures(2)}, "share 0.2 of 2 images leaves a part empty"),
    ("ZO-DS", {"images": pictures(1)}, "share 0.2 of 1 images leaves a part empty"),
    ("ZO-DS", {"images": pictures(1), "validation": pictures(1)}, "there is 1 image to train on"),
    ("ZO-DS", {"images": [1]}, "images is list; wanted certibox.Images"),
    ("ZO-DS", {"denoiser": 3}, "denoiser is 3; wanted the name of a denoiser, or a module"),
    ("ZO-AE-DS", {"autoencoder": "ae-48"}, "autoencoder is ae-48; wanted an Autoencoder"),
    ("ZO-AE-DS", {"autoencoder_schedule": 5}, "autoencoder_schedule is 5; wanted a Schedule"),
    ("ZO-DS", {"out": 5}, "out is 5; wanted a directory"),
    ("ZO-DS", {"fingerprint": "yes"}, "fingerprint is 'yes'; wanted True or False"),
    ("ZO-DS", {"device": "cuda:99"}, "device is 'cuda:99', which does not work here"),
    ("ZO-DS", {"denoiser": nn.Conv2d(1, 2, 1)}, r"the denoiser gave \(2, 2, 4, 4\) for images of shape \(2, 1, 4, 4\)"),
    ("ZO-DS", {"denoiser": nn.Conv2d(3, 3, 1)}, "the denoiser failed on images of shape"),
    ("RS", {"classifier": nn.Conv2d(1, 2, 1)}, r"the classifier gave \(2, 2, 4, 4\); wanted logits"),
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


def test_what_the_box_does_not_take_is_refused_before_stage_one() -> None:
    """Without an autoencoder one would be trained first, which takes minutes."""
    box = LinearBox(torch.zeros(K, D))
    heard: list[Any] = []
    for declared, message in (
        ({"image_shape": (3, 4, 4)}, r"images have shape \(1, 4, 4\); box linear takes \(3, 4, 4\)"),
        ({"mean": (0.5, 0.5, 0.5)}, "images have 1 channels; mean or std of box linear has 3"),
    ):
        box.spec = replace(LinearBox(torch.zeros(K, D)).spec, **declared)  # pyright: ignore[reportArgumentType]
        client = QueryClient(box)
        with pytest.raises(InvalidInput, match=message):
            fit(client, "ZO-AE-DS", autoencoder=None, progress=lambda *now: heard.append(now))
        assert client.attempts == 0
    box.spec = LinearBox(torch.zeros(K, D)).spec
    poor = QueryClient(box, budget=19)
    with pytest.raises(BudgetExceeded, match="20 queries wanted, 19 left"):
        fit(poor, "ZO-AE-DS", autoencoder=None, progress=lambda *now: heard.append(now))
    assert (poor.attempts, heard) == (0, [])
    with pytest.raises(BudgetExceeded):  # the targets are paid for, and then it ends
        fit(QueryClient(box, budget=20), "ZO-DS")


def test_a_box_that_is_not_metered_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"client is CountingBox; wanted certibox\.QueryClient\(box\)"):
        train(linear(), pictures(), method="DS", sigma=SIGMA, schedule=EPOCH, seed=0)  # pyright: ignore


NAMES = (one_cycle, Schedule, Phase, Guided, CGE, RGE, Subset, fitting_autoencoder, pretrain_autoencoder)
loose: Any = SimpleNamespace(**{item.__name__: item for item in NAMES})  # for calls that no type checker would let pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: loose.one_cycle("5"), "epochs is '5'; wanted a whole number of epochs"),
        (lambda: loose.one_cycle(10**400), "epochs is a number of too many digits; wanted at most 1,000,000"),
        (lambda: loose.one_cycle(2, denoise_epochs="1"), "denoise_epochs is '1'"),
        (lambda: loose.one_cycle(2, lr=math.inf), "lr is inf; wanted a learning rate above 0"),
        (lambda: loose.one_cycle(2, batch_size=2.0), r"batch_size is 2\.0; wanted a whole number, at least 2"),
        (lambda: loose.Schedule(5, 4), "phases is 5; wanted a tuple of Phase"),
        (lambda: loose.Schedule("full", 4), "phases is 'full'"),
        (lambda: loose.Phase(1, 0.1, weight_decay=-1), "weight_decay is -1"),
        (lambda: loose.Phase(1, 0.1, decay=math.nan), "decay is nan"),
        (lambda: loose.Guided(q="x"), "q is 'x'; wanted a whole number of correcting directions"),
        (lambda: loose.Guided(trust=None), "trust is None; wanted a number from 0 to 1"),
        (lambda: loose.Guided(surrogate=[]), r"surrogate is \[\]; wanted one of image, latent"),
        (lambda: loose.CGE(mu=None), "mu is None; wanted a positive step"),
        (lambda: loose.CGE(mu=[0.1]), r"mu is \[0\.1\]"),
        (lambda: loose.CGE(0.1, central="no"), "central is 'no'; wanted True or False"),
        (lambda: loose.RGE(q=0, mu=0.1), "q is 0; wanted a whole number of directions, at least 1"),
        (lambda: loose.RGE(q=True, mu=0.1), "q is True"),
        (lambda: loose.Subset(CGE(0.1), "half"), "share is 'half'"),
        (lambda: loose.Subset(CGE, 0.5), "estimator is <class"),
        (lambda: loose.fitting_autoencoder((1, 8, 8), d_z="4"), "d_z is '4'; wanted a whole number"),
        (lambda: loose.fitting_autoencoder(8, d_z=4), "image_shape is 8; give three"),
        (lambda: loose.fitting_autoencoder((1, 8, 8), 4, seed="a"), "seed is 'a'"),
        (lambda: loose.pretrain_autoencoder(pictures(), "ae", schedule=EPOCH, seed=0), "autoencoder is str"),
        (lambda: loose.pretrain_autoencoder([], bottleneck(), schedule=EPOCH, seed=0), "images is list"),
        (lambda: loose.pretrain_autoencoder(pictures(), bottleneck(), schedule=3, seed=0), "schedule is 3"),
        (lambda: loose.pretrain_autoencoder(pictures(), bottleneck(), schedule=EPOCH, seed=None), "seed is None"),
        (
            lambda: loose.pretrain_autoencoder(pictures(), bottleneck(), schedule=EPOCH, seed=0, device="cuda:99"),
            "device is 'cuda:99'",
        ),
    ],
)
def test_values_of_another_type_are_one_line(make: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_written_down_as_pythons_own(tmp_path: Path) -> None:
    """Settings go to a file as JSON, which knows nothing of numpy."""
    sigma, seed = np.float32(0.25), np.int64(7)
    schedule = loose.Schedule((loose.Phase(np.int64(1), np.float32(0.0625)),), np.int64(8))
    plain = Schedule((Phase(1, 0.0625),), 8)
    fit(
        linear(),
        "ZO-DS",
        schedule=schedule,
        sigma=sigma,
        seed=seed,
        estimator=loose.RGE(np.int64(2), np.float32(0.5)),
        out=tmp_path,
    )
    again = QueryClient(linear())
    fit(again, "ZO-DS", schedule=plain, sigma=0.25, seed=7, estimator=RGE(2, 0.5), out=tmp_path)
    assert again.queries == 0


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

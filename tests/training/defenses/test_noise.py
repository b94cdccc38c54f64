"""Training against closed forms: first order is the oracle of zeroth order, counts are exact, stops change nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from certibox.blackbox import as_blackbox
from certibox.certification.smoothing import SmoothedClassifier
from certibox.data import Images
from certibox.estimators import RGE
from certibox.training.schedules import Phase, Schedule
from certibox.training.supervised import pretrain_autoencoder
from training_runs import BATCH, SHAPE, D, K, Own, bottleneck, fit, grey, linear, listening, pictures


@pytest.mark.parametrize("sigma", [0.1, 0.6])
def test_noise_in_training_and_in_certification_is_the_same_at_the_model(sigma: float) -> None:
    """x + δ, δ ~ N(0, σ² I) in pixels on [0, 1], unclipped, wherever the denoiser is asked."""
    denoiser = Own()
    heard = listening(denoiser)
    schedule = Schedule((Phase(3, 0.01),), 50)
    defense = fit(linear(), "ZO-DS", denoiser=denoiser, images=grey(500), sigma=sigma, schedule=schedule)
    noise = {mode: torch.cat([x for training, x in heard if training is mode]) - 128 / 255 for mode in (True, False)}
    assert (len(noise[True]), len(noise[False])) == (3 * 400, 4 * 100 * 2)
    heard.clear()
    smoothed = SmoothedClassifier(defense.outputs, K, defense.sigma)
    smoothed.certify(grey(1).floats()[0], n0=100, n=1000, alpha=0.001, seed=0)
    assert not any(training for training, _ in heard)
    certification = torch.cat([x for _, x in heard]) - 128 / 255
    assert len(certification) == 1100
    for deltas in (noise[True], noise[False][:200], certification):
        draws = deltas.flatten().double()
        assert abs(float(draws.mean())) < 4 * sigma / math.sqrt(len(draws))
        assert abs(float(draws.std()) - sigma) < 4 * sigma / math.sqrt(2 * len(draws))
        assert scipy.stats.kstest(draws.numpy(), "norm", (0, sigma)).pvalue > 1e-3
    both = scipy.stats.ks_2samp(noise[True].flatten(), certification.flatten())
    assert both.pvalue > 1e-3  # pyright: ignore[reportAttributeAccessIssue]


def test_noise_is_fresh_at_each_step_and_fixed_for_validation() -> None:
    denoiser = Own()
    heard = listening(denoiser)
    fit(linear(), "ZO-DS", denoiser=denoiser, images=grey(20), schedule=Schedule((Phase(2, 0.01),), BATCH))
    steps = torch.cat([x for training, x in heard if training])
    assert len({x.numpy().tobytes() for x in steps}) == len(steps) == 32
    first, second, third = torch.stack([x for training, x in heard if not training]).split(2)  # two votes each
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert not torch.equal(first[0], first[1])


def test_directions_are_fresh_at_each_step() -> None:
    asked: list[np.ndarray] = []

    def noting(x: np.ndarray) -> np.ndarray:
        asked.append(x)
        return np.zeros((len(x), K), dtype=np.float32)

    fit(
        as_blackbox(noting, "logits", clip=False),
        "ZO-DS",
        estimator=RGE(1, 0.5),
        schedule=Schedule((Phase(2, 0.01),), BATCH),
    )
    steps = [x for x in asked if len(x) == BATCH]  # targets and votes come in batches of 16 and 4
    directions = np.concatenate([(steps[i + 1] - steps[i]) / 0.5 for i in range(0, 8, 2)]).reshape(32, D)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-4)
    overlaps = np.abs(directions @ directions.T)[~np.eye(32, dtype=bool)]
    assert overlaps.max() < 0.95


def test_augmentation_is_fresh_at_each_step() -> None:
    """One image, flipped or not: eight at a time, no two steps of seven agree."""
    image = torch.zeros((28, *SHAPE), dtype=torch.uint8)
    image[:, :, :, :2] = 255
    images, schedule = Images(image, None, "half white"), Schedule((Phase(2, 0.01),), BATCH)
    denoiser, own = Own(), bottleneck()
    heard, encoded = listening(denoiser), listening(own)
    fit(linear(), "DS", denoiser=denoiser, images=images, validation=grey(4), augmentation="flip", schedule=schedule)
    pretrain_autoencoder(images, own, validation=grey(4), augmentation="flip", schedule=schedule, seed=0)
    for found in (heard, encoded):
        flips = [tuple((x[:, 0, 0, 0] < 0.5).tolist()) for training, x in found if training and len(x) == BATCH]
        assert len(set(flips)) == len(flips) == 6


def test_a_step_learns_from_the_images_it_shows_and_never_from_validation_images() -> None:
    denoiser, images = Own(), pictures(23)
    heard = listening(denoiser)
    schedule = Schedule((Phase(3, 0.01),), 4)
    fit(linear(), "ZO-DS", denoiser=denoiser, images=images, sigma=1e-4, schedule=schedule)

    def recovered(x: Tensor) -> list[bytes]:
        return [image.numpy().tobytes() for image in (x * 255).round().to(torch.uint8)]

    shown = [image for training, x in heard if training for image in recovered(x)]
    held = [image for training, x in heard if not training for image in recovered(x)]
    everything = {image.numpy().tobytes() for image in images.images}
    assert len(shown) == 3 * 18
    assert len(held) == 4 * 5 * 2
    for epoch in range(3):
        assert len(set(shown[18 * epoch : 18 * epoch + 18])) == 18
    assert len(set(held)) == 5
    assert set(shown).isdisjoint(held)
    assert set(shown) | set(held) == everything


def test_given_validation_images_are_those_that_select() -> None:
    denoiser, validation = Own(), grey(6)
    heard = listening(denoiser)
    box = linear()
    fit(box, "ZO-DS", denoiser=denoiser, validation=validation, sigma=1e-4)
    held = torch.cat([x for training, x in heard if not training])
    assert len(held) == 2 * 6 * 2
    assert torch.equal((held * 255).round(), torch.full_like(held, 128.0))
    assert box.images == 26 + 20 * (D + 1) + 2 * 6 * 2  # all pictures are shown now

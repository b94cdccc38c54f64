"""The paper's claim in small, end to end: the bottleneck is what makes zeroth-order training affordable.

Images lie on 4 smooth patterns of 144 pixels. The box is linear and looks at two patterns: the first, whose sign is the
class, and, eight times as hard, a sixth that no image holds but noise does. A defense has to unlearn that. All of it
is affine, so the probability that a noisy image keeps its class has a closed form, and the tests sample no vote.
"""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import certibox as cb
from certibox.estimators import GradientEstimator
from doubles import CountingBox, LinearBox

SIDE, D_Z, SIGMA, FRAGILITY = 12, 6, 0.25, 8.0
D = SIDE * SIDE
IMAGES, HELD, VOTES, EPOCHS = 512, 51, 100, 4  # many votes: a tie between epochs would select the earlier one
SEEDS = (0, 1, 2)


class Affine(nn.Module):
    """A denoiser that starts as the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.eye(D)), nn.Parameter(torch.zeros(D))

    def forward(self, x: Tensor) -> Tensor:  # (b, c, h, w) -> (b, c, h, w)
        return (x.flatten(1) @ self.weight.T + self.bias).reshape(x.shape)


def patterns() -> Tensor:
    """The first oscillating patterns of the orthonormal cosine transform, (D_Z, D)."""
    places = (torch.arange(SIDE) + 0.5) * math.pi / SIDE
    waves = torch.cos(torch.arange(SIDE).unsqueeze(1) * places)
    waves = waves / waves.norm(dim=1, keepdim=True)
    return torch.stack(
        [torch.outer(waves[i], waves[j]).flatten() for i, j in ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (2, 2))]
    )


def box() -> LinearBox:
    weight = 4 * (patterns()[0] + FRAGILITY * patterns()[5])
    return LinearBox(torch.stack([weight, -weight]) / 2, torch.stack([-weight.sum(), weight.sum()]) / 4)


def images() -> tuple[cb.Images, Tensor]:
    """Images and the sign of each one's class."""
    generator = torch.Generator().manual_seed(0)
    amplitudes = 0.3 * torch.randn(IMAGES, 4, generator=generator)
    amplitudes[:, 0] = amplitudes[:, 0].sign() * (0.6 + 0.4 * torch.rand(IMAGES, generator=generator))
    pixels = 0.5 + amplitudes @ patterns()[:4]
    assert 0 <= pixels.min() <= pixels.max() <= 1
    stored = (255 * pixels).round().to(torch.uint8).reshape(IMAGES, 1, SIDE, SIDE)
    return cb.images_from_arrays(stored.numpy(), name="patterns"), amplitudes[:, 0].sign()


def autoencoder() -> cb.Autoencoder:
    """The amplitudes of the patterns, and the image that has them: it loses nothing that the box looks at."""
    encoder, decoder = nn.Linear(D, D_Z), nn.Linear(D_Z, D)
    encoder.weight.data, encoder.bias.data = patterns(), -patterns().sum(1) / 2
    decoder.weight.data, decoder.bias.data = patterns().T.clone(), torch.full((D,), 0.5)
    shape = (1, SIDE, SIDE)
    return cb.Autoencoder(nn.Sequential(nn.Flatten(), encoder), nn.Sequential(decoder, nn.Unflatten(1, shape)), shape)


def failure(pipeline: nn.Module) -> float:
    """Mean probability that noise changes the class: Φ(−margin / (σ ‖∇ margin‖)), exact for an affine pipeline."""
    shown, sign = images()
    x = shown.floats().requires_grad_(True)
    margin = sign * (box().differentiable(pipeline(x)) @ torch.tensor([1.0, -1.0]))
    (slope,) = torch.autograd.grad(margin.sum(), x)
    return torch.special.ndtr(-margin / (SIGMA * slope.flatten(1).norm(dim=1))).mean().item()


@cache
def trained(method: str, estimator: GradientEstimator | None = None, seed: int = 0) -> tuple[cb.Defense, int]:
    """A defense by the stability term alone, and the queries that its estimates took."""
    meter = CountingBox(box())
    defense = cb.train(
        cb.QueryClient(meter if estimator else box()),
        images()[0],
        method=method,
        sigma=SIGMA,
        schedule=cb.one_cycle(EPOCHS, 3e-3, 32),
        seed=seed,
        estimator=estimator,
        gamma=1.0,
        denoise_weight=0.0,
        scheme="denoiser",
        denoiser=Affine(),
        autoencoder=autoencoder() if "AE" in method else None,
        validation=HELD / IMAGES,
        validation_votes=VOTES,
    )
    validation = (EPOCHS + 1) * HELD * VOTES  # of the start, and of every epoch
    return defense, meter.images - IMAGES - validation


def weight(method: str, estimator: GradientEstimator | None = None) -> Tensor:
    denoiser = trained(method, estimator)[0].pipeline.denoiser
    assert isinstance(denoiser, Affine)
    return denoiser.weight.detach()


def failures(method: str, estimator: GradientEstimator | None = None, seed: int = 0) -> float:
    return failure(trained(method, estimator, seed)[0].pipeline)


CGE, RGE = cb.CGE(mu=0.01, central=True), cb.RGE(q=D_Z, mu=0.01, central=True)  # at z, equally many queries


def test_the_bare_box_fails_under_noise_and_first_order_training_defends_it() -> None:
    assert failure(nn.Identity()) > 0.3
    assert failures("FO-DS") < 0.01


def test_a_bottleneck_that_holds_all_the_box_looks_at_costs_first_order_training_nothing() -> None:
    torch.testing.assert_close(weight("FO-AE-DS"), weight("FO-DS"), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("method", "first_order"), [("ZO-AE-DS", "FO-AE-DS"), ("ZO-DS", "FO-DS")])
def test_training_on_coordinate_wise_queries_is_first_order_training(method: str, first_order: str) -> None:
    """Same seed, same noise, same batches: what is left is rounding in a float32 difference, which Adam carries on."""
    moved = (weight(first_order) - torch.eye(D)).norm()
    assert (weight(method, CGE) - weight(first_order)).norm() < 0.02 * moved
    assert failures(method, CGE) == pytest.approx(failures(first_order), rel=0.01)


@pytest.mark.parametrize("seed", SEEDS)
def test_at_equal_queries_the_bottleneck_beats_pixels_whatever_the_directions(seed: int) -> None:
    contest = (("ZO-AE-DS", CGE), ("ZO-AE-DS", RGE), ("ZO-DS", RGE))
    queries = {trained(method, estimator, seed)[1] for method, estimator in contest}
    assert queries == {EPOCHS * (IMAGES - HELD) * 2 * D_Z}
    coordinates, directions, pixels = (failures(method, estimator, seed) for method, estimator in contest)
    assert 2 * max(coordinates, directions) < pixels


def test_pixels_reach_the_same_defense_for_as_many_times_the_queries_as_they_are_more() -> None:
    assert failures("ZO-DS", CGE) == pytest.approx(failures("ZO-AE-DS", CGE), rel=0.01)
    assert trained("ZO-DS", CGE)[1] * D_Z == trained("ZO-AE-DS", CGE)[1] * D

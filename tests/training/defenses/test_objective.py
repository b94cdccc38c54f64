"""Training against closed forms: first order is the oracle of zeroth order, counts are exact, stops change nothing."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certibox.blackbox import TorchBox
from certibox.data import Images
from certibox.errors import (
    BudgetExceeded,
    InvalidInput,
)
from certibox.queries.client import QueryClient
from certibox.storage.tensors import module_digest
from certibox.training.defenses import METHODS
from certibox.training.schedules import Phase, Schedule
from training_runs import (
    BATCH,
    SHAPE,
    SIGMA,
    Own,
    bottleneck,
    fit,
    grey,
    last_weights,
    linear,
    listening,
    pictures,
    rows,
    smooth_model,
    start_of,
)


@pytest.mark.parametrize("method", ["FO-AE-DS", "ZO-AE-DS"])
@pytest.mark.parametrize("scheme", ["denoiser", "denoiser+encoder", "denoiser+autoencoder"])
@pytest.mark.parametrize("normalised", [False, True], ids=["plain", "batchnorm"])
def test_a_scheme_moves_its_parts_and_freezes_the_rest(
    scheme: str, method: str, normalised: bool, tmp_path: Path
) -> None:
    if (method, scheme) == ("ZO-AE-DS", "denoiser+autoencoder"):
        with pytest.raises(InvalidInput, match="ZO-AE-DS cannot train the decoder: it is part of the black box"):
            fit(linear(), method, scheme=scheme)
        return
    own = bottleneck(normalised=normalised)
    with torch.no_grad():
        for module in own.modules():
            if isinstance(module, nn.BatchNorm2d):  # anything but what a fresh one would compute
                assert module.running_mean is not None
                assert module.running_var is not None
                module.weight.fill_(0.5)
                module.running_mean.fill_(0.3)
                module.running_var.fill_(2.0)
    start = {f"autoencoder.{name}": value.clone() for name, value in own.state_dict().items()} | start_of("DS", False)
    schedule = Schedule((Phase(2, 0.01, "sgd", weight_decay=0.1),), BATCH)
    fit(TorchBox(smooth_model(), "logits"), method, scheme=scheme, autoencoder=own, schedule=schedule, out=tmp_path)
    moving = {
        "denoiser": ("denoiser.",),
        "denoiser+encoder": ("denoiser.", "autoencoder.encoder."),
        "denoiser+autoencoder": ("denoiser.", "autoencoder."),
    }[scheme]
    after = last_weights(tmp_path)
    assert after.keys() == start.keys()
    for name, value in after.items():
        assert torch.equal(value, start[name]) is not name.startswith(moving), name


@pytest.mark.parametrize("method", list(METHODS))
def test_what_the_caller_brings_is_left_as_it_was(method: str) -> None:
    model, denoiser, own, classifier = smooth_model(), Own(), bottleneck(), smooth_model()
    model[1].weight.requires_grad_(False)  # a mixture, to be restored as it was
    modules = (model, denoiser, own, classifier)
    before = [copy.deepcopy(module) for module in modules]
    modes = [[part.training for part in module.modules()] for module in modules[1:]]
    state = torch.random.get_rng_state()
    fit(
        TorchBox(model, "logits"),
        method,
        denoiser=denoiser,
        autoencoder=own if METHODS[method].bottleneck else None,
        classifier=classifier if method == "RS" else None,
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [[part.training for part in module.modules()] for module in modules[1:]] == modes
    for module, old in zip(modules, before, strict=True):
        assert module_digest(module) == module_digest(old)
        for parameter, was in zip(module.parameters(), old.parameters(), strict=True):
            assert parameter.requires_grad is was.requires_grad
            assert parameter.grad is None


def test_a_failure_restores_the_box_too() -> None:
    model = smooth_model()
    with pytest.raises(BudgetExceeded):
        fit(QueryClient(TorchBox(model, "logits"), budget=3), "FO-DS")
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("method", list(METHODS))
def test_answers_do_not_depend_on_their_batch(method: str) -> None:
    own = bottleneck(True) if METHODS[method].bottleneck else None
    classifier = smooth_model() if method == "RS" else None
    x, box = pictures().floats(), TorchBox(smooth_model(True), "logits")
    defense = fit(box, method, denoiser=Own(True), autoencoder=own, classifier=classifier)
    defense.pipeline.train()  # as a careless caller might leave it
    whole, single = defense.outputs(x), torch.cat([defense.outputs(image[None]) for image in x])
    torch.testing.assert_close(whole, single, rtol=1e-5, atol=1e-6)
    assert not any(module.training for module in defense.pipeline.modules())
    assert not any(parameter.requires_grad for parameter in defense.pipeline.parameters())


class Affine(nn.Module):
    """a x + b, pixel by pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(0.25))

    def forward(self, x: Tensor) -> Tensor:
        return self.a * x + self.b


@pytest.mark.parametrize(
    ("denoise_weight", "gamma", "reconstruction_weight"),
    [(1.0, 1.0, 0.0), (1.0, 2.5, 0.0), (0.0, 1.0, 0.0), (0.3, 0.0, 2.0), (0.0, 0.0, 1.0), (0.5, 0.25, 4.0)],
)
def test_the_objective_is_the_weighted_sum_of_its_terms(
    denoise_weight: float, gamma: float, reconstruction_weight: float, tmp_path: Path
) -> None:
    """A step of SGD on w E‖D(y) − x‖² + γ E CE(f(D'(y)), f(x)) + λ E‖D'(y) − x‖², by hand, with y = x + δ as heard."""
    denoiser, own, model, lr = Affine(), bottleneck(), smooth_model(), 0.01
    heard = listening(denoiser)
    fit(
        TorchBox(model, "logits"),
        "FO-AE-DS",
        images=grey(20),
        denoiser=denoiser,
        autoencoder=own,
        denoise_weight=denoise_weight,
        gamma=gamma,
        reconstruction_weight=reconstruction_weight,
        schedule=Schedule((Phase(1, lr, "sgd"),), 16),
        out=tmp_path,
    )
    (noisy,) = [x for training, x in heard if training]
    x = torch.full_like(noisy, 128 / 255)
    denoised = denoiser(noisy)
    decoded = own(denoised)
    target = model(x).argmax(1)
    terms = {
        "denoise": (denoised - x).square().sum() / 16,
        "stability": F.cross_entropy(model(decoded), target),
        "reconstruction": (decoded - x).square().sum() / 16,
    }
    loss = denoise_weight * terms["denoise"] + gamma * terms["stability"]
    loss = loss + reconstruction_weight * terms["reconstruction"]
    (row,) = rows(tmp_path)
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, value in terms.items():
        if name != "reconstruction" or reconstruction_weight:
            assert row[name] == pytest.approx(value.item(), rel=1e-5)
    trained = {f"denoiser.{name}": parameter for name, parameter in denoiser.named_parameters()}
    trained |= {f"autoencoder.encoder.{name}": parameter for name, parameter in own.encoder.named_parameters()}
    gradients = torch.autograd.grad(loss, [*trained.values()], materialize_grads=True)
    after = last_weights(tmp_path)
    for (name, parameter), gradient in zip(trained.items(), gradients, strict=True):
        torch.testing.assert_close(after[name], parameter.detach() - lr * gradient, rtol=1e-4, atol=1e-6)


def test_a_denoising_phase_knows_only_the_first_term(tmp_path: Path) -> None:
    phases = (Phase(2, 0.01, objective="denoise"),)
    fit(linear(), "ZO-AE-DS", schedule=Schedule(phases, BATCH), out=tmp_path / "zo", gamma=3.0, denoise_weight=0.5)
    fit(linear(), "DS", schedule=Schedule((Phase(2, 0.01),), BATCH), out=tmp_path / "ds")
    trained, plain = last_weights(tmp_path / "zo"), last_weights(tmp_path / "ds")
    assert all(torch.equal(trained[name], value) for name, value in plain.items())
    assert all(row["loss"] == row["denoise"] and "stability" not in row for row in rows(tmp_path / "zo"))


@pytest.mark.parametrize("labelled", [True, False])
def test_randomized_smoothing_is_cross_entropy_under_noise(labelled: bool, tmp_path: Path) -> None:
    model, lr, images = smooth_model(), 0.1, grey(20)
    images = Images(images.images, torch.ones(20, dtype=torch.int64) if labelled else None, "grey")
    classifier = copy.deepcopy(model)
    heard = listening(classifier)
    schedule = Schedule((Phase(1, lr, "sgd"),), 16)
    fit(
        TorchBox(model, "logits", mean=(0.5,), std=(0.25,)),
        "RS",
        classifier=classifier,
        images=images,
        schedule=schedule,
        out=tmp_path,
        gamma=None,
    )
    (prepared,) = [x for training, x in heard if training]
    clean = (torch.full((16, *SHAPE), 128 / 255) - 0.5) / 0.25
    target = torch.ones(16, dtype=torch.int64) if labelled else model(clean).argmax(1)
    loss = F.cross_entropy(model(prepared), target)
    gradients = torch.autograd.grad(loss, [*model.parameters()])
    after = last_weights(tmp_path)
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(
            after[f"classifier.{name}"], parameter.detach() - lr * gradient, rtol=1e-4, atol=1e-6
        )
    noise = (prepared * 0.25 + 0.5 - 128 / 255).flatten().numpy()
    assert scipy.stats.kstest(noise, "norm", (0, SIGMA)).pvalue > 1e-3

"""Training against closed forms: first order is the oracle of zeroth order, counts are exact, stops change nothing."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certibox import checkpoints, query_cost, training
from certibox.blackbox import BlackBox, BoxSpec, TorchBox, as_blackbox
from certibox.data import Images, load_images
from certibox.errors import (
    BoxFailed,
    BudgetExceeded,
    CertiboxError,
    ConfigMismatch,
    InvalidInput,
    NotDifferentiable,
    UnreadableFile,
)
from certibox.estimators import CGE, RGE, GradientEstimator, Guided, Orthogonal, Subset
from certibox.networks import Autoencoder, dncnn, fitting_autoencoder
from certibox.pipeline import RobustPipeline
from certibox.queries.client import QueryClient
from certibox.saved import Defense, load_defense
from certibox.schedules import Phase, Schedule
from certibox.smoothing import SmoothedClassifier
from certibox.supervised import pretrain_autoencoder
from certibox.training import METHODS, train
from doubles import CountingBox, LinearBox

SHAPE, D, D_Z, K = (1, 4, 4), 16, 6, 3
SIGMA, SEED, BATCH = 0.25, 7, 8
EPOCH = Schedule((Phase(1, 0.01),), BATCH)


def pictures(count: int = 20, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % K, "random")


def grey(count: int, value: int = 128) -> Images:
    return Images(torch.full((count, *SHAPE), value, dtype=torch.uint8), torch.arange(count) % K, "grey")


def filled(module: nn.Module, seed: int, scale: float = 0.3) -> Any:
    """The module with normal weights of its own generator."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module


class Own(nn.Module):
    """A stranger's denoiser, x - net(x), computing in the precision of its weights."""

    def __init__(self, double: bool = False) -> None:
        super().__init__()
        layers = (nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))
        self.net = filled(nn.Sequential(*layers), 1).to(torch.float64 if double else torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.net[0].weight.dtype)
        return x - self.net(x)


def bottleneck(double: bool = False, normalised: bool = False) -> Autoencoder:
    """Smooth but for the encoder's last ReLU, so that differences have no kink to cross."""
    norms = [nn.BatchNorm2d(D_Z)] if normalised else []
    encoder = filled(nn.Sequential(nn.Conv2d(1, D_Z, 4), *norms, nn.ReLU()), 2)
    decoder = filled(nn.Sequential(nn.ConvTranspose2d(D_Z, 1, 4), *(nn.BatchNorm2d(1) for _ in norms), nn.Sigmoid()), 3)
    dtype = torch.float64 if double else torch.float32
    return Autoencoder(encoder.to(dtype), decoder.to(dtype), SHAPE)


def smooth_model(double: bool = False, outputs: str = "logits") -> Any:
    layers = [nn.Flatten(), nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, K)]
    layers += [nn.Softmax(1)] if outputs == "probabilities" else []
    return filled(nn.Sequential(*layers), 4, 0.5).to(torch.float64 if double else torch.float32)


def linear(outputs: str = "logits") -> CountingBox:
    return CountingBox(LinearBox(torch.randn(K, D, generator=torch.Generator().manual_seed(5)), outputs=outputs))


def fit(box: BlackBox | QueryClient, method: str, **change: Any) -> Defense:
    """`train` with the settings of this file, up to `change`."""
    client = box if isinstance(box, QueryClient) else QueryClient(box)
    settings: dict[str, Any] = {"sigma": SIGMA, "schedule": EPOCH, "seed": SEED, "gamma": 0.7, "validation": 0.2}
    settings |= {"estimator": CGE(0.05) if METHODS[method].order == 0 else None, "validation_votes": 2}
    if "denoiser" not in change:
        settings["denoiser"] = Own()
    if "autoencoder" not in change and METHODS[method].bottleneck:
        settings["autoencoder"] = bottleneck()
    return train(client, change.pop("images", None) or pictures(), method=method, **(settings | change))


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rows.jsonl").read_text(encoding="utf-8").splitlines()]


def last_weights(out: Path) -> dict[str, Tensor]:
    """The weights at the end of training, selected or not."""
    return checkpoints.under("module", checkpoints.read(out / "checkpoint.safetensors")[0])


def weights(defense: Defense) -> str:
    return checkpoints.module_digest(defense.pipeline)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Between two sets of parameters, leaving out statistics."""
    names = [name for name in a if "running" not in name and "tracked" not in name]
    return math.sqrt(sum(float((a[name] - b[name]).square().sum()) for name in names))


# --- first order is the oracle of zeroth order ------------------------------------------------------------------------


def one_step(box: BlackBox, method: str, out: Path, double: bool, optimizer: str, **change: Any) -> Defense:
    """One step over all the images shown, with every term in the objective."""
    schedule = Schedule((Phase(1, 0.05, optimizer),), 16)  # pyright: ignore[reportArgumentType]
    own = bottleneck(double) if METHODS[method].bottleneck else None
    weighted = {"denoise_weight": 0.02, "reconstruction_weight": 0.03, "gamma": 0.9}
    settings = {"denoiser": Own(double), "autoencoder": own, "schedule": schedule, "out": out}
    return fit(box, method, **(weighted | settings | change))


def start_of(method: str, double: bool) -> dict[str, Tensor]:
    start = {f"denoiser.{name}": value for name, value in Own(double).state_dict().items()}
    if METHODS[method].bottleneck:
        start |= {f"autoencoder.{name}": value for name, value in bottleneck(double).state_dict().items()}
    return start


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("skip_dead", [True, False], ids=["live", "all"])
@pytest.mark.parametrize(
    ("outputs", "targets"), [("logits", "hard"), ("logits", "soft"), ("probabilities", "soft"), ("values", "hard")]
)
def test_a_step_with_the_autoencoder_is_that_of_first_order(
    outputs: str, targets: str, skip_dead: bool, optimizer: str, tmp_path: Path
) -> None:
    box = TorchBox(smooth_model(True, outputs), outputs)
    one_step(box, "FO-AE-DS", tmp_path / "fo", True, optimizer, targets=targets)
    estimator = CGE(1e-5, central=True)
    settings = {"estimator": estimator, "skip_dead": skip_dead, "targets": targets}
    one_step(box, "ZO-AE-DS", tmp_path / "zo", True, optimizer, **settings)
    first, zeroth, start = last_weights(tmp_path / "fo"), last_weights(tmp_path / "zo"), start_of("FO-AE-DS", True)
    assert distance(first, start) > 1e-3
    assert distance(zeroth, first) < 1e-6 * distance(first, start)
    (a,), (b,) = rows(tmp_path / "fo"), rows(tmp_path / "zo")
    for term in ("denoise", "reconstruction"):
        assert b[term] == a[term]
    if not skip_dead:  # the mean over the differences' points; with it, the mean of the live ones
        assert b["stability"] == pytest.approx(a["stability"], rel=1e-8)
    assert b["validation"] == pytest.approx(a["validation"], rel=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("estimator", [CGE(1e-5, central=True), Orthogonal(D, 1e-5, central=True)])
def test_a_step_in_pixel_space_is_that_of_first_order(
    estimator: GradientEstimator, optimizer: str, tmp_path: Path
) -> None:
    box = TorchBox(smooth_model(True), "logits")
    without = {"reconstruction_weight": 0.0}
    one_step(box, "FO-DS", tmp_path / "fo", True, optimizer, **without)
    one_step(box, "ZO-DS", tmp_path / "zo", True, optimizer, estimator=estimator, **without)
    first, zeroth, start = last_weights(tmp_path / "fo"), last_weights(tmp_path / "zo"), start_of("FO-DS", True)
    assert distance(zeroth, first) < 1e-6 * distance(first, start)


@pytest.mark.parametrize("method", ["DS", "AE-DS"])
def test_a_step_in_single_precision_is_nearly_that_of_first_order(method: str, tmp_path: Path) -> None:
    box = TorchBox(smooth_model(), "logits")
    one_step(box, f"FO-{method}", tmp_path / "fo", False, "sgd")
    one_step(box, f"ZO-{method}", tmp_path / "zo", False, "sgd", estimator=CGE(1e-2, central=True))
    first, zeroth, start = (
        last_weights(tmp_path / "fo"),
        last_weights(tmp_path / "zo"),
        start_of(f"FO-{method}", False),
    )
    assert distance(zeroth, first) < 1e-3 * distance(first, start)


def test_without_the_estimate_the_steps_differ(tmp_path: Path) -> None:
    """The oracle can fail: gamma moves the weights by far more than the tolerances above."""
    box = TorchBox(smooth_model(True), "logits")
    one_step(box, "FO-AE-DS", tmp_path / "with", True, "sgd")
    one_step(box, "FO-AE-DS", tmp_path / "without", True, "sgd", gamma=0.0)
    start, stepped = start_of("FO-AE-DS", True), last_weights(tmp_path / "with")
    assert distance(last_weights(tmp_path / "without"), stepped) > 0.1 * distance(stepped, start)


@pytest.mark.parametrize("central", [False, True])
def test_live_coordinates_give_the_same_training_for_fewer_queries(central: bool, tmp_path: Path) -> None:
    """Up to the rounding of sums in another order; each live coordinate is paid for, and none that is dead."""
    own, alive = bottleneck(True), []
    own.encoder.register_forward_hook(
        lambda module, _, z: alive.append(int((z > 0).sum())) if module.training else None
    )
    per_point, per_image = (2, 0) if central else (1, 1)
    schedule, spent = Schedule((Phase(3, 0.01),), BATCH), {}
    for skip_dead in (True, False):
        alive.clear()
        defense = fit(
            TorchBox(smooth_model(True), "logits"),
            "ZO-AE-DS",
            estimator=CGE(1e-4, central),
            skip_dead=skip_dead,
            autoencoder=own,
            denoiser=Own(True),
            schedule=schedule,
            out=tmp_path / str(skip_dead),
        )
        spent[skip_dead] = defense.client.queries - 20 - 4 * 4 * 2 - 3 * 16 * per_image
        assert spent[skip_dead] == per_point * (sum(alive) if skip_dead else 3 * 16 * D_Z)
    assert 0 < spent[True] < 0.9 * spent[False]
    a, b = last_weights(tmp_path / "True"), last_weights(tmp_path / "False")
    assert distance(a, b) < 1e-9 * distance(a, start_of("ZO-AE-DS", True))
    assert sum(row["live"] for row in rows(tmp_path / "True")) * 16 == pytest.approx(sum(alive))
    assert all("live" not in row for row in rows(tmp_path / "False"))


# --- queries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ZO-DS", "ZO-AE-DS"])
@pytest.mark.parametrize(
    ("name", "estimator"),
    [
        ("cge", CGE(0.05)),
        ("cge", CGE(0.05, central=True)),
        ("rge", RGE(5, 0.05)),
        ("rge", RGE(5, 0.05, central=True)),
        ("orthogonal", Orthogonal(4, 0.05)),
        ("orthogonal", Orthogonal(4, 0.05, central=True)),
    ],
)
def test_the_spending_is_the_plan(name: str, estimator: Any, method: str) -> None:
    box, epochs, votes, d = linear(), 2, 3, D_Z if method == "ZO-AE-DS" else D
    defense = fit(
        box,
        method,
        estimator=estimator,
        schedule=Schedule((Phase(1, 0.01, objective="denoise"), Phase(epochs, 0.01)), BATCH),
        validation_votes=votes,
        skip_dead=False,
    )
    plan = query_cost.QueryCost(
        method=method,  # pyright: ignore[reportArgumentType]
        train_images=20,
        epochs=epochs,
        validation=0.2,
        validation_votes=votes,
        d_z=d,
        estimator=name,  # pyright: ignore[reportArgumentType]
        q=getattr(estimator, "q", None),
        mu=0.05,
        central=estimator.central,
    )
    per_image = {"cge": d, "rge": 5, "orthogonal": 4}[name]
    per_image = 2 * per_image if estimator.central else per_image + 1
    expected = 20 + epochs * 16 * per_image + (epochs + 1) * 4 * votes
    assert box.images == defense.client.queries == query_cost.plan(plan).total == expected
    assert defense.client.spent == {f"train {method} ({type(estimator).__name__})": expected}
    assert defense.client.white_passes == 0


def test_denoised_smoothing_never_asks() -> None:
    def never(x: np.ndarray) -> np.ndarray:
        raise AssertionError("asked")

    defense = fit(as_blackbox(never, "logits", num_classes=K), "DS", gamma=None)
    assert defense.client.attempts == defense.client.white_passes == 0
    assert defense.num_classes == K


@pytest.mark.parametrize("method", ["FO-DS", "FO-AE-DS"])
def test_first_order_pays_for_targets_alone(method: str) -> None:
    defense = fit(TorchBox(smooth_model(), "logits"), method, schedule=Schedule((Phase(3, 0.01),), BATCH))
    assert defense.client.spent == {f"train {method}": 20}
    assert defense.client.queries == defense.client.attempts == 20
    assert defense.client.white_passes == 3 * 16 + 4 * 4 * 2
    assert defense.num_classes == K


def test_randomized_smoothing_learns_from_labels_and_asks_nothing() -> None:
    client = QueryClient(TorchBox(smooth_model(), "logits"), budget=0)
    defense = fit(client, "RS", gamma=None, images=pictures().select([0, 1, 3, 4, 6, 7, 9, 10]))  # labels 0 and 1 only
    assert client.attempts == client.white_passes == 0
    assert defense.num_classes == K  # as the network answers, not as the labels happen to be
    assert defense.outputs(pictures().floats()).shape == (20, K)
    assert client.attempts == 0


def test_randomized_smoothing_without_labels_learns_from_the_box() -> None:
    unlabelled = Images(pictures().images, None, "unlabelled")
    defense = fit(TorchBox(smooth_model(), "logits"), "RS", images=unlabelled)
    assert defense.client.queries == 20


@pytest.mark.parametrize("augmentation", ["none", "crop-flip", "flips"])
@pytest.mark.parametrize("client_batch", [3, 256])
def test_targets_are_asked_once_about_the_clean_images(augmentation: str, client_batch: int) -> None:
    seen: list[np.ndarray] = []

    def noting(x: np.ndarray) -> np.ndarray:
        seen.extend(x)
        return np.zeros((len(x), K), dtype=np.float32)

    client, images = QueryClient(as_blackbox(noting, "logits"), batch_size=client_batch), pictures()
    fit(client, "ZO-AE-DS", augmentation=augmentation, schedule=Schedule((Phase(2, 0.01),), BATCH))
    clean = {image.numpy().tobytes() for image in images.floats()}
    assert sorted(x.tobytes() for x in seen[:20]) == sorted(clean)
    assert not any(x.tobytes() in clean for x in seen[20:])


@pytest.mark.parametrize(
    ("outputs", "targets", "classes"),
    [("labels", "hard", K), ("values", "hard", None), ("probabilities", "hard", K), ("probabilities", "soft", K)],
)
@pytest.mark.parametrize("method", ["ZO-DS", "ZO-AE-DS"])
def test_a_numpy_box_of_any_kind_trains_end_to_end(
    method: str, outputs: str, targets: str, classes: int | None, tmp_path: Path
) -> None:
    reference = linear(outputs).box

    def answer(x: np.ndarray) -> np.ndarray:
        return reference(torch.from_numpy(x)).numpy()

    box = CountingBox(as_blackbox(answer, outputs, num_classes=classes))
    defense = fit(box, method, estimator=RGE(4, 0.5), targets=targets, skip_dead=False, out=tmp_path)
    (row,) = rows(tmp_path)
    assert box.images == defense.client.queries == row["queries"] == 20 + 16 * 5 + 2 * 4 * 2
    assert defense.num_classes == classes
    assert row["loss"] == pytest.approx(row["denoise"] + 0.7 * row["stability"], rel=1e-5)
    if outputs == "labels":  # 5 answers to each of 8 images, right or wrong
        assert (row["stability"] * 2 * 40) == pytest.approx(round(row["stability"] * 2 * 40), abs=1e-3)
        assert 0 <= row["stability"] <= 1
    if outputs == "values":
        assert row["validation"] < 0  # minus a squared error
    else:
        assert row["validation"] * 8 == round(row["validation"] * 8)
    assert torch.equal(defense.outputs(pictures().floats()), reference(defense.robustify(pictures().floats())))


@pytest.mark.parametrize("method", ["ZO-DS", "ZO-AE-DS"])
def test_a_box_that_always_answers_the_same_teaches_nothing(method: str, tmp_path: Path) -> None:
    """Its differences are exactly zero, so what is left is DS, bit for bit."""
    box = as_blackbox(lambda x: np.zeros(len(x), dtype=np.int64), "labels", num_classes=K)
    fit(box, method, estimator=RGE(3, 0.1), out=tmp_path / method)
    fit(box, "DS", out=tmp_path / "DS")
    trained, plain = last_weights(tmp_path / method), last_weights(tmp_path / "DS")
    assert distance(plain, start_of("DS", False)) > 0
    for name, value in plain.items():
        assert torch.equal(trained[name], value)
    for name in trained.keys() - plain.keys():  # the autoencoder
        assert torch.equal(trained[name], bottleneck().state_dict()[name.removeprefix("autoencoder.")])
    (row,) = rows(tmp_path / method)
    assert (row["stability"], row["validation"]) == (0.0, 1.0)


# --- noise ------------------------------------------------------------------------------------------------------------


def listening(module: nn.Module) -> list[tuple[bool, Tensor]]:
    """(in training mode, input) of every later call of a module or of its copies."""
    heard: list[tuple[bool, Tensor]] = []
    module.register_forward_pre_hook(lambda module, inputs: heard.append((module.training, inputs[0].detach().clone())))
    return heard


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

    fit(as_blackbox(noting, "logits"), "ZO-DS", estimator=RGE(1, 0.5), schedule=Schedule((Phase(2, 0.01),), BATCH))
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


# --- what trains, and what stays as it was ----------------------------------------------------------------------------


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
        assert checkpoints.module_digest(module) == checkpoints.module_digest(old)
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


# --- the objective ----------------------------------------------------------------------------------------------------


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


# --- selection --------------------------------------------------------------------------------------------------------


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
    best = checkpoints.read(tmp_path / "checkpoint.safetensors")[1]
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
    facts = checkpoints.read(tmp_path / "went on" / "checkpoint.safetensors")[1]
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
    assert checkpoints.read(tmp_path / "checkpoint.safetensors")[1]["best"] == pytest.approx(sum(kept) / 5)
    assert 0 < sum(kept) < 5


def test_denoised_smoothing_is_selected_by_squared_error(tmp_path: Path) -> None:
    denoiser = dncnn(1, 3, 4)
    heard = listening(denoiser)
    images = pictures(60)
    fit(linear(), "DS", denoiser=denoiser, images=images, schedule=wrecked(), out=tmp_path)
    start = torch.stack([x for training, x in heard if not training][:2])
    error = (start - images.split(0.2, SEED)[1].floats()).square().sum((2, 3, 4)).mean()
    assert checkpoints.read(tmp_path / "checkpoint.safetensors")[1]["best"] == pytest.approx(-error.item(), rel=1e-5)


# --- stops and resumption ---------------------------------------------------------------------------------------------

MIXED = Schedule((Phase(1, 0.01, objective="denoise"), Phase(1, 0.01), Phase(1, 0.01, "sgd")), BATCH)
RUNS: dict[str, dict[str, Any]] = {
    "ZO-AE-DS": {"estimator": RGE(3, 0.05), "augmentation": "crop-flip"},
    "ZO-DS": {"estimator": Orthogonal(4, 0.05, central=True), "reconstruction_weight": 0.1},
    "FO-AE-DS": {"targets": "soft"},
}


class Failing:
    """Another box whose call number `at` raises, asked for an answer or for a gradient."""

    def __init__(self, box: BlackBox, at: int | None = None) -> None:
        self.box, self.spec, self.at, self.calls = box, box.spec, at, 0

    def tick(self) -> None:
        self.calls += 1
        if self.calls - 1 == self.at:
            raise ConnectionError("the line is dead")

    def __call__(self, x: Tensor) -> Tensor:
        self.tick()
        return self.box(x)

    def differentiable(self, x: Tensor) -> Tensor:
        self.tick()
        return self.box.differentiable(x)  # pyright: ignore[reportAttributeAccessIssue]


def resumable(method: str, out: Path, at: int | None = None, ledger: bool = True, **change: Any) -> Defense:
    """A run in `out` with a fresh client, as a new process would start it; the box fails at call number `at`."""
    box = Failing(TorchBox(smooth_model(), "logits"), at)
    budget = change.pop("budget", None)
    client = QueryClient(box, budget, ledger=out / "ledger.sqlite" if ledger else None, batch_size=7)
    settings: dict[str, Any] = {"schedule": MIXED, "out": out, "checkpoint_every": 2, **RUNS[method]}
    return fit(client, method, **(settings | change))


def calls(defense: Defense) -> int:
    assert isinstance(defense.client.box, Failing)
    return defense.client.box.calls


def same_run(out: Path, plain: Path) -> None:
    assert (out / "rows.jsonl").read_bytes() == (plain / "rows.jsonl").read_bytes()
    a, b = (checkpoints.read(path / "checkpoint.safetensors") for path in (out, plain))
    assert checkpoints.tensors_digest(a[0]) == checkpoints.tensors_digest(b[0])  # weights, best, optimizer, targets
    assert {**a[1], "journal": 0} == {**b[1], "journal": 0}


def moments(method: str, total: int) -> list[int]:
    """Calls to fail at: while targets are fetched, in the first step, at random, and at the very last."""
    targets = 4  # 16 images and 4 in batches of 7
    return sorted({0, targets - 1, targets, targets + 1, *random.Random(method).sample(range(total), 3), total - 1})


@pytest.mark.parametrize("method", list(RUNS))
def test_a_failure_of_the_box_at_any_call_costs_nothing(method: str, tmp_path: Path) -> None:
    plain = resumable(method, tmp_path / "plain")
    for at in moments(method, calls(plain)):
        out = tmp_path / str(at)
        with pytest.raises((BoxFailed, ConnectionError), match="the line is dead"):
            resumable(method, out, at)
        resumed = resumable(method, out)
        assert weights(resumed) == weights(plain)
        same_run(out, tmp_path / "plain")
        assert (resumed.client.queries, resumed.client.lost) == (plain.client.queries, 0), at
        assert resumed.client.spent == plain.client.spent
        assert resumed.num_classes == plain.num_classes


def test_many_failures_cost_nothing(tmp_path: Path) -> None:
    plain = resumable("ZO-AE-DS", tmp_path / "plain")
    dice, failures = random.Random(1), 0
    while True:
        try:
            resumed = resumable("ZO-AE-DS", tmp_path / "out", at=dice.randint(1, 15))
            break
        except BoxFailed:
            failures += 1
    assert failures >= 3
    assert weights(resumed) == weights(plain)
    same_run(tmp_path / "out", tmp_path / "plain")
    assert (resumed.client.queries, resumed.client.lost) == (plain.client.queries, 0)


@pytest.mark.parametrize("seed", range(4))
def test_a_spent_budget_keeps_all_work(seed: int, tmp_path: Path) -> None:
    plain = resumable("ZO-AE-DS", tmp_path / "plain")
    budget = random.Random(seed).randrange(plain.client.queries)
    with pytest.raises(BudgetExceeded):
        resumable("ZO-AE-DS", tmp_path / "out", budget=budget)
    with pytest.raises(BudgetExceeded):  # trying again spends nothing
        resumable("ZO-AE-DS", tmp_path / "out", budget=budget)
    assert QueryClient(linear(), ledger=tmp_path / "out" / "ledger.sqlite").queries <= budget
    resumed = resumable("ZO-AE-DS", tmp_path / "out", budget=plain.client.queries)  # to the query
    assert weights(resumed) == weights(plain)
    same_run(tmp_path / "out", tmp_path / "plain")
    assert (resumed.client.queries, resumed.client.left, resumed.client.lost) == (plain.client.queries, 0, 0)


@pytest.mark.parametrize("at", [2, 9, 25])
def test_without_a_ledger_training_goes_on_from_the_checkpoint(at: int, tmp_path: Path) -> None:
    plain = resumable("ZO-AE-DS", tmp_path / "plain", ledger=False)
    with pytest.raises(BoxFailed):
        resumable("ZO-AE-DS", tmp_path / "out", at, ledger=False)
    resumed = resumable("ZO-AE-DS", tmp_path / "out", ledger=False)
    assert weights(resumed) == weights(plain)
    same_run(tmp_path / "out", tmp_path / "plain")
    assert (calls(resumed) < calls(plain)) is (at > 4)  # the targets are in the first checkpoint


def test_the_journal_holds_no_answer_that_a_checkpoint_covers(tmp_path: Path) -> None:
    kept: list[int] = []
    client = QueryClient(linear(), ledger=tmp_path / "ledger.sqlite")

    def look(done: int, total: int, text: str) -> None:
        assert client.ledger is not None
        kept.append(client.ledger._db.execute("SELECT COUNT(*) FROM journal").fetchone()[0])

    schedule = Schedule((Phase(2, 0.01),), 4)
    fit(client, "ZO-AE-DS", schedule=schedule, out=tmp_path, checkpoint_every=3, progress=look)
    assert [step for step in range(8) if kept[step] == 0] == [2, 3, 5, 7]


def test_a_finished_run_asks_nothing_when_it_is_called_again(tmp_path: Path) -> None:
    first = resumable("ZO-AE-DS", tmp_path, fingerprint=True)
    again = resumable("ZO-AE-DS", tmp_path, at=0, fingerprint=True)
    assert weights(again) == weights(first)
    assert calls(again) == 0
    assert again.fingerprint == first.fingerprint is not None
    assert again.client.queries == first.client.queries
    assert first.client.spent["fingerprint"] == 8


CHANGES: list[tuple[str, Any, str]] = [
    ("sigma", 0.3, r"sigma is 0\.25 there and 0\.3 here"),
    ("gamma", 2.0, r"gamma is 0\.7 there and 2\.0 here"),
    ("seed", 8, "seed is 7 there and 8 here"),
    ("estimator", RGE(4, 0.05), r"estimator\.q is 3 there and 4 here"),
    ("schedule", EPOCH, r"schedule\.\S+ is"),
    ("augmentation", "flip", "augmentation is 'crop-flip' there and 'flip' here"),
    ("images", pictures(20, seed=9), "images is"),
    ("validation", grey(4), "validation is"),
    ("denoiser", dncnn(1, 3, 4), "start is .* draw them from a seed"),
    ("autoencoder", filled(bottleneck(), 12), "start is"),
    ("skip_dead", False, "skip_dead is True there and False here"),
]


def contents(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}


def test_other_settings_do_not_resume_and_touch_nothing(tmp_path: Path) -> None:
    resumable("ZO-AE-DS", tmp_path, ledger=False)
    before = contents(tmp_path)
    for name, value, message in CHANGES:
        with pytest.raises(ConfigMismatch, match=message) as caught:
            resumable("ZO-AE-DS", tmp_path, at=0, ledger=False, **{name: value})
        assert "\n" not in str(caught.value)
        assert contents(tmp_path) == before


def test_another_box_does_not_resume(tmp_path: Path) -> None:
    fit(linear(), "ZO-DS", out=tmp_path)
    box = linear()
    box.spec = replace(box.spec, mean=(0.5,))
    with pytest.raises(ConfigMismatch, match=r"box\.mean is None there and \[0\.5\] here"):
        fit(box, "ZO-DS", out=tmp_path)
    assert box.calls == 0


def test_a_checkpoint_cut_short_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    fit(linear(), "ZO-DS", out=tmp_path)
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    box = linear()
    with pytest.raises(UnreadableFile, match=r"checkpoint\.safetensors is cut short or damaged") as caught:
        fit(box, "ZO-DS", out=tmp_path)
    assert "\n" not in str(caught.value)
    assert box.calls == 0


# --- the autoencoder --------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def stopping(after: int) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, text: str) -> None:
        if done == after:
            raise Stop

    return progress


def test_the_autoencoder_learns_and_is_selected_on_validation_images(tmp_path: Path) -> None:
    digits, start = load_images("digits", limit=100), fitting_autoencoder((1, 8, 8), 8, width=4)
    before = checkpoints.module_digest(start)
    schedule = Schedule((Phase(15, 3e-3),), 16)
    trained = pretrain_autoencoder(digits, start, schedule=schedule, seed=0, out=tmp_path)
    assert checkpoints.module_digest(start) == before
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
        return checkpoints.module_digest(pretrain_autoencoder(pictures(), own, out=out, **settings))

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
    selected = checkpoints.under("best", checkpoints.read(tmp_path / "autoencoder" / "checkpoint.safetensors")[0])
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


# --- saving -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", list(METHODS))
def test_a_saved_defense_answers_bit_for_bit(method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = fitting_autoencoder(SHAPE, 5, width=2) if METHODS[method].bottleneck else None
    client = QueryClient(TorchBox(smooth_model(), "logits"))
    defense = fit(client, method, denoiser=dncnn(1, 3, 4), autoencoder=own, fingerprint=True)
    defense.save(tmp_path)
    spent = client.queries
    loaded = load_defense(tmp_path, client, classifier=smooth_model() if method == "RS" else None)
    assert client.queries == spent
    x = pictures(30, seed=4).floats()
    assert torch.equal(loaded.outputs(x), defense.outputs(x))
    assert torch.equal(loaded.robustify(x), defense.robustify(x))
    assert torch.equal(loaded.denoise(x), defense.denoise(x))
    assert weights(loaded) == weights(defense)
    for name in ("method", "sigma", "image_shape", "num_classes", "fingerprint", "model_id"):
        assert getattr(loaded, name) == getattr(defense, name)
    assert loaded.fingerprint is not None
    loaded.fingerprint.check(client)


def test_own_modules_are_given_back_to_a_saved_defense(tmp_path: Path) -> None:
    box = linear()
    defense = fit(box, "ZO-AE-DS")
    defense.save(tmp_path)
    client = QueryClient(box)
    with pytest.raises(
        InvalidInput, match=r"has a denoiser of your own; give it: load_defense\(..., denoiser=module\)"
    ):
        load_defense(tmp_path, client, autoencoder=bottleneck())
    with pytest.raises(InvalidInput, match=r"has a autoencoder of your own; give it: .*autoencoder=module"):
        load_defense(tmp_path, client, denoiser=Own())
    with pytest.raises(InvalidInput, match="the saved denoiser does not fit"):
        load_defense(tmp_path, client, denoiser=dncnn(1, 3, 4), autoencoder=bottleneck())
    loaded = load_defense(tmp_path, client, denoiser=filled(Own(), 99), autoencoder=filled(bottleneck(), 98))
    x = pictures(30, seed=4).floats()
    assert torch.equal(loaded.outputs(x), defense.outputs(x))
    with pytest.raises(InvalidInput, match="is for a box that answers logits, this one answers labels"):
        load_defense(tmp_path, QueryClient(linear("labels")), denoiser=Own(), autoencoder=bottleneck())


# --- what is refused --------------------------------------------------------------------------------------------------

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
    ("ZO-AE-DS", {"gamma": -1.0}, "wanted finite weights >= 0"),
    ("ZO-AE-DS", {"gamma": math.nan}, "wanted finite weights >= 0"),
    ("ZO-AE-DS", {"denoise_weight": math.nan}, "wanted finite weights >= 0"),
    ("ZO-AE-DS", {"reconstruction_weight": math.inf}, "wanted finite weights >= 0"),
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


# --- a surrogate on the way -------------------------------------------------------------------------------------------

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


# --- a step by measurement --------------------------------------------------------------------------------------------


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


# --- what is learned on the way survives a stop -----------------------------------------------------------------------

LEARNING = {
    "distilled": guided(0, distill=11, surrogate="image"),
    "corrected": guided(2, "auto"),
    "auto": guided("auto", "auto", target=0.6, probe_every=2, jitter=0.1),
}


@pytest.mark.parametrize("name", list(LEARNING))
def test_a_failure_while_a_surrogate_learns_costs_nothing(name: str, tmp_path: Path) -> None:
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
        assert (resumed.client.queries, resumed.client.lost) == (plain.client.queries, 0)
        assert json.dumps(resumed.facts) == json.dumps(plain.facts)
    kept = checkpoints.read(tmp_path / "plain" / "checkpoint.safetensors")[0]
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
    tensors, facts = checkpoints.read(file)
    assert not any(name.startswith("memory") for name in tensors)
    checkpoints.write(file, tensors, {key: facts[key] for key in facts.keys() - {"stale", "notes"}})
    assert weights(resumable("ZO-DS", tmp_path / "out")) == weights(plain)


def test_patience_ends_training_and_a_stopped_run_stays_stopped(tmp_path: Path) -> None:
    """A box that always answers the same keeps every vote from the start: no epoch is better."""
    box = CountingBox(as_blackbox(lambda x: np.zeros(len(x), dtype=np.int64), "labels", num_classes=K))
    settings: dict[str, Any] = {"estimator": RGE(3, 0.1), "schedule": Schedule((Phase(9, 0.01),), BATCH), "patience": 2}
    first = fit(box, "ZO-DS", out=tmp_path, **settings)
    assert len(rows(tmp_path)) == 2
    assert weights(first) == checkpoints.module_digest(RobustPipeline(Own()).to(memory_format=torch.channels_last))  # pyright: ignore
    asked = box.images
    assert weights(fit(box, "ZO-DS", out=tmp_path, **settings)) == weights(first)
    assert (box.images, len(rows(tmp_path))) == (asked, 2)

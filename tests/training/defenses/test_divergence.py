"""Training that diverges says so with its step, and the box is never asked about what is not finite."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certibox.blackbox import BlackBox
from certibox.errors import InvalidInput, TrainingDiverged
from certibox.estimators import CGE, RGE, Guided
from certibox.queries.client import QueryClient
from certibox.storage.tensors import read_tensors
from certibox.training.divergence import require_finite, require_sound, said_with
from certibox.training.schedules import Phase, Schedule
from certibox.training.supervised import fit as fit_network
from training_runs import BATCH, Own, bottleneck, fit, linear, pictures, smooth_model


class Watched:
    """Another box that fails the test when it is asked about what is not finite."""

    def __init__(self, box: BlackBox) -> None:
        self.box, self.spec, self.images = box, box.spec, 0

    def __call__(self, x: Tensor) -> Tensor:
        assert x.isfinite().all()
        self.images += len(x)
        return self.box(x)

    def differentiable(self, x: Tensor) -> Tensor:
        assert x.isfinite().all()
        return self.box.differentiable(x)  # pyright: ignore[reportAttributeAccessIssue]


def watched() -> Watched:
    return Watched(linear().box)


METHODS: dict[str, tuple[str, Any]] = {
    "coordinates": ("ZO-DS", CGE(0.05)),
    "measured": ("ZO-DS", RGE(3, "auto")),
    "guided": ("ZO-AE-DS", Guided(2, 0.1, surrogate="latent", distill=8)),
    "probed": ("ZO-DS", Guided(surrogate="latent")),
    "first order": ("FO-AE-DS", None),
}
WAYS: dict[str, tuple[dict[str, Any], int]] = {  # what is set, and the step that shows it
    "a rate of a million": ({"schedule": Schedule((Phase(3, 1e6),), BATCH)}, 1),
    "a rate beyond squares": ({"schedule": Schedule((Phase(3, 1e30, "sgd"),), BATCH)}, 1),
    "a weight beyond squares": ({"gamma": 1e30}, 0),
}


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("name", list(METHODS))
def test_divergence_is_said_with_its_step_and_nothing_infinite_is_asked(name: str, way: str, tmp_path: Path) -> None:
    (method, estimator), (change, step) = METHODS[name], WAYS[way]
    with pytest.raises(TrainingDiverged) as caught:
        fit(watched(), method, estimator=estimator, out=tmp_path, **change)
    line = str(caught.value)
    assert line.startswith(f"training diverged at step {step}: ")
    assert line.endswith(f"lower the learning rate or gamma; the checkpoint of step 0 is kept in {tmp_path}")
    assert "\n" not in line
    tensors, facts = read_tensors(tmp_path / "checkpoint.safetensors")
    assert facts["step"] == 0
    assert all(value.isfinite().all() for value in tensors.values())


def test_the_same_run_does_not_diverge_at_a_usual_rate() -> None:
    for method, estimator in METHODS.values():
        assert fit(watched(), method, estimator=estimator).num_classes == 3


class Spoilt(Own):
    """A denoiser that gives NaN from the nth call in training mode on, or in evaluation mode."""

    def __init__(self, calls: int, training: bool) -> None:
        super().__init__()
        self.left, self.mode = calls, training

    def forward(self, x: Tensor) -> Tensor:
        self.left -= self.training is self.mode
        return super().forward(x) * (math.nan if self.left < 0 and self.training is self.mode else 1.0)


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize(("calls", "training", "step"), [(1, True, 1), (0, True, 0), (1, False, 0), (3, False, 1)])
def test_images_that_are_not_finite_are_not_sent(name: str, calls: int, training: bool, step: int) -> None:
    """In evaluation mode the first call tries the network, the next two are the votes of the start."""
    method, estimator = METHODS[name]
    if calls == 3 and getattr(estimator, "distill", 0):
        step = 0  # distillation comes before the first step that wants a gradient
    with pytest.raises(TrainingDiverged, match=f"^training diverged at step {step}: .*not finite"):
        fit(watched(), method, estimator=estimator, denoiser=Spoilt(calls, training))


@pytest.mark.parametrize("part", ["denoiser", "autoencoder", "classifier"])
def test_weights_that_are_not_finite_are_refused_before_a_query(part: str) -> None:
    networks: dict[str, nn.Module] = {"denoiser": Own(), "autoencoder": bottleneck(), "classifier": smooth_model()}
    with torch.no_grad():
        next(networks[part].parameters()).view(-1)[0] = math.nan
    box, method = watched(), "RS" if part == "classifier" else "ZO-AE-DS"
    with pytest.raises(InvalidInput, match=f"^the {part} gives values that are not finite before it is trained"):
        fit(box, method, **{part: networks[part]})
    assert box.images == 0


def test_networks_without_queries_diverge_in_words_too() -> None:
    def error(x: Tensor, _images: Any, _index: Tensor) -> Tensor:
        return network(x).flatten(1).square().sum(1)

    network, schedule = Own(), Schedule((Phase(3, 1e30, "sgd"),), BATCH)
    with pytest.raises(TrainingDiverged, match=r"^training diverged at step 1: .*; lower the learning rate$"):
        fit_network(network, pictures(), loss=error, schedule=schedule, seed=0)


def test_what_torch_finds_by_itself_is_said_in_the_same_words() -> None:
    schedule = Schedule((Phase(3, 1e30, "sgd"),), BATCH)
    with (
        torch.autograd.set_detect_anomaly(True),
        pytest.raises(TrainingDiverged, match=r"^training diverged at step 1: "),
    ):
        fit(QueryClient(watched()), "DS", schedule=schedule)
    with pytest.raises(RuntimeError, match=r"^something else$"), said_with(3, "stop"):
        raise RuntimeError("something else")


def test_large_numbers_are_finite() -> None:
    require_finite(torch.full((8,), 3e38), "these are")  # their sum is not
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(TrainingDiverged, match=r"^these are not finite$"):
            require_finite(torch.tensor([0.0, bad]), "these are")
    weight = nn.Parameter(torch.full((4,), 1e30))
    require_sound(1e300, [weight])
    weight.grad = torch.full((4,), 1e18)
    require_sound(0.0, [weight])
    weight.grad = torch.full((4,), 1e20)
    with pytest.raises(TrainingDiverged, match="too large for the optimizer to square"):
        require_sound(0.0, [weight])

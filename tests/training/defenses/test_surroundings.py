"""What a model file or a caller has set in the process changes nothing that is trained, and is set again afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from certibox.blackbox import TorchBox, as_blackbox
from certibox.defense.saved import Defense, load_defense
from certibox.estimators import Guided
from certibox.networks import fitting_autoencoder
from certibox.queries.client import QueryClient
from certibox.queries.fingerprint import canary_images
from certibox.training.schedules import Phase, Schedule
from certibox.training.supervised import pretrain_autoencoder
from training_runs import SHAPE, fit, pictures, smooth_model, weights

IMAGES = pictures()
SHORT = Schedule((Phase(1, 0.01),), 10)


@contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        assert torch.get_default_dtype() == dtype
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        assert torch.empty(0).device.type == "meta"
        torch.set_default_device(None)


@contextmanager
def strict() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        with torch.autograd.set_detect_anomaly(True):
            yield
    finally:
        torch.use_deterministic_algorithms(False)


SURROUNDINGS: dict[str, Any] = {
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "double": lambda: default_type(torch.float64),
    "bfloat16": lambda: default_type(torch.bfloat16),
    "device": default_device,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "strict": strict,
}
USUAL: dict[str, Any] = {"denoiser": "dncnn", "schedule": SHORT}
RUNS: dict[str, dict[str, Any]] = {
    "ZO-AE-DS": {
        "estimator": Guided(2, distill=8, surrogate="latent"),
        "autoencoder": fitting_autoencoder(SHAPE, 4, 4, seed=1),
    },
    "FO-DS": {},
}


def trained(method: str, around: AbstractContextManager[Any]) -> tuple[Defense, torch.Tensor]:
    """A small run inside `around`, and its answers there."""
    box = TorchBox(smooth_model(), "logits")
    with around:
        defense = fit(QueryClient(box), method, images=IMAGES, fingerprint=True, **USUAL, **RUNS[method])
        return defense, defense.outputs(IMAGES.images[:3].numpy().astype("float32") / 255)


@pytest.fixture(scope="module", params=list(RUNS))
def plain(request: pytest.FixtureRequest) -> tuple[str, Defense, torch.Tensor]:
    return request.param, *trained(request.param, nullcontext())


@pytest.mark.parametrize("name", list(SURROUNDINGS))
def test_a_run_is_the_same_whatever_is_set_around_it(
    name: str, plain: tuple[str, Defense, torch.Tensor], tmp_path: Path
) -> None:
    method, wanted, answers = plain
    defense, came = trained(method, SURROUNDINGS[name]())
    assert weights(defense) == weights(wanted)
    assert defense.fingerprint == wanted.fingerprint
    assert torch.equal(came, answers)
    assert defense.client.queries == wanted.client.queries
    defense.save(tmp_path)
    with SURROUNDINGS[name]():
        loaded = load_defense(tmp_path, wanted.client)
    assert weights(loaded) == weights(wanted)


@pytest.mark.parametrize("name", ["inference", "double", "device", "autocast"])
def test_stage_one_and_the_canaries_are_the_same_too(name: str) -> None:
    made = []
    for around in (nullcontext(), SURROUNDINGS[name]()):
        with around:
            untrained = fitting_autoencoder(SHAPE, 4, 4, seed=1)
            made.append(pretrain_autoencoder(IMAGES, untrained, schedule=SHORT, seed=0).state_dict())
            made.append({"canaries": canary_images(SHAPE, 4)})
    for once, again in ((made[0], made[2]), (made[1], made[3])):
        assert all(torch.equal(once[key], again[key]) for key in once)


def test_a_box_is_asked_under_what_it_has_set_itself() -> None:
    seen = []

    def answer(x: Any) -> torch.Tensor:
        seen.append(torch.get_default_dtype())
        return torch.zeros(len(x), 3, dtype=torch.float32)

    with default_type(torch.float64):
        fit(as_blackbox(answer, "logits", name="typed"), "ZO-DS", schedule=SHORT)
    assert set(seen) == {torch.float64}

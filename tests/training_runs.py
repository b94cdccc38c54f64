"""Training against closed forms: first order is the oracle of zeroth order, counts are exact, stops change nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from certibox.blackbox import BlackBox, TorchBox
from certibox.data import Images
from certibox.defense.saved import Defense
from certibox.estimators import CGE, RGE, Orthogonal
from certibox.networks import Autoencoder
from certibox.queries.client import QueryClient
from certibox.storage.tensors import module_digest, read_tensors, tensors_digest, under
from certibox.training.defenses import METHODS, train
from certibox.training.schedules import Phase, Schedule
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
    return under("module", read_tensors(out / "checkpoint.safetensors")[0])


def weights(defense: Defense) -> str:
    return module_digest(defense.pipeline)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Between two sets of parameters, leaving out statistics."""
    names = [name for name in a if "running" not in name and "tracked" not in name]
    return math.sqrt(sum(float((a[name] - b[name]).square().sum()) for name in names))


def start_of(method: str, double: bool) -> dict[str, Tensor]:
    start = {f"denoiser.{name}": value for name, value in Own(double).state_dict().items()}
    if METHODS[method].bottleneck:
        start |= {f"autoencoder.{name}": value for name, value in bottleneck(double).state_dict().items()}
    return start


def listening(module: nn.Module) -> list[tuple[bool, Tensor]]:
    """(in training mode, input) of every later call of a module or of its copies, but of trying it before training."""
    heard: list[tuple[bool, Tensor]] = []

    def hear(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().clone()
        if len(x) != 2 or not torch.equal((x * 255).round() / 255, x):  # it is tried on two images without noise
            heard.append((module.training, x))

    module.register_forward_pre_hook(hear)
    return heard


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
    a, b = (read_tensors(path / "checkpoint.safetensors") for path in (out, plain))
    assert tensors_digest(a[0]) == tensors_digest(b[0])  # weights, best, optimizer, targets
    assert {**a[1], "journal": 0} == {**b[1], "journal": 0}

"""Work that a stop cuts short, as version 0.1.0 left it in `fixtures/interrupted`.

`python tests/interrupted_work.py DIR` makes such work again with the version at hand.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import certibox as cb

CUT = {"training": 163, "certification": 650}  # queries after which the box stops answering


class Stop(KeyboardInterrupt):
    """The interruption."""


def weights(shape: torch.Size, phase: float) -> torch.Tensor:
    """Numbers that are the same on every machine."""
    size = int(np.prod(shape))
    return torch.from_numpy((0.5 * np.cos(np.arange(size) * 1.7 + phase)).reshape(shape).astype(np.float32))


def filled(module: nn.Module) -> Any:
    for place, parameter in enumerate(module.parameters()):
        parameter.data = weights(parameter.shape, place)
    return module


def images() -> cb.Images:
    pixels = (np.arange(24 * 16).reshape(24, 1, 4, 4) * 37 % 256).astype(np.uint8)
    return cb.images_from_arrays(pixels, np.arange(24) % 3, name="synthetic")


class Box:
    """A linear model of 4x4 images that stops after so many answers."""

    def __init__(self, limit: int | None) -> None:
        self.left, self.weights = limit, np.cos(np.arange(48) * 0.9).reshape(16, 3)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if self.left is not None:
            if self.left < len(x):
                raise Stop
            self.left -= len(x)
        return (x.reshape(len(x), -1).astype(np.float64) @ self.weights).astype(np.float32)


def client(folder: Path, limit: int | None) -> cb.QueryClient:
    box = cb.as_blackbox(Box(limit), outputs="logits", name="linear", clip=False, batch_size=8)
    return cb.QueryClient(box, ledger=folder / "ledger.sqlite")


def train(folder: Path, limit: int | None = None) -> tuple[cb.Defense, cb.QueryClient]:
    meter = client(folder, limit)
    denoiser = filled(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 3, padding=1)))
    autoencoder = cb.Autoencoder(
        filled(nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU())),
        filled(nn.Sequential(nn.Linear(4, 16), nn.Sigmoid(), nn.Unflatten(1, (1, 4, 4)))),
        (1, 4, 4),
    )
    defense = cb.train(
        meter,
        images(),
        method="ZO-AE-DS",
        sigma=0.25,
        estimator=cb.CGE(mu=0.05),
        gamma=1.0,
        schedule=cb.one_cycle(3, lr=1e-2, batch_size=4, denoise_epochs=1),
        seed=3,
        denoiser=denoiser,
        autoencoder=autoencoder,
        validation=0.25,
        out=folder / "training",
        checkpoint_every=2,
    )
    return defense, meter


def certify(folder: Path, limit: int | None = None) -> tuple[list[Any], cb.QueryClient]:
    meter = client(folder, limit)
    smoothed = cb.SmoothedClassifier(meter, num_classes=3, sigma=0.25)
    rows = cb.certify_dataset(
        smoothed,
        images().select(slice(0, 6)),
        n0=10,
        n=400,
        alpha=0.001,
        seed=5,
        rule=cb.EProcess(radii=(0.05, 0.25)),
        out=folder / "certificates.jsonl",
    )
    return rows, meter


def main(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    for name, job in (("training", train), ("certification", certify)):
        job(out / "reference" / name)
        try:
            job(out / name, CUT[name])
        except Stop:
            print(f"{name}: stopped after {CUT[name]} queries")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

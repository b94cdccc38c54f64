"""Networks that train by themselves, without queries: classifiers to hold as boxes, and autoencoders (stage 1)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certibox import seeds
from certibox.blackbox import BoxSpec
from certibox.data import Images, augment, held_out, mean_over
from certibox.errors import InvalidInput
from certibox.networks import Autoencoder
from certibox.storage.tensors import module_digest
from certibox.training.loop import Task, run
from certibox.training.run_directory import RunDirectory
from certibox.training.schedules import Schedule
from certibox.training.steps import Progress, Step

_M = TypeVar("_M", bound=nn.Module)
Loss = Callable[[Tensor, Images, Tensor], Tensor]  # x (b, c, h, w), the images it comes from, their places (b,) -> (b,)


def fit(
    network: _M,
    images: Images,
    *,
    loss: Loss,
    schedule: Schedule,
    seed: int,
    validation: Images | float = 0.1,
    augmentation: str = "none",
    facts: dict[str, Any] | None = None,
    out: str | Path | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> _M:
    """Train `network` in place to the least mean `loss`, selected on validation images; returned frozen.

    facts: what `loss` depends on beside images and network, so that `out` is only resumed under the same.
    """
    shown, held = held_out(images, validation, seed)
    network.to(device=device, memory_format=torch.channels_last).requires_grad_(True)  # pyright: ignore
    config = {"schedule": asdict(schedule), "seed": seed, "augmentation": augmentation, **(facts or {})}
    config |= {"images": shown.digest, "validation": held.digest, "start": module_digest(network)}
    directory = RunDirectory(out, config) if out is not None else None

    def terms(step: Step) -> dict[str, Tensor]:
        network.train()
        x = augment(shown.floats(step.index), augmentation, seeds.generator(seed, "augment", step.number))
        return {"loss": loss(x.to(device), shown, step.index).mean()}

    def score() -> float:
        network.eval()
        with torch.inference_mode():
            return -mean_over(held, lambda x, index: loss(x.to(device), held, index))

    task = Task(network, list(network.parameters()), terms, score, lambda phase: True, {})
    run(lambda constants: task, len(shown), schedule, seed, directory=directory, progress=progress)
    return network.eval().requires_grad_(False)


def pretrain_autoencoder(
    images: Images,
    autoencoder: Autoencoder,
    *,
    schedule: Schedule,
    seed: int,
    augmentation: str = "none",
    validation: Images | float = 0.1,
    out: str | Path | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Autoencoder:
    """Stage 1: a copy of `autoencoder` trained to reconstruct clean images; no query. Selects on validation MSE."""
    trained = copy.deepcopy(autoencoder)

    def error(x: Tensor, _images: Images, _index: Tensor) -> Tensor:
        return (trained(x) - x).flatten(1).square().sum(1)

    return fit(
        trained,
        images,
        loss=error,
        schedule=schedule,
        seed=seed,
        augmentation=augmentation,
        validation=validation,
        out=out,
        device=device,
        progress=progress,
    )


def train_classifier(
    images: Images,
    network: nn.Module,
    *,
    schedule: Schedule,
    seed: int,
    spec: BoxSpec | None = None,
    augmentation: str = "none",
    validation: Images | float = 0.1,
    out: str | Path | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> nn.Module:
    """A copy of `network` trained on clean labelled images by cross-entropy, to be held as a black box of logits.

    spec: the box's declaration; what it does to pixels (normalisation) is done in training too. Selects on validation
    cross-entropy. Errors: `InvalidInput` for images without labels.
    """
    declared = spec or BoxSpec("logits")
    if images.labels is None:
        raise InvalidInput(f"{images.name} has no labels; wanted labelled images to train a classifier")
    trained = copy.deepcopy(network)

    def cross_entropy(x: Tensor, source: Images, index: Tensor) -> Tensor:
        assert source.labels is not None
        return F.cross_entropy(trained(declared.prepare(x)), source.labels[index].to(x.device), reduction="none")

    return fit(
        trained,
        images,
        loss=cross_entropy,
        schedule=schedule,
        seed=seed,
        augmentation=augmentation,
        validation=validation,
        facts={"box": declared.provenance()},
        out=out,
        device=device,
        progress=progress,
    )

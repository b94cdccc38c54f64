"""Networks that train by themselves, without queries: classifiers to serve as boxes, and autoencoders (stage 1)."""

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
from certibox.data import AUGMENTATIONS, Images, augment, held_out, mean_over
from certibox.errors import InvalidInput
from certibox.networks import Autoencoder
from certibox.networks.devices import usable_device
from certibox.seeds.switches import settled
from certibox.storage import values
from certibox.storage.tensors import module_digest
from certibox.training.loop import Task, run
from certibox.training.run_directory import RunDirectory
from certibox.training.schedules import Schedule
from certibox.training.steps import Progress, Step
from certibox.training.tracking import tracker_of

_M = TypeVar("_M", bound=nn.Module)
Loss = Callable[[Tensor, Images, Tensor], Tensor]  # x (b, c, h, w), the images it comes from, their places (b,) -> (b,)


@settled()
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
    """Train a network in place to the least mean loss, selected on validation images; returned with fixed weights.

    Args:
        network: Network to train.
        images: Training images; validation images too, where `validation` is a share.
        loss: Function of images x (b, c, h, w), the images that they come from and their places (b,) -> losses (b,).
        schedule: Phases of training and images a step.
        seed: Seed of every random draw.
        validation: Validation images, or the share of `images` to hold out as such.
        augmentation: Policy of augmentation, a name of `certibox.data.AUGMENTATIONS`.
        facts: Plain values that `loss` depends on beside images and network, so that `out` is only resumed under them.
        out: Directory for checkpoints and rows; a run that it already holds is resumed.
        device: Device that trains.
        progress: Function of (steps done, steps in all, a text), called after every step.

    Raises:
        InvalidInput: A value is out of order, or this machine has no such device.
        TrainingDiverged: A loss, a gradient or a weight is no longer finite.
    """
    device, seed = usable_device(device), values.seed(seed)
    values.known("augmentation", augmentation, AUGMENTATIONS)
    if not isinstance(schedule, Schedule):
        raise InvalidInput(f"schedule is {values.shown(schedule)}; wanted a Schedule, see certibox.one_cycle")
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
    run(
        lambda constants: task,
        len(shown),
        schedule,
        seed,
        directory=directory,
        tracker=tracker_of(None, out),
        settings=config,
        progress=progress,
    )
    return network.eval().requires_grad_(False)


@settled()
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
    """Stage 1: a copy of an autoencoder, trained to reconstruct clean images; no query.

    Args:
        images: Training images; labels are not used.
        autoencoder: Autoencoder to start from, such as `certibox.fitting_autoencoder(images.shape, d_z=64, seed=0)`.
        schedule: Phases of training and images a step.
        seed: Seed of every random draw.
        augmentation: Policy of augmentation, a name of `certibox.data.AUGMENTATIONS`.
        validation: Validation images, or the share of `images` to hold out as such; the best epoch is selected on them.
        out: Directory for checkpoints and rows; a run that it already holds is resumed.
        device: Device that trains.
        progress: Function of (steps done, steps in all, a text), called after every step.

    Returns:
        The weights of the epoch with the least mean squared error on the validation images.

    Raises:
        InvalidInput: A value is out of order, or this machine has no such device.
        TrainingDiverged: A loss, a gradient or a weight is no longer finite.
    """
    if not isinstance(images, Images):
        raise InvalidInput(f"images is {type(images).__name__}; wanted certibox.Images: see certibox.load_images")
    if not isinstance(autoencoder, Autoencoder):
        came = type(autoencoder).__name__
        raise InvalidInput(f"autoencoder is {came}; wanted one such as certibox.fitting_autoencoder(...)")
    if autoencoder.image_shape != images.shape:
        raise InvalidInput(
            f"the autoencoder takes images {autoencoder.image_shape}, the data has {images.shape}; wanted the same"
        )
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


@settled()
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
    """A copy of a network, trained on clean labelled images by cross-entropy, to stand behind a box of logits.

    Args:
        images: Training images with labels.
        network: Network to start from, (b, c, h, w) -> (b, K).
        schedule: Phases of training and images a step.
        seed: Seed of every random draw.
        spec: Declaration of the box; what it does to pixels (normalisation) is done in training too.
        augmentation: Policy of augmentation, a name of `certibox.data.AUGMENTATIONS`.
        validation: Validation images, or the share of `images` to hold out as such; the best epoch is selected on them.
        out: Directory for checkpoints and rows; a run that it already holds is resumed.
        device: Device that trains.
        progress: Function of (steps done, steps in all, a text), called after every step.

    Returns:
        The weights of the epoch with the least cross-entropy on the validation images.

    Raises:
        InvalidInput: The images have no labels.
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

"""What can be known of a training run before it begins: refused before stage 1, and before a query."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from certibox import seeds
from certibox.blackbox import BoxSpec
from certibox.data import Images
from certibox.defense.pipeline import RobustPipeline
from certibox.errors import BudgetExceeded, InvalidInput
from certibox.estimators import Guided, Orthogonal, Subset
from certibox.networks import Autoencoder
from certibox.networks.autoencoder import evaluating
from certibox.queries.client import QueryClient
from certibox.storage.values import shown as shown_value
from certibox.storage.values import yes_or_no
from certibox.training.methods import METHODS
from certibox.training.schedules import Schedule
from certibox.training.settings import TrainingSettings
from certibox.training.stability import surviving_share
from certibox.training.surrogate import PROBE_DIRECTIONS

KINDS: dict[str, tuple[tuple[Any, ...], str]] = {  # argument of `train` -> its types, and words for them
    "client": ((QueryClient,), "certibox.QueryClient(box)"),
    "images": ((Images,), "certibox.Images: see certibox.load_images"),
    "denoiser": ((str, nn.Module), "the name of a denoiser, or a module"),
    "autoencoder": ((Autoencoder, type(None)), "an Autoencoder, such as certibox.fitting_autoencoder(...)"),
    "autoencoder_schedule": ((Schedule, type(None)), "a Schedule such as certibox.one_cycle(epochs=10)"),
    "classifier": ((nn.Module, type(None)), "a torch module"),
    "out": ((str, os.PathLike, type(None)), "a directory"),
}


def check_kinds(given: dict[str, object]) -> None:
    """Refuse an argument of another type.

    Args:
        given: Arguments by name; those that `KINDS` does not know may be anything.

    Raises:
        InvalidInput: One is something else.
    """
    for name, (types, words) in KINDS.items():
        if name in given and not isinstance(given[name], types):
            came = given[name] if isinstance(given[name], str | int | float) else type(given[name]).__name__
            raise InvalidInput(f"{name} is {came}; wanted {words}")
    if "fingerprint" in given:
        yes_or_no("fingerprint", given["fingerprint"])


def check_pixels(client: QueryClient, images: Images, settings: TrainingSettings, validation: object) -> None:
    """Refuse images that the box does not take, and noise that no two of them are as far apart as.

    Args:
        client: Meter around the box.
        images: Training images.
        settings: Settings of the run.
        validation: Validation images, or a share of the others.

    Raises:
        InvalidInput: The images or sigma do not fit.
    """
    if settings.targets == "soft" and client.spec.outputs == "labels":
        raise InvalidInput("targets are soft but the box answers with labels; wanted hard targets")
    if not (isinstance(validation, Images) or (isinstance(validation, Real) and not isinstance(validation, bool))):
        raise InvalidInput(f"validation is {shown_value(validation)}; wanted images, or a share of them such as 0.1")
    client.spec.check_images(images.floats([0]))
    farthest = math.sqrt(math.prod(images.shape))
    if settings.sigma > farthest:
        raise InvalidInput(
            f"sigma is {settings.sigma}, but no two images of shape {images.shape} are farther apart than "
            f"{farthest:.4g}; wanted it in pixels on [0, 1]: divide one in 8-bit units by 255"
        )


def check_schedule(schedule: Schedule, images: int) -> None:
    """Refuse a schedule without a step.

    Args:
        schedule: Phases of training and images a step.
        images: Number of training images.

    Raises:
        InvalidInput: There is no epoch, or fewer images than a step wants.
    """
    if not schedule.epochs:
        raise InvalidInput("the schedule has 0 epochs, so nothing would train; wanted at least 1")
    if not schedule.steps_per_epoch(images):
        raise InvalidInput(f"there is {images} image to train on; wanted at least 2, for batch normalisation")


def check_budget(
    client: QueryClient, settings: TrainingSettings, shown: Images, held: Images, out: str | Path | None
) -> None:
    """Refuse a fresh run whose budget does not pay for the targets that come first.

    Args:
        client: Meter around the box.
        settings: Settings of the run.
        shown: Training images.
        held: Validation images.
        out: Directory of the run, which may hold one that has paid already.

    Raises:
        BudgetExceeded: The budget pays for fewer queries than that.
    """
    if out is not None and (Path(out) / "config.json").exists():
        return
    if METHODS[settings.method].order is None:
        return
    wanted = sum(len(part) for part in (shown, held) if not labels_are_targets(settings, part))
    if client.images_left is not None and client.images_left < wanted:
        raise BudgetExceeded(wanted, client.images_left)


def labels_are_targets(settings: TrainingSettings, images: Images) -> bool:
    """Whether the labels of the images stand in for the box's answers: RS learns from them where there are some.

    Args:
        settings: Settings of the run.
        images: Images with or without labels.
    """
    return settings.method == "RS" and images.labels is not None


def check_white(pipeline: RobustPipeline, images: Images, spec: BoxSpec) -> None:
    """Refuse networks that fail on the first two images, change their shape or make them infinite; no query.

    Args:
        pipeline: White part that is to train; every module keeps its mode.
        images: Training images.
        spec: Declaration of the box, which the classifier of RS stands for.

    Raises:
        InvalidInput: A network does not fit.
    """
    device = next((parameter.device for parameter in pipeline.parameters()), torch.device("cpu"))
    x = images.floats(slice(0, 2)).to(device)
    same = tuple(x.shape)
    with evaluating(pipeline), torch.inference_mode():
        if pipeline.denoiser is not None:
            x = _tried("denoiser", pipeline.denoiser, x, same)
        if pipeline.autoencoder is not None:
            _tried("autoencoder", pipeline.autoencoder, x, same)
        if pipeline.classifier is not None:
            scores = _tried("classifier", pipeline.classifier, spec.prepare(x), same[:1])
            if scores.ndim != 2:
                raise InvalidInput(f"the classifier gave {tuple(scores.shape)}; wanted logits (n, K)")


def _tried(name: str, network: Callable[[Tensor], Any], x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What a network makes of images, whose shape begins with the one that is wanted."""
    try:
        made = network(x)
    except Exception as error:  # a stranger's module may raise anything
        reason = " ".join(str(error).split())[:200]
        raise InvalidInput(f"the {name} failed on images of shape {tuple(x.shape)}: {reason}; correct it") from error
    if not isinstance(made, Tensor) or tuple(made.shape[: len(shape)]) != shape:
        came = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise InvalidInput(f"the {name} gave {came} for images of shape {tuple(x.shape)}; wanted {shape} first")
    if not made.isfinite().all():
        raise InvalidInput(f"the {name} gives values that are not finite before it is trained; wanted sound weights")
    return made


def check_step(pipeline: RobustPipeline, client: QueryClient, images: Images, settings: TrainingSettings) -> None:
    """Refuse a step that the box's declared grid would mostly erase; no query.

    Args:
        pipeline: White part in front of the box.
        client: Meter around the box.
        images: Training images.
        settings: Settings of the run.

    Raises:
        InvalidInput: Less than half of the perturbed inputs differ after rounding.
    """
    levels, estimator = client.spec.levels, settings.estimator
    if METHODS[settings.method].order != 0 or levels is None or estimator is None:
        return
    inner = estimator.estimator if isinstance(estimator, Subset) else estimator
    mu = getattr(inner, "mu", None)
    if mu == "auto" or (isinstance(inner, Guided) and (inner.q == 0 or client.spec.outputs == "labels")):
        return  # measured later, or never stepped
    if isinstance(inner, Guided):
        d = pipeline.autoencoder.d_z if pipeline.autoencoder else math.prod(images.shape)
        inner = Orthogonal(min(PROBE_DIRECTIONS, d), inner.mu, inner.central)
    x = images.floats(slice(0, 8))
    noisy = x + settings.sigma * torch.randn(x.shape, generator=seeds.generator(settings.seed, "step"))
    noisy = noisy.to(next(pipeline.parameters()).device)
    directions = seeds.generator(settings.seed, "step directions", device=noisy.device)
    share = surviving_share(pipeline, noisy, inner, levels, directions)
    if share < 0.5:
        raise InvalidInput(
            f"mu = {mu} is too small for a box with {levels} grey levels: only {share:.0%} of the perturbed inputs "
            "differ after rounding (measured without queries); wanted at least half: raise mu"
        )

"""Training of defenses: RS, DS, FO-DS, FO-AE-DS, ZO-DS and ZO-AE-DS from one loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from certibox import networks, seeds
from certibox.blackbox import differentiable
from certibox.data import Images, held_out
from certibox.defense.pipeline import RobustPipeline
from certibox.defense.saved import Defense
from certibox.errors import InvalidInput
from certibox.estimators import GradientEstimator, Guided, Orthogonal, Subset
from certibox.networks import Autoencoder
from certibox.queries.client import QueryClient
from certibox.queries.fingerprint import Fingerprint
from certibox.storage.files import read_json, write_json_atomic
from certibox.storage.tensors import module_digest
from certibox.training.loop import run
from certibox.training.methods import METHODS, Scheme, Settings
from certibox.training.objective import Objective
from certibox.training.run_directory import RunDirectory
from certibox.training.schedules import Schedule, one_cycle
from certibox.training.stability import surviving_share
from certibox.training.steps import Progress
from certibox.training.supervised import pretrain_autoencoder
from certibox.training.surrogate import PROBE_DIRECTIONS

STAGE1_STEPS = 2000  # pre-training of an autoencoder that the user did not bring


def train(
    client: QueryClient,
    images: Images,
    *,
    method: str,
    sigma: float,
    schedule: Schedule,
    seed: int,
    estimator: GradientEstimator | None = None,
    gamma: float | None = None,
    denoise_weight: float = 1.0,
    reconstruction_weight: float = 0.0,
    scheme: Scheme = "denoiser+encoder",
    denoiser: str | nn.Module = "dncnn",
    autoencoder: Autoencoder | None = None,
    autoencoder_schedule: Schedule | None = None,
    classifier: nn.Module | None = None,
    targets: Literal["hard", "soft"] = "hard",
    augmentation: str = "none",
    validation: Images | float = 0.1,
    validation_votes: int = 4,
    validate_every: int | None = None,
    skip_dead: bool = True,
    fingerprint: bool = False,
    device: torch.device | str = "cpu",
    out: str | Path | None = None,
    checkpoint_every: int = 200,
    patience: int | None = None,
    progress: Progress | None = None,
) -> Defense:
    """Train a defense of `client`'s box on unlabelled `images` (labels are used by RS alone).

    method: RS, DS, FO-DS, FO-AE-DS, ZO-DS or ZO-AE-DS. sigma: standard deviation of the noise, pixels on [0, 1].
    estimator: of ∇_z ℓ, for ZO methods. gamma: see `Settings`; wanted by all methods with a stability term.
    denoiser: a name of `networks.DENOISERS` (training from scratch) or a module to start from; it is copied.
    autoencoder: for AE methods; it is copied. autoencoder_schedule: pre-train it first (stage 1, query-free); without
    one it is taken as pre-trained. Without either, a suitable one is pre-trained for about 2,000 steps. classifier: RS
    only, the network to train, by default a copy of the box's own module.

    Targets are the box's answers to the clean images, asked once; an augmented image keeps the answer to its original.
    validation: images, or a share of `images` held out, on which the best epoch is selected by `validation_votes` noisy
    votes an image (by MSE for DS, without queries); the start is a candidate too, so training never ends below it on
    them, and nothing else sees them. validate_every: epochs between validations, by default each; the end of a phase is
    validated in any case. patience: stop after so many validations without a better one. device: where the white
    part trains. out: a directory for checkpoints and rows, resumed if it holds some; give the client a ledger too, so
    that resuming pays for nothing twice. fingerprint: also ask the box about 8 canaries, to recognise it later.

    Errors: `InvalidInput` for values out of order, `NotDifferentiable`, `BudgetExceeded` and the errors of the client.
    """
    if not isinstance(images, Images):
        raise InvalidInput(f"images is {type(images).__name__}; wanted certibox.Images, see images_from_arrays")
    for name, given, unit in (("patience", patience, "validation"), ("validate_every", validate_every, "epoch")):
        if given is not None and given < 1:
            raise InvalidInput(f"{name} is {given}; wanted at least 1 {unit}")
    settings = Settings(
        method=method,
        sigma=sigma,
        schedule=schedule,
        seed=seed,
        estimator=estimator,
        gamma=_gamma(method, gamma),
        denoise_weight=denoise_weight,
        reconstruction_weight=reconstruction_weight,
        scheme=scheme,
        hard_targets=_hard(targets, client),
        augmentation=augmentation,
        skip_dead=skip_dead,
        validation_votes=validation_votes,
    )
    if METHODS[method].bottleneck and autoencoder is None:
        autoencoder, steps = _suitable(images, seed), max(1, schedule.steps_per_epoch(len(images)))
        stage1 = one_cycle(math.ceil(STAGE1_STEPS / steps), 3e-3, schedule.batch_size)
        autoencoder_schedule = autoencoder_schedule or stage1
    pipeline = _pipeline(settings, client, images.shape, denoiser, autoencoder, classifier)
    shown, held = held_out(images, validation, seed)
    if pipeline.autoencoder is not None and autoencoder_schedule is not None:  # now that all else is known to fit
        pipeline.autoencoder = pretrain_autoencoder(
            images,
            pipeline.autoencoder,
            schedule=autoencoder_schedule,
            seed=seed,
            augmentation=augmentation,
            validation=validation,
            out=Path(out) / "autoencoder" if out is not None else None,
            device=device,
            progress=progress and (lambda done, total, text: progress(done, total, f"autoencoder, {text}")),
        )
    pipeline.to(device)
    config = _plain(settings) | {
        "images": shown.digest,
        "validation": held.digest,
        "start": module_digest(pipeline),
        "box": client.spec.provenance(),
        "batch_size": client.batch_size,
        "patience": patience,
        "validate_every": validate_every,
    }
    _check_step(pipeline, client, shown, settings)
    job = Objective(settings, client, pipeline, shown, held)
    if not job.parameters():
        raise InvalidInput(f"{method} with scheme {scheme} has nothing to train; wanted a denoiser with parameters")
    directory = RunDirectory(out, config) if out is not None else None
    made_by = f" ({type(estimator).__name__})" if estimator is not None and METHODS[method].order == 0 else ""
    with client.phase(f"train {method}{made_by}"), _frozen(getattr(client.box, "module", None)):
        run(
            job.prepare,
            len(shown),
            schedule,
            seed,
            client=client,
            directory=directory,
            checkpoint_every=checkpoint_every,
            patience=patience,
            score_every=validate_every or 1,
            progress=progress,
        )
    mark = _fingerprint(client, images.shape, directory) if fingerprint else None
    pipeline.eval().requires_grad_(False)
    facts = config if job.step_choice is None else config | {"step": job.step_choice}
    return Defense(pipeline, client, method, sigma, images.shape, job.num_classes, facts, mark)


def _suitable(images: Images, seed: int) -> Autoencoder:
    with seeds.initialisation(seed, "autoencoder"):
        return networks.suitable_autoencoder(images.shape)


def _pipeline(
    settings: Settings,
    client: QueryClient,
    image_shape: tuple[int, int, int],
    denoiser: str | nn.Module,
    autoencoder: Autoencoder | None,
    classifier: nn.Module | None,
) -> RobustPipeline:
    """The white part to train, checked against the method, the images and the estimator."""
    method = METHODS[settings.method]
    if method.order == 1 and method.denoises:
        differentiable(client.box)  # asked once, at the border
    if method.bottleneck:
        assert autoencoder is not None
        if autoencoder.image_shape != image_shape:
            raise InvalidInput(
                f"the autoencoder takes images {autoencoder.image_shape}, the data has {image_shape}; wanted the same"
            )
    if method.order == 0 and settings.estimator is not None:
        c, h, w = image_shape
        settings.estimator.cost(autoencoder.d_z if method.bottleneck and autoencoder else c * h * w)
    if settings.method == "RS" and client.spec.outputs != "logits":
        raise InvalidInput(
            f"RS trains a network's logits, the box answers {client.spec.outputs}; wanted outputs='logits'"
        )
    if settings.method == "RS" and classifier is None:
        differentiable(client.box)
        classifier = getattr(client.box, "module", None)
        if classifier is None:
            raise InvalidInput(f"RS got no classifier, and box {client.spec.name} holds no module; wanted one to train")
    white = RobustPipeline(
        _denoiser(denoiser, image_shape, settings.seed) if method.denoises else None,
        copy.deepcopy(autoencoder) if method.bottleneck else None,
        copy.deepcopy(classifier) if settings.method == "RS" else None,
    )
    return white.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _denoiser(denoiser: str | nn.Module, image_shape: tuple[int, int, int], seed: int) -> nn.Module:
    if isinstance(denoiser, nn.Module):
        return copy.deepcopy(denoiser)
    if denoiser not in networks.DENOISERS:
        raise InvalidInput(f"denoiser is {denoiser!r}; wanted a module or one of {', '.join(networks.DENOISERS)}")
    with seeds.initialisation(seed, "denoiser"):
        return networks.DENOISERS[denoiser](image_shape[0])


def _fingerprint(client: QueryClient, image_shape: tuple[int, int, int], directory: RunDirectory | None) -> Fingerprint:
    """The box's fingerprint, taken once a run: a run that is called again has paid for it already."""
    path = directory.path / "fingerprint.json" if directory else None
    if path and path.exists():
        return Fingerprint.from_dict(read_json(path))
    taken = Fingerprint.take(client, image_shape)
    if path:
        write_json_atomic(path, taken.as_dict())
    return taken


@contextmanager
def _frozen(module: nn.Module | None) -> Iterator[None]:
    """Keep a white box's own weights out of the backward pass: only what is in front of it trains."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad] if module else []
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _check_step(pipeline: RobustPipeline, client: QueryClient, images: Images, settings: Settings) -> None:
    """Refuse a step that the box's declared grid would mostly erase."""
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


def _hard(targets: str, client: QueryClient) -> bool:
    if targets not in ("hard", "soft"):
        raise InvalidInput(f"targets is {targets!r}; wanted one of hard, soft")
    if targets == "soft" and client.spec.outputs == "labels":
        raise InvalidInput("targets are soft but the box answers with labels; wanted hard targets")
    return targets == "hard"


def _gamma(method: str, gamma: float | None) -> float:
    known = METHODS.get(method)
    if known is None or known.order is None:
        return 0.0
    if gamma is None and known.denoises:
        raise InvalidInput(f"{method} got no gamma; wanted the weight of the stability term, such as 1.0")
    return 1.0 if gamma is None else gamma


def _plain(settings: Settings) -> dict[str, Any]:
    """Settings as plain values; an estimator by its type and fields."""
    plain: dict[str, Any] = {**vars(settings), "schedule": asdict(settings.schedule)}
    if (estimator := settings.estimator) is not None:
        held = getattr(estimator, "__dict__", {})
        fields = {name: value if isinstance(value, int | float | str) else repr(value) for name, value in held.items()}
        plain["estimator"] = {"name": type(estimator).__name__, **fields}
    return plain

"""Training of defenses: RS, DS, FO-DS, FO-AE-DS, ZO-DS and ZO-AE-DS from one loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from certibox import networks, seeds
from certibox.blackbox import differentiable
from certibox.data import Images, held_out
from certibox.defense.pipeline import RobustPipeline
from certibox.defense.saved import Defense
from certibox.errors import InvalidInput, one_of
from certibox.estimators import estimator_record
from certibox.networks import Autoencoder
from certibox.networks.devices import usable_device
from certibox.queries.client import QueryClient
from certibox.queries.fingerprint import Fingerprint
from certibox.seeds.switches import settled
from certibox.storage.files import read_json, write_json_atomic
from certibox.storage.tensors import module_digest
from certibox.training.checks import check_budget, check_kinds, check_pixels, check_schedule, check_step, check_white
from certibox.training.loop import run
from certibox.training.methods import METHODS
from certibox.training.objective import Objective
from certibox.training.run_directory import RunDirectory
from certibox.training.schedules import AUTOENCODER_RATE, Schedule, one_cycle
from certibox.training.settings import SettingsKeywords, TrainingSettings, require_keywords, settings_from
from certibox.training.steps import Progress
from certibox.training.supervised import pretrain_autoencoder
from certibox.training.tracking import Tracker, tracker_of

STAGE1_STEPS = 2000  # pre-training of an autoencoder that the user did not bring


@settled()
def train(
    client: QueryClient,
    images: Images,
    settings: TrainingSettings | None = None,
    *,
    denoiser: str | nn.Module = "dncnn",
    autoencoder: Autoencoder | None = None,
    autoencoder_schedule: Schedule | None = None,
    classifier: nn.Module | None = None,
    validation: Images | float = 0.1,
    fingerprint: bool = False,
    device: torch.device | str = "cpu",
    out: str | Path | None = None,
    checkpoint_every: int = 200,
    progress: Progress | None = None,
    tracker: Tracker | None = None,
    **keywords: Unpack[SettingsKeywords],
) -> Defense:
    """Train a defense of a black box on unlabelled images; labels are used by RS alone.

    The settings of a run come as one `TrainingSettings`, or as its fields by keyword: method, sigma, schedule and seed
    are required; gamma and estimator are wanted by the methods that use them.

    The targets of the stability term are the box's answers to the clean training images, asked once; an augmented
    image keeps the answer to its original. The best epoch is selected on the validation images, by noisy votes for the
    target (by mean squared error for DS, without queries). The weights that training starts from take part in the
    selection, so that training never ends below them on the validation images. Nothing else sees these images.

    Args:
        client: Meter around the box, which counts every query. With a ledger, a resumed run pays for nothing twice.
        images: Training images, pixels on [0, 1] as 8 bits; validation images too, where `validation` is a share.
        settings: TrainingSettings of the run; give these, or the keywords below, which are its fields.
        denoiser: Denoiser to train: a name of `certibox.networks.DENOISERS` for one from scratch, or a module
            (b, c, h, w) -> (b, c, h, w) to start from, which is copied.
        autoencoder: Autoencoder for AE methods, which is copied; by default a suitable one is pre-trained.
        autoencoder_schedule: Schedule of the autoencoder's pre-training on clean images (stage 1, no query); without
            one, an autoencoder that is given counts as pre-trained, and the default takes about 2,000 steps.
        classifier: Classifier for RS to train, which is copied; by default the box's own module.
        validation: Validation images, or the share of `images` to hold out as such.
        fingerprint: Whether the box is also asked about 8 canary images, to recognise it later.
        device: Device on which the denoiser and the autoencoder train.
        out: Directory for checkpoints and rows; a run that it already holds is resumed.
        checkpoint_every: Number of steps between checkpoints; the end of an epoch has one too.
        progress: Function of (steps done, steps in all, a text), called after every step.
        tracker: Tracker of the run, such as `certibox.MLflowTracker()`; by default that of TensorBoard in `out`.
        method: Name of the method: RS, DS, FO-DS, FO-AE-DS, ZO-DS or ZO-AE-DS.
        sigma: Standard deviation of the noise, in pixels on [0, 1].
        schedule: Phases of training and images a step, such as `certibox.one_cycle(epochs=10)`.
        seed: Seed of every random draw.
        estimator: Estimator of the gradient from queries, for ZO methods, such as `certibox.Guided()`.
        gamma: Weight γ of the stability term; wanted by all methods with such a term but RS.
        denoise_weight: Weight w of the denoising term, by default 1; 0 trains on stability alone.
        reconstruction_weight: Weight λ of the term that keeps decoded images near the clean ones, by default 0.
        scheme: Parts that train: denoiser, denoiser+encoder (the default) or denoiser+autoencoder.
        targets: Targets of the stability term: hard (the box's labels, the default) or soft (its probabilities).
        augmentation: Policy of augmentation, a name of `certibox.data.AUGMENTATIONS`, by default none.
        skip_dead: Whether no query is spent on embedding coordinates without an upstream gradient; by default true.
        validation_votes: Number of noisy votes on each validation image and validation, by default 4.
        validate_every: Number of epochs between validations, by default 1; the end of a phase is always validated.
        patience: Number of validations in a row without a better score that end training; by default none do.

    Returns:
        The defense: the trained denoiser and autoencoder in front of the box.

    Raises:
        InvalidInput: A value is out of order, or a keyword is misspelt.
        NotDifferentiable: A first-order method met a box without gradients.
        TrainingDiverged: Training left the finite numbers; what is not finite was never sent to the box.
        ConfigMismatch: `out` holds a run of other settings, or of another model.
        BoxChanged: The box does not answer as it did when the run in `out` began.
        BudgetExceeded: The budget of `client` is spent; the work so far is kept in `out`.
    """
    given = {"denoiser": denoiser, "autoencoder": autoencoder, "autoencoder_schedule": autoencoder_schedule}
    given |= {"client": client, "images": images, "classifier": classifier, "fingerprint": fingerprint, "out": out}
    check_kinds(given)
    s, device = _settings(settings, keywords), usable_device(device)
    check_pixels(client, images, s, validation)
    shown, held = held_out(images, validation, s.seed)
    check_schedule(s.schedule, len(shown))
    if METHODS[s.method].bottleneck and autoencoder is None:
        autoencoder = networks.suitable_autoencoder(images.shape, seed=s.seed)
        steps = max(1, s.schedule.steps_per_epoch(len(images)))
        stage1 = one_cycle(math.ceil(STAGE1_STEPS / steps), AUTOENCODER_RATE, s.schedule.batch_size)
        autoencoder_schedule = autoencoder_schedule or stage1
    pipeline = _pipeline(s, client, images.shape, denoiser, autoencoder, classifier)
    pipeline.to(device)
    _require_parameters(Objective(s, client, pipeline, shown, held))
    check_white(pipeline, shown, client.spec)
    check_budget(client, s, shown, held, out)
    if pipeline.autoencoder is not None and autoencoder_schedule is not None:  # now that all else is known to fit
        place = Path(out) / "autoencoder" if out is not None else None
        pipeline.autoencoder = _stage_one(
            s, images, pipeline.autoencoder, autoencoder_schedule, validation, place, device, progress
        )
    pipeline.to(device)
    config = _config(s, client, pipeline, shown, held)
    check_step(pipeline, client, shown, s)
    job = Objective(s, client, pipeline, shown, held)
    directory = RunDirectory(out, config) if out is not None else None
    with client.phase(_phase(s)), _frozen(getattr(client.box, "module", None)):
        run(
            job.prepare,
            len(shown),
            s.schedule,
            s.seed,
            client=client,
            directory=directory,
            tracker=tracker_of(tracker, out),
            settings=config,
            checkpoint_every=checkpoint_every,
            patience=s.patience,
            score_every=s.validate_every or 1,
            progress=progress,
            recognise=job.recognise,
        )
    mark = _fingerprint(client, images.shape, directory) if fingerprint else None
    pipeline.eval().requires_grad_(False)
    facts = config if job.step_choice is None else config | {"step": job.step_choice}
    known = trained_on(shown, held)
    return Defense(pipeline, client, s.method, s.sigma, images.shape, job.num_classes, facts, mark, known)


def _require_parameters(job: Objective) -> None:
    s = job.settings
    if not job.parameters():
        raise InvalidInput(f"{s.method} with scheme {s.scheme} has nothing to train; wanted a denoiser with parameters")


def trained_on(*parts: Images) -> Tensor:
    """The images that a defense has seen, training and validation images alike, as it keeps them.

    Args:
        *parts: Images of each part.

    Returns:
        Their digests (n,), sorted and each once, see `Images.digests`.
    """
    return torch.cat([part.digests for part in parts]).unique(sorted=True)


def _settings(settings: TrainingSettings | None, keywords: SettingsKeywords) -> TrainingSettings:
    """The settings of a run, which come in one of two ways."""
    others = [name for name, item in signature(train).parameters.items() if item.kind is item.KEYWORD_ONLY]
    if settings is None:
        return settings_from(keywords, others)
    require_keywords(keywords, others)
    if not isinstance(settings, TrainingSettings):
        raise InvalidInput(f"settings is {type(settings).__name__}; wanted TrainingSettings, or its fields as keywords")
    if keywords:
        raise InvalidInput(
            f"train got settings and {', '.join(keywords)} beside them; wanted one of the two: "
            "dataclasses.replace(settings, ...) changes a field"
        )
    return settings


def _config(
    settings: TrainingSettings, client: QueryClient, pipeline: RobustPipeline, shown: Images, held: Images
) -> dict[str, Any]:
    """All that the work of a run depends on, as plain values: what its directory is compared with."""
    return settings.record() | {
        "images": shown.digest,
        "validation": held.digest,
        "start": module_digest(pipeline),
        "box": client.spec.provenance(),
        "batch_size": client.batch_size,
        "patience": settings.patience,
        "validate_every": settings.validate_every,
    }


def _phase(settings: TrainingSettings) -> str:
    """What the ledger books the queries of a run under."""
    if settings.estimator is None or METHODS[settings.method].order != 0:
        return f"train {settings.method}"
    return f"train {settings.method} ({estimator_record(settings.estimator)['name']})"


def _stage_one(
    s: TrainingSettings,
    images: Images,
    autoencoder: Autoencoder,
    schedule: Schedule,
    validation: Images | float,
    out: Path | None,
    device: torch.device | str,
    progress: Progress | None,
) -> Autoencoder:
    """The autoencoder, pre-trained on the images of the defense; its progress says that it is the autoencoder's."""
    return pretrain_autoencoder(
        images,
        autoencoder,
        schedule=schedule,
        seed=s.seed,
        augmentation=s.augmentation,
        validation=validation,
        out=out,
        device=device,
        progress=progress and (lambda done, total, text: progress(done, total, f"autoencoder, {text}")),
    )


def _pipeline(
    settings: TrainingSettings,
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
        if autoencoder.d_z > math.prod(image_shape):
            pixels = math.prod(image_shape)
            raise InvalidInput(f"d_z is {autoencoder.d_z}, but an image has {pixels} numbers; wanted at most as many")
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
        raise InvalidInput(f"denoiser is {denoiser!r}; wanted a module or {one_of(denoiser, networks.DENOISERS)}")
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

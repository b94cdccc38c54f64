"""Training of defenses: RS, DS, FO-DS, FO-AE-DS, ZO-DS and ZO-AE-DS from one loop.

min_θ  w E‖D_θ(x+δ) − x‖²  +  γ E ℓ(R(f)(x+δ), f(x))  +  λ E‖ψ_dec(z) − x‖²          (eq. 2, and a free white term)

with squared norms summed over pixels. First order differentiates ℓ through the box; zeroth order puts an estimate of
∇_z ℓ, made from queries, in its place (eq. 8). Everything else is the same code.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from certibox import losses, networks, seeds
from certibox.checkpoints import module_digest
from certibox.config import Phase, Schedule, one_cycle
from certibox.data import AUGMENTATIONS, Images, augment
from certibox.errors import InvalidInput
from certibox.estimators import GradientEstimator, estimated_loss
from certibox.loop import Progress, RunDirectory, Step, Task, run
from certibox.networks import Autoencoder
from certibox.pipeline import Defense, RobustPipeline, StabilityObjective, surviving_share
from certibox.query import Fingerprint, QueryClient, differentiable
from certibox.records import read_json, write_json_atomic

Scheme = Literal["denoiser", "denoiser+encoder", "denoiser+autoencoder"]
STAGE1_STEPS = 2000  # pre-training of an autoencoder that the user did not bring
VALIDATION_BATCH = 128  # validation noise is drawn in batches of this size, whatever the box takes at a time
SCHEMES = ("denoiser", "denoiser+encoder", "denoiser+autoencoder")


@dataclass(frozen=True)
class Method:
    """A defense of the paper. order: of the stability gradient, None where there is no stability term."""

    order: Literal[0, 1] | None
    bottleneck: bool = False
    denoises: bool = True


METHODS = {
    "RS": Method(order=1, denoises=False),
    "DS": Method(order=None),
    "FO-DS": Method(order=1),
    "FO-AE-DS": Method(order=1, bottleneck=True),
    "ZO-DS": Method(order=0),
    "ZO-AE-DS": Method(order=0, bottleneck=True),
}


@dataclass(frozen=True)
class Settings:
    """The plain values of one training run: what may not change between an interruption and its resumption.

    gamma: weight γ of the stability term. denoise_weight: w, 1 for eq. 2, 0 for the released code's stability alone.
    reconstruction_weight: λ. skip_dead: spend no query on embedding coordinates whose upstream gradient is zero.
    """

    method: str
    sigma: float
    schedule: Schedule
    seed: int
    estimator: GradientEstimator | None
    gamma: float
    denoise_weight: float
    reconstruction_weight: float
    scheme: Scheme
    hard_targets: bool
    augmentation: str
    skip_dead: bool
    validation_votes: int

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InvalidInput(f"method is {self.method!r}; wanted one of {', '.join(METHODS)}")
        if not 0 < self.sigma < float("inf"):
            raise InvalidInput(
                f"sigma is {self.sigma}; wanted a positive standard deviation in pixels on [0, 1], such as 0.25"
            )
        if self.scheme not in SCHEMES:
            raise InvalidInput(f"scheme is {self.scheme!r}; wanted one of {', '.join(SCHEMES)}")
        if self.scheme == "denoiser+autoencoder" and METHODS[self.method].order == 0:
            raise InvalidInput(
                f"{self.method} cannot train the decoder: it is part of the black box; wanted scheme denoiser+encoder"
            )
        if METHODS[self.method].order == 0 and self.estimator is None:
            raise InvalidInput(f"{self.method} got no estimator; wanted one such as certibox.CGE(mu=0.05)")
        weights = (self.gamma, self.denoise_weight, self.reconstruction_weight)
        if not all(0 <= weight < float("inf") for weight in weights):
            raise InvalidInput(
                f"gamma, denoise_weight and reconstruction_weight are {weights}; wanted finite weights >= 0"
            )
        if self.method == "RS" and any(phase.objective == "denoise" for phase in self.schedule.phases):
            raise InvalidInput(
                "RS has no denoiser, but the schedule has a phase with objective 'denoise'; wanted only 'full'"
            )
        if self.augmentation not in AUGMENTATIONS:
            raise InvalidInput(f"augmentation is {self.augmentation!r}; wanted one of {', '.join(AUGMENTATIONS)}")
        if self.validation_votes < 1:
            raise InvalidInput(f"validation_votes is {self.validation_votes}; wanted at least 1 vote an image")


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
    classifier: nn.Module | None = None,
    targets: Literal["hard", "soft"] = "hard",
    augmentation: str = "none",
    validation: Images | float = 0.1,
    validation_votes: int = 4,
    skip_dead: bool = True,
    fingerprint: bool = False,
    device: torch.device | str = "cpu",
    out: str | Path | None = None,
    checkpoint_every: int = 200,
    progress: Progress | None = None,
) -> Defense:
    """Train a defense of `client`'s box on unlabelled `images` (labels are used by RS alone).

    method: RS, DS, FO-DS, FO-AE-DS, ZO-DS or ZO-AE-DS. sigma: standard deviation of the noise, pixels on [0, 1].
    estimator: of ∇_z ℓ, for ZO methods. gamma: see `Settings`; wanted by all methods with a stability term.
    denoiser: a name of `networks.DENOISERS` (training from scratch) or a module to start from; it is copied.
    autoencoder: for AE methods, pre-trained (`pretrain_autoencoder`); it is copied. Without one, a suitable one is
    pre-trained on the images for about 2,000 steps, query-free. classifier: RS only, the
    network to train, by default a copy of the box's own module.

    Targets are the box's answers to the clean images, asked once; an augmented image keeps the answer to its original.
    validation: images, or a share of `images` held out, on which the best epoch is selected by `validation_votes` noisy
    votes an image (by MSE for DS, without queries). Nothing else sees them. device: where the white part trains.
    out: a directory for checkpoints and rows, resumed if it holds some; give the client a ledger too, so that resuming
    pays for nothing twice. fingerprint: also ask the box about 8 canaries, to recognise it later.

    Errors: `InvalidInput` for values out of order, `NotDifferentiable`, `BudgetExceeded` and the errors of the client.
    """
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
    fresh = _fresh_autoencoder(images, seed) if METHODS[method].bottleneck and autoencoder is None else None
    pipeline = _pipeline(settings, client, images.shape, denoiser, fresh or autoencoder, classifier)
    held, shown = (validation, images) if isinstance(validation, Images) else images.split(validation, seed)[::-1]
    if isinstance(validation, Images) and validation.shape != images.shape:
        raise InvalidInput(
            f"validation images have shape {validation.shape}, training images {images.shape}; wanted the same"
        )
    if fresh is not None:  # only now that everything else is known to fit
        pipeline.autoencoder = _stage1(images, fresh, schedule, seed, augmentation, validation, out, device, progress)
    pipeline.to(device)
    config = _plain(settings) | {
        "images": shown.digest,
        "validation": held.digest,
        "start": module_digest(pipeline),
        "box": client.spec.provenance(),
    }
    _check_step(pipeline, client, shown, settings)
    job = _Job(settings, client, pipeline, shown, held)
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
            progress=progress,
        )
    mark = _fingerprint(client, images.shape, directory) if fingerprint else None
    pipeline.eval().requires_grad_(False)
    return Defense(pipeline, client, method, sigma, images.shape, job.num_classes, config, mark)


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
    trained = copy.deepcopy(autoencoder).to(memory_format=torch.channels_last)  # pyright: ignore
    trained.to(device).requires_grad_(True)
    held, shown = (validation, images) if isinstance(validation, Images) else images.split(validation, seed)[::-1]
    config = {"schedule": asdict(schedule), "seed": seed, "augmentation": augmentation}
    config |= {"images": shown.digest, "validation": held.digest, "start": module_digest(trained)}
    directory = RunDirectory(out, config) if out is not None else None

    def terms(step: Step) -> dict[str, Tensor]:
        trained.train()
        x = augment(shown.floats(step.index), augmentation, seeds.generator(seed, "augment", step.number)).to(device)
        return {"loss": squared_error(trained(x), x)}

    def score() -> float:
        trained.eval()
        with torch.inference_mode():
            return -mean_over(held, 256, lambda x: (trained(x.to(device)) - x.to(device)).flatten(1).square().sum(1))

    task = Task(trained, list(trained.parameters()), terms, score, lambda phase: True, {})
    run(lambda constants: task, len(shown), schedule, seed, directory=directory, progress=progress)
    return trained.eval().requires_grad_(False)


def _fresh_autoencoder(images: Images, seed: int) -> Autoencoder:
    with seeds.initialisation(seed, "autoencoder"):
        return networks.suitable_autoencoder(images.shape)


def _stage1(
    images: Images,
    fresh: Autoencoder,
    schedule: Schedule,
    seed: int,
    augmentation: str,
    validation: Images | float,
    out: str | Path | None,
    device: torch.device | str,
    progress: Progress | None,
) -> Autoencoder:
    """The autoencoder that `train` makes when it is given none."""
    epochs = math.ceil(STAGE1_STEPS / max(1, schedule.steps_per_epoch(len(images))))
    return pretrain_autoencoder(
        images,
        fresh,
        schedule=one_cycle(epochs, 3e-3, schedule.batch_size),
        seed=seed,
        augmentation=augmentation,
        validation=validation,
        out=Path(out) / "autoencoder" if out is not None else None,
        device=device,
        progress=progress,
    )


@dataclass
class _Job:
    """One run of `train`: settings, data and the white part, with the terms of a step and the validation score."""

    settings: Settings
    client: QueryClient
    pipeline: RobustPipeline
    shown: Images
    held: Images
    num_classes: int | None = None

    @property
    def method(self) -> Method:
        return METHODS[self.settings.method]

    def prepare(self, constants: dict[str, Tensor]) -> Task:
        """Fetch the targets once, and say what trains."""
        if not constants and self.method.order is not None:
            constants = {"shown": self._clean(self.shown), "held": self._clean(self.held)}
            constants["num_classes"] = torch.tensor(self._count_classes())
        self.constants = constants
        self.num_classes = int(constants["num_classes"]) or None if constants else self.client.spec.num_classes
        return Task(self.pipeline, self.parameters(), self.terms, self.score, self._scored, constants)

    def terms(self, step: Step) -> dict[str, Tensor]:
        """The terms of eq. 2 at one batch; `loss` is their weighted sum."""
        s, seed = self.settings, self.settings.seed
        x = augment(self.shown.floats(step.index), s.augmentation, seeds.generator(seed, "augment", step.number))
        x, noisy = self._noisy(x, seeds.generator(seed, "noise", step.number))
        self._train_mode()
        denoised = self.pipeline.denoise(noisy)
        terms = {}
        if self.method.denoises:
            terms["denoise"] = squared_error(denoised, x)
        loss = s.denoise_weight * terms.get("denoise", x.new_zeros(()))
        if step.phase.objective == "denoise":
            return terms | {"loss": terms["denoise"]}
        if self.method.order is None:
            return terms | {"loss": loss}
        z = self.pipeline.embed(denoised)
        if s.reconstruction_weight:
            terms["reconstruction"] = squared_error(self.pipeline.images(z, x.shape[1:]), x)
            loss = loss + s.reconstruction_weight * terms["reconstruction"]
        target = self.constants["shown"][step.index].to(z.device)
        live = z.detach() > 0 if self._can_skip() else None
        if live is not None:
            terms["live"] = live.sum(1).float().mean()
        terms["stability"] = self._stability(z, target, x.shape[1:], step.number, live).mean()
        return terms | {"loss": loss + s.gamma * terms["stability"]}

    def score(self) -> float:
        """Validation score, higher is better: the share of noisy votes that keep the target, or minus the MSE."""
        self.pipeline.eval()
        with torch.inference_mode():
            if self.method.order is None:
                return -self._over_noise(
                    lambda noisy, x, _: (self.pipeline.denoise(noisy) - x).flatten(1).square().sum(1)
                )
            return self._over_noise(self._kept)

    def _kept(self, noisy: Tensor, x: Tensor, index: Tensor) -> Tensor:
        kind, target = self.client.spec.outputs, self.constants["held"][index].to(noisy.device)
        outputs = self._outputs(noisy)
        if kind == "values":
            return -losses.values_loss(outputs, target)
        wanted = target if target.ndim == 1 else target.argmax(1)
        return (losses.predictions(outputs, kind) == wanted).float()

    def _over_noise(self, measure: Callable[[Tensor, Tensor, Tensor], Tensor]) -> float:
        """Mean of measure(noisy, clean, index) over the held-out images, each under the same noise at every epoch."""
        total, s = 0.0, self.settings
        for vote in range(s.validation_votes):
            for number, index in enumerate(torch.arange(len(self.held)).split(VALIDATION_BATCH)):
                x, noisy = self._noisy(self.held.floats(index), seeds.generator(s.seed, "validation", vote, number))
                total += float(measure(noisy, x, index).sum())
        return total / (s.validation_votes * len(self.held))

    def _noisy(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x and x + δ on the device of the white part; the noise is the same on every device."""
        noise = torch.randn(x.shape, generator=generator)
        noisy = (x + self.settings.sigma * noise).contiguous(memory_format=torch.channels_last)
        device = next(self.pipeline.parameters()).device
        return x.to(device), noisy.to(device)

    def _stability(self, z: Tensor, target: Tensor, image_shape: torch.Size, step: int, live: Tensor | None) -> Tensor:
        """ℓ(R(f)(x+δ), f(x)) of each image (b,), with the gradient of the method's order."""
        loss = losses.LOSSES[self.client.spec.outputs]
        if self.method.order == 1:
            images = self.pipeline.images(z, image_shape)
            if self.pipeline.classifier is not None:
                return loss(self.pipeline.classifier(self.client.spec.prepare(images)), target)
            return loss(self.client.white(images), target)
        assert self.settings.estimator is not None
        objective = StabilityObjective(self.pipeline, self.client, loss, target, tuple(image_shape))
        directions = seeds.generator(self.settings.seed, "directions", step, device=z.device)
        return estimated_loss(objective, z, self.settings.estimator, directions, live)

    def _outputs(self, x: Tensor) -> Tensor:
        """Answers of the robustified model while it trains; passes of a white box are not queries."""
        images = self.pipeline(x)
        if self.pipeline.classifier is not None:
            return self.pipeline.classifier(self.client.spec.prepare(images))
        return self.client.white(images) if self.method.order == 1 else self.client(images)

    def _clean(self, images: Images) -> Tensor:
        """Targets of clean images: labels for RS where there are some, else the box's own answers."""
        if self.settings.method == "RS" and images.labels is not None:
            return images.labels
        kind, hard = self.client.spec.outputs, self.settings.hard_targets
        batches = torch.arange(len(images)).split(self.client.batch_size)
        with torch.inference_mode():
            return torch.cat(
                [losses.targets(self.client(images.floats(index)), kind, hard) for index in batches]
            ).clone()

    def _count_classes(self) -> int:
        """K, or 0 for a box that does not classify: as declared, else as answered."""
        if self.client.spec.outputs == "values":
            return 0
        if self.pipeline.classifier is not None:
            self.pipeline.eval()
            x = self.shown.floats(slice(0, 1)).to(next(self.pipeline.parameters()).device)
            with torch.inference_mode():
                return self._outputs(x).shape[1]
        return self.client.spec.num_classes or self.client.num_outputs or 0

    def _train_mode(self) -> None:
        self.pipeline.train()
        if self.pipeline.autoencoder is not None and self.settings.scheme != "denoiser+autoencoder":
            self.pipeline.autoencoder.decoder.eval()
            self.pipeline.autoencoder.encoder.train(self.settings.scheme == "denoiser+encoder")

    def parameters(self) -> list[nn.Parameter]:
        """Freeze everything but what the method and its scheme train."""
        self.pipeline.requires_grad_(False)
        trained: list[nn.Module | None] = [self.pipeline.denoiser, self.pipeline.classifier]
        if self.pipeline.autoencoder is not None:
            parts = {"denoiser": None, "denoiser+encoder": self.pipeline.autoencoder.encoder}
            trained.append(parts.get(self.settings.scheme, self.pipeline.autoencoder))
        for module in trained:
            if module is not None:
                module.requires_grad_(True)
        return [parameter for parameter in self.pipeline.parameters() if parameter.requires_grad]

    def _can_skip(self) -> bool:
        autoencoder = self.pipeline.autoencoder
        return (
            self.method.order == 0 and self.settings.skip_dead and autoencoder is not None and autoencoder.nonnegative
        )

    def _scored(self, phase: Phase) -> bool:
        return self.method.order is None or phase.objective == "full"


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    """E‖a − b‖²: summed over pixels, averaged over the batch; (b, ...) -> ()."""
    return (a - b).flatten(1).square().sum(1).mean()


def mean_over(images: Images, batch: int, measure: Callable[[Tensor], Tensor]) -> float:
    """Mean of measure(x) over all images, in batches."""
    parts = torch.arange(len(images)).split(batch)
    return sum(float(measure(images.floats(index)).sum()) for index in parts) / len(images)


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
    if method.order == 1:
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
    if settings.method == "RS" and classifier is None:
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
    x = images.floats(slice(0, 8))
    noisy = x + settings.sigma * torch.randn(x.shape, generator=seeds.generator(settings.seed, "step"))
    noisy = noisy.to(next(pipeline.parameters()).device)
    directions = seeds.generator(settings.seed, "step directions", device=noisy.device)
    share = surviving_share(pipeline, noisy, estimator, levels, directions)
    if share < 0.5:
        mu = getattr(estimator, "mu", None)
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
        raise InvalidInput(f"{method} got no gamma; wanted the weight of the stability term, such as gamma=1.0")
    return 1.0 if gamma is None else gamma


def _plain(settings: Settings) -> dict[str, Any]:
    """Settings as plain values; an estimator by its type and fields."""
    estimator = settings.estimator
    fields = asdict(estimator) if is_dataclass(estimator) and not isinstance(estimator, type) else {}
    plain: dict[str, Any] = {**vars(settings), "schedule": asdict(settings.schedule)}
    plain["estimator"] = {"name": type(estimator).__name__, **fields} if estimator is not None else None
    return plain

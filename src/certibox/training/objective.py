"""What training minimises: eq. 2 at one batch, its targets, and the validation score that selects an epoch.

min_θ  w E‖D_θ(x+δ) − x‖²  +  γ E ℓ(R(f)(x+δ), f(x))  +  λ E‖ψ_dec(z) − x‖²          (eq. 2, and a free white term)

with squared norms summed over pixels. First order differentiates ℓ through the box; zeroth order puts an estimate of
∇_z ℓ, made from queries, in its place (eq. 8). Everything else is the same code.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from certibox import seeds
from certibox.blackbox.base import is_told_apart
from certibox.data import Images, augment
from certibox.defense.pipeline import RobustPipeline
from certibox.errors import BoxChanged, Notice
from certibox.estimators import CGE, GradientEstimator, Guided, Subset, estimated_loss
from certibox.estimators.step_size import choose_step, precision_is_safe
from certibox.queries.client import QueryClient
from certibox.queries.fingerprint import moved
from certibox.training import losses
from certibox.training.checks import labels_are_targets
from certibox.training.divergence import require_finite
from certibox.training.loop import Task
from certibox.training.methods import METHODS, Method
from certibox.training.schedules import Phase
from certibox.training.settings import TrainingSettings
from certibox.training.stability import SENT, StabilityObjective, tf32_is_on
from certibox.training.steps import Step
from certibox.training.surrogate import BATCH, GuidedStability, Surrogate, probe, resolved, surrogate_for

DISTILL_PASSES = 3  # over what the surrogate knows before its gradient is first used
CANARIES = 8  # answers to training images by which a resumed run recognises a box without a name
VALIDATION_BATCH = 128  # validation noise is drawn in batches of this size, whatever the box takes at a time


@dataclass
class Objective:
    """One run of `train`: settings, data and the white part, with the terms of a step and the validation score."""

    settings: TrainingSettings
    """Settings of the run."""
    client: QueryClient
    """Meter around the box."""
    pipeline: RobustPipeline
    """White part that trains."""
    shown: Images
    """Training images."""
    held: Images
    """Validation images."""
    num_classes: int | None = None
    """Number of classes K, once it is known."""
    surrogate: Surrogate | None = None
    """Network that learns the box, for `Guided`."""
    step_choice: dict[str, Any] | None = None
    """How the step mu was measured, where it was."""

    @property
    def method(self) -> Method:
        return METHODS[self.settings.method]

    def prepare(self, constants: dict[str, Tensor]) -> Task:
        """Fetch the targets once, and say what trains."""
        if not constants and self.method.order is not None:
            (shown, answers), (held, _) = self._clean(self.shown), self._clean(self.held)
            constants = {"shown": shown, "held": held}
            if isinstance(self.settings.estimator, Guided) and self.method.order == 0:
                constants["answers"] = answers
            if self._may_change:
                constants["canaries"] = answers[:CANARIES].clone()
            constants["num_classes"] = torch.tensor(self._count_classes())
        self.constants = constants
        self.num_classes = int(constants["num_classes"]) or None if constants else self.client.spec.num_classes
        remedy = "lower the learning rate or gamma" if self.settings.stability_weight else "lower the learning rate"
        return Task(self.pipeline, self.parameters(), self.terms, self.score, self._scored, constants, self, remedy)

    @property
    def _may_change(self) -> bool:
        """Whether only answers can tell the box from another, and the run has some."""
        asks = self.method.order is not None and not labels_are_targets(self.settings, self.shown)
        return asks and not is_told_apart(self.client.box)

    def recognise(self, constants: dict[str, Tensor]) -> None:
        """Ask a box that nothing else tells apart about images whose answers the run has paid for: is it the same?

        Args:
            constants: Constants of the checkpoint that the run goes on from.

        Raises:
            BoxChanged: The box answers otherwise.
        """
        if not self._may_change:
            return
        if (then := constants.get("canaries")) is None:
            warnings.warn(
                f"nothing tells box {self.client.spec.name} from another, and this run began before answers were kept "
                "to recognise it by: give the model a name",
                Notice,
                stacklevel=2,
            )
            return
        with self.client.phase("canaries"), torch.inference_mode():
            now = self.client(self.shown.floats(slice(0, len(then))))
        if reason := moved(then.cpu().numpy(), now.cpu().numpy(), self.client.spec.outputs):
            raise BoxChanged(f"the model has changed since this run began: {reason}; use another out, or that model")

    def keep(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What was learned of the box beside the weights: the surrogate, if there is one, and the measured step."""
        held, notes = ({}, {}) if self.surrogate is None else (self.surrogate.tensors(), self.surrogate.notes())
        return held, {"surrogate": notes, "step": self.step_choice}

    def restore(self, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """The inverse of `keep`."""
        self.step_choice = notes.get("step")
        if held := notes.get("surrogate"):
            self.surrogate = self._new_surrogate()
            self.surrogate.load(tensors, held)

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
        require_finite(z.detach(), "the embedding is")  # before the box is asked, and blamed, for it
        if s.reconstruction_weight:
            terms["reconstruction"] = squared_error(self.pipeline.images(z, x.shape[1:]), x)
            loss = loss + s.reconstruction_weight * terms["reconstruction"]
        target = self.constants["shown"][step.index].to(z.device)
        live = z.detach() > 0 if self._can_skip() else None
        if live is not None:
            terms["live"] = live.sum(1).float().mean()
        stability, told = self._stability(z, target, tuple(x.shape[1:]), step, live)
        terms |= {"stability": stability.mean(), **told}
        return terms | {"loss": loss + s.stability_weight * terms["stability"]}

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
        return x.to(self._device), noisy.to(self._device)

    def _stability(
        self, z: Tensor, target: Tensor, image_shape: tuple[int, ...], step: Step, live: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """ℓ(R(f)(x+δ), f(x)) of each image (b,) with the gradient of the method's order, and what to log of it."""
        loss = losses.LOSSES[self.client.spec.outputs]
        if self.method.order == 1:
            images = self.pipeline.images(z, image_shape)
            require_finite(images.detach(), SENT)
            if self.pipeline.classifier is not None:
                return loss(self.pipeline.classifier(self.client.spec.prepare(images)), target), {}
            return loss(self.client.white(images), target), {}
        directions = seeds.generator(self.settings.seed, "directions", step.number, device=z.device)
        asked = StabilityObjective(self.pipeline, self.client, loss, target, image_shape)
        estimator = self._estimator(asked, z.detach(), live)
        asked = replace(asked, exact=not self._tf32_is_safe)
        if isinstance(estimator, Guided):
            return self._guided(estimator, asked, z, directions, live)
        return estimated_loss(asked, z, estimator, directions, live), {}

    def _estimator(self, asked: StabilityObjective, z: Tensor, live: Tensor | None) -> GradientEstimator:
        """The estimator with its step: measured at the first points that it is wanted at, where mu is "auto"."""
        estimator = self.settings.estimator
        assert estimator is not None
        if isinstance(estimator, Guided) and self.client.spec.outputs == "labels":
            estimator = replace(estimator, q=0)  # labels have no slope: nothing to measure or to correct
        inner = estimator.estimator if isinstance(estimator, Subset) else estimator
        steps = not isinstance(inner, Guided) or inner.q != 0
        if getattr(inner, "mu", None) != "auto" or not steps:
            return estimator
        nothing_moves = live is not None and not live.any()  # no difference is taken, whatever the step
        mu = 1.0 if nothing_moves and self.step_choice is None else self._step(inner, asked, z, live)
        inner = replace(inner, mu=mu)  # pyright: ignore
        return replace(estimator, estimator=inner) if isinstance(estimator, Subset) else inner

    def _step(self, estimator: GradientEstimator, asked: StabilityObjective, z: Tensor, live: Tensor | None) -> float:
        """The step that was measured, or is now; with it, whether TF32 may be used."""
        if self.step_choice is None:
            generator = seeds.generator(self.settings.seed, "step size", device=z.device)
            axes, central = isinstance(estimator, CGE), bool(getattr(estimator, "central", False))
            chosen = choose_step(asked, z, generator, coordinates=axes, central=central, live=live)
            self.step_choice = chosen.as_dict()
            if tf32_is_on(z.device):
                fast = replace(asked, exact=False)
                safe = precision_is_safe(
                    asked, fast, z, chosen.mu, generator, coordinates=axes, central=central, live=live
                )
                self.step_choice["tf32"] = safe.as_dict()
        return self.step_choice["mu"]

    @property
    def _tf32_is_safe(self) -> bool:
        """Whether differences were measured to come out the same in TF32; off until then."""
        return bool(self.step_choice and self.step_choice.get("tf32", {}).get("safe"))

    def _guided(
        self,
        guided: Guided,
        asked: StabilityObjective,
        z: Tensor,
        directions: torch.Generator,
        live: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss with the gradient of a surrogate that learns on the way, and what that gradient is worth."""
        self.surrogate = surrogate = self.surrogate or self._new_surrogate()
        if not surrogate.distilled:
            self._distill(guided, surrogate)
        objective = GuidedStability(asked, surrogate, z.detach(), guided.surrogate, guided.updates)
        if guided.q != "auto":
            return estimated_loss(objective, z, guided, directions, live), {}
        if surrogate.steps % guided.probe_every == 0:
            probe(objective, guided, directions, live)
        surrogate.steps += 1
        matter = z.shape[1] if live is None else max(1, round(float(live.sum(1).float().mean())))
        guided = resolved(guided, surrogate, matter)
        told = {"cosine": z.new_tensor(surrogate.alignment.cosine), "q": z.new_tensor(float(guided.q))}
        return estimated_loss(objective, z, guided, directions, live), told

    def _new_surrogate(self) -> Surrogate:
        kind, autoencoder = self.client.spec.outputs, self.pipeline.autoencoder
        c, h, w = self.shown.shape
        outputs = self.num_classes or math.prod(self.constants["shown"].shape[1:])
        guided, d = self.settings.estimator, autoencoder.d_z if autoencoder else c * h * w
        assert isinstance(guided, Guided)
        made = surrogate_for(guided, kind, d, (c, h, w), outputs, self.settings.seed)
        made.network.to(self._device)
        return made

    def _distill(self, guided: Guided, surrogate: Surrogate) -> None:
        """Teach the surrogate before its gradient is first used, with the answers to `guided.distill` new queries.

        A surrogate of images also learns from the answers to the clean training images, which the targets have paid
        for. Its new queries are batches of two kinds: the first batch, and every third after it, holds noisy images;
        all other batches hold noisy images as the defense decodes them. A surrogate of embeddings learns from the
        embeddings of noisy images alone.
        """
        sees_images, batch = guided.surrogate == "image", self.settings.schedule.batch_size
        if sees_images:
            for index in torch.arange(len(self.shown)).split(VALIDATION_BATCH):
                surrogate.memory.add(
                    self.shown.floats(index).to(self._device), self.constants["answers"][index].to(self._device)
                )
        self.pipeline.eval()
        with torch.inference_mode():
            for number, first in enumerate(range(0, guided.distill, batch)):
                index = torch.arange(first, min(first + batch, guided.distill)) % len(self.shown)
                generator = seeds.generator(self.settings.seed, "distill", number)
                x, noisy = self._noisy(self.shown.floats(index), generator)
                z = self.pipeline.embed(self.pipeline.denoise(noisy))
                images = noisy if sees_images and number % 3 == 0 else self.pipeline.images(z, x.shape[1:])
                require_finite(images, SENT)
                surrogate.memory.add(images if sees_images else z, self.client(images))
        self._train_mode()
        if len(surrogate.memory):
            surrogate.learn(math.ceil(DISTILL_PASSES * len(surrogate.memory) / BATCH))
        surrogate.distilled = True

    @property
    def _device(self) -> torch.device:
        return next(self.pipeline.parameters()).device

    def _outputs(self, x: Tensor) -> Tensor:
        """Answers of the robustified model while it trains; passes of a white box are not queries."""
        images = self.pipeline(x)
        require_finite(images, SENT)
        if self.pipeline.classifier is not None:
            return self.pipeline.classifier(self.client.spec.prepare(images))
        return self.client.white(images) if self.method.order == 1 else self.client(images)

    def _clean(self, images: Images) -> tuple[Tensor, Tensor]:
        """Targets of clean images and the box's own answers; for RS, labels where there are some are both."""
        if images.labels is not None and labels_are_targets(self.settings, images):
            return images.labels, images.labels
        batches = torch.arange(len(images)).split(self.client.batch_size)
        with torch.inference_mode():
            answers = torch.cat([self.client(images.floats(index)) for index in batches])
            targets = losses.targets(answers, self.client.spec.outputs, self.settings.targets == "hard")
        return targets.clone(), answers.clone()

    def _count_classes(self) -> int:
        """K, or 0 for a box that does not classify: as declared, else as answered."""
        if self.client.spec.outputs == "values":
            return 0
        if self.pipeline.classifier is not None:
            self.pipeline.eval()
            x = self.shown.floats(slice(0, 1)).to(self._device)
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

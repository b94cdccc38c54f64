"""Schedules: how long, how fast and towards what a network trains. Frozen values that a YAML file can spell."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from certibox.errors import InvalidInput
from certibox.storage import values

OPTIMIZERS, OBJECTIVES, SHAPES = ("adam", "sgd"), ("full", "denoise"), ("step", "one-cycle")
MOST_LR = 1e30  # beyond it, a step is infinite in single precision
LR_WANTED = "a learning rate above 0, such as 0.001"
MOST_EPOCHS = 10**6
# What the command line and `CertifiedClassifier` do unless told otherwise.
EPOCHS, AUTOENCODER_EPOCHS = 20, 50  # on the full objective, and of pre-training
DENOISE_EPOCHS = 20  # free, so they come first: docs/measurements/query-efficiency.md
AUTOENCODER_RATE = 3e-3


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one optimizer.

    Raises:
        InvalidInput: A value is out of its range, or a name is unknown.
    """

    epochs: int
    """Number of passes over the training images."""
    lr: float
    """Learning rate; the peak of it for `one-cycle`."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Optimizer: adam, or sgd with a momentum of 0.9."""
    objective: Literal["full", "denoise"] = "full"
    """Objective: full is eq. 2, denoise its first term alone, which costs no query."""
    shape: Literal["step", "one-cycle"] = "step"
    """Course of the learning rate: `step` multiplies it by `decay` every `decay_every` epochs; `one-cycle` raises it
    over the first 30 % of the steps and lowers it to 0 along a cosine."""
    decay_every: int | None = None
    """Number of epochs between decays of `step`; None for a constant rate."""
    decay: float = 0.1
    """Factor of a decay of `step`."""
    weight_decay: float = 0.0
    """Weight decay of the optimizer."""

    def __post_init__(self) -> None:
        values.settle(
            self,
            epochs=values.whole("epochs", self.epochs, 0, MOST_EPOCHS, "a whole number of epochs, at least 0"),
            lr=values.number("lr", self.lr, LR_WANTED, low=0, high=MOST_LR, above=True),
            decay=values.number("decay", self.decay, "a factor above 0, such as 0.1", low=0, above=True),
            weight_decay=values.number("weight_decay", self.weight_decay, "a finite number, at least 0", low=0),
        )
        if self.decay_every is not None:
            wanted = "at least 1, or None for a constant rate"
            values.settle(self, decay_every=values.whole("decay_every", self.decay_every, 1, wanted=wanted))
        for name, table in (("optimizer", OPTIMIZERS), ("objective", OBJECTIVES), ("shape", SHAPES)):
            values.known(name, getattr(self, name), table)

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate at a step of this phase.

        Args:
            step: Number of the step, from 0.
            steps_per_epoch: Number of steps in a pass over the images.
        """
        if self.shape == "step":
            drops = step // steps_per_epoch // self.decay_every if self.decay_every else 0
            return self.lr * self.decay**drops
        progress = (step + 0.5) / max(1, self.epochs * steps_per_epoch)
        rise = 0.3
        if progress < rise:
            return self.lr * progress / rise
        return self.lr * 0.5 * (1 + math.cos(math.pi * (progress - rise) / (1 - rise)))


@dataclass(frozen=True)
class Schedule:
    """How long, how fast and towards what a network trains.

    Raises:
        InvalidInput: A step would hold fewer than two images, or a phase is something else.
    """

    phases: tuple[Phase, ...]
    """Phases in their order."""
    batch_size: int
    """Number of images a step, at least 2."""

    def __post_init__(self) -> None:
        phases = tuple(self.phases) if isinstance(self.phases, Iterable) else (self.phases,)
        if not all(isinstance(phase, Phase) for phase in phases):
            raise InvalidInput(f"phases is {values.shown(self.phases)}; wanted a tuple of Phase, see one_cycle")
        wanted = "a whole number, at least 2, for batch normalisation"
        values.settle(self, phases=phases, batch_size=values.whole("batch_size", self.batch_size, 2, wanted=wanted))

    def steps_per_epoch(self, images: int) -> int:
        """Number of steps in a pass over the images; a last batch of one image joins no step.

        Args:
            images: Number of training images.
        """
        full, rest = divmod(images, self.batch_size)
        return full + (rest > 1)

    @property
    def epochs(self) -> int:
        """Epochs of all phases."""
        return sum(phase.epochs for phase in self.phases)


def paper_scratch(lr: float = 1e-3, batch_size: int = 256) -> Schedule:
    """The paper's training from scratch: Adam for 200 epochs, then SGD dropping tenfold every 200; 600 in all.

    ZO-DS starts at lr 1e-4. The paper states no batch size; 256, and a weight decay of 1e-4, are the released code's.

    Args:
        lr: Learning rate at the start of both phases.
        batch_size: Number of images a step.
    """
    sgd = Phase(400, lr, optimizer="sgd", decay_every=200, weight_decay=1e-4)
    return Schedule((Phase(200, lr, weight_decay=1e-4), sgd), batch_size)


def paper_finetune(lr: float = 1e-5, batch_size: int = 256) -> Schedule:
    """The paper's pre-training and fine-tuning: Adam on the MSE for 90 epochs, then 200 of stability, /10 every 40.

    ZO-DS starts at lr 1e-6. Give `denoise_weight=0` to train the second stage on stability alone, as the release does.

    Args:
        lr: Learning rate at the start of the second phase.
        batch_size: Number of images a step.
    """
    pretrain = Phase(90, 1e-3, objective="denoise", weight_decay=1e-4)
    return Schedule((pretrain, Phase(200, lr, decay_every=40, weight_decay=1e-4)), batch_size)


def one_cycle(epochs: int, lr: float = 1e-3, batch_size: int = 64, denoise_epochs: int = 0) -> Schedule:
    """A short schedule: an optional query-free phase on the MSE, then one cycle of Adam on the full objective.

    Args:
        epochs: Number of epochs on the full objective.
        lr: Peak learning rate of both phases.
        batch_size: Number of images a step.
        denoise_epochs: Number of epochs on denoising alone, before the others.
    """
    values.whole("denoise_epochs", denoise_epochs, 0, MOST_EPOCHS, "a whole number of epochs, at least 0")
    warm = (Phase(denoise_epochs, lr, objective="denoise", shape="one-cycle"),) if denoise_epochs else ()
    return Schedule((*warm, Phase(epochs, lr, shape="one-cycle")), batch_size)


SCHEDULES = {"paper-scratch": paper_scratch, "paper-finetune": paper_finetune, "one-cycle": one_cycle}

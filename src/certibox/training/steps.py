"""The steps of a schedule: each a batch of images whose order a seed decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from certibox import seeds
from certibox.training.schedules import Phase, Schedule

Progress = Callable[[int, int, str], None]  # done, total, what is going on


@dataclass(frozen=True)
class Step:
    """One step: which images it takes, and where it stands."""

    number: int
    """Number of the step over all phases, from 0."""
    epoch: int
    """Number of the epoch over all phases, from 0."""
    phase: Phase
    """Phase that the step belongs to."""
    index: Tensor
    """Places (b,) of its images among the training images."""
    lr: float
    """Learning rate of the step."""
    starts_phase: bool
    """Whether it is the first step of its phase."""
    ends_epoch: bool
    """Whether it is the last step of its epoch."""
    phase_epoch: int = 0
    """Number of the epoch in its own phase, from 0."""
    ends_phase: bool = False
    """Whether it is the last step of its phase."""


def steps(schedule: Schedule, images: int, seed: int, start: int) -> Iterator[Step]:
    """The steps of a schedule; each epoch is a permutation of the images with a seed of its own.

    Args:
        schedule: Phases of training and images a step.
        images: Number of training images.
        seed: Seed of the permutations.
        start: Number of the first step to give: the steps before it are done.
    """
    per_epoch, number, epoch = schedule.steps_per_epoch(images), 0, 0
    for phase in schedule.phases:
        for phase_epoch in range(phase.epochs):
            if number + per_epoch > start:
                order = torch.randperm(images, generator=seeds.generator(seed, "order", epoch))
                for i in range(max(0, start - number), per_epoch):
                    index = order[i * schedule.batch_size : (i + 1) * schedule.batch_size]
                    lr = phase.learning_rate(phase_epoch * per_epoch + i, per_epoch)
                    first, last = phase_epoch == 0 and i == 0, i == per_epoch - 1
                    done = last and phase_epoch == phase.epochs - 1
                    yield Step(number + i, epoch, phase, index, lr, first, last, phase_epoch, done)
            number, epoch = number + per_epoch, epoch + 1

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
    """One step: which images it takes, and where it stands. number, epoch: counted over all phases, from 0.

    phase_epoch: counted in its own phase. ends_phase: the last step of the phase's last epoch.
    """

    number: int
    epoch: int
    phase: Phase
    index: Tensor
    lr: float
    starts_phase: bool
    ends_epoch: bool
    phase_epoch: int = 0
    ends_phase: bool = False


def steps(schedule: Schedule, images: int, seed: int, start: int) -> Iterator[Step]:
    """The steps of `schedule` over `images` from number `start` on; each epoch is a permutation of its own seed."""
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

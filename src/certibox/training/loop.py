"""The one training loop: steps of a schedule, checkpoints, rows, selection, and resuming to the very step.

Every draw of a step comes from a seed that names the step, so the state to keep is only weights, optimizer, counters
and where the rows and the journal stood. What happened after the last checkpoint is done again on resuming, with the
journal of the query client replaying the answers that were already paid for.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from certibox.errors import InvalidInput
from certibox.queries.client import QueryClient
from certibox.queries.journal import Journal
from certibox.queries.meter import Tally
from certibox.seeds.switches import settled
from certibox.storage.files import exclusive
from certibox.storage.tensors import (
    Tensors,
    load_module,
    load_optimizer,
    optimizer_tensors,
    prefixed,
    read_tensors,
    under,
    write_tensors,
)
from certibox.training.divergence import require_finite, require_sound, said_with
from certibox.training.run_directory import RunDirectory
from certibox.training.schedules import Phase, Schedule
from certibox.training.steps import Progress, Step, steps
from certibox.training.tracking import Tracker, numbers


@dataclass
class State:
    """What a checkpoint holds beside tensors: counters, sums of the epoch under way, and the best score so far."""

    step: int = 0
    offset: int = 0
    journal: int = 0
    queries: int = 0
    best: float | None = None
    best_epoch: int | None = None
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    stale: int = 0  # scored epochs since the best
    notes: dict[str, Any] = field(default_factory=dict)


class Memory(Protocol):
    """What a task learns on the way beside the module's weights, and a checkpoint must keep."""

    def keep(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values as they are now."""
        ...

    def restore(self, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """The inverse of `keep`."""
        ...


@dataclass(frozen=True)
class Task:
    """What to train, and towards what."""

    module: nn.Module
    """Module whose weights and statistics a checkpoint keeps."""
    parameters: list[nn.Parameter]
    """Parameters that train."""
    terms: Callable[[Step], dict[str, Tensor]]
    """Function of a step -> named scalars, of which `loss` is minimised."""
    score: Callable[[], float] | None
    """Function that gives a validation score, higher is better; None to keep the last weights."""
    scored: Callable[[Phase], bool]
    """Function of a phase: whether its epochs have a score."""
    constants: dict[str, Tensor]
    """Tensors that are fetched before the first step and kept with the checkpoint."""
    memory: Memory | None = None
    """Whatever else changes from step to step, such as a surrogate."""
    remedy: str = "lower the learning rate"
    """Words for what to do when training diverges."""


@settled()
def run(
    prepare: Callable[[dict[str, Tensor]], Task],
    images: int,
    schedule: Schedule,
    seed: int,
    *,
    client: QueryClient | None = None,
    directory: RunDirectory | None = None,
    tracker: Tracker | None = None,
    settings: Mapping[str, Any] | None = None,
    checkpoint_every: int = 200,
    patience: int | None = None,
    score_every: int = 1,
    progress: Progress | None = None,
    recognise: Callable[[Tensors], None] | None = None,
) -> Task:
    """Train to the end of a schedule and leave the selected weights in the task's module.

    Args:
        prepare: Function that builds the task from the constants of an earlier checkpoint (none at first).
        images: Number of training images.
        schedule: Phases of training and images a step.
        seed: Seed of the order of the images.
        client: Meter of the box, where the task asks one; with a ledger, answers paid for since the checkpoint are
            replayed.
        directory: Directory of the run, whose checkpoint is resumed from.
        tracker: Tracker that is told the settings, then the values of each epoch, and is closed at the end.
        settings: Settings of the run, for the tracker.
        checkpoint_every: Number of steps between checkpoints.
        patience: Number of scores in a row, none better than the best before, after which training ends.
        score_every: Number of epochs of a phase between scores; its end is scored in any case.
        progress: Function of (steps done, steps in all, a text), called after every step.
        recognise: Function that is given the constants of an earlier checkpoint before anything goes on from it, and
            raises where the box is not the one that they came from.
    """
    if schedule.epochs and not schedule.steps_per_epoch(images):
        raise InvalidInput(f"there is {images} image to train on; wanted at least 2, for batch normalisation")
    if checkpoint_every < 1:
        raise InvalidInput(f"checkpoint_every is {checkpoint_every}; wanted at least 1 step between checkpoints")
    if patience is not None and patience < 1:
        raise InvalidInput(f"patience is {patience}; wanted at least 1 validation")
    if score_every < 1:
        raise InvalidInput(f"validate_every is {score_every}; wanted at least 1 epoch between validations")
    counting = client.counting() if client else nullcontext(Tally())
    with ExitStack() as stack:
        stack.enter_context(exclusive(directory.path / "rows.jsonl") if directory else nullcontext())
        if tracker:
            stack.callback(tracker.close)
            tracker.start(json.loads(json.dumps(settings or {})))  # plain, as config.json has them
        tensors, state = _restore(directory)
        if recognise and tensors["constants"]:
            recognise(tensors["constants"])
        replaying = client.journal(directory.scope, state.journal) if client and directory else nullcontext()
        with counting as tally, replaying as journal:
            if journal:
                journal.trim()  # in case the last run ended between its checkpoint and this
            task = prepare(tensors["constants"])
            loop = _Loop(task, schedule, state, tensors, tally, directory, tracker, journal, progress)
            loop.go(images, seed, checkpoint_every, patience, score_every)
    return task


class _Loop:
    """The moving parts of `run`."""

    def __init__(
        self,
        task: Task,
        schedule: Schedule,
        state: State,
        tensors: dict[str, Tensors],
        tally: Tally,
        directory: RunDirectory | None,
        tracker: Tracker | None,
        journal: Journal | None,
        progress: Progress | None,
    ) -> None:
        self.task, self.schedule, self.state = task, schedule, state
        self.tally, self.directory, self.journal, self.progress = tally, directory, journal, progress
        self.tracker = tracker
        self.optimizer: torch.optim.Optimizer | None = None
        self.optimizer_tensors, self.best = tensors["optimizer"], tensors["best"]
        if tensors["module"]:
            load_module(task.module, tensors["module"], "checkpoint")
            if task.memory:
                task.memory.restore(tensors["memory"], state.notes)
        self._saved = 0  # answers delivered before the last save
        self._kept = state.step  # step of the last checkpoint

    def go(self, images: int, seed: int, checkpoint_every: int, patience: int | None, score_every: int) -> None:
        if self.directory and not self.directory.checkpoint.exists():
            self._save()
        total = self.schedule.epochs * self.schedule.steps_per_epoch(images)
        for step in steps(self.schedule, images, seed, self.state.step):
            if patience is not None and self.state.stale >= patience:
                break
            if step.starts_phase or self.optimizer is None:
                self._begin(step)
            self._advance(step)
            if step.ends_epoch:
                due = step.ends_phase or (step.phase_epoch + 1) % score_every == 0
                self._end_epoch(step, due)
            if step.ends_epoch or step.number % checkpoint_every == checkpoint_every - 1:
                self._save()
            if self.progress:
                self.progress(step.number + 1, total, f"epoch {step.epoch + 1}/{self.schedule.epochs}")
        if self.best:
            load_module(self.task.module, self.best, "selected weights")
        self.task.module.eval()

    def _begin(self, step: Step) -> None:
        """A fresh optimizer for a phase, or the one of the checkpoint in the middle of a phase."""
        if step.starts_phase and self.state.best is None and self.task.score and self.task.scored(step.phase):
            self._select(self._score(step), None)  # the start is a candidate too: training must not end below it
        parameters, decay = self.task.parameters, step.phase.weight_decay
        if step.phase.optimizer == "adam":
            self.optimizer = torch.optim.Adam(parameters, lr=step.lr, weight_decay=decay)
        else:
            self.optimizer = torch.optim.SGD(parameters, lr=step.lr, momentum=0.9, weight_decay=decay)
        if self.optimizer_tensors and not step.starts_phase:
            load_optimizer(self.optimizer, self.optimizer_tensors)
        self.optimizer_tensors = {}

    def _advance(self, step: Step) -> None:
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = step.lr
        with said_with(step.number, self._advice):
            terms = self.task.terms(step)
            self.optimizer.zero_grad(set_to_none=True)
            terms["loss"].backward()
            self.optimizer.step()
            for name, value in terms.items():
                self.state.sums[name] = self.state.sums.get(name, 0.0) + float(value.detach())
            require_sound(self.state.sums["loss"], self.task.parameters)
        self.state.count, self.state.step = self.state.count + 1, step.number + 1

    def _end_epoch(self, step: Step, due: bool) -> None:
        state = self.state
        means = {name: value / state.count for name, value in state.sums.items()}
        score = self._score(step) if self.task.score and due and self.task.scored(step.phase) else None
        if score is not None:
            self._select(score, step.epoch)
        row = {"epoch": step.epoch, "step": state.step, "objective": step.phase.objective, "lr": step.lr, **means}
        row |= {"validation": score, "queries": state.queries + self._fresh()}
        if self.directory:
            self.directory.append(row)
        if self.tracker:
            self.tracker.log(numbers(row), state.step)
        state.sums, state.count = {}, 0

    def _score(self, step: Step) -> float:
        assert self.task.score is not None
        with said_with(step.number, self._advice):
            score = self.task.score()
            require_finite(torch.tensor(score), "the validation score is")
        return score

    @property
    def _advice(self) -> str:
        """What to do after training has diverged."""
        if self.directory is None:
            return self.task.remedy
        return f"{self.task.remedy}; the checkpoint of step {self._kept} is kept in {self.directory.path}"

    def _select(self, score: float, epoch: int | None) -> None:
        self.state.stale += 1
        if self.state.best is None or score > self.state.best:
            self.state.best, self.state.best_epoch, self.state.stale = score, epoch, 0
            self.best = copy.deepcopy(self.task.module.state_dict())

    def _fresh(self) -> int:
        """Answers delivered since the last save, bought or replayed."""
        return self.tally.delivered - self._saved

    def _save(self) -> None:
        if self.directory is None:
            return
        self.state.queries += self._fresh()
        self._saved = self.tally.delivered
        self.state.offset = self.directory.offset
        self.state.journal = self.journal.position if self.journal else 0
        optimizer = optimizer_tensors(self.optimizer) if self.optimizer else {}
        memory, self.state.notes = self.task.memory.keep() if self.task.memory else ({}, {})
        parts = {
            "module": self.task.module.state_dict(),
            "best": self.best,
            "optimizer": optimizer,
            "constants": self.task.constants,
            "memory": memory,
        }
        flat = {key: value for prefix, part in parts.items() for key, value in prefixed(prefix, part).items()}
        write_tensors(self.directory.checkpoint, flat, vars(self.state))
        self._kept = self.state.step
        if self.journal:
            self.journal.trim()  # only now: the checkpoint covers these answers


def _restore(directory: RunDirectory | None) -> tuple[dict[str, Tensors], State]:
    names = ("module", "best", "optimizer", "constants", "memory")
    if directory is None or not directory.checkpoint.exists():
        if directory:
            directory.rewind(0)
        return {name: {} for name in names}, State()
    flat, facts = read_tensors(directory.checkpoint)
    state = State(**facts)
    directory.rewind(state.offset)
    return {name: under(name, flat) for name in names}, state

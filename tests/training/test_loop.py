"""The loop against plain arithmetic: its steps, its optimizers, its selection, and stops at every possible moment."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certibox import seeds
from certibox.errors import CertiboxError, ConfigMismatch, InvalidInput, UnreadableFile
from certibox.queries.client import QueryClient
from certibox.storage.tensors import module_digest, read_tensors, write_tensors
from certibox.training import loop
from certibox.training.loop import Task, run
from certibox.training.run_directory import RunDirectory
from certibox.training.schedules import Phase, Schedule
from certibox.training.steps import Step, steps
from doubles import CountingBox, LinearBox

IMAGES, SEED = 11, 5
CONFIG: dict[str, Any] = {"method": "test", "lr": 0.1, "seed": SEED}
MIXED = Schedule((Phase(1, 0.1, objective="denoise"), Phase(2, 0.01), Phase(2, 0.1, "sgd", weight_decay=0.01)), 4)


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


class Job:
    """A regression whose terms and scores are numbered events; `event` hears of each before it happens."""

    def __init__(self, client: QueryClient | None = None, event: Callable[[str], None] = lambda name: None) -> None:
        self.module, self.client, self.event = network(), client, event
        self.prepared = 0
        self.batches: list[list[int]] = []

    def prepare(self, constants: dict[str, Tensor]) -> Task:
        if not constants:
            self.prepared += 1
            constants = {"targets": self.ask(torch.linspace(0, 1, IMAGES)) if self.client else torch.ones(IMAGES)}
        parameters = [*self.module.parameters()]
        return Task(self.module, parameters, self.terms, self.score, lambda phase: phase.objective == "full", constants)

    def ask(self, numbers: Tensor) -> Tensor:
        """Answers (n,) of the box to constant images of these numbers (n,)."""
        assert self.client is not None
        return self.client(numbers.detach().clone().reshape(-1, 1, 1, 1)).flatten()

    def terms(self, step: Step) -> dict[str, Tensor]:
        self.event(f"terms {step.number}")
        self.module.train()
        self.batches.append(step.index.tolist())
        x = torch.randn((len(step.index), 3), generator=seeds.generator(SEED, "noise", step.number))
        x = x.to(next(self.module.parameters()))
        answer = self.module(x).flatten()
        asked = self.ask(x[:, 0]) if self.client else x[:, 0]
        self.event(f"loss {step.number}")
        return {"loss": (answer - asked).square().mean(), "size": torch.tensor(float(len(step.index)))}

    def score(self) -> float:
        self.event("score")
        self.module.eval()
        x = torch.randn((20, 3), generator=seeds.generator(SEED, "validation")).to(next(self.module.parameters()))
        asked = self.ask(x[:, 0]) if self.client else x[:, 0]
        return -(self.module(x).flatten() - asked).square().mean().item()


def go(job: Job, out: Path | None = None, schedule: Schedule = MIXED, **change: Any) -> str:
    """Run the job; the digest of the weights it leaves."""
    directory = RunDirectory(out, CONFIG) if out else None
    run(job.prepare, IMAGES, schedule, SEED, client=job.client, directory=directory, **change)
    return module_digest(job.module)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rows.jsonl").read_text(encoding="utf-8").splitlines()]


def facts(out: Path) -> dict[str, Any]:
    return read_tensors(out / "checkpoint.safetensors")[1]


# --- steps ------------------------------------------------------------------------------------------------------------


def every_step(schedule: Schedule = MIXED, images: int = IMAGES, start: int = 0) -> list[Step]:
    return list(steps(schedule, images, SEED, start))


def plain(step: Step) -> Step:
    """A step that can be compared with =="""
    return replace(step, index=step.index.tolist())  # pyright: ignore[reportArgumentType]


def test_an_epoch_takes_every_image_once_in_an_order_of_its_own() -> None:
    orders = []
    for epoch in range(5):
        batches = [step.index for step in every_step() if step.epoch == epoch]
        assert [len(batch) for batch in batches] == [4, 4, 3]
        orders.append(torch.cat(batches).tolist())
        assert sorted(orders[-1]) == list(range(IMAGES))
    assert len({tuple(order) for order in orders}) == 5


def test_steps_say_where_they_stand() -> None:
    found = every_step()
    assert [step.number for step in found] == list(range(15))
    assert [step.epoch for step in found] == [i // 3 for i in range(15)]
    assert [step.phase for step in found] == [MIXED.phases[p] for p in (0, 1, 1, 2, 2) for _ in range(3)]
    assert [step.number for step in found if step.starts_phase] == [0, 3, 9]
    assert [step.number for step in found if step.ends_epoch] == [2, 5, 8, 11, 14]


@pytest.mark.parametrize("start", range(17))
def test_a_late_start_changes_no_step(start: int) -> None:
    assert [plain(step) for step in every_step(start=start)] == [plain(step) for step in every_step()][start:]


@pytest.mark.parametrize(("images", "sizes"), [(8, [4, 4]), (9, [4, 4]), (10, [4, 4, 2]), (3, [3]), (1, [])])
def test_a_last_batch_of_one_joins_no_step(images: int, sizes: list[int]) -> None:
    schedule = Schedule((Phase(2, 0.1),), 4)
    assert [len(step.index) for step in every_step(schedule, images)] == 2 * sizes
    assert schedule.steps_per_epoch(images) == len(sizes)


def test_rates_are_those_of_the_phase() -> None:
    schedule = Schedule((Phase(4, 1.0, decay_every=2, decay=0.5), Phase(2, 3.0, shape="one-cycle"), Phase(0, 9.0)), 4)
    rates = [step.lr for step in every_step(schedule)]
    assert rates[:12] == [1.0] * 6 + [0.5] * 6
    assert rates[12:] == [schedule.phases[1].learning_rate(i, 3) for i in range(6)]
    assert 0 < min(rates[12:]) < max(rates[12:]) <= 3.0


# --- training ---------------------------------------------------------------------------------------------------------


def by_hand(job: Job, schedule: Schedule, stop: int) -> dict[str, Tensor]:
    """Weights after `stop` steps of the textbook's Adam or SGD with momentum, from a fresh state at each phase."""
    parameters, states, begun = list(job.module.parameters()), [], 0
    for step in every_step(schedule)[:stop]:
        if step.starts_phase:
            states = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
            begun = step.number
        gradients = torch.autograd.grad(job.terms(step)["loss"], parameters)
        t = step.number - begun + 1
        for p, g, (m, v) in zip(parameters, gradients, states, strict=True):
            g = g + step.phase.weight_decay * p.detach()
            if step.phase.optimizer == "sgd":
                m.mul_(0.9).add_(g)
                p.data -= step.lr * m
            else:
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                p.data -= step.lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return job.module.state_dict()


def test_a_phase_is_the_textbook_optimizer_from_a_fresh_state() -> None:
    schedule = Schedule((Phase(2, 0.01, weight_decay=0.1), Phase(2, 0.02, "sgd", decay_every=1, weight_decay=0.05)), 4)
    jobs = Job(), Job()
    for job in jobs:
        job.module.double()  # Adam divides by the gradient's own size: where it is near 0, roundings of singles show
    run(jobs[0].prepare, IMAGES, schedule, SEED)
    for name, expected in by_hand(jobs[1], schedule, stop=12).items():
        torch.testing.assert_close(jobs[0].module.state_dict()[name], expected, rtol=1e-9, atol=1e-12)


def test_a_row_is_the_mean_over_the_steps_of_its_epoch(tmp_path: Path) -> None:
    job, losses, sizes = Job(), [], []
    terms = job.terms

    def recording(step: Step) -> dict[str, Tensor]:
        found = terms(step)
        losses.append(found["loss"].item())
        sizes.append(found["size"].item())
        return found

    job.terms = recording  # pyright: ignore[reportAttributeAccessIssue]
    go(job, tmp_path)
    written = rows(tmp_path)
    assert [row["loss"] for row in written] == pytest.approx([sum(losses[i : i + 3]) / 3 for i in range(0, 15, 3)])
    assert [row["size"] for row in written] == pytest.approx([11 / 3] * 5)
    assert [(row["epoch"], row["step"]) for row in written] == [(i, 3 * i + 3) for i in range(5)]
    assert [row["objective"] for row in written] == ["denoise", "full", "full", "full", "full"]
    assert [row["lr"] for row in written] == [0.1, 0.01, 0.01, 0.1, 0.1]
    assert [row["validation"] is None for row in written] == [True, False, False, False, False]
    assert [row["queries"] for row in written] == [0] * 5


def test_rows_count_the_queries_so_far(tmp_path: Path) -> None:
    box = CountingBox(LinearBox(torch.tensor([[2.0]]), outputs="values"))
    go(Job(QueryClient(box)), tmp_path)
    # 11 targets; 11 images an epoch; 20 to score each of four epochs, and the start of the second
    assert [row["queries"] for row in rows(tmp_path)] == [22, 33 + 40, 44 + 60, 55 + 80, 66 + 100]
    assert box.images == 166


class Scripted(Job):
    """A job with given scores, which remembers the weights that each was given to."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores, self.seen = iter(scores), []

    def score(self) -> float:
        self.seen.append(module_digest(self.module))
        return next(self.scores)


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([1.0, 2.0, 3.0, 4.0], 3),
        ([4.0, 1.0, 2.0, 3.0], 0),  # the start is a candidate
        ([0.0, 2.0, 5.0, 3.0], 2),
        ([0.0, 2.0, 2.0, 1.0], 1),  # the first of equals
        ([-3.0, -4.0, -1.0, -2.0], 2),
    ],
)
def test_the_weights_of_the_best_score_are_kept(scores: list[float], best: int, tmp_path: Path) -> None:
    job = Scripted(scores)
    chosen = go(job, tmp_path, Schedule((Phase(3, 0.1),), 4))
    assert len(set(job.seen)) == 4
    assert chosen == job.seen[best]
    assert (facts(tmp_path)["best"], facts(tmp_path)["best_epoch"]) == (max(scores), best - 1 if best else None)
    assert [row["validation"] for row in rows(tmp_path)] == scores[1:]


def test_phases_that_are_not_scored_offer_no_candidate() -> None:
    job = Scripted([1.0, 0.5, 0.2])
    chosen = go(job, schedule=Schedule((Phase(2, 0.1, objective="denoise"), Phase(2, 0.1)), 4))
    pretrained = Job()
    go(pretrained, schedule=Schedule((Phase(2, 0.1, objective="denoise"),), 4))
    assert chosen == job.seen[0] == module_digest(pretrained.module)  # the last weights, for want of scores
    assert len(job.seen) == 3


def test_no_epoch_leaves_the_start(tmp_path: Path) -> None:
    job = Job()
    assert go(job, tmp_path, Schedule((Phase(0, 0.1),), 4)) == module_digest(network())
    assert job.batches == []
    assert not job.module.training


def test_progress_hears_of_every_step() -> None:
    heard = []
    go(Job(), progress=lambda *now: heard.append(now))
    assert heard == [(i + 1, 15, f"epoch {i // 3 + 1}/5") for i in range(15)]


def test_a_loss_that_is_not_finite_ends_training(tmp_path: Path) -> None:
    job = Job()
    terms = job.terms
    job.terms = lambda step: {  # pyright: ignore[reportAttributeAccessIssue]
        "loss": terms(step)["loss"] * (math.inf if step.number == 4 else 1.0)
    }
    with pytest.raises(
        CertiboxError, match=r"diverged at step 4: .* lower the learning rate; the checkpoint of step 3 is kept in"
    ) as caught:
        go(job, tmp_path)
    assert "\n" not in str(caught.value)
    assert facts(tmp_path)["step"] == 3  # nothing of the bad step is kept


@pytest.mark.parametrize(
    ("images", "every", "message"), [(1, 200, "1 image to train on"), (IMAGES, 0, "checkpoint_every is 0")]
)
def test_bad_values_are_refused_before_anything_is_asked(images: int, every: int, message: str) -> None:
    job = Job()
    with pytest.raises(InvalidInput, match=message):
        run(job.prepare, images, MIXED, SEED, checkpoint_every=every)
    assert job.prepared == 0


# --- stops and resumption ---------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


class Fuse:
    """Raises at event number `at`; hears of the steps, scores, writes and trims of a run, in order."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.events = at, []

    def __call__(self, name: str) -> None:
        self.events.append(name)
        if len(self.events) - 1 == self.at:
            raise Stop(name)


@pytest.fixture
def ignite(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fuse], None]:
    """Makes checkpoints and rows tell a fuse what they do."""
    write, append = write_tensors, RunDirectory.append

    def ignite(fuse: Fuse) -> None:
        def writing(*arguments: Any) -> None:
            fuse("before the checkpoint")
            write(*arguments)
            fuse("after the checkpoint")

        def appending(self: RunDirectory, row: dict[str, Any]) -> None:
            append(self, row)
            fuse("after the row")

        monkeypatch.setattr(loop, "write_tensors", writing)
        monkeypatch.setattr(RunDirectory, "append", appending)

    return ignite


def linear_client(path: Path) -> QueryClient:
    box = CountingBox(LinearBox(torch.tensor([[2.0]]), outputs="values"))
    return QueryClient(box, ledger=path / "ledger.sqlite", batch_size=3)


def journalled(client: QueryClient) -> int:
    """Batches in the journal, as an outside reader of the file sees them."""
    assert client.ledger is not None
    with closing(sqlite3.connect(client.ledger.path)) as reader:
        return reader.execute("SELECT COUNT(*) FROM journal").fetchone()[0]


SHORT = Schedule((Phase(1, 0.1, objective="denoise"), Phase(1, 0.01), Phase(1, 0.1, "sgd")), 6)


@pytest.mark.parametrize("every", [1, 200])
def test_a_stop_at_any_moment_changes_nothing(every: int, tmp_path: Path, ignite: Callable[[Fuse], None]) -> None:
    def attempt(out: Path, fuse: Fuse) -> tuple[str, QueryClient]:
        ignite(fuse)
        client = linear_client(out)
        weights = go(Job(client, fuse), out, SHORT, checkpoint_every=every, progress=lambda *_: fuse("progress"))
        return weights, client

    plain, fuse = tmp_path / "plain", Fuse()
    weights, client = attempt(plain, fuse)
    assert len(fuse.events) > 25
    for moment in range(len(fuse.events)):
        out = tmp_path / str(moment)
        with pytest.raises(Stop):
            attempt(out, Fuse(moment))
        resumed, again = attempt(out, Fuse())
        assert resumed == weights, fuse.events[moment]
        assert (out / "rows.jsonl").read_bytes() == (plain / "rows.jsonl").read_bytes(), fuse.events[moment]
        assert (again.queries, again.attempts, again.lost) == (client.queries, client.queries, 0), fuse.events[moment]
        assert facts(out) == facts(plain), fuse.events[moment]
        assert journalled(again) == 0


def test_a_run_that_is_stopped_again_and_again_arrives(tmp_path: Path, ignite: Callable[[Fuse], None]) -> None:
    plain = go(Job(linear_client(tmp_path / "plain")), tmp_path / "plain", SHORT, checkpoint_every=2)
    out, stops = tmp_path / "out", 0
    while True:
        fuse = Fuse(9)  # far enough to get past a checkpoint
        ignite(fuse)
        client = linear_client(out)
        try:
            weights = go(Job(client, fuse), out, SHORT, checkpoint_every=2)
            break
        except Stop:
            stops += 1
    assert stops == 2
    assert weights == plain
    assert client.queries == client.attempts == facts(out)["queries"]
    assert rows(out) == rows(tmp_path / "plain")


def test_without_a_ledger_a_stop_costs_the_answers_since_the_checkpoint(tmp_path: Path) -> None:
    boxes = [CountingBox(LinearBox(torch.tensor([[2.0]]), outputs="values")) for _ in range(3)]
    plain = go(Job(QueryClient(boxes[0])), tmp_path / "plain", checkpoint_every=2)
    with pytest.raises(Stop):
        # Steps of 4, 4 and 3 images: 11 targets; 11, 20 to score, 4; then step 4 has asked its 4 when the fuse blows.
        go(Job(QueryClient(boxes[1]), stop_at("loss 4")), tmp_path / "out", checkpoint_every=2)
    assert boxes[1].images == 11 + 11 + 20 + 4 + 4
    assert go(Job(QueryClient(boxes[2])), tmp_path / "out", checkpoint_every=2) == plain
    assert boxes[1].images + boxes[2].images == boxes[0].images + 4
    assert rows(tmp_path / "out") == rows(tmp_path / "plain")


def test_what_was_fetched_before_the_first_step_is_kept_without_a_ledger(tmp_path: Path) -> None:
    boxes = [CountingBox(LinearBox(torch.tensor([[2.0]]), outputs="values")) for _ in range(2)]
    with pytest.raises(Stop):
        go(Job(QueryClient(boxes[0]), stop_at("terms 0")), tmp_path)
    go(Job(QueryClient(boxes[1])), tmp_path)
    assert boxes[0].images == 11
    assert boxes[1].images == 5 * 11 + 5 * 20


def stop_at(name: str) -> Callable[[str], None]:
    def event(now: str) -> None:
        if now == name:
            raise Stop

    return event


def test_the_journal_is_empty_after_each_checkpoint(tmp_path: Path) -> None:
    client, kept = linear_client(tmp_path), []
    go(Job(client), tmp_path, checkpoint_every=2, progress=lambda *_: kept.append(journalled(client)))
    saved = [i for i in range(15) if i % 2 == 1 or i % 3 == 2]
    assert [i for i in range(15) if kept[i] == 0] == saved


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    weights = go(Job(linear_client(tmp_path)), tmp_path)
    before = (tmp_path / "rows.jsonl").read_bytes()
    job = Job(linear_client(tmp_path))
    assert go(job, tmp_path) == weights
    assert (job.prepared, job.batches) == (0, [])
    assert job.client is not None
    assert job.client.attempts == facts(tmp_path)["queries"]
    assert (tmp_path / "rows.jsonl").read_bytes() == before


# --- the directory ----------------------------------------------------------------------------------------------------


def contents(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}


def test_another_configuration_touches_nothing(tmp_path: Path) -> None:
    go(Job(), tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ConfigMismatch, match=r"lr is 0\.1 there and 0\.2 here; scheme is None there and 'x' here"):
        RunDirectory(tmp_path, CONFIG | {"lr": 0.2, "scheme": "x"})
    assert contents(tmp_path) == before


def test_equal_numbers_are_one_configuration(tmp_path: Path) -> None:
    scope = RunDirectory(tmp_path, {"gamma": 1, "shape": (1, 2)}).scope
    assert RunDirectory(tmp_path, {"gamma": 1.0, "shape": [1, 2]}).scope == scope
    assert RunDirectory(tmp_path / "other", {"gamma": 2, "shape": [1, 2]}).scope != scope


def test_rows_can_be_rewound(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, CONFIG)
    directory.rewind(0)
    assert directory.offset == 0
    directory.append({"step": 1, "loss": 1.0})
    offset = directory.offset
    directory.append({"step": 2, "loss": 2.0})
    directory.rewind(offset)
    assert rows(tmp_path) == [{"step": 1, "loss": 1.0}]


@pytest.mark.parametrize("spoil", [lambda old: old[:-7], lambda old: old[:5], lambda old: b"", lambda old: b"x" * 99])
def test_a_spoilt_checkpoint_is_refused_in_one_line(spoil: Callable[[bytes], bytes], tmp_path: Path) -> None:
    go(Job(), tmp_path)
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(spoil(file.read_bytes()))
    before, job = contents(tmp_path), Job()
    with pytest.raises(
        UnreadableFile, match=r"checkpoint\.safetensors is (cut short or )?damaged.*delete it"
    ) as caught:
        run(job.prepare, IMAGES, MIXED, SEED, directory=RunDirectory(tmp_path, CONFIG))
    assert "\n" not in str(caught.value)
    assert job.prepared == 0
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before


def test_a_deleted_checkpoint_starts_again(tmp_path: Path) -> None:
    weights = go(Job(), tmp_path)
    before = rows(tmp_path)
    (tmp_path / "checkpoint.safetensors").unlink()
    job = Job()
    assert go(job, tmp_path) == weights
    assert job.prepared == 1
    assert rows(tmp_path) == before


class Heard:
    """A tracker that keeps what it hears."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def start(self, settings: Mapping[str, Any]) -> None:
        self.events.append(dict(settings))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.events.append((step, dict(values)))

    def close(self) -> None:
        self.events.append("closed")


def test_a_tracker_hears_the_settings_then_the_numbers_of_each_row_then_the_end(tmp_path: Path) -> None:
    heard = Heard()
    go(Job(), tmp_path, tracker=heard, settings={"sigma": 0.25})
    wanted = [
        (row["step"], {k: v for k, v in row.items() if k not in ("step", "objective") and v is not None})
        for row in rows(tmp_path)
    ]
    assert heard.events == [{"sigma": 0.25}, *wanted, "closed"]


def test_a_tracker_hears_the_end_of_a_run_that_is_cut_short(tmp_path: Path) -> None:
    def cut(name: str) -> None:
        if name == "terms 4":
            raise KeyboardInterrupt

    heard = Heard()
    with pytest.raises(KeyboardInterrupt):
        go(Job(event=cut), tmp_path, tracker=heard)
    assert heard.events[-1] == "closed"


# --- patience ---------------------------------------------------------------------------------------------------------


def graded(scores: list[float], event: Callable[[str], None] = lambda name: None) -> Job:
    """A job whose scores are given: the start's, then one an epoch of three batches."""
    job = Job(event=event)
    job.score = lambda: float(scores[len(job.batches) // 3])
    return job


@pytest.mark.parametrize(
    ("scores", "patience", "epochs"),
    [
        ([0, 1, 2, 3, 4, 5, 6], None, 6),
        ([9, 1, 2, 3, 4, 5, 6], None, 6),
        ([9, 1, 2, 3, 4, 5, 6], 1, 1),  # the start is the best so far
        ([9, 1, 2, 3, 4, 5, 6], 3, 3),
        ([0, 1, 1, 1, 1, 1, 1], 2, 3),  # as good is not better
        ([0, 1, 0, 2, 0, 0, 3], 2, 5),  # a better one starts the count again
        ([0, 1, 0, 2, 0, 3, 0], 2, 6),
        ([0, 1, 2, 3, 4, 5, 6], 1, 6),
    ],
)
def test_patience_counts_epochs_since_the_best(
    scores: list[float], patience: int | None, epochs: int, tmp_path: Path
) -> None:
    job = graded(scores)
    go(job, tmp_path, Schedule((Phase(4, 0.01), Phase(2, 0.02, "sgd")), 4), patience=patience)
    assert [row["validation"] for row in rows(tmp_path)] == scores[1 : 1 + epochs]
    assert len(job.batches) == 3 * epochs
    assert facts(tmp_path)["best"] == max(scores[: 1 + epochs])


@pytest.mark.parametrize(
    ("every", "scored"),
    [(1, [1, 1, 1, 1, 1, 1]), (2, [0, 1, 0, 1, 0, 1]), (3, [0, 0, 1, 1, 0, 1]), (9, [0, 0, 0, 1, 0, 1])],
)
def test_the_end_of_a_phase_is_scored_whatever_lies_between(every: int, scored: list[int], tmp_path: Path) -> None:
    """Phases of four epochs and of two; the start is scored once and gives no row."""
    job = graded([0, 1, 2, 3, 4, 5, 6])
    go(job, tmp_path, Schedule((Phase(4, 0.01), Phase(2, 0.02, "sgd")), 4), score_every=every)
    assert [row["validation"] for row in rows(tmp_path)] == [i + 1 if due else None for i, due in enumerate(scored)]
    assert (facts(tmp_path)["best"], facts(tmp_path)["best_epoch"]) == (6, 5)


def test_epochs_between_scores_are_at_least_one() -> None:
    with pytest.raises(InvalidInput, match="validate_every is 0"):
        go(Job(), score_every=0)


def test_epochs_without_a_score_try_no_patience(tmp_path: Path) -> None:
    schedule = Schedule((Phase(5, 0.01, objective="denoise"), Phase(3, 0.01)), 4)
    job = Job()
    job.score = lambda: 1.0
    go(job, tmp_path, schedule, patience=2)
    assert len(rows(tmp_path)) == 5 + 2


def test_a_run_that_lost_patience_stays_stopped_and_one_under_way_goes_on(tmp_path: Path) -> None:
    schedule = Schedule((Phase(6, 0.01),), 4)

    def worse_and_worse(event: Callable[[str], None] = lambda name: None) -> Job:
        job, scores = Job(event=event), iter(range(0, -100, -1))
        job.score = lambda: float(next(scores))
        return job

    plain = go(worse_and_worse(), tmp_path / "plain", schedule, patience=3)
    with pytest.raises(Stop):  # in the third epoch, two of which were no better
        go(worse_and_worse(stop_at("terms 7")), tmp_path / "out", schedule, patience=3)
    resumed = worse_and_worse()
    resumed.score = lambda: -3.0
    assert go(resumed, tmp_path / "out", schedule, patience=3) == plain
    assert len(resumed.batches) == 3
    assert rows(tmp_path / "out") == rows(tmp_path / "plain")
    again = worse_and_worse()
    assert go(again, tmp_path / "out", schedule, patience=3) == plain
    assert again.batches == []
    assert len(rows(tmp_path / "out")) == 3


@pytest.mark.parametrize("patience", [0, -1])
def test_patience_is_at_least_an_epoch(patience: int) -> None:
    job = Job()
    with pytest.raises(InvalidInput, match=f"patience is {patience}"):
        go(job, patience=patience)
    assert job.prepared == 0


# --- what a task learns beside its weights ----------------------------------------------------------------------------


class Learning(Job):
    """A job whose loss hangs on a running sum of its batches, which is no part of the module."""

    def __init__(self, event: Callable[[str], None] = lambda name: None) -> None:
        super().__init__(event=event)
        self.total, self.count, self.restored = torch.zeros(()), 0, 0

    def prepare(self, constants: dict[str, Tensor]) -> Task:
        return replace(super().prepare(constants), memory=self)

    def terms(self, step: Step) -> dict[str, Tensor]:
        self.total, self.count = self.total + step.index.sum() / 7, self.count + 1
        found = super().terms(step)
        return found | {"loss": found["loss"] * (1 + self.total / self.count)}

    def keep(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"total": self.total}, {"count": self.count}

    def restore(self, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        self.total, self.count, self.restored = tensors["total"], notes["count"], self.restored + 1


@pytest.mark.parametrize("every", [1, 2, 200])
@pytest.mark.parametrize("at", [0, 1, 4, 9, 13])
def test_a_stop_loses_nothing_of_what_was_learned(at: int, every: int, tmp_path: Path) -> None:
    plain = go(Learning(), tmp_path / "plain", checkpoint_every=every)
    with pytest.raises(Stop):
        go(Learning(stop_at(f"loss {at}")), tmp_path / "out", checkpoint_every=every)
    job = Learning()
    assert go(job, tmp_path / "out", checkpoint_every=every) == plain
    assert (job.restored, job.count) == (1, 15)
    assert rows(tmp_path / "out") == rows(tmp_path / "plain")
    assert facts(tmp_path / "out") == facts(tmp_path / "plain")


def test_a_first_start_restores_nothing() -> None:
    job = Learning()
    go(job)
    assert (job.restored, job.count) == (0, 15)


def test_a_checkpoint_without_patience_and_memory_is_one_of_an_earlier_release(tmp_path: Path) -> None:
    plain = go(Job(), tmp_path / "plain")
    with pytest.raises(Stop):
        go(Job(event=stop_at("terms 8")), tmp_path / "out")
    file = tmp_path / "out" / "checkpoint.safetensors"
    tensors, held = read_tensors(file)
    assert not any(name.startswith("memory") for name in tensors)
    write_tensors(file, tensors, {name: held[name] for name in held.keys() - {"stale", "notes"}})
    assert go(Job(), tmp_path / "out") == plain

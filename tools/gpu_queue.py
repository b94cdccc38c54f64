"""What remains to be measured on a GPU, in order of value, as much of it as fits a number of seconds.

    python tools/gpu_queue.py --list
    python tools/gpu_queue.py --seconds 540 --data DIR [--pack FILE.tar]
    python tools/gpu_queue.py --unpack FILE.tar [FILE-2.tar ...]
    python tools/gpu_queue.py --tiny --device cpu --seconds 60 --data DIR      a dry run of the same code

First come two checks (see gpu_checks.py): how right estimates are in each precision, and how long an epoch takes. Then
the rows of the paper's tables at scale `gpu`, box and autoencoder included, and those of queries.yaml beside them. Call
it again and it goes on where it stopped. DIR holds a folder for each data set, named in experiments/datasets.yaml; what
has none is left out.

Checks go to experiments/paper/gpu.jsonl and rows to experiments/paper/measured/, where `certibox paper report` finds
them. Finished stages are copied into models/ as safetensors of at most 10 MiB a file, and taken from there on another
machine; larger ones (VGG-16) are not kept. --pack writes what this machine made into tar files of at most 15 MiB,
--unpack merges them. A dry run writes below --work alone: all networks and counts in it are tiny, and none of its
numbers means anything.

It needs Python 3.11 with torch >= 2.6, numpy, scipy, Pillow, PyYAML, rich, safetensors, threadpoolctl and, for data
sets in parquet files, datasets; certibox itself need not be installed: PYTHONPATH=src.
The seconds in --list are guesses for an H100, to plan by.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

import gpu_checks
from certibox.errors import CertiboxError, InvalidInput
from certibox.estimators import Guided
from certibox.paper import runner
from certibox.paper.dry_run import tiny, tiny_table
from certibox.paper.gpu import LIVE, RELEASED, Check, append_check, read_checks
from certibox.paper.logbook import hardware, versions
from certibox.paper.measured import Results
from certibox.paper.plans import Plan
from certibox.paper.stages import Workshop, estimator_of
from certibox.paper.suite import NAMES, Suite, Table
from certibox.training.steps import Progress
from gpu_pack import pack, publish, unpack

QUERIES = "queries"  # rows that are not the paper's
SCALE, SMALL = "gpu", "cpu-cifar10"  # SMALL: where the first check finds a box that trains in seconds
LEAST = 10.0  # seconds that must be left for an item to begin
FIRST = (
    *("ZO-AE-DS (CGE, q=192)", "FO-AE-DS", "bare model", "MSE denoiser", "FO-DS"),
    *("ZO-DS (Guided)", "ZO-AE-DS (Guided)", "ZO-AE-DS (RGE, q=192)", "ZO-DS (RGE, q=192)", "RS"),
)
TABLES = (
    *("table2", QUERIES, "table4", "tableA2", "tableA3", "tableA1", "table5"),
    *("table1", "figure4", "figure5", "table3", "tableA4"),
)
ANSWERS, TRAINED, IMAGES = 20_000, 6_000, 50_000  # guesses for an H100: queries, and images trained on, a second


class TimeUp(Exception):
    """The seconds are used up; what was under way is kept."""


class Deadline:
    """An end in `seconds` from now. Its bars, to which every stage reports its progress, raise `TimeUp` past it."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - self._clock()

    @contextmanager
    def bar(self, title: str) -> Iterator[Progress]:
        """For a `Workshop`."""

        def report(done: int, total: int, text: str) -> None:
            if self.left <= 0:
                raise TimeUp(f"{title}, {done} of {total}")

        print(f"  {title}", flush=True)
        yield report


@dataclass(frozen=True)
class Item:
    """One thing to measure. seconds: a guess for an H100. run: measures and writes it, and says what came out."""

    name: str
    seconds: float
    data: str
    resumable: bool
    run: Callable[[], str]


@dataclass
class Queue:
    """Everything to be measured. folder: where rows and checks are written. tiny: a dry run."""

    suite: Suite
    folder: Path
    workshop: Workshop
    tiny: bool = False

    def remaining(self) -> list[Item]:
        """What is not measured yet, in order of value."""
        stages: set[str] = set()
        return [*self._checks(stages), *self._rows(stages)]

    def run(self, deadline: Deadline, only: str = "") -> bool:
        """Do as much as fits of the items whose names hold `only`; whether none failed."""
        fine = True
        for item in self.remaining():
            needed = LEAST if item.resumable else max(LEAST, item.seconds)
            if only not in item.name or deadline.left < needed:
                continue
            if not self._has(item.data):
                print(f"{item.name}: left out: there is no {item.data} below --data", flush=True)
                continue
            started = time.monotonic()
            try:
                print(f"{item.name}: {item.run()}; {time.monotonic() - started:.0f} s", flush=True)
            except TimeUp as stopped:
                print(f"{item.name}: time is up at {stopped}; the next call goes on", flush=True)
            except CertiboxError as error:
                print(f"{item.name}: failed: {error}", flush=True)
                fine = False
        return fine

    def _has(self, data: str) -> bool:
        try:
            self.workshop.source(data)
        except InvalidInput:
            return False
        return True

    # -------------------------------------------------------------------------------------------------------- checks

    def _checks(self, stages: set[str]) -> Iterator[Item]:
        row = self.suite.table("table2").row(FIRST[0])
        small, large = row.plans[SMALL], row.plans[SCALE]
        small = replace(small, box=replace(small.box, arguments={"depth": 20}))
        wanted = [
            ("precision", gpu_checks.described(small.box), small, 60 + stage_seconds(small, stages)),
            ("epoch", RELEASED, small, 150.0),
            ("epoch", LIVE, small, 90.0),
            ("precision", gpu_checks.described(large.box), large, 60 + stage_seconds(large, stages)),
        ]
        device = torch.device(self.workshop.device).type
        known = {(c.check, c.name) for c in read_checks(self._lines) if (c.device, c.tiny) == (device, self.tiny)}
        for check, name, plan, seconds in wanted:
            if (check, name) not in known:
                run = partial(self._check, check, name, tiny(plan) if self.tiny else plan)
                yield Item(f"{check}, {name}", 1 if self.tiny else seconds, plan.data.name, check == "precision", run)

    def _check(self, check: str, name: str, plan: Plan) -> str:
        """Do one check and write its line."""
        size, shop = gpu_checks.TINY if self.tiny else gpu_checks.FULL, self.workshop
        if check == "precision":
            figures = gpu_checks.precision(shop, plan, size)
        else:
            figures = gpu_checks.epoch(shop, plan, size, name)
        line = Check(
            check=check,
            name=name,
            device=torch.device(shop.device).type,
            tiny=self.tiny,
            data=shop.source(plan.data.name)[1],
            figures=figures,
            hardware=hardware(shop.device),
            versions=versions(),
            date=datetime.now(UTC).date().isoformat(),
            command=f"python tools/gpu_queue.py --seconds 600 --data DIR --only {shlex.quote(f'{check}, {name}')}",
        )
        append_check(self._lines, line)
        return "; ".join(f"{key} {value}" for key, value in figures.items() if not isinstance(value, list))

    @property
    def _lines(self) -> Path:
        return self.folder / "gpu.jsonl"

    # ---------------------------------------------------------------------------------------------------------- rows

    def _rows(self, stages: set[str]) -> Iterator[Item]:
        results = Results(self.folder)
        known = set(results.by_plan())
        for name in (name for name in TABLES if name in self.suite.names):
            for job in self._jobs(self.suite.table(name)):
                plan, key = job.plan, (job.plan.digest, job.seed)
                if key not in known:  # tables share rows
                    known.add(key)
                    seconds = stage_seconds(plan, stages) + row_seconds(plan)
                    yield Item(job.name, seconds, plan.data.name, True, partial(self._row, job, results))

    def _jobs(self, table: Table) -> list[runner.Job]:
        """The rows of a table, those of `FIRST` before the others of the same seed."""
        table = tiny_table(table) if self.tiny else table
        order = {name: place for place, name in enumerate(FIRST)}
        return sorted(runner.jobs(table, SCALE), key=lambda job: (job.seed, order.get(job.row.name, len(order))))

    def _row(self, job: runner.Job, results: Results) -> str:
        row, _ = runner.measure(job, self.workshop, results)
        return runner.headline(row)


# ------------------------------------------------------------------------------------------------------------ guesses


def stage_seconds(plan: Plan, done: set[str]) -> float:
    """Guessed seconds of a plan's box and autoencoder, unless they are `done`; notes them there."""
    total = 0.0
    stages = [("box", plan.box, plan.box.images or IMAGES)]
    stages += [("autoencoder", plan.autoencoder, plan.data.train or IMAGES)] * ("AE" in plan.defense.method)
    for stage, network, images in stages:
        key = f"{stage} {plan.data} {network}"
        total += 0.0 if key in done else network.schedule.epochs * images / TRAINED
        done.add(key)
    return total


def row_seconds(plan: Plan) -> float:
    """Guessed seconds of a plan's defense and evaluation."""
    estimator = estimator_of(plan.defense.estimator)
    answers = estimator.cost(192) if estimator else 0
    if isinstance(estimator, Guided):
        answers = 2  # what it buys where its surrogate learns, probes included
    seen = plan.epochs * (plan.data.train or IMAGES)
    if plan.certify:
        asked = (plan.data.test or 10_000) * (plan.certify.n0 + plan.certify.n)
    else:
        assert plan.attack is not None
        asked = (plan.data.test or 10_000) * len(plan.attack.epsilons) * plan.attack.steps * plan.attack.samples
    return seen / TRAINED + (seen * answers + asked) / ANSWERS


# ------------------------------------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit status."""
    options = parser().parse_args(arguments)
    if not (options.list or options.seconds is not None or options.unpack or options.pack):
        parser().print_usage(sys.stderr)
        return 2
    try:
        return follow(options)
    except CertiboxError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--list", action="store_true", help="print what remains, and do nothing")
    found.add_argument("--seconds", type=float, help="measure for so long")
    found.add_argument("--data", type=Path, help="folder with the data sets")
    found.add_argument("--only", default="", help="only items whose names hold this text")
    found.add_argument("--device", default="cuda")
    found.add_argument("--experiments", type=Path, default=Path("experiments/paper"))
    found.add_argument("--work", type=Path, default=Path("runs/gpu"), help="a folder of the queue's own, for stages")
    found.add_argument("--models", type=Path, help="folder of finished stages, models by default")
    found.add_argument("--tiny", action="store_true", help="a dry run: writes below --work alone")
    found.add_argument("--pack", type=Path, metavar="TAR", help="write what was made here, at the end")
    found.add_argument("--unpack", type=Path, nargs="+", metavar="TAR", help="merge what was made elsewhere")
    return found


def follow(options: argparse.Namespace) -> int:
    """Do what the options say."""
    folder = options.work / "experiments" if options.tiny else options.experiments
    models = options.models or (options.work / "models" if options.tiny else Path("models"))
    for path in options.unpack or ():
        rows, stages = unpack(path, folder, models)
        print(f"{path}: {rows} rows and {stages} stages were new")
    if options.list:
        return show(queue(options, folder, models, Deadline(0)))
    fine = True
    try:
        if options.seconds is not None:
            if options.data is None or (options.device.startswith("cuda") and not torch.cuda.is_available()):
                raise InvalidInput("wanted --data DIR and a CUDA device; --tiny --device cpu is a dry run without one")
            deadline = Deadline(options.seconds)
            fine = queue(options, folder, models, deadline).run(deadline, options.only)
    finally:
        for name in publish(options.work, models):
            print(f"{name}: a file is too large for {models}; kept in {options.work} alone")
        if options.pack:
            print("packed:", *pack(options.pack, folder, models, options.work, SCALE))
    return 0 if fine else 2


def queue(options: argparse.Namespace, folder: Path, models: Path, deadline: Deadline) -> Queue:
    suite = Suite(options.experiments, (*NAMES, QUERIES))
    workshop = Workshop(suite, options.data, options.work, deadline.bar, options.device, models)
    return Queue(suite, folder, workshop, options.tiny)


def show(queue: Queue) -> int:
    """`--list`."""
    items, total = queue.remaining(), 0.0
    for number, item in enumerate(items, start=1):
        total += item.seconds
        print(f"{number:3} {item.name:<64} {item.seconds:6.0f} s, {total / 60:5.0f} min in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())

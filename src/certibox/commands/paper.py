"""`certibox paper list | run | report`: options, and what they do."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from certibox.commands.fields import option
from certibox.commands.progress import bar
from certibox.errors import InvalidInput, one_of
from certibox.paper import runner
from certibox.paper.measured import Results
from certibox.paper.results import write_results
from certibox.paper.stages import Workshop
from certibox.paper.suite import NAMES, Suite

OUT = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Experiments:
    """The suite."""

    experiments: str = option("folder of the experiments", "experiments/paper")


@dataclass(frozen=True)
class PaperList(Experiments):
    """List the paper's tables and figures: their scales, and how many rows are measured at each.

    example: certibox paper list
    """


@dataclass(frozen=True)
class PaperRun(Experiments):
    """Measure rows of a table at a scale. Rows measured before stand; interrupted work goes on where it stopped.

    example: certibox paper run table2 --scale cpu --data data
    """

    table: str = option(f"one of {', '.join(NAMES)}", positional=True)
    scale: str = option(
        "paper: the paper's own settings; gpu: minutes a stage on one GPU; cpu: minutes on two cores", "cpu"
    )
    data: str | None = option(
        "folder with the data sets, one folder each; without it they come from Hugging Face", None
    )
    row: str | None = option("measure this row alone", None)
    seed: int | None = option("measure this seed alone", None)
    work: str = option("folder where the stages are kept, shared by all tables", "runs/paper")
    device: str = option("where networks train and answer: cpu or cuda", "cpu")
    threads: int | None = option("CPU threads; by default all", None)


@dataclass(frozen=True)
class PaperReport(Experiments):
    """Write RESULTS.md and its plots from the measured rows: reported beside measured, with what each number took.

    example: certibox paper report
    """

    out: str = option("the page; its plots go into a folder `results` beside it", "RESULTS.md")


def run_list(options: PaperList) -> None:
    """`certibox paper list`."""
    suite, known = Suite(options.experiments), Results(options.experiments).by_plan()
    for name, table in suite.tables.items():
        parts = []
        for scale, seeds in table.seeds.items():
            plans = [row.plans[scale].digest for row in table.rows if scale in row.plans]
            done = sum((digest, seed) in known for digest in plans for seed in seeds)
            parts.append(f"{scale} {done}/{len(plans) * len(seeds)}")
        OUT.print(f"{name:<8} {table.title}")
        OUT.print(f"{'':<8} measured: {', '.join(parts)}")


def run_run(options: PaperRun) -> None:
    """`certibox paper run`."""
    suite = Suite(options.experiments)
    table, results = suite.table(options.table), Results(options.experiments)
    if options.scale not in table.scales:
        raise InvalidInput(f"{table.name} has no scale {options.scale!r}; wanted {one_of(options.scale, table.scales)}")
    require_device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    workshop = Workshop(suite, Path(options.data) if options.data else None, Path(options.work), bar, options.device)
    rows = [options.row] if options.row is not None else []
    seeds = [options.seed] if options.seed is not None else []
    for job in runner.jobs(table, options.scale, rows, seeds):
        started = time.perf_counter()
        measured, fresh = runner.measure(job, workshop, results)
        took = f"{time.perf_counter() - started:.0f} s" if fresh else "measured before"
        OUT.print(f"{job.name}: {runner.headline(measured)}; {measured.queries['train']:,} queries to train; {took}")


def require_device(device: str) -> None:
    """Raise `InvalidInput` for a device that torch cannot use here, before any work."""
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch says no in all of these
        reason = " ".join(str(error).split())[:120]
        raise InvalidInput(f"device is {device!r}: {reason}; wanted cpu, or cuda where there is one") from error


def run_report(options: PaperReport) -> None:
    """`certibox paper report`."""
    for path in write_results(Suite(options.experiments), Results(options.experiments), Path(options.out)):
        OUT.print(f"saved {path}")

"""`certibox paper list | run | report`: options, and what they do."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from certibox.commands.devices import require_device
from certibox.commands.fields import option
from certibox.commands.printing import OUT
from certibox.commands.progress import bar
from certibox.errors import InvalidInput, one_of
from certibox.paper import runner
from certibox.paper.measured import Results
from certibox.paper.results import write_results
from certibox.paper.shipped import EXPERIMENTS, find_suite
from certibox.paper.stages import Workshop
from certibox.paper.suite import NAMES


@dataclass(frozen=True)
class Experiments:
    """Where the suite and its measured rows are."""

    experiments: str = option(
        "folder of the experiments: their settings, and the measured rows in `measured`; the settings that certibox "
        "is shipped with are taken where the default folder is not there",
        EXPERIMENTS,
    )


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
    threads: int | None = option("CPU threads; by default all", None, least=1, most=1024)


@dataclass(frozen=True)
class PaperReport(Experiments):
    """Write RESULTS.md, a page for every table and their plots, from the measured rows alone.

    example: certibox paper report
    """

    out: str = option("the page of all results; all else goes into a folder `results` beside it", "RESULTS.md")


def run_list(options: PaperList) -> None:
    """`certibox paper list`."""
    suite, results = find_suite(options.experiments), Results(options.experiments)
    known = results.by_plan()
    for name, table in suite.tables.items():
        parts = []
        for scale, seeds in table.seeds.items():
            plans = [row.plans[scale].digest for row in table.rows if scale in row.plans]
            done = sum((digest, seed) in known for digest in plans for seed in seeds)
            parts.append(f"{scale} {done}/{len(plans) * len(seeds)}")
        OUT.print(f"{name:<8} {table.title}")
        OUT.print(f"{'':<8} measured: {', '.join(parts)}")
    if not known:
        OUT.print(f"No row is measured in {results.folder}; those of the published results are in the repository.")


def run_run(options: PaperRun) -> None:
    """`certibox paper run`."""
    suite = find_suite(options.experiments)
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


def run_report(options: PaperReport) -> None:
    """`certibox paper report`."""
    suite, results = find_suite(options.experiments), Results(options.experiments)
    if not results.by_plan():
        raise InvalidInput(
            f"{results.folder} holds no measured row; run this in a checkout of the repository, which has them, or "
            "measure rows first: certibox paper run table2 --data DIR"
        )
    page, *others = write_results(suite, results, Path(options.out))
    OUT.print(f"saved {page}, and {len(others)} pages and plots in {others[0].parent}")

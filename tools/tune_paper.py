"""Choose gamma of the cpu setups of the paper's tables, on validation images, with first-order twins.

    python tools/tune_paper.py --data DIR [--table table2] [--tiny]

First order shares target, gamma and schedule with zeroth order and costs a minute, so it chooses for both. The score is
the best epoch's on held-out training images under fresh noise: the share of noisy votes that keep the box's answer, or
minus the mean squared change of a reconstruction. Test images are never loaded. Rows are appended to
tools/results/tune_paper.jsonl; a row that is there is not measured again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from certibox.commands.progress import bar
from certibox.paper.dry_run import tiny
from certibox.paper.logbook import Rows, destination, parser
from certibox.paper.plans import Plan
from certibox.paper.stages import Workshop
from certibox.paper.suite import Suite

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tools" / "results" / "tune_paper.jsonl"
SCALE = "cpu"
GRID = {"table2": (30.0, 100.0, 300.0, 1000.0), "table5": (1e3, 1e4, 1e5)}
METHODS = ("FO-DS", "FO-AE-DS")
VOTES = 10  # noisy votes a validation image


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the rows that are not there yet, and print all of them."""
    options = parser(__doc__)
    options.add_argument("--data", type=Path, required=True, help="folder with a folder for each data set")
    options.add_argument("--work", type=Path, default=ROOT / "runs" / "tune-paper", help="folder of the stages")
    options.add_argument("--table", nargs="+", choices=list(GRID), default=list(GRID))
    options = options.parse_args(arguments)
    torch.set_num_threads(1)
    suite, rows = Suite(ROOT / "experiments" / "paper"), Rows(destination(options, RESULTS))
    workshop = Workshop(suite, options.data, options.work, bar)
    for table in options.table:
        for gamma in GRID[table]:
            for method in METHODS:
                plan = at_gamma(suite.table(table).row(method).plans[SCALE], gamma)
                score = partial(measure, workshop, tiny(plan) if options.tiny else plan)
                print(rows.once({"table": table, "scale": SCALE, "method": method, "gamma": gamma}, score))


def at_gamma(plan: Plan, gamma: float) -> Plan:
    """The plan at another gamma, with more votes."""
    return replace(plan, defense=replace(plan.defense, gamma=gamma, validation_votes=VOTES))


def measure(workshop: Workshop, plan: Plan) -> dict[str, Any]:
    """The validation score of a first-order row, seed 0."""
    _, folder = workshop.defense(plan, 0)
    return {"validation": max(row["validation"] for row in Rows(folder / "training" / "rows.jsonl").read())}


if __name__ == "__main__":
    main()

"""Choose gamma of the cpu setups of the paper's tables, on validation images, with first-order twins.

python benchmarks/tune_paper.py --data DIR      writes benchmarks/results/tune_paper.jsonl

First order shares target, gamma and schedule with zeroth order and costs a minute, so it chooses for both. The score is
the best epoch's on held-out training images under fresh noise: the share of noisy votes that keep the box's answer, or
minus the mean squared change of a reconstruction. Test images are never loaded.
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from certibox.paper.stages import Workshop
from certibox.paper.suite import Suite

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "tune_paper.jsonl"
GRID = {
    ("table2", "cpu"): [30.0, 100.0, 300.0, 1000.0],
    ("table5", "cpu"): [1e3, 1e4, 1e5],
}
METHODS = ("FO-DS", "FO-AE-DS")
VOTES = 10  # noisy votes a validation image


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "tune-paper")
    parser.add_argument("--table", choices=[table for table, _ in GRID])
    parser.add_argument("--scale", choices=[scale for _, scale in GRID])
    options = parser.parse_args()
    torch.set_num_threads(1)
    suite = Suite(ROOT / "experiments")
    workshop = Workshop(suite, options.data, options.work, lambda title: nullcontext(lambda done, total, text: None))
    for (table, scale), grid in GRID.items():
        if options.table in (None, table) and options.scale in (None, scale):
            for gamma in grid:
                for method in METHODS:
                    write(measure(workshop, suite, table, scale, method, gamma))


def measure(workshop: Workshop, suite: Suite, table: str, scale: str, method: str, gamma: float) -> dict:
    """The validation score of one first-order row of a table at another gamma, seed 0."""
    plan = suite.table(table).row(method).plans[scale]
    plan = replace(plan, defense=replace(plan.defense, gamma=gamma, validation_votes=VOTES))
    _, folder = workshop.defense(plan, 0)
    rows = [json.loads(line) for line in (folder / "training" / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    score = max(row["validation"] for row in rows)
    return {"table": table, "scale": scale, "method": method, "gamma": gamma, "validation": score}


def write(row: dict) -> None:
    """Put the row in its place among those of the file."""
    kept = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()] if RESULTS.exists() else []
    rows = [other for other in kept if any(other[key] != row[key] for key in ("table", "scale", "method", "gamma"))]
    rows = sorted([*rows, row], key=lambda r: (r["table"], r["scale"], r["method"], r["gamma"]))
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(row)


if __name__ == "__main__":
    main()

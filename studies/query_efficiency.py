"""What a query buys: certified accuracy against the queries of training, for every estimator, on four kinds of boxes.

    python studies/query_efficiency.py run mnist --data DIR [--row NAME ...] [--seed S ...] [--tiny]
    python studies/query_efficiency.py print

`experiments/queries/` holds the settings (setups.yaml), one file a study with its rows and claims, and `measured/` with
one JSON line a row and seed, appended as it is measured: a number for every test image, hardware, versions. `run` goes
on where it stopped and measures no row twice; `print` also draws the picture of the first study. Queries are all that
training takes: targets, estimates, probes, validation. --tiny is a dry run, which writes below --work alone.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier

from certibox.blackbox import BlackBox, as_blackbox
from certibox.commands.progress import bar
from certibox.paper import runner
from certibox.paper.claims import Finding, certified, check
from certibox.paper.dry_run import tiny_table
from certibox.paper.measured import Measured, Results
from certibox.paper.plans import Plan
from certibox.paper.stages import Workshop
from certibox.paper.suite import Suite, Table
from certibox.report import markdown

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "queries"
PICTURE = ROOT / "docs" / "images" / "queries.png"
STUDIES = ("mnist", "mnist-forest", "mnist-labels", "mnist-unet", "cifar10")
RADII = (0.5, 1.0, 2.0)  # multiples of sigma
VERDICTS = {"holds": "✓", "does not hold": "✗", "cannot be told": "?"}
CEILINGS = {"RS": ":", "FO-DS": "--", "FO-AE-DS": "-"}
CEILING, GUIDED, CGE, D_Z = "FO-AE-DS", "ZO-AE-DS (Guided)", "ZO-AE-DS (CGE)", 192
PRICES = (  # rows of the first study: what an estimator takes, and what it ends with
    *("MSE denoiser", "ZO-AE-DS (Guided, a twentieth asked)", GUIDED, "ZO-AE-DS (RGE, equal queries)"),
    *("ZO-AE-DS (RGE, q=192)", CGE, CEILING),
)
WORTH = {  # what queries add: study, row with queries, row without
    "small network on MNIST, scores": ("mnist", GUIDED, "MSE denoiser"),
    "the same, ten times as many epochs": ("mnist", "ZO-DS (Guided, after 54 epochs)", "MSE denoiser, 60 epochs"),
    "the same, a U-Net as denoiser": ("mnist-unet", "ZO-DS (Guided, γ = 30)", "MSE denoiser, 12 epochs"),
    "the same, labels alone": ("mnist-labels", GUIDED, "MSE denoiser"),
    "random forest, probabilities": ("mnist-forest", GUIDED, "MSE denoiser"),
    "residual network on CIFAR-10, scores": ("cifar10", "ZO-DS (Guided, γ = 30)", "MSE denoiser"),
}
NOTHING = 3e3  # where a logarithmic axis shows no queries at all


class Studio(Workshop):
    """A workshop that has a random forest too: a box of a family through which no gradient passes."""

    _forests: ClassVar[dict[str, BlackBox]] = {}

    def box(self, plan: Plan) -> BlackBox:
        if plan.box.network != "random-forest":
            return super().box(plan)
        name = self.box_folder(plan).name
        if name not in self._forests:
            images = self.splits(plan).train.select(slice(0, plan.box.images))
            assert images.labels is not None
            forest = RandomForestClassifier(n_estimators=100, random_state=plan.box.seed or 0, n_jobs=1)
            forest.fit(images.floats(slice(None)).flatten(1).numpy(), images.labels.numpy())
            self._forests[name] = as_blackbox(forest, outputs="probabilities", clip=False, name=plan.box.network)
        return self._forests[name]


def main(arguments: Sequence[str] | None = None) -> None:
    """`run` or `print`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run_parser = commands.add_parser("run", help="measure rows of a study")
    run_parser.add_argument("study", choices=STUDIES)
    run_parser.add_argument("--data", type=Path, required=True, help="folder with a folder for each data set")
    run_parser.add_argument("--row", nargs="+", default=[], help="these rows alone")
    run_parser.add_argument("--seed", nargs="+", type=int, default=[], help="these seeds alone")
    run_parser.add_argument("--work", type=Path, default=Path("runs/queries"))
    run_parser.add_argument("--device", default="cpu")
    run_parser.add_argument("--threads", type=int, default=1)
    run_parser.add_argument("--tiny", action="store_true", help="a dry run: its numbers mean nothing")
    commands.add_parser("print", help="tables and verdicts of what is measured, and the picture")
    options = parser.parse_args(arguments)
    if options.command == "run":
        torch.set_num_threads(options.threads)
        run(options)
        return
    for study in STUDIES:
        print(f"### {measured(study)[0].title}\n\n{report(study)}")
    draw("mnist", PICTURE)


def run(options: argparse.Namespace) -> None:
    """Measure what is missing of a study's rows."""
    suite, results = Suite(FOLDER, STUDIES), Results(options.work if options.tiny else FOLDER)
    workshop = Studio(suite, options.data, options.work, bar, options.device)
    table = suite.table(options.study)
    for job in runner.jobs(tiny_table(table) if options.tiny else table, "cpu", options.row, options.seed):
        row, fresh = runner.measure(job, workshop, results)
        known = "" if fresh else " (known)"
        print(f"{job.name}: {runner.headline(row)}; {row.queries['train']:,} queries{known}", flush=True)


def measured(study: str) -> tuple[Table, dict[str, list[Measured]]]:
    """A study, and under each name the measured rows of its plan, in the study's order."""
    found, known = Suite(FOLDER, STUDIES).table(study), Results(FOLDER).by_plan()
    rows: dict[str, list[Measured]] = {}
    for row in found.rows:
        keys = [(row.plans["cpu"].digest, seed) for seed in found.seeds["cpu"]]
        if held := [known[key] for key in keys if key in known]:
            rows[row.name] = held
    return found, rows


def report(study: str) -> str:
    """All that is measured of a study, in Markdown."""
    found, rows = measured(study)
    return f"{table(rows)}\n{verdicts(found, rows)}{savings(found, rows)}"


def prices() -> str:
    """The rows of the first study that say what an estimator takes, in Markdown."""
    _, rows = measured(STUDIES[0])
    return table({name: rows[name] for name in PRICES})


def worth() -> str:
    """What queries add to the query-free denoiser on each box, in Markdown: paired differences in points."""
    lines = [["box", "trained with", "queries to train", *(f"points at r = {m:g}σ" for m in RADII)]]
    for box, (study, better, worse) in WORTH.items():
        found, rows = measured(study)
        claims = {claim.at: claim for claim in found.claims if (claim.better, claim.worse) == (better, worse)}
        findings = [check(claims[multiple], rows[better], rows[worse]) for multiple in RADII]
        cells = [f"{_points(finding)} {VERDICTS[finding.verdict]}" for finding in findings if finding]
        lines.append([box, better, f"{_queries(rows[better]):,.0f}", *cells])
    return f"{markdown(lines)}\n✓ the interval lies above zero, ✗ below it, ? it holds zero.\n"


def savings(found: Table, rows: dict[str, list[Measured]]) -> str:
    """How many times guided's queries CGE takes, in a sentence; "" where either is not measured behind a decoder."""
    if GUIDED not in rows or CGE not in rows:
        return ""
    plan = found.row(GUIDED).plans["cpu"]
    steps = sum(phase.epochs for phase in plan.defense.phases) * (plan.data.train or 0)
    ours, central = _queries(rows[GUIDED]), 2 * D_Z * steps
    return (
        f"\n{CGE} asks {_queries(rows[CGE]) / ours:.0f} times the {ours:,.0f} queries of {GUIDED}; central differences "
        f"over all {D_Z} coordinates, as in the released code, would ask {central / ours:.0f} times ({central:,}).\n"
    )


def table(rows: dict[str, list[Measured]]) -> str:
    """Queries and certified accuracy of each row, mean over its seeds, in Markdown."""
    body = []
    for name, held in rows.items():
        shares = [f"{_share(held, multiple):.1f}" for multiple in RADII]
        body.append([name, f"{_queries(held):,.0f}", *shares, str(len(held))])
    return markdown([["trained with", "queries to train", *(f"r = {m:g}σ" for m in RADII), "seeds"], *body])


def verdicts(found: Table, rows: dict[str, list[Measured]]) -> str:
    """What each claim of a study comes to, in Markdown: paired differences in points, 95 % intervals, each seed's."""
    cells: dict[tuple[str, ...], dict[float, str]] = {}
    for claim in found.claims:
        finding = check(claim, rows.get(claim.better, []), rows.get(claim.worse, []))
        if finding is None:
            continue
        each = ", ".join(f"{100 * value:+.1f}" for value in finding.by_seed)
        by_seed = f" ({each})" if len(finding.by_seed) > 1 else ""
        key = claim.text, f"{claim.better} − {claim.worse}"
        cells.setdefault(key, {})[claim.at] = f"{_points(finding)} {VERDICTS[finding.verdict]}{by_seed}"
    if not cells:
        return ""
    body = [[text, pair, *(held.get(m, "–") for m in RADII)] for (text, pair), held in cells.items()]
    head = [["claim", "points", *(f"r = {m:g}σ" for m in RADII)], *body]
    legend = "✓ the interval lies above the claim's margin, ✗ below it, ? it holds it; in brackets each seed."
    return f"{markdown(head)}\n{legend}\n"


def draw(study: str, path: Path) -> None:
    """Certified accuracy at r = σ against queries, a line for each estimator and space; white boxes as ceilings.

    Rows of another schedule than the ceilings' are left to the table.
    """
    from matplotlib.figure import Figure

    found, held = measured(study)
    plans = {name: found.row(name).plans["cpu"].defense for name in held}
    rows = {name: held[name] for name in held if plans[name].phases == plans[CEILING].phases}
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for place, (name, points) in enumerate(lines(rows).items()):
        style = "--" if name.startswith("ZO-DS") else "-"
        axes.plot(*zip(*points, strict=True), marker="o", linestyle=style, label=name, color=f"C{place}")
    for name, style in CEILINGS.items():
        if name in rows:
            axes.axhline(_share(rows[name]), color="0.4", linestyle=style, linewidth=1, label=f"{name} (white box)")
    if "MSE denoiser" in rows:
        axes.plot(NOTHING, _share(rows["MSE denoiser"]), marker="s", color="k", linestyle="", label="MSE denoiser")
    axes.set(xscale="log", xlabel="queries to train, all included (left edge: none)")
    axes.set_ylabel("certified accuracy at r = σ, %")
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", fontsize=7, ncols=5, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def lines(rows: dict[str, list[Measured]]) -> dict[str, list[tuple[float, float]]]:
    """The points (queries, share in %) of each estimator in each space, by queries."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name, held in rows.items():
        if kind := re.match(r"(ZO-\S+) \((\w+(?:, latent)?)", name):
            found.setdefault(f"{kind[1]}, {kind[2]}", []).append((_queries(held), _share(held)))
    return {name: sorted(points) for name, points in found.items()}


def _points(finding: Finding) -> str:
    return f"{100 * finding.difference:+.1f} [{100 * finding.low:+.1f}, {100 * finding.high:+.1f}]"


def _queries(held: Sequence[Measured]) -> float:
    return float(np.mean([row.queries["train"] for row in held]))


def _share(held: Sequence[Measured], multiple: float = 1.0) -> float:
    """Certified accuracy in %, mean over seeds."""
    return 100 * float(np.mean([certified(row, multiple).mean() for row in held]))


if __name__ == "__main__":
    main()

"""RESULTS.md and its plots, from the suite and its measured rows alone: the same rows give the same bytes.

Every table shows what the paper reports beside what was measured, with scale, queries and epochs; then the claims with
their intervals; then, folded away, the provenance of every row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from certibox.confidence.bootstrap import paired_bootstrap
from certibox.confidence.gaussian import smallest_n
from certibox.paper import gpu
from certibox.paper.blocks import Block, blocks_of
from certibox.paper.claims import Finding, certified
from certibox.paper.measured import Measured, Results
from certibox.paper.plots import draw
from certibox.paper.suite import Claim, Row, Suite, Table
from certibox.report import markdown
from certibox.storage.files import write_text_atomic

NONE = "–"
REPORTED_SIGMA = 0.25  # of the paper's classification tables, whose columns are radii
_HEAD = """# Results: the paper's tables and figures, reported beside measured

This page is made by `certibox paper report` from the settings and the measured rows in `experiments/`. Reported numbers
are those of Zhang et al., "How to Robustify Black-Box ML Models? A Zeroth-Order Optimization Perspective", ICLR 2022:
certified accuracy in % at σ = 0.25 with n0 = 100, n = 10,000 and α = 0.001 (sample counts of the released code).

**How to read it.** *Scale* says how large the measurement was: `paper` has the paper's own settings; `gpu` takes
minutes a stage on one GPU; `cpu` takes minutes a table on two cores, with smaller networks and fewer and other images,
so that not its levels but the *order of its rows* is to be compared with the paper's. Certified accuracy is in %, the
mean over seeds with a 95 % interval (bootstrap over images); an abstention counts as wrong. Columns are l2 radii in
multiples of sigma, since scales differ in sigma. *Queries* are the answers of the black box that training took, targets
and validation included; rows that also differentiate the box are marked *white box*. A claim *holds* if the 95 %
interval of its paired difference (bootstrap over images, seeds averaged) lies above its margin, *does not hold* if it
lies below, and otherwise *cannot be told*; the interval speaks of other images, and the differences by seed, beside it,
of other trainings. In the commands, DIR is the folder of the data sets.
"""


def write_results(suite: Suite, results: Results, page: Path) -> list[Path]:
    """Write the page and its plots; returns their paths."""
    folder = page.parent / "results"
    known = results.by_plan()
    blocks = {name: blocks_of(table, known) for name, table in suite.tables.items()}
    plots = {name: draw(blocks[name], folder) for name in blocks}
    done: set[tuple[str, int]] = set()
    parts = [_HEAD, _summary(blocks)]
    for name, table in suite.tables.items():
        parts.append(_section(table, blocks[name], plots[name], page.parent, done))
        done |= {row.key for block in blocks[name] for row in block.measured}
    parts.append(gpu.section(suite.folder / "gpu.jsonl"))
    write_text_atomic(page, "\n".join(parts))
    return [page, *(path for paths in plots.values() for path in paths.values())]


# ------------------------------------------------------------------------------------------------------------ summary


def _summary(blocks: dict[str, list[Block]]) -> str:
    """All claims at a glance."""
    body = [
        [
            _link(block.table),
            claim.text,
            f"`{block.scale}`, {block.measured[0].data}",
            _difference(finding, block),
            str(len(finding.by_seed)),
            f"**{finding.verdict}**",
        ]
        for own in blocks.values()
        for block in own
        for claim, finding in block.findings
        if finding
    ]
    header = ["", "claim", "scale", "measured difference", "seeds", "verdict"]
    return "## The paper's claims\n\n" + markdown([header, *body]) if body else ""


def _link(table: Table) -> str:
    title = table.title.split(":")[0]
    return f"[{title}](#{table.name.lower()})"


def _difference(finding: Finding, block: Block) -> str:
    if block.classifies:
        return (
            f"{100 * finding.difference:+.1f} [{100 * finding.low:+.1f}, {100 * finding.high:+.1f}] points "
            f"at r = {_multiple(finding.claim.at)}"
        )
    claim = finding.claim
    return (
        f"{finding.difference:+.3f} [{finding.low:+.3f}, {finding.high:+.3f}] RMSE saved "
        f"at ‖δ‖ = {claim.at:g}, {claim.threat}"
    )


# ----------------------------------------------------------------------------------------------------------- sections


def _section(table: Table, blocks: list[Block], plots: dict[str, Path], root: Path, done: set[tuple[str, int]]) -> str:
    parts = [f'<a id="{table.name.lower()}"></a>\n\n## {table.title}\n']
    if not blocks and not table.picture:
        parts.append(_reported_alone(table))
    for block in blocks:
        parts += [f"### Scale `{block.scale}`\n", f"{_settings(block)}\n"]
        if not table.picture:  # the numbers of a figure are those of the table that it draws
            parts.append(_classification(block) if block.classifies else _reconstruction(block))
        if block.scale in plots:
            parts.append(f"![{table.title}]({plots[block.scale].relative_to(root).as_posix()})\n")
        parts += [_claims(block), _provenance(block, done)]
    missing = [scale for scale in table.scales if scale not in {block.scale for block in blocks}]
    if missing:
        commands = ", ".join(f"`certibox paper run {table.name} --scale {scale}`" for scale in missing)
        parts.append(f"Not measured: {commands}.\n")
    parts += [f"{note}\n" for note in table.notes]
    return "\n".join(part for part in parts if part)


def _classification(block: Block) -> str:
    columns = list(block.measured[0].settings["columns"])
    header = ["row", *_reported_header(block.table), *(f"measured r = {_multiple(k)}" for k in columns)]
    body = []
    for row in block.table.rows:
        if block.scale in row.plans:
            rows = block.rows.get(row.name, [])
            shares = [_share(rows, multiple) for multiple in columns] if rows else [NONE] * len(columns)
            body.append(
                [
                    _named(row) + _seeds(block, rows),
                    *_reported(block.table, row),
                    *shares,
                    *_effort(row, block.scale, rows),
                ]
            )
    return markdown([[*header, "queries to train", "epochs"], *body])


def _settings(block: Block) -> str:
    """What was run, in a line."""
    first = block.measured[0]
    s, plan = first.settings, block.table.row(next(iter(block.rows))).plans[block.scale]
    seeds = ", ".join(str(seed) for seed in sorted({row.seed for row in block.measured}))
    words = [f"**{first.data}**, {plan.data.train or 'all'} training and {_images(first)} test images"]
    words.append(f"box {plan.box.network}")
    if first.clean_accuracy is not None:
        words[-1] += f", {100 * first.clean_accuracy:.1f} % right on the clean test images"
    words += [_objective(block), f"σ = {s['sigma']:g}"]
    if block.classifies:
        words.append(f"n0 = {s['n0']}, n = {s['n']:,}, α = {s['alpha']:g}")
        beyond = [k for k in (1.0, 2.0, 3.0) if smallest_n(s["alpha"], k) > s["n"]]
        words += [f"r = {_multiple(k)} would take n = {smallest_n(s['alpha'], k):,}" for k in beyond[:1]]
    else:
        words.append(f"PGD of {s['steps']} steps, {s['copies']} noisy copies an output")
        words.append(f"{s['samples']} copies in the adaptive gradient")
    return "; ".join([*words, f"seeds {seeds}"]) + "."


def _objective(block: Block) -> str:
    """What the rows with a stability term minimise; rows that differ say so in their note."""
    plans = [row.plans[block.scale].defense for row in block.table.rows if block.scale in row.plans]
    weights = next(((d.denoise_weight, d.gamma) for d in plans if d.method[:2] in ("FO", "ZO")), (1.0, 0.0))
    return "stability alone, as released" if weights[0] == 0 else f"eq. 2 with γ = {weights[1]:g}"


def _images(row: Measured) -> int:
    name = "reach" if "reach" in row.values else f"adaptive rmse {row.settings['epsilons'][0]:g}"
    return len(row.series(name))


def _reconstruction(block: Block) -> str:
    """RMSE / SSIM by attack norm: reported, then measured under either threat."""
    epsilons = block.measured[0].settings["epsilons"]
    parts = []
    for threat, words in (
        ("transfer", "attack on the undefended network, as in the released code and in the reported numbers"),
        ("adaptive", "attack on the whole defended pipeline"),
    ):
        header = ["row", *(f"‖δ‖ = {epsilon:g}" for epsilon in epsilons), "queries to train", "epochs"]
        body = []
        for row in (row for row in block.table.rows if block.scale in row.plans):
            rows = block.rows.get(row.name, [])
            if threat == "transfer" and row.reported:
                told = [_reported_cell(row, f"{epsilon:g}") for epsilon in epsilons]
                body.append([f"{row.name}, *reported*", *told, NONE, NONE])
            errors = [_errors(rows, threat, epsilon) for epsilon in epsilons]
            body.append([_named(row) + _seeds(block, rows), *errors, *_effort(row, block.scale, rows)])
        title = f"**{threat.capitalize()}**: {words}; RMSE, SSIM.\n\n"
        parts.append(title + markdown([header, *body]))
    return "\n".join(parts)


def _errors(rows: Sequence[Measured], threat: str, epsilon: float) -> str:
    """Mean RMSE with its interval over images, and SSIM with a window around every pixel, as the release pads it."""
    if not rows:
        return NONE
    errors, similarity = (
        np.mean([row.series(f"{threat} {name} {epsilon:g}") for row in rows], axis=0)
        for name in ("rmse", "ssim_padded")
    )
    mean, low, high = paired_bootstrap(errors, 0.0)
    return f"**{mean:.3f}** [{low:.3f}, {high:.3f}], {similarity.mean():.3f}"


def _reported_alone(table: Table) -> str:
    body = [[_named(row), *_reported(table, row), "not measured"] for row in table.rows]
    return markdown([["row", *_reported_header(table), "measured"], *body])


def _reported_header(table: Table) -> list[str]:
    """One column for all that the paper reports of a row; none where it reports nothing."""
    columns = _columns(table)
    if not columns:
        return []
    if _pairs(table):
        return [f"reported RMSE, SSIM at ‖δ‖ = {' / '.join(columns)}"]
    return [f"reported r = {' / '.join(_multiple(float(column) / REPORTED_SIGMA) for column in columns)}"]


def _pairs(table: Table) -> bool:
    """Whether the paper reports two numbers a cell."""
    return any(isinstance(value, list) for row in table.rows for value in row.reported.values())


def _reported(table: Table, row: Row) -> list[str]:
    columns = _columns(table)
    return [" / ".join(_reported_cell(row, column) for column in columns) if row.reported else NONE] if columns else []


def _columns(table: Table) -> list[str]:
    """The columns of what the paper reports."""
    return list(next((row.reported for row in table.rows if row.reported), {}))


def _named(row: Row) -> str:
    return f"{row.name} <br><sub>{row.note}</sub>" if row.note else row.name


def _seeds(block: Block, rows: Sequence[Measured]) -> str:
    """A word on rows that lack some of their seeds."""
    wanted = len(block.table.seeds[block.scale])
    return f" <br><sub>{len(rows)} of {wanted} seeds</sub>" if 0 < len(rows) < wanted else ""


def _reported_cell(row: Row, column: str) -> str:
    value = row.reported.get(column)
    if value is None:
        return NONE
    return ", ".join(f"{part:.3f}" for part in value) if isinstance(value, list) else f"{value:.2f}"


def _share(rows: Sequence[Measured], multiple: float) -> str:
    """Certified accuracy over all seeds, with its interval over images."""
    by_image = np.mean([certified(row, multiple) for row in rows], axis=0)
    share, low, high = paired_bootstrap(by_image, 0.0)
    return f"**{100 * share:.1f}** [{100 * low:.0f}, {100 * high:.0f}]"


def _effort(row: Row, scale: str, rows: Sequence[Measured]) -> list[str]:
    """Queries and epochs of training."""
    plan = row.plans[scale]
    if not rows:
        return [NONE, str(plan.epochs)]
    spent = f"{round(float(np.mean([measured.queries['train'] for measured in rows]))):,}"
    return [spent if plan.queries_answered_by_box else f"{spent} + white box", str(plan.epochs)]


def _multiple(k: float) -> str:
    return "0" if k == 0 else "σ" if k == 1 else f"{k:g}σ"


# ------------------------------------------------------------------------------------------------- claims, provenance


def _claims(block: Block) -> str:
    if not block.findings:
        return ""
    body = []
    for claim, finding in block.findings:
        said = _reported_difference(block, claim)
        if finding is None:
            body.append([claim.text, said, "not measured", NONE, NONE])
            continue
        scale = 100 if block.classifies else 1
        digits = 1 if block.classifies else 3
        seeds = ", ".join(f"{scale * value:+.{digits}f}" for value in finding.by_seed)
        body.append([claim.text, said, _difference(finding, block), seeds, f"**{finding.verdict}**"])
    return markdown([["claim", "reported difference", "measured difference", "by seed", "verdict"], *body])


def _reported_difference(block: Block, claim: Claim) -> str:
    """The difference that the paper reports at the claim's column; it reports no adaptive attack."""
    better, worse = (block.table.row(name).reported for name in (claim.better, claim.worse))
    column = f"{claim.at * REPORTED_SIGMA:.2f}" if block.classifies else f"{claim.at:g}"
    told = column in better and column in worse
    if not told or (not block.classifies and claim.threat != "transfer"):
        return NONE
    if block.classifies:
        return f"{better[column] - worse[column]:+.2f}"
    return f"{worse[column][0] - better[column][0]:+.3f}"


def _provenance(block: Block, done: set[tuple[str, int]]) -> str:
    header = ["row", "seed", "command", "queries: train, evaluate", "seconds: defense, evaluation", "date"]
    body = [
        [
            name,
            str(row.seed),
            f"`{row.command}`",
            f"{row.queries['train']:,}, {row.queries['evaluate']:,}",
            f"{row.seconds['defense']:.0f}, {row.seconds['evaluation']:.0f}",
            row.date,
        ]
        for name, rows in block.rows.items()
        for row in rows
    ]
    where = "; ".join(dict.fromkeys(row.hardware for row in block.measured))
    versions = dict.fromkeys(", ".join(f"{k} {v}" for k, v in row.versions.items()) for row in block.measured)
    text = f"Measured on {where}, with {'; '.join(versions)}. {_cost(block.measured, done)}"
    return f"<details><summary>Provenance</summary>\n\n{text}\n\n{markdown([header, *body])}\n</details>\n"


def _cost(rows: Iterable[Measured], done: set[tuple[str, int]]) -> str:
    """Seconds of the table's own defenses and evaluations; those of an earlier table's rows apart."""
    own, shared = 0.0, 0.0
    for row in rows:
        took = row.seconds["defense"] + row.seconds["evaluation"]
        if row.key in done:
            shared += took
        else:
            own += took
    text = f"Its defenses and evaluations took {own / 60:.0f} minutes of one thread"
    return text + (f", and {shared / 60:.0f} in rows shared with earlier tables." if shared else ".")

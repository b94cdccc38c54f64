"""The page of one table or figure: reported beside measured numbers, claims, notes, provenance. No torch.

A reader of this page alone understands it: its settings, its verdict and its words are on it.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path

from certibox.confidence.gaussian import smallest_n
from certibox.paper.blocks import Block
from certibox.paper.cells import (
    NONE,
    REPORTED_SIGMA,
    by_seed,
    difference,
    effort,
    errors,
    multiple,
    reported_difference,
    share,
    verdicts,
)
from certibox.paper.measured import Measured
from certibox.paper.provenance import provenance
from certibox.paper.suite import Row, Table
from certibox.paper.words import PAPER, Kind, words
from certibox.report import markdown

_THREATS = (
    ("transfer", "attack on the undefended network, as in the released code and in the reported numbers"),
    ("adaptive", "attack on the whole defended pipeline"),
)


def kind_of(table: Table) -> Kind:
    """Whether a table is about certificates or about reconstructions.

    Args:
        table: Table of the suite.
    """
    attacked = any(plan.attack for row in table.rows for plan in row.plans.values())
    return "reconstructions" if attacked else "certificates"


def table_page(
    table: Table, blocks: Sequence[Block], plots: dict[str, Path], back: str, earlier: Set[tuple[str, int]]
) -> str:
    """The page of a table as Markdown.

    Args:
        table: Table or figure of the suite.
        blocks: Measured rows of the table, one block a scale; none if nothing was measured.
        plots: Plots of a figure by scale, in the folder of the page.
        back: Link from the page to the page of all results.
        earlier: Keys of measured rows that earlier tables show too.
    """
    told = f"What {PAPER}, reports, beside what was measured here"
    parts = [f"# {table.title}\n", f"{told}. [All results]({back}) · [Words of this page](#words)\n"]
    parts += [f"{sentence}\n" for sentence in verdicts(blocks)]
    if not blocks:
        parts.append("**Nothing of this table was measured yet.**\n")
        if not table.picture:
            parts.append(_reported_alone(table))
    for block in blocks:
        parts += [f"## Scale `{block.scale}`\n", _settings(block)]
        if not table.picture:  # the numbers of a figure are those of the table that it draws
            parts += _certificates(block) if block.classifies else _reconstructions(block)
        if block.scale in plots:
            parts.append(f"![{table.title}]({plots[block.scale].name})\n")
        parts += [_claims(block), provenance(block, earlier)]
    parts += [_not_measured(table, blocks), _notes(table), words([kind_of(table)], list(table.scales))]
    return "\n".join(part for part in parts if part)


def _not_measured(table: Table, blocks: Sequence[Block]) -> str:
    missing = [scale for scale in table.scales if scale not in {block.scale for block in blocks}]
    if not missing:
        return ""
    lines = [f"- scale `{scale}`: `certibox paper run {table.name} --scale {scale} --data DIR`\n" for scale in missing]
    return f"## Not measured\n\nThese commands measure it; DIR is the folder of the data sets.\n\n{''.join(lines)}"


def _notes(table: Table) -> str:
    return "## Notes\n\n" + "\n".join(f"- {note}" for note in table.notes) + "\n" if table.notes else ""


def _settings(block: Block) -> str:
    """What was run, in a few lines."""
    first = block.measured[0]
    s, plan = first.settings, block.table.row(next(iter(block.rows))).plans[block.scale]
    seeds = ", ".join(str(seed) for seed in sorted({row.seed for row in block.measured}))
    box = plan.box.network
    if first.clean_accuracy is not None:
        box += f", {100 * first.clean_accuracy:.1f} % right on the clean test images"
    lines = [
        f"**Images**: {first.data}, {plan.data.train or 'all'} training and {_images(first)} test images",
        f"**Black box**: {box}",
        f"**Training**: {_objective(block)}; σ = {s['sigma']:g}; seeds {seeds}",
    ]
    if block.classifies:
        certificates = f"n0 = {s['n0']}, n = {s['n']:,}, α = {s['alpha']:g}"
        beyond = [k for k in (1.0, 2.0, 3.0) if smallest_n(s["alpha"], k) > s["n"]]
        certificates += "".join(f"; r = {multiple(k)} would take n = {smallest_n(s['alpha'], k):,}" for k in beyond[:1])
        lines.append(f"**Certificates**: {certificates}")
    else:
        lines.append(
            f"**Attack**: PGD of {s['steps']} steps; {s['copies']} noisy copies an output; "
            f"{s['samples']} copies in the adaptive gradient"
        )
    return "".join(f"- {line}\n" for line in lines)


def _objective(block: Block) -> str:
    """What the rows with a stability term minimise; rows that differ say so in their note."""
    plans = [row.plans[block.scale].defense for row in block.table.rows if block.scale in row.plans]
    weights = next(((d.denoise_weight, d.gamma) for d in plans if d.method[:2] in ("FO", "ZO")), (1.0, 0.0))
    return "stability alone, as released" if weights[0] == 0 else f"eq. 2 with γ = {weights[1]:g}"


def _images(row: Measured) -> int:
    name = "reach" if "reach" in row.values else f"adaptive rmse {row.settings['epsilons'][0]:g}"
    return len(row.series(name))


# ------------------------------------------------------------------------------------------------------------- numbers


def _certificates(block: Block) -> list[str]:
    columns = list(block.measured[0].settings["columns"])
    header = ["row", *_reported_header(block.table), *(f"measured r = {multiple(k)}" for k in columns)]
    body = []
    for row in (row for row in block.table.rows if block.scale in row.plans):
        rows = block.rows.get(row.name, [])
        shares = [share(rows, k) for k in columns] if rows else [NONE] * len(columns)
        name = _named(row) + _seeds(block, rows)
        body.append([name, *_reported(block.table, row), *shares, *effort(row, block.scale, rows)])
    title = "Certified accuracy in %, with 95 % intervals:\n"
    return [title, markdown([[*header, "queries to train", "epochs"], *body])]


def _reconstructions(block: Block) -> list[str]:
    """RMSE / SSIM by attack norm: reported, then measured under either threat."""
    epsilons = block.measured[0].settings["epsilons"]
    parts = []
    for threat, meaning in _THREATS:
        header = ["row", *(f"‖δ‖ = {epsilon:g}" for epsilon in epsilons), "queries to train", "epochs"]
        body = []
        for row in (row for row in block.table.rows if block.scale in row.plans):
            rows = block.rows.get(row.name, [])
            if threat == "transfer" and row.reported:
                told = [_reported_cell(row, f"{epsilon:g}") for epsilon in epsilons]
                body.append([f"{row.name}, *reported*", *told, NONE, NONE])
            cells = [errors(rows, threat, epsilon) for epsilon in epsilons]
            body.append([_named(row) + _seeds(block, rows), *cells, *effort(row, block.scale, rows)])
        title = f"**{threat.capitalize()}**: {meaning}. RMSE with its interval, then SSIM:\n"
        parts += [title, markdown([header, *body])]
    return parts


def _reported_alone(table: Table) -> str:
    body = [[_named(row), *_reported(table, row), "not measured"] for row in table.rows]
    return markdown([["row", *_reported_header(table), "measured"], *body])


def _reported_header(table: Table) -> list[str]:
    """One column for all that the paper reports of a row; none where it reports nothing."""
    columns = _columns(table)
    if not columns:
        return []
    if kind_of(table) == "reconstructions":
        return [f"reported RMSE, SSIM at ‖δ‖ = {' / '.join(columns)}"]
    return [f"reported r = {' / '.join(multiple(float(column) / REPORTED_SIGMA) for column in columns)}"]


def _reported(table: Table, row: Row) -> list[str]:
    columns = _columns(table)
    return [" / ".join(_reported_cell(row, column) for column in columns) if row.reported else NONE] if columns else []


def _columns(table: Table) -> list[str]:
    """The columns of what the paper reports."""
    return list(next((row.reported for row in table.rows if row.reported), {}))


def _reported_cell(row: Row, column: str) -> str:
    value = row.reported.get(column)
    if value is None:
        return NONE
    return ", ".join(f"{part:.3f}" for part in value) if isinstance(value, list) else f"{value:.2f}"


def _named(row: Row) -> str:
    return f"{row.name} <br><sub>{row.note}</sub>" if row.note else row.name


def _seeds(block: Block, rows: Sequence[Measured]) -> str:
    """A word on rows that lack some of their seeds."""
    wanted = len(block.table.seeds[block.scale])
    return f" <br><sub>{len(rows)} of {wanted} seeds</sub>" if 0 < len(rows) < wanted else ""


def _claims(block: Block) -> str:
    if not block.findings:
        return ""
    body = []
    for claim, finding in block.findings:
        said = reported_difference(block, claim)
        if finding is None:
            body.append([claim.text, NONE, "not measured", said, NONE])
        else:
            measured = [difference(finding, block), said, by_seed(finding, block)]
            body.append([claim.text, f"**{finding.verdict}**", *measured])
    header = ["claim", "verdict", "measured difference", "reported difference", "by seed"]
    return "Claims:\n\n" + markdown([header, *body], left=(0, 1))

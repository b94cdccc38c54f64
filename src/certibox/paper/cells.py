"""Measured rows and findings as the text of a cell or a sentence. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from certibox.confidence.bootstrap import paired_bootstrap
from certibox.paper.blocks import Block
from certibox.paper.claims import Finding, Verdict, certified
from certibox.paper.measured import Measured
from certibox.paper.suite import Claim, Row, Table
from certibox.paper.words import SCALES

NONE = "–"
REPORTED_SIGMA = 0.25  # of the paper's classification tables, whose columns are radii
VERDICTS: dict[Verdict, str] = {"holds": "hold", "does not hold": "do not hold", "cannot be told": "cannot be told"}


def multiple(k: float) -> str:
    """A radius in units of sigma in words: `0`, `σ`, `2σ`.

    Args:
        k: Radius in units of sigma.
    """
    return "0" if k == 0 else "σ" if k == 1 else f"{k:g}σ"


def share(rows: Sequence[Measured], k: float) -> str:
    """Certified accuracy in %: the mean over seeds, with its interval over images.

    Args:
        rows: Measured rows of one plan, one a seed.
        k: Radius in multiples of sigma.
    """
    by_image = np.mean([certified(row, k) for row in rows], axis=0)
    mean, low, high = paired_bootstrap(by_image, 0.0)
    return f"**{100 * mean:.1f}** [{100 * low:.0f}, {100 * high:.0f}]"


def errors(rows: Sequence[Measured], threat: str, epsilon: float) -> str:
    """Mean RMSE with its interval over images, and SSIM with a window around every pixel, as the release pads it.

    Args:
        rows: Measured rows of one plan, one a seed; possibly none.
        threat: Attacker, `transfer` or `adaptive`.
        epsilon: Norm of the attack.
    """
    if not rows:
        return NONE
    deviations, similarity = (
        np.mean([row.series(f"{threat} {name} {epsilon:g}") for row in rows], axis=0)
        for name in ("rmse", "ssim_padded")
    )
    mean, low, high = paired_bootstrap(deviations, 0.0)
    return f"**{mean:.3f}** <br>[{low:.3f}, {high:.3f}] <br>{similarity.mean():.3f}"


def effort(row: Row, scale: str, rows: Sequence[Measured]) -> list[str]:
    """Two cells: the queries and the epochs of training.

    Args:
        row: Row of the table.
        scale: Name of the scale.
        rows: Measured rows of that row at that scale, one a seed; possibly none.
    """
    plan = row.plans[scale]
    if not rows:
        return [NONE, str(plan.epochs)]
    spent = f"{round(float(np.mean([measured.queries['train'] for measured in rows]))):,}"
    return [spent if plan.queries_answered_by_box else f"{spent} + white box", str(plan.epochs)]


def difference(finding: Finding, block: Block) -> str:
    """The measured difference of a claim with its interval, and where it was measured.

    Args:
        finding: Claim with what was measured of it.
        block: Rows that it was measured on, at one scale.
    """
    claim = finding.claim
    if block.classifies:
        interval = f"[{100 * finding.low:+.1f}, {100 * finding.high:+.1f}]"
        return f"{100 * finding.difference:+.1f} {interval} points at r = {multiple(claim.at)}"
    interval = f"[{finding.low:+.3f}, {finding.high:+.3f}]"
    return f"{finding.difference:+.3f} {interval} RMSE saved at ‖δ‖ = {claim.at:g}, {claim.threat}"


def by_seed(finding: Finding, block: Block) -> str:
    """The measured difference of every seed by itself; see `difference`."""
    factor, digits = (100, 1) if block.classifies else (1, 3)
    return ", ".join(f"{factor * value:+.{digits}f}" for value in finding.by_seed)


def reported_difference(block: Block, claim: Claim) -> str:
    """The difference that the paper reports at the claim's column; it reports no adaptive attack.

    Args:
        block: Rows of the table, at one scale.
        claim: Claim about two of them.
    """
    better, worse = (block.table.row(name).reported for name in (claim.better, claim.worse))
    column = f"{claim.at * REPORTED_SIGMA:.2f}" if block.classifies else f"{claim.at:g}"
    told = column in better and column in worse
    if not told or (not block.classifies and claim.threat != "transfer"):
        return NONE
    if block.classifies:
        return f"{better[column] - worse[column]:+.2f}"
    return f"{worse[column][0] - better[column][0]:+.3f}"


def short_title(table: Table) -> str:
    """What a table is called in the paper: its title up to the colon.

    Args:
        table: Table of the suite.
    """
    return table.title.split(":")[0]


def verdicts(blocks: Sequence[Block]) -> list[str]:
    """How many of the tested claims hold: a sentence for every scale that has any, which says what the scale is.

    Args:
        blocks: Rows of the tables, a block a table and scale.
    """
    found: dict[str, list[Verdict]] = {}
    data: dict[str, dict[str, None]] = {}  # a dict keeps the order of what it names
    for block in blocks:
        tested: list[Verdict] = [finding.verdict for _, finding in block.findings if finding]
        if tested:
            found.setdefault(block.scale, []).extend(tested)
            data.setdefault(block.scale, {}).update(dict.fromkeys(row.data for row in block.measured))
    return [
        f"**{_count(len(own), 'claim was', 'claims were')} tested at scale `{scale}`** "
        f"({', '.join([*SCALES.get(scale, ())[:1], *data[scale]])}): **{_counts(own)}.**"
        for scale, own in found.items()
    ]


def _counts(own: Sequence[Verdict]) -> str:
    *some, last = (_count(own.count(kind), kind, plural) for kind, plural in VERDICTS.items())
    return f"{', '.join(some)}, and {last}"


def _count(number: int, singular: str, plural: str) -> str:
    return f"{number} {singular if number == 1 else plural}"

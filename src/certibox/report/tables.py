"""The summary of runs as a table for the terminal, in Markdown, or as cells of text."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from typing import Any

from numpy.typing import ArrayLike
from rich.table import Table
from rich.text import Text

from certibox.report.findings import clean_accuracy
from certibox.report.numbers import Run, measure_of, summary_table

UNKNOWN = "–"


def plain(text: str) -> str:
    """A text with what no page or terminal shows as it is spelt out: control characters, escape codes, broken UTF-8.

    Args:
        text: Text that may come from outside, such as the name of a run.
    """
    shown = (c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs" for c in text)
    return "".join(c if held else c.encode("unicode_escape").decode() for c, held in zip(text, shown, strict=True))


def cells(runs: Sequence[Run], radii: ArrayLike) -> list[list[str]]:
    """The summary as text: a header row, then a row for each run. Shares become percent.

    Args:
        runs: Runs of one table.
        radii: Radii (k,), in pixels on [0, 1].
    """
    summaries = summary_table(runs, radii)
    symbol = measure_of(runs).symbol
    header = ["run", "images", *(f"{symbol}({r:g}) %" for r in summaries[0]["radii"])]
    sampled, trained = _sequential(runs), _trained(summaries)
    clean = [clean_accuracy(run.rows) for run in runs]
    voted = any(share is not None for share in clean)
    header += ["abstain %", "ACR", *(["clean %"] if voted else []), *(["samples an image"] if sampled else [])]
    header += [*(["training queries"] if trained else []), "certification queries"]
    shown = [[UNKNOWN if share is None else f"{100 * share:.1f}"] if voted else [] for share in clean]
    pairs = zip(summaries, shown, strict=True)
    return [header, *(_summary_cells(summary, cell, sampled, trained) for summary, cell in pairs)]


def _sequential(runs: Sequence[Run]) -> bool:
    """Whether a sequential rule certified any image, so that samples an image are a finding and no setting."""
    return any(getattr(row, "rule", None) is not None for run in runs for row in run.rows)


def _trained(summaries: Sequence[dict[str, Any]]) -> bool:
    """Whether any run tells what its training asked; certificates alone do not."""
    return any(summary["training_queries"] is not None for summary in summaries)


def _summary_cells(summary: dict[str, Any], clean: Sequence[str], sampled: bool, trained: bool) -> list[str]:
    shares = [
        f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        for share, (low, high) in zip(summary["share"], summary["interval"], strict=True)
    ]
    radius = summary["average_certified_radius"]
    return [
        plain(summary["name"]),
        f"{summary['images']:,}",
        *shares,
        f"{100 * summary['abstention_rate']:.1f}",
        UNKNOWN if radius is None else f"{radius:.3f}",
        *clean,
        *([_samples_cell(summary)] if sampled else []),
        *([count_cell(summary["training_queries"])] if trained else []),
        count_cell(summary["certification_queries"]),
    ]


def count_cell(number: int | None) -> str:
    """A count as text.

    Args:
        number: Count; None when unknown.
    """
    return UNKNOWN if number is None else f"{number:,}"


def _samples_cell(summary: dict[str, Any]) -> str:
    mean = summary["samples_per_image"]
    return UNKNOWN if mean is None else f"{mean:,.0f}"


def render_table(runs: Sequence[Run], radii: ArrayLike) -> Table:
    """The summary for a terminal of 80 columns: each share in percent above its 95 % interval.

    Args:
        runs: Runs of one table.
        radii: Radii (k,), in pixels on [0, 1].
    """
    summaries, measure = summary_table(runs, radii), measure_of(runs)
    table = Table(title=f"{measure.name} at l2 radius r, in % with 95 % intervals")
    table.add_column("run")
    sampled = ["samples\nan image"] if _sequential(runs) else []
    trained = ["queries to\ntrain"] if _trained(summaries) else []
    titles = [*(f"r={r:g}" for r in summaries[0]["radii"]), *sampled, *trained, "queries to\ncertify"]
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for summary in summaries:
        shares = [
            f"{100 * share:.1f}\n{100 * low:.0f}–{100 * high:.0f}"
            for share, (low, high) in zip(summary["share"], summary["interval"], strict=True)
        ]
        counts = [_samples_cell(summary)] if sampled else []
        counts += [count_cell(summary["training_queries"])] if trained else []
        counts += [count_cell(summary["certification_queries"])]
        table.add_row(*(Text(plain(cell)) for cell in [summary["name"], *shares, *counts]))  # Text: a name is no markup
    return table


def markdown_table(runs: Sequence[Run], radii: ArrayLike) -> str:
    """The summary as a Markdown table: each share in percent with its 95 % interval in brackets.

    Args:
        runs: Runs of one table.
        radii: Radii (k,), in pixels on [0, 1].
    """
    return markdown(cells(runs, radii))


def markdown(rows: Sequence[Sequence[str]], left: Collection[int] = (0,), rule: str | None = None) -> str:
    """A Markdown table of cells: the first row is the header.

    Args:
        rows: Cells of each row, as many in each.
        left: Positions of the columns that are set to the left, words rather than numbers; all others go to the right.
        rule: Markdown of the line below the header, in place of the one that `left` makes.
    """
    header, *body = rows
    sides = ("---" if position in left else "---:" for position in range(len(header)))
    rule = rule or "| " + " | ".join(sides) + " |"
    lines = ["| " + " | ".join(_markdown_cell(cell) for cell in row) + " |" for row in (header, *body)]
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def _markdown_cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())

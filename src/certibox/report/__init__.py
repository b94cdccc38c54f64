"""From rows to numbers, pictures and one self-contained HTML page. Reads rows only; spends no query.

Every share of images comes with its exact (Clopper–Pearson) interval, because a certified accuracy measured on 500
images is itself a sample. Radii are l2 distances with pixels in [0, 1].

- `numbers`: `Run`, the shares, intervals and differences of certified images, and `summary_table`;
- `findings`: clean images, classes apart, the images that hold least, two runs compared in words;
- `tables`: the summary for a terminal and in Markdown;
- `pictures`: `plot_ca_curves` and `plot_images`;
- `page`: `write_report`.
"""

from __future__ import annotations

from certibox.report.numbers import (
    Run,
    abstention_rate,
    average_certified_radius,
    certified_accuracy,
    certified_accuracy_interval,
    certified_share,
    paired_difference,
    summary_table,
)
from certibox.report.page import require_report_place, write_report
from certibox.report.pictures import plot_ca_curves, plot_images
from certibox.report.tables import UNKNOWN, markdown, markdown_table, render_table

__all__ = [
    "UNKNOWN",
    "Run",
    "abstention_rate",
    "average_certified_radius",
    "certified_accuracy",
    "certified_accuracy_interval",
    "certified_share",
    "markdown",
    "markdown_table",
    "paired_difference",
    "plot_ca_curves",
    "plot_images",
    "render_table",
    "require_report_place",
    "summary_table",
    "write_report",
]

"""The pictures of the figures, from measured rows alone: the same rows give the same bytes. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from certibox.paper.blocks import Block
from certibox.paper.measured import Measured
from certibox.records.tsv import PublishedRow
from certibox.report import Run, plot_ca_curves, plot_images


def draw(blocks: list[Block], folder: Path) -> dict[str, Path]:
    """Draw the picture of a figure at each scale that has what it shows.

    Args:
        blocks: Measured rows of the figure, one block a scale; blocks of a table have no picture.
        folder: Folder for the pictures.

    Returns:
        The paths of the pictures by scale.
    """
    paths = {}
    for block in blocks:
        path = folder / f"{block.table.name}-{block.scale}.png"
        if block.table.picture and _PICTURES[block.table.picture](block, path):
            paths[block.scale] = path
    return paths


def _curves(block: Block, path: Path) -> bool:
    """Certified accuracy against radius, seeds pooled, dashed without the autoencoder. No bands: seeds share images."""
    runs = [Run(name, _outcomes(rows)) for name, rows in block.rows.items()]
    plans = {row.name: row.plans[block.scale] for row in block.table.rows if block.scale in row.plans}
    dashed = [name for name, plan in plans.items() if "AE" not in plan.defense.method]
    plot_ca_curves(runs, path, bands=False, dashed=dashed)
    return True


def _outcomes(rows: Sequence[Measured]) -> list[PublishedRow]:
    """Every image of every seed as an outcome: the series keep how far each is certified correctly, and no more."""
    reach = np.concatenate([row.series("reach") for row in rows])
    return [
        PublishedRow(i, 0, 0 if value >= 0 else None, max(0.0, float(value)), bool(value >= 0), 0.0)
        for i, value in enumerate(reach)
    ]


def _reconstructions(block: Block, path: Path) -> bool:
    """The first images: the truth, then every row's answer under the transferred and under the adaptive attack."""
    rows = {name: row for name, rows in block.rows.items() for row in rows if "truth pictures" in row.values}
    columns: dict[str, np.ndarray] = {}
    for name, row in rows.items():
        columns["truth"] = _pictures(row, "truth")
        for threat in ("transfer", "adaptive"):
            columns[f"{_short(name)}\n{threat}"] = _pictures(row, threat)
    if columns:
        plot_images(columns, path)
    return bool(columns)


def _short(name: str) -> str:
    return name.split(" (")[0]


def _pictures(row: Measured, name: str) -> np.ndarray:
    flat = row.series(f"{name} pictures")
    return flat.reshape(-1, 1, 28, 28)


_PICTURES: dict[str, Any] = {"curves": _curves, "reconstructions": _reconstructions}

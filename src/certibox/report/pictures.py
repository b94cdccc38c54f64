"""Curves of certified accuracy and grids of images, as PNG bytes."""

from __future__ import annotations

import io
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from certibox.errors import InvalidImages
from certibox.report.findings import decided_radii
from certibox.report.numbers import Run, intervals, measure_of, shares
from certibox.report.tables import plain
from certibox.storage.files import PathLike, write_bytes_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import ErrorbarContainer
    from matplotlib.figure import Figure

_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)  # Okabe & Ito: colour-blind safe
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_ASIDE = 0.025  # of the largest radius, from the points of one run to those of the next
_LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
_DPI = 150


def plot_ca_curves(
    runs: Sequence[Run], path: PathLike | None, *, bands: bool = True, dashed: Collection[str] | None = None
) -> bytes:
    """Certified accuracy against radius: an exact step curve, or points, for each run; the bytes of a PNG.

    Points with 95 % intervals stand for a run whose stopping rule was asked for radii: it knows of these alone. Those
    of several runs stand side by side. The certified share stands in the place of accuracy when a run has no labels.

    Args:
        runs: Runs to draw.
        path: File that receives the PNG too; None writes none.
        bands: Whether light 95 % bands are drawn.
        dashed: Names of the runs to draw dashed, all others solid; by default lines alternate.
    """
    measure = measure_of(runs)
    figure = _figure(7.0, 4.2)
    axes = figure.add_subplot()
    asked = [decided_radii(run.rows) for run in runs]
    handles, points = [], sum(radii is not None for radii in asked)
    places = itertools.count()  # of the runs with points, side by side
    for run, radii, (colour, line) in zip(runs, asked, _styles(runs, dashed), strict=True):
        reach = measure.reach(run.rows)
        if radii is None:
            _draw_curve(axes, reach, colour, line, bands)
            handles.append(axes.get_lines()[-1])
        else:
            place = next(places)
            aside = _ASIDE * (place - (points - 1) / 2) * max(radii, default=0.0)
            handles.append(_draw_points(axes, reach, np.array(radii), aside, colour, _MARKERS[place % len(_MARKERS)]))
    axes.set(xlim=(0, None), ylim=(0, 1), xlabel="l2 radius (pixels in [0, 1])", ylabel=measure.name)
    if points:
        axes.margins(x=0.08)
        axes.set_xlim(0, None, auto=True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(handles, [str(number) for number in range(len(runs))], frameon=False)
    for text, run in zip(legend.get_texts(), runs, strict=True):
        text.set_parse_math(False)  # a name is a name: neither "$" nor a leading "_" may change what is drawn
        text.set_text(plain(run.name))
    return _png(figure, path)


def _styles(runs: Sequence[Run], dashed: Collection[str] | None) -> list[tuple[str, Any]]:
    """Colour and line of each curve; among the dashed ones, and among the solid ones, colours differ."""
    if dashed is None:
        return [(_COLOURS[i % len(_COLOURS)], _LINES[i % len(_LINES)]) for i in range(len(runs))]
    drawn, styles = {"-": 0, "--": 0}, []
    for run in runs:
        line = "--" if run.name in dashed else "-"
        styles.append((_COLOURS[drawn[line] % len(_COLOURS)], line))
        drawn[line] += 1
    return styles


def _draw_curve(axes: Axes, reach: np.ndarray, colour: str, line: Any, band: bool = True) -> None:
    """The exact step curve of (n,) reaches: constant up to each radius that occurs, lower just behind it."""
    x = np.append(0.0, np.unique(reach[reach > 0]))
    if band:
        low, high = intervals(reach, x).T
        axes.fill_between(x, low, high, step="pre", color=colour, alpha=0.14, linewidth=0)
    y = np.append(shares(reach, x), 0.0)
    axes.plot(np.append(x, x[-1]), y, drawstyle="steps-pre", linestyle=line, color=colour)


def _draw_points(
    axes: Axes, reach: np.ndarray, radii: np.ndarray, aside: float, colour: str, marker: str
) -> ErrorbarContainer:
    """The shares of (n,) reaches at radii (k,) as points with their intervals, moved aside by as much."""
    share, (low, high) = shares(reach, radii), intervals(reach, radii).T
    ends = np.array([share - low, high - share]).clip(0)
    return axes.errorbar(
        radii + aside, share, yerr=ends, fmt=marker, color=colour, markersize=7, capsize=4, elinewidth=1.5
    )


def plot_images(columns: Mapping[str, np.ndarray], path: PathLike | None) -> bytes:
    """A row for each image, a titled column for each stage, such as clean, noisy, denoised, decoded; a PNG.

    Args:
        columns: Arrays (m, c, h, w) by title, with c 1 or 3 and the same m and h everywhere. Noise leaves [0, 1]:
            values are clipped for display only.
        path: File that receives the PNG too; None writes none.

    Raises:
        InvalidImages: for other shapes.
    """
    shapes = {name: np.shape(images) for name, images in columns.items()}
    pictures = all(len(shape) == 4 and shape[1] in (1, 3) and 0 not in shape for shape in shapes.values())
    if not pictures or len({(shape[0], shape[2]) for shape in shapes.values()}) != 1:
        raise InvalidImages(f"columns have shapes {shapes}, wanted (m, 1 or 3, h, w) with one m and one h for all")
    rows = next(iter(shapes.values()))[0]
    lines = max(name.count("\n") + 1 for name in columns)  # of the titles
    figure = _figure(1.3 * len(columns), 1.3 * rows + 0.3 * lines)
    for axes, (name, images) in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns.items(), strict=True):
        axes.imshow(_stack(np.asarray(images, dtype=float)), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(name, parse_math=False)
        axes.set_axis_off()
    return _png(figure, path)


def _stack(images: np.ndarray) -> np.ndarray:
    """(m, c, h, w) -> (m·(h + gap) − gap, w[, 3]): images below each other on white, ready for imshow."""
    gap = max(1, images.shape[2] // 16)
    framed = np.pad(images.clip(0, 1), ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=1.0)
    column = np.concatenate(list(framed.transpose(0, 2, 3, 1)))[:-gap]
    return column[..., 0] if column.shape[-1] == 1 else column


def _figure(width: float, height: float) -> Figure:
    # Loaded here because the numbers, which every import of this package wants, do not need a plotting library. A
    # Figure of its own, without pyplot, keeps the caller's figures and backend untouched.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def _png(figure: Figure, path: PathLike | None) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # no version inside: same rows, same bytes
    if path is not None:
        write_bytes_atomic(path, buffer.getvalue(), is_png)
    return buffer.getvalue()


def is_png(content: bytes) -> bool:
    """Whether a file that begins so is a PNG.

    Args:
        content: First bytes of the file.
    """
    return content.startswith(b"\x89PNG\r\n\x1a\n")

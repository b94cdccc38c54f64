"""From rows to numbers, pictures and one self-contained HTML page. Reads rows only; spends no query.

Every share of images comes with its exact (Clopper–Pearson) interval, because a certified accuracy measured on 500
images is itself a sample. Radii are l2 distances with pixels in [0, 1].
"""

from __future__ import annotations

import base64
import html
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from rich.table import Table
from rich.text import Text

from certibox import confidence as bounds
from certibox.errors import InvalidImages, InvalidInput
from certibox.records import Outcome, PathLike, write_bytes_atomic, write_text_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNKNOWN = "–"
_CONFIDENCE = 0.95
_NEVER = -np.inf  # the radius of a row that counts at no radius at all

_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)  # Okabe & Ito: colour-blind safe
_LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
_DPI = 150


@dataclass(frozen=True)
class Run:
    """One line of a table: a name, its rows, and the queries it spent by phase, as `QueryClient.spent` tells them.

    Phases named "train ..." are counted as training and "certify ..." as certification; others, such as "fingerprint",
    appear in the list of phases only. A phase that is not named is unknown, not zero.
    """

    name: str
    rows: Sequence[Outcome]
    queries: Mapping[str, int] = field(default_factory=dict)


# --- numbers --------------------------------------------------------------------------------------------------------


def certified_accuracy(rows: Sequence[Outcome], radii: ArrayLike) -> np.ndarray:
    """Share of rows that are correct with a certified radius of at least r. radii (k,) -> shares (k,).

    An abstention counts as wrong (Cohen et al. 2019). Raises `InvalidInput` for no rows or rows without a label.
    """
    return _shares(_correct_reach(rows), radii)


def certified_accuracy_interval(rows: Sequence[Outcome], radii: ArrayLike, confidence: float = 0.95) -> np.ndarray:
    """Two-sided Clopper–Pearson interval of `certified_accuracy` at each radius alone. radii (k,) -> (k, 2)."""
    return _intervals(_correct_reach(rows), radii, confidence)


def certified_share(rows: Sequence[Outcome], radii: ArrayLike) -> np.ndarray:
    """Share of rows certified, right or wrong, with a radius of at least r; needs no labels. radii (k,) -> (k,)."""
    return _shares(_certified_reach(rows), radii)


def abstention_rate(rows: Sequence[Outcome]) -> float:
    """Share of rows that abstain."""
    return float(np.mean([row.predict is None for row in _some(rows)]))


def average_certified_radius(rows: Sequence[Outcome]) -> float:
    """Mean of radius · correct, the area under the certified-accuracy curve (Zhai et al. 2020). Needs labels."""
    return float(np.maximum(_correct_reach(rows), 0.0).mean())


def paired_difference(
    rows_a: Sequence[Outcome],
    rows_b: Sequence[Outcome],
    radius: float,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Certified accuracy of a minus that of b at `radius`, bootstrapped over images: (difference, low, high).

    Rows are joined on idx. Raises `InvalidInput` unless both cover the same images with the same labels.
    """
    (radius,) = _checked([radius])
    reach_a, reach_b = (_correct_reach(rows) for rows in _joined(rows_a, rows_b))
    return bounds.paired_bootstrap(reach_a >= radius, reach_b >= radius, confidence, resamples, seed)


def _some(rows: Sequence[Outcome]) -> Sequence[Outcome]:
    if not len(rows):
        raise InvalidInput("got no rows, wanted at least one; certify some images first")
    return rows


def _correct_reach(rows: Sequence[Outcome]) -> np.ndarray:
    """(n,) the radius up to which each row counts as correct and certified; never when wrong or abstained."""
    for row in _some(rows):
        if row.correct is None:
            raise InvalidInput(f"row of image {row.idx} has no label; give labels, or use certified_share without them")
    return np.array([row.radius if row.correct else _NEVER for row in rows])


def _certified_reach(rows: Sequence[Outcome]) -> np.ndarray:
    """(n,) the radius up to which each row counts as certified; never when abstained."""
    return np.array([row.radius if row.predict is not None else _NEVER for row in _some(rows)])


def _successes(reach: np.ndarray, radii: ArrayLike) -> np.ndarray:
    """(n,) reaches and (k,) radii -> (k,) how many rows count at each radius."""
    return len(reach) - np.searchsorted(np.sort(reach), _checked(radii), side="left")


def _checked(radii: ArrayLike) -> np.ndarray:
    """The radii as (k,) floats, or `InvalidInput`."""
    asked = np.asarray(radii, dtype=float)
    if asked.ndim != 1 or not np.all(np.isfinite(asked) & (asked >= 0)):
        raise InvalidInput(f"radii are {radii!r}, wanted a list of finite numbers >= 0, such as [0, 0.25, 0.5]")
    return asked


def _shares(reach: np.ndarray, radii: ArrayLike) -> np.ndarray:
    return _successes(reach, radii) / len(reach)


def _intervals(reach: np.ndarray, radii: ArrayLike, confidence: float = _CONFIDENCE) -> np.ndarray:
    pairs = [bounds.interval(int(count), len(reach), confidence) for count in _successes(reach, radii)]
    return np.array(pairs).reshape(-1, 2)


def _joined(rows_a: Sequence[Outcome], rows_b: Sequence[Outcome]) -> tuple[Sequence[Outcome], Sequence[Outcome]]:
    """Both row lists in the order of idx."""
    a, b = ({row.idx: row for row in _some(rows)} for rows in (rows_a, rows_b))
    if len(a) < len(rows_a) or len(b) < len(rows_b):
        raise InvalidInput("an image appears twice in the rows of one run; keep one row for each idx")
    if a.keys() != b.keys():
        raise InvalidInput(f"{len(a.keys() ^ b.keys())} image(s) are in one run only; compare runs on the same images")
    order = sorted(a)
    if any(a[idx].label != b[idx].label for idx in order):
        raise InvalidInput("the two runs give one image different labels; compare runs on the same data set")
    return [a[idx] for idx in order], [b[idx] for idx in order]


# --- tables ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measure:
    """What the tables and curves show: certified accuracy, or the certified share when a run has no labels."""

    name: str
    symbol: str
    reach: Callable[[Sequence[Outcome]], np.ndarray]


_ACCURACY = _Measure("certified accuracy", "CA", _correct_reach)
_SHARE = _Measure("certified share", "share", _certified_reach)


def _measure_of(runs: Sequence[Run]) -> _Measure:
    names = [run.name for run in runs]
    if not names or len(set(names)) < len(names):
        raise InvalidInput(f"runs are named {names}, wanted at least one run and distinct names; rename them")
    return _ACCURACY if all(row.correct is not None for run in runs for row in run.rows) else _SHARE


def summary_table(runs: Sequence[Run], radii: ArrayLike) -> list[dict[str, Any]]:
    """One JSON-ready dict for each run, in their order; shares are in [0, 1].

    Keys: name, images, measure ("certified accuracy", or "certified share" for all runs when one lacks labels), radii,
    share and interval (95 %) at each radius, abstention_rate, average_certified_radius (None without labels),
    training_queries and certification_queries (None when unknown), queries by phase.
    """
    measure = _measure_of(runs)
    return [_summary(run, radii, measure) for run in runs]


def _summary(run: Run, radii: ArrayLike, measure: _Measure) -> dict[str, Any]:
    reach = measure.reach(run.rows)
    return {
        "name": run.name,
        "images": len(run.rows),
        "measure": measure.name,
        "radii": _checked(radii).tolist(),
        "share": _shares(reach, radii).tolist(),
        "interval": _intervals(reach, radii).tolist(),
        "abstention_rate": abstention_rate(run.rows),
        "average_certified_radius": average_certified_radius(run.rows) if measure is _ACCURACY else None,
        "training_queries": _spent_on("train", run),
        "certification_queries": _certification_queries(run),
        "queries": dict(run.queries),
    }


def _certification_queries(run: Run) -> int | None:
    """What the ledger says, else what the rows say, else unknown (published rows do not tell)."""
    booked = _spent_on("certify", run)
    if booked is not None:
        return booked
    spent = [getattr(row, "queries", None) for row in run.rows]
    known = [count for count in spent if count is not None]
    return sum(known) if len(known) == len(spent) else None


def _spent_on(activity: str, run: Run) -> int | None:
    counts = [count for phase, count in run.queries.items() if phase.split(" ")[0] == activity]
    return sum(counts) if counts else None


def _cells(runs: Sequence[Run], radii: ArrayLike) -> list[list[str]]:
    """The summary as text: a header row, then a row for each run. Shares become percent."""
    summaries = summary_table(runs, radii)
    symbol = _measure_of(runs).symbol
    header = ["run", "images", *(f"{symbol}({r:g}) %" for r in summaries[0]["radii"])]
    header += ["abstain %", "ACR", "training queries", "certification queries"]
    return [header, *(_summary_cells(summary) for summary in summaries)]


def _summary_cells(summary: dict[str, Any]) -> list[str]:
    shares = [
        f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        for share, (low, high) in zip(summary["share"], summary["interval"], strict=True)
    ]
    radius = summary["average_certified_radius"]
    return [
        summary["name"],
        f"{summary['images']:,}",
        *shares,
        f"{100 * summary['abstention_rate']:.1f}",
        UNKNOWN if radius is None else f"{radius:.3f}",
        _count(summary["training_queries"]),
        _count(summary["certification_queries"]),
    ]


def _count(number: int | None) -> str:
    return UNKNOWN if number is None else f"{number:,}"


def render_table(runs: Sequence[Run], radii: ArrayLike) -> Table:
    """The summary for a terminal of 80 columns: each share in percent above its 95 % interval."""
    summaries, measure = summary_table(runs, radii), _measure_of(runs)
    table = Table(title=f"{measure.name} at l2 radius r, in % with 95 % intervals")
    table.add_column("run")
    titles = [*(f"r={r:g}" for r in summaries[0]["radii"]), "queries to\ntrain", "queries to\ncertify"]
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for summary in summaries:
        shares = [
            f"{100 * share:.1f}\n{100 * low:.0f}–{100 * high:.0f}"
            for share, (low, high) in zip(summary["share"], summary["interval"], strict=True)
        ]
        counts = [_count(summary["training_queries"]), _count(summary["certification_queries"])]
        table.add_row(*(Text(cell) for cell in [summary["name"], *shares, *counts]))  # Text: a name is no markup
    return table


def markdown_table(runs: Sequence[Run], radii: ArrayLike) -> str:
    """The summary as a Markdown table: each share in percent with its 95 % interval in brackets."""
    header, *body = _cells(runs, radii)
    rule = ["---", *("---:" for _ in header[1:])]
    return "".join("| " + " | ".join(_markdown_cell(cell) for cell in row) + " |\n" for row in [header, rule, *body])


def _markdown_cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


# --- pictures -------------------------------------------------------------------------------------------------------


def plot_ca_curves(runs: Sequence[Run], path: PathLike | None) -> bytes:
    """Certified accuracy against radius with light 95 % bands, one exact step curve for each run; a PNG.

    Shows the certified share instead when a run has no labels. Also writes the PNG to `path` unless None.
    """
    measure = _measure_of(runs)
    figure = _figure(7.0, 4.2)
    axes = figure.add_subplot()
    for number, run in enumerate(runs):
        _draw_curve(axes, measure.reach(run.rows), _COLOURS[number % len(_COLOURS)], _LINES[number % len(_LINES)])
    axes.set(xlim=(0, None), ylim=(0, 1), xlabel="l2 radius (pixels in [0, 1])", ylabel=measure.name)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(axes.get_lines(), [str(number) for number in range(len(runs))], frameon=False)
    for text, run in zip(legend.get_texts(), runs, strict=True):
        text.set_parse_math(False)  # a name is a name: neither "$" nor a leading "_" may change what is drawn
        text.set_text(run.name)
    return _png(figure, path)


def _draw_curve(axes: Axes, reach: np.ndarray, colour: str, line: Any) -> None:
    """The exact step curve of (n,) reaches: constant up to each radius that occurs, lower just behind it."""
    x = np.append(0.0, np.unique(reach[reach > 0]))
    low, high = _intervals(reach, x).T
    axes.fill_between(x, low, high, step="pre", color=colour, alpha=0.14, linewidth=0)
    y = np.append(_shares(reach, x), 0.0)
    axes.plot(np.append(x, x[-1]), y, drawstyle="steps-pre", linestyle=line, color=colour)


def plot_images(columns: Mapping[str, np.ndarray], path: PathLike | None) -> bytes:
    """A row for each image, a titled column for each stage, such as clean, noisy, denoised, decoded; a PNG.

    columns: arrays (m, c, h, w) with c 1 or 3 and the same m and h everywhere. Noise leaves [0, 1]: values are clipped
    for display only. Also writes the PNG to `path` unless None. Raises `InvalidImages` for other shapes.
    """
    shapes = {name: np.shape(images) for name, images in columns.items()}
    pictures = all(len(shape) == 4 and shape[1] in (1, 3) and 0 not in shape for shape in shapes.values())
    if not pictures or len({(shape[0], shape[2]) for shape in shapes.values()}) != 1:
        raise InvalidImages(f"columns have shapes {shapes}, wanted (m, 1 or 3, h, w) with one m and one h for all")
    rows = next(iter(shapes.values()))[0]
    figure = _figure(1.3 * len(columns), 1.3 * rows + 0.3)
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
    # Loaded here because the numbers, which every import of this module wants, do not need a plotting library. A Figure
    # of its own, without pyplot, keeps the caller's figures and backend untouched.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def _png(figure: Figure, path: PathLike | None) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # no version inside: same rows, same bytes
    if path is not None:
        write_bytes_atomic(path, buffer.getvalue())
    return buffer.getvalue()


# --- the page -------------------------------------------------------------------------------------------------------

_MEANING = (
    "A certificate is about the smoothed classifier, whose predict votes over Gaussian-noisy copies of an image, and "
    "not about one answer of the black box: its class stays the same under every change of the image whose l2 norm is "
    "below the radius (pixels in [0, 1]). It rests on random votes and is wrong with probability at most alpha for "
    "that image; alpha holds image by image, not for the whole table at once."
)
_INTERVALS = (
    "Brackets hold exact 95 % (Clopper–Pearson) intervals for each number alone, as if the images were drawn at random "
    "from the data; an abstention counts as uncertified."
)
_PAIRS = (
    "Percentage points between two runs on the same images, with 95 % bootstrap intervals over images, each for one "
    "comparison alone."
)
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #8886; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { font-weight: 600; }
dd { margin: 0; overflow-wrap: anywhere; }
img { max-width: 100%; background: #fff; border-radius: 4px; }
.small { font-size: .875rem; opacity: .8; }
"""
# The policy lets the page load nothing at all, whatever a name in it may say.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(
    directory: PathLike,
    runs: Sequence[Run],
    radii: ArrayLike,
    *,
    title: str,
    pictures: Mapping[str, bytes] | None = None,
    facts: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write `report.html`, one file without scripts or remote parts, and `ca_curve.png`; return the page's path.

    facts: what was run (sigma, n0, n, alpha, model, data). pictures: PNG bytes by caption. The same input gives the
    same bytes. Raises `InvalidInput` for no runs, a run without rows or two runs of one name.
    """
    directory = Path(directory)
    curve = plot_ca_curves(runs, directory / "ca_curve.png")
    name = _measure_of(runs).name.capitalize()
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        _facts_html(facts or {}),
        f"<h2>{name}</h2>" + _table_html(_cells(runs, radii)) + _small(_INTERVALS),
        _image_html(f"{name} against radius", curve),
        f"<h2>What a certificate means</h2><p>{_MEANING}</p>",
        _phases_html(runs),
        _pairs_html(runs, radii),
        *(f"<h2>{html.escape(caption)}</h2>" + _image_html(caption, png) for caption, png in (pictures or {}).items()),
        _notes_html(notes),
    ]
    page = directory / "report.html"
    write_text_atomic(page, _page_html(title, sections))
    return page


def _page_html(title: str, sections: Sequence[str]) -> str:
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    )
    body = "\n".join(section for section in sections if section)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _small(text: str) -> str:
    return f'<p class="small">{text}</p>'


def _table_html(cells: Sequence[Sequence[str]]) -> str:
    header, *body = cells
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in header)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in body]
    return "<div><table>" + "".join(f"<tr>{line}</tr>\n" for line in lines) + "</table></div>"


def _image_html(caption: str, png: bytes) -> str:
    source = base64.b64encode(png).decode()
    return f'<p><img alt="{html.escape(caption)}" src="data:image/png;base64,{source}"></p>'


def _facts_html(facts: Mapping[str, str]) -> str:
    pairs = (f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in facts.items())
    return f"<dl>{''.join(pairs)}</dl>" if facts else ""


def _notes_html(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f"<h2>Notes</h2><ul>{items}</ul>" if notes else ""


def _phases_html(runs: Sequence[Run]) -> str:
    """Queries of each run by phase, phases in order of first mention."""
    phases = list(dict.fromkeys(phase for run in runs for phase in run.queries))
    if not phases:
        return ""
    body = [[run.name, *(_count(run.queries.get(phase)) for phase in phases)] for run in runs]
    return "<h2>Queries by phase</h2>" + _table_html([["run", *phases], *body])


def _pairs_html(runs: Sequence[Run], radii: ArrayLike) -> str:
    """Every pair of runs that cover the same images, compared at each radius; the others are named with the reason."""
    measure = _measure_of(runs)
    asked = _checked(radii)
    body, apart = [], []
    for a, b in itertools.combinations(runs, 2):
        pair = f"{a.name} − {b.name}"
        try:
            rows_a, rows_b = _joined(a.rows, b.rows)
        except InvalidInput as error:
            apart.append(_small(html.escape(f"{pair}: not compared: {error}")))
            continue
        reach_a, reach_b = measure.reach(rows_a), measure.reach(rows_b)
        body.append([pair, *(_points(*bounds.paired_bootstrap(reach_a >= r, reach_b >= r)) for r in asked)])
    header = ["runs", *(f"{measure.symbol}({r:g})" for r in asked)]
    parts = [_table_html([header, *body]) + _small(_PAIRS)] if body else []
    parts += apart
    return "<h2>Differences between runs</h2>" + "".join(parts) if parts else ""


def _points(difference: float, low: float, high: float) -> str:
    return f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"

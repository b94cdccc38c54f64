"""One self-contained HTML page: tables, curves, pictures and what a certificate means."""

from __future__ import annotations

import base64
import html
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from numpy.typing import ArrayLike

from certibox import confidence as bounds
from certibox.errors import InvalidInput
from certibox.report.numbers import Run, checked_radii, joined, measure_of
from certibox.report.pictures import is_png, plot_ca_curves
from certibox.report.tables import cells, count_cell
from certibox.storage.files import PathLike, require_place, write_text_atomic

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
# What every page begins with, and by which it is told from the pages of others.
_HEAD = (
    '<!doctype html>\n<html lang="en"><head>'
    f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
)
PAGE, CURVE = "report.html", "ca_curve.png"


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

    The same input gives the same bytes.

    Args:
        directory: Folder of both files.
        runs: Runs to compare.
        radii: Radii (k,) of the tables, in pixels on [0, 1].
        title: Title of the page.
        pictures: PNG bytes by caption.
        facts: Words on what was run (sigma, n0, n, alpha, model, data), by name.
        notes: Lines at the end of the page.

    Raises:
        InvalidInput: for no runs, a run without rows or two runs of one name.
    """
    directory = Path(directory)
    require_report_place(directory)
    curve = plot_ca_curves(runs, directory / CURVE)
    name = measure_of(runs).name.capitalize()
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        _facts_html(facts or {}),
        f"<h2>{name}</h2>" + _table_html(cells(runs, radii)) + _small(_INTERVALS),
        _image_html(f"{name} against radius", curve),
        f"<h2>What a certificate means</h2><p>{_MEANING}</p>",
        _phases_html(runs),
        _pairs_html(runs, radii),
        *(f"<h2>{html.escape(caption)}</h2>" + _image_html(caption, png) for caption, png in (pictures or {}).items()),
        _notes_html(notes),
    ]
    page = directory / PAGE
    write_text_atomic(page, _page_html(title, sections), is_page)
    return page


def require_report_place(directory: PathLike) -> None:
    """Raise `InvalidInput` where `write_report` could not write, or something else lies: ask before the work.

    Args:
        directory: Folder of the page and its picture.
    """
    require_place(Path(directory) / PAGE, is_page)
    require_place(Path(directory) / CURVE, is_png)


def is_page(content: bytes) -> bool:
    """Whether a file that begins so is a page of `write_report`.

    Args:
        content: First bytes of the file.
    """
    return content.startswith(_HEAD.encode())


def _page_html(title: str, sections: Sequence[str]) -> str:
    head = (
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    )
    body = "\n".join(section for section in sections if section)
    return f"{_HEAD}{head}</head>\n<body>\n{body}\n</body></html>\n"


def _small(text: str) -> str:
    return f'<p class="small">{text}</p>'


def _table_html(rows: Sequence[Sequence[str]]) -> str:
    header, *body = rows
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
    body = [[run.name, *(count_cell(run.queries.get(phase)) for phase in phases)] for run in runs]
    return "<h2>Queries by phase</h2>" + _table_html([["run", *phases], *body])


def _pairs_html(runs: Sequence[Run], radii: ArrayLike) -> str:
    """Every pair of runs that cover the same images, compared at each radius; the others are named with the reason."""
    measure = measure_of(runs)
    asked = checked_radii(radii)
    body, apart = [], []
    for a, b in itertools.combinations(runs, 2):
        pair = f"{a.name} − {b.name}"
        try:
            rows_a, rows_b = joined(a.rows, b.rows)
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

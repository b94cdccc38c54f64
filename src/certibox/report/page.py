"""One self-contained HTML page: tables, curves, pictures and what a certificate means."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from numpy.typing import ArrayLike

from certibox.records.checks import Outcome
from certibox.report.findings import by_class, comparisons, decided_radii, least_robust
from certibox.report.numbers import Run, checked_radii, measure_of
from certibox.report.pictures import is_png, plot_ca_curves
from certibox.report.tables import UNKNOWN, cells, count_cell, plain
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
_POINTS = (
    "Points stand where a stopping rule decided: at the radii that it was asked for, with 95 % intervals. Between them "
    "and beyond, votes were not drawn to know, so nothing is drawn. Runs at one radius stand side by side."
)
_CURVES = (
    "Curves are exact for these images: they fall behind each radius that an image reached. Bands are 95 % intervals."
)
_TERMS = {
    "r": "size of a change of the image as its l2 norm, with pixels on [0, 1]: the root of the summed squares of what "
    "each pixel changes by",
    "CA(r)": "certified accuracy: share of the images whose certificate is right and holds for every change up to r",
    "share(r)": "share of the images with a certificate that holds for every change up to r, right or wrong, since an "
    "image has no label",
    "abstain": "share of the images for which the votes prove no class at all: the answer is “I cannot say”, and "
    "counts as uncertified",
    "ACR": "average certified radius over all images, 0 for wrong ones and abstentions",
    "clean": "share of the unchanged images whose class of most votes is right: accuracy under noise, without a proof. "
    "Compared with the bare model it says what the defense costs",
    "samples an image": "mean number of votes that an image took before its radii were decided; each is a query",
    "training queries": "what training asked the model, paid once",
    "certification queries": "what the certificates of these images asked the model; a new image asks again",
}
_COLUMNS = 7  # of a table at most, the names included
_LEAST, _CLASSES = 10, 30  # images and classes that a table shows at most
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.25; overflow-wrap: anywhere; }
div { overflow-x: auto; margin-bottom: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #8886; text-align: right; }
th { vertical-align: bottom; }
th:first-child, td:first-child, .words { text-align: left; overflow-wrap: anywhere; }
th:first-child, td:first-child { min-width: 6rem; }
.whole { white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { font-weight: 600; }
dd { margin: 0; overflow-wrap: anywhere; }
li, p { overflow-wrap: anywhere; }
img { max-width: 100%; background: #fff; border-radius: 4px; }
.small { font-size: .875rem; opacity: .8; }
@media screen and (max-width: 50rem) {
  table, tbody, tr, td { display: block; }
  tr:first-child { display: none; }
  tr { border-bottom: 2px solid #8886; padding: .4rem 0; }
  td, td:first-child { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: .1rem 0;
    overflow-wrap: anywhere; text-align: right; }
  td:first-child { font-weight: 600; }
  td::before { content: attr(data-label); text-align: left; font-weight: 400; opacity: .8; }
  dl { display: block; }
  dd { margin: 0 0 .4rem 1rem; }
}
@media print {
  body { max-width: none; margin: 0; font-size: 10pt; }
  div { overflow: visible; }
  table { font-size: 8pt; width: 100%; }
  th, td { padding: .1rem .3rem; }
  th:first-child, td:first-child { min-width: 3rem; }
  .whole { white-space: normal; }
  h1, h2, h3, dt { break-after: avoid; }
  tr, dd, li { break-inside: avoid; }
  img { break-inside: avoid; max-height: 17cm; }
}
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
        notes: Lines below the first table.

    Raises:
        InvalidInput: for no runs, a run without rows or two runs of one name.
    """
    directory = Path(directory)
    require_report_place(directory)
    curve = plot_ca_curves(runs, directory / CURVE)
    name = measure_of(runs).name.capitalize()
    table = cells(runs, radii)
    drawn = dict.fromkeys(_CURVES if decided_radii(run.rows) is None else _POINTS for run in runs)
    sections = [
        f"<h1>{_text(title)}</h1>",
        f"<h2>Result: {name.lower()}</h2>" + _table_html(table) + _small(_INTERVALS),
        _terms_html(table[0]),
        _notes_html(notes),
        f"<h2>{name} against radius</h2>" + _image_html(f"{name} against radius", curve) + _small(" ".join(drawn)),
        f"<h2>What a certificate means</h2><p>{_MEANING}</p>",
        _pairs_html(runs, radii),
        _phases_html(runs),
        *(_classes_html(run, radii) for run in runs),
        *(_least_html(run) for run in runs),
        *(f"<h2>{_text(caption)}</h2>" + _image_html(caption, png) for caption, png in (pictures or {}).items()),
        _facts_html(facts or {}),
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
        f"<title>{_text(title)}</title><style>{_STYLE}</style>"
    )
    body = "\n".join(section for section in sections if section)
    return f"{_HEAD}{head}</head>\n<body>\n{body}\n</body></html>\n"


def _text(text: str) -> str:
    """Any text as a page shows it: nothing in it is markup or invisible."""
    return html.escape(plain(text))


def _small(text: str) -> str:
    return f'<p class="small">{text}</p>'


def _table_html(rows: Sequence[Sequence[str]], words: Collection[int] = ()) -> str:
    """A table whose first row is its header; on a narrow page each row becomes a list of labelled cells.

    One of more columns than a page holds becomes several below each other, each with the first column.

    Args:
        rows: Cells of each row, as many in each.
        words: Positions of columns of words, which may wrap.
    """
    if len(rows[0]) > _COLUMNS:
        parts = range(1, len(rows[0]), _COLUMNS - 1)
        return "".join(_table_html([[row[0], *row[at : at + _COLUMNS - 1]] for row in rows]) for at in parts)
    header, *body = rows
    kinds = [' class="words"' if position in words else "" for position in range(len(header))]
    lines = ["".join(f"<th{kind}>{_text(cell)}</th>" for kind, cell in zip(kinds, header, strict=True))]
    for row in body:
        named = zip(kinds, header, row, strict=True)
        lines.append("".join(f'<td{kind} data-label="{_text(name)}">{_cell(cell)}</td>' for kind, name, cell in named))
    return "<div><table>" + "".join(f"<tr>{line}</tr>\n" for line in lines) + "</table></div>"


def _cell(text: str) -> str:
    """A cell whose line may break between a number and its interval, and not inside the interval."""
    number = re.fullmatch(r"([-+\d.]+) (\[[-+\d., ]+\])", text)
    return f'{number[1]} <span class="whole">{number[2]}</span>' if number else _text(text)


def _terms_html(header: Sequence[str]) -> str:
    """The columns of the first table explained: those that it has."""
    known = {name.split("(")[0].removesuffix(" %") for name in header}
    pairs = {name: words for name, words in _TERMS.items() if name == "r" or name.split("(")[0] in known}
    return f"<h2>How to read the table</h2>{_pairs_list(pairs)}"


def _pairs_list(pairs: Mapping[str, str]) -> str:
    return f"<dl>{''.join(f'<dt>{_text(k)}</dt><dd>{_text(str(v))}</dd>' for k, v in pairs.items())}</dl>"


def _image_html(caption: str, png: bytes) -> str:
    source = base64.b64encode(png).decode()
    return f'<p><img alt="{_text(caption)}" src="data:image/png;base64,{source}"></p>'


def _facts_html(facts: Mapping[str, str]) -> str:
    return f"<h2>Settings</h2>{_pairs_list(facts)}" if facts else ""


def _notes_html(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return f"<h2>Notes</h2><ul>{items}</ul>" if notes else ""


def _phases_html(runs: Sequence[Run]) -> str:
    """Queries of each run by phase, phases in order of first mention."""
    phases = list(dict.fromkeys(phase for run in runs for phase in run.queries))
    if not phases:
        return ""
    body = [[run.name, *(count_cell(run.queries.get(phase)) for phase in phases)] for run in runs]
    return "<h2>Queries by phase</h2>" + _table_html([["run", *phases], *body])


def _pairs_html(runs: Sequence[Run], radii: ArrayLike) -> str:
    """Every pair of runs of the same images, compared at each radius in words; the others are named with the reason."""
    found, apart = comparisons(runs, radii)
    body = [[f"{c.a} − {c.b}", f"{c.radius:g}", _points(c.difference, c.low, c.high), c.verdict] for c in found]
    header = ["runs", "r", "points", "verdict"]
    parts = [_table_html([header, *body], words=(3,)) + _small(_PAIRS)] if body else []
    parts += [_small(_text(line)) for line in apart]
    return "<h2>Differences between runs</h2>" + "".join(parts) if parts else ""


def _points(difference: float, low: float, high: float) -> str:
    return f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _classes_html(run: Run, radii: ArrayLike) -> str:
    """Certified accuracy of each class of a run, the classes with the lowest first where not all have room."""
    asked, found = checked_radii(radii), by_class(run.rows, radii)
    if not found or not len(asked):
        return ""
    shown = sorted(found, key=lambda label: (found[label][1].mean(), label))[:_CLASSES]
    head = f"<h2>By class: {_text(run.name)}</h2>"
    if len(shown) < len(found):
        head += _small(f"The {len(shown)} of {len(found)} classes that hold least.")
    body = [
        [str(label), f"{found[label][0]:,}", *(f"{100 * share:.1f}" for share in found[label][1])]
        for label in sorted(shown)
    ]
    return head + _table_html([["class", "images", *(f"CA({r:g}) %" for r in asked)], *body])


def _least_html(run: Run) -> str:
    """The images of a run that hold least: number or file, classes, and the radius."""
    rows = least_robust(run.rows, _LEAST)
    body = [
        [
            str(getattr(row, "file", None) or f"image {row.idx}"),
            UNKNOWN if row.label is None else str(row.label),
            UNKNOWN if row.predict is None else str(row.predict),
            f"{row.radius:.3f}",
            _outcome(row),
        ]
        for row in rows
    ]
    header = ["image", "label", "certified class", "radius", "outcome"]
    return f"<h2>Images that hold least: {_text(run.name)}</h2>" + _table_html([header, *body], words=(4,))


def _outcome(row: Outcome) -> str:
    if row.predict is None:
        return "abstains: the votes prove no class"
    return {True: "right", False: "wrong class", None: "no label"}[row.correct]

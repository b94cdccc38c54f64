"""Draw docs/images/pipeline.svg: what happens to an image between its user and the model.

python tools/draw_pipeline.py [--out FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "pipeline.svg"
WIDTH, HEIGHT = 672, 262
BOX, GAP, TALL, LEFT = 112, 22, 66, 14  # of a box: width, space to the next, height; of the first, its left edge
ROWS = 58, 172  # upper edges of the two rows
STYLE = """
  text { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; text-anchor: middle; fill: #1b1f24 }
  .name { font-size: 15px; font-weight: 600 } .what { font-size: 12.5px } .said { font-size: 14px }
  rect { fill: #f4f6f8; stroke: #57606a; stroke-width: 1.5 }
  .trained { fill: #dbe9f9; stroke: #0b62b0 } .model { fill: #fdebd0; stroke: #b35900; stroke-width: 2.5 }
  .frame { fill: none; stroke: #0b62b0; stroke-dasharray: 5 4 }
  path { fill: none; stroke: #57606a; stroke-width: 2 } marker path { fill: #57606a; stroke: none }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } rect { fill: #21262d; stroke: #9aa4af } .frame { fill: none; stroke: #79b8ff }
    .trained { fill: #10335c; stroke: #79b8ff } .model { fill: #4a2d0b; stroke: #ffb366 }
    path { stroke: #9aa4af } marker path { fill: #9aa4af; stroke: none }
  }
"""


@dataclass(frozen=True)
class Stage:
    """One box of the picture."""

    name: str
    what: str
    column: int
    row: int
    kind: str = ""

    @property
    def left(self) -> int:
        return LEFT + self.column * (BOX + GAP)

    @property
    def top(self) -> int:
        return ROWS[self.row]


STAGES = (
    Stage("image", "pixels on [0, 1]", 0, 0),
    Stage("noise × n", "n copies, σ each", 1, 0),
    Stage("denoise", "removes noise", 2, 0, "trained"),
    Stage("encode", "to few numbers", 3, 0, "trained"),
    Stage("decode", "back to pixels", 4, 0, "trained"),
    Stage("your model", "queried n times", 4, 1, "model"),
    Stage("vote", "counts by class", 3, 1),
    Stage("label", "and ℓ2 radius", 2, 1),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PICTURE, help="file of the picture")
    out = parser.parse_args(arguments).out
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(svg(), encoding="utf-8")


def svg() -> str:
    """The picture as SVG, for light and dark pages."""
    words = " → ".join(stage.name for stage in STAGES)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words}">'
    arrow = (
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L10 5L0 10z"/></marker></defs>'
    )
    boxes = [box(stage) for stage in STAGES]
    arrows = [between(*pair) for pair in pairwise(STAGES)]
    lines = [head, f"<title>{words}</title>", f"<style>{STYLE}</style>", arrow, *frame(), *boxes, *arrows, *said()]
    return "\n".join([*lines, "</svg>", ""])


def box(stage: Stage) -> str:
    """A stage: its rectangle, its name and what it is."""
    middle = stage.left + BOX // 2
    shape = f'<rect class="{stage.kind}" x="{stage.left}" y="{stage.top}" width="{BOX}" height="{TALL}" rx="8"/>'
    name = f'<text class="name" x="{middle}" y="{stage.top + 29}">{escape(stage.name)}</text>'
    return f'{shape}{name}<text class="what" x="{middle}" y="{stage.top + 50}">{escape(stage.what)}</text>'


def between(one: Stage, other: Stage) -> str:
    """The arrow from a stage to the next: to the right, down, or to the left."""
    if one.row != other.row:
        x = one.left + BOX // 2
        start, end = (x, one.top + TALL), (x, other.top)
    else:
        y, right = one.top + TALL // 2, other.column > one.column
        start, end = (one.left + BOX * right, y), (other.left + BOX * (not right), y)
    return f'<path d="M{start[0]} {start[1]}L{end[0]} {end[1]}" marker-end="url(#tip)"/>'


def frame() -> list[str]:
    """The frame around what certibox trains."""
    first, last = (stage for stage in (STAGES[2], STAGES[4]))
    x, y = first.left - 9, first.top - 10
    width = last.left + BOX + 9 - x
    shape = f'<rect class="frame" x="{x}" y="{y}" width="{width}" height="{TALL + 20}" rx="12"/>'
    return [shape, f'<text class="said" x="{x + width // 2}" y="{y - 12}">trained once, in front of your model</text>']


def said() -> list[str]:
    """What an answer costs, beside its end."""
    x, y = (STAGES[0].left + STAGES[1].left + BOX) // 2, ROWS[1]
    lines = ("one certified answer", "costs n queries")
    return [f'<text class="said" x="{x}" y="{y + 29 + 20 * i}">{line}</text>' for i, line in enumerate(lines)]


if __name__ == "__main__":
    main()

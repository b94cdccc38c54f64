"""Where every measured row comes from: the folded part of a page. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Set

from certibox.paper.blocks import Block
from certibox.paper.measured import Measured
from certibox.report import markdown

_HEADER = ["row", "seed", "command", "queries: train, evaluate", "seconds: defense, evaluation", "date"]


def provenance(block: Block, earlier: Set[tuple[str, int]]) -> str:
    """Hardware, versions, time, and for every row the command that measures it again.

    Args:
        block: Measured rows of a table at one scale.
        earlier: Keys of the rows that an earlier table shows too; their time is told apart.
    """
    body = [
        [
            name,
            str(row.seed),
            f"`{row.command}`",
            f"{row.queries['train']:,}, {row.queries['evaluate']:,}",
            f"{row.seconds['defense']:.0f}, {row.seconds['evaluation']:.0f}",
            row.date,
        ]
        for name, rows in block.rows.items()
        for row in rows
    ]
    where = "; ".join(dict.fromkeys(row.hardware for row in block.measured))
    versions = dict.fromkeys(", ".join(f"{k} {v}" for k, v in row.versions.items()) for row in block.measured)
    text = f"Measured on {where}, with {'; '.join(versions)}. {_cost(block.measured, earlier)}"
    text += " In the commands, DIR is the folder of the data sets."
    title = "Provenance: how every row was measured"
    return f"<details><summary>{title}</summary>\n\n{text}\n\n{markdown([_HEADER, *body], left=(0, 2))}\n</details>\n"


def _cost(rows: Iterable[Measured], earlier: Set[tuple[str, int]]) -> str:
    """Seconds of the table's own defenses and evaluations; those of an earlier table's rows apart."""
    own, shared = 0.0, 0.0
    for row in rows:
        took = row.seconds["defense"] + row.seconds["evaluation"]
        if row.key in earlier:
            shared += took
        else:
            own += took
    text = f"Its defenses and evaluations took {own / 60:.0f} minutes of one thread"
    return text + (f", and {shared / 60:.0f} in rows shared with earlier tables." if shared else ".")

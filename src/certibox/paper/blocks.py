"""The measured rows of a table at one scale: what a page of results shows as one block. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from certibox.paper.claims import Finding, check
from certibox.paper.measured import Measured
from certibox.paper.suite import Claim, Table


@dataclass(frozen=True)
class Block:
    """The measured rows of a table at one scale."""

    table: Table
    """Table or figure of the suite."""
    scale: str
    """Name of the scale."""
    rows: dict[str, list[Measured]]
    """Measured rows, sorted by seed, under the name of the row, in the order of the table. Rows without any are left
    out."""

    @cached_property
    def findings(self) -> list[tuple[Claim, Finding | None]]:
        """The claims of the table, with what these rows say of them."""
        return [
            (claim, check(claim, self.rows.get(claim.better, []), self.rows.get(claim.worse, [])))
            for claim in self.table.claims
        ]

    @property
    def measured(self) -> list[Measured]:
        """All rows."""
        return [row for rows in self.rows.values() for row in rows]

    @property
    def classifies(self) -> bool:
        """Whether the rows hold certificates; else they hold reconstructions."""
        return "reach" in self.measured[0].values


def blocks_of(table: Table, known: Mapping[tuple[str, int], Measured]) -> list[Block]:
    """The rows that were measured under the table's present settings, by this table or another.

    Args:
        table: Table or figure of the suite.
        known: Measured rows under (digest of the plan, seed), as `Results.by_plan` has them.

    Returns:
        One block for each scale with a measured row, in the order of the table's scales.
    """
    blocks = []
    for scale in table.scales:
        rows: dict[str, list[Measured]] = {}
        for row in table.rows:
            if scale in row.plans:
                keys = [(row.plans[scale].digest, seed) for seed in sorted(table.seeds[scale])]
                if found := [known[key] for key in keys if key in known]:
                    rows[row.name] = found
        if rows:
            blocks.append(Block(table, scale, rows))
    return blocks

"""A table of what is accepted: its cells as text, and how a cell is tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from certibox.report import markdown


@dataclass(frozen=True)
class Table:
    """Rows and columns of cells, each of which can be tried."""

    corner: str
    columns: tuple[str, ...]
    cells: Mapping[str, Sequence[str]]
    """Row -> a cell for each column."""

    attempt: Callable[[str, str, Path], None]
    """Makes what is in the row, in a folder of its own, and tries what is in the column: raises where it is refused."""

    reasons: Mapping[str, str]
    """What a cell gives as the reason after "no: " -> pattern of the line that says so."""

    def __post_init__(self) -> None:
        assert all(len(cells) == len(self.columns) for cells in self.cells.values())

    def cell(self, row: str, column: str) -> str:
        return self.cells[row][self.columns.index(column)]

    @property
    def places(self) -> list[tuple[str, str]]:
        """Row and column of every cell."""
        return [(row, column) for row in self.cells for column in self.columns]

    @property
    def markdown(self) -> str:
        lines = [[self.corner, *self.columns], *([row, *cells] for row, cells in self.cells.items())]
        return markdown(lines, left=range(len(lines[0])))

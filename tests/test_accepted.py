"""Every cell of the tables in docs/models-and-data.md is tried: what is taken answers, what is refused says why."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from accepted import tables
from certibox.errors import BadOutput, InvalidImages, InvalidInput, NotDifferentiable, UnreadableFile

TABLES = tables()
REFUSALS = (InvalidInput, InvalidImages, BadOutput, UnreadableFile, NotDifferentiable)
CELLS = [(name, row, column) for name, table in TABLES.items() for row, column in table.places]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantiz", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("name", "row", "column"), CELLS)
def test_a_cell_is_true(name: str, row: str, column: str, tmp_path: Path) -> None:
    table = TABLES[name]
    cell = table.cell(row, column)
    if not cell.startswith("no: "):
        table.attempt(row, column, tmp_path)
        return
    with pytest.raises(REFUSALS) as caught:
        table.attempt(row, column, tmp_path)
    line = str(caught.value)
    assert re.search(table.reasons[cell.removeprefix("no: ")], line)
    assert "\n" not in line


@pytest.mark.parametrize("name", TABLES)
def test_every_reason_is_one_of_a_cell(name: str) -> None:
    table = TABLES[name]
    given = {cell.removeprefix("no: ") for cells in table.cells.values() for cell in cells if cell.startswith("no: ")}
    assert given == set(table.reasons)

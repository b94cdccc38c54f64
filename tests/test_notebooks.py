"""The notebooks run from their first cell to their last, their assertions included, and are notebooks to Jupyter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from places import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.py"))
LONGEST = 120  # processor seconds


def test_there_are_four() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["digits", "endpoint", "own_denoiser", "reading_a_report"]
    page = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    assert all(f"notebooks/{path.name}" in page for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_two_minutes(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="the notebooks use pandas")
    environment, before = {**os.environ, "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}, os.times().children_user
    ran = subprocess.run([sys.executable, str(path)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert os.times().children_user - before < LONGEST
    assert not list(tmp_path.iterdir())  # nothing is left where it was run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_one_to_jupyter_and_back(path: Path) -> None:
    jupytext = pytest.importorskip("jupytext", reason="jupytext reads notebooks")
    text = path.read_text(encoding="utf-8")
    notebook = jupytext.reads(text, fmt="py:percent")
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown"
    assert {"markdown", "code"} == set(kinds)
    assert "# %% [markdown]" not in "".join(cell.source for cell in notebook.cells)
    again = jupytext.reads(jupytext.writes(notebook, fmt="ipynb"), fmt="ipynb")
    assert [cell.source for cell in again.cells] == [cell.source for cell in notebook.cells]

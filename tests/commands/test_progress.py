"""Progress: it fits 80 columns, tells the queries of its stage, and is a plain line in a pipe."""

from __future__ import annotations

import io
import re

import pytest
import torch
from rich.console import Console

from certibox.blackbox import as_blackbox
from certibox.commands.progress import bar
from certibox.queries.client import QueryClient


def client() -> QueryClient:
    made = QueryClient(as_blackbox(lambda x: x.reshape(len(x), -1), outputs="values"))
    made(torch.zeros(5, 1, 2, 2))
    return made


def test_a_bar_fits_80_columns_and_shows_the_queries_of_its_stage() -> None:
    file, spending = io.StringIO(), client()
    console = Console(file=file, force_terminal=True, width=80, color_system=None, legacy_windows=False)
    with bar("training ZO-DS [/b]", spending, console) as report:
        report(0, 1_000_000, "epoch 1/20")
        spending(torch.zeros(3, 1, 2, 2))
        report(1_000_000, 1_000_000, "epoch 20/20")
    last = [line for line in re.split(r"[\r\n]|\x1b\[[\d?]*\w", file.getvalue()) if line.strip()][-1]
    assert len(last) <= 80
    assert "training ZO-DS [/b]" in last
    assert "1000000/1000000" in last
    assert "3 queries" in last
    assert "…" not in last
    assert re.search(r"/s, 3 queries, \S+ left", last)


def test_a_pipe_gets_a_line_at_intervals_and_one_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    for interval, lines in ((0.0, 4), (60.0, 1)):
        spending = client()
        with bar("certifying", spending, interval=interval) as report:
            for done in range(3):
                report(done, 2, f"image {done}")
                spending(torch.zeros(4, 1, 2, 2))
        shown = capsys.readouterr().err.splitlines()
        assert len(shown) == lines
        # the number of queries has no "left" before it, as if it were what the budget still allows
        assert all(re.fullmatch(r"certifying [012]/2, \S+/s, [048] queries, \S+ left", line) for line in shown)
        assert "2/2" in shown[-1]
        assert ", 8 queries, " in shown[-1]


def test_what_is_refused_at_once_shows_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("certifying"):
        pass
    assert capsys.readouterr().err == ""

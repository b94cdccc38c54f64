"""What a measurement notes: rows that are measured once, whatever stops the run, and what they were measured with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from certibox import __version__
from certibox.paper.logbook import DRY, Rows, destination, hardware, parser, versions

KEY = {"box": "forest", "multiples": (0.5, 1.0), "settings": {"sigma": 0.25}}


class Measuring:
    """A measurement that counts how often it is made."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> dict[str, Any]:
        self.times += 1
        return {"share": 0.5, "times": self.times}


def test_a_row_is_measured_once(tmp_path: Path) -> None:
    path, measuring = tmp_path / "new" / "rows.jsonl", Measuring()
    first = Rows(path).once(KEY, measuring)
    assert first == {"box": "forest", "multiples": [0.5, 1.0], "settings": {"sigma": 0.25}, "share": 0.5, "times": 1}
    assert Rows(path).once(KEY, measuring) == first  # as another process finds it
    assert Rows(path).find({**KEY, "multiples": [0.5, 1.0]}) == first
    assert (measuring.times, Rows(path).read()) == (1, [first])


@pytest.mark.parametrize("other", [{"box": "labels"}, {"multiples": (0.5,)}, {"settings": {"sigma": 0.5}}])
def test_a_row_of_another_key_is_measured(tmp_path: Path, other: dict[str, Any]) -> None:
    rows, measuring = Rows(tmp_path / "rows.jsonl"), Measuring()
    rows.once(KEY, measuring)
    assert rows.find({**KEY, **other}) is None
    assert rows.once({**KEY, **other}, measuring)["times"] == 2
    assert [row["times"] for row in rows.read()] == [1, 2]


def test_a_row_that_a_crash_cut_short_is_measured_again(tmp_path: Path) -> None:
    rows, measuring = Rows(tmp_path / "rows.jsonl"), Measuring()
    rows.once({"seed": 0}, measuring)
    whole = rows.path.read_bytes()
    rows.once({"seed": 1}, measuring)
    rows.path.write_bytes(rows.path.read_bytes()[:-5])
    assert [row["seed"] for row in rows.read()] == [0]
    assert rows.once({"seed": 1}, measuring)["times"] == 3
    assert rows.path.read_bytes().startswith(whole)
    assert [row["seed"] for row in rows.read()] == [0, 1]


def test_a_measurement_that_fails_leaves_no_row(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.jsonl")
    with pytest.raises(ZeroDivisionError):
        rows.once({"seed": 0}, lambda: {"share": 1 / 0})
    assert rows.read() == []


def test_versions_and_hardware_are_those_of_this_process() -> None:
    found = versions("scipy", "scikit-learn")
    assert list(found) == ["certibox", "torch", "numpy", "python", "scipy", "scikit-learn"]
    assert (found["certibox"], found["torch"], found["numpy"]) == (__version__, torch.__version__, np.__version__)
    torch.set_num_threads(1)
    assert hardware().endswith(", 1 thread")
    torch.set_num_threads(2)
    assert hardware().endswith(", 2 threads")


def test_a_dry_run_never_writes_into_the_committed_results() -> None:
    result, options = Path("studies/results/families.jsonl"), parser("A script.")
    assert destination(options.parse_args([]), result) == result
    assert destination(options.parse_args(["--tiny"]), result) == DRY / "families.jsonl"
    assert destination(options.parse_args(["--tiny", "--out", "x.jsonl"]), result) == Path("x.jsonl")

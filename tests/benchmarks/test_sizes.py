"""The benchmark of image sizes, tiny: each figure is seconds of a call scaled to 1,000, and the box is linear."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sizes as benchmark
from certibox.storage.files import read_json


def test_a_tiny_run_has_every_figure(tmp_path: Path) -> None:
    benchmark.main(["--tiny", "--write", "--out", str(tmp_path / "sizes.json")])
    found, kept = read_json(tmp_path / "sizes.json"), read_json(benchmark.RESULT)
    assert found.keys() == kept.keys()
    assert [row["shape"] for row in found["rows"]] == [list(size.shape) for size in benchmark.TINY]
    assert [row["shape"] for row in kept["rows"]] == [list(size.shape) for size in benchmark.FULL]
    assert all(row.keys() == kept["rows"][0].keys() for row in found["rows"])


def test_seconds_are_scaled_from_the_second_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []
    monkeypatch.setattr(benchmark.time, "process_time", lambda: clock[0])

    def run() -> None:
        clock[0] += 2.0 if calls else 50.0
        calls.append(1)

    assert benchmark.per_1000(run, 100) == 20.0
    assert len(calls) == 2


def test_the_box_is_a_linear_map_of_averages() -> None:
    box, x = benchmark.Averages(), torch.rand(2, 3, 16, 16)
    averages = x[:, 0].reshape(2, 8, 2, 8, 2).mean((2, 4)).flatten(1)
    torch.testing.assert_close(box(x), averages @ box.get_buffer("weight"))

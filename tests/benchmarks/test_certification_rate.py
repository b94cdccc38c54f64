"""The benchmark of certification, tiny: all sides of a ratio ask for the same samples, and all figures are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import certification_rate as benchmark
from certibox.storage.files import read_json


class Counting(nn.Module):
    """784 -> 10, and how many images all copies of it were asked."""

    asked = 0

    def forward(self, x: Tensor) -> Tensor:
        Counting.asked += len(x)
        return torch.eye(10)[x.flatten(1).argmax(1) % 10]


@pytest.fixture(autouse=True)
def nothing_asked() -> None:
    Counting.asked = 0


@pytest.mark.parametrize("way", ["raw", "bare", "metered"])
def test_every_side_of_a_ratio_asks_for_the_same_samples(way: str, tmp_path: Path) -> None:
    network = Counting()
    if way == "raw":
        ready = list(benchmark.noise(2 * benchmark.BATCH))
        benchmark.raw_seconds(network, 3_000, ready, benchmark.BATCH)
    elif way == "bare":
        benchmark.bare(network)(3_000)
        Counting.asked -= 2  # whether its answers depend on the batch is asked once
    else:
        seconds = benchmark.metered(network, tmp_path)
        assert seconds(3_000) > 0
        assert Counting.asked == 3_000
        seconds(3_000)  # asks anew, whatever the first left
        Counting.asked -= 3_000
    assert Counting.asked == 3_000


def test_the_best_raw_rate_is_that_of_one_of_the_sizes() -> None:
    network, ready, size, what = benchmark.fastest(Counting(), 1_000)
    assert size in benchmark.SIZES
    assert what.endswith(f"{size} at a time")
    assert sum(map(len, ready)) == 10 * benchmark.BATCH
    assert isinstance(network, Counting)


def test_jobs_take_turns_after_two_rounds_that_warm_up() -> None:
    seen: list[str] = []

    def job(name: str) -> float:
        seen.append(name)
        return float(len(seen))

    times = benchmark.in_turn({"a": lambda: job("a"), "b": lambda: job("b")}, rounds=3)
    assert seen == ["a", "b"] * 5
    assert times == {"a": [5.0, 7.0, 9.0], "b": [6.0, 8.0, 10.0]}


def figures(found: Any, path: str = "") -> dict[str, float]:
    """All medians by their place."""
    if isinstance(found, dict) and "median" in found:
        assert found["min"] <= found["median"] <= found["max"]
        return {path: found["median"]}
    inner = found.items() if isinstance(found, dict) else ()
    return {key: value for name, part in inner for key, value in figures(part, f"{path}/{name}").items()}


def test_a_tiny_run_has_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["--tiny", "--write", "--out", str(tmp_path / "rate.json")])
    found = read_json(tmp_path / "rate.json")
    committed = read_json(benchmark.RESULT)
    assert found.keys() == committed.keys()
    assert figures(found).keys() == figures(committed).keys()
    assert all(value > 0 for name, value in figures(found).items() if "added" not in name)
    peaks = found["peak_rss_mib"]
    assert peaks["growth"] == pytest.approx(peaks["n=2000"] - peaks["n=1000"], abs=0.11)  # each has one decimal
    assert peaks["n=1000"] > 50  # a process with torch
    assert "cnn_ratio_metered" in capsys.readouterr().out

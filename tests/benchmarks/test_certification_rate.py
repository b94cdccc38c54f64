"""The benchmark of certification, tiny: both sides of a ratio ask for the same samples, and all figures are there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import certification_rate as benchmark
from certibox.storage.files import read_json


class Counting:
    """784 -> 10, and how many images it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        return torch.eye(10)[x.flatten(1).argmax(1) % 10]


def test_both_sides_of_a_pair_ask_the_same() -> None:
    raw, certified = Counting(), Counting()
    benchmark.raw_seconds(raw, 3_000, benchmark.ready_batches()[:2])
    benchmark.certify_seconds(certified, 3_000)
    assert raw.asked == certified.asked == 3_000


def test_the_first_pair_warms_up() -> None:
    model = Counting()
    assert len(benchmark.pairs(model, 1_000 + benchmark.N0, count=1)) == 1
    assert model.asked == 2 * 2 * (1_000 + benchmark.N0)


def test_a_tiny_run_has_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["--tiny", "--write", "--out", str(tmp_path / "rate.json")])
    found = read_json(tmp_path / "rate.json")
    committed = read_json(benchmark.RESULT)
    assert found.keys() == committed.keys()
    for name in ("cnn_ratio", "linear_raw_us_per_sample", "cnn_raw_samples_per_s"):
        assert 0 < found[name]["min"] <= found[name]["median"] <= found[name]["max"]
    peaks = found["peak_rss_mib"]
    assert peaks["growth"] == pytest.approx(peaks["n=2000"] - peaks["n=1000"], abs=0.11)  # each has one decimal
    assert peaks["n=1000"] > 50  # a process with torch
    assert '"cnn_ratio"' in capsys.readouterr().out

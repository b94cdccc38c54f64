"""The benchmark of stopping rules, tiny: its pictures are many classes', and every figure is there."""

from __future__ import annotations

from pathlib import Path

import interleaving as benchmark
from certibox.storage.files import read_json


def test_the_network_has_more_than_one_class() -> None:
    labels = benchmark.network()(benchmark.pictures(64).floats()).argmax(1)
    assert len(labels.unique()) > 1


def test_a_tiny_run_has_every_figure(tmp_path: Path) -> None:
    benchmark.main(["--tiny", "--write", "--out", str(tmp_path / "found.json")])
    found, committed = read_json(tmp_path / "found.json"), read_json(benchmark.RESULT)
    assert found.keys() == committed.keys()
    assert found["rule_over_fixed"].keys() == committed["rule_over_fixed"].keys()
    assert found["microseconds_a_look"].keys() == committed["microseconds_a_look"].keys()
    assert found["microseconds_a_look"]["most_looks"] > 10

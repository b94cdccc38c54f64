"""The benchmark of a training step, tiny: queries are counted, and the step is set against work that it contains."""

from __future__ import annotations

from pathlib import Path

import training_step as benchmark
from certibox.storage.files import read_json

D_Z = 192


def test_a_tiny_step_has_every_figure(tmp_path: Path) -> None:
    benchmark.main(["--tiny", "--repetitions", "1", "--write", "--out", str(tmp_path / "step.json")])
    found = read_json(tmp_path / "step.json")
    assert found.keys() == read_json(benchmark.RESULT).keys()
    batch = benchmark.TINY.batch
    assert batch < found["queries_per_step"] <= batch * (D_Z + 1)  # live coordinates, and the point itself
    assert found["queries_per_image"] == round(found["queries_per_step"] / batch, 1)
    assert found["ratio_to_raw"] == found["ratios"][0] > 0
    assert found["fastest_raw"] in {f"{layout} {benchmark.TINY.raw[0]}" for layout in ("contiguous", "channels_last")}

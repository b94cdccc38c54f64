"""The benchmark of remote models, tiny: its server answers as the model does, and every figure is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import remote as benchmark
from certibox.blackbox import Connection, as_blackbox
from certibox.storage.files import read_json


def test_the_server_answers_as_its_model_does() -> None:
    weight, bias = benchmark.weights()
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with benchmark.served(0.0) as url:
        for binary in (True, False):
            got = as_blackbox(url, "logits", connection=Connection(binary=binary))(x)
            np.testing.assert_allclose(got.numpy(), x.flatten(1).numpy() @ weight.T + bias, rtol=1e-4, atol=1e-4)


def test_a_tiny_run_has_every_figure(tmp_path: Path) -> None:
    benchmark.main(["--tiny", "--write", "--out", str(tmp_path / "remote.json")])
    found, committed = read_json(tmp_path / "remote.json"), read_json(benchmark.RESULT)
    assert found.keys() == committed.keys()
    for part in ("certification", "overhead"):
        assert found[part].keys() == committed[part].keys()
    assert found["certification"]["samples_a_second"].keys() == committed["certification"]["samples_a_second"].keys()
    assert found["certification"]["images_a_request"] <= benchmark.AT_ONCE

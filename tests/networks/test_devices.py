"""The device that is meant, or one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from certibox.errors import InvalidInput
from certibox.networks.devices import usable_device


@pytest.mark.parametrize("named", ["cpu", "cpu:0", torch.device("cpu")])
def test_a_device_that_is_there_comes_back(named: Any) -> None:
    assert usable_device(named) == torch.device(named)


@pytest.mark.parametrize(
    "named", ["cuda:99", "mps:7", "meta", torch.device("meta"), "gpu", "", "cpu\ncpu", 5, None, ["cpu"], "x" * 500]
)
def test_what_does_not_compute_here_is_one_line_that_names_it(named: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^device is .*; wanted a device of this machine") as caught:
        usable_device(named)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 400
    assert len(str(named)) > 50 or repr(str(named))[1:-1] in line.replace("\\\\", "\\")

"""Files for two public boards: the fields that the boards have, filled with the shares of the rows."""

from __future__ import annotations

import json

import pytest
import yaml

from certibox.errors import InvalidInput
from certibox.report import Run
from certibox.report.boards import export
from outcomes import Voted

ROWS = [Voted(0, 0, 0, 0.5), Voted(1, 0, 0, 0.2, queries=210), Voted(2, 1, None, 0.0), Voted(3, 1, 0, 0.5)]
BETTER = [Voted(i, 0, 0, 0.6, decided=(0.25,)) for i in range(4)]
# The fields of an entry of RobustBench, such as model_info/cifar10/L2/Augustin2020Adversarial.json.
ROBUSTBENCH = {
    "link",
    "name",
    "authors",
    "additional_data",
    "number_forward_passes",
    "dataset",
    "venue",
    "architecture",
    "eps",
    "clean_acc",
    "reported",
    "autoattack_acc",
}


def test_robustbench_has_an_entry_for_each_run_and_radius() -> None:
    entries = json.loads(export([Run("bare", ROWS), Run("better", BETTER)], [0.25, 0.5], "robustbench", "cifar10"))
    assert [(entry["name"], entry["eps"], entry["certified_acc"]) for entry in entries] == [
        ("bare", "0.25", "25.00"),
        ("bare", "0.5", "25.00"),
        ("better", "0.25", "100.00"),
        ("better", "0.5", "100.00"),
    ]
    assert all(entry.keys() >= ROBUSTBENCH for entry in entries)
    assert entries[0]["clean_acc"] == "50.00"  # most votes are for class 0 everywhere
    assert entries[0]["number_forward_passes"] == 135  # (3 * 110 + 210) / 4
    assert entries[0]["autoattack_acc"] == ""
    assert entries[0]["dataset"] == "cifar10"
    assert "a lower bound" not in entries[2]["footnote"]
    assert "a lower bound" in entries[3]["footnote"]


def test_the_board_of_the_sok_has_a_setting_for_each_radius_and_the_best_first() -> None:
    board = yaml.safe_load(export([Run("bare", ROWS), Run("better", BETTER)], [0.25], "sok", "CIFAR-10"))
    (setting,) = board
    assert setting["setting"] == r"CIFAR-10,&nbsp; \(\ell_2\), &nbsp; \(\epsilon=0.25\)"
    assert [(record["title"], record["score"], record["prob"]) for record in setting["records"]] == [
        ("better", "100.00%", True),
        ("bare", "25.00%", True),
    ]
    assert "sigma = 0.25, alpha = 0.001" in setting["records"][1]["comment"]


def test_what_no_board_has_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"export is 'robustbenc'; .* did you mean robustbench"):
        export([Run("a", ROWS)], [0.25], "robustbenc")
    with pytest.raises(InvalidInput, match="a has rows without labels"):
        export([Run("a", [Voted(0, None, 0, 0.5)])], [0.25], "sok")

"""The run through faults, tiny: the same rows, and nothing computed that the ledger does not know of."""

from __future__ import annotations

from pathlib import Path

import faults as benchmark
from certibox.storage.files import read_json


def test_a_tiny_run_keeps_every_promise(tmp_path: Path) -> None:
    benchmark.main(["--tiny", "--write", "--out", str(tmp_path / "faults.json")])
    found = read_json(tmp_path / "faults.json")
    assert found.keys() == read_json(benchmark.RESULT).keys()
    assert found["rows"] == benchmark.TINY.digits
    assert found["rows_are_the_same"]
    assert found["all_that_was_computed_is_booked"]
    assert found["budget_was_kept"]
    assert found["disturbed"]["ends"]["killed"] == benchmark.TINY.kills
    plain = found["undisturbed"]
    assert plain["computed"] == plain["answered"] == plain["attempted"]
    assert plain["lost"] == 0


def test_the_committed_run_is_as_large_as_was_asked() -> None:
    found = read_json(benchmark.RESULT)
    assert found["disturbed"]["requests"] >= 10_000
    assert found["disturbed"]["ends"]["killed"] >= 50
    assert {*found["disturbed"]["faults"]} == {*benchmark.FAULTS}
    assert found["rows_are_the_same"]
    assert found["all_that_was_computed_is_booked"]
    assert found["budget_was_kept"]

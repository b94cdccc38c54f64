"""The benchmark of contention, tiny: every way trains in a process of its own, and all figures are there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import contention as benchmark
from certibox.cli import WAITING
from certibox.storage.files import read_json


def test_a_process_has_the_threads_of_its_way_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    for way, (threads, changes) in benchmark.WAYS.items():
        there = benchmark.environment(changes)
        assert threads == (1 if way == benchmark.SINGLE else 2)
        assert {key: there[key] for key in there if key.startswith(("OMP", "GOMP", "KMP"))} == dict(changes)
    assert benchmark.WAYS[benchmark.OURS][1] == WAITING


def test_busy_processes_end_with_the_block() -> None:
    before = set(os.listdir("/proc")) if Path("/proc").exists() else set()
    with benchmark.busy("loops", 2):
        pass
    after = set(os.listdir("/proc")) if Path("/proc").exists() else set()
    assert not [pid for pid in after - before if pid.isdigit() and b"while True" in command_line(pid)]


def command_line(pid: str) -> bytes:
    path = Path("/proc") / pid / "cmdline"
    return path.read_bytes() if path.exists() else b""


def test_a_tiny_run_has_every_figure(tmp_path: Path) -> None:
    benchmark.main(["--tiny", "--write", "--out", str(tmp_path / "contention.json")])
    found, committed = read_json(tmp_path / "contention.json"), read_json(benchmark.RESULT)
    assert found.keys() == committed.keys()
    assert len(found["loads"]) == len(benchmark.TINY.loads)
    assert len(committed["loads"]) == len(benchmark.FULL.loads)
    for load in found["loads"]:
        assert load.keys() == committed["loads"][0].keys()
        assert all(rate > 0 for rate in load["steps_per_s"].values())
    assert all(seconds > 0 for ways in found["train_seconds"].values() for seconds in ways.values())

"""Training against closed forms: first order is the oracle of zeroth order, counts are exact, stops change nothing."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from certibox.errors import (
    BoxFailed,
    BudgetExceeded,
    ConfigMismatch,
    UnreadableFile,
)
from certibox.estimators import RGE
from certibox.networks import dncnn
from certibox.queries.client import QueryClient
from certibox.training.schedules import Phase, Schedule
from training_runs import (
    EPOCH,
    RUNS,
    bottleneck,
    calls,
    filled,
    fit,
    grey,
    linear,
    pictures,
    resumable,
    same_run,
    weights,
)


def moments(method: str, total: int) -> list[int]:
    """Calls to fail at: while targets are fetched, in the first step, at random, and at the very last."""
    targets = 4  # 16 images and 4 in batches of 7
    return sorted({0, targets - 1, targets, targets + 1, *random.Random(method).sample(range(total), 3), total - 1})


@pytest.mark.parametrize("method", list(RUNS))
def test_a_failure_of_the_box_at_any_call_costs_the_batch_in_flight(method: str, tmp_path: Path) -> None:
    plain = resumable(method, tmp_path / "plain")
    for at in moments(method, calls(plain)):
        out = tmp_path / str(at)
        with pytest.raises((BoxFailed, ConnectionError), match="the line is dead"):
            resumable(method, out, at)
        resumed = resumable(method, out)
        assert weights(resumed) == weights(plain)
        same_run(out, tmp_path / "plain")
        assert resumed.client.queries == plain.client.queries, at
        assert resumed.client.attempts - resumed.client.queries == resumed.client.lost <= 7, at
        assert resumed.client.spent == plain.client.spent
        assert resumed.num_classes == plain.num_classes


def test_many_failures_cost_a_batch_each(tmp_path: Path) -> None:
    plain = resumable("ZO-AE-DS", tmp_path / "plain")
    dice, failures = random.Random(1), 0
    while True:
        try:
            resumed = resumable("ZO-AE-DS", tmp_path / "out", at=dice.randint(1, 15))
            break
        except BoxFailed:
            failures += 1
    assert failures >= 3
    assert weights(resumed) == weights(plain)
    same_run(tmp_path / "out", tmp_path / "plain")
    assert resumed.client.queries == plain.client.queries
    assert failures <= resumed.client.attempts - resumed.client.queries == resumed.client.lost <= 7 * failures


@pytest.mark.parametrize("seed", range(4))
def test_a_spent_budget_keeps_all_work(seed: int, tmp_path: Path) -> None:
    plain = resumable("ZO-AE-DS", tmp_path / "plain")
    budget = random.Random(seed).randrange(plain.client.queries)
    with pytest.raises(BudgetExceeded):
        resumable("ZO-AE-DS", tmp_path / "out", budget=budget)
    with pytest.raises(BudgetExceeded):  # trying again spends nothing
        resumable("ZO-AE-DS", tmp_path / "out", budget=budget)
    assert QueryClient(linear(), ledger=tmp_path / "out" / "ledger.sqlite").queries <= budget
    resumed = resumable("ZO-AE-DS", tmp_path / "out", budget=plain.client.queries)  # to the query
    assert weights(resumed) == weights(plain)
    same_run(tmp_path / "out", tmp_path / "plain")
    assert (resumed.client.queries, resumed.client.left, resumed.client.lost) == (plain.client.queries, 0, 0)


@pytest.mark.parametrize("at", [2, 9, 25])
def test_without_a_ledger_training_goes_on_from_the_checkpoint(at: int, tmp_path: Path) -> None:
    plain = resumable("ZO-AE-DS", tmp_path / "plain", ledger=False)
    with pytest.raises(BoxFailed):
        resumable("ZO-AE-DS", tmp_path / "out", at, ledger=False)
    resumed = resumable("ZO-AE-DS", tmp_path / "out", ledger=False)
    assert weights(resumed) == weights(plain)
    same_run(tmp_path / "out", tmp_path / "plain")
    assert (calls(resumed) < calls(plain)) is (at > 4)  # the targets are in the first checkpoint


def test_the_journal_holds_no_answer_that_a_checkpoint_covers(tmp_path: Path) -> None:
    kept: list[int] = []
    client = QueryClient(linear(), ledger=tmp_path / "ledger.sqlite")

    def look(done: int, total: int, text: str) -> None:
        assert client.ledger is not None
        with closing(sqlite3.connect(client.ledger.path)) as reader:
            kept.append(reader.execute("SELECT COUNT(*) FROM journal").fetchone()[0])

    schedule = Schedule((Phase(2, 0.01),), 4)
    fit(client, "ZO-AE-DS", schedule=schedule, out=tmp_path, checkpoint_every=3, progress=look)
    assert [step for step in range(8) if kept[step] == 0] == [2, 3, 5, 7]


def test_a_finished_run_asks_nothing_when_it_is_called_again(tmp_path: Path) -> None:
    first = resumable("ZO-AE-DS", tmp_path, fingerprint=True)
    again = resumable("ZO-AE-DS", tmp_path, at=0, fingerprint=True)
    assert weights(again) == weights(first)
    assert calls(again) == 0
    assert again.fingerprint == first.fingerprint is not None
    assert again.client.queries == first.client.queries
    assert first.client.spent["fingerprint"] == 8


CHANGES: list[tuple[str, Any, str]] = [
    ("sigma", 0.3, r"sigma is 0\.25 there and 0\.3 here"),
    ("gamma", 2.0, r"gamma is 0\.7 there and 2\.0 here"),
    ("seed", 8, "seed is 7 there and 8 here"),
    ("estimator", RGE(4, 0.05), r"estimator\.q is 3 there and 4 here"),
    ("schedule", EPOCH, r"schedule\.\S+ is"),
    ("augmentation", "flip", "augmentation is 'crop-flip' there and 'flip' here"),
    ("images", pictures(20, seed=9), "images is"),
    ("validation", grey(4), "validation is"),
    ("denoiser", dncnn(1, 3, 4), "start is .* draw them from a seed"),
    ("autoencoder", filled(bottleneck(), 12), "start is"),
    ("skip_dead", False, "skip_dead is True there and False here"),
]


def contents(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}


def test_other_settings_do_not_resume_and_touch_nothing(tmp_path: Path) -> None:
    resumable("ZO-AE-DS", tmp_path, ledger=False)
    before = contents(tmp_path)
    for name, value, message in CHANGES:
        with pytest.raises(ConfigMismatch, match=message) as caught:
            resumable("ZO-AE-DS", tmp_path, at=0, ledger=False, **{name: value})
        assert "\n" not in str(caught.value)
        assert contents(tmp_path) == before


def test_another_box_does_not_resume(tmp_path: Path) -> None:
    fit(linear(), "ZO-DS", out=tmp_path)
    box = linear()
    box.spec = replace(box.spec, mean=(0.5,))
    with pytest.raises(ConfigMismatch, match=r"box\.mean is None there and \[0\.5\] here"):
        fit(box, "ZO-DS", out=tmp_path)
    assert box.calls == 0


def test_a_checkpoint_cut_short_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    fit(linear(), "ZO-DS", out=tmp_path)
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    box = linear()
    with pytest.raises(UnreadableFile, match=r"checkpoint\.safetensors is cut short or damaged") as caught:
        fit(box, "ZO-DS", out=tmp_path)
    assert "\n" not in str(caught.value)
    assert box.calls == 0

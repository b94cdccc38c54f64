"""Rows of two models never stand in one file: the name tells them apart, or the first answers of the run do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from certibox.blackbox import as_blackbox
from certibox.certification.canaries import COUNT
from certibox.certification.dataset import certify_dataset
from certibox.certification.smoothing import SmoothedClassifier
from certibox.confidence.sequential import EProcess
from certibox.data import Images
from certibox.errors import BoxChanged, BudgetExceeded, ConfigMismatch, InvalidInput, UnreadableFile
from certibox.queries.client import QueryClient
from certibox.records.certificates import read_rows
from doubles import alone

SIGMA, N0, N = 0.25, 20, 150
VOTES: dict[str, Any] = {"n0": N0, "n": N, "alpha": 0.01, "seed": 4, "batch_size": 50}
WEIGHTS = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))


def pictures(count: int = 3) -> Images:
    generator = torch.Generator().manual_seed(0)
    return Images(torch.randint(0, 256, (count, 1, 2, 3), generator=generator, dtype=torch.uint8), None, "random")


class Base:
    """A bare function of scores or labels, which counts what it is asked and can break off."""

    answers_alone = True

    def __init__(self, change: float = 0.0, labels: bool = False, after: int | None = None) -> None:
        self.weights, self.labels, self.left, self.sizes = WEIGHTS + change * torch.eye(3, 6), labels, after, []

    def __call__(self, x: Tensor) -> Tensor:
        if self.left is not None and len(self.sizes) >= self.left:
            raise KeyboardInterrupt
        self.sizes.append(len(x))
        scores = x.flatten(1) @ self.weights.T
        return scores.argmax(1) if self.labels else scores


def certify(base: Any, out: Path, count: int = 3, **change: Any) -> list[Any]:
    return certify_dataset(SmoothedClassifier(base, 3, SIGMA), pictures(count), out=out, **VOTES | change)


def canaries(out: Path) -> Path:
    return out.with_name(out.name + ".canaries")


def stopped(out: Path, after: int, **change: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        certify(Base(after=after, **change), out)


@pytest.mark.parametrize("labels", [False, True])
def test_the_first_answers_are_kept_and_asked_again_by_a_run_that_goes_on(tmp_path: Path, labels: bool) -> None:
    out, first, again = tmp_path / "rows.jsonl", Base(labels=labels), Base(labels=labels)
    certify(first, out, 2)
    assert sum(first.sizes) == 2 * (N0 + N)  # they were paid for anyway
    (line,) = canaries(out).read_text(encoding="utf-8").splitlines()
    assert len(json.loads(line)["answers"]) == COUNT
    rows = certify(again, out, 3)
    assert again.sizes[0] == COUNT
    assert sum(again.sizes) == COUNT + N0 + N
    assert len(rows) == 3
    assert certify(idle := Base(), out, 3) == rows
    assert idle.sizes == []  # nothing to do asks nothing


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("after", [3, 4, 5, 7])  # in the first image, after it, and in the second
def test_a_run_that_goes_on_with_another_model_is_refused_and_nothing_is_written(
    tmp_path: Path, labels: bool, after: int
) -> None:
    out = tmp_path / "rows.jsonl"
    stopped(out, after, labels=labels)
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = Base(change=-3.0, labels=labels)
    with pytest.raises(BoxChanged, match=r"rows\.jsonl was begun with another model, .* canaries moved") as error:
        certify(other, out)
    assert "\n" not in str(error.value)
    assert other.sizes == [COUNT]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept
    certify(Base(labels=labels), out)
    whole = certify(Base(labels=labels), tmp_path / "whole.jsonl")
    assert [row.counts for row in read_rows(out)] == [row.counts for row in whole]


def test_answers_that_come_one_at_a_time_are_kept_one_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    base = Base(after=N0 + 5)
    with pytest.raises(KeyboardInterrupt):
        certify(base, out, batch_size=1)
    assert len(canaries(out).read_text(encoding="utf-8").splitlines()) == 5
    with pytest.raises(BoxChanged, match="5 of 5 canaries moved"):
        certify(Base(change=-3.0), out, batch_size=1)
    again = Base()
    certify(again, out, batch_size=1)
    assert again.sizes[0] == 5
    assert len(canaries(out).read_text(encoding="utf-8").splitlines()) == COUNT  # the image went on, and so did they


def test_a_run_that_left_no_vote_begins_anew(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    certify(Base(), out, 1)
    out.unlink()
    other = Base(change=-3.0)
    certify(other, out)
    assert sum(other.sizes) == 3 * (N0 + N)
    certify(Base(change=-3.0), out, 3)
    with pytest.raises(BoxChanged):
        certify(Base(), out, 4)


def test_a_rule_and_few_votes_keep_what_there_is(tmp_path: Path) -> None:
    out, asked = tmp_path / "rows.jsonl", {"n0": 1, "n": 200, "rule": EProcess(radii=(0.05,))}
    stopped_at = Base()
    certify(stopped_at, out, 1, **asked)
    certify(Base(), out, 2, **asked)
    with pytest.raises(BoxChanged):
        certify(Base(change=-3.0), out, 3, **asked)


def test_rows_without_first_answers_go_on_with_a_warning(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    certify(Base(), out, 1)
    canaries(out).unlink()
    with pytest.warns(UserWarning, match=r"rows\.jsonl: nothing tells its base classifier from another one"):
        rows = certify(Base(), out, 2)
    assert len(rows) == 2
    with pytest.raises(BoxChanged):  # what the second run asked is kept now
        certify(Base(change=-3.0), out, 3)


def test_what_is_no_file_of_answers_is_named(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    certify(Base(), out, 1)
    whole = canaries(out).read_bytes()
    for content in (
        b'{"image": 3}\n',
        whole.replace(b'"answers": [[', b'"answers": [["a",'),
        whole + whole[:20] + b"\n",
    ):
        canaries(out).write_bytes(content)
        with pytest.raises(UnreadableFile, match=r"rows\.jsonl\.canaries.*delete the file"):
            certify(Base(), out, 2)
    canaries(out).write_bytes(b"my notes\n")
    with pytest.raises(InvalidInput, match=r"rows\.jsonl\.canaries"):
        certify(Base(), out, 2)
    assert canaries(out).read_bytes() == b"my notes\n"
    canaries(out).write_bytes(whole + whole[:20])  # which a crash cut short
    assert len(certify(Base(), out, 2)) == 2


# ----------------------------------------------------------------------------------------------- who is told apart


def function(scale: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: scale * x.reshape(len(x), -1)[:, :3]


def module(scale: float) -> nn.Module:
    layer = nn.Linear(6, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(scale * WEIGHTS)
    return nn.Sequential(nn.Flatten(), layer)


UNNAMED: dict[str, Callable[[float], Any]] = {
    "a bare function": lambda scale: alone(lambda x: scale * x.flatten(1)[:, :3]),
    "a box of a function": lambda scale: as_blackbox(function(scale), "logits"),
    "a client of a function": lambda scale: QueryClient(as_blackbox(function(scale), "logits")),
}
NAMED: dict[str, Callable[[float], Any]] = {
    "a module": module,
    "a method of a module": lambda scale: module(scale).forward,
    "a box of a module": lambda scale: as_blackbox(module(scale), "logits"),
    "a client of a module": lambda scale: QueryClient(as_blackbox(module(scale), "logits")),
    "a named function": lambda scale: as_blackbox(function(scale), "logits", name=f"scaled by {scale}"),
    "a pinned function": lambda scale: QueryClient(as_blackbox(function(scale), "logits", identity=f"v{scale}")),
}


@pytest.mark.parametrize("kind", UNNAMED)
def test_what_nothing_tells_apart_is_asked(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "rows.jsonl"
    certify(UNNAMED[kind](1.0), out, 1)
    assert canaries(out).exists()
    certify(UNNAMED[kind](1.0), out, 2)
    kept = out.read_bytes()
    with pytest.raises(BoxChanged, match="canaries moved"):
        certify(UNNAMED[kind](-1.0), out, 3)
    assert out.read_bytes() == kept


@pytest.mark.parametrize("kind", NAMED)
def test_what_has_a_name_of_its_own_is_refused_by_it_without_a_query(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "rows.jsonl"
    certify(NAMED[kind](1.0), out, 1)
    assert not canaries(out).exists()
    certify(NAMED[kind](1.0), out, 2)
    kept = out.read_bytes()
    with pytest.raises(
        ConfigMismatch, match=r"model is .* there and .* here; the model, or what is declared .* changed since"
    ):
        certify(NAMED[kind](-1.0), out, 3)
    assert out.read_bytes() == kept


def test_a_name_that_is_given_for_the_rows_is_trusted(tmp_path: Path) -> None:
    out, base = tmp_path / "rows.jsonl", Base()
    certify(base, out, 1, model="mine")
    certify(base, out, 2, model="mine")
    assert sum(base.sizes) == 2 * (N0 + N)
    assert not canaries(out).exists()
    with pytest.raises(ConfigMismatch, match="model is 'mine' there and 'other' here; the model, or what is declared"):
        certify(base, out, 3, model="other")


def test_the_canaries_are_booked_under_their_name_and_want_a_budget(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    certify(UNNAMED["a client of a function"](1.0), out, 1)
    client = UNNAMED["a client of a function"](1.0)
    certify(client, out, 2)
    assert client.spent == {"certify": N0 + N, "canaries": COUNT}  # the run that began has made the batch check
    kept = out.read_bytes()
    poor = QueryClient(as_blackbox(function(1.0), "logits"), budget=COUNT - 1)
    with pytest.raises(BudgetExceeded):
        certify(poor, out, 3)
    assert poor.queries == 0
    assert out.read_bytes() == kept

"""The client pays for exactly what the box sees, never more than the budget, and never twice for what it journalled."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from certibox.blackbox import BlackBox, BoxSpec, as_blackbox
from certibox.errors import (
    BadOutput,
    BlackBoxError,
    BoxChanged,
    BoxFailed,
    BudgetExceeded,
    CertiboxError,
    InvalidImages,
    InvalidInput,
    NotAnswered,
    NotDifferentiable,
)
from certibox.queries.client import QueryClient
from certibox.queries.fingerprint import Fingerprint, canary_images, moved
from doubles import CountingBox, LinearBox

SHAPE = (1, 2, 2)
WEIGHT = torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.0, 1.0, 1.0, -1.0], [2.0, 0.25, -1.0, 1.0]])


def counting(outputs: str = "logits", dtype: torch.dtype = torch.float32) -> CountingBox:
    return CountingBox(LinearBox(WEIGHT.to(dtype), outputs=outputs))


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand((n, *SHAPE), generator=torch.Generator().manual_seed(seed))


class ScriptedBox:
    """Another box that hands call number `at` to `act` (its answer stands, or it raises)."""

    def __init__(self, box: BlackBox, at: int, act: Callable[[Tensor], object]) -> None:
        self.box, self.at, self.act, self.calls = box, at, act, 0
        self.spec = box.spec

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        answer = self.box(x)
        return self.act(answer) if self.calls - 1 == self.at else answer  # pyright: ignore[reportReturnType]


def raising(error: BaseException) -> Callable[[Tensor], object]:
    def act(_: Tensor) -> object:
        raise error

    return act


def reopened(client: QueryClient, box: BlackBox | None = None, budget: int | None = None) -> QueryClient:
    """What a new process sees of the same ledger."""
    assert client.ledger is not None
    return QueryClient(box or client.box, budget, ledger=client.ledger.path, batch_size=client.batch_size)


# --- counting ---------------------------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(1, 20), max_size=8), batch_size=st.integers(1, 9))
def test_queries_and_attempts_are_what_the_box_saw(sizes: list[int], batch_size: int) -> None:
    box = counting()
    client = QueryClient(box, batch_size=batch_size)
    for size in sizes:
        assert torch.equal(client(images(size)), torch.cat([box.box(x) for x in images(size).split(batch_size)]))
    assert client.queries == client.attempts == client.delivered == box.images == sum(sizes)
    assert box.batch_sizes == [len(batch) for size in sizes for batch in torch.arange(size).split(batch_size)]
    assert client.left is None


@pytest.mark.parametrize(
    ("declared", "max_batch", "given", "sent"),
    [(4, None, None, [4, 4, 2]), (4, None, 5, [5, 5]), (4, 3, None, [3, 3, 3, 1]), (4, 3, 8, [3, 3, 3, 1])],
)
def test_batches_obey_the_argument_then_the_box_and_always_max_batch(
    declared: int, max_batch: int | None, given: int | None, sent: list[int]
) -> None:
    box = counting()
    box.spec = replace(box.spec, batch_size=declared, max_batch=max_batch)
    QueryClient(box, batch_size=given)(images(10))
    assert box.batch_sizes == sent


def test_spending_is_booked_under_the_innermost_phase_even_after_an_error() -> None:
    client = QueryClient(counting(), budget=100)
    client(images(1))
    with client.phase("outer"):
        client(images(2))
        with suppress(BudgetExceeded), client.phase("inner"):
            client(images(3))
            client(images(1000))
        client(images(4))
    client(images(5))
    assert client.spent == {"query": 6, "outer": 6, "inner": 3}
    client.spent["query"] = 0  # a copy
    assert sum(client.spent.values()) == client.queries == 15


def test_white_passes_are_not_queries() -> None:
    client = QueryClient(LinearBox(WEIGHT), budget=0)
    x = images(3).requires_grad_()
    client.white(x)[:, 1].sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, WEIGHT[1].reshape(SHAPE).expand(3, -1, -1, -1))
    assert (client.white_passes, client.queries, client.attempts) == (3, 0, 0)
    with pytest.raises(NotDifferentiable):
        QueryClient(counting()).white(x)


def test_nothing_is_asked_unasked(tmp_path: Path) -> None:
    box = counting()
    client = QueryClient(box, budget=10, ledger=tmp_path / "ledger.sqlite")
    assert "QueryClient" in repr(client)
    with client.phase("train"), client.journal("scope", 0) as journal:
        assert journal is not None
        journal.trim()
    assert (client.spec, client.left, client.spent, client.num_outputs) == (box.spec, 10, {}, None)
    assert box.calls == 0


# --- what is refused before it is paid for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x",
    [
        torch.rand(3, 2, 2),
        torch.rand(1, 1, 1, 2, 2),
        torch.zeros(3, 1, 2, 2, dtype=torch.uint8),
        torch.zeros(3, 1, 2, 2, dtype=torch.int64),
        torch.rand(3, 3, 2, 2),
        torch.rand(0, 1, 2, 2),
    ],
    ids=["3-D", "5-D", "uint8", "int64", "other shape", "none"],
)
def test_wrong_images_cost_nothing(x: Tensor) -> None:
    box = counting()
    box.spec = replace(box.spec, image_shape=SHAPE)
    client = QueryClient(box)
    with pytest.raises(InvalidImages):
        client(x)
    assert box.calls == client.attempts == client.queries == 0


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            np.zeros((3, 1, 2, 2), dtype=np.uint8),
            r"images are uint8; wanted floats on \[0, 1\]: divide 8-bit pixels by 255",
        ),
        (np.zeros((3, 1, 2, 2), dtype=np.int64), "images are int64; .*divide 8-bit pixels by 255"),
        (np.zeros((1, 2, 2)), r"images have shape \(1, 2, 2\); wanted a batch \(n, "),
        ([[[[0.5]]]], "images are a list; wanted a float tensor or numpy array"),
    ],
)
def test_wrong_images_from_numpy_cost_nothing(x: Any, message: str) -> None:
    box = counting()
    with pytest.raises(InvalidImages, match=message) as caught:
        QueryClient(box)(x)
    assert box.calls == 0
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_images_from_numpy_get_the_answers_of_the_same_tensor(dtype: str, tmp_path: Path) -> None:
    box = counting()
    client, array = QueryClient(box, ledger=tmp_path / "ledger", batch_size=3), images(7).numpy().astype(dtype)
    with client.journal("work", 0):
        answers = client(array)
    assert isinstance(answers, Tensor)
    assert torch.equal(answers, box.box(torch.from_numpy(array)))
    with client.journal("work", 0):
        assert torch.equal(client(torch.from_numpy(array)), answers)  # the same question
    assert client.queries == 7


WRONG = [-1, -4.0, 1.5, float("nan"), float("inf"), "5", True, np.True_, [3], 2 + 0j]


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("field", ["budget", "batch_size"])
def test_wrong_limits_are_refused(field: str, value: Any) -> None:
    least = {"budget": 0, "batch_size": 1}[field]
    with pytest.raises(InvalidInput) as caught:
        QueryClient(counting(), **{field: value})
    assert str(caught.value).startswith(f"{field} is {value!r}; wanted a whole number of at least {least}")


@pytest.mark.parametrize("value", [6, 6.0, np.int32(6), np.float64(6), torch.tensor(6)], ids=repr)
def test_whole_numbers_of_any_kind_are_limits(value: Any) -> None:
    box = counting()
    client = QueryClient(box, budget=value, batch_size=value)
    client(images(6))
    assert box.batch_sizes == [6]
    assert (client.budget, client.left, type(client.budget)) == (6, 0, int)
    with client.asking(value):
        assert client.at_once == 6
    with pytest.raises(InvalidInput, match="images at once is 0; wanted a whole number of at least 1"):
        client.asking(0)


@pytest.mark.parametrize("ledger", [5, b"ledger", ["a"]], ids=repr)
def test_a_ledger_that_is_no_path_is_refused(ledger: Any) -> None:
    with pytest.raises(InvalidInput, match="wanted the path of a file, or None to count in memory") as caught:
        QueryClient(counting(), ledger=ledger)
    assert str(caught.value).startswith(f"ledger is {ledger!r}; ")


def test_a_box_whose_declaration_raises_is_refused() -> None:
    class Shy:
        @property
        def spec(self) -> BoxSpec:
            raise RuntimeError("not\nyet")

        def __call__(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(
        InvalidInput, match=r"the box of type Shy raised when its spec was read \(RuntimeError: not yet\); w"
    ):
        QueryClient(Shy())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError(), r"the box raised ValueError on batch 0 \(1 image\); 1 query counts as lost"),
        (ValueError("no"), r"the box raised ValueError on batch 0 \(1 image\): no; 1 query counts as lost"),
        (NotAnswered(), r"the box refused batch 0 \(1 image\) and bills nothing; 0 answers"),
        (NotAnswered("no"), r"the box refused batch 0 \(1 image\) and bills nothing: no; 0 answers"),
    ],
)
def test_an_exception_without_a_text_is_its_type_alone(error: Exception, said: str) -> None:
    def fails(x: np.ndarray) -> np.ndarray:
        raise error

    with pytest.raises(BlackBoxError, match=said):
        QueryClient(as_blackbox(fails, "logits"))(torch.zeros(1, 1, 2, 2))


def test_a_size_that_a_module_does_not_take_is_lost_unless_it_is_declared() -> None:
    module, grey = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 2), torch.nn.Flatten()), torch.zeros(5, 1, 2, 2)
    client = QueryClient(as_blackbox(module, "logits"), budget=10)
    with pytest.raises(BoxFailed, match=r"3 channels, but got 1 channels.* 5 queries count as lost"):
        client(grey)
    assert (client.lost, client.left) == (5, 5)
    declared = QueryClient(as_blackbox(module, "logits", image_shape=(3, 2, 2)), budget=10)
    with pytest.raises(InvalidImages, match=r"\(1, 2, 2\)"):
        declared(grey)
    assert (declared.lost, declared.left) == (0, 10)


def test_a_white_box_pass_that_fails_is_a_failure_of_the_box_and_loses_no_query() -> None:
    client = QueryClient(as_blackbox(torch.nn.Linear(3, 2), "logits"), budget=10)
    with pytest.raises(BoxFailed, match=r"the box raised RuntimeError on a white-box pass of 6: mat1 .*; 0 answers"):
        client.white(images(6))
    assert (client.white_passes, client.lost, client.left) == (0, 0, 10)


def test_a_bare_model_is_refused() -> None:
    with pytest.raises(InvalidInput, match="as_blackbox"):
        QueryClient(torch.nn.Linear(4, 3))  # pyright: ignore[reportArgumentType]


# --- the budget -------------------------------------------------------------------------------------------------------


def test_an_overspending_call_sends_nothing_and_an_exact_one_all() -> None:
    box = counting()
    client = QueryClient(box, budget=10, batch_size=2)
    client(images(4))
    with pytest.raises(BudgetExceeded) as caught:
        client(images(7))
    assert (caught.value.wanted, caught.value.left) == (7, 6)
    assert (box.images, client.queries, client.attempts, client.delivered, client.left) == (4, 4, 4, 4, 6)
    client(images(6))
    assert (box.images, client.left) == (10, 0)
    with pytest.raises(BudgetExceeded):
        client(images(1))
    assert box.images == 10


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 20), max_size=12),
    budget=st.integers(0, 60),
    batch_size=st.integers(1, 9),
    reopen=st.booleans(),
)
def test_the_box_never_sees_more_than_the_budget(sizes: list[int], budget: int, batch_size: int, reopen: bool) -> None:
    box, bought = counting(), 0
    with tempfile.TemporaryDirectory() as directory:
        client = QueryClient(box, budget, Path(directory) / "ledger.sqlite", batch_size)
        for size in sizes:
            with suppress(BudgetExceeded):
                client(images(size))
            bought += size if bought + size <= budget else 0
            assert box.images == client.queries == bought <= budget
            client = reopened(client, budget=budget) if reopen else client


@pytest.mark.parametrize("keeps", [False, True], ids=["memory", "ledger"])
def test_a_budget_may_be_raised_while_it_is_spent(keeps: bool, tmp_path: Path) -> None:
    client = QueryClient(counting(), budget=4, ledger=tmp_path / "ledger" if keeps else None)
    client(images(3))
    with pytest.raises(BudgetExceeded):
        client(images(3))
    client.budget = 6
    client(images(3))
    assert (client.queries, client.left) == (6, 0)
    client.budget = 5
    assert client.left == 0
    with pytest.raises(BudgetExceeded) as caught:
        client(images(1))
    assert caught.value.left == 0
    client.budget = None
    client(images(1))
    with pytest.raises(InvalidInput, match="budget is -1; wanted a whole number of at least 0, or None"):
        client.budget = -1


def test_a_raised_budget_goes_on_where_the_ledger_stands(tmp_path: Path) -> None:
    box = counting()
    client = QueryClient(box, budget=5, ledger=tmp_path / "new" / "ledger.sqlite")
    with client.phase("train"):
        client(images(4))
    with pytest.raises(BudgetExceeded):
        client(images(2))
    client = reopened(client, budget=7)
    assert (client.queries, client.attempts, client.left, client.spent) == (4, 4, 3, {"train": 4})
    assert client.delivered == 0
    with client.phase("certify"):
        client(images(3))
    assert reopened(client, budget=6).left == 0
    assert reopened(client).spent == client.spent == {"train": 4, "certify": 3}
    assert box.images == reopened(client).queries == 7


# --- a box that misbehaves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keeps", [False, True], ids=["memory", "ledger"])
def test_a_box_that_raises_keeps_earlier_batches(keeps: bool, tmp_path: Path) -> None:
    cause = ConnectionError("endpoint\nis away")
    box = ScriptedBox(counting(), at=2, act=raising(cause))
    client = QueryClient(box, budget=50, ledger=tmp_path / "ledger" if keeps else None, batch_size=4)
    with pytest.raises(BoxFailed) as caught:
        client(images(11))
    assert caught.value.__cause__ is cause
    assert re.search(
        r"ConnectionError on batch 2 \(3 images\): endpoint is away; 3 queries count as lost", str(caught.value)
    )
    assert str(caught.value).endswith("; 8 answers so far are kept: run the same again to go on")
    assert caught.value.exit_status == 4
    assert "\n" not in str(caught.value)
    clients = [client, reopened(client, budget=50)] if keeps else [client]
    for each in clients:
        assert (each.queries, each.attempts, each.lost, each.left) == (8, 11, 3, 39)
        assert each.spent == {"query": 8}
    assert client.delivered == 0
    assert len(client(images(3))) == 3  # and goes on


class Mute(Exception):
    """An exception that does not know what it says."""

    def __str__(self) -> str:
        raise ValueError("mute")


class Alien(BaseException):
    """No exception that anybody expects."""


ERRORS = [
    TimeoutError("billed, and never heard of"),
    SystemExit(0),
    GeneratorExit(),
    MemoryError(),
    RecursionError("too deep"),
    Mute(),
    Alien(),
    CertiboxError("no"),
    InvalidInput("no image of mine"),
]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), *ERRORS], ids=lambda error: type(error).__name__)
def test_a_batch_of_unknown_outcome_is_lost_and_counts_against_the_budget(error: BaseException, tmp_path: Path) -> None:
    box = ScriptedBox(counting(), at=1, act=raising(error))
    client = QueryClient(box, budget=20, ledger=tmp_path / "ledger", batch_size=4)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else BoxFailed) as caught:
        client(images(12))
    assert error in (caught.value, caught.value.__cause__)
    for each in (client, reopened(client, budget=20)):
        assert (each.queries, each.attempts, each.lost, each.left) == (4, 8, 4, 12)
        assert each.spent == {"query": 4}


def test_a_box_that_bills_and_then_raises_never_bills_more_than_the_budget() -> None:
    box = counting()
    failing = ScriptedBox(box, at=-1, act=raising(TimeoutError()))
    client = QueryClient(failing, budget=100, batch_size=16)
    for call in range(40):
        failing.at = call
        with suppress(BoxFailed, BudgetExceeded):
            client(images(16))
    assert (box.images, client.lost, client.left) == (96, 96, 4)


@pytest.mark.parametrize("keeps", [False, True], ids=["memory", "ledger"])
def test_a_batch_that_the_box_says_it_did_not_answer_is_given_back(keeps: bool, tmp_path: Path) -> None:
    box = ScriptedBox(counting(), at=1, act=raising(NotAnswered("429\nslow down")))
    client = QueryClient(box, budget=20, ledger=tmp_path / "ledger" if keeps else None, batch_size=4)
    with pytest.raises(NotAnswered) as caught:
        client(images(12))
    assert str(caught.value) == (
        "the box refused batch 1 (4 images) and bills nothing: 429 slow down; 4 answers so far are kept: "
        "run the same again to go on"
    )
    for each in [client, reopened(client, budget=20)] if keeps else [client]:
        assert (each.queries, each.attempts, each.lost, each.left) == (4, 8, 0, 16)
    assert len(client(images(16))) == 16


def test_what_the_declaration_refuses_is_not_attempted() -> None:
    estimator = LogisticRegression().fit(np.eye(4), range(4))
    client = QueryClient(as_blackbox(estimator, "probabilities"), budget=20)
    with pytest.raises(InvalidImages, match=r"\b9\b"):
        client(torch.rand(2, 1, 3, 3))
    assert (client.attempts, client.lost, client.left) == (0, 0, 20)


def test_an_error_of_the_box_is_shown_without_its_secrets() -> None:
    error = OSError("POST https://me:hunter2@host/v1?key=hunter2 \x1b[31mfailed\x1b[0m\nAuthorization: Bearer hunter22")
    with pytest.raises(BoxFailed) as caught:
        QueryClient(ScriptedBox(counting(), at=0, act=raising(error)))(images(1))
    said = (
        "OSError on batch 0 (1 image): POST https://...@host/v1?... failed Authorization: ...; 1 query counts as lost"
    )
    assert said in str(caught.value)


def nan(answer: Tensor) -> Tensor:
    return answer.index_fill(0, torch.tensor([0]), torch.nan)


@pytest.mark.parametrize(
    ("act", "rule"),
    [
        (nan, "finite"),
        (lambda answer: answer[:, :2], r"\(3,\), these have \(2,\)"),
        (lambda answer: answer[:-1], "3 images need 3 answers, got 2"),
        (lambda answer: answer[..., None], r"\(n, K\)"),
        (lambda answer: answer.tolist(), "tensor"),
        (raising(BadOutput("box answered a str")), "str"),
    ],
    ids=["nan", "another K", "too few", "rank", "list", "refused by its adapter"],
)
def test_a_wrong_answer_is_paid_for(act: Callable[[Tensor], object], rule: str) -> None:
    client = QueryClient(ScriptedBox(counting(), at=1, act=act), budget=10, batch_size=3)
    with pytest.raises(BadOutput, match=rule):
        client(images(6))
    assert (client.queries, client.attempts, client.left, client.delivered) == (6, 6, 4, 0)


def test_k_is_constant_across_calls() -> None:
    box = ScriptedBox(counting("values"), at=1, act=lambda answer: answer[:, :2])
    client = QueryClient(box)
    assert client.num_outputs is None
    client(images(2))
    assert client.num_outputs == 3
    with pytest.raises(BadOutput, match=r"batch 1 \(1 image\).*\(3,\).*\(2,\)"):
        client(images(1))


# --- the journal ------------------------------------------------------------------------------------------------------

BATCHES = [images(n, seed) for seed, n in enumerate((3, 1, 4, 2))]


@pytest.mark.parametrize(
    ("outputs", "dtype", "answered"),
    [
        ("logits", torch.float32, torch.float32),
        ("logits", torch.float64, torch.float64),
        ("probabilities", torch.float16, torch.float32),
        ("labels", torch.float32, torch.int64),
        ("values", torch.float64, torch.float64),
    ],
)
def test_the_journal_replays_every_kind_of_answer_unspent(
    outputs: str, dtype: torch.dtype, answered: torch.dtype, tmp_path: Path
) -> None:
    box = counting(outputs, dtype)
    client = QueryClient(box, budget=10, ledger=tmp_path / "ledger", batch_size=3)
    with client.journal("train", 0):
        bought = [client(x) for x in BATCHES]
    resumed = reopened(client, budget=10)
    with resumed.journal("train", 0) as journal:
        replayed = [resumed(x.contiguous(memory_format=torch.channels_last)) for x in BATCHES]
    assert journal is not None
    assert journal.position == 5  # four calls, one of them of two batches
    for before, after in zip(bought, replayed, strict=True):
        assert before.dtype == after.dtype == answered
        assert torch.equal(before, after)
    assert box.images == resumed.queries == resumed.attempts == 10
    assert resumed.delivered == client.delivered == 10
    assert resumed.num_outputs == client.num_outputs == (None if outputs == "labels" else 3)


def test_values_of_any_shape_are_replayed(tmp_path: Path) -> None:
    for shape in [(), (2, 3), (1, 1, 4)]:
        box = ScriptedBox(counting("values"), at=0, act=lambda _, shape=shape: torch.rand(2, *shape))
        client = QueryClient(box, ledger=tmp_path / "ledger")
        with client.journal(str(shape), 0):
            bought = client(images(2))
        with client.journal(str(shape), 0):
            assert torch.equal(client(images(2)), bought)
        assert bought.shape == (2, *shape)
        assert box.calls == 1


def test_a_replayed_answer_is_a_copy_of_its_own(tmp_path: Path) -> None:
    client = QueryClient(counting(), ledger=tmp_path / "ledger")
    for _ in range(3):
        with client.journal("train", 0):
            client(images(2)).zero_()
    with client.journal("train", 0):
        assert torch.equal(client(images(2)), counting()(images(2)))


def test_a_differing_input_is_asked_again_and_replaces_the_entry(tmp_path: Path) -> None:
    box = counting()
    client = QueryClient(box, ledger=tmp_path / "ledger")
    changed = [BATCHES[0], BATCHES[1].nextafter(torch.ones(())), *BATCHES[2:]]
    for inputs in (BATCHES, changed, changed):
        with client.journal("train", 0):
            answers = [client(x) for x in inputs]
    assert box.batch_sizes == [3, 1, 4, 2, 1]
    assert torch.equal(answers[1], box.box(changed[1]))


def test_equal_pixels_of_another_shape_or_type_are_another_input(tmp_path: Path) -> None:
    box = counting()
    client = QueryClient(box, ledger=tmp_path / "ledger")
    zeros = torch.zeros(2, 1, 2, 2)
    for x in (zeros, zeros.reshape(2, 1, 1, 4), zeros.half().repeat(1, 2, 1, 1)[:, :1], zeros.bfloat16()):
        with client.journal("train", 0):
            client(x)
    assert box.calls == 4


def test_trim_forgets_only_what_is_before_the_position(tmp_path: Path) -> None:
    box = counting()
    client = QueryClient(box, ledger=tmp_path / "ledger")
    with client.journal("train", 0):
        for x in BATCHES:
            client(x)
    with client.journal("train", 0) as journal:
        assert journal is not None
        for x in BATCHES[:2]:
            client(x)
        journal.trim()
    with client.journal("train", 2):
        for x in BATCHES[2:]:
            client(x)
    assert box.calls == 4
    with client.journal("train", 0):
        for x in BATCHES:
            client(x)
    assert box.batch_sizes == [3, 1, 4, 2, 3, 1]


def test_scopes_do_not_mix(tmp_path: Path) -> None:
    box = counting()
    client = QueryClient(box, ledger=tmp_path / "ledger")
    for scope in ("a", "b", "a", "b"):
        with client.journal(scope, 0):
            client(BATCHES[0])
    assert box.calls == 2
    with client.journal("a", 1) as journal:
        assert journal is not None
        journal.trim()
    for scope in ("b", "a"):
        with client.journal(scope, 0):
            client(BATCHES[0])
    assert box.calls == 3


def test_only_answers_inside_are_journalled_and_none_without_a_ledger(tmp_path: Path) -> None:
    box = counting()
    client = QueryClient(box, ledger=tmp_path / "ledger")
    client(BATCHES[0])
    with client.journal("train", 0):
        client(BATCHES[0])
    client(BATCHES[0])
    assert box.calls == 3
    with client.journal("train", 1):
        client(BATCHES[0])
    assert box.calls == 4
    client = QueryClient(box)
    for _ in range(2):
        with client.journal("train", 0) as journal:
            client(BATCHES[0])
        assert journal is None
    assert box.calls == 6


def test_a_call_that_broke_off_is_resumed_at_its_next_batch(tmp_path: Path) -> None:
    x = images(12)
    failing = ScriptedBox(counting(), at=2, act=raising(OSError("away")))
    client = QueryClient(failing, budget=12, ledger=tmp_path / "ledger", batch_size=3)
    with pytest.raises(BoxFailed), client.journal("train", 0):
        client(x)
    box = counting()
    short = reopened(client, box, budget=14)
    with pytest.raises(BudgetExceeded) as caught, short.journal("train", 0):
        short(x)  # replays two batches, then cannot pay for the other two
    assert (caught.value.wanted, caught.value.left) == (6, 5)
    assert (box.calls, short.delivered) == (0, 0)
    resumed = reopened(short, budget=15)
    with resumed.journal("train", 0):
        assert torch.equal(resumed(x), torch.cat([box.box(part) for part in x.split(3)]))
    assert box.batch_sizes == [3, 3]
    assert (resumed.queries, resumed.attempts, resumed.left) == (12, 15, 0)


def test_a_wrong_answer_is_never_journalled(tmp_path: Path) -> None:
    client = QueryClient(ScriptedBox(counting(), at=0, act=nan), ledger=tmp_path / "ledger")
    with client.journal("train", 0):
        with pytest.raises(BadOutput):
            client(BATCHES[0])
        answer = client(BATCHES[0])
    with client.journal("train", 0):
        assert torch.equal(client(BATCHES[0]), answer)
    assert client.queries == 6


def work(client: QueryClient, saved: dict[str, int], save_every: int, calls: int) -> Iterator[Tensor]:
    """A resumable piece of work: call i asks about i % 4 + 1 images, and a checkpoint follows every few calls."""
    with client.journal("work", saved["position"]) as journal:
        assert journal is not None
        for call in range(saved["call"], calls):
            yield client(images(call % 4 + 1, seed=call))
            if call % save_every == save_every - 1:
                saved.update(call=call + 1, position=journal.position)
                journal.trim()


@settings(deadline=None, max_examples=40)
@given(kills=st.lists(st.integers(0, 12), max_size=4), save_every=st.integers(1, 7), batch_size=st.integers(1, 5))
def test_killed_at_any_batch_work_pays_twice_for_the_batch_in_flight_only(
    kills: list[int], save_every: int, batch_size: int
) -> None:
    box, calls, saved = counting(), 12, {"call": 0, "position": 0}
    with tempfile.TemporaryDirectory() as directory:
        client = QueryClient(box, ledger=Path(directory) / "ledger", batch_size=batch_size)
        for kill in kills:
            client = reopened(client, ScriptedBox(box, at=kill, act=raising(KeyboardInterrupt())))
            with suppress(KeyboardInterrupt):
                list(work(client, saved, save_every, calls))
        client = reopened(client, box)
        first = saved["call"]
        answers = list(work(client, saved, save_every, calls))
    for call, answer in enumerate(answers, start=first):
        parts = images(call % 4 + 1, seed=call).split(batch_size)
        assert torch.equal(answer, torch.cat([box.box(part) for part in parts]))
    assert client.delivered == sum(call % 4 + 1 for call in range(first, calls))
    assert client.queries == 30  # each answer was bought once
    assert client.attempts == client.queries + client.lost == box.images
    assert client.lost <= batch_size * len(kills)


# --- the fingerprint --------------------------------------------------------------------------------------------------


def test_canaries_are_fixed_on_the_8_bit_grid_and_all_different() -> None:
    for shape, digest in {
        (3, 32, 32): "75acfb5a06ab438bf50315e06bc6e0c3bea45bc8edb7f8ea0aa28808cefc8b06",
        (1, 8, 8): "79f4ab228075030cd95fc3b798e0b3a8ed4da4c9be09a5217aa86d11d64ec340",
    }.items():
        x = canary_images(shape, 8)
        levels = (x * 255).round()
        assert x.shape == (8, *shape)
        assert x.min() >= 0
        assert x.max() <= 1
        assert torch.equal(x, levels / 255)
        assert hashlib.sha256(levels.to(torch.uint8).numpy().tobytes()).hexdigest() == digest
        assert len({row.numpy().tobytes() for row in x}) == 8


def test_half_of_the_canaries_are_smooth() -> None:
    steps = canary_images((3, 32, 32), 8).diff(dim=3).abs().mean(dim=(1, 2, 3))
    assert steps[1::2].max() < 0.05 < 0.25 < steps[::2].min()  # E|u - v| of uniform noise is 1/3


@pytest.mark.parametrize("outputs", ["logits", "probabilities", "labels", "values"])
def test_a_fingerprint_costs_its_canaries_and_the_same_box_passes(outputs: str) -> None:
    box = counting(outputs)
    client = QueryClient(box, batch_size=3)
    mark = Fingerprint.take(client, SHAPE, canaries=5)
    assert (box.images, client.spent) == (5, {"fingerprint": 5})
    assert mark.image_shape == SHAPE
    assert torch.equal(torch.tensor(mark.answers).reshape(5, -1), box.box(canary_images(SHAPE, 5)).reshape(5, -1))
    mark.check(client, tolerance=0.0)
    assert client.spent == {"fingerprint": 10}


def test_a_fingerprint_of_one_number_an_image() -> None:
    box = ScriptedBox(counting("values"), at=0, act=lambda answer: answer[:, 0])
    assert [len(row) for row in Fingerprint.take(QueryClient(box), SHAPE).answers] == [1] * 8


@pytest.mark.parametrize("outputs", ["logits", "probabilities", "values"])
def test_one_changed_weight_is_found_and_the_worst_canary_named(outputs: str) -> None:
    mark = Fingerprint.take(QueryClient(counting(outputs)), SHAPE)
    changed = WEIGHT.clone()
    changed[1, 2] += 0.5
    box = LinearBox(changed, outputs=outputs)
    moved = (box(canary_images(SHAPE, 8)) - counting(outputs)(canary_images(SHAPE, 8))).abs().amax(1)
    with pytest.raises(BoxChanged, match=f"canary {int(moved.argmax())} by {float(moved.max()):.3g} ") as caught:
        mark.check(QueryClient(box))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_tolerance_is_a_share_of_the_range_of_the_answers(scale: float) -> None:
    weight = WEIGHT.double() * scale
    mark = Fingerprint.take(QueryClient(LinearBox(weight)), SHAPE)
    reach = max(map(max, mark.answers)) - min(map(min, mark.answers))

    def shifted(share: float) -> QueryClient:
        return QueryClient(LinearBox(weight, torch.tensor([share * reach, 0.0, 0.0], dtype=torch.float64)))

    mark.check(shifted(0.9e-3))
    with pytest.raises(BoxChanged, match="8 of 8 canaries"):
        mark.check(shifted(1.1e-3))
    mark.check(shifted(1.1e-3), tolerance=1.2e-3)


def test_labels_must_be_identical() -> None:
    mark = Fingerprint.take(QueryClient(counting("labels")), SHAPE)
    other = ScriptedBox(
        counting("labels"), at=0, act=lambda labels: torch.cat([labels[:3], (labels[3:4] + 1) % 3, labels[4:]])
    )
    with pytest.raises(BoxChanged, match="1 of 8 canaries moved, canary 3"):
        mark.check(QueryClient(other), tolerance=10.0)


def test_another_k_is_another_box() -> None:
    mark = Fingerprint.take(QueryClient(counting()), SHAPE)
    with pytest.raises(BoxChanged, match=r"\(8, 2\).*\(8, 3\)"):
        mark.check(QueryClient(LinearBox(WEIGHT[:2])))


@pytest.mark.parametrize(
    ("then", "now", "kind", "said"),
    [
        ([[0.0, 1.0], [2.0, 0.0]], [[0.001, 1.0], [2.0, 0.0]], "logits", None),
        (
            [[0, 10], [2, 0]],
            [[0, 10], [2, 0.31]],
            "logits",
            "1 of 2 canaries moved, canary 1 by 0.31 (at most",
        ),
        ([0, 1, 2], [0, 2, 0], "labels", "2 of 3 canaries moved, canary 2 by 2 (at most 0 allowed)"),
        ([0.0, 1.0], [0.0, np.nan], "values", "1 of 2 canaries moved, canary 1 by inf"),
        ([[1.0]], [[1.0, 2.0]], "values", "it answers the canaries with shape (1, 2), where it gave (1, 1)"),
        ([], [], "labels", None),
    ],
)
def test_answers_that_moved_are_told(then: list, now: list, kind: str, said: str | None) -> None:
    found = moved(np.array(then), np.array(now), kind)
    assert found == said if said is None or found is None else found.startswith(said)


def test_a_fingerprint_survives_json() -> None:
    for outputs in ("logits", "labels"):
        mark = Fingerprint.take(QueryClient(counting(outputs)), SHAPE)
        assert Fingerprint.from_dict(json.loads(json.dumps(mark.as_dict()))) == mark


def test_a_box_needs_nothing_but_a_spec_and_a_call() -> None:
    class Own:
        spec = BoxSpec("values")

        def __call__(self, x: Tensor) -> Tensor:
            return x.flatten(1).sum(1)

    x = images(5)
    assert torch.equal(QueryClient(Own(), batch_size=2)(x), x.flatten(1).sum(1))


def test_answers_are_laid_out_as_the_journal_returns_them(tmp_path):
    """A column-major answer would be summed in another order when it is replayed."""
    weight = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    box = as_blackbox(lambda x: (weight @ x.reshape(len(x), 4).T).T, outputs="values")
    client, x = QueryClient(box, ledger=tmp_path / "ledger.sqlite"), torch.rand(6, 1, 2, 2)
    with client.journal("scope", 0):
        bought = client(x)
    with client.journal("scope", 0):
        replayed = client(x)
    assert client.queries == 6
    assert torch.equal(bought, replayed)
    assert bought.stride() == replayed.stride() == (5, 1)


def test_a_single_pixel_cut_from_a_larger_tensor_is_journalled(tmp_path):
    client = QueryClient(as_blackbox(lambda x: np.ones((len(x), 2)), outputs="values"), ledger=tmp_path / "l.sqlite")
    with client.journal("scope", 0):
        client(torch.rand(4, 2, 2, 2)[:1, :1, :1, :1])
    assert client.queries == 1

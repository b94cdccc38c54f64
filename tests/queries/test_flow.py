"""A box is asked as fast as it bears and as is allowed, again where it was busy, and each attempt is counted once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from certibox.blackbox import BoxSpec, Endpoint, as_blackbox
from certibox.errors import BoxFailed, BudgetExceeded, InvalidInput, NotAnswered, Overloaded
from certibox.queries.client import QueryClient
from certibox.queries.flow import Clock, Gate, Patience, Rate
from servers import StandIn, stand_in

SHAPE = (1, 2, 2)
BUSY = (503, {}, b'{"error": "queue full"}')


@pytest.fixture(params=[True, False], ids=["ledger", "memory"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "ledger.sqlite" if request.param else None


def numbered(n: int) -> Tensor:
    """Images that differ in their first pixel, which the model answers with."""
    x = torch.zeros(n, *SHAPE)
    x[:, 0, 0, 0] = torch.arange(n) / 1024
    return x


def first_pixel(images: np.ndarray) -> np.ndarray:
    flat = images.reshape(len(images), -1).astype(np.float32)
    return np.stack([flat[:, 0], flat[:, 0] + 1], 1)


def expected(x: Tensor) -> Tensor:
    return torch.from_numpy(first_pixel(x.numpy()))


# --- the gate ---


def test_a_gate_doubles_until_it_is_overloaded_and_then_grows_by_one_a_round() -> None:
    gate, limits = Gate(64), []
    for _ in range(3):
        for _ in range(gate.limit):
            gate.went_well()
        limits.append(gate.limit)
    gate.overloaded(time.monotonic())
    limits.append(gate.limit)
    for _ in range(3):
        for _ in range(gate.limit):
            gate.went_well()
        limits.append(gate.limit)
    assert limits == [4, 8, 16, 8, 8, 9, 10]


def test_calls_that_began_before_a_gate_was_halved_do_not_halve_it_again() -> None:
    gate = Gate(16)
    for _ in range(20):
        gate.went_well()
    began = time.monotonic()
    for _ in range(5):
        gate.overloaded(began)
    assert gate.limit == 8
    gate.overloaded(time.monotonic())
    assert gate.limit == 4
    for _ in range(9):
        gate.overloaded(time.monotonic())
    assert gate.limit == 1


def test_no_more_hold_a_gate_than_its_limit() -> None:
    gate, inside, most = Gate(3), 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with gate:
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.0005)
                with lock:
                    inside -= 1
            gate.went_well()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 3


# --- rates ---


@pytest.mark.parametrize(
    ("given", "each_second", "of"),
    [
        ("200 images/s", 200.0, "images"),
        ("600 requests/min", 10.0, "requests"),
        ("1 image/h", 1 / 3600, "images"),
        (5, 5.0, "images"),
        ("2.5", 2.5, "images"),
    ],
)
def test_a_rate_is_read(given: Any, each_second: float, of: str) -> None:
    assert Rate.read(given) == Rate(each_second, of)


@pytest.mark.parametrize("given", ["fast", "0 images/s", -1, True, "5 images/year", float("nan")])
def test_what_is_no_rate_is_refused(given: Any) -> None:
    with pytest.raises(InvalidInput, match=r"rate is .*; wanted one such as 200 images/s"):
        QueryClient(as_blackbox(first_pixel, "logits"), rate=given)


def test_places_in_time_follow_one_another() -> None:
    clock = Clock()
    waits = [clock.slot(0.5) for _ in range(4)]
    assert waits == pytest.approx([0.0, 0.5, 1.0, 1.5], abs=0.05)


def test_a_rate_is_kept_by_all_clients_of_a_ledger(tmp_path: Path) -> None:
    box = as_blackbox(first_pixel, "logits", name="a", batch_size=5)
    clients = [QueryClient(box, ledger=tmp_path / "ledger.sqlite", rate="100 images/s") for _ in range(2)]
    began = time.monotonic()
    threads = [threading.Thread(target=client, args=(numbered(15),)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    assert 0.25 <= took < 1.0  # 30 images in batches of 5: the last of 6 batches waits for 25 images


def test_a_rate_of_requests_counts_requests() -> None:
    assert [Rate(10, of).seconds(32) for of in ("images", "requests")] == [3.2, 0.1]


# --- patience ---


def test_pauses_double_and_end() -> None:
    patience, pauses = Patience(3600.0), []
    for _ in range(12):
        pause = patience.pause(None)
        assert pause is not None
        pauses.append(pause)
    for i, pause in enumerate(pauses):
        assert 0.5 * min(30, 0.25 * 2**i) <= pause <= min(30, 0.25 * 2**i)


def test_a_server_that_names_a_time_is_waited_for_or_given_up() -> None:
    for _ in range(20):
        pause = Patience(60.0).pause(7.0)
        assert pause is not None
        assert 7.0 < pause <= 7.75
    assert Patience(60.0).pause(61.0) is None
    assert Patience(0.0).pause(None) is None


# --- a box that is busy ---


class Busy:
    """A function of images that is too busy for its first calls."""

    def __init__(self, times: int, after: float | None = 0.0) -> None:
        self.times, self.after, self.calls = times, after, 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self.calls <= self.times:
            raise Overloaded("the queue is full", self.after)
        return first_pixel(images)


def test_a_busy_box_is_asked_again_and_each_attempt_is_counted(ledger: Path | None) -> None:
    busy = Busy(3)
    client = QueryClient(as_blackbox(busy, "logits", name="busy"), budget=4, ledger=ledger)
    x = numbered(4)
    assert torch.equal(client(x), expected(x))
    assert (busy.calls, client.attempts, client.queries, client.lost, client.left) == (4, 16, 4, 0, 0)


def test_a_box_that_stays_busy_is_given_up_and_costs_nothing(ledger: Path | None) -> None:
    client = QueryClient(as_blackbox(Busy(10**9, 5.0), "logits", name="busy"), budget=4, ledger=ledger, wait=1.0)
    began = time.monotonic()
    with pytest.raises(NotAnswered, match=r"asks to wait 5 seconds.*asked again for 1 seconds"):
        client(numbered(4))
    assert time.monotonic() - began < 1.0
    assert (client.queries, client.lost, client.left) == (0, 0, 4)


def test_a_refusal_that_is_not_of_the_moment_is_not_repeated() -> None:
    calls = []

    def refuse(images: np.ndarray) -> np.ndarray:
        calls.append(len(images))
        raise NotAnswered("no such model")

    with pytest.raises(NotAnswered, match="no such model"):
        QueryClient(as_blackbox(refuse, "logits"))(numbered(2))
    assert calls == [2]


@pytest.mark.parametrize("fault", [BUSY, (429, {"Retry-After": "0"}, b"")], ids=["503", "429"])
def test_what_was_surely_not_answered_is_sent_again(server: StandIn, ledger: Path | None, fault: Any) -> None:
    client = QueryClient(as_blackbox(server.serve_model(first_pixel), "logits", batch_size=8), ledger=ledger, budget=40)
    x = numbered(40)
    server.faults = [fault] * 4
    assert torch.equal(client(x), expected(x))
    assert (client.queries, client.lost, server.images) == (40, 0, 40)
    assert client.attempts == 40 + 4 * 8


def test_a_server_that_comes_back_is_asked_again() -> None:
    with stand_in() as server:
        url, port = (
            server.serve_json("/ask", lambda asked: {"predictions": asked["instances"]}),
            server.http.server_port,
        )
    client = QueryClient(as_blackbox(Endpoint(url, image="flat"), "logits"))
    x = numbered(3)
    waiting = threading.Thread(target=lambda: got.append(client(x)))
    got: list[Tensor] = []
    waiting.start()
    time.sleep(0.4)
    with stand_in(port) as again:
        again.serve_json("/ask", lambda asked: {"predictions": asked["instances"]})
        waiting.join()
    assert torch.equal(got[0], x.flatten(1))
    assert (client.queries, client.lost, again.requests) == (3, 0, 1)
    assert client.attempts >= 6


# --- several calls at once ---


def test_many_calls_at_once_keep_their_order(server: StandIn, ledger: Path | None) -> None:
    server.delay = 0.01
    box = as_blackbox(server.serve_model(first_pixel), "logits", batch_size=4, concurrency=6)
    client = QueryClient(box, ledger=ledger)
    x = numbered(200)
    assert torch.equal(client(x), expected(x))
    assert 3 <= server.most_at_once <= 6
    assert (client.queries, server.images, server.requests) == (200, 200, 50)


def delayed(by: Callable[[np.ndarray], float]) -> Callable[[np.ndarray], np.ndarray]:
    def model(images: np.ndarray) -> np.ndarray:
        time.sleep(by(images))
        return first_pixel(images)

    return model


def test_answers_that_come_in_another_order_are_not_mixed_up() -> None:
    rng = np.random.default_rng(0)
    box = as_blackbox(delayed(lambda _: rng.random() * 0.01), "logits", batch_size=3, concurrency=7)
    x = numbered(120)
    assert torch.equal(QueryClient(box)(x), expected(x))


def test_a_budget_that_pays_for_all_of_a_call_is_enough(ledger: Path | None) -> None:
    box = as_blackbox(delayed(lambda _: 0.002), "logits", name="a", batch_size=4, concurrency=5)
    client = QueryClient(box, budget=100, ledger=ledger)
    client(numbered(100))
    with pytest.raises(BudgetExceeded):
        client(numbered(1))
    assert client.queries == 100
    short = QueryClient(box, budget=99)
    with pytest.raises(BudgetExceeded):
        short(numbered(100))
    assert short.queries == 0


def test_an_error_lets_those_under_way_end_and_begins_no_more(ledger: Path | None) -> None:
    def model(images: np.ndarray) -> np.ndarray:
        if images[0, 0, 0, 0] == np.float32(8 / 1024):
            raise RuntimeError("broken")
        time.sleep(0.02)
        return first_pixel(images)

    client = QueryClient(as_blackbox(model, "logits", name="a", batch_size=4, concurrency=3), ledger=ledger)
    with pytest.raises(BoxFailed, match="broken"):
        client(numbered(400))
    assert client.lost == 4
    assert 8 <= client.queries <= 24
    assert client.attempts == client.queries + client.lost


def test_what_was_paid_before_an_error_is_replayed(tmp_path: Path) -> None:
    broken, seen = [True], []

    def model(images: np.ndarray) -> np.ndarray:
        if broken[0] and images[0, 0, 0, 0] == np.float32(8 / 1024):
            raise NotAnswered("not yet")
        seen.extend((images[:, 0, 0, 0] * 1024).astype(int).tolist())
        time.sleep(0.01)
        return first_pixel(images)

    client = QueryClient(
        as_blackbox(model, "logits", name="a", batch_size=4, concurrency=3), ledger=tmp_path / "ledger.sqlite"
    )
    x = numbered(40)
    with client.journal("work", 0) as journal:
        with pytest.raises(NotAnswered, match="not yet"):
            client(x)
        assert journal is not None
        assert journal.position == 0
        broken[0] = False
        assert torch.equal(client(x), expected(x))
        assert journal.position == 10
    assert sorted(seen) == list(range(40))  # each image was asked about once
    assert client.queries == 40


def test_a_phase_holds_in_the_threads_that_send(server: StandIn) -> None:
    client = QueryClient(as_blackbox(server.serve_model(first_pixel), "logits", batch_size=2, concurrency=4))
    with client.phase("mine"):
        client(numbered(20))
    assert client.spent == {"mine": 20}


def test_a_gate_follows_what_the_server_bears(server: StandIn) -> None:
    """A server that refuses whatever is beyond 3 at once is asked about everything, and mostly by 3 at once."""
    inside, lock = [0], threading.Lock()

    def model(images: np.ndarray) -> np.ndarray:
        time.sleep(0.01)
        return first_pixel(images)

    url = server.serve_model(model)
    infer = server.answers["/v2/models/m/infer"]

    def guarded(headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        with lock:
            inside[0] += 1
            full = inside[0] > 3
        try:
            return BUSY if full else infer(headers, body)
        finally:
            with lock:
                inside[0] -= 1

    server.answers["/v2/models/m/infer"] = guarded
    box = as_blackbox(url, "logits", batch_size=1, concurrency=32)
    client = QueryClient(box)
    x = numbered(150)
    assert torch.equal(client(x), expected(x))
    assert (client.queries, client.lost, server.images) == (150, 0, 150)
    assert client.attempts < 150 + 60


def test_a_box_declares_that_it_takes_several_calls() -> None:
    assert BoxSpec("logits").concurrency == 1


def test_the_error_that_is_shown_is_the_one_that_ended_the_call() -> None:
    """Not the refusal of a batch before it, which was given up because of that error."""
    refused = threading.Event()

    def model(images: np.ndarray) -> np.ndarray:
        if images[0, 0, 0, 0] == 0:
            refused.set()
            raise Overloaded("full", after=5.0)
        refused.wait()
        raise OSError("the wire was cut")

    client = QueryClient(as_blackbox(model, "logits", name="a", batch_size=1, concurrency=2))
    with pytest.raises(BoxFailed, match="the wire was cut"):
        client(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1))
    assert (client.queries, client.lost) == (0, 1)

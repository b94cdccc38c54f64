"""One client, many threads and tasks: nothing is spent twice, miscounted, mixed up or booked under another's name."""

from __future__ import annotations

import asyncio
import contextvars
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from certibox.blackbox import BoxSpec, as_blackbox
from certibox.errors import BadOutput, BoxFailed, BudgetExceeded, CertiboxError, InvalidInput, NotAnswered
from certibox.queries.client import QueryClient
from certibox.queries.meter import Meter, Tally
from doubles import CountingBox, LinearBox

WEIGHT = torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.0, 1.0, 1.0, -1.0], [2.0, 0.25, -1.0, 1.0]])
THREADS = 16


@pytest.fixture(autouse=True)
def _many_switches() -> Iterator[None]:
    """Threads take turns after every few instructions, so that what is not guarded goes wrong soon."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(params=["memory", "ledger"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "ledger.sqlite" if request.param == "ledger" else None


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand((n, 1, 2, 2), generator=torch.Generator().manual_seed(seed))


def counting(concurrency: int = 1) -> CountingBox:
    box = CountingBox(LinearBox(WEIGHT))
    box.spec = replace(box.spec, concurrency=concurrency)
    return box


def at_once(jobs: list[Callable[[], Any]]) -> list[Any]:
    """Results of jobs that start together, each in a thread of its own; exceptions are results too."""
    start = threading.Barrier(len(jobs))
    found: list[Any] = [None] * len(jobs)

    def run(place: int) -> None:
        start.wait()
        try:
            found[place] = jobs[place]()
        except BaseException as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("concurrency", [1, 4, THREADS])
def test_threads_together_spend_the_budget_and_not_one_query_more(ledger: Path | None, concurrency: int) -> None:
    box = counting(concurrency)
    client = QueryClient(box, budget=100, ledger=ledger, batch_size=3)

    def spend() -> int:
        answered = 0
        for seed in range(20):
            with suppress(BudgetExceeded):
                answered += len(client(images(2, seed)))
        return answered

    answered = at_once([spend] * THREADS)
    assert sum(answered) == box.images == client.queries == client.attempts == client.delivered == 100
    assert (client.left, client.lost, client.spent) == (0, 0, {"query": 100})
    if ledger:
        assert QueryClient(box, 100, ledger).left == 0


@pytest.mark.parametrize("concurrency", [1, THREADS])
def test_threads_whose_box_raises_after_it_billed_do_not_overspend_together(
    ledger: Path | None, concurrency: int
) -> None:
    class Failing(CountingBox):
        def __call__(self, x: Tensor) -> Tensor:
            answer = super().__call__(x)
            if x[0, 0, 0, 0] > 0.5:
                raise TimeoutError
            if len(x) == 1:
                raise NotAnswered
            return answer

    box = Failing(LinearBox(WEIGHT))
    box.spec = replace(box.spec, concurrency=concurrency)
    client = QueryClient(box, budget=100, ledger=ledger)

    def spend() -> int:
        answered = 0
        for seed in range(20):
            with suppress(BudgetExceeded, BoxFailed, NotAnswered):
                answered += len(client(images(1 + seed % 3, seed)))
        return answered

    answered = at_once([spend] * THREADS)
    assert sum(answered) == client.queries
    assert client.attempts == box.images
    assert 98 <= client.queries + client.lost <= 100
    assert client.left == 100 - client.queries - client.lost
    if ledger:
        again = QueryClient(box, 100, ledger)
        assert (again.queries, again.attempts, again.lost) == (client.queries, client.attempts, client.lost)


def test_a_slow_box_is_not_oversold_while_its_answers_are_awaited() -> None:
    """Queries in flight count against the budget before they are answered."""

    class Slow(CountingBox):
        def __call__(self, x: Tensor) -> Tensor:
            time.sleep(0.01)
            return super().__call__(x)

    box = Slow(LinearBox(WEIGHT))
    box.spec = replace(box.spec, concurrency=THREADS)
    client = QueryClient(box, budget=10)
    found = at_once([lambda: client(images(1))] * THREADS)
    assert sum(isinstance(answer, BudgetExceeded) for answer in found) == THREADS - 10
    assert box.images == client.queries == 10


def test_every_thread_gets_its_own_answers(ledger: Path | None) -> None:
    client = QueryClient(counting(4), ledger=ledger, batch_size=3)

    def ask(seed: int) -> bool:
        x = images(7, seed)
        return all(torch.equal(client(x), LinearBox(WEIGHT)(x)) for _ in range(5))

    assert at_once([lambda seed=seed: ask(seed) for seed in range(8)]) == [True] * 8
    assert client.queries == 8 * 5 * 7


def test_each_thread_books_its_own_phase(ledger: Path | None) -> None:
    client = QueryClient(counting(), ledger=ledger)

    def work(name: str, n: int) -> None:
        for _ in range(10):
            with client.phase(name):
                client(images(n))
                with client.phase(f"{name}, inner"):
                    client(images(1))

    assert at_once([lambda n=n: work(f"thread {n}", n) for n in range(1, 5)]) == [None] * 4
    expected = {f"thread {n}": 10 * n for n in range(1, 5)} | {f"thread {n}, inner": 10 for n in range(1, 5)}
    assert client.spent == expected
    if client.ledger:
        assert client.ledger.by_phase() == expected


def test_a_new_thread_starts_outside_of_every_phase_unless_it_runs_in_a_copy_of_the_context() -> None:
    client = QueryClient(counting())
    with client.phase("outer"), ThreadPoolExecutor(1) as pool:
        pool.submit(client, images(1)).result()
        pool.submit(contextvars.copy_context().run, client, images(2)).result()
        client(images(4))
    assert client.spent == {"query": 1, "outer": 6}


def test_asyncio_tasks_book_each_their_own(ledger: Path | None) -> None:
    client = QueryClient(counting(), ledger=ledger)

    async def work(name: str, n: int) -> None:
        with client.phase(name):
            for _ in range(5):
                client(images(n))
                await asyncio.sleep(0)  # the others go on inside their own phases
                await asyncio.to_thread(client, images(n))

    async def main() -> None:
        with client.phase("main"):
            tasks: list[asyncio.Task[Any]] = [asyncio.create_task(work(f"task {n}", n)) for n in (1, 2, 3)]
            inherits = asyncio.create_task(asyncio.to_thread(client, images(7)))
            await asyncio.gather(*tasks, inherits)
            client(images(11))

    asyncio.run(main())
    client(images(13))
    assert client.spent == {"task 1": 10, "task 2": 20, "task 3": 30, "main": 18, "query": 13}


def test_phases_of_two_clients_do_not_mix() -> None:
    one, other = QueryClient(counting()), QueryClient(counting())
    with one.phase("one"):
        other(images(1))
        with other.phase("other"):
            one(images(2))
            other(images(3))
    assert (one.spent, other.spent) == ({"one": 2}, {"query": 1, "other": 3})


def test_a_journal_replays_its_work_whatever_other_threads_ask(tmp_path: Path) -> None:
    path, batches = tmp_path / "ledger.sqlite", [images(n, seed) for seed, n in enumerate((3, 1, 4, 2) * 5)]
    bought: list[list[Tensor]] = []
    for _ in range(2):  # the second replays the first
        box = counting()
        client, done = QueryClient(box, ledger=path, batch_size=3), threading.Event()

        def work(client: QueryClient = client, done: threading.Event = done) -> list[Tensor]:
            try:
                with client.journal("work", 0), client.phase("work"):
                    return [client(x) for x in batches]
            finally:
                done.set()

        def disturb(client: QueryClient = client, done: threading.Event = done) -> int:
            asked = 0
            while not done.is_set() or asked < 10:
                client(batches[asked % len(batches)])
                asked += len(batches[asked % len(batches)])
            return asked

        answers, *asked = at_once([work, disturb, disturb])
        bought.append(answers)
        assert box.images == sum(asked) + (sum(map(len, batches)) if len(bought) == 1 else 0)
        assert client.spent["work"] == sum(map(len, batches))
    for first, second, x in zip(*bought, batches, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, torch.cat([LinearBox(WEIGHT)(part) for part in x.split(3)]))


def test_counting_counts_the_answers_of_one_caller(tmp_path: Path) -> None:
    client = QueryClient(counting(), ledger=tmp_path / "ledger.sqlite")

    def ask(n: int) -> int:
        with client.counting() as tally:
            for _ in range(10):
                client(images(n))
                with client.counting() as inner:
                    client(images(1))
                assert inner.delivered == 1
            return tally.delivered

    assert at_once([lambda n=n: ask(n) for n in (1, 2, 3, 4)]) == [20, 30, 40, 50]
    for _ in range(2):
        with client.counting() as tally, client.journal("work", 0):
            client(images(5))
        assert tally.delivered == 5  # replayed or bought


@pytest.mark.parametrize(("declared", "most"), [(1, 1), (3, 3)])
def test_a_box_is_called_as_often_at_once_as_it_declares(declared: int, most: int) -> None:
    inside, seen, lock = [0], [], threading.Lock()

    class Watched:
        spec = BoxSpec("values", concurrency=declared)

        def __call__(self, x: Tensor) -> Tensor:
            with lock:
                inside[0] += 1
                seen.append(inside[0])
            time.sleep(0.005)
            with lock:
                inside[0] -= 1
            return x.flatten(1)

    box = Watched()
    one, other = QueryClient(box), QueryClient(box)  # the turns are the box's, not the client's
    at_once([lambda: one(images(1)), lambda: other(images(1))] * 6)
    assert max(seen) == most


def test_a_box_may_ask_itself() -> None:
    class Recursive:
        spec = BoxSpec("values")

        def __call__(self, x: Tensor) -> Tensor:
            return client(x[1:]).sum(0).expand(len(x), -1) + x[:1].flatten(1) if len(x) > 1 else x.flatten(1)

    client = QueryClient(Recursive())
    x = images(3)
    assert client(x).shape == (3, 4)
    assert client.queries == 6


def test_threads_that_wait_for_their_turn_have_booked_nothing(tmp_path: Path) -> None:
    """A killed process loses the batch in flight, not those that were waiting."""
    path, gate, entered = tmp_path / "ledger.sqlite", threading.Event(), threading.Event()

    class Gated:
        spec = BoxSpec("values")

        def __call__(self, x: Tensor) -> Tensor:
            entered.set()
            gate.wait(10)
            return x.flatten(1)

    client = QueryClient(Gated(), ledger=path)
    threads = [threading.Thread(target=client, args=(images(2),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    entered.wait(10)
    time.sleep(0.02)
    with closing(sqlite3.connect(path)) as reader:
        assert reader.execute("SELECT attempted, answered FROM spend").fetchall() == [(2, None)]
    gate.set()
    for thread in threads:
        thread.join()
    assert client.queries == 8


def test_first_answers_of_two_shapes_at_the_same_time_are_no_answers_of_one_box() -> None:
    together = threading.Barrier(2)

    class Two:
        spec = BoxSpec("values", concurrency=2)

        def __call__(self, x: Tensor) -> Tensor:
            together.wait(10)
            return x.flatten(1)[:, : len(x)]

    client = QueryClient(Two())
    found = at_once([lambda: client(images(2)), lambda: client(images(3))])
    assert sum(isinstance(answer, BadOutput) for answer in found) == 1
    assert client.queries == 5  # paid for all the same


def test_an_interruption_loses_its_own_batch_only(ledger: Path | None) -> None:
    class Stopping(CountingBox):
        def __call__(self, x: Tensor) -> Tensor:
            if len(x) == 3:
                raise KeyboardInterrupt
            return super().__call__(x)

    client = QueryClient(Stopping(LinearBox(WEIGHT)), budget=50, ledger=ledger)
    found = at_once([lambda n=n: client(images(n)) for n in (1, 2, 3, 4)])
    assert isinstance(found[2], KeyboardInterrupt)
    assert (client.queries, client.attempts, client.lost, client.left) == (7, 10, 3, 40)


class Slow(int):
    """An int that lets other threads go on in the middle of being added or taken away."""

    def __radd__(self, other: int) -> int:
        time.sleep(1e-4)
        return other + int(self)

    def __rsub__(self, other: int) -> int:
        time.sleep(1e-4)
        return other - int(self)


def test_no_count_is_lost_between_reading_and_writing() -> None:
    n, meter = Slow(3), Meter((0, 0, 0), {})

    def work() -> None:
        for _ in range(5):
            meter.reserve(n, n, 10**6)
            meter.attempt(n)
            meter.settle("phase", n, n)
            meter.reserve(n, n, 10**6)
            meter.lose(n)
            meter.reserve(n, n, 10**6)
            meter.cancel(n)
            meter.deliver(n, (tally,))
            meter.pass_white(n)

    tally = Tally()
    assert at_once([work] * 8) == [None] * 8
    counts = (meter.answered, meter.attempted, meter.lost, meter.delivered, meter.white_passes, tally.delivered)
    assert counts == (120,) * 6
    assert (meter.in_flight, meter.batches, meter.spent, meter.committed()) == (0, 40, {"phase": 120}, 240)


# --- closing ----------------------------------------------------------------------------------------------------------


def test_a_closed_client_says_so_in_one_line(ledger: Path | None) -> None:
    box = counting()
    with QueryClient(box, budget=10, ledger=ledger) as client:
        client(images(4))
    client.close()  # again
    with pytest.raises(InvalidInput, match=r"^the client is closed; make another: ") as caught:
        client(images(1))
    assert "\n" not in str(caught.value)
    assert (box.images, client.queries, client.attempts, client.spent) == (4, 4, 4, {"query": 4})
    assert "closed" in repr(client)
    if (book := client.ledger) is not None:
        for use in (lambda: client.left, book.totals, lambda: book.forget("scope", 1)):
            with pytest.raises(InvalidInput, match=r"ledger\.sqlite is closed; open it again"):
                use()
        assert repr(client.ledger) == f"Ledger({ledger}, closed)"
        assert QueryClient(box, 10, ledger).left == 6


def test_a_batch_in_flight_is_settled_after_close(ledger: Path | None) -> None:
    entered, gate = threading.Event(), threading.Event()

    class Gated(CountingBox):
        def __call__(self, x: Tensor) -> Tensor:
            entered.set()
            gate.wait(10)
            return super().__call__(x)

    client = QueryClient(Gated(LinearBox(WEIGHT)), ledger=ledger, batch_size=2)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client, images(4))
        entered.wait(10)
        client.close()
        gate.set()
        with pytest.raises(InvalidInput, match="the client is closed"):  # before its second batch
            asked.result()
    assert (client.queries, client.lost) == (2, 0)
    if ledger:
        assert repr(client.ledger) == f"Ledger({ledger}, closed)"
        assert QueryClient(counting(), ledger=ledger).queries == 2


def test_any_thread_reads_what_is_left(tmp_path: Path) -> None:
    client = QueryClient(counting(), budget=9, ledger=tmp_path / "ledger.sqlite")
    assert at_once([lambda: client.left, lambda: client.ledger and client.ledger.totals()]) == [9, (0, 0, 0)]


def test_the_number_of_images_at_a_time_may_change_between_two_batches() -> None:
    box = counting()
    client = QueryClient(box, batch_size=2)
    client(images(5))
    client.batch_size = 4
    client(images(5))
    assert box.batch_sizes == [2, 2, 1, 4, 1]
    with pytest.raises(InvalidInput, match="batch_size is 0; wanted a whole number of at least 1"):
        client.batch_size = 0

    class Growing(CountingBox):
        def __call__(self, x: Tensor) -> Tensor:
            client.batch_size *= 2
            return super().__call__(x)

    box = Growing(LinearBox(WEIGHT))
    box.spec = replace(box.spec, max_batch=5)
    client = QueryClient(box, batch_size=1)
    assert torch.equal(client(images(20)), LinearBox(WEIGHT)(images(20)))
    assert box.batch_sizes == [1, 2, 4, 5, 5, 3]


def test_a_torch_module_that_must_give_up_its_layout_may_be_asked_by_several_threads() -> None:
    class Viewing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            features = self.conv(x)
            together.wait(10)  # both have been laid out before either finds out
            return features.view(len(x), -1)

    for _ in range(3):
        together = threading.Barrier(2)
        module = Viewing()
        client = QueryClient(as_blackbox(module, "values", concurrency=2))
        found = at_once([lambda client=client: client(images(4))] * 2)
        expected = module.conv(images(4)).flatten(1).detach()
        assert all(not isinstance(answer, CertiboxError) for answer in found), found
        for answer in found:
            torch.testing.assert_close(answer, expected)

"""Shared batches: the votes of a request are those it would get alone, whoever else asks, fails, leaves or waits."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from random import Random
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from certibox.certification.noise import NEWEST
from certibox.certification.pieces import Certifying, Drawn, Poll
from certibox.certification.sampling import Sampling
from certibox.certification.smoothing import SmoothedClassifier
from certibox.confidence.ranks import RankVerification
from certibox.confidence.sequential import EProcess
from certibox.errors import BoxFailed, BudgetExceeded, NotAnswered
from certibox.serving.engine import Engine
from certibox.serving.shares import shared
from certibox.serving.tickets import Full, Stopped, Ticket, TimedOut
from gateways import SIGMA, Bright, images_of, smoothed_of

SAMPLING = Sampling(25, 600, 0.001, EProcess(radii=(SIGMA / 2, SIGMA)), spent=True)
GREYS = (0.05, 0.3, 0.49, 0.55, 0.8, 0.95)


def certifying(smoothed: SmoothedClassifier, grey: float, seed: int = 0) -> Certifying:
    return smoothed.begin(images_of(grey)[0], SAMPLING, Drawn(smoothed.law, seed, NEWEST))


@contextmanager
def engine(smoothed: SmoothedClassifier, batch_size: int = 1000, most: int = 100, **more: Any) -> Iterator[Engine]:
    made = Engine(smoothed.batches(batch_size), most, **more)
    try:
        yield made
    finally:
        made.stop()


def waited(condition: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.002)


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("batch_size", [7, 100, 1000])
def test_votes_are_those_of_a_certificate_alone(batch_size: int, concurrency: int) -> None:
    box = Bright(concurrency=concurrency)
    smoothed = smoothed_of(box, batch_size=batch_size)
    alone = [smoothed.certify(images_of(grey)[0], sampling=SAMPLING, seed=3) for grey in GREYS]
    with engine(smoothed, batch_size) as one:
        tickets = [
            Ticket([certifying(smoothed, grey, 3) for grey in greys]) for greys in (GREYS[:1], GREYS[1:4], GREYS[4:])
        ]
        for ticket in tickets:
            one.begin(ticket)
        for ticket in tickets:
            ticket.done.result(30)
        made = [poll.certificate() for ticket in tickets for poll in ticket.polls]  # pyright: ignore
    assert made == alone
    assert [ticket.asked[i] for ticket in tickets for i in range(len(ticket.polls))] == [one.queries for one in alone]
    assert max(box.sizes) <= batch_size


def test_predictions_and_certificates_share_batches() -> None:
    smoothed = smoothed_of(Bright())
    drawn, rule = Drawn(smoothed.law, 1, NEWEST), RankVerification()
    x = images_of(0.9)[0]
    alone = smoothed.predict(x, n=500, alpha=0.01, seed=1, rule=rule, n0=5)
    with engine(smoothed) as one:
        poll = smoothed.begin_prediction(x, 5, 500, 0.01, rule, drawn)
        ticket = Ticket([poll, certifying(smoothed, 0.1)])
        one.begin(ticket)
        ticket.done.result(30)
    assert poll.prediction() == alone
    assert ticket.asked[0] == alone.queries


@given(st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=4), min_size=1, max_size=8), st.integers(1, 300))
def test_a_batch_is_shared_evenly(wants: list[list[int]], room: int) -> None:
    """Nobody gets less than another who got all that it wanted, but for what one sample cannot divide."""
    tickets = []
    for ticket in wants:
        polls = []
        for wanted in ticket:
            poll = Poll(images_of(0.5)[0], Drawn(SimpleNamespace(), 0, NEWEST), 3)  # pyright: ignore
            poll.want("estimate", 0, wanted)
            polls.append(poll)
        tickets.append(polls)
    parts = shared(tickets, room)
    got = Counter()
    for poll, piece in parts:
        got[id(poll)] += piece.stop - piece.start
    totals = [(sum(got[id(poll)] for poll in polls), sum(ticket)) for polls, ticket in zip(tickets, wants, strict=True)]
    assert sum(some for some, _ in totals) == min(room, sum(map(sum, wants)))
    short = [some for some, wanted in totals if some < wanted]
    assert not short or min(short) >= max(some for some, _ in totals) - 1
    assert len(parts) == len(got)  # the pieces of an image are one


def test_a_late_request_is_not_behind_all_that_came_before() -> None:
    box = Bright()
    smoothed = smoothed_of(box, batch_size=100)
    with engine(smoothed, 100) as one:
        box.free.clear()
        large = Ticket([certifying(smoothed, grey, 1) for grey in (0.05, 0.95) * 10])
        one.begin(large)
        waited(lambda: one._under_way)
        small = Ticket([certifying(smoothed, 0.05, 2)])
        one.begin(small)
        box.free.set()
        small.done.result(30)
        assert not large.done.done()
        large.done.result(30)


def test_a_failing_batch_ends_its_own_requests_alone() -> None:
    box = Bright()
    smoothed = smoothed_of(box)
    told = []
    with engine(smoothed, told=lambda error, samples: told.append((type(error), samples))) as one:
        box.free.clear()
        first = Ticket([certifying(smoothed, 0.05)])
        one.begin(first)
        waited(lambda: one._under_way)
        box.errors.append(RuntimeError("no"))
        second = Ticket([certifying(smoothed, 0.95)])
        one.begin(second)
        box.free.set()
        with pytest.raises(BoxFailed):
            first.done.result(30)
        second.done.result(30)
    assert first.asked[0] == told[0][1] > 0  # they may have been billed
    assert told[0][0] is BoxFailed
    assert {kind for kind, _ in told[1:]} == {type(None)}


def test_what_the_box_refuses_is_given_back() -> None:
    box, booked = Bright(), list[dict[str, int]]()
    smoothed = smoothed_of(box)
    box.errors.append(NotAnswered("busy"))
    with engine(smoothed, booked=lambda counts: booked.append(dict(counts))) as one:
        ticket = Ticket([certifying(smoothed, 0.05)], account="shop")
        one.begin(ticket)
        with pytest.raises(NotAnswered):
            ticket.done.result(30)
    assert ticket.asked.total() == 0
    assert [sum(counts.values()) for counts in booked] == [booked[0]["shop"], -booked[0]["shop"]]


def test_a_booking_that_fails_sends_nothing() -> None:
    box = Bright()
    smoothed = smoothed_of(box)

    def booked(counts: Any) -> None:
        raise OSError("disk full")

    with engine(smoothed, booked=booked) as one:
        ticket = Ticket([certifying(smoothed, 0.05)], account="shop")
        one.begin(ticket)
        with pytest.raises(NotAnswered, match="disk full"):
            ticket.done.result(30)
    assert (box.sizes, ticket.asked.total()) == ([], 0)


def test_all_that_is_sent_is_paid_for_whoever_leaves_meanwhile() -> None:
    box, paid, random = Bright(concurrency=2), Counter[str](), Random(0)
    smoothed = smoothed_of(box)

    def booked(counts: Any) -> None:
        time.sleep(0.002)
        paid.update(counts)

    with engine(smoothed, 40, 1000, booked=booked) as one:
        tickets = [Ticket([certifying(smoothed, 0.45, i)], account=f"shop {i % 3}") for i in range(40)]
        for ticket in tickets:
            one.begin(ticket)
            time.sleep(0.002 * random.random())
            one.cancel(random.choice(tickets[: tickets.index(ticket) + 1]))
        for ticket in tickets:
            with suppress(Stopped):
                ticket.done.result(30)
        waited(lambda: not one._under_way)
    asked = Counter[str]()
    for ticket in tickets:
        asked[str(ticket.account)] += ticket.asked.total()
    assert asked == paid
    assert paid.total() == sum(box.sizes)


def test_what_is_paid_and_what_is_reserved_never_miss_samples_together() -> None:
    box, paid = Bright(), Counter[str]()
    smoothed = smoothed_of(box)

    def booked(counts: Any) -> None:
        time.sleep(0.002)
        paid.update(counts)
        time.sleep(0.002)

    with engine(smoothed, 40, booked=booked) as one:
        one.begin(ticket := Ticket([certifying(smoothed, grey, i) for i, grey in enumerate((0.4, 0.45))], "shop"))
        seen: list[int] = []
        while not ticket.done.done():
            with one._change:  # as whoever asks whether another request may come in
                seen.append(paid["shop"] + one.reserved("shop"))
        seen.append(paid["shop"])
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == ticket.asked.total()


def test_a_budget_that_is_spent_by_others_gives_back_what_was_not_sent() -> None:
    box, booked = Bright(), list[dict[str, int]]()
    smoothed = smoothed_of(box, budget=30)
    with engine(smoothed, booked=lambda counts: booked.append(dict(counts))) as one:
        one.begin(ticket := Ticket([certifying(smoothed, 0.45)], account="shop"))
        with pytest.raises(BudgetExceeded):
            ticket.done.result(30)
    assert sum(sum(counts.values()) for counts in booked) == sum(box.sizes) == ticket.asked.total()


def test_more_images_than_are_taken_are_refused_before_a_query() -> None:
    box = Bright()
    smoothed = smoothed_of(box)
    with engine(smoothed, most=3) as one:
        box.free.clear()
        first = Ticket([certifying(smoothed, grey) for grey in (0.05, 0.95)])
        one.begin(first)
        with pytest.raises(Full) as refused:
            one.begin(Ticket([certifying(smoothed, grey) for grey in (0.1, 0.9)]))
        assert 1 <= refused.value.seconds <= 60
        third = Ticket([certifying(smoothed, 0.9)])
        one.begin(third)
        box.free.set()
        first.done.result(30)
        third.done.result(30)
        one.begin(alone := Ticket([certifying(smoothed, 0.2, i) for i in range(5)]))  # nobody else is there
        alone.done.result(30)


def test_time_ends_votes_with_what_they_have_proven() -> None:
    box = Bright()
    smoothed = smoothed_of(box)
    whole = smoothed.certify(images_of(0.7)[0], sampling=SAMPLING, seed=5)
    assert whole.looks is not None
    assert len(whole.looks) > 4
    with engine(smoothed) as one:
        poll = certifying(smoothed, 0.7, 5)
        ticket = Ticket([poll], changed=lambda: box.free.clear() if len(poll.looks) == 3 else None)
        one.begin(ticket)
        waited(lambda: len(poll.looks) == 3 and one._sending)  # the votes of a fourth are under way
        one.time_out(ticket)
        ticket.done.result(1)
        made = poll.certificate()
        box.free.set()
        waited(lambda: not one._under_way)
    assert ticket.ended
    assert made.looks == whole.looks[:3]
    assert poll.certificate() == made  # what came late is left out
    assert made.replay() == made
    assert ticket.asked[0] > made.queries  # and was asked all the same


def test_time_that_ends_before_a_look_is_an_error() -> None:
    box = Bright()
    smoothed = smoothed_of(box)
    with engine(smoothed) as one:
        box.free.clear()
        ticket = Ticket([certifying(smoothed, 0.7)])
        one.begin(ticket)
        one.time_out(ticket)
        with pytest.raises(TimedOut):
            ticket.done.result(1)
        box.free.set()


def test_nobody_pays_for_samples_that_nobody_waits_for() -> None:
    box = Bright()
    smoothed = smoothed_of(box, batch_size=50)
    with engine(smoothed, 50) as one:
        box.free.clear()
        first, second = (Ticket([certifying(smoothed, grey, 1)]) for grey in (0.05, 0.95))
        one.begin(first)
        waited(lambda: one._under_way)
        one.begin(second)
        one.cancel(second)
        with pytest.raises(Stopped):
            second.done.result(1)
        box.free.set()
        first.done.result(30)
        assert second.asked.total() == 0
        assert sum(box.sizes) == first.asked.total()
        assert one.images == 0


def test_what_is_reserved_is_what_may_still_be_asked() -> None:
    box = Bright()
    smoothed = smoothed_of(box)
    with engine(smoothed) as one:
        box.free.clear()
        ticket = Ticket([certifying(smoothed, grey) for grey in (0.05, 0.5)], account="shop")
        assert ticket.reserved == 2 * 625
        one.begin(ticket)
        waited(lambda: ticket.asked.total())
        assert one.reserved("shop") == 1250 - ticket.asked.total()
        assert one.reserved() == 1250  # a budget of the box may not count yet what is under way
        assert one.reserved("other") == 0
        box.free.set()
        ticket.done.result(30)
        assert one.reserved() == 0


def test_nothing_is_kept_of_batches_of_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certibox.serving.engine.RECENT", 0.0)
    smoothed = smoothed_of(Bright())
    with engine(smoothed, 10) as one:
        one.begin(ticket := Ticket([certifying(smoothed, 0.45)]))
        ticket.done.result(30)
        assert ticket.asked.total() > 100
        assert len(one._rates) <= 1
        assert one._places == {}
        assert not one._tickets


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_ours_ends_everything_and_says_so() -> None:
    smoothed = smoothed_of(Bright())

    def told(error: Any, samples: int) -> None:
        raise ZeroDivisionError("by zero")

    with engine(smoothed, told=told) as one:
        one.begin(ticket := Ticket([certifying(smoothed, 0.05)]))
        with pytest.raises(ZeroDivisionError):
            ticket.done.result(30)
        assert "the votes broke off (ZeroDivisionError: by zero)" in one.broken
        with pytest.raises(Stopped):
            one.begin(Ticket([certifying(smoothed, 0.05)]))


def test_a_stopped_engine_settles_what_was_sent_and_takes_no_more() -> None:
    box = Bright()
    smoothed = smoothed_of(box)
    one = Engine(smoothed.batches(1000), 10)
    ticket = Ticket([certifying(smoothed, 0.05)])
    one.begin(ticket)
    one.stop(30)
    ticket.done.result(0)
    with pytest.raises(Stopped):
        one.begin(Ticket([certifying(smoothed, 0.05)]))
    one = Engine(smoothed.batches(1000), 10)
    box.free.clear()
    one.begin(ticket := Ticket([certifying(smoothed, 0.05)]))
    waited(lambda: one._under_way)
    thread = threading.Thread(target=one.stop)
    thread.start()
    with pytest.raises(Stopped):
        ticket.done.result(30)
    box.free.set()
    thread.join(30)
    assert not thread.is_alive()
    assert smoothed.base_classifier.queries == sum(box.sizes)  # pyright: ignore

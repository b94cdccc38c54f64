"""Readiness: off where the box is another one or fails again and again, and on again where it answers as before."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from certibox.errors import BoxChanged, BoxFailed, BudgetExceeded, CertiboxError
from certibox.serving import health as module
from certibox.serving.health import FAILING, Health


@contextmanager
def watching(look: Callable[[], None] | None, every: float | None, told: list[str]) -> Iterator[Health]:
    one = Health(look, every, told.append)
    try:
        yield one
    finally:
        one.stop()


def waited(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.002)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAITS", (0.01, 0.05))


def test_a_changed_box_is_not_ready_until_it_is_the_same_again() -> None:
    errors, told = [BoxChanged("the box has changed: 3 canaries moved")], list[str]()

    def look() -> None:
        if errors:
            raise errors[0]

    with watching(look, 0.01, told) as one:
        waited(lambda: not one.ready)
        assert one.reason == "the box has changed: 3 canaries moved"
        assert one.changed
        one.told(None)  # a batch that was answered says nothing of which model answered it
        assert not one.ready
        errors.clear()
        waited(lambda: one.ready)
    assert told == ["the box has changed: 3 canaries moved", ""]


def test_batches_that_fail_one_after_the_other_end_readiness() -> None:
    told, works = list[str](), list[bool]()

    def look() -> None:
        if not works:
            raise BoxFailed("the endpoint is down")

    with watching(look, None, told) as one:
        for _ in range(FAILING - 1):
            one.told(BoxFailed("no"))
        one.told(None)
        for _ in range(FAILING - 1):
            one.told(BoxFailed("no"))
        assert one.ready  # never so many one after the other
        one.told(BoxFailed("the endpoint is down"))
        assert one.reason == "the endpoint is down"
        waited(lambda: one.looks >= 3)
        assert not one.ready
        works.append(True)
        waited(lambda: one.ready)
    assert told == ["the endpoint is down", ""]


def test_a_box_without_canaries_is_tried_again_after_a_while() -> None:
    with watching(None, None, []) as one:
        for _ in range(FAILING):
            one.told(BoxFailed("no"))
        waited(lambda: one.ready)
        one.told(BoxFailed("still no"))  # one is enough now
        assert one.reason == "still no"
        waited(lambda: one.ready)
        one.told(None)
        one.told(BoxFailed("no"))
        assert one.ready


def test_a_spent_budget_says_nothing_of_the_box() -> None:
    def look() -> None:
        raise BudgetExceeded(8, 0)

    told = list[str]()
    with watching(look, 0.01, told) as one:
        waited(lambda: one.looks >= 3)
        for _ in range(FAILING + 1):
            one.told(BudgetExceeded(8, 0))
        assert one.ready
    assert told == []


def test_a_fault_of_the_look_itself_is_a_reason_too() -> None:
    def look() -> None:
        raise ZeroDivisionError("by zero")

    with watching(look, 0.01, []) as one:
        waited(lambda: "by zero" in one.reason)


def test_an_answer_brings_readiness_back_at_once() -> None:
    def look() -> None:
        raise CertiboxError("no")

    with watching(look, None, []) as one:
        for _ in range(FAILING):
            one.told(BoxFailed("no"))
        assert not one.ready
        one.told(None)
        assert one.ready

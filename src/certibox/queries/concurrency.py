"""What threads, tasks and forked processes that share a meter have in common.

- `PerCaller`: a value that each thread and each asyncio task has for itself;
- `Turns`: at most as many calls of a box at once as the box declares;
- `Forkable`: an object that a fork finds in order.
"""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar
from weakref import WeakSet, WeakValueDictionary

from certibox.blackbox import BlackBox
from certibox.queries.flow import Gate

T = TypeVar("T")

# One variable for all owners: a context variable lives as long as any context that has seen it, an entry does not.
_VALUES: contextvars.ContextVar[Mapping[object, Any]] = contextvars.ContextVar("certibox.queries")
_NOTHING: Mapping[object, Any] = {}


class PerCaller(Generic[T]):
    """A value that belongs to whoever asks: every thread has its own, and every asyncio task.

    A new thread starts from the default. An asyncio task, and what `asyncio.to_thread` and
    `contextvars.copy_context().run` call, start from what the value was where they were made.

    Args:
        default: Value of a caller that has set none.
    """

    def __init__(self, default: T) -> None:
        self._default, self._key = default, object()

    def get(self) -> T:
        """The caller's value."""
        return _VALUES.get(_NOTHING).get(self._key, self._default)

    @contextmanager
    def set(self, value: T) -> Iterator[None]:
        """Give the caller another value inside the block.

        Args:
            value: Value inside.
        """
        token = _VALUES.set({**_VALUES.get(_NOTHING), self._key: value})
        try:
            yield
        finally:
            with suppress(ValueError):  # a generator that another thread closes: its value went with its own context
                _VALUES.reset(token)


class Turns:
    """The right to call a box: as many callers at once as `box.spec.concurrency` allows, one by default.

    Args:
        box: Black box.
    """

    def __init__(self, box: BlackBox) -> None:
        self.box = box
        self.lock = _lock_for(box)
        """Lock to hold while the box is called."""

    def renew(self) -> None:
        """Forget whose turn it is."""
        self.lock = _lock_for(self.box)


def _lock_for(box: BlackBox) -> threading.RLock | threading.Semaphore | Gate:
    """A lock for one thread, which may take it again (a box may ask itself, through its own client), or for several."""
    if (most := box.spec.concurrency) == 1:
        return threading.RLock()
    return Gate(most) if getattr(box, "is_adaptive", False) else threading.BoundedSemaphore(most)


# Turns by the identity of their box, which they keep alive. They die with the last client of the box.
_TURNS: WeakValueDictionary[int, Turns] = WeakValueDictionary()
_FORKABLE: WeakSet[Forkable] = WeakSet()
_REGISTERS = threading.RLock()


def turns_of(box: BlackBox) -> Turns:
    """The turns that all clients of a box share.

    Args:
        box: Black box.
    """
    with _REGISTERS:
        found = _TURNS.get(id(box))
        if found is None:
            found = _TURNS[id(box)] = Turns(box)
        return found


class Forkable:
    """An object with a lock that a forked process must find free, and its state whole.

    Every such object is locked while the process forks, so none is copied in the middle of a change.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        with _REGISTERS:
            _FORKABLE.add(self)

    def before_fork(self) -> None:
        """Put away what must not be in two processes; called with the lock held."""

    def in_child(self) -> None:
        """Find one's feet in the new process; called with the lock held."""


_LOCKED: list[threading.RLock] = []  # for the time of a fork; whoever changes it holds `_REGISTERS`


def _before_fork() -> None:
    _REGISTERS.acquire()
    for thing in sorted(_FORKABLE, key=id):  # in one order, though nobody else ever holds two
        thing.lock.acquire()
        _LOCKED.append(thing.lock)
        thing.before_fork()


def _after_fork() -> None:
    while _LOCKED:
        _LOCKED.pop().release()
    _REGISTERS.release()


def _in_child() -> None:
    for turns in _TURNS.values():
        turns.renew()  # whoever's turn it was is not here to end it
    for thing in list(_FORKABLE):
        thing.in_child()
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)

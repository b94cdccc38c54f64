"""Votes of many images from few calls: each batch is filled with samples of several images.

A stopping rule looks at an image's votes tens of times, and between two looks wants few samples. One image at a time
would make small batches, and would wait for each of them; so several images are open at once, the oldest first in
every batch. Where the base classifier takes several calls at once, so many batches are under way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from certibox.certification.asking import Voter
from certibox.certification.batches import MOST_KEPT, Answers, Batch, Batches, alike, processors
from certibox.certification.noise import BLOCK
from certibox.certification.pieces import Piece, Poll

P = TypeVar("P", bound=Poll)
SIZES = 16  # sizes of batches, up to the largest, that are asked
MANY = 4  # threads from which on noise is drawn by as many at once


class Order(Protocol[P]):
    """Whose samples go into the next batch."""

    def first(self, polls: Iterable[P], /) -> Sequence[P]:
        """Open images whose samples come before those of another, in this order."""
        ...

    def rest(self, polls: Iterable[P], /) -> Sequence[P]:
        """Open images whose samples come once no other can be opened, in this order."""
        ...

    def pays(self, poll: P, /) -> bool:
        """Whether the samples that an open image wants may be asked for now."""
        ...

    def may_open(self, polls: Collection[P], /) -> bool:
        """Whether another image may be opened beside the open ones."""
        ...


class OldestFirst:
    """The oldest image first, whatever its votes say.

    Args:
        may_open: Function that says of the open images, of which there are some, whether another may be opened.
    """

    def __init__(self, may_open: Callable[[Iterable[Any]], bool] = lambda polls: True) -> None:
        self._may_open = may_open

    def may_open(self, polls: Collection[Any]) -> bool:
        """See `Order.may_open`; not where the noise that open images keep takes much memory."""
        return not polls or (sum(poll.blocks for poll in polls) <= MOST_KEPT and self._may_open(polls))

    def first(self, polls: Iterable[P]) -> list[P]:
        """See `Order.first`."""
        return list(polls)

    def rest(self, polls: Iterable[P]) -> list[P]:
        """See `Order.rest`."""
        return []

    def pays(self, poll: object) -> bool:
        """See `Order.pays`."""
        return True


class Interleaving(Generic[P]):
    """Asks one base classifier about the pieces of many images.

    Args:
        voter: Base classifier.
        polls: Images, opened in this order as batches need them.
        batch_size: Most noisy copies at a time.
        order: Whose samples go into the next batch; by default those of the oldest image.
        saw: Function that is shown each part of an answer: poll, piece and outputs (n, ...).
        together: What is entered while a batch is counted, so that all its votes are written at once.
    """

    def __init__(
        self,
        voter: Voter,
        polls: Iterable[P],
        batch_size: int,
        order: Order[P] | None = None,
        saw: Callable[[P, Piece, Tensor], None] | None = None,
        together: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._batches = Batches(voter, batch_size, saw, together)
        self._polls = iter(polls)
        self._order: Order[P] = OldestFirst() if order is None else order
        self._open: deque[P] = deque()  # those of which something is wanted or under way
        self._finished: deque[P] = deque()

    def finished(self) -> Iterator[P]:
        """The images, each as soon as it is finished.

        After an error no further batch is begun. Those under way are waited for and counted, and then it is raised.
        """
        calls = self._batches.calls_at_once
        self._batches.start_clock()
        yield from self._one_by_one() if calls == 1 else self._at_once(calls)

    def _one_by_one(self) -> Iterator[P]:
        """One call after the other, in this thread; the next batch is drawn meanwhile if a processor is to spare."""
        threads = torch.get_num_threads()
        spare = processors() - threads
        # On two or three processors, threads that draw noise between two calls leave the network's own where they slow
        # it down: 4 ms for every batch were seen, more than they save.
        if spare <= 0 and threads < MANY:
            while (batch := self._next()) is not None:
                self._batches.draw(batch)
                self._count(batch, self._batches.ask(batch))
                del batch
                yield from self._out()
            yield from self._out()
            return
        with ThreadPoolExecutor(max(threads, spare)) as pool, ThreadPoolExecutor(1) as ahead:
            following = self._drawing(ahead, pool)
            while following is not None:
                batch = following.result()
                following = self._drawing(ahead, pool) if spare > 0 else None
                idle = spare > 0 and following is None
                foreseen = ahead.submit(copy_context().run, self._foresee, batch) if idle else None
                answers = self._batches.ask(batch)
                if foreseen:
                    foreseen.result()
                self._count(batch, answers)
                del batch, answers
                yield from self._out()
                following = following or self._drawing(ahead, pool)
            yield from self._out()

    def _drawing(self, ahead: ThreadPoolExecutor, pool: ThreadPoolExecutor) -> Future[Batch] | None:
        """The next batch, which is being drawn; None where nothing is wanted now."""
        batch = self._next()
        return None if batch is None else ahead.submit(copy_context().run, self._batches.draw, batch, pool)

    def _foresee(self, batch: Batch) -> None:
        """Draw noise that the images of a batch may want next, as much as a batch holds."""
        left = len(batch)
        with torch.inference_mode():
            for poll in batch.polls():
                if left <= 0 or BLOCK * poll.x.numel() > MOST_KEPT // 4:
                    return
                left -= poll.foresee(left)

    def _at_once(self, calls: int) -> Iterator[P]:
        """Several calls at once, each in a thread. A few batches more are drawn: no call waits for its noise."""
        waiting = calls + max(2, calls // 4)
        under_way: dict[Future[Answers], Batch] = {}
        with ThreadPoolExecutor(calls) as pool:
            try:
                while True:
                    while len(under_way) < waiting and (batch := self._next()) is not None:
                        self._batches.draw(batch)
                        under_way[pool.submit(copy_context().run, self._batches.ask, batch)] = batch
                    yield from self._out()
                    if not under_way:
                        return
                    for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                        self._count(under_way.pop(done), done.result())
            finally:  # after an error, or where nobody wants more: what was paid for is counted
                for left in under_way:
                    left.cancel()
                for left, batch in under_way.items():
                    if not left.cancelled() and left.exception() is None:
                        self._count(batch, left.result())

    def _next(self) -> Batch | None:
        """The next batch: pieces of open images, in the order, and of new ones while there is room."""
        parts: list[tuple[P, Piece]] = []
        most = room = 0
        following = self._order.first
        while True:
            for poll in following(self._open):
                if not parts:
                    most = room = self._batches.size(poll)
                if not poll.wanted or room == 0 or (parts and not alike(parts[0][0], poll)):
                    continue
                if not self._order.pays(poll):
                    continue
                while poll.wanted and room > 0:
                    piece = poll.begin(room)
                    parts.append((poll, piece))
                    room -= piece.stop - piece.start
            if (parts and room == 0) or following == self._order.rest:
                break
            if not self._open_another():
                following = self._order.rest
        if not parts:
            return None
        if len(self._open) >= SIZES:  # what is left for later soon has company
            _round(parts, most - room, max(1, most // SIZES))
        return self._batches.made(parts)

    def _open_another(self) -> bool:
        """Whether another image was opened."""
        if not self._order.may_open(self._open) or (poll := next(self._polls, None)) is None:
            return False
        (self._finished if poll.finished else self._open).append(poll)
        return True

    def _count(self, batch: Batch, answers: Answers) -> None:
        """Give every image its votes, and put those that are finished aside."""
        self._batches.count(batch, answers)
        for poll in batch.polls():
            if poll.finished:
                self._open.remove(poll)
                self._finished.append(poll)

    def _out(self) -> Iterator[P]:
        while self._finished:
            yield self._finished.popleft()


def _round(parts: list[tuple[Any, Piece]], count: int, step: int) -> None:
    """Leave samples of the last parts for later, so that the number is a multiple of `step`.

    A network is planned anew for each size of batch that it meets, which takes as long as a hundred images.
    """
    spare = count % step if count > step else 0
    while spare:
        poll, piece = parts.pop()
        kept = max(0, piece.stop - piece.start - spare)
        spare -= piece.stop - piece.start - kept
        poll.give_back(piece._replace(start=piece.start + kept))
        if kept:
            parts.append((poll, piece._replace(stop=piece.start + kept)))

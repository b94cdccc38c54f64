"""Batches at the transport: each is booked, sent, checked and settled; several may be under way at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import overload

import numpy as np
import torch
from torch import Tensor

from certibox.blackbox import BlackBox, check_outputs
from certibox.data.pixels import batch_digest
from certibox.errors import BudgetExceeded, NotAnswered, Overloaded
from certibox.queries.booking import Booking
from certibox.queries.border import ask, billed, in_our_words
from certibox.queries.concurrency import Turns
from certibox.queries.flow import Clock, Gate, Patience, Rate
from certibox.queries.ledger import Ledger
from certibox.queries.meter import Meter
from certibox.seeds.switches import as_found

Entry = tuple[str, int, str, np.ndarray]


class Buyer:
    """Buys the answers of one box for one client.

    Args:
        box: Black box.
        turns: Turns of all clients of the box.
        meter: Counters of the client.
        ledger: Ledger of the client; None to count in memory.
        rate: Most images or requests a second; None for no limit.
        wait: Seconds for which an overloaded box is asked again.
    """

    def __init__(
        self, box: BlackBox, turns: Turns, meter: Meter, ledger: Ledger | None, rate: Rate | None, wait: float
    ) -> None:
        self.box, self._turns, self._meter, self.ledger = box, turns, meter, ledger
        self.rate, self.wait, self._clock = rate, wait, Clock()

    def answers(self, batches: Iterable[tuple[Tensor, int]], booking: Booking, budget: int | None) -> list[Tensor]:
        """Answers to the batches of one call, in their order.

        Args:
            batches: Images (n, c, h, w) of each batch, and how many of the call are left from it on.
            booking: How they are booked.
            budget: Most queries that may ever be spent; None for no limit.
        """
        if self.box.spec.concurrency == 1:
            return [self._answer(batch, wanted, booking, budget) for batch, wanted in batches]
        batches = list(batches)
        if len(batches) == 1:
            return [self._answer(*batches[0], booking, budget)]
        return self._at_once(batches, booking, budget)

    def close_when_idle(self) -> None:
        """Close the ledger if the client is closed and nothing is in flight any more."""
        if self._meter.closed and self._meter.idle and self.ledger:
            self.ledger.close()

    # --- one batch after the other -----------------------------------------------------------------------------------

    def _answer(self, batch: Tensor, wanted: int, booking: Booking, budget: int | None) -> Tensor:
        """Answers to one batch: replayed, where the journal holds them, or bought."""
        if (journal := booking.journal) is None:
            return self._buy(batch, wanted, booking.phase, budget)
        digest, position = batch_digest(batch), journal.claim()
        try:
            stored = journal.recall(position, digest)
            if stored is None:
                return self._buy(batch, wanted, booking.phase, budget, partial(journal.entry, position, digest))
        except BaseException:
            journal.give_back(position)
            raise
        return self._replayed(stored, batch)

    def _replayed(self, stored: np.ndarray, batch: Tensor) -> Tensor:
        self._meter.learn_shape(stored.shape[1:])  # a resumed run knows K just as an uninterrupted one does
        return torch.from_numpy(stored).to(batch.device)

    def _buy(
        self,
        batch: Tensor,
        wanted: int,
        phase: str,
        budget: int | None,
        entry: Callable[[np.ndarray], Entry] | None = None,
    ) -> Tensor:
        """One batch at the transport."""
        row = self._in_turn(phase, len(batch), wanted, budget)
        return self._until_answered(batch, row, wanted, phase, budget, entry)

    # --- several at once ----------------------------------------------------------------------------------------------

    def _at_once(self, batches: list[tuple[Tensor, int]], booking: Booking, budget: int | None) -> list[Tensor]:
        """The same with several batches under way. They are booked in their order, each when it is its turn.

        After an error no further batch is begun; those under way are waited for and settled, so that what was paid is
        kept. Of several errors the first is raised that is not just the refusal of a batch that nobody asked again.
        """
        journal = booking.journal
        digests = [batch_digest(batch) for batch, _ in batches] if journal else []
        first = journal.claim(len(batches)) if journal else 0
        found: list[Tensor | Future[Tensor]] = []
        failed = threading.Event()
        errors: list[BaseException] = []
        with ThreadPoolExecutor(min(len(batches), self.box.spec.concurrency)) as pool:
            try:
                for i, (batch, wanted) in enumerate(batches):
                    entry = partial(journal.entry, first + i, digests[i]) if journal else None
                    if journal and (stored := journal.recall(first + i, digests[i])) is not None:
                        found.append(self._replayed(stored, batch))
                        continue
                    begun = self._begin(pool, batch, wanted, booking.phase, budget, entry, failed)
                    if begun is None:
                        break
                    found.append(begun)
            except BaseException as raised:  # of the budget, or an interrupt: what is under way is waited for below
                errors.append(raised)
                failed.set()
            answers = []
            for item in found:
                try:
                    answers.append(item if isinstance(item, Tensor) else item.result())
                except BaseException as raised:
                    errors.append(raised)
        if not errors:
            return answers
        if journal:
            journal.give_back(first, len(batches))
        raise min(errors, key=_rank)

    def _begin(
        self,
        pool: ThreadPoolExecutor,
        batch: Tensor,
        wanted: int,
        phase: str,
        budget: int | None,
        entry: Callable[[np.ndarray], Entry] | None,
        failed: threading.Event,
    ) -> Future[Tensor] | None:
        """Send a batch as soon as it has its turn; None where another has failed meanwhile."""
        row = self._in_turn(phase, len(batch), wanted, budget, failed)
        if row is None:
            return None

        def job() -> Tensor:
            try:
                return self._until_answered(batch, row, len(batch), phase, budget, entry, failed)
            except BaseException:
                failed.set()
                raise

        return pool.submit(copy_context().run, job)

    # --- what both do -------------------------------------------------------------------------------------------------

    @overload
    def _in_turn(self, phase: str, n: int, wanted: int, budget: int | None) -> int: ...
    @overload
    def _in_turn(
        self, phase: str, n: int, wanted: int, budget: int | None, failed: threading.Event | None
    ) -> int | None: ...
    def _in_turn(
        self, phase: str, n: int, wanted: int, budget: int | None, failed: threading.Event | None = None
    ) -> int | None:
        """Wait for the rate and for a turn, which is kept, and then book; None where another batch has failed."""
        if self.rate is not None:
            clock = self._clock if self.ledger is None else self.ledger
            time.sleep(clock.slot(self.rate.seconds(n)))
        self._turns.lock.acquire()
        try:
            if failed is None or not failed.is_set():
                return self._book(phase, n, wanted, budget)
        except BaseException:
            self._turns.lock.release()
            raise
        self._turns.lock.release()
        return None

    def _until_answered(
        self,
        batch: Tensor,
        row: int,
        wanted: int,
        phase: str,
        budget: int | None,
        entry: Callable[[np.ndarray], Entry] | None,
        failed: threading.Event | None = None,
    ) -> Tensor:
        """The answer to a batch that is booked in its turn, which ends with each attempt; asked again where busy."""
        patience = Patience(self.wait)
        while True:
            try:
                return self._bought(batch, row, phase, entry)
            except Overloaded as error:
                refused = error
            finally:
                self._turns.lock.release()
            self._pause(patience, refused, failed)
            row = self._in_turn(phase, len(batch), wanted, budget)

    def _pause(self, patience: Patience, error: Overloaded, failed: threading.Event | None = None) -> None:
        """Wait before a refused batch is asked again; raise where its time is over, or another batch has failed."""
        pause = patience.pause(error.after)
        if pause is None:
            asked = f" (it asks to wait {error.after:.0f} seconds)" if error.after else ""
            raise NotAnswered(f"{error}{asked}; it was asked again for {patience.seconds:g} seconds") from error
        if failed is None:
            time.sleep(pause)
        elif failed.wait(pause):
            raise error

    def _bought(self, batch: Tensor, row: int, phase: str, entry: Callable[[np.ndarray], Entry] | None) -> Tensor:
        """The answer to a batch that is booked as `row`, settled."""
        n, began, gate = len(batch), time.monotonic(), self._turns.lock
        try:
            answer = self._ask(batch).contiguous()  # as the journal will return it: sums round by layout
            stored = entry(answer.cpu().numpy()) if entry else None
        except BaseException as error:
            self._settle(row, phase, n, billed(error, n))
            if isinstance(gate, Gate) and isinstance(error, Overloaded):
                gate.overloaded(began)
            raise
        self._settle(row, phase, n, n, stored)
        if isinstance(gate, Gate):
            gate.went_well()
        return answer

    def _book(self, phase: str, n: int, wanted: int, budget: int | None) -> int:
        """Book n of the `wanted` queries of a call, if the budget can pay for all; returns the ledger's row."""
        self._meter.reserve(n, wanted, budget if self.ledger is None else None)
        if self.ledger is None:
            return 0
        try:
            return self.ledger.send(phase, n, wanted, budget)
        except BaseException:
            self._meter.cancel(n)
            raise

    def _ask(self, batch: Tensor) -> Tensor:
        """The box's checked answer to a batch that is booked."""
        n = len(batch)
        name = f"batch {self._meter.attempt(n)} ({n} image{'s' if n != 1 else ''})"
        try:
            with as_found():
                answer = ask(self.box, batch)
            return self._checked(answer, n, name)
        except BaseException as error:
            ours = in_our_words(error, name, n, self._meter.answered)
            raise ours from (error if ours is not error else error.__cause__)

    def _checked(self, answer: Tensor, n: int, name: str) -> Tensor:
        """The answer, of the same shape as all others, those of threads that asked at the same time included."""
        known, spec = self._meter.answer_shape, self.box.spec
        answer = check_outputs(answer, n, spec, known, name)
        if known is None and (known := self._meter.learn_shape(answer.shape[1:])) != answer.shape[1:]:
            check_outputs(answer, n, spec, known, name)
        return answer

    def _settle(self, row: int, phase: str, n: int, answered: int | None, entry: Entry | None = None) -> None:
        """End a batch; without a number of answers it is lost, and its row stays as a killed process leaves it."""
        try:
            if self.ledger and answered is not None:
                self.ledger.settle(row, answered, entry)
        except BaseException:
            answered = None  # as its row says
            raise
        finally:
            if answered is None:
                self._meter.lose(n)
            else:
                self._meter.settle(phase, n, answered)
            self.close_when_idle()


def _rank(error: BaseException) -> int:
    """Which of several errors is raised: an interrupt, what a batch met, what the budget says, a refusal."""
    if isinstance(error, KeyboardInterrupt):
        return 0
    return 3 if isinstance(error, Overloaded) else 2 if isinstance(error, BudgetExceeded) else 1

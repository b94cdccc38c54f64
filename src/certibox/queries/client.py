"""QueryClient: the one door to a black box. It counts, bounds, batches, checks and remembers every answer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certibox.blackbox import BlackBox, BoxSpec, as_images, check_outputs, differentiable, is_told_apart
from certibox.errors import CertiboxError, InvalidImages, InvalidInput
from certibox.queries.booking import Booked, Booking
from certibox.queries.border import ask, billed, in_our_words, require_box, require_pixels, whole
from certibox.queries.concurrency import PerCaller, turns_of
from certibox.queries.copying import require_picklable
from certibox.queries.journal import Journal, inputs_digest
from certibox.queries.ledger import Ledger
from certibox.queries.meter import Meter
from certibox.seeds.switches import as_found

Entry = tuple[str, int, str, np.ndarray]


class QueryClient(Booked):
    """A black box with a meter: call it with images (n, c, h, w), pay n queries, get its checked answers.

    Nothing is sent unless it is called.

    One client serves any number of threads and asyncio tasks. They share its counts, its budget and its ledger; `phase`
    and `journal` belong to the thread or task that enters them. A new thread is in neither, wherever it is started: it
    books under "query" until it enters a phase of its own. Tasks, and what `asyncio.to_thread` runs, start in those of
    their maker. The box is called once at a time, unless it declares `concurrency`.

    A copy (`copy`, pickle, another process) opens the same ledger. A client without a ledger is copied only if it has
    no budget, and its copy counts from 0; in a forked process it goes on counting for itself. With a budget it is
    refused there, for a copied budget could be spent twice.

    Args:
        box: Black box, from `certibox.as_blackbox`.
        budget: Most queries that may ever be spent, over all runs that share the ledger; None for no limit.
        ledger: SQLite file that survives the process; None to count in memory.
        batch_size: Number of images sent at a time; None for the box's own.

    Raises:
        InvalidInput: The box is no black box, or a number is out of range.
        UnreadableFile: The ledger cannot be opened.
    """

    def __init__(
        self, box: BlackBox, budget: int | None = None, ledger: str | Path | None = None, batch_size: int | None = None
    ) -> None:
        if ledger is not None and not isinstance(ledger, str | Path):
            raise InvalidInput(f"ledger is {ledger!r}; wanted the path of a file, or None to count in memory")
        require_box(box)
        self.box, self._turns = box, turns_of(box)
        self.budget = budget
        self._batch_size, self._chosen = box.spec.batch_size, False
        if batch_size is not None:
            self.batch_size = batch_size
        self._open(Ledger(ledger) if ledger is not None else None)

    def _open(self, ledger: Ledger | None) -> None:
        """Start counting where the ledger stands."""
        self.ledger = ledger
        totals, spent = (ledger.totals(), ledger.by_phase()) if ledger else ((0, 0, 0), {})
        self._meter = Meter(totals, spent)
        self._booking = PerCaller(Booking())

    def __repr__(self) -> str:
        parts = [self.spec.summary, f"{self.queries:,} queries spent"]
        if self.budget is not None:
            try:
                parts.append(f"{self.left:,} of {self.budget:,} left")
            except CertiboxError:  # closed, or a fork that must not spend it
                parts.append(f"budget {self.budget:,}")
        if self.ledger:
            parts.append(f"ledger {self.ledger.path}")
        if self._meter.closed:
            parts.append("closed")
        return f"QueryClient({', '.join(parts)})"

    @property
    def spec(self) -> BoxSpec:
        """What was declared of the box."""
        return self.box.spec

    @property
    def model_id(self) -> str:
        """The bare box's name in records."""
        return f"bare:{self.spec.model_id}"

    @property
    def told_apart(self) -> bool:
        """Whether `model_id` tells the box from another one; else only its answers can."""
        return is_told_apart(self.box)

    @property
    def answers_alone(self) -> bool:
        """Whether the box is known to answer each image alone, whatever else is in the batch."""
        return bool(getattr(self.box, "answers_alone", False))

    @property
    def budget(self) -> int | None:
        """Most queries that may ever be spent; None for no limit. It may be raised at any time."""
        return self._budget

    @budget.setter
    def budget(self, wanted: int | None) -> None:
        self._budget = None if wanted is None else whole("budget", wanted, 0, ", or None for no limit")

    @property
    def batch_size(self) -> int:
        """Number of images sent at a time, never above the box's `max_batch`.

        It may be set at any time, and holds from the next batch on. Answers that a journal holds are found again only
        by batches of the same images, so work that resumes wants the same sizes.
        """
        return self._batch_size

    @batch_size.setter
    def batch_size(self, wanted: int) -> None:
        wanted = whole("batch_size", wanted, 1)
        self._batch_size, self._chosen = min(wanted, self.spec.max_batch or wanted), True

    @property
    def at_once(self) -> int:
        """Number of images that the box is sent at a time for this thread or task: inside `asking`, what was asked."""
        return self._sent_at_once(self._booking.get())

    @property
    def free_batch_size(self) -> bool:
        """Whether a caller may choose the number of images sent at a time: the box is in this process, and nobody did.

        Training never chooses: answers that a journal holds are found again only by batches of the same images.
        """
        return not self._chosen and bool(getattr(self.box, "free_batch_size", False))

    @property
    def queries(self) -> int:
        """Answers paid for: those that the ledger held when it was opened, and those of this client since."""
        return self._meter.answered

    @property
    def attempts(self) -> int:
        """Queries sent, answered or not, counted as `queries` are."""
        return self._meter.attempted

    @property
    def lost(self) -> int:
        """Queries sent and never answered, for the box raised or the work was interrupted: they may be billed."""
        return self._meter.lost

    @property
    def delivered(self) -> int:
        """Answers handed to callers by this client, replayed ones included; `counting` counts those of one caller."""
        return self._meter.delivered

    @property
    def white_passes(self) -> int:
        """Images that first-order methods passed through a differentiable box: not queries."""
        return self._meter.white_passes

    @property
    def left(self) -> int | None:
        """Queries that the budget still allows; None without a budget. Lost ones may have been billed, and count."""
        if (budget := self.budget) is None:
            return None
        return max(0, budget - (self.ledger.committed() if self.ledger else self._meter.committed()))

    @property
    def spent(self) -> dict[str, int]:
        """Answers paid for, by phase."""
        return dict(self._meter.spent)

    @property
    def num_outputs(self) -> int | None:
        """K of the answers so far; None before the first answer and for labels."""
        shape = self._meter.answer_shape
        return shape[0] if shape else None

    @contextmanager
    def journal(self, scope: str, position: int) -> Iterator[Journal | None]:
        """Journal the answers that this thread or task gets inside the block, replaying those already paid for.

        Replaying needs the same questions in the same order, so a piece of work asks from one thread or task at a time.

        Args:
            scope: Name of the piece of work.
            position: Number of its first batch that is not covered by a checkpoint.

        Returns:
            The journal; None without a ledger: then nothing is journalled.
        """
        if self.ledger is None:
            yield None
            return
        journal = Journal(self.ledger, scope, position)
        with self._booking.set(replace(self._booking.get(), journal=journal)):
            yield journal

    def __call__(self, x: Tensor | np.ndarray) -> Tensor:
        """Answers to images; costs a query each.

        Args:
            x: Images (n, c, h, w), a tensor or a numpy array of floats on [0, 1].

        Returns:
            A tensor on the device of the images: (n, K) scores, (n,) labels or (n, ...) values.

        Raises:
            BudgetExceeded: The budget cannot pay the next query. The rest of the call was not sent.
            InvalidImages: The images do not fit the box, hold NaN or infinity, or want to be divided by 255.
            InvalidInput: The client is closed, or this process is a fork that must not spend its budget.
            BoxFailed: The box raised, whatever it raised but a keyboard interrupt; its batch counts as lost.
            NotAnswered: The box said so, and its batch was given back.
            BadOutput: An answer broke a rule.
        """
        x = as_images(x)
        self.spec.check_images(x)
        if x.numel() == 0:
            raise InvalidImages(f"a query has shape {tuple(x.shape)}; wanted at least one image of at least one pixel")
        require_pixels(x, self.spec)
        booking = self._booking.get()
        if booking.journal and not booking.journal.is_of_this_process:
            booking = replace(booking, journal=None)
        answers, start = [], 0
        while start < len(x):
            batch = x[start : start + self._sent_at_once(booking)]
            answers.append(self._answer(batch, len(x) - start, booking))
            start += len(batch)
        self._meter.deliver(len(x), booking.tallies)
        return torch.cat(answers) if len(answers) != 1 else answers[0]

    def white(self, x: Tensor) -> Tensor:
        """The box's outputs with gradients, for first-order methods; a white-box pass is not a query.

        Args:
            x: Images (n, c, h, w).

        Raises:
            NotDifferentiable: The box gives no gradients.
            BoxFailed: The box raised.
        """
        with self._turns.lock, as_found():
            try:
                outputs = differentiable(self.box)(x)
            except BaseException as error:
                ours = in_our_words(error, f"a white-box pass of {len(x)}", 0, self.queries)
                raise ours from (error if ours is not error else error.__cause__)
        self._meter.pass_white(len(x))
        return outputs

    def close(self) -> None:
        """Close the ledger; the client cannot be called afterwards. A batch in flight is settled first."""
        self._meter.close()
        self._close_when_idle()

    def __enter__(self) -> QueryClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __copy__(self) -> QueryClient:
        return _copied(self.box, *self._carried())

    def __deepcopy__(self, memo: dict[int, Any]) -> QueryClient:
        return _copied(copy.deepcopy(self.box, memo), *self._carried())

    def __reduce__(self) -> tuple[Callable[..., QueryClient], tuple[Any, ...]]:
        carried = self._carried()
        require_picklable(self.box)
        return _copied, (self.box, *carried)

    def _carried(self) -> tuple[int | None, int | None, tuple[Path, str] | None]:
        """What a copy takes along beside the box: budget, batch size, and the ledger that pays."""
        if self.ledger is None and self.budget is not None:
            raise InvalidInput(
                f"a client with a budget of {self.budget:,} and no ledger cannot be copied, for each copy could spend "
                "it; give it a ledger, which all copies share"
            )
        return (
            self.budget,
            self.batch_size,
            (self.ledger.file, self.ledger.identity) if self.ledger else None,
        )

    def _close_when_idle(self) -> None:
        if self._meter.closed and self._meter.idle and self.ledger:
            self.ledger.close()

    def _sent_at_once(self, booking: Booking) -> int:
        if booking.at_once is None:
            return self._batch_size
        return min(booking.at_once, self.spec.max_batch or booking.at_once)

    def _answer(self, batch: Tensor, wanted: int, booking: Booking) -> Tensor:
        """Answers to one batch: replayed, where the journal holds them, or bought."""
        if (journal := booking.journal) is None:
            return self._buy(batch, wanted, booking.phase)
        digest, position = inputs_digest(batch), journal.claim()
        try:
            stored = journal.recall(position, digest)
            if stored is None:
                return self._buy(batch, wanted, booking.phase, partial(journal.entry, position, digest))
        except BaseException:
            journal.give_back(position)
            raise
        self._meter.learn_shape(stored.shape[1:])  # a resumed run knows K just as an uninterrupted one does
        return torch.from_numpy(stored).to(batch.device)

    def _buy(
        self, batch: Tensor, wanted: int, phase: str, entry: Callable[[np.ndarray], Entry] | None = None
    ) -> Tensor:
        """One batch at the transport: book it, ask the box, settle it. Others wait for their turn before they book."""
        n = len(batch)
        with self._turns.lock:
            row = self._book(phase, n, wanted)
            try:
                answer = self._ask(batch).contiguous()  # as the journal will return it: sums round by layout
                stored = entry(answer.cpu().numpy()) if entry else None
            except BaseException as error:
                self._settle(row, phase, n, billed(error, n))
                raise
            self._settle(row, phase, n, n, stored)
        return answer

    def _book(self, phase: str, n: int, wanted: int) -> int:
        """Book n of the `wanted` queries of a call, if the budget can pay for all; returns the ledger's row."""
        self._meter.reserve(n, wanted, self.budget if self.ledger is None else None)
        if self.ledger is None:
            return 0
        try:
            return self.ledger.send(phase, n, wanted, self.budget)
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
            ours = in_our_words(error, name, n, self.queries)
            raise ours from (error if ours is not error else error.__cause__)

    def _checked(self, answer: Tensor, n: int, name: str) -> Tensor:
        """The answer, of the same shape as all others, those of threads that asked at the same time included."""
        known = self._meter.answer_shape
        answer = check_outputs(answer, n, self.spec, known, name)
        if known is None and (known := self._meter.learn_shape(answer.shape[1:])) != answer.shape[1:]:
            check_outputs(answer, n, self.spec, known, name)
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
            self._close_when_idle()


def _copied(box: BlackBox, budget: int | None, batch_size: int | None, ledger: tuple[Path, str] | None) -> QueryClient:
    """A client on the ledger of another, which must be there."""
    client = QueryClient(box, budget, batch_size=batch_size)
    if ledger is not None:
        client._open(Ledger(*ledger))
    return client

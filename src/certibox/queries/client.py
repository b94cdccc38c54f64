"""QueryClient: the one door to a black box. It counts, bounds, batches, checks and remembers every answer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certibox.blackbox import BlackBox, BoxSpec, as_images, differentiable, is_told_apart
from certibox.errors import CertiboxError, InvalidImages, InvalidInput
from certibox.queries.bills import BILLS
from certibox.queries.booking import Booked, Booking
from certibox.queries.border import in_our_words, require_box, require_pixels, whole
from certibox.queries.buying import Buyer
from certibox.queries.concurrency import PerCaller, turns_of
from certibox.queries.copying import require_picklable
from certibox.queries.flow import Rate
from certibox.queries.journal import Journal
from certibox.queries.ledger import Ledger
from certibox.queries.meter import Meter
from certibox.seeds.switches import as_found


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
        budget: Most queries that may ever be spent, over all runs that share the ledger; None for no limit. It counts
            what the box declares that it `bills`: images by default, or requests, or images of all attempts.
        ledger: SQLite file that survives the process; None to count in memory.
        batch_size: Number of images sent at a time; None for the box's own.
        rate: Most images or requests a second, as "200 images/s", "600 requests/min" or a number of images a second;
            all clients of one ledger share it. None for no limit.
        wait: Seconds for which a batch that the box is too busy for is asked again.

    Raises:
        InvalidInput: The box is no black box, or a number is out of range.
        UnreadableFile: The ledger cannot be opened.
    """

    def __init__(
        self,
        box: BlackBox,
        budget: int | None = None,
        ledger: str | Path | None = None,
        batch_size: int | None = None,
        *,
        rate: Rate | str | float | None = None,
        wait: float = 120.0,
    ) -> None:
        if ledger is not None and not isinstance(ledger, str | Path):
            raise InvalidInput(f"ledger is {ledger!r}; wanted the path of a file, or None to count in memory")
        require_box(box)
        self.box, self._turns = box, turns_of(box)
        self.budget = budget
        self.rate, self.wait = Rate.read(rate), _seconds("wait", wait)
        self._batch_size, self._chosen = box.spec.batch_size, False
        if batch_size is not None:
            self.batch_size = batch_size
        self._open(Ledger(ledger, bills=box.spec.bills) if ledger is not None else None)

    def _open(self, ledger: Ledger | None) -> None:
        """Start counting where the ledger stands."""
        self.ledger = ledger
        totals, spent = (ledger.totals(), ledger.by_phase()) if ledger else ((0, 0, 0), {})
        self._meter = Meter(totals, spent, self.spec.bills)
        self._buyer = Buyer(self.box, self._turns, self._meter, ledger, self.rate, self.wait)
        self._booking = PerCaller(Booking())

    def __repr__(self) -> str:
        parts = [self.spec.summary, f"{self.queries:,} queries spent"]
        if self.budget is not None:
            try:
                unit = "" if self.spec.bills == "image" else f" {BILLS[self.spec.bills].unit}"
                parts.append(f"{self.left:,} of {self.budget:,}{unit} left")
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
        """What the budget still allows, in what the box bills; None without one. Lost queries may have been billed."""
        if (budget := self.budget) is None:
            return None
        return max(0, budget - (self.ledger.committed() if self.ledger else self._meter.committed()))

    @property
    def images_left(self) -> int | None:
        """Images that the budget still pays for, in requests as full as they are sent here; None without a budget."""
        left = self.left
        return left if left is None or self.spec.bills != "request" else left * self.at_once

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
        answers = self._buyer.answers(self._batches(x, booking), booking, self.budget)
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
        self._buyer.close_when_idle()

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

    def _carried(self) -> tuple[Any, ...]:
        """What a copy takes along beside the box: budget, batch size, the ledger that pays, rate and wait."""
        if self.ledger is None and self.budget is not None:
            raise InvalidInput(
                f"a client with a budget of {self.budget:,} and no ledger cannot be copied, for each copy could spend "
                "it; give it a ledger, which all copies share"
            )
        return (
            self.budget,
            self.batch_size,
            (self.ledger.file, self.ledger.identity) if self.ledger else None,
            self.rate,
            self.wait,
        )

    def _batches(self, x: Tensor, booking: Booking) -> Iterator[tuple[Tensor, int]]:
        """Batches of a call, and how many images are left from each on. The size may change between two of them."""
        start = 0
        while start < len(x):
            batch = x[start : start + self._sent_at_once(booking, tuple(x.shape[1:]))]
            yield batch, len(x) - start
            start += len(batch)

    def _sent_at_once(self, booking: Booking, image_shape: tuple[int, ...] | None = None) -> int:
        size = self._batch_size
        if booking.at_once is not None:
            size = min(booking.at_once, self.spec.max_batch or booking.at_once)
        if image_shape is not None and (fitting := getattr(self.box, "images_at_once", None)) is not None:
            size = min(size, fitting(image_shape))
        return size


def _copied(
    box: BlackBox,
    budget: int | None,
    batch_size: int | None,
    ledger: tuple[Path, str] | None,
    rate: Rate | None = None,
    wait: float = 120.0,
) -> QueryClient:
    """A client on the ledger of another, which must be there."""
    client = QueryClient(box, budget, batch_size=batch_size, rate=rate, wait=wait)
    if ledger is not None:
        client._open(Ledger(*ledger, client.spec.bills))
    return client


def _seconds(name: str, given: object) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < float("inf"):
        raise InvalidInput(f"{name} is {given!r}; wanted a number of seconds, at least 0")
    return float(given)

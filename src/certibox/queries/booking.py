"""How the queries of a caller are booked: under which phase, in which journal, so many at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

from certibox.queries.border import whole
from certibox.queries.concurrency import PerCaller
from certibox.queries.journal import Journal
from certibox.queries.meter import Tally

UNNAMED = "query"  # the phase of what is spent under no name


@dataclass(frozen=True)
class Booking:
    """How a caller's queries are booked."""

    phase: str = UNNAMED
    """Name that the ledger has for what the queries are for."""
    journal: Journal | None = None
    """Journal of the piece of work that asks."""
    tallies: tuple[Tally, ...] = ()
    """Counts of the answers that this caller is given."""
    at_once: int | None = None
    """Number of images that the box is sent at a time; None for the client's own."""


class Booked:
    """A meter whose callers, each thread and each asyncio task, say for themselves how their queries are booked."""

    _booking: PerCaller[Booking]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Book what this thread or task spends inside the block under a name.

        Args:
            name: Name of the phase.
        """
        with self._booking.set(replace(self._booking.get(), phase=name)):
            yield

    def default_phase(self, name: str) -> AbstractContextManager[None]:
        """Book what this thread or task spends inside the block under a name, unless it is in a phase already.

        Args:
            name: Name of the phase.
        """
        return self.phase(name) if self._booking.get().phase == UNNAMED else nullcontext()

    def asking(self, n: int) -> AbstractContextManager[None]:
        """Send the box up to n images at a time inside the block, for this thread or task.

        Args:
            n: Number of images; the box's `max_batch` holds all the same.
        """
        return self._booking.set(replace(self._booking.get(), at_once=whole("images at once", n, 1)))

    @contextmanager
    def counting(self) -> Iterator[Tally]:
        """Count the answers that this thread or task is given inside the block, whatever others ask meanwhile."""
        tally, booking = Tally(), self._booking.get()
        with self._booking.set(replace(booking, tallies=(*booking.tallies, tally))):
            yield tally

"""What one client has spent, counted exactly whatever the number of threads that ask."""

from __future__ import annotations

from certibox.errors import BudgetExceeded, InvalidInput
from certibox.queries.concurrency import Forkable

Shape = tuple[int, ...]


class Tally:
    """Answers that one piece of work was given while others use the same client."""

    def __init__(self) -> None:
        self.delivered = 0
        """Number of answers, replayed ones included."""


class Meter(Forkable):
    """The counters of one client, each changed under one lock, and the budget of a client without a ledger.

    Queries are reserved before they are sent and settled after, as in the ledger, so that threads cannot overspend
    together.

    Args:
        budget: Most queries that may be spent; None for no limit, or where a ledger keeps it.
        totals: Queries answered, attempted and lost so far.
        spent: Answers by phase so far.
    """

    def __init__(self, budget: int | None, totals: tuple[int, int, int], spent: dict[str, int]) -> None:
        super().__init__()
        self.budget, self.spent = budget, spent
        self.answered, self.attempted, self.lost = totals
        self.delivered = self.white_passes = self.batches = self.in_flight = 0
        self.answer_shape: Shape | None = None
        self.closed = False
        self._elsewhere = False

    def in_child(self) -> None:
        """A fork is a copy. What is in flight is in flight in the parent, and so is what the budget has left."""
        self.in_flight, self._elsewhere = 0, self.budget is not None

    @property
    def left(self) -> int | None:
        """Queries that the budget still allows, None without one. Lost ones may have been paid for, and count."""
        self._require_here()
        return None if self.budget is None else max(0, self.budget - self.answered - self.lost - self.in_flight)

    def _require_here(self) -> None:
        if self._elsewhere:
            raise InvalidInput(
                "this process is a fork, and a budget without a ledger cannot be in two processes; give the client a "
                "ledger, which all processes share"
            )

    def reserve(self, n: int, wanted: int) -> None:
        """Take n queries as in flight if the budget allows `wanted` more."""
        with self.lock:
            if self.closed:
                raise InvalidInput("the client is closed; make another: QueryClient(box, budget, ledger)")
            if (left := self.left) is not None and wanted > left:
                raise BudgetExceeded(wanted, left)
            self.in_flight += n

    def cancel(self, n: int) -> None:
        """Give back n reserved queries that were never sent."""
        with self.lock:
            self.in_flight -= n

    def attempt(self, n: int) -> int:
        """Count a batch of n as sent; returns its number."""
        with self.lock:
            self.attempted += n
            self.batches += 1
            return self.batches - 1

    def settle(self, phase: str, n: int, answered: int) -> None:
        """End a batch of n of which `answered` are paid for."""
        with self.lock:
            self.in_flight -= n
            self.answered += answered
            if answered:
                self.spent[phase] = self.spent.get(phase, 0) + answered

    def lose(self, n: int) -> None:
        """End a batch of n that was interrupted: whether it was answered is not known."""
        with self.lock:
            self.in_flight -= n
            self.lost += n

    def deliver(self, n: int, tallies: tuple[Tally, ...]) -> None:
        """Count n answers as handed to the caller, in its tallies too."""
        with self.lock:
            self.delivered += n
            for tally in tallies:
                tally.delivered += n

    def pass_white(self, n: int) -> None:
        """Count n images that passed a differentiable box."""
        with self.lock:
            self.white_passes += n

    def learn_shape(self, shape: Shape) -> Shape:
        """The shape of an answer, from the first on: `shape` if it is the first."""
        with self.lock:
            if self.answer_shape is None:
                self.answer_shape = shape
            return self.answer_shape

    def close(self) -> None:
        """Refuse whatever is reserved from now on."""
        with self.lock:
            self.closed = True

    @property
    def idle(self) -> bool:
        """Whether it is closed, and nothing is in flight any more."""
        with self.lock:
            return self.closed and not self.in_flight

"""What one client has spent, counted exactly whatever the number of threads that ask."""

from __future__ import annotations

from certibox.errors import BudgetExceeded, InvalidInput
from certibox.queries.bills import BILLS
from certibox.queries.concurrency import Forkable

Shape = tuple[int, ...]


class Tally:
    """Answers that one piece of work was given while others use the same client."""

    def __init__(self) -> None:
        self.delivered = 0
        """Number of answers, replayed ones included."""


class Meter(Forkable):
    """The counters of one client, each changed under one lock; without a ledger the budget stands on them.

    Queries are reserved before they are sent and settled after, as in the ledger, so that threads cannot overspend
    together.

    Args:
        totals: Queries answered, attempted and lost so far.
        spent: Answers by phase so far.
        bills: Name of what the budget counts, one of `bills.BILLS`.
    """

    def __init__(self, totals: tuple[int, int, int], spent: dict[str, int], bills: str = "image") -> None:
        super().__init__()
        self._bill, self._billed = BILLS[bills], 0
        self.spent = spent
        self.answered, self.attempted, self.lost = totals
        self.delivered = self.white_passes = self.batches = self.in_flight = 0
        self.answer_shape: Shape | None = None
        self.closed = False
        self._forked = False

    def in_child(self) -> None:
        """A fork is a copy. What is in flight is in flight in the parent alone."""
        self.in_flight, self._forked = 0, True

    def committed(self) -> int:
        """What counts against a budget without a ledger, in what the box bills: answered, in flight, or lost."""
        if self._forked:
            raise InvalidInput(
                "this process is a fork, and a budget without a ledger cannot be in two processes; give the client a "
                "ledger, which all processes share"
            )
        return self._billed

    def reserve(self, n: int, wanted: int, budget: int | None) -> None:
        """Take queries as in flight.

        Args:
            n: Number of queries, those of one request.
            wanted: Number of queries that the budget must still allow, n a request.
            budget: Most that may be spent, in what the box bills; None for no limit, or where a ledger keeps it.

        Raises:
            BudgetExceeded: The budget does not allow `wanted` more queries. Nothing was reserved.
            InvalidInput: The client is closed, or this process is a fork that must not spend the budget.
        """
        with self.lock:
            if self.closed:
                raise InvalidInput("the client is closed; make another: QueryClient(box, budget, ledger)")
            asked = self._bill.of_call(wanted, n)
            if budget is not None and asked > (left := budget - self.committed()):
                raise BudgetExceeded(asked, max(0, left), self._bill.unit)
            self.in_flight += n
            self._billed += self._bill.of(n)

    def cancel(self, n: int) -> None:
        """Give back reserved queries that were never sent.

        Args:
            n: Number of queries.
        """
        with self.lock:
            self.in_flight -= n
            self._billed -= self._bill.of(n)

    def attempt(self, n: int) -> int:
        """Count a batch as sent.

        Args:
            n: Number of queries.

        Returns:
            The number of the batch, from 0.
        """
        with self.lock:
            self.attempted += n
            self.batches += 1
            return self.batches - 1

    def settle(self, phase: str, n: int, answered: int) -> None:
        """End a batch.

        Args:
            phase: Name under which it is booked.
            n: Number of queries that were reserved.
            answered: Number of them that are paid for.
        """
        with self.lock:
            self.in_flight -= n
            self._billed -= self._bill.of(n) - self._bill.of(n, answered)
            self.answered += answered
            if answered:
                self.spent[phase] = self.spent.get(phase, 0) + answered

    def lose(self, n: int) -> None:
        """End a batch that was interrupted: whether it was answered is not known.

        Args:
            n: Number of queries that were reserved.
        """
        with self.lock:
            self.in_flight -= n
            self.lost += n

    def deliver(self, n: int, tallies: tuple[Tally, ...]) -> None:
        """Count answers as handed to the caller.

        Args:
            n: Number of answers.
            tallies: Tallies of the caller.
        """
        with self.lock:
            self.delivered += n
            for tally in tallies:
                tally.delivered += n

    def pass_white(self, n: int) -> None:
        """Count images that passed a differentiable box.

        Args:
            n: Number of images.
        """
        with self.lock:
            self.white_passes += n

    def learn_shape(self, shape: Shape) -> Shape:
        """The shape that all answers have, from the first on.

        Args:
            shape: Shape of an answer, without the images.

        Returns:
            The shape of the first answer: `shape` if this is the first.
        """
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

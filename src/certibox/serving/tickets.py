"""A request as the engine has it: some images, each with pieces that it wants, and what becomes of them."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from certibox.certification.pieces import Certifying
from certibox.certification.predicting import Predicting

Vote = Certifying | Predicting


class Full(Exception):
    """More images are in flight than are taken at a time.

    Args:
        seconds: Seconds after which there may be room.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"as many images are in flight as are taken at a time; ask again in {seconds:.0f} s")
        self.seconds = seconds


class TimedOut(Exception):
    """The time of a request ran out before its votes said anything."""


class Stopped(Exception):
    """The engine was stopped before the votes were in."""


class Ticket:
    """The images of one request, and what becomes of them.

    Args:
        polls: Votes of the images, of which nothing is asked yet.
        account: Name of who pays; None where nobody in particular does.
        changed: Function that is called, in any thread, whenever votes came in; None for nobody.
    """

    def __init__(
        self, polls: Sequence[Vote], account: str | None = None, changed: Callable[[], object] | None = None
    ) -> None:
        self.polls, self.account, self.changed = list(polls), account, changed
        self.asked: Counter[int] = Counter()
        """Samples that the box was asked for, by the position of the image."""
        self.ended = False
        """Whether time ended some of the votes before their rule did."""
        self.done: Future[None] = Future()
        """Set when all votes are in, or to the error that ended them."""
        self.open: deque[int] = deque(range(len(self.polls)))  # positions of those that are not finished
        self._caps = [poll.most_left for poll in self.polls]
        self.done.set_running_or_notify_cancel()  # whoever waits for it cannot cancel it: `Engine.cancel` does

    @property
    def wanting(self) -> list[Vote]:
        """Votes of images that want samples now."""
        return [self.polls[i] for i in self.open if self.polls[i].wanted]

    @property
    def reserved(self) -> int:
        """Most queries that it may still ask."""
        return sum(self._caps[i] - self.asked[i] for i in self.open)

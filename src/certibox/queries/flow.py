"""How fast a box is asked: as many calls at once as it bears, no more a second than is allowed, later where it is busy.

- `Gate`: the number of calls at once, which grows while all goes well and halves where the box is overloaded;
- `Rate`: images or requests a second, and the clock that a rate is kept by;
- `Patience`: how long an overloaded box is asked again.
"""

from __future__ import annotations

import random
import re
import threading
import time
from dataclasses import dataclass
from typing import Any

from certibox.errors import InvalidInput

BEGINNING = 2.0  # calls at once from which a gate grows
SHORTEST, LONGEST = 0.25, 30.0  # seconds of the first pause, at most, and of a later one
_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(images?|requests?)?\s*(?:/\s*(s|min|h))?\s*")
SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}  # of units of time, as users write them


class Gate:
    """At most so many calls at once, as a lock that several may hold.

    The number doubles with every round of answers until the box is overloaded for the first time, and halves then.
    From there it grows by one a round. Calls that began before it was halved do not halve it again.

    Args:
        most: Most calls at once.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._limit = min(BEGINNING, float(most))
        self._held = 0
        self._free = threading.Condition()
        self._steady = False
        self._halved_at = float("-inf")

    @property
    def limit(self) -> int:
        """Number of calls that may be under way now."""
        return int(self._limit)

    def acquire(self) -> bool:
        """Wait for a call's place."""
        with self._free:
            while self._held >= int(self._limit):
                self._free.wait()
            self._held += 1
        return True

    def release(self) -> None:
        """Give a place back."""
        with self._free:
            self._held -= 1
            self._free.notify()

    def went_well(self) -> None:
        """Let the number grow: a call was answered."""
        with self._free:
            self._limit = min(float(self.most), self._limit + (1.0 / self._limit if self._steady else 1.0))
            self._free.notify()

    def overloaded(self, began: float) -> None:
        """Halve the number: the box refused a call.

        Args:
            began: Time at which the call began, of `time.monotonic`.
        """
        with self._free:
            self._steady = True
            if began > self._halved_at:
                self._limit, self._halved_at = max(1.0, self._limit / 2), time.monotonic()

    def __enter__(self) -> Gate:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@dataclass(frozen=True)
class Rate:
    """Most images, or requests, a second."""

    each_second: float
    """Number of them a second."""
    of: str = "images"
    """What is counted: "images" or "requests"."""

    @classmethod
    def read(cls, given: Any) -> Rate | None:
        """A rate from what a user gave.

        Args:
            given: `Rate`, a number of images a second, a text such as "200 images/s" or "600 requests/min", or None.

        Raises:
            InvalidInput: It is something else, or not above 0.
        """
        if given is None or isinstance(given, Rate):
            return given
        if not isinstance(given, bool) and isinstance(given, int | float | str):
            found = _RATE.fullmatch(str(given))
            if found and float(found[1]) > 0:
                of = "requests" if (found[2] or "").startswith("request") else "images"
                return cls(float(found[1]) / SECONDS[found[3] or "s"], of)
        raise InvalidInput(f"rate is {given!r}; wanted one such as 200 images/s or 600 requests/min")

    def seconds(self, images: int) -> float:
        """Seconds that one request takes of the allowance.

        Args:
            images: Number of its images.
        """
        return (images if self.of == "images" else 1) / self.each_second


class Clock:
    """When the next request may be sent, for the callers of one client; a ledger keeps it for all of its clients."""

    def __init__(self) -> None:
        self._lock, self._next = threading.Lock(), 0.0

    def slot(self, seconds: float) -> float:
        """Take the next place in time.

        Args:
            seconds: Seconds that must pass before the place after it.

        Returns:
            Seconds to wait for it.
        """
        with self._lock:
            now = time.time()
            at = max(now, self._next)
            self._next = at + seconds
            return at - now


class Patience:
    """How long one batch is asked again while the box is overloaded.

    Args:
        seconds: Seconds from the first refusal on after which it is given up.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends: float | None = None
        self._tries = 0

    def pause(self, after: float | None) -> float | None:
        """Seconds to wait before the batch is asked again; None where its time would be over then.

        The pause is drawn anew for each batch, so that those refused together do not come back together; the longest
        of them doubles with every refusal. A server that names a time is waited for, and a little longer.

        Args:
            after: Seconds that the server asked to wait; None where it did not.
        """
        now = time.monotonic()
        self._ends = now + self.seconds if self._ends is None else self._ends
        drawn = _RANDOM.uniform(0.5, 1.0) * min(LONGEST, SHORTEST * 2.0**self._tries)
        self._tries += 1
        pause = drawn if after is None else after + min(drawn, 0.1 * after + 0.05)
        return pause if now + pause <= self._ends else None


_RANDOM = random.Random()  # of its own: neither changes what others draw, nor is changed by their seeds

"""Whether the gateway can answer: canaries on a schedule, and batches that fail, one after the other.

A box that answers its canaries otherwise is another model, of which no certificate speaks: readiness goes off until it
answers as before. A box that fails is asked again after a while, and readiness comes back with its first answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from certibox.errors import BoxChanged, BudgetExceeded, one_line

FAILING = 3  # batches that fail one after the other before readiness goes off
_WAITS = (1.0, 60.0)  # seconds between two looks at a box that fails, at first and at most


class Health:
    """The state of the box behind a gateway, and the thread that looks at it.

    Args:
        look: Function that asks the box its canaries and raises what is wrong; None where nobody knows any.
        every: Seconds between two looks; None to look only where batches fail.
        logged: Function that is told of every change: a reason, "" where all is well.
    """

    def __init__(
        self, look: Callable[[], None] | None, every: float | None, logged: Callable[[str], None] = lambda reason: None
    ) -> None:
        self._look, self._every, self._logged = look, every, logged
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._failed = 0
        self._wait = _WAITS[0]
        self.changed = False
        """Whether the box is another one than it was."""
        self.reason = ""
        """Why the gateway cannot answer; "" where it can."""
        self.looks = 0
        """Number of times that the canaries were asked."""
        self._thread = threading.Thread(target=self._watch, name="canaries", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether the gateway can answer."""
        return not self.reason

    def told(self, error: BaseException | None) -> None:
        """Note how a batch ended.

        Args:
            error: Error of the batch; None where it was answered.
        """
        with self._lock:
            if error is None:
                self._failed = 0
                if self.reason and not self.changed:
                    self._set("")
            elif not isinstance(error, BudgetExceeded):
                self._fail(error, changed=isinstance(error, BoxChanged))

    def _fail(self, error: BaseException, changed: bool) -> None:
        self._failed += 1
        self.changed = self.changed or changed
        if self.changed or self._failed >= FAILING:
            self._set(one_line(error))
            self._wake.set()

    def _set(self, reason: str) -> None:
        if bool(reason) != bool(self.reason):
            self._logged(reason)
        self.reason = reason
        if not reason:
            self._wait = _WAITS[0]

    def _watch(self) -> None:
        while not self._stopping:
            with self._lock:
                seconds = self._wait if self.reason else self._every
                self._wait = min(_WAITS[1], 2 * self._wait) if self.reason else _WAITS[0]
            woken = self._wake.wait(seconds)
            self._wake.clear()
            if self._stopping:
                return
            if not woken:  # else a batch has just failed, and the box gets its rest first
                self._once()
                self._wake.clear()

    def _once(self) -> None:
        """Look at the box once."""
        if self._look is None:
            with self._lock:  # nobody knows any canaries: the next request tries
                if self.reason and not self.changed:
                    self._failed = FAILING - 1
                    self._set("")
            return
        try:
            self.looks += 1
            self._look()
        except BudgetExceeded:  # nothing is known of the box, and no request can be paid for
            return
        except Exception as error:  # of a box that is a stranger's function, say: the thread goes on
            with self._lock:
                self._failed = max(self._failed, FAILING - 1)
                self._fail(error, changed=isinstance(error, BoxChanged))
            return
        with self._lock:
            self._failed, self.changed = 0, False
            self._set("")

    def stop(self) -> None:
        """End the thread."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

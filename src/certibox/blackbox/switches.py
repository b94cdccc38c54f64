"""Settings of the whole process that several threads want changed at once, and changed back when nobody wants it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Switch:
    """A setting of the process that one or more threads want changed for a while.

    The first thread in changes the setting and the last thread out changes it back. Threads that each saved the setting
    and restored what they had saved would leave it changed: the second to enter saves what the first has changed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: dict[object, int] = {}  # one entry a user inside: the thread that came in
        self._change_back: Callable[[], object] = lambda: None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._lock.acquire, after_in_parent=self._lock.release, after_in_child=self._left_by_threads
            )

    @contextmanager
    def changed(self, change: Callable[[], Callable[[], object]]) -> Iterator[None]:
        """Keep the setting changed inside the block.

        Args:
            change: Function that changes the setting and returns the function that changes it back. Only the first
                user inside has its function called.
        """
        user = object()
        with self._lock:
            if not self._inside:
                self._change_back = change()
            self._inside[user] = threading.get_ident()
        try:
            yield
        finally:
            with self._lock:
                self._leave(user)

    def _leave(self, *users: object) -> None:
        if self._inside:
            for user in users:
                self._inside.pop(user, None)
            if not self._inside:
                self._change_back()

    def _left_by_threads(self) -> None:
        """In a forked process: only the thread that forked is there, so no other will ever change the setting back."""
        here = threading.get_ident()
        self._leave(*[user for user, thread in self._inside.items() if thread != here])
        self._lock.release()

"""Answers paid for since the last checkpoint, in the order in which they were asked for."""

from __future__ import annotations

import os
import threading

import numpy as np

from certibox.queries.ledger import Ledger


class Journal:
    """Answers kept between two checkpoints of one piece of work, in the order in which they were asked for.

    Args:
        ledger: Ledger that keeps the answers.
        scope: Name of the piece of work.
        position: Number of the first batch that its checkpoint does not cover.
    """

    def __init__(self, ledger: Ledger, scope: str, position: int) -> None:
        self.scope = scope
        """Name of the piece of work."""
        self.position = position
        """Number of the next batch: what a checkpoint has to keep."""
        self._ledger, self._lock, self._process = ledger, threading.Lock(), os.getpid()

    @property
    def is_of_this_process(self) -> bool:
        """False in a fork of the process whose work this is; the work goes on there, not here."""
        return self._process == os.getpid()

    def claim(self, count: int = 1) -> int:
        """The position of the first of the batches that are about to be asked, moving on past all of them.

        Args:
            count: Number of batches.
        """
        with self._lock:
            self.position += count
            return self.position - count

    def give_back(self, position: int, count: int = 1) -> None:
        """Let the next batches take the places of those that were not all answered.

        Args:
            position: Position that `claim` returned.
            count: Number of batches.
        """
        with self._lock:
            if self.position == position + count:  # else others have gone on from it, and it stays a gap
                self.position = position

    def recall(self, position: int, inputs: str) -> np.ndarray | None:
        """The answers already paid for at a position; None when they must be asked for.

        Args:
            position: Position that `claim` returned.
            inputs: Digest of the images, from `batch_digest`.
        """
        return self._ledger.recall(self.scope, position, inputs)

    def entry(self, position: int, inputs: str, answers: np.ndarray) -> tuple[str, int, str, np.ndarray]:
        """What the ledger stores for answers just bought.

        Args:
            position: Position that `claim` returned.
            inputs: Digest of the images.
            answers: Answers to them, one row an image.
        """
        return self.scope, position, inputs, answers

    def trim(self) -> None:
        """Forget what a checkpoint now covers."""
        self._ledger.forget(self.scope, self.position)

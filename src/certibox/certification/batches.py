"""One batch of noisy copies of several images: how large it is, its noise, its answers, and whose votes they are.

Which images share a batch is decided elsewhere: by `interleaving` for the images of a data set, by the gateway for the
requests in flight.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from certibox.certification.asking import Voter
from certibox.certification.pieces import Piece, Poll
from certibox.errors import BlackBoxError

MOST_KEPT = 1 << 26  # values of noise that open images may keep, 256 MiB
Part = tuple[Any, Piece]  # a poll of whatever kind, and a piece of it
Saw = Callable[[Any, Piece, Tensor], None]


class Batch(NamedTuple):
    """Samples of one call: whose they are, in order, and their noisy copies, once they are drawn."""

    parts: list[Part]
    images: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def polls(self) -> list[Any]:
        """The images of the batch, each once."""
        return list(dict.fromkeys(poll for poll, _ in self.parts))


class Answers(NamedTuple):
    """The answers to a batch, the classes (n,) that they vote for, and what failed after they were paid for."""

    outputs: Tensor
    labels: np.ndarray
    failed: BlackBoxError | None = None


class Batches:
    """Makes batches for one base classifier, asks them, and gives every image its votes.

    Args:
        voter: Base classifier.
        batch_size: Most noisy copies at a time.
        saw: Function that is shown each part of an answer: poll, piece and outputs (n, ...).
        together: What is entered while a batch is counted, so that all its votes are written at once.
    """

    def __init__(
        self,
        voter: Voter,
        batch_size: int,
        saw: Saw | None = None,
        together: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._voter, self._most, self._saw, self._together = voter, batch_size, saw, together
        self._marked = time.perf_counter()

    @property
    def calls_at_once(self) -> int:
        """Number of calls that the base classifier takes at once."""
        return self._voter.calls_at_once

    def start_clock(self) -> None:
        """Count the seconds of images from now on."""
        self._marked = time.perf_counter()

    def size(self, poll: Poll) -> int:
        """The number of noisy copies that a batch holds.

        Args:
            poll: Image of the batch.
        """
        return min(self._most, self._voter.at_a_time(poll.x.numel()) or self._most)

    def made(self, parts: list[Part]) -> Batch:
        """The batch of some pieces, whose copies are still to be drawn.

        Args:
            parts: Pieces that were begun, of images that are alike.
        """
        x = parts[0][0].x
        count = sum(piece.stop - piece.start for _, piece in parts)
        return Batch(parts, torch.empty((count, *x.shape), dtype=x.dtype, device=x.device))

    def draw(self, batch: Batch, pool: ThreadPoolExecutor | None = None) -> Batch:
        """Fill a batch with its noisy copies, and return it.

        Args:
            batch: Batch that was made.
            pool: Pool that draws blocks beside one another; None to draw them one by one.
        """
        start = 0
        with torch.inference_mode():
            for poll, piece in batch.parts:
                stop = start + piece.stop - piece.start
                poll.draw(piece, batch.images[start:stop], pool)
                start = stop
        return batch

    def ask(self, batch: Batch) -> Answers:
        """The checked answers to a batch; with the first, the check that images are answered alone.

        Args:
            batch: Batch that was drawn.
        """
        voter, failed = self._voter, None
        with torch.inference_mode():
            again, outputs = voter.batch_check.sample(batch.images), voter.ask(batch.images)
            labels = voter.labels(outputs, len(batch)).cpu().numpy()
            if again is not None:
                try:
                    voter.batch_check.compare(again, outputs, voter.checked)
                except BlackBoxError as error:
                    failed = error
        return Answers(outputs, labels, failed)

    def count(self, batch: Batch, answers: Answers) -> None:
        """Give every image its votes, and only then raise what failed after they were paid for.

        Args:
            batch: Batch that was asked.
            answers: Answers to it.
        """
        now = time.perf_counter()
        each, self._marked = (now - self._marked) / len(batch), now
        start = 0
        with self._together():
            for poll, piece in batch.parts:
                stop = start + piece.stop - piece.start
                if self._saw:
                    self._saw(poll, piece, answers.outputs[start:stop])
                poll.seconds += each * (stop - start)
                poll.take(piece, np.bincount(answers.labels[start:stop], minlength=self._voter.num_classes))
                start = stop
        if answers.failed is not None:
            raise answers.failed


def alike(one: Poll, other: Poll) -> bool:
    """Whether the images of two polls can be in one batch.

    Args:
        one: Poll of an image.
        other: Poll of another.
    """
    return one.x.shape == other.x.shape and one.x.dtype == other.x.dtype and one.x.device == other.x.device


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

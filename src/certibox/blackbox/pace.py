"""How many images a network takes at a time: what is fastest is measured while the answers are asked for anyway."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

MOST = 1024  # images at a time that are tried
TRIES = 3  # calls of each size; the fastest of them counts, for whatever else the machine does only slows a call
GAIN = 0.02  # share of the time an image that a larger size must save


class Pace:
    """The number of images at a time that took the least time an image, on a processor whose caches are small.

    Sizes double from the usual one on. Each is tried a few times, and the next as long as doubling saves time.

    Args:
        usual: Number of images to begin with.
        most: Number of images that is never exceeded.
    """

    def __init__(self, usual: int, most: int = MOST) -> None:
        self._size, self._most = usual, most
        self._best, self._before, self._tries = float("inf"), float("inf"), 0
        self._settled = 2 * usual > most

    @property
    def size(self) -> int:
        """Number of images to take next."""
        return self._size

    def note(self, n: int, seconds: float) -> None:
        """Learn from a call; one of another size tells nothing.

        Args:
            n: Number of its images.
            seconds: Time that it took.
        """
        if self._settled or n != self._size:
            return
        self._best, self._tries = min(self._best, seconds / n), self._tries + 1
        if self._tries < TRIES:
            return
        if self._best > (1 - GAIN) * self._before:
            self._size, self._settled = self._size // 2, True
        elif 2 * self._size > self._most:
            self._settled = True
        else:
            self._before, self._best, self._tries, self._size = self._best, float("inf"), 0, 2 * self._size

    def in_parts(self, work: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """What work gives for all images, so many at a time as is fastest.

        Args:
            work: Function (b, ...) -> (b, ...) that treats each image alone.
            images: Images (n, c, h, w).
        """
        if len(images) <= self._size and self._settled:
            return work(images)
        parts, start = [], 0
        while start < len(images):
            part = images[start : start + self._size]
            started = time.perf_counter()
            parts.append(work(part))
            self.note(len(part), time.perf_counter() - started)
            start += len(part)
        return torch.cat(parts) if len(parts) != 1 else parts[0]

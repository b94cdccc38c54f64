"""Whether a base classifier answers each image alone, as certificates suppose: made to show on the first batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from certibox.errors import BudgetExceeded, NotAnswered, Notice

PHASE = "batch check"
TOLERANCE = 1e-3  # of the scores' range: rounding differs between sizes of batches
DEPENDS = (
    "the answer to an image depends on the other images of its batch, or on chance: a certificate speaks of a function "
    "of the image alone; put the model in evaluation mode"
)


@runtime_checkable
class Metered(Protocol):
    """A meter that books what is asked under the phase that its caller is in, as `QueryClient` does."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Book what is spent inside the block under a name.

        Args:
            name: Name of the phase.
        """
        ...


def meter_of(owner: object) -> Metered | None:
    """The meter that books what a base classifier is asked; None where nobody counts.

    Args:
        owner: Owner of the base classifier: a meter, or what has one as its `client`, as a `Defense` has.
    """
    meter = getattr(owner, "client", owner)
    return meter if isinstance(meter, Metered) else None


def booked_as(owner: object, phase: str) -> AbstractContextManager[None]:
    """Book what is asked inside the block under a name, where somebody counts.

    Args:
        owner: Owner of the base classifier.
        phase: Name of the phase.
    """
    meter = meter_of(owner)
    return nullcontext() if meter is None else meter.phase(phase)


class BatchCheck:
    """Asks the first and the last image of the first batch again, as a batch of their own, and compares.

    Behind a meter that costs two queries, once, which a budget that needs them for the work in hand is not asked for.
    An owner, or its meter, that has a true attribute `answers_alone` is not checked.

    Args:
        owner: Owner of the base classifier.
    """

    def __init__(self, owner: object) -> None:
        self._owner, self._meter, self._reserved = owner, meter_of(owner), 0
        self._due = not getattr(owner, "answers_alone", getattr(self._meter, "answers_alone", False))

    @contextmanager
    def reserving(self, queries: int) -> Iterator[None]:
        """Leave the work inside the block as many queries of a budget as it may need.

        Args:
            queries: Number of queries.
        """
        before = self._reserved
        self._reserved = max(before, queries)
        try:
            yield
        finally:
            self._reserved = before

    def skip(self) -> None:
        """Leave the check out: the run that is gone on with has made it."""
        self._due = False

    def sample(self, images: Tensor) -> Tensor | None:
        """Copies of the images that are to be asked again, (2, c, h, w); None where there is nothing to ask.

        Args:
            images: Images (n, c, h, w) that are about to be asked.
        """
        if not self._due or len(images) < 3:
            return None
        self._due = False
        left = getattr(self._meter, "images_left", None)
        return images[[0, -1]] if left is None or left >= self._reserved + 2 else None

    def compare(self, again: Tensor, outputs: Tensor, ask: Callable[[Tensor], Tensor]) -> None:
        """Ask the sample again, and warn where it is answered otherwise than in its batch.

        Args:
            again: Images (2, c, h, w) of `sample`.
            outputs: Answers (n, ...) to the whole batch.
            ask: Function that asks the base classifier.
        """
        try:
            with booked_as(self._owner, PHASE):
                alone = ask(again)
        except BudgetExceeded:  # others spend it too
            return
        except NotAnswered:  # the batch itself is answered and paid: its answers stand, and the next one is checked
            self._due = True
            return
        if _differ(outputs, alone):
            warnings.warn(DEPENDS, Notice, stacklevel=2)  # the same text every time, so that it is shown once


def _differ(outputs: Tensor, alone: Tensor) -> bool:
    """Whether the answers to the first and the last image are others in their batch (n, ...) and alone (2, ...)."""
    there = outputs[[0, -1]]
    if not there.is_floating_point():
        return not torch.equal(there, alone)
    rounding = max(TOLERANCE, 4 * torch.finfo(there.dtype).eps)
    return bool((there - alone).abs().max() > rounding * (outputs.max() - outputs.min()))

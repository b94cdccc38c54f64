"""What a provider bills: images, requests, or the images of every attempt. A budget counts in these units."""

from __future__ import annotations

from typing import NamedTuple


class Bill(NamedTuple):
    """How a request is billed, and how that is summed over the rows of a ledger.

    A request that may have been answered counts as one that was: what is in flight, and what is lost.
    """

    unit: str
    """Name of what is counted, in messages."""
    sql: str
    """Sum over the rows of `spend`."""
    each_image: bool
    """Whether every image of a request counts; else the request counts once."""
    each_attempt: bool
    """Whether a request that was refused, or never arrived, counts too."""

    def of(self, sent: int, answered: int | None = None) -> int:
        """What one request costs.

        Args:
            sent: Number of its images.
            answered: Number of them that were answered; None where that is not known.
        """
        count = sent if answered is None or self.each_attempt else answered
        return count if self.each_image else int(count > 0)

    def of_call(self, images: int, at_once: int) -> int:
        """What the requests of one call cost.

        Args:
            images: Number of images of the call.
            at_once: Number of images of a request.
        """
        return images if self.each_image else -(-images // at_once)


BILLS = {
    "image": Bill("queries", "SUM(CASE WHEN answered IS NULL THEN attempted ELSE answered END)", True, False),
    "request": Bill("requests", "SUM(CASE WHEN answered = 0 THEN 0 ELSE 1 END)", False, False),
    "attempt": Bill("attempts", "SUM(attempted)", True, True),
}
"""Kinds of bills by the names that `BoxSpec.bills` has."""

"""An outcome of certification with votes, as a report reads it, whatever it contradicts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Voted:
    """An image with its votes, and with the radii that a stopping rule decided."""

    idx: int
    label: int | None
    predict: int | None
    radius: float
    counts: tuple[int, ...] = (9, 1)
    decided: tuple[float, ...] | None = None
    file: str | None = None
    queries: int = 110
    sigma: float = 0.25
    alpha: float = 0.001
    seconds: float = 1.0

    @property
    def correct(self) -> bool | None:
        return None if self.label is None else self.predict == self.label

"""What rows say beyond the shares: clean images, classes apart, the images that hold least, two runs in words."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from certibox import confidence as bounds
from certibox.errors import InvalidInput
from certibox.records.checks import Outcome
from certibox.report.numbers import Run, certified_accuracy, checked_radii, joined, measure_of


def clean_accuracy(rows: Sequence[Outcome]) -> float | None:
    """Share of images whose class of most votes is the label; None for rows without labels or votes.

    The votes are those under noise on unchanged images: no certificate is asked for, and an abstention counts by its
    votes.

    Args:
        rows: Certified images of one run.
    """
    right = []
    for row in rows:
        votes: tuple[int, ...] | None = getattr(row, "counts", None)
        if votes is None or row.label is None:
            return None
        right.append(int(np.argmax(votes)) == row.label)
    return float(np.mean(right)) if right else None


def by_class(rows: Sequence[Outcome], radii: ArrayLike) -> dict[int, tuple[int, np.ndarray]]:
    """Class -> number of its images, and their certified accuracy (k,); empty where a row has no label.

    Args:
        rows: Certified images of one run.
        radii: Radii (k,), in pixels on [0, 1].
    """
    if any(row.label is None for row in rows):
        return {}
    counted = Counter(row.label for row in rows if row.label is not None)
    return {
        label: (count, certified_accuracy([row for row in rows if row.label == label], radii))
        for label, count in sorted(counted.items())
    }


def margin(row: Outcome) -> float:
    """Radius on the right side: that of a right certificate, minus that of a wrong one, 0 for an abstention.

    A certificate without a label counts as right.

    Args:
        row: Certified image.
    """
    return 0.0 if row.predict is None else -row.radius if row.correct is False else row.radius


def least_robust(rows: Sequence[Outcome], count: int = 10) -> list[Outcome]:
    """The images with the smallest `margin`, the smallest first: wrong certificates, abstentions, small radii.

    Args:
        rows: Certified images of one run.
        count: Number of images at most.
    """
    return sorted(rows, key=lambda row: (margin(row), row.idx))[:count]


def decided_radii(rows: Sequence[Outcome]) -> tuple[float, ...] | None:
    """Radii that the stopping rules of all rows decided; None where every radius means the same, as for a fixed n.

    Args:
        rows: Certified images of one run.
    """
    asked = [radii for row in rows if (radii := getattr(row, "decided", None)) is not None]
    if not asked:
        return None
    return tuple(sorted(set(asked[0]).intersection(*asked[1:])))


@final
@dataclass(frozen=True)
class Comparison:
    """Two runs on the same images at one radius."""

    a: str
    """Name of the first run."""
    b: str
    """Name of the second run."""
    radius: float
    """Radius, in pixels on [0, 1]."""
    difference: float
    """Share of images that count in a minus that in b."""
    low: float
    """Lower end of its 95 % bootstrap interval over images."""
    high: float
    """Upper end of the interval."""

    @property
    def verdict(self) -> str:
        """The run that certifies more, in words, or that none can be told to."""
        if self.low > 0:
            return f"{self.a} certifies more"
        return f"{self.b} certifies more" if self.high < 0 else "no difference can be told"

    @property
    def line(self) -> str:
        """The comparison as one line."""
        interval = f"95 % interval [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        points = f"{100 * self.difference:+.1f} points"
        return f"{self.a} minus {self.b} at r = {self.radius:g}: {points}, {interval}: {self.verdict}"


def comparisons(runs: Sequence[Run], radii: ArrayLike) -> tuple[list[Comparison], list[str]]:
    """Every later run minus every earlier one at each radius, and a line for each pair that cannot be compared.

    Args:
        runs: Runs of one table.
        radii: Radii (k,), in pixels on [0, 1].
    """
    measure, asked = measure_of(runs), checked_radii(radii).tolist()
    found, apart = [], []
    for b, a in itertools.combinations(runs, 2):
        try:
            rows_a, rows_b = joined(a.rows, b.rows)
        except InvalidInput as error:
            apart.append(f"{a.name} minus {b.name}: not compared: {error}")
            continue
        reach_a, reach_b = measure.reach(rows_a), measure.reach(rows_b)
        for r in asked:
            found.append(Comparison(a.name, b.name, r, *bounds.paired_bootstrap(reach_a >= r, reach_b >= r)))
    return found, apart

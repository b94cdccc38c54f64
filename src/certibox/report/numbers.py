"""Rows to numbers: the shares of certified images with their exact intervals, and the summary of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from certibox import confidence as bounds
from certibox.errors import InvalidInput
from certibox.records.certificates import Outcome

_CONFIDENCE = 0.95
_NEVER = -np.inf  # the radius of a row that counts at no radius at all


@final
@dataclass(frozen=True)
class Run:
    """One line of a table: certified images of one model."""

    name: str
    """Name of the run, unlike the others' of a table."""
    rows: Sequence[Outcome]
    """Certified images, of certibox or published."""
    queries: Mapping[str, int] = field(default_factory=dict)
    """Queries by phase, as `QueryClient.spent` tells them. Phases named "train ..." count as training and "certify ..."
    as certification; other phases, such as "fingerprint", appear in the list of phases only. A phase that is not named
    is unknown, not zero."""


def certified_accuracy(rows: Sequence[Outcome], radii: ArrayLike) -> np.ndarray:
    """Share of rows that are correct with a certified radius of at least r: (k,) shares.

    An abstention counts as wrong (Cohen et al. 2019).

    Args:
        rows: Certified images of one run.
        radii: Radii (k,), in pixels on [0, 1].

    Raises:
        InvalidInput: for no rows, or rows without a label.
    """
    return shares(_correct_reach(rows), radii)


def certified_accuracy_interval(rows: Sequence[Outcome], radii: ArrayLike, confidence: float = 0.95) -> np.ndarray:
    """Two-sided Clopper–Pearson interval of `certified_accuracy` at each radius alone: (k, 2).

    Args:
        rows: Certified images of one run.
        radii: Radii (k,), in pixels on [0, 1].
        confidence: Probability with which an interval holds, in (0, 1).
    """
    return intervals(_correct_reach(rows), radii, confidence)


def certified_share(rows: Sequence[Outcome], radii: ArrayLike) -> np.ndarray:
    """Share of rows certified, right or wrong, with a radius of at least r: (k,) shares; needs no labels.

    Args:
        rows: Certified images of one run.
        radii: Radii (k,), in pixels on [0, 1].
    """
    return shares(_certified_reach(rows), radii)


def abstention_rate(rows: Sequence[Outcome]) -> float:
    """Share of rows that abstain.

    Args:
        rows: Certified images of one run.
    """
    return float(np.mean([row.predict is None for row in _some(rows)]))


def average_certified_radius(rows: Sequence[Outcome]) -> float:
    """Mean of radius · correct, the area under the certified-accuracy curve (Zhai et al. 2020). Needs labels.

    Args:
        rows: Certified images of one run.
    """
    return float(np.maximum(_correct_reach(rows), 0.0).mean())


def paired_difference(
    rows_a: Sequence[Outcome],
    rows_b: Sequence[Outcome],
    radius: float,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Certified accuracy of a minus that of b at `radius`, bootstrapped over images: (difference, low, high).

    Rows are joined on idx.

    Args:
        rows_a: Certified images of run a.
        rows_b: Certified images of run b.
        radius: Radius, in pixels on [0, 1].
        confidence: Probability with which the interval holds, in (0, 1).
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap samples.

    Raises:
        InvalidInput: unless both cover the same images with the same labels.
    """
    (radius,) = checked_radii([radius])
    reach_a, reach_b = (_correct_reach(rows) for rows in joined(rows_a, rows_b))
    return bounds.paired_bootstrap(reach_a >= radius, reach_b >= radius, confidence, resamples, seed)


def _some(rows: Sequence[Outcome]) -> Sequence[Outcome]:
    if not len(rows):
        raise InvalidInput("got no rows, wanted at least one; certify some images first")
    return rows


def _correct_reach(rows: Sequence[Outcome]) -> np.ndarray:
    """(n,) the radius up to which each row counts as correct and certified; never when wrong or abstained."""
    for row in _some(rows):
        if row.correct is None:
            raise InvalidInput(f"row of image {row.idx} has no label; give labels, or use certified_share without them")
    return np.array([row.radius if row.correct else _NEVER for row in rows])


def _certified_reach(rows: Sequence[Outcome]) -> np.ndarray:
    """(n,) the radius up to which each row counts as certified; never when abstained."""
    return np.array([row.radius if row.predict is not None else _NEVER for row in _some(rows)])


def _successes(reach: np.ndarray, radii: ArrayLike) -> np.ndarray:
    """(n,) reaches and (k,) radii -> (k,) how many rows count at each radius."""
    return len(reach) - np.searchsorted(np.sort(reach), checked_radii(radii), side="left")


def checked_radii(radii: ArrayLike) -> np.ndarray:
    """The radii as (k,) floats, or `InvalidInput`.

    Args:
        radii: Radii, in pixels on [0, 1].
    """
    try:
        asked = np.asarray(radii, dtype=float)
    except (TypeError, ValueError, OverflowError):
        asked = np.array(np.nan)
    if asked.ndim != 1 or not np.all(np.isfinite(asked) & (asked >= 0)):
        raise InvalidInput(f"radii are {radii!r}, wanted a list of finite numbers >= 0, such as [0, 0.25, 0.5]")
    return asked


def shares(reach: np.ndarray, radii: ArrayLike) -> np.ndarray:
    """Share of images that count at each radius: (k,).

    Args:
        reach: Radius up to which each image counts (n,); −inf for one that never does.
        radii: Radii (k,), in pixels on [0, 1].
    """
    return _successes(reach, radii) / len(reach)


def intervals(reach: np.ndarray, radii: ArrayLike, confidence: float = _CONFIDENCE) -> np.ndarray:
    """Two-sided Clopper–Pearson interval of the share at each radius alone: (k, 2).

    Args:
        reach: Radius up to which each image counts (n,); −inf for one that never does.
        radii: Radii (k,), in pixels on [0, 1].
        confidence: Probability with which an interval holds, in (0, 1).
    """
    pairs = [bounds.interval(int(count), len(reach), confidence) for count in _successes(reach, radii)]
    return np.array(pairs).reshape(-1, 2)


def joined(rows_a: Sequence[Outcome], rows_b: Sequence[Outcome]) -> tuple[Sequence[Outcome], Sequence[Outcome]]:
    """Both row lists in the order of idx; `InvalidInput` unless they are of the same images with the same labels.

    Args:
        rows_a: Certified images of one run.
        rows_b: Certified images of another run.
    """
    a, b = ({row.idx: row for row in _some(rows)} for rows in (rows_a, rows_b))
    if len(a) < len(rows_a) or len(b) < len(rows_b):
        raise InvalidInput("an image appears twice in the rows of one run; keep one row for each idx")
    if a.keys() != b.keys():
        raise InvalidInput(f"{len(a.keys() ^ b.keys())} image(s) are in one run only; compare runs on the same images")
    order = sorted(a)
    if any(a[idx].label != b[idx].label for idx in order):
        raise InvalidInput("the two runs give one image different labels; compare runs on the same data set")
    if any(getattr(a[idx], "image", None) != getattr(b[idx], "image", None) for idx in order if _told(a[idx], b[idx])):
        raise InvalidInput("the two runs certified other images under one number; compare runs on the same images")
    return [a[idx] for idx in order], [b[idx] for idx in order]


def _told(a: Outcome, b: Outcome) -> bool:
    """Whether both rows say which image they are of; published rows do not."""
    return hasattr(a, "image") and hasattr(b, "image")


@final
@dataclass(frozen=True)
class Measure:
    """What the tables and curves show: certified accuracy, or the certified share when a run has no labels."""

    name: str
    """Name in full."""
    symbol: str
    """Name in the head of a column."""
    reach: Callable[[Sequence[Outcome]], np.ndarray]
    """Function from rows to the radius up to which each of them counts (n,)."""


_ACCURACY = Measure("certified accuracy", "CA", _correct_reach)
_SHARE = Measure("certified share", "share", _certified_reach)


def measure_of(runs: Sequence[Run]) -> Measure:
    """Certified accuracy, or the certified share where a row lacks its label.

    Args:
        runs: Runs of one table; `InvalidInput` for none, or two of one name.
    """
    names = [run.name for run in runs]
    if not names or len(set(names)) < len(names):
        raise InvalidInput(f"runs are named {names}, wanted at least one run and distinct names; rename them")
    return _ACCURACY if all(row.correct is not None for run in runs for row in run.rows) else _SHARE


def summary_table(runs: Sequence[Run], radii: ArrayLike) -> list[dict[str, Any]]:
    """One dictionary for each run, in their order, as values of JSON; shares are in [0, 1].

    Keys: name, images, measure ("certified accuracy", or "certified share" for all runs when one lacks labels), radii,
    share and interval (95 %) at each radius, abstention_rate, average_certified_radius (None without labels),
    samples_per_image (mean votes, those of the selection included), training_queries and certification_queries (None
    when unknown), queries by phase.

    Args:
        runs: Runs of one table.
        radii: Radii (k,), in pixels on [0, 1].
    """
    measure = measure_of(runs)
    return [_summary(run, radii, measure) for run in runs]


def _summary(run: Run, radii: ArrayLike, measure: Measure) -> dict[str, Any]:
    reach = measure.reach(run.rows)
    return {
        "name": run.name,
        "images": len(run.rows),
        "measure": measure.name,
        "radii": checked_radii(radii).tolist(),
        "share": shares(reach, radii).tolist(),
        "interval": intervals(reach, radii).tolist(),
        "abstention_rate": abstention_rate(run.rows),
        "average_certified_radius": average_certified_radius(run.rows) if measure is _ACCURACY else None,
        "samples_per_image": mean_samples(run.rows),
        "training_queries": _spent_on("train", run),
        "certification_queries": _certification_queries(run),
        "queries": dict(run.queries),
    }


def mean_samples(rows: Sequence[Outcome]) -> float | None:
    """Mean votes an image, selection included; None where unknown (published rows do not tell).

    Args:
        rows: Certified images of one run.
    """
    drawn = [getattr(row, "queries", None) for row in rows]
    known = [n for n in drawn if n is not None]
    return float(np.mean(known)) if len(known) == len(drawn) else None


def _certification_queries(run: Run) -> int | None:
    """What the ledger says, else what the rows say, else unknown (published rows do not tell)."""
    booked = _spent_on("certify", run)
    if booked is not None:
        return booked
    spent = [getattr(row, "queries", None) for row in run.rows]
    known = [count for count in spent if count is not None]
    return sum(known) if len(known) == len(spent) else None


def _spent_on(activity: str, run: Run) -> int | None:
    counts = [count for phase, count in run.queries.items() if phase.split(" ")[0] == activity]
    return sum(counts) if counts else None

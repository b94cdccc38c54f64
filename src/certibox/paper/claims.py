"""What measured rows say of the paper's claims: paired differences with their intervals. No torch.

An outcome is the mean over seeds for each image; images are resampled in pairs, so what two rows share cancels. The
seeds' own differences stand beside, since three seeds are too few to resample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from certibox.confidence.bootstrap import paired_bootstrap
from certibox.errors import InvalidInput
from certibox.paper.measured import Measured
from certibox.paper.suite import Claim

Verdict = Literal["holds", "does not hold", "cannot be told"]


@dataclass(frozen=True)
class Finding:
    """A claim beside what was measured. difference, low, high: of `better` over `worse`, with a 95 % interval."""

    claim: Claim
    difference: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    images: int

    @property
    def verdict(self) -> Verdict:
        """Whether the interval lies above the claim's margin, below it, or on both sides."""
        if self.low > self.claim.margin:
            return "holds"
        return "does not hold" if self.high < self.claim.margin else "cannot be told"


def check(claim: Claim, better: Sequence[Measured], worse: Sequence[Measured]) -> Finding | None:
    """The finding of a claim from the rows of all seeds that both sides have; None if there is none."""
    pairs = [(a, b) for a in better for b in worse if a.seed == b.seed]
    if not pairs:
        return None
    lengths = {len(outcomes(row, claim)) for pair in pairs for row in pair}
    if len(lengths) > 1:
        raise InvalidInput(
            f"{claim.better} and {claim.worse} were measured on {sorted(lengths)} images; wanted the same"
        )
    differences = np.array([outcomes(a, claim) - outcomes(b, claim) for a, b in pairs])  # (seeds, images)
    by_image = differences.mean(axis=0)
    difference, low, high = paired_bootstrap(by_image, 0.0)
    by_seed = tuple(float(value) for value in differences.mean(axis=1))
    return Finding(claim, difference, low, high, by_seed, len(by_image))


def outcomes(row: Measured, claim: Claim) -> np.ndarray:
    """What a claim compares, larger is better: certified at its radius (0 or 1), or minus the RMSE; (images,)."""
    if "reach" in row.values:
        return certified(row, claim.at).astype(float)
    return -row.series(f"{claim.threat} rmse {claim.at:g}")


def certified(row: Measured, multiple: float) -> np.ndarray:
    """Whether each image is certified correctly at `multiple` times sigma; (images,) of bool."""
    return row.series("reach") >= multiple * row.settings["sigma"]

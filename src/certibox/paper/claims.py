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
    """A claim beside what was measured. Differences are shares of images (0.01 is a point), or RMSE saved."""

    claim: Claim
    """Claim of the table."""
    difference: float
    """Measured advantage of the better row over the worse, mean over images and seeds."""
    low: float
    """Lower end of the difference's 95 % interval, by bootstrap over images."""
    high: float
    """Upper end of the interval."""
    by_seed: tuple[float, ...]
    """Differences of the seeds by themselves, in the order of the better row's seeds."""
    images: int
    """Number of test images."""

    @property
    def verdict(self) -> Verdict:
        """Whether the interval lies above the claim's margin, below it, or on both sides."""
        if self.low > self.claim.margin:
            return "holds"
        return "does not hold" if self.high < self.claim.margin else "cannot be told"


def check(claim: Claim, better: Sequence[Measured], worse: Sequence[Measured]) -> Finding | None:
    """The finding of a claim from the rows of all seeds that both sides have.

    Args:
        claim: Claim to check.
        better: Measured rows of the row that the claim says is better, one a seed.
        worse: Measured rows of the other row, one a seed.

    Returns:
        The finding; None if no seed was measured on both sides.

    Raises:
        InvalidInput: For rows that were measured on different numbers of images.
    """
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
    """What a claim compares, image by image; larger is better.

    Args:
        row: Measured row.
        claim: Claim that names the radius, or the threat and the norm.

    Returns:
        Array (images,): 1 where the image is certified at the radius of the claim and else 0, or minus the RMSE.
    """
    if "reach" in row.values:
        return certified(row, claim.at).astype(float)
    return -row.series(f"{claim.threat} rmse {claim.at:g}")


def certified(row: Measured, multiple: float) -> np.ndarray:
    """Whether each image is certified correctly at a radius.

    Args:
        row: Measured row of a classification.
        multiple: Radius in multiples of the row's sigma.

    Returns:
        Booleans (images,).
    """
    return row.series("reach") >= multiple * row.settings["sigma"]

"""Paired differences with their bootstrap intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from certibox.errors import InvalidInput


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of a − b over the same images with its percentile bootstrap interval: (difference, low, high).

    Images are resampled in pairs, so what both share cancels.

    Args:
        a: Outcomes per image (n,), 0/1 or real.
        b: Outcomes of the same images in the same order (n,); a number stands for every image.
        confidence: Probability with which the interval holds, in (0, 1).
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap samples.
    """
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)  # (n,)
    if difference.ndim != 1 or not len(difference):
        raise InvalidInput(f"paired outcomes have shape {difference.shape}; wanted two equal, non-empty lists")
    values, counts = np.unique(difference, return_counts=True)
    # Resampling n images is a multinomial draw over the distinct differences: exact, and needs no n x resamples array.
    draws = np.random.default_rng(seed).multinomial(len(difference), counts / len(difference), size=resamples)
    means = draws @ values / len(difference)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(difference.mean()), float(low), float(high)

"""The six methods of the paper, and the parts of the white part that they may train. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Scheme = Literal["denoiser", "denoiser+encoder", "denoiser+autoencoder"]
SCHEMES = ("denoiser", "denoiser+encoder", "denoiser+autoencoder")


@dataclass(frozen=True)
class Method:
    """A defense of the paper."""

    order: Literal[0, 1] | None
    """Order of the stability term's gradient: 1 through the box, 0 by queries; None where there is no such term."""
    bottleneck: bool = False
    """Whether an autoencoder stands behind the denoiser, so that the gradient is that of its embedding."""
    denoises: bool = True
    """Whether there is a denoiser: all but RS, which trains a classifier."""


METHODS = {
    "RS": Method(order=1, denoises=False),
    "DS": Method(order=None),
    "FO-DS": Method(order=1),
    "FO-AE-DS": Method(order=1, bottleneck=True),
    "ZO-DS": Method(order=0),
    "ZO-AE-DS": Method(order=0, bottleneck=True),
}

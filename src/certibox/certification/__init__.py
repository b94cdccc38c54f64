"""Certify a data set: one row an image, appended as it is earned; resumable to the batch; shards that merge."""

from __future__ import annotations

from certibox.certification.dataset import certify_dataset
from certibox.certification.replay import at_alpha, merge, replay
from certibox.certification.sigma import SigmaChoice, choose_sigma, envelope, undecided

__all__ = [
    "SigmaChoice",
    "at_alpha",
    "certify_dataset",
    "choose_sigma",
    "envelope",
    "merge",
    "replay",
    "undecided",
]

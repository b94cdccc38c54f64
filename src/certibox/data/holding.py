"""Images held out, and means over images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from certibox.data import Images
from certibox.errors import InvalidInput


def held_out(images: Images, validation: Images | float, seed: int) -> tuple[Images, Images]:
    """The images to train on and those to select on: given apart, or a share of the first."""
    if not isinstance(validation, Images):
        return images.split(validation, seed)
    if validation.shape != images.shape:
        raise InvalidInput(
            f"validation images have shape {validation.shape}, training images {images.shape}; wanted the same"
        )
    return images, validation


def mean_over(images: Images, measure: Callable[[Tensor, Tensor], Tensor], batch: int = 256) -> float:
    """Mean of measure(x, places) over all images, in batches; measure: (b, c, h, w), (b,) -> (b,)."""
    parts = torch.arange(len(images)).split(batch)
    return sum(float(measure(images.floats(index), index).sum()) for index in parts) / len(images)

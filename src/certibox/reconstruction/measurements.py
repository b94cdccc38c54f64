"""Compressed measurements of images, and the network that undoes them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from certibox import seeds
from certibox.data import Images
from certibox.errors import InvalidImages, InvalidInput
from certibox.networks import mnist_reconstructor
from certibox.training.schedules import Schedule
from certibox.training.steps import Progress
from certibox.training.supervised import fit

# The release's scaling: the ends of the range of AᵀAx over its digits, −2.51 and 3.34, truncated to integers there.
SCALE_LOW, SCALE_HIGH = -2.0, 3.0


@dataclass(frozen=True)
class Measurement:
    """y = Ax with a fixed Gaussian A (m, d) of entries N(0, 1/m); a view of images.

    Called on images on [0, 1], it gives the network's input: Aᵀy scaled, about [0, 1] but not clipped to it.

    Raises:
        InvalidInput: There are no rows, or the image shape is no (c, h, w).
    """

    seed: int
    """Seed of A."""
    image_shape: tuple[int, int, int] = (1, 28, 28)
    """Shape (c, h, w) of an image, d = c h w."""
    measurements: int = 576
    """Number m of measurements of an image."""

    def __post_init__(self) -> None:
        if self.measurements < 1 or len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise InvalidInput(
                f"a measurement has {self.measurements} rows for images {self.image_shape}; "
                "wanted at least 1 row, and (channels, height, width)"
            )

    @cached_property
    def matrix(self) -> Tensor:
        """A (m, d)."""
        d = math.prod(self.image_shape)
        drawn = torch.randn((self.measurements, d), generator=seeds.generator(self.seed, "measurement"))
        return drawn / self.measurements**0.5

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of A, the image shape and the scaling."""
        sha = hashlib.sha256(repr((self.image_shape, self.measurements, SCALE_LOW, SCALE_HIGH)).encode())
        sha.update(self.matrix.numpy().data)
        return sha.hexdigest()

    def measure(self, x: Tensor) -> Tensor:
        """Ax of each image, (n, m).

        Args:
            x: Images (n, c, h, w) on [0, 1].

        Raises:
            InvalidImages: The images have another shape.
        """
        if x.shape[1:] != self.image_shape:
            raise InvalidImages(f"images have shape {tuple(x.shape)}; the measurement takes {self.image_shape} each")
        return x.flatten(1) @ self.matrix.to(x).T

    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀy as an image, (n, c, h, w).

        Args:
            y: Measurements (n, m).
        """
        return (y @ self.matrix.to(y)).reshape(-1, *self.image_shape)

    def __call__(self, x: Tensor) -> Tensor:
        """The network's input (AᵀAx + 2) / 5, (n, c, h, w).

        Args:
            x: Images (n, c, h, w) on [0, 1].
        """
        return (self.adjoint(self.measure(x)) - SCALE_LOW) / (SCALE_HIGH - SCALE_LOW)


def measured(images: Images, measurement: Measurement) -> Images:
    """Images as the network sees them: trained on and queried in float precision, labels kept.

    Args:
        images: True images.
        measurement: Measurement of them.

    Raises:
        InvalidImages: The images have another shape, or are measured already.
    """
    _require_plain(images, measurement)
    return replace(images, view=measurement, name=f"{images.name}, measured with seed {measurement.seed}")


def _require_plain(images: Images, measurement: Measurement) -> None:
    if images.shape != measurement.image_shape or images.view is not None:
        came = f"images of shape {images.shape}{' with a view' if images.view is not None else ''}"
        raise InvalidImages(f"{images.name}: {came}; wanted plain images of shape {measurement.image_shape}")


def train_reconstructor(
    images: Images,
    measurement: Measurement,
    *,
    schedule: Schedule,
    seed: int,
    validation: Images,
    out: str | Path | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> nn.Module:
    """The network f that undoes a measurement: trained to map measurement(x) to x by MSE, selected on validation MSE.

    Make it a box with `as_blackbox(network, outputs="values")`.

    Args:
        images: True training images.
        measurement: Measurement of them.
        schedule: Phases of training and images a step.
        seed: Seed of every random draw.
        validation: True validation images.
        out: Directory for checkpoints and rows; a run that it already holds is resumed.
        device: Device that trains.
        progress: Function of (steps done, steps in all, a text), called after every step.

    Raises:
        InvalidImages: Images have another shape, or are measured already.
    """
    for given in (images, validation):
        _require_plain(given, measurement)
    with seeds.initialisation(seed, "reconstructor"):
        network = mnist_reconstructor()

    def error(x: Tensor, _images: Images, _index: Tensor) -> Tensor:
        return (network(measurement(x)) - x).flatten(1).square().sum(1)

    return fit(
        network,
        images,
        loss=error,
        schedule=schedule,
        seed=seed,
        validation=validation,
        facts={"measurement": measurement.digest},
        out=out,
        device=device,
        progress=progress,
    )

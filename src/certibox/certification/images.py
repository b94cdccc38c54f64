"""What is certified: an image or several, checked; its name; and the units of sigma and radii.

Pixels are on [0, 1], where no two images of d pixels are farther apart than the square root of d.
"""

from __future__ import annotations

import hashlib
import math
import warnings

import numpy as np
import torch
from torch import Tensor

from certibox.confidence.gaussian import NoiseLaw
from certibox.confidence.stopping import StoppingRule
from certibox.data.pixels import as_images
from certibox.errors import InvalidImages, InvalidInput, Notice


def certifiable(x: Tensor | np.ndarray) -> Tensor:
    """One image (c, h, w) or images (m, c, h, w) as a float tensor, with pixels that sigma can be compared with.

    Args:
        x: Float pixels on [0, 1]; those of a NumPy array become float32.

    Raises:
        InvalidImages: for what `as_images` refuses, for pixels that are not finite, or far from [0, 1].
    """
    images = as_images(x, array_type=np.float32, single=True)
    if not images.numel():
        raise InvalidImages(f"images have shape {tuple(x.shape)}; wanted at least one pixel")
    low, high = (float(pixel) for pixel in images.aminmax())  # NaN where there is one
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InvalidImages("images hold NaN or infinite pixels; wanted finite pixels on [0, 1]")
    if high > 16 or low < -16:
        raise InvalidImages(f"pixels go from {low:g} to {high:g}; wanted [0, 1], the units of sigma: divide by 255")
    if high > 1.001 or low < -0.001:
        text = "an image has pixels outside [0, 1]: sigma and radius are in the units of its own pixels"
        warnings.warn(text, Notice, stacklevel=3)  # the same text every time, so that it is shown once
    return images


def image_digest(x: Tensor) -> str:
    """SHA-256 (hex) of an image's shape and float32 pixels.

    Args:
        x: Image (c, h, w).
    """
    pixels = x.detach().to("cpu", torch.float32).contiguous().numpy()
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def largest_distance(images: Tensor) -> float:
    """The largest l2 distance of two images like these, with pixels on [0, 1], or further apart where theirs are.

    Args:
        images: Image (c, h, w) or images (m, c, h, w).
    """
    low, high = (float(pixel) for pixel in images.aminmax())
    return farthest(math.prod(images.shape[-3:]), max(1.0, high - low))


def farthest(pixels: int, spread: float = 1.0) -> float:
    """The largest l2 distance of two images.

    Args:
        pixels: Number of pixels d = c · h · w of an image.
        spread: Difference of the largest and the smallest value of a pixel.
    """
    return spread * math.sqrt(pixels)


def check_units(law: NoiseLaw, rule: StoppingRule | None, limit: float) -> None:
    """Refuse a sigma, or a radius that a rule is asked to decide, that is larger than any two images are apart.

    Args:
        law: Law of the noise.
        rule: Stopping rule, None for a fixed n.
        limit: Largest l2 distance of two images.

    Raises:
        InvalidInput: naming the number, for such a sigma or radius.
    """
    asked = {"sigma": [law.sigma], "radius": list(getattr(rule, "radii", None) or ())}
    for name, values in asked.items():
        if beyond := [value for value in values if value > limit]:
            raise InvalidInput(
                f"{name} is {beyond[0]:g}, but no two images of this size are farther apart than {limit:.4g}; pixels "
                "are on [0, 1]: for 8-bit units divide by 255"
            )


def warn_of_radius(radius: float, limit: float) -> None:
    """Say so where a certified radius is larger than any two images are apart.

    Args:
        radius: Certified radius.
        limit: Largest l2 distance of two images.
    """
    if radius > limit:
        warnings.warn(
            f"radii are certified beyond {limit:.4g}, the largest distance of two images of this size: they cover "
            "every image, and a smaller sigma costs less accuracy",
            Notice,
            stacklevel=4,
        )

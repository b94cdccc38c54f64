"""How an image is written into a request: as numbers, as base64, or as the bytes of a picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np

from certibox.errors import InvalidInput

PICTURES = {"png": "image/png", "jpeg": "image/jpeg"}


def _nested(image: np.ndarray) -> Any:
    return image


def _flat(image: np.ndarray) -> Any:
    return image.reshape(-1)


def _base64_floats(image: np.ndarray) -> str:
    return base64.b64encode(image.astype("<f4").tobytes()).decode()


def picture(image: np.ndarray, kind: str) -> bytes:
    """The bytes of a picture file.

    Args:
        image: Pixels (h, w, c) of one or three channels, whole numbers 0 to 255.
        kind: "png", which keeps every pixel, or "jpeg", which does not.

    Raises:
        InvalidInput: A picture cannot have so many channels.
    """
    from PIL import Image as Picture  # which most boxes never need

    pixels = image.astype(np.uint8)
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise InvalidInput(f"images of shape {image.shape} cannot be sent as pictures; wanted 1 or 3 channels")
    held = io.BytesIO()
    options = {"quality": 95} if kind == "jpeg" else {"compress_level": 1}
    Picture.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(held, kind, **options)
    return held.getvalue()


def _base64_png(image: np.ndarray) -> str:
    return base64.b64encode(picture(image, "png")).decode()


def _base64_jpeg(image: np.ndarray) -> str:
    return base64.b64encode(picture(image, "jpeg")).decode()


ENCODINGS: dict[str, Callable[[np.ndarray], Any]] = {
    "nested": _nested,
    "flat": _flat,
    "base64-float32": _base64_floats,
    "base64-png": _base64_png,
    "base64-jpeg": _base64_jpeg,
    "file-png": lambda image: picture(image, "png"),
    "file-jpeg": lambda image: picture(image, "jpeg"),
}
"""How one image of the declared layout is written, by name; those of files are bytes, sent as they are."""


def is_file(name: str) -> bool:
    """Whether an encoding gives the bytes of a file.

    Args:
        name: Name of an encoding.
    """
    return name.startswith("file-")


def has_eight_bits(name: str) -> bool:
    """Whether an encoding can hold whole numbers 0 to 255 alone.

    Args:
        name: Name of an encoding.
    """
    return name.endswith(("png", "jpeg"))

"""What counts as images at every border: floats on [0, 1], a tensor or a numpy array. This module knows no source."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from certibox.errors import InvalidImages


def as_images(x: object, *, array_type: DTypeLike | None = None, single: bool = False) -> Tensor:
    """Images as a float tensor; a tensor comes back as it is, on its device and with its gradient.

    Args:
        x: Images (n, c, h, w) of floats, a tensor or a numpy array. The tensor of an array shares its memory where
            torch can.
        array_type: Type that an array is converted to, such as numpy.float32; None keeps its own.
        single: Whether one image (c, h, w) is taken too.

    Raises:
        InvalidImages: The images are something else, of integers, or of another number of dimensions, or entries of a
            masked array are masked.
    """
    if not isinstance(x, Tensor | np.ndarray):
        raise InvalidImages(f"images are a {type(x).__name__}; wanted a float tensor or numpy array on [0, 1]")
    refuse_masked(x, "images")
    if not (x.is_floating_point() if isinstance(x, Tensor) else x.dtype.kind == "f"):
        integers = not x.is_complex() if isinstance(x, Tensor) else x.dtype.kind in "uib"
        advice = ": divide 8-bit pixels by 255" if integers else ", such as float32"
        raise InvalidImages(f"images are {x.dtype}; wanted floats on [0, 1]{advice}")
    if x.ndim != 4 and not (single and x.ndim == 3):
        wanted = "one image (channels, height, width), or a batch of them" if single else ""
        wanted = wanted or f"a batch (n, channels, height, width){': x[None] for one image' if x.ndim == 3 else ''}"
        raise InvalidImages(f"images have shape {tuple(x.shape)}; wanted {wanted}")
    return x if isinstance(x, Tensor) else _as_tensor(x if array_type is None else x.astype(array_type, copy=False))


def refuse_masked(values: object, name: str) -> None:
    """Raise for masked entries, whose mask a conversion would drop without a word.

    Args:
        values: Array, or anything else.
        name: Name of the array in the message.

    Raises:
        InvalidImages: Entries are masked.
    """
    if np.ma.isMaskedArray(values) and (masked := int(np.ma.count_masked(values))):
        hidden = f"{masked:,} of {np.size(values):,} entries are masked"  # pyright: ignore[reportArgumentType]
        raise InvalidImages(f"{name}: {hidden}, and what lies below is no value; fill them or leave those images out")


def _as_tensor(x: np.ndarray) -> Tensor:
    """A tensor of the same numbers, in the same memory where torch reads it."""
    if not (x.flags.writeable and x.dtype.isnative) or min(x.strides, default=0) < 0:
        # torch reads no other order or direction, and warns of shared constants.
        x = x.astype(x.dtype.newbyteorder("="))
    try:
        return torch.from_numpy(x)
    except TypeError as error:  # longer than a double
        raise InvalidImages(f"images are {x.dtype}; wanted floats on [0, 1], such as float32") from error


def batch_digest(batch: Tensor) -> str:
    """128 bits of SHA-256 over type, shape and pixels; processors have instructions for it, so it beats BLAKE2.

    Args:
        batch: Images (n, c, h, w).

    Returns:
        32 hexadecimal digits.
    """
    total = hashlib.sha256(f"{batch.dtype}/{tuple(batch.shape)}".encode())
    flat = batch.detach().cpu().reshape(-1)
    flat = flat if flat.stride(0) == 1 else flat.clone()  # a single pixel may keep an odd stride
    total.update(flat.view(torch.uint8).numpy().data)
    return total.hexdigest()[:32]

"""Images from numpy arrays or tensors: their pixels in 8 bits, their channels, their labels."""

from __future__ import annotations

import operator

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from certibox.data.asked import aloud
from certibox.data.images import MOST_CLASSES, Images, too_many_classes
from certibox.data.pixels import refuse_masked
from certibox.errors import InvalidImages, described

_AT_ONCE = 64  # images; 38 MB of floats at 224×224×3
_MANY = 20  # images; so many are not all of the night
_SCALES = (1, 16)  # what white is where pixels are bits, or digits as scikit-learn has them
_WHITE = (16, 255, 1023, 4095, 16383, 65535)  # what whole numbers of the usual depths go up to; 16: digits
_TABLES = {  # library -> how its tables become arrays
    "pandas": "reshape its .to_numpy() to (n, h, w)",
    "polars": "reshape its .to_numpy() to (n, h, w)",
    "scipy.sparse": "reshape its .toarray() to (n, h, w)",
}


def images_from_arrays(
    images: ArrayLike | Tensor, labels: ArrayLike | Tensor | None = None, name: str = "arrays"
) -> Images:
    """Images from numpy arrays or tensors; the pixels are copied.

    Args:
        images: Pixels (n, h, w), (n, c, h, w) or (n, h, w, c) with c in {1, 3}: integers in 0..255, or floats in
            [0, 1], which are rounded to 8 bits.
        labels: Integers (n,), at least 0; None for images without labels.
        name: Origin of the images, for records and messages.

    Raises:
        InvalidImages: Another shape, type or range; the message says which image is the first outside.
    """
    stored = torch.from_numpy(stored_pixels(images, name))
    if _as_numpy(images, name).dtype.kind != "f":
        tell_of_dark(int(stored.max()), len(stored), name)
    return Images(stored, None if labels is None else integer_labels(labels, name), name)


def stored_pixels(images: ArrayLike | Tensor, name: str) -> np.ndarray:
    """The pixels of `images_from_arrays` in 8 bits, in memory of their own: uint8 (n, c, h, w), contiguous."""
    refuse_tables(images, name)
    pixels = _to_channels_first(_as_numpy(images, name), name)
    limit = 1 if pixels.dtype.kind == "f" else 255
    stored = np.empty(pixels.shape, np.uint8)
    for start in range(0, len(pixels), _AT_ONCE):  # in parts, so that no second array of their size is made
        part = pixels[start : start + _AT_ONCE]
        if part.dtype != np.uint8 and not ((part >= 0) & (part <= limit)).all():  # False for NaN
            raise _outside(pixels, limit, name)
        np.copyto(stored[start : start + _AT_ONCE], np.rint(part * 255) if limit == 1 else part, casting="unsafe")
    return stored


def _as_numpy(values: ArrayLike | Tensor, name: str) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # numpy has no bfloat16; float32 holds every half-precision value.
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    refuse_masked(values, name)
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InvalidImages(f"{name}: not one rectangular array ({described(error)}); bring all to one size") from error


def _to_channels_first(array: np.ndarray, name: str) -> np.ndarray:  # any accepted layout -> (n, c, h, w)
    wanted = "(n, h, w), (n, c, h, w) or (n, h, w, c) with c in {1, 3} and n at least 1"
    if array.dtype.kind not in "uif":
        stack = "; stack the images into one array of numbers" if array.dtype.kind == "O" else ""
        wanted = "uint8, integers in 0..255 or floats in [0, 1]"
        raise InvalidImages(f"{name}: images are {array.dtype}, wanted {wanted}{stack}")
    if array.ndim == 3 and array.size:
        return array[:, None]
    if array.ndim != 4 or not array.size or not {array.shape[1], array.shape[3]} & {1, 3}:
        raise InvalidImages(f"{name}: images have shape {array.shape}, wanted {wanted}; reshape them")
    if {array.shape[1], array.shape[3]} <= {1, 3}:
        raise InvalidImages(f"{name}: shape {array.shape} may be (n, c, h, w) or (n, h, w, c); build Images directly")
    return array if array.shape[1] in (1, 3) else np.moveaxis(array, 3, 1)


def _outside(pixels: np.ndarray, limit: int, name: str) -> InvalidImages:
    """What to say of pixels that are not all on [0, limit]."""
    inside = (pixels >= 0) & (pixels <= limit)
    first = int(np.argmin(inside.reshape(len(pixels), -1).all(axis=1)))
    low, high = np.fmin.reduce(pixels, axis=None), np.fmax.reduce(pixels, axis=None)  # of those that are not NaN
    if not np.isfinite(pixels).all():
        remedy = "remove NaN and infinities"
    else:
        white = _white(pixels, float(low), float(high))
        other = "rescale to 8 bits" if limit == 255 else "undo the normalisation"
        remedy = f"divide by {white}, into floats on [0, 1]" if white else other
        remedy = f"{other}, or {remedy}" if white and limit == 255 else remedy
    where = f"; image {first} is the first outside" if len(pixels) > 1 else ""
    return InvalidImages(f"{name}: pixels from {low:g} to {high:g}, wanted [0, {limit}]{where}: {remedy}")


def tell_of_dark(high: int, count: int, name: str) -> None:
    """Say of pixels that are whole numbers, and far below 255 in all of many images, that white may be another number.

    high: the largest pixel. count: number of images.
    """
    if count >= _MANY and 0 < high <= _SCALES[-1]:
        white = next(scale for scale in _SCALES if high <= scale)
        aloud(
            f"{name}: pixels of all {count} images are at most {high}, where 255 is white: nearly black; if white is "
            f"{white} there, divide by {white}, into floats on [0, 1]"
        )


def _white(pixels: np.ndarray, low: float, high: float) -> int | None:
    """The number that white seems to be, to divide by: the smallest usual one; None where no division helps."""
    if low < 0:
        return None
    if pixels.dtype.kind == "f" and not all((part == np.rint(part)).all() for part in pixels):
        return 255 if high <= 255 else None
    return next((white for white in _WHITE if high <= white), None)


def refuse_tables(images: object, name: str) -> None:
    """Raise `InvalidImages` for a table of another library, whose rows are no images."""
    kind = type(images)
    remedy = next((how for library, how in _TABLES.items() if f"{kind.__module__}.".startswith(f"{library}.")), None)
    if remedy:
        raise InvalidImages(f"{name}: images are a {kind.__name__} of {kind.__module__.split('.')[0]}; {remedy}")


def with_channels(images: np.ndarray, channels: int | None) -> np.ndarray:  # uint8 (..., c, h, w)
    """The images with 1 or 3 channels: grey three times, or colours by their luma as Pillow weighs them."""
    if channels is None or images.shape[-3] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=-3)
    r, g, b = (images[..., i, :, :].astype(np.uint32) for i in range(3))
    return ((19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16).astype(np.uint8)[..., None, :, :]


def integer_labels(labels: ArrayLike | Tensor, name: str) -> Tensor:
    array = _as_numpy(labels, name)
    if array.dtype.kind in "Of" and array.ndim == 1 and not isinstance(labels, Tensor):
        array = _of_objects(labels, array, name)
    if array.dtype.kind not in "ui":
        raise InvalidImages(f"{name}: labels are {array.dtype}, wanted integers 0, 1, …; encode them first")
    if array.size and int(array.max()) >= MOST_CLASSES:
        raise too_many_classes(int(array.max()), name)
    column = array.ndim == 2 and array.shape[1] == 1  # as many data sets have them
    return torch.from_numpy((array[:, 0] if column else array).astype(np.int64))


def _of_objects(labels: ArrayLike, array: np.ndarray, name: str) -> np.ndarray:
    """Whole numbers of Python as labels: numpy keeps them as objects, or, of 64 bits, rounds them to floats. What is no
    whole number stays the array that numpy makes of it."""
    try:
        numbers = [operator.index(label) for label in np.array(labels, object)]
    except TypeError:
        return array
    if largest := next((number for number in numbers if abs(number) >= 2**63), None):
        raise too_many_classes(largest, name)
    return np.array(numbers, np.int64)

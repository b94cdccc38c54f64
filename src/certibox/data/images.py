"""Images as uint8 tensors, checked once, and made from numpy arrays or tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from certibox import seeds
from certibox.errors import InvalidImages, InvalidInput

Index = slice | Tensor | Sequence[int]
_AT_ONCE = 64  # images; 38 MB of floats at 224×224×3


class View(Protocol):
    """What a model is given instead of the pixels, such as measurements of them. Each image is viewed alone."""

    @property
    def digest(self) -> str:
        """Name of what the view does: it changes whenever that changes."""
        ...

    def __call__(self, x: Tensor, /) -> Tensor:
        """The view of a batch.

        Args:
            x: Float images (n, c, h, w), pixels on [0, 1].

        Returns: Float tensor of the same shape.
        """
        ...


@dataclass(frozen=True, eq=False, repr=False)
class Images:
    """Images of one size with optional labels. Treat the tensors as read-only: `digest` is computed once.

    Raises InvalidImages for fields of another type or shape. See `load_images` and `images_from_arrays`.
    """

    images: Tensor
    """Pixels, uint8 (n, c, h, w) with n >= 1."""

    labels: Tensor | None
    """Class of each image, int64 (n,), at least 0; None where the images have no labels."""

    name: str
    """Origin of the images, for records and messages."""

    class_names: tuple[str, ...] | None = None
    """Names of the classes: label k is called class_names[k]."""

    view: View | None = None
    """Function whose result `floats` gives instead of the pixels themselves, in float precision."""

    def __post_init__(self) -> None:
        if not isinstance(self.images, Tensor) or self.images.dtype != torch.uint8:
            came = getattr(self.images, "dtype", type(self.images).__name__)
            raise InvalidImages(f"{self.name}: images are {came}, wanted a torch.uint8 tensor; see images_from_arrays")
        if self.images.ndim != 4 or self.images.numel() == 0:
            shape = tuple(self.images.shape)
            raise InvalidImages(
                f"{self.name}: images have shape {shape}, wanted (n, c, h, w) with every size at least 1"
            )
        if self.labels is not None:
            self._check_labels(self.labels)

    def _check_labels(self, labels: Tensor) -> None:
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
            came = getattr(labels, "dtype", type(labels).__name__)
            raise InvalidImages(f"{self.name}: labels are {came}, wanted a torch.int64 tensor; see images_from_arrays")
        if labels.shape != (len(self),):
            raise InvalidImages(
                f"{self.name}: labels have shape {tuple(labels.shape)}, wanted one label for each of {len(self)} images"
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0:
            raise InvalidImages(f"{self.name}: smallest label is {low}, wanted 0, 1, …; drop unlabelled images")
        if self.class_names is not None and high >= len(self.class_names):
            raise InvalidImages(
                f"{self.name}: label {high} has no name, only {len(self.class_names)} class names given"
            )

    def __len__(self) -> int:
        return self.images.shape[0]

    def __repr__(self) -> str:
        classes = "unlabelled" if self.labels is None else f"{self.num_classes} classes"
        return f"Images({self.name!r}, {len(self)} of shape {self.shape}, {classes})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one image."""
        c, h, w = self.images.shape[1:]
        return c, h, w

    @property
    def num_classes(self) -> int | None:
        """Largest label present plus one; None without labels."""
        return None if self.labels is None else int(self.labels.max()) + 1

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of the shape, the pixels and the view's digest. Labels and names do not enter."""
        sha = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        sha.update(self.images.cpu().contiguous().numpy().data)
        if self.view is not None:
            sha.update(self.view.digest.encode())
        return sha.hexdigest()

    def floats(self, index: Index | None = None) -> Tensor:
        """The images as a model takes them: pixel / 255, then through the view if there is one.

        Args:
            index: Positions of the wanted images: a slice, integers or booleans; None for all images.

        Returns: float32 tensor (b, c, h, w), on [0, 1] where there is no view.

        Raises:
            InvalidImages: The view changes the shape.
        """
        chosen = self.images if index is None else self.images[_as_index(index)]
        x = chosen.to(torch.float32).div_(255)
        if self.view is None:
            return x
        seen = self.view(x)
        if seen.shape != x.shape:
            came, wanted = tuple(seen.shape), tuple(x.shape)
            raise InvalidImages(f"{self.name}: the view made {came} of {wanted}; wanted the same shape: reshape it")
        return seen

    def select(self, index: Index) -> Images:
        """Some of the images with their labels, in the order of `index`.

        Args:
            index: Positions of the wanted images: a slice, integers or booleans.
        """
        at = _as_index(index)
        return replace(self, images=self.images[at], labels=None if self.labels is None else self.labels[at])

    def split(self, share: float, seed: int) -> tuple[Images, Images]:
        """Divide the images at random into two parts that have no image in common and together are everything.

        Args:
            share: Share of the images in the second part, which gets round(share · n) of them, in (0, 1).
            seed: Seed of the division.

        Returns: The larger rest and the held-out share, in this order.

        Raises:
            InvalidInput: A part would be empty.
        """
        held = round(share * len(self)) if 0 < share < 1 else 0
        if not 0 < held < len(self):
            raise InvalidInput(
                f"{self.name}: share {share} of {len(self)} images leaves a part empty; choose in (0, 1)"
            )
        order = torch.randperm(len(self), generator=seeds.generator(seed, "split"))
        rest, kept = self.select(order[held:]), self.select(order[:held])
        origin = f"share {share}, seed {seed} of {self.name}"
        return replace(rest, name=f"all but {origin}"), replace(kept, name=origin)


def _as_index(index: Index) -> slice | Tensor:
    return index if isinstance(index, slice) else torch.as_tensor(index)


def held_out(images: Images, validation: Images | float, seed: int) -> tuple[Images, Images]:
    """Training images and validation images, by which a model is selected.

    Args:
        images: Images (n, c, h, w) to train on, or to take validation images from.
        validation: Validation images of the same shape, or the share of `images` to take for them, in (0, 1).
        seed: Seed of the division, where a share is taken.

    Raises:
        InvalidInput: The shapes differ, or a part would be empty.
    """
    if not isinstance(validation, Images):
        return images.split(validation, seed)
    if validation.shape != images.shape:
        raise InvalidInput(
            f"validation images have shape {validation.shape}, training images {images.shape}; wanted the same"
        )
    return images, validation


def mean_over(images: Images, measure: Callable[[Tensor, Tensor], Tensor], batch: int = 256) -> float:
    """Mean of a measure over all images, computed in batches.

    Args:
        images: Images (n, c, h, w) to measure.
        measure: Function of float images (b, c, h, w) and their positions (b,) in `images`; it returns (b,) values.
        batch: Number of images b in a batch; the last may have fewer.
    """
    parts = torch.arange(len(images)).split(batch)
    return sum(float(measure(images.floats(index), index).sum()) for index in parts) / len(images)


# ---------------------------------------------------------------------------------------------------------- arrays


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
    return Images(stored, None if labels is None else integer_labels(labels, name), name)


def stored_pixels(images: ArrayLike | Tensor, name: str) -> np.ndarray:
    """The pixels of `images_from_arrays` in 8 bits, in memory of their own: uint8 (n, c, h, w), contiguous."""
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
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InvalidImages(f"{name}: not one rectangular array ({one_line(error)}); bring all to one size") from error


def _to_channels_first(array: np.ndarray, name: str) -> np.ndarray:  # any accepted layout -> (n, c, h, w)
    wanted = "(n, h, w), (n, c, h, w) or (n, h, w, c) with c in {1, 3} and n at least 1"
    if array.dtype.kind not in "uif":
        raise InvalidImages(f"{name}: images are {array.dtype}, wanted uint8, integers in 0..255 or floats in [0, 1]")
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
    elif limit == 255:
        remedy = "rescale to 8 bits"
    else:
        remedy = "divide by 255" if low >= 0 and high <= 255 else "undo the normalisation"
    where = f"; image {first} is the first outside" if len(pixels) > 1 else ""
    return InvalidImages(f"{name}: pixels from {low:g} to {high:g}, wanted [0, {limit}]{where}: {remedy}")


def integer_labels(labels: ArrayLike | Tensor, name: str) -> Tensor:
    array = _as_numpy(labels, name)
    if array.dtype.kind not in "ui":
        raise InvalidImages(f"{name}: labels are {array.dtype}, wanted integers 0, 1, …; encode them first")
    return torch.from_numpy(array.astype(np.int64))


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

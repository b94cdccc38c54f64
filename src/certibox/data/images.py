"""Images as uint8 tensors, checked once; images held out, means over images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from certibox import seeds
from certibox.errors import InvalidImages, InvalidInput

Index = slice | Tensor | Sequence[int]
MOST_CLASSES = 10**6  # a larger label is a key or a year, and tables of so many classes fill the memory
_NAMED = 12  # classes that a line about them names


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

    files: tuple[str, ...] | None = None
    """Names of the image files relative to the source, one for each image; None where they come from none."""

    def __post_init__(self) -> None:
        if not isinstance(self.images, Tensor) or self.images.dtype != torch.uint8:
            came = getattr(self.images, "dtype", type(self.images).__name__)
            raise InvalidImages(f"{self.name}: images are {came}, wanted a torch.uint8 tensor; see images_from_arrays")
        if self.images.ndim != 4 or self.images.numel() == 0:
            shape = tuple(self.images.shape)
            raise InvalidImages(
                f"{self.name}: images have shape {shape}, wanted (n, c, h, w) with every size at least 1"
            )
        if self.files is not None and len(self.files) != len(self):
            raise InvalidImages(f"{self.name}: {len(self.files)} file names, wanted one for each of {len(self)} images")
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
        if high >= MOST_CLASSES:
            raise too_many_classes(high, self.name)
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

    @cached_property
    def digests(self) -> Tensor:
        """Names of the single images, int64 (n,): the first 8 bytes of SHA-256 over shape and pixels, view or not."""
        shape, pixels = repr(self.shape).encode(), self.images.cpu().contiguous().numpy()
        shas = (hashlib.sha256(shape + image.tobytes()).digest() for image in pixels)
        return torch.tensor([int.from_bytes(sha[:8], "little", signed=True) for sha in shas])

    @property
    def legend(self) -> str | None:
        """Which label is which class, in one line; None where classes have no names."""
        if self.class_names is None:
            return None
        last = len(self.class_names) - 1
        if all(name == str(label) for label, name in enumerate(self.class_names)):
            return f"labels: 0 to {last}, as the classes are named"
        plain = ["".join(c if c.isprintable() else "?" for c in name) for name in self.class_names]
        named = [f"{label} {name}" for label, name in enumerate(plain)]
        return f"labels: {', '.join(named if last < _NAMED else [*named[: _NAMED - 1], '…', named[-1]])}"

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
        labels = None if self.labels is None else self.labels[at]
        files = self.files and tuple(self.files[i] for i in torch.arange(len(self))[at].tolist())
        return replace(self, images=self.images[at], labels=labels, files=files)

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


def too_many_classes(label: int, name: str) -> InvalidImages:
    """What to say of a label that numbers no class, and may fit no array.

    Args:
        label: The label.
        name: Origin of the images.
    """
    which = f"largest label is {label}" if 0 <= label < 2**64 else f"a label is of {label.bit_length()} bits"
    return InvalidImages(f"{name}: {which}, wanted below {MOST_CLASSES:,}; number the classes 0, 1, …")


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

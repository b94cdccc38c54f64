"""What is asked of a source: which split or share, how many images, which columns; and what is said aloud of it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from numbers import Integral
from pathlib import PurePath
from typing import Any

import torch

from certibox import seeds
from certibox.data.images import Images
from certibox.errors import InvalidInput, Notice, did_you_mean

SPLIT_NAMES = frozenset(["train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"])
_TELLING = 10  # images of one class from which they seem to be sorted


def aloud(text: str) -> None:
    """Say what a caller should know although nothing is wrong."""
    warnings.warn(text, Notice, stacklevel=2)


@dataclass(frozen=True)
class Share:
    """A part of a source without splits of its own."""

    name: str
    share: Fraction

    def of(self, count: int, where: str) -> list[int]:
        """Positions of the part: "train" is the start of a fixed permutation, every other name its end."""
        first = self.share if self.name == "train" else 1 - self.share
        cut = int(first * count + Fraction(1, 2))  # of equal shares both parts find the same
        order = torch.randperm(count, generator=seeds.generator(0, "split")).tolist()
        part = order[:cut] if self.name == "train" else order[cut:]
        if not part:
            raise InvalidInput(
                f"{where}: {self.name}:{float(self.share):g} of {count} images is empty; choose a larger share"
            )
        return part


def share_of(split: str) -> Share | None:
    """The share that NAME:SHARE means; None for a plain name."""
    name, colon, share = split.partition(":")
    if not colon:
        return None
    if not re.fullmatch(r"[\w.-]+", name):
        raise InvalidInput(f"split is {split!r:.80}; wanted the name of a split, or NAME:SHARE, as in train:0.8")
    try:
        value = float(share)
    except ValueError:
        value = float("nan")
    if not 0 < value < 1:
        raise InvalidInput(f"split is {split!r}; wanted a share above 0 and below 1 after the colon, as in {name}:0.8")
    return Share(name, Fraction(repr(value)))


@dataclass(frozen=True)
class Asked:
    """The arguments of `load_images` beside the source, checked."""

    split: str = "train"
    limit: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    configuration: str | None = None
    channels: int | None = None
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        if self.limit is not None and (not isinstance(self.limit, Integral) or self.limit < 1):
            raise InvalidInput(f"limit is {self.limit!r}, wanted a whole number of at least 1, or None for all images")
        if self.channels not in (None, 1, 3):
            raise InvalidInput(f"channels is {self.channels!r}; wanted 1 for grey, 3 for RGB, or None as they come")
        if not isinstance(self.split, str):
            raise InvalidInput(f"split is {self.split!r}; wanted the name of a split, such as 'train'")
        share_of(self.split)

    @property
    def at_most(self) -> int | None:
        """How many images have to be read: a share is drawn from all of them."""
        return None if self.share else self.limit

    @property
    def share(self) -> Share | None:
        return share_of(self.split)

    def refuse(self, where: str, *names: str) -> None:
        """Raise for arguments that this source cannot heed."""
        for name in names:
            if getattr(self, name) is not None:
                what = "configurations" if name == "configuration" else "columns"
                raise InvalidInput(f"{where} has no {what}, but {name} is {getattr(self, name)!r}; leave it out")

    def whole(self, where: str, count: int) -> None:
        """Say that a split was asked of a source that has none, so that nobody takes its images for others."""
        words = re.split(r"[\W_]+", PurePath(where).name.casefold())
        if self.share is None and self.split != "train" and self.split.casefold() not in words:
            aloud(
                f"{where} has no splits: {self.split!r} is all of its {count} images, as any other split would be; "
                f"train:0.8 and test:0.2 divide them"
            )

    def part(self, images: Images) -> Images:
        """The share that is asked of all images of a source, or all of them; then the first `limit`."""
        if self.share is not None:
            chosen = images.select(self.share.of(len(images), images.name))
            images = replace(chosen, name=f"{images.name.removesuffix(f':{self.split}')}:{self.split}")
        return images.select(slice(self.limit)) if self.limit and self.limit < len(images) else images

    def tell_of_one_class(self, images: Images) -> None:
        """Say that the first images are of one class, as where images are sorted by class."""
        if self.limit != len(images) or len(images) < _TELLING or images.labels is None:
            return
        if int(images.labels.min()) == int(images.labels.max()):
            aloud(
                f"{images.name}: the first {len(images)} images are all of class {int(images.labels[0])}; images may "
                f"be sorted by class"
            )


def pick(splits: Mapping[Any, Any], split: str, name: str) -> Any:
    """The split of this name; where there is but one, a share of any name is a share of that one."""
    available = ", ".join(map(str, splits))
    if share_of(split) is not None:
        if len(splits) == 1:
            return next(iter(splits.values()))
        raise InvalidInput(f"{name} has splits of its own, so that {split!r} is none; available: {available}")
    if split not in splits:
        divide = f"; {available}:0.8 and test:0.2 divide it" if len(splits) == 1 and available == "train" else ""
        near = did_you_mean(split, map(str, splits))
        raise InvalidInput(f"{name} has no split {split!r}; available: {available}{near or divide}")
    return splits[split]

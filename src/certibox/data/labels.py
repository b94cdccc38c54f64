"""Classes and columns by name: their order, the labels that they get, which column of a table holds what."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from certibox.data.asked import aloud
from certibox.errors import InvalidInput, did_you_mean

_IMAGE_COLUMNS = frozenset({"img", "images", "picture", "pictures", "photo"})
LABEL_COLUMNS = frozenset(
    {"labels", "target", "targets", "class", "classes", "category", "class_id", "label_id", "class_label", "digit", "y"}
    | {"fine_label", "fine_labels", "coarse_label", "coarse_labels"}
)
_MOST_NUMBERED = 10_000  # classes whose names are taken for their numbers; above, names are years or keys


def natural(name: str) -> tuple[Any, ...]:
    """The key of an order in which the numbers in names count as numbers: class 9 comes before class 10."""
    pieces = re.split(r"([0-9]+)", name)
    return (*(_number(piece) if i % 2 else piece for i, piece in enumerate(pieces)), name)


def _number(digits: str) -> tuple[int, str]:
    return len(digits.lstrip("0")), digits.lstrip("0")


def number_classes(names: Iterable[str], where: str) -> tuple[dict[str, int], tuple[str, ...]]:
    """Class name -> label, and the names by label.

    Labels are positions in the natural order of the names. Names that are all whole numbers are their labels instead,
    with or without gaps, except for 1 to K, which become 0 to K - 1: a line says so.
    """
    ordered = sorted(set(names), key=natural)
    numbers = [int(name) if re.fullmatch(r"[0-9]{1,9}", name) else -1 for name in ordered]
    if min(numbers) < 0 or len(set(numbers)) < len(numbers):
        return {name: label for label, name in enumerate(ordered)}, tuple(ordered)
    if numbers == list(range(1, len(numbers) + 1)) or max(numbers) >= _MOST_NUMBERED:
        aloud(f"{where}: classes {_range(ordered)} have labels {_range(range(len(ordered)))}, in this order")
        return {name: label for label, name in enumerate(ordered)}, tuple(ordered)
    by_number = dict(zip(numbers, ordered, strict=True))
    every = tuple(by_number.get(label, str(label)) for label in range(max(numbers) + 1))
    return dict(zip(ordered, numbers, strict=True)), every


def _range(items: Sequence[object]) -> str:
    return f"{items[0]} to {items[-1]}" if len(items) > 1 else str(items[0])


def require_column(columns: Collection[str], column: str, where: str) -> str:
    """`column`, if it is one of `columns`; else `InvalidInput`."""
    if column not in columns:
        available = ", ".join(columns) or "none"
        raise InvalidInput(f"{where} has no column {column!r}; available: {available}{did_you_mean(column, columns)}")
    return column


def image_column(columns: Mapping[str, Any], asked: str | None, where: str) -> str:
    """The column of images: the one that is asked for, else `image`, else the only one that looks like it.

    columns: name -> type of the column.
    """
    if asked is not None or "image" in columns:
        return require_column(columns, asked or "image", where)
    like = [name for name, kind in columns.items() if type(kind).__name__ == "Image"]
    like = like or [name for name in columns if name.casefold() in _IMAGE_COLUMNS]
    if len(like) != 1:
        available = ", ".join(columns) or "none"
        raise InvalidInput(
            f"{where} has no column 'image'; available: {available}; name one with image_column (--image-column)"
        )
    return like[0]


def label_column(
    columns: Mapping[str, Any], asked: str | None, where: str, otherwise: str = "images are taken as unlabelled"
) -> str | None:
    """The column of labels: the one that is asked for, else `label`, else the only one that looks like it.

    columns: name -> type of the column, those of images and files left out. otherwise: what is done where none is
    taken, in words: a line says so and why.
    """
    if asked is not None or "label" in columns:
        return require_column(columns, asked or "label", where)
    like = [name for name, kind in columns.items() if _like_labels(name, kind)]
    if len(like) == 1:
        return like[0]
    if columns:
        some = f"{' and '.join(like)} may each hold labels"
        why = some if like else f"none of the columns {', '.join(columns)} is known to hold labels"
        aloud(f"{where}: {otherwise}, as {why}; name one with label_column (--label-column)")
    return None


def _like_labels(name: str, kind: Any) -> bool:
    return type(kind).__name__ == "ClassLabel" or name.casefold() in LABEL_COLUMNS


def encode(values: list[Any], every: Iterable[Any], where: str) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Labels (n,) of the values of a column, and the names of the classes where the values are names.

    every: all values that the column has, in all splits, so that numbers agree. where: the column, for messages.
    -1 or nothing everywhere means that labels are withheld, which is said aloud.
    """
    if all(value in (None, -1) for value in values):
        held = "no value" if values[0] is None else "-1"
        aloud(f"{where} holds {held} for every image: images are taken as unlabelled")
        return None, None
    if all(isinstance(value, str) for value in values):
        numbers, names = number_classes((value for value in every if isinstance(value, str)), where)
        return torch.tensor([numbers[value] for value in values]), names
    whole = [_whole(value) for value in values]
    if None in whole:
        strange = values[whole.index(None)]
        raise InvalidInput(f"{where} holds {strange!r:.60}; wanted an integer for every image, or a name")
    return torch.tensor(whole), None


def _whole(value: Any) -> int | None:
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) < 2**53):
        return int(value) if abs(value) < 2**63 else None
    return None

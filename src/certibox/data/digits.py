"""scikit-learn's handwritten digits, in three splits by a fixed permutation."""

from __future__ import annotations

from typing import Any

import numpy as np

from certibox.data.arrays import images_from_arrays
from certibox.data.asked import pick
from certibox.data.images import Images


def read_digits(split: str) -> Images:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    # The stream of RandomState is frozen by numpy's compatibility policy; that of Generator is not.
    order = np.random.RandomState(0).permutation(len(bunch.target))
    by_class = order[np.argsort(bunch.target[order], kind="stable")]
    test = np.zeros(len(order), dtype=bool)
    validation = np.zeros(len(order), dtype=bool)
    test[evenly(by_class, 500)] = True
    validation[evenly(by_class[~test[by_class]], 297)] = True
    masks = {"train": ~(test | validation), "validation": validation, "test": test}
    chosen = order[pick(masks, split, "digits")[order]]
    pixels = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)
    digits = images_from_arrays(pixels, bunch.target[chosen], f"digits:{split}")
    return Images(digits.images, digits.labels, digits.name, tuple(str(name) for name in bunch.target_names))


def evenly(items: np.ndarray, count: int) -> np.ndarray:
    """`count` items at even distances: from a list sorted by class, each class in proportion."""
    steps = np.arange(len(items) + 1) * count // len(items)
    return items[np.diff(steps) == 1]

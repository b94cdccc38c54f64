"""Folders of small random pictures, in the layout of an image folder, for scripts that read a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def draw(folder: Path, size: int, channels: int, classes: int, count: int = 24) -> Path:
    """`count` coarse pictures a split, their classes in turn.

    Args:
        folder: Folder of the data set; gets a folder for each split, with one for each class.
        size: Width and height, in pixels.
        channels: 1 for grey, 3 for colour.
        classes: Number of classes.
        count: Number of pictures of a split.
    """
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for i in range(count):
            path = folder / split / str(i % classes) / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = rng.integers(0, 256, (size // 4, size // 4, channels), dtype=np.uint8).squeeze()
            Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(path)
    return folder

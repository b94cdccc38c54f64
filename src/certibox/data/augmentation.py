"""Random moves and mirrorings of a batch of images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from certibox.errors import InvalidImages, InvalidInput


def augment(x: Tensor, policy: str, generator: torch.Generator) -> Tensor:
    """Randomly move or mirror each image of a batch, independently of the others.

    Args:
        x: Images (b, c, h, w).
        policy: Name in `AUGMENTATIONS`: "none"; "crop-flip", a crop of the original size out of the image with 4 zeros
            around, then a horizontal flip (CIFAR-10); "flips", horizontal and vertical (STL-10); "flip", horizontal.
            Each flip has probability 1/2.
        generator: Generator of the random moves.

    Returns: Images (b, c, h, w), whose values are those of `x` and the zeros around.

    Raises:
        InvalidInput: The policy is unknown.
        InvalidImages: `x` has another shape.
    """
    if policy not in AUGMENTATIONS:
        raise InvalidInput(f"augmentation {policy!r} is unknown; choose from {', '.join(AUGMENTATIONS)}")
    if x.ndim != 4:
        raise InvalidImages(f"augment: shape {tuple(x.shape)}, wanted (b, c, h, w)")
    for step in AUGMENTATIONS[policy]:
        x = step(x, generator)
    return x


def _random_crop(x: Tensor, generator: torch.Generator) -> Tensor:
    b, c, h, w = x.shape
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    offsets = torch.randint(0, 9, (2, b, 1), generator=generator, device=generator.device).to(x.device)
    rows = offsets[0] + torch.arange(h, device=x.device)  # (b, h)
    columns = offsets[1] + torch.arange(w, device=x.device)  # (b, w)
    tall = padded.gather(2, rows[:, None, :, None].expand(b, c, h, w + 8))
    return tall.gather(3, columns[:, None, None, :].expand(b, c, h, w))


def _random_flip(x: Tensor, generator: torch.Generator, dim: int) -> Tensor:
    flipped = torch.randint(0, 2, (len(x), 1, 1, 1), generator=generator, device=generator.device).to(x.device)
    return torch.where(flipped.bool(), x.flip(dim), x)


def _flip_horizontally(x: Tensor, generator: torch.Generator) -> Tensor:
    return _random_flip(x, generator, dim=3)


def _flip_vertically(x: Tensor, generator: torch.Generator) -> Tensor:
    return _random_flip(x, generator, dim=2)


AUGMENTATIONS: dict[str, tuple[Callable[[Tensor, torch.Generator], Tensor], ...]] = {
    "none": (),
    "crop-flip": (_random_crop, _flip_horizontally),
    "flips": (_flip_horizontally, _flip_vertically),
    "flip": (_flip_horizontally,),
}
"""Policies of `augment`: the steps that each applies in turn."""

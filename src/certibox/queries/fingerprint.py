"""A box's answers to fixed canary images, to tell later whether it is still the same box."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certibox import seeds
from certibox.errors import BoxChanged
from certibox.queries.client import QueryClient
from certibox.seeds.switches import settled


@dataclass(frozen=True)
class Fingerprint:
    """A box's answers to a few fixed canary images, to tell later whether it is still the same box."""

    image_shape: tuple[int, int, int]
    """Shape (c, h, w) of a canary."""
    answers: tuple[tuple[float, ...], ...]
    """Answers, one flat list a canary."""

    @classmethod
    def take(cls, client: QueryClient, image_shape: tuple[int, int, int], canaries: int = 8) -> Fingerprint:
        """Ask the box about fixed images, which costs a query each (phase `fingerprint`).

        Args:
            client: Client of the box.
            image_shape: Shape (c, h, w) of the images that the box takes.
            canaries: Number of images.
        """
        with client.phase("fingerprint"):
            answers = client(canary_images(image_shape, canaries)).double().reshape(canaries, -1)
        c, h, w = image_shape
        return cls((c, h, w), tuple(tuple(row) for row in answers.tolist()))

    def check(self, client: QueryClient, tolerance: float = 1e-3) -> None:
        """Ask again, which costs a query a canary, and compare. Labels must be identical.

        Args:
            client: Client of the box.
            tolerance: Share of the answers' range by which an answer may move; it forgives the rounding of another
                machine or batch size.

        Raises:
            BoxChanged: An answer moved by more.
        """
        now = Fingerprint.take(client, self.image_shape, len(self.answers))
        if what := moved(np.array(self.answers), np.array(now.answers), client.spec.outputs, tolerance):
            raise BoxChanged(f"the box has changed: {what}; its certificates no longer hold: certify again")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"image_shape": list(self.image_shape), "answers": [list(row) for row in self.answers]}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Fingerprint:
        """The inverse of `as_dict`.

        Args:
            stored: Plain values that `as_dict` returned.
        """
        c, h, w = stored["image_shape"]
        return cls((c, h, w), tuple(tuple(row) for row in stored["answers"]))


def moved(then: np.ndarray, now: np.ndarray, kind: str, tolerance: float = 1e-3) -> str | None:
    """How the answers to the same images differ, in words; None where the same box may have given both.

    Args:
        then: Earlier answers (n, ...), one row an image.
        now: Answers to the same images in the same order.
        kind: Kind of the answers, as in `BoxSpec`; labels must be identical.
        tolerance: Share of the earlier answers' range by which an answer may move; it forgives the rounding of another
            machine or batch size.
    """
    then, now = np.asarray(then), np.asarray(now)
    if then.shape != now.shape:
        return f"it answers the canaries with shape {now.shape}, where it gave {then.shape}"
    if then.size == 0:
        return None
    then, now = (answers.reshape(len(answers), -1).astype(np.float64) for answers in (then, now))
    allowed = 0.0 if kind == "labels" else tolerance * float(np.ptp(then))
    with np.errstate(invalid="ignore"):
        distances = np.abs(now - then).max(axis=1)
    distances = np.nan_to_num(distances, nan=np.inf, posinf=np.inf)  # what is not a number is as far as can be
    if not (count := int((~(distances <= allowed)).sum())):
        return None
    worst = int(distances.argmax())
    return (
        f"{count} of {len(distances)} canaries moved, canary {worst} by {distances[worst]:.3g} "
        f"(at most {allowed:.3g} allowed)"
    )


@settled()
def canary_images(image_shape: tuple[int, int, int], count: int) -> Tensor:
    """Fixed images (count, c, h, w) on [0, 1], half of them white noise and half smooth, the same on every machine.

    Args:
        image_shape: Shape (c, h, w) of an image.
        count: Number of images.
    """
    c, h, w = image_shape
    noise = torch.rand((count, c, h, w), generator=seeds.generator(0, "canary", c, h, w))
    coarse = torch.rand((count, c, 3, 3), generator=seeds.generator(1, "canary", c, h, w))
    smooth = torch.nn.functional.interpolate(coarse, size=(h, w), mode="bilinear", align_corners=True)
    odd = torch.arange(count).reshape(-1, 1, 1, 1) % 2 == 1
    # Interpolation may round differently elsewhere; an 8-bit grid makes the canaries identical.
    return (torch.where(odd, smooth, noise) * 255).round() / 255

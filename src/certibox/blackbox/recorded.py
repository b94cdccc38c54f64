"""A box of recorded answers: it knows the images that were asked about, and no other."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certibox.blackbox.base import BoxSpec
from certibox.blackbox.identity import joined
from certibox.blackbox.outputs import to_outputs
from certibox.data.pixels import as_images
from certibox.errors import InvalidInput, NotAnswered, UnreadableFile, described


def image_key(image: np.ndarray) -> bytes:
    """What tells an image from others: SHA-256 over its shape and its pixels as float32.

    Args:
        image: Pixels (c, h, w).
    """
    pixels = np.ascontiguousarray(image, dtype="<f4")
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()


class RecordedBox:
    """Recorded answers as a black box: the answer to an image that was recorded, to the bit, and an error for others.

    It serves tests, audits, and those who have a table of answers and no model. A certificate asks about noisy copies,
    which only a recording of these very copies holds.

    Args:
        recording: Path of an `.npz` file with `images` (n, c, h, w), pixels on [0, 1], and `answers` (n, ...); or two
            arrays of these shapes.
        outputs: Kind of the answers, as in `BoxSpec`.
        declared: Other fields of `BoxSpec`.

    Raises:
        UnreadableFile: The file is missing or broken.
        InvalidInput: It holds something else, or two answers to one image.
    """

    answers_alone = True
    """Whether an image is answered alone, whatever else is in the batch."""

    def __init__(self, recording: str | Path | tuple[Any, Any], outputs: str, **declared: Any) -> None:
        images, answers = _read(recording) if isinstance(recording, str | Path) else recording
        images = as_images(images).detach().cpu().numpy()
        answers = np.asarray(answers.detach().cpu().numpy() if isinstance(answers, Tensor) else answers)
        if len(images) != len(answers) or len(images) == 0:
            raise InvalidInput(
                f"a recording of {len(images)} images and {len(answers)} answers; wanted as many of each"
            )
        self._answers, self._places = answers, dict[bytes, int]()
        digest = hashlib.sha256(answers.tobytes())
        for i, image in enumerate(images):
            key = image_key(image)
            digest.update(key)
            if not np.array_equal(answers[self._places.setdefault(key, i)], answers[i], equal_nan=True):
                raise InvalidInput(f"the recording holds two answers to image {i}; wanted one an image")
        if answers.ndim == 2 and outputs in ("logits", "probabilities", "top-k") and answers.shape[1] > 1:
            declared.setdefault("num_classes", answers.shape[1])
        declared.setdefault("name", Path(recording).name if isinstance(recording, str | Path) else "recording")
        declared["identity"] = joined(declared.get("identity"), digest.hexdigest())
        self.spec = BoxSpec(outputs, **declared)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec.summary}, {len(self._places):,} images)"

    def __call__(self, x: Tensor) -> Tensor:  # (n, c, h, w) -> outputs
        """See `BlackBox.__call__`. Raises NotAnswered for an image that was not recorded."""
        self.spec.check_images(x)
        places = [self._places.get(image_key(image)) for image in x.detach().cpu().float().numpy()]
        if None in places:
            missing = sum(place is None for place in places)
            raise NotAnswered(
                f"{self.spec.name} holds no answer to {missing} of {len(places)} images, the first of them number "
                f"{places.index(None)}; wanted images that were recorded, pixel for pixel"
            )
        return to_outputs(torch.from_numpy(np.array(self._answers[np.array(places)])), self.spec, x.device, len(x))


def _read(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and answers of a file; no pickle is loaded."""
    try:
        with np.load(path, allow_pickle=False) as held:
            if missing := {"images", "answers"} - set(held.files):
                came = ", ".join(held.files) or "nothing"
                raise InvalidInput(f"{path} holds {came}, without {' and '.join(sorted(missing))}")
            return held["images"], held["answers"]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, InvalidInput):
            raise
        raise UnreadableFile(f"{path} is no recording that can be read ({described(error)}); wanted an .npz") from error

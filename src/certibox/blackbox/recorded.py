"""A box of recorded answers: it knows the images, or the batches, that were asked about, and no other."""

from __future__ import annotations

import hashlib
import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certibox.blackbox.base import BoxSpec
from certibox.blackbox.identity import joined
from certibox.blackbox.outputs import to_outputs
from certibox.data.pixels import as_images, batch_digest
from certibox.errors import InvalidInput, NotAnswered, UnreadableFile, described

LEDGERS = (".sqlite", ".sqlite3", ".db")


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

    A ledger holds the answers that were journalled and that no checkpoint covers yet, as `with client.journal("audit",
    0): client(images)` keeps them. It knows its batches as they were sent, and no single image of them.

    Args:
        recording: Path of an `.npz` file with `images` (n, c, h, w), pixels on [0, 1], and `answers` (n, ...); two
            arrays of these shapes; or the path of a ledger, `.sqlite`.
        outputs: Kind of the answers, as in `BoxSpec`.
        declared: Other fields of `BoxSpec`.

    Raises:
        UnreadableFile: The file is missing or broken.
        InvalidInput: It holds something else, or two answers to one image.
    """

    answers_alone = True
    """Whether an image is answered alone, whatever else is in the batch."""

    def __init__(self, recording: str | Path | tuple[Any, Any], outputs: str, **declared: Any) -> None:
        self._batches: dict[str, np.ndarray] = {}
        self._answers, self._places = np.zeros(0), dict[bytes, int]()
        if isinstance(recording, str | Path) and Path(recording).suffix.lower() in LEDGERS:
            self._batches, digest = _journalled(Path(recording))
            answers = next(iter(self._batches.values()))
            held = len(self._batches)
        else:
            answers, digest = self._images(*(_read(recording) if isinstance(recording, str | Path) else recording))
            held = len(self._places)
        self._held = f"{held:,} {'batches' if self._batches else 'images'}"
        if answers.ndim == 2 and outputs in ("logits", "probabilities", "top-k") and answers.shape[1] > 1:
            declared.setdefault("num_classes", answers.shape[1])
        declared.setdefault("name", Path(recording).name if isinstance(recording, str | Path) else "recording")
        declared["identity"] = joined(declared.get("identity"), digest)
        self.spec = BoxSpec(outputs, **declared)

    def _images(self, images: Any, answers: Any) -> tuple[np.ndarray, str]:
        """Keep answers by image; returns them, and a digest of all."""
        images = as_images(images).detach().cpu().numpy()
        answers = np.asarray(answers.detach().cpu().numpy() if isinstance(answers, Tensor) else answers)
        if len(images) != len(answers) or len(images) == 0:
            raise InvalidInput(
                f"a recording of {len(images)} images and {len(answers)} answers; wanted as many of each"
            )
        self._answers = answers
        digest = hashlib.sha256(answers.tobytes())
        for i, image in enumerate(images):
            key = image_key(image)
            digest.update(key)
            if not np.array_equal(answers[self._places.setdefault(key, i)], answers[i], equal_nan=True):
                raise InvalidInput(f"the recording holds two answers to image {i}; wanted one an image")
        return answers, digest.hexdigest()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec.summary}, {self._held})"

    def __call__(self, x: Tensor) -> Tensor:  # (n, c, h, w) -> outputs
        """See `BlackBox.__call__`. Raises NotAnswered for an image that was not recorded."""
        self.spec.check_images(x)
        if self._batches:
            found = self._batches.get(batch_digest(x))
            if found is None:
                raise NotAnswered(
                    f"{self.spec.name} holds no answer to this batch of {len(x)}; wanted a batch as it was sent then, "
                    "pixel for pixel and image for image"
                )
            return to_outputs(torch.from_numpy(found.copy()), self.spec, x.device, len(x))
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


def _journalled(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """Answers of a ledger by the digests of their batches, and a digest of all; the file is only read."""
    if not path.is_file():
        raise UnreadableFile(f"{path} is no ledger that can be read: it is not there; wanted one of certibox")
    found: dict[str, np.ndarray] = {}
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            for inputs, dtype, shape, answers in db.execute("SELECT inputs, dtype, shape, answers FROM journal"):
                key = str(inputs).partition("/")[0]
                batch = np.frombuffer(answers, dtype).reshape(tuple(int(size) for size in shape.split(",") if size))
                if not np.array_equal(found.setdefault(key, batch), batch, equal_nan=True):
                    raise InvalidInput(f"{path} holds two answers to one batch; wanted one")
    except (sqlite3.Error, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise UnreadableFile(f"{path} is no ledger that can be read ({described(error)})") from error
    if not found:
        raise InvalidInput(f"{path} holds no answers: a ledger drops them once a checkpoint covers them; wanted some")
    digest = hashlib.sha256("".join(f"{key}{found[key].tobytes().hex()}" for key in sorted(found)).encode())
    return found, digest.hexdigest()

"""The first answers of a run, kept beside its rows: they tell whether the model that goes on is the one that began.

A bare function has no weights, bytes or version to know it by. What a run asked it first was paid for anyway; when the
run goes on, the same noisy copies are asked again, before anything is added to the rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from certibox.errors import BoxChanged, Notice, UnreadableFile
from certibox.queries.fingerprint import moved
from certibox.storage.files import append_line, parsed, require_place, whole_lines

COUNT = 8  # noisy copies whose answers are kept
STREAM = "estimate"  # the stream whose first copies they are
ADVICE = "give its rows a name by model=..., or write to a new file"


_FIRST = b'{"image": '  # what a line of answers begins with


def _is_canaries(content: bytes) -> bool:
    return content.startswith(_FIRST) or _FIRST.startswith(content)


class Canaries:
    """Answers to the first noisy copies of a run's first image, one JSON line a call.

    Args:
        path: File of the rows; the answers lie beside it, with ".canaries" at its end.
        settings: Settings that decide the noise; answers under others are as good as none.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self._rows, self._settings = path.with_name(path.name + ".canaries"), path, settings
        self.image: str | None = None
        self._answers: list[Any] = []
        require_place(self.path, _is_canaries)
        if self.path.exists():
            for line in whole_lines(self.path):
                self._take(line)

    def see(self, image: str, stream: str, first: int, outputs: Tensor) -> None:
        """Keep answers to the first image that is seen, of the stream `STREAM`, unless there are enough.

        Args:
            image: SHA-256 (hex) of the image.
            stream: Name of the stream of noise.
            first: Number of the first of these samples.
            outputs: Answers (n, ...) to samples first, first + 1, ...
        """
        if stream != STREAM or self.image not in (None, image) or len(self._answers) >= COUNT:
            return
        new = outputs[: max(0, COUNT - first)].tolist()
        if first != len(self._answers) or not new:
            return
        self.image, self._answers = image, [*self._answers, *new]
        append_line(self.path, {"image": image, "settings": self._settings, "answers": new})

    def discard(self) -> None:
        """Forget the answers: the work that they were of is not gone on with."""
        self.image, self._answers = None, []
        self.path.unlink(missing_ok=True)

    def require_same(self, ask: Callable[[int], Tensor] | None) -> None:
        """Ask the kept copies again, a query each, and refuse to go on where the answers have changed.

        Args:
            ask: Function that asks the base classifier about the first n copies; None where their image is not there.

        Raises:
            BoxChanged: An answer moved; nothing is written then.
        """
        if ask is None or not self._answers:
            text = "nothing tells its base classifier from another one, and no first answers lie beside the rows"
            warnings.warn(
                f"{self._rows}: {text}, so that a change of the model would not be seen", Notice, stacklevel=4
            )
            return
        then, now = np.array(self._answers), np.array(ask(len(self._answers)).tolist())
        if what := moved(then, now, "labels" if then.dtype.kind == "i" else "logits"):
            raise BoxChanged(
                f"{self._rows} was begun with another model, or one whose answers depend on chance: {what}; {ADVICE}"
            )

    def _take(self, line: bytes) -> None:
        try:
            entry = parsed(line)
            image, settings, answers = entry["image"], entry["settings"], entry["answers"]
            np.array([*self._answers, *answers], dtype=np.float64)  # of one shape, and numbers
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            shown = line[:60].decode(errors="replace")
            raise UnreadableFile(f"{self.path}: {shown!r} is no line of answers; delete the file") from error
        if settings == self._settings:
            self.image = image
            self._answers += answers

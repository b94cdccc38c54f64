"""Votes of the image under way, on disk batch by batch, so that a killed run pays for one batch again at most."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from certibox.errors import UnreadableFile
from certibox.storage.files import append_text, parsed, read_bytes, require_place, truncate_partial_line

_FIRST = b'{"image": '  # what a line of votes begins with


def _is_votes(content: bytes) -> bool:
    return content.startswith(_FIRST) or _FIRST.startswith(content)


class VoteFile:
    """Votes of the image under way: one JSON line a batch, kept only until the next image begins.

    Args:
        path: File of the rows; the votes lie beside it, with ".votes" at its end.
        settings: Settings of the certification; votes of others are ignored.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self._settings = path.with_name(path.name + ".votes"), settings
        self._image = ""
        self._streams: dict[str, tuple[int, np.ndarray]] = {}
        require_place(self.path, _is_votes)
        if self.path.exists():
            truncate_partial_line(self.path)  # the line that a kill cut short
            for line in read_bytes(self.path).splitlines():
                self._take(line)

    @property
    def begun(self) -> bool:
        """Whether an interrupted run left votes under these settings."""
        return bool(self._streams)

    def of(self, image: str) -> VoteFile:
        """The journal of one image: what an interrupted run left of it, else empty.

        Args:
            image: SHA-256 (hex) of the image.
        """
        if image != self._image:
            self._image, self._streams = image, {}
            self.discard()
        return self

    def recall(self, stream: str) -> tuple[int, np.ndarray | None]:
        """See `VoteJournal.recall`."""
        return self._streams.get(stream, (0, None))

    def note(self, stream: str, done: int, votes: np.ndarray) -> None:
        """See `VoteJournal.note`."""
        entry = {"image": self._image, "settings": self._settings, "stream": stream}
        line = json.dumps({**entry, "done": done, "votes": votes.tolist()})
        append_text(self.path, line + "\n")  # with the system before the next query

    def discard(self) -> None:
        """Forget the file: its votes are in a row, or of no use here."""
        self.path.unlink(missing_ok=True)

    def _take(self, line: bytes) -> None:
        try:
            entry = parsed(line)
            settings, image, stream = entry["settings"], entry["image"], entry["stream"]
            done, votes = entry["done"], np.array(entry["votes"], dtype=np.int64)
        except (ValueError, KeyError, TypeError) as error:
            raise UnreadableFile(f"{self.path}: {line[:60]!r} is no line of votes; delete the file") from error
        if settings == self._settings:
            self._image, self._streams[stream] = image, (done, votes)

"""Votes of the images under way, on disk batch by batch: a killed run pays again for what was in flight alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from certibox.certification.pieces import ESTIMATE, SELECT
from certibox.errors import UnreadableFile
from certibox.records.certificates import CertificateRow
from certibox.storage.files import (
    append_text,
    parsed,
    read_bytes,
    require_place,
    truncate_partial_line,
    write_text_atomic,
)

Range = tuple[int, int, np.ndarray]  # first sample, the one after the last, votes per class (K,)
LARGE = 1 << 22  # bytes from which on the file is made anew without the votes that nobody needs
_FIRST = b'{"image": '  # what a line of votes begins with


def _is_votes(content: bytes) -> bool:
    return content.startswith(_FIRST) or _FIRST.startswith(content)


class VoteFile:
    """Votes of the images under way: one JSON line a range of samples, kept until the rows of the images are written.

    Args:
        path: File of the rows; the votes lie beside it, with ".votes" at its end.
        settings: Settings of the certification; votes of others are ignored.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self._settings = path.with_name(path.name + ".votes"), settings
        self._ranges: dict[str, dict[str, list[Range]]] = {}  # by image and stream
        self._buffer: list[str] | None = None
        self._written = 0
        require_place(self.path, _is_votes)
        if self.path.exists():
            truncate_partial_line(self.path)  # the line that a kill cut short
            content = read_bytes(self.path)
            self._written = len(content)
            totals: dict[tuple[str, str], Range] = {}  # the last of the running totals of an earlier version
            for line in content.splitlines():
                self._take(line, totals)
        self._left = {image: {name: list(parts) for name, parts in of.items()} for image, of in self._ranges.items()}

    @property
    def begun(self) -> bool:
        """Whether an interrupted run left votes under these settings."""
        return bool(self._ranges)

    def has(self, image: str) -> bool:
        """Whether votes of an image are kept.

        Args:
            image: SHA-256 (hex) of the image.
        """
        return image in self._ranges

    @property
    def images(self) -> int:
        """Number of images of which votes are kept."""
        return len(self._ranges)

    @property
    def held(self) -> int:
        """Number of votes that an interrupted run left."""
        parts = (part for of in self._ranges.values() for ranges in of.values() for part in ranges)
        return sum(stop - start for start, stop, _ in parts)

    def drop(self, images: Iterable[str]) -> None:
        """Pass over votes that the file holds of images whose rows are written.

        Args:
            images: SHA-256 (hex) of each.
        """
        for image in images:
            self._ranges.pop(image, None)
            self._left.pop(image, None)

    def take_back(self, row: CertificateRow) -> None:
        """Keep the votes of a row again, as if its run had been interrupted; nothing where votes of its image are kept.

        They lead to the same row: those of the selection are for the class that it picked, and those of each look are
        as many for that class as the rule saw.

        Args:
            row: Row of an image that a rule has looked at.
        """
        if row.image in self._ranges:
            return
        picked = np.zeros(len(row.counts), dtype=np.int64)
        picked[row.selected] = row.n0
        streams: dict[str, list[Range]] = {SELECT: [(0, row.n0, picked)], ESTIMATE: []}
        last = np.array(row.counts, dtype=np.int64)
        start = before = 0
        for samples, successes in row.looks or ():
            part = np.zeros_like(last)
            part[row.selected] = successes - before
            if samples == row.n:
                part = np.where(np.arange(len(last)) == row.selected, part, last)
            streams[ESTIMATE].append((start, samples, part))
            start, before = samples, successes
        with self.together():
            for stream, parts in streams.items():
                for part in parts:
                    self.note(row.image, stream, part)
        self._left[row.image] = {stream: list(parts) for stream, parts in streams.items()}

    def of(self, image: str) -> ImageVotes:
        """The journal of one image: what an interrupted run left of it, for the first who asks, else empty.

        Args:
            image: SHA-256 (hex) of the image.
        """
        return ImageVotes(self, image, self._left.pop(image, {}))

    def note(self, image: str, stream: str, part: Range) -> None:
        """Keep the votes of a range of samples.

        Args:
            image: SHA-256 (hex) of the image.
            stream: Name of the stream.
            part: First sample, the one after the last, and the votes per class (K,) of these samples.
        """
        self._ranges.setdefault(image, {}).setdefault(stream, []).append(part)
        line = self._line(image, stream, part)
        if self._buffer is None:
            self._append(line)
        else:
            self._buffer.append(line)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write all that is noted inside the block at once, at its end."""
        self._buffer = []
        try:
            yield
        finally:
            lines, self._buffer = self._buffer, None
            if lines:
                self._append("".join(lines))

    def forget(self, image: str) -> None:
        """Drop the votes of an image, whose row is written; the file is made anew once it is large.

        Args:
            image: SHA-256 (hex) of the image.
        """
        self._ranges.pop(image, None)
        if not self._ranges:
            self.discard()
        elif self._written > LARGE:
            kept = [
                self._line(image, stream, part)
                for image, streams in self._ranges.items()
                for stream, parts in streams.items()
                for part in parts
            ]
            text = "".join(kept)
            write_text_atomic(self.path, text)
            self._written = len(text)

    def discard(self) -> None:
        """Forget the file: its votes are in rows, or of no use here."""
        self._ranges, self._left, self._written = {}, {}, 0
        self.path.unlink(missing_ok=True)

    def _append(self, text: str) -> None:
        append_text(self.path, text)  # with the system before the next query
        self._written += len(text)

    def _line(self, image: str, stream: str, part: Range) -> str:
        start, stop, votes = part
        entry = {"image": image, "settings": self._settings, "stream": stream}
        return json.dumps({**entry, "from": start, "done": stop, "votes": votes.tolist()}) + "\n"

    def _take(self, line: bytes, totals: dict[tuple[str, str], Range]) -> None:
        try:
            entry = parsed(line)
            settings, image, stream = entry["settings"], entry["image"], entry["stream"]
            start, done, votes = entry.get("from"), entry["done"], np.array(entry["votes"], dtype=np.int64)
            if start is None:  # a running total of an earlier version, which named the look too: "estimate to 110"
                stream = stream.partition(" to ")[0]
                before = totals.get((image, stream), (0, 0, np.zeros_like(votes)))
                totals[image, stream] = (0, done, votes)
                start, votes = before[1], votes - before[2]
            part = (int(start), int(done), votes)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnreadableFile(f"{self.path}: {line[:60]!r} is no line of votes; delete the file") from error
        if settings == self._settings:
            self._ranges.setdefault(image, {}).setdefault(stream, []).append(part)


class ImageVotes:
    """The journal of one image in a file of votes; see `pieces.VoteJournal`.

    Args:
        file: File of votes.
        image: SHA-256 (hex) of the image.
        left: Ranges of samples that an interrupted run counted, by stream.
    """

    def __init__(self, file: VoteFile, image: str, left: dict[str, list[Range]]) -> None:
        self._file, self._image, self._left = file, image, left

    def recall(self, stream: str) -> list[Range]:
        """See `VoteJournal.recall`."""
        return self._left.get(stream, [])

    def note(self, stream: str, start: int, stop: int, votes: np.ndarray) -> None:
        """See `VoteJournal.note`."""
        self._file.note(self._image, stream, (start, stop, votes))

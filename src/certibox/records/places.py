"""Where the rows of a run lie: in a file, or in the file of a folder that certibox wrote."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from certibox.errors import UnreadableFile
from certibox.storage.files import PathLike

NAME = "certificates.jsonl"
_DEPTH, _FOLDERS, _NAMED = 3, 500, 3  # folders that are looked into for a message, and the files that it names


def rows_in(path: PathLike, published: bool = False) -> Path:
    """The file of rows that a path means: itself, or `certificates.jsonl` in a folder.

    Args:
        path: File of rows, or folder of one.
        published: Whether a TSV would do as well, so that the message may name one.

    Raises:
        UnreadableFile: The folder has no such file; the message names the files of rows below it.
    """
    place = Path(path)
    if not place.is_dir():
        return place
    if (place / NAME).is_file():
        return place / NAME
    below = list(islice(_below(place, (".jsonl", ".tsv") if published else (".jsonl",)), _NAMED + 1))
    more = ", or another one" if len(below) > _NAMED else ""
    meant = f"; did you mean {', '.join(str(file) for file in below[:_NAMED])}{more}?" if below else ""
    raise UnreadableFile(f"{path} is a directory without {NAME}; wanted a file of certificates{meant}")


def _below(place: Path, ends: tuple[str, ...]) -> Iterator[Path]:
    """Files of rows in a folder and not far below it, by name."""
    walk = os.walk(place)
    for folder, inner, files in islice(walk, _FOLDERS):
        inner.sort()
        if len(Path(folder).relative_to(place).parts) >= _DEPTH:
            inner.clear()
        yield from (Path(folder, file) for file in sorted(files) if _named_so(file, ends))


def _named_so(file: str, ends: tuple[str, ...]) -> bool:
    """Whether a file is called as rows are: TSVs as their authors like."""
    return file.endswith(ends) and (file.startswith("certificates.") or not file.endswith(".jsonl"))

"""Runs as a command line gives them: FILE or NAME=FILE, names that differ, and places for what is made of each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from certibox.errors import InvalidInput
from certibox.records.places import rows_in
from certibox.records.tsv import is_published, is_tsv
from certibox.report.tables import plain
from certibox.storage.files import require_place

LONGEST_NAME = 100  # characters; a file name has room for twice as many bytes


def named(entries: Sequence[str]) -> dict[str, Path]:
    """The file of each run by its name, in the order given.

    A run without a name has that of its file, or of its folder where the file is called after what it holds; as many
    folders above come with it as make it differ from the other runs.

    Args:
        entries: Runs as FILE or NAME=FILE; a folder that holds a certificates.jsonl is a file as well.

    Raises:
        InvalidInput: for a name that is empty, too long or not of plain characters, two alike, or one file twice.
    """
    split = [_split(entry) for entry in entries]
    places = [(name, rows_in(file, published=True)) for name, file in split]
    files = [_parts(file) for _, file in places]
    for file, count in Counter(files).items():
        if count > 1:
            twice = next(place for (_, place), parts in zip(places, files, strict=True) if parts == file)
            raise InvalidInput(f"{twice} is given {count} times; wanted each run once")
    names = [name or _shortest(file, files) for (name, _), file in zip(places, files, strict=True)]
    if len(set(names)) < len(names):
        raise InvalidInput(f"runs are named {names}, wanted distinct names; give them as NAME=FILE")
    return dict(zip(names, (file for _, file in places), strict=True))


def tsv_places(out: Path, runs: dict[str, Path]) -> dict[str, Path]:
    """Where the TSV of each run of certificates goes, checked before the work.

    Args:
        out: Folder of the TSVs.
        runs: File of each run, by its name.

    Raises:
        InvalidInput: for names that differ by characters which file names may lack, a file that a run is read from, or
            a place that `require_place` refuses.
        UnreadableFile: for a run whose file cannot be read.
    """
    sources = {file.resolve() for file in runs.values()}
    # What was published as a TSV is not written again.
    places = {name: out / f"{_file_name(name)}.tsv" for name, file in runs.items() if not is_published(file)}
    taken: dict[str, str] = {}
    for name, place in places.items():
        other = taken.setdefault(place.name.casefold(), name)
        if other != name:
            raise InvalidInput(f"the runs {other!r} and {name!r} would both write {place}; rename one of them")
        if place.resolve() in sources:
            raise InvalidInput(f"the run {name!r} would write {place}, which is read here; give another --out")
        require_place(place, is_tsv)
    return places


def _split(entry: str) -> tuple[str | None, str]:
    """Name and file of an entry: where several "=" could part them, that behind which a file is."""
    if Path(entry).exists() or "=" not in entry:
        return None, _some(entry, entry)
    parts = [(entry[: found.start()], entry[found.end() :]) for found in re.finditer("=", entry)]
    name, file = next(((name, file) for name, file in parts if Path(file).exists()), parts[0])
    if not name.strip(" .") or not name.isprintable() or len(name) > LONGEST_NAME:
        wanted = f"wanted 1 to {LONGEST_NAME} plain characters as NAME=FILE"
        raise InvalidInput(f"the run of {file} is named {name[:LONGEST_NAME]!r}; {wanted}")
    return name, _some(file, entry)


def _some(file: str, entry: str) -> str:
    if not file:
        raise InvalidInput(f"{entry!r} names no file; wanted FILE or NAME=FILE")
    return file


def _parts(file: Path) -> tuple[str, ...]:
    """What a file may be called by, from the root on."""
    *folders, name = file.absolute().parts
    return tuple(map(plain, folders if name == "certificates.jsonl" and len(folders) > 1 else [*folders, file.stem]))


def _shortest(parts: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> str:
    """As many of the last parts as make a name that no other file could have."""
    for count in range(1, len(parts)):
        if [other[-count:] for other in others].count(parts[-count:]) == 1:
            return "/".join(parts[-count:])
    return "/".join(parts)


def _file_name(name: str) -> str:
    return re.sub(r"^\.|[^\w.,=+ -]", "_", name)

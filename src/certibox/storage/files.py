"""Whole files and whole lines: atomic writes, a lock, JSON and JSON lines."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from certibox.errors import InvalidInput, UnreadableFile

PathLike = str | os.PathLike[str]


def whole_lines(path: PathLike) -> list[bytes]:
    """The lines of a JSON-lines file without a last one that a crash cut short; `UnreadableFile` if it is missing."""
    *lines, tail = read_bytes(path).split(b"\n")
    return [*lines, tail] if _is_json(tail) else lines


def append_line(path: PathLike, values: Mapping[str, Any]) -> None:
    """Write one JSON line and flush it, making the folder if needed and cutting off what a crash left of the last."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    truncate_partial_line(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n")


def truncate_partial_line(path: PathLike) -> None:
    """Make appending safe after a crash: cut a torn last line off, or end a whole one that lacks only its newline.

    A missing file has nothing to cut and is left missing.
    """
    if not Path(path).exists():
        return
    content = read_bytes(path)
    whole, tail = content[: content.rfind(b"\n") + 1], content[content.rfind(b"\n") + 1 :]
    with open(path, "r+b") as file:
        if _is_json(tail):
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        else:
            file.truncate(len(whole))


def _is_json(line: bytes) -> bool:
    # No proper prefix of a JSON object is JSON, so a line that parses was not cut.
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def read_json(path: PathLike) -> Any:
    """The value of a JSON file. Raises `UnreadableFile` when the file is missing or is not JSON."""
    content = read_bytes(path)
    try:
        return json.loads(content)
    except ValueError as error:
        raise UnreadableFile(f"{path}: not JSON ({error}); restore the file or make it again") from error


@contextmanager
def exclusive(path: PathLike) -> Iterator[None]:
    """Keep other processes from writing to `path` inside; `InvalidInput` at once if one already does.

    The lock is the operating system's, on a file beside it, and ends with the process however that ends. Where the
    system has no such locks (Windows), nothing is kept out.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    lock = Path(path).with_name(f".{Path(path).name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            text = f"another process is writing {path}; wait for it, or write to another place"
            raise InvalidInput(text) from error
        yield


def write_json_atomic(path: PathLike, obj: Any) -> None:
    """Write `obj` as indented JSON like `write_bytes_atomic`; NaN and infinity, which JSON lacks, raise ValueError."""
    write_text_atomic(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text_atomic(path: PathLike, text: str) -> None:
    """Write `text` as UTF-8; see `write_bytes_atomic`."""
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: PathLike, content: bytes) -> None:
    """Replace the file in one step, making its folder if needed: readers and crashes see the old file or the new."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")  # the same folder, so the same file system
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def read_bytes(path: PathLike) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror or error}; check the path") from error

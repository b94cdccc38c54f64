"""Whole files and whole lines: atomic writes, a lock, JSON and JSON lines."""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from certibox.errors import InvalidInput, UnreadableFile

PathLike = str | os.PathLike[str]
LONGEST_JSON = 1 << 24  # bytes of a value; a certificate of a thousand classes has ten thousand


def whole_lines(path: PathLike) -> list[bytes]:
    """The lines of a JSON-lines file without a last one that a crash cut short.

    Args:
        path: File of JSON lines.

    Raises:
        UnreadableFile: The file is missing.
    """
    *lines, tail = read_bytes(path).split(b"\n")
    return [*lines, tail] if _is_json(tail) else lines


def append_line(path: PathLike, values: Mapping[str, Any]) -> None:
    """Write one JSON line and flush it, making the folder if needed and cutting off what a crash left of the last.

    Args:
        path: File of JSON lines.
        values: Values of the line, by name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    truncate_partial_line(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n")


def truncate_partial_line(path: PathLike) -> None:
    """Make appending safe after a crash: cut a torn last line off, or end a whole one that lacks only its newline.

    A missing file has nothing to cut and is left missing.

    Args:
        path: File of JSON lines.
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
    except RecursionError:  # no line of ours, so no crash has cut it
        return True
    return True


class _Refused(ValueError):
    """JSON that Python reads and other readers do not."""


def parsed(content: bytes) -> Any:
    """The value of JSON in UTF-8, as strictly as other readers take it: each key once, no NaN and no infinity.

    Args:
        content: Bytes of one JSON value.

    Raises:
        ValueError: It is not JSON, or longer than `LONGEST_JSON`; the text is one line.
    """
    if len(content) > LONGEST_JSON:
        raise ValueError(f"{len(content):,} bytes of JSON, wanted {LONGEST_JSON:,} at most")
    try:
        text = content.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_each_key_once, parse_constant=_no_constant, parse_float=_finite)
    except (_Refused, json.JSONDecodeError):
        raise
    except UnicodeDecodeError as error:
        raise ValueError(f"no UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise ValueError("values nested too deeply") from error
    except ValueError as error:  # what Python says of it names functions, not the file's fault
        raise ValueError("a number of more digits than any reader takes") from error


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Refused(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return values


def _no_constant(name: str) -> None:
    raise _Refused(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise _Refused(f"the number {text[:20]} is too large")
    return number


def read_json(path: PathLike) -> Any:
    """The value of a JSON file.

    Args:
        path: File of one JSON value.

    Raises:
        UnreadableFile: The file is missing or is not JSON.
    """
    content = read_bytes(path)
    try:
        return parsed(content)
    except ValueError as error:
        raise UnreadableFile(f"{path}: not JSON ({error}); restore the file or make it again") from error


@contextmanager
def exclusive(path: PathLike) -> Iterator[None]:
    """Keep other processes from writing to a file inside.

    The lock is the operating system's, on a file beside it, and ends with the process however that ends. Where the
    system has no such locks (Windows), nothing is kept out.

    Args:
        path: File to write to.

    Raises:
        InvalidInput: Another process is writing to the file already.
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
    """Write a value as indented JSON, whole or not at all.

    Args:
        path: File to write.
        obj: Value of JSON's types.

    Raises:
        ValueError: The value holds NaN or infinity, which JSON lacks.
    """
    write_text_atomic(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text_atomic(path: PathLike, text: str) -> None:
    """Write a text as UTF-8, whole or not at all.

    Args:
        path: File to write.
        text: Text to write.
    """
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: PathLike, content: bytes) -> None:
    """Replace a file in one step, making its folder if needed: readers and crashes see the old file or the new.

    Args:
        path: File to write.
        content: Bytes to write.
    """
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
    """The content of a file.

    Args:
        path: File to read.

    Raises:
        UnreadableFile: The file cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror or error}; check the path") from error

"""Whole files and whole lines: places that may be written to, atomic writes, a lock, JSON and JSON lines."""

from __future__ import annotations

import errno
import json
import os
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from certibox.errors import InvalidInput, Notice, UnreadableFile
from certibox.storage.places import REGULAR, Ours, PathLike, naming, read_bytes, reason, require_place
from certibox.storage.strict import is_json, is_json_lines, parsed


def whole_lines(path: PathLike) -> list[bytes]:
    """The lines of a JSON-lines file without a last one that a crash cut short.

    Args:
        path: File of JSON lines.

    Raises:
        UnreadableFile: The file is missing.
    """
    *lines, tail = read_bytes(path).split(b"\n")
    return [*lines, tail] if _is_json(tail) else lines


def append_text(path: PathLike, text: str) -> None:
    """Write text at the end of a regular file, which is made if needed; it is with the system when this returns.

    What a full disk let in of it is taken back.

    Args:
        path: File to write to; its folder exists.
        text: Whole lines.

    Raises:
        OSError: The text cannot be written; the error names the file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | REGULAR
    with naming(path), os.fdopen(os.open(path, flags, 0o666), "ab", buffering=0) as file:
        start, left = os.fstat(file.fileno()).st_size, memoryview(text.encode())
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(start)
            raise


def append_line(path: PathLike, values: Mapping[str, Any]) -> None:
    """Write one JSON line and flush it, making the folder if needed and cutting off what a crash left of the last.

    Args:
        path: File of JSON lines.
        values: Values of the line, by name.
    """
    path = Path(path)
    require_place(path, is_json_lines)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        truncate_partial_line(path)
    append_text(path, json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n")


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
    with naming(path), open(path, "r+b") as file:
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
def exclusive(path: PathLike, ours: Ours | None = None) -> Iterator[None]:
    """Keep other processes from writing to a file inside.

    The lock is the operating system's, on a file beside it, and ends with the process however that ends. A file system
    that has none of one kind (flock, as some network file systems) is asked for the other (lockf); where it has
    neither, a warning says that nothing is kept out. Windows has neither, and no warning.

    Args:
        path: File to write to.
        ours: Function from the first bytes of the file to whether certibox made it, as in `require_place`.

    Raises:
        InvalidInput: Another process is writing to the file already, or `require_place` refuses it.
    """
    lock = Path(path).with_name(f".{Path(path).name}.lock")
    for place, made in ((path, ours), (lock, None)):
        require_place(place, made)
    with naming(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | REGULAR, 0o666)
    try:
        if not _locked(descriptor, path):
            text = f"the file system of {path} keeps no locks; make sure that no other process writes to it"
            warnings.warn(text, Notice, stacklevel=3)
        yield
    finally:
        os.close(descriptor)


_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


def _locked(descriptor: int, path: PathLike) -> bool:
    """Whether the system keeps others out from now on; raises `InvalidInput` where another process does so already."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    for lock in (fcntl.flock, fcntl.lockf):
        try:
            lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # lockf may say either
            text = f"another process is writing {path}; wait for it, or write to another place"
            raise InvalidInput(text) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise OSError(error.errno, reason(error), str(path)) from error
        else:
            return True
    return False


def write_json_atomic(path: PathLike, obj: Any) -> None:
    """Write a value as indented JSON, whole or not at all.

    Args:
        path: File to write.
        obj: Value of JSON's types.

    Raises:
        ValueError: The value holds NaN or infinity, which JSON lacks.
    """
    write_text_atomic(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n", is_json)


def write_text_atomic(path: PathLike, text: str, ours: Ours | None = None) -> None:
    """Write a text as UTF-8, whole or not at all.

    Args:
        path: File to write.
        text: Text to write.
        ours: Function from the first bytes of an older file to whether it may be replaced, as in `require_place`.

    Raises:
        InvalidInput: `require_place` refuses the path.
        OSError: The system does not write it; the error names the file, and an older one is still there.
    """
    write_bytes_atomic(path, text.encode(), ours)


def write_bytes_atomic(path: PathLike, content: bytes, ours: Ours | None = None) -> None:
    """Replace a file in one step, making its folder if needed: readers and crashes see the old file or the new.

    Args:
        path: File to write.
        content: Bytes to write.
        ours: Function from the first bytes of an older file to whether it may be replaced, as in `require_place`.

    Raises:
        InvalidInput: `require_place` refuses the path.
        OSError: The system does not write it; the error names the file, and an older one is still there.
    """
    require_place(path, ours)
    target = Path(path)
    # The same folder, so the same file system; a name of its own, so that a long one has room for it.
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    with naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

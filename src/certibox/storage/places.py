"""Places on disk: what may be written where, regular files read without waiting, and errors that name the file."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from certibox.errors import InvalidInput, UnreadableFile

PathLike = str | os.PathLike[str]


Ours = Callable[[bytes], bool]  # the first `HEAD` bytes of a file -> whether certibox made it


HEAD = 1 << 16  # bytes by which a file is told; the keys of a row of thousands of classes lie within them


_KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def kind_of(mode: int) -> str | None:
    """What lies at a place, in words; None for a regular file.

    Args:
        mode: Mode of the place, as `os.stat` gives it, or `os.lstat`, which tells links.
    """
    return next((words for test, words in _KINDS if test(mode)), None)


def require_place(path: PathLike, ours: Ours | None = None) -> None:
    """Refuse a place where no file can be written, or where something lies that certibox did not make.

    Commands call it before their work, and everything that writes a file calls it again.

    Args:
        path: File that is to be written, replaced or continued.
        ours: Function from the first bytes of a file to whether certibox made it; by default any regular file may be
            replaced. An empty file may be in any case.

    Raises:
        InvalidInput: There is a directory, a device, a pipe, a socket, a symbolic link or a file of others, or the
            folder is none, or cannot be written to.
    """
    try:
        there = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        there = None
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path!r} cannot be written: {reason(error)}; wanted the path of a file") from error
    if there is not None:
        if kind := kind_of(there.st_mode):
            raise InvalidInput(f"{path} is {kind}; certibox writes regular files of its own: give another place")
        if ours is not None and there.st_size and not ours(head(path)):
            came = f"{path} is a file that certibox did not write, or of another kind"
            raise InvalidInput(f"{came}; give another place, or move it away")
    _require_folder(Path(path))


def _require_folder(path: Path) -> None:
    """Raise `InvalidInput` unless the folder of a file can be written to, or made."""
    above = next((folder for folder in path.absolute().parents if os.path.lexists(folder)), path)
    if not above.is_dir():
        raise InvalidInput(f"{path} cannot be written: {above} is no directory; give another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InvalidInput(f"{path} cannot be written: {above} may not be written to; give another place")


def reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def head(path: PathLike) -> bytes:
    """The first `HEAD` bytes of a regular file.

    Args:
        path: File to read.

    Raises:
        UnreadableFile: The file cannot be read.
    """
    return _read(path, HEAD)


@contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """Let an error of the system inside name the file that was to be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, reason(error), str(path)) from error


# Opening neither waits for the other end of a pipe nor follows a link; Windows has no such flags.
WAITLESS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


REGULAR = WAITLESS | getattr(os, "O_NOFOLLOW", 0)


def read_bytes(path: PathLike) -> bytes:
    """The content of a file.

    Args:
        path: File to read.

    Raises:
        UnreadableFile: The file cannot be read.
    """
    return _read(path)


def _read(path: PathLike, most: int = -1) -> bytes:
    """The first bytes of a regular file, by default all: of a device there is no end, and a pipe keeps one waiting."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | WAITLESS | getattr(os, "O_BINARY", 0)), "rb") as file:
            kind = kind_of(os.fstat(file.fileno()).st_mode)
            content = b"" if kind else file.read(most)
    except (OSError, ValueError) as error:
        raise UnreadableFile(f"{path}: {reason(error)}; check the path") from error
    if kind:
        raise UnreadableFile(f"{path} is {kind}; wanted a regular file")
    return content

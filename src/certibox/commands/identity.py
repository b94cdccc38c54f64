"""What decides the answers of a model file, as far as files can tell: a digest of all that was read to import it."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import certibox

LARGEST = 2**30  # bytes of a file that is digested
_READ: dict[Path, set[Path]] = {}  # files opened for reading while something was imported, by the folder it lies in
_open: list[set[Path]] = []  # sets that are being filled; the hook below does nothing without one
_hooked = False
# Files of the interpreter, of installed packages and of certibox, whose versions are no part of a model, and of the
# system. A virtual environment may lie beside the model.
_OTHERS = ("site-packages", "dist-packages", "__pycache__", ".git")
_INSTALLED = {Path(path).resolve() for key in ("stdlib", "platstdlib") if (path := sysconfig.get_path(key))}
_ENVIRONMENT = {Path(sys.prefix).resolve()} if sys.prefix != sys.base_prefix else set()
_SYSTEM = set(map(Path, ("/proc", "/sys", "/dev", "/etc")))
_ELSEWHERE = {*_INSTALLED, *_ENVIRONMENT, *_SYSTEM, Path(certibox.__file__).resolve().parent}


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Note the files that are opened for reading inside the block: weights, tables, settings.

    Args:
        folder: Folder of what is imported.
    """
    global _hooked
    if not _hooked:  # a hook stays for good, so there is one, and only once it is needed
        sys.addaudithook(_note)
        _hooked = True
    seen: set[Path] = set()
    _open.append(seen)
    try:
        yield
    finally:
        _open.remove(seen)
        _READ.setdefault(folder.resolve(), set()).update(seen)


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _open:
        return
    path, mode, flags = arguments
    written = "r" not in mode or "+" in mode if isinstance(mode, str) else flags & (os.O_WRONLY | os.O_RDWR)
    if written or not isinstance(path, str | bytes | os.PathLike):
        return
    with suppress(OSError, ValueError):
        for seen in _open:
            seen.add(Path(os.path.abspath(os.fsdecode(path))))


def identity(module: Any, folder: Path) -> str:
    """Digest of a module's file, of those that it imported from its folder, and of the files that they read.

    Where the files lie does not enter. A file that is no regular one, or above a GiB, does not either.

    Args:
        module: Imported module.
        folder: Folder that it lies in, or its package.
    """
    folder = folder.resolve()
    modules = [other for name, other in list(sys.modules.items()) if name != "__main__"]
    sources = {Path(file).resolve() for other in modules if isinstance(file := _file(other), str)}
    beside = {path for path in sources if folder in path.parents}
    found = {path.resolve() for path in beside | _READ.get(folder, set())}
    own = {Path(file).resolve()} if isinstance(file := _file(module), str) else set()
    kept = own | {path for path in found if not _is_foreign(path)}
    digests = sorted((_name(path, folder), digest) for path in kept if (digest := _digest(path)))
    return hashlib.sha256(repr(digests).encode()).hexdigest()


def _is_foreign(path: Path) -> bool:
    return any(part in _OTHERS for part in path.parts) or bool(_ELSEWHERE & {path, *path.parents})


def _file(module: Any) -> Any:
    """The file of a module; None for what has none, or is no module."""
    try:
        return vars(module).get("__file__")
    except TypeError:
        return None


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if folder in path.parents else path.name


def _digest(path: Path) -> str | None:
    """SHA-256 of a file; None for one that is gone, too large or no regular one."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST:
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None

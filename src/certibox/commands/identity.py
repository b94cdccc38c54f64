"""What decides the answers of a model file, as far as files can tell: a digest of all that it was made from."""

from __future__ import annotations

import ast
import hashlib
import os
import stat
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import certibox
from certibox.blackbox import WEIGHT_FILES

LARGEST = 2**30  # bytes of a file that is digested whole
PIECES, PIECE = 256, 2**20  # of a larger one, in bytes each, the first and the last among them
_MOST_FOLDERS = 100  # beside a Python file, whose names stand in it, that are looked into for weights
_READ: dict[Path, set[Path]] = {}  # files that a module, by its own file, read while it was imported
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
def watched() -> Iterator[set[Path]]:
    """Note what is read inside the block: modules that are imported, and files that are opened: weights, tables."""
    global _hooked
    if not _hooked:  # a hook stays for good, so there is one, and only once it is needed
        sys.addaudithook(_note)
        _hooked = True
    seen, before = set[Path](), set(sys.modules)
    _open.append(seen)
    try:
        yield seen
    finally:
        _open.pop()
        seen.update(_sources(sys.modules.keys() - before))


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


def identity(module: Any, folder: Path, read: set[Path]) -> str:
    """Digest of a module's file, of those that it imported, of what they read, and of the weights that they name.

    Weights count by name too, since libraries open them below Python, and models when they are first asked. Where the
    files lie does not enter. A file that is no regular one does not either; of one above a GiB, pieces do.

    Args:
        module: Imported module.
        folder: Folder that it and what it imports are looked for in.
        read: Files that were read to make the model, as `watched` notes them.
    """
    folder = folder.resolve()
    own = {Path(file).resolve()} if isinstance(file := _file(module), str) else set[Path]()
    for path in own:  # a module is imported once in a process
        read = _READ[path] = _READ.get(path, set()) | read
    beside = {path for path in _sources(sys.modules) if folder in path.parents}
    found = own | {path for path in beside | {path.resolve() for path in read} if not _is_foreign(path)}
    waiting = [path for path in found if path.suffix == ".py"]
    while waiting:  # what is imported in a function, when it is first asked, too
        new = _imports(waiting.pop(), folder) - found
        found |= new
        waiting += new
    kept = found.union(*(_named(path) for path in found if path.suffix == ".py"))
    digests = sorted((_name(path, folder), digest) for path in kept if (digest := _digest(path)))
    return hashlib.sha256(repr(digests).encode()).hexdigest()


def _sources(names: Iterable[str]) -> set[Path]:
    """The files of modules."""
    modules = [sys.modules.get(name) for name in list(names) if name != "__main__"]
    return {Path(file).resolve() for module in modules if isinstance(file := _file(module), str)}


def _tree(source: Path) -> ast.AST:
    """The code of a Python file; nothing for one that is none."""
    with suppress(OSError, ValueError, SyntaxError, RecursionError):
        return ast.parse(source.read_bytes())
    return ast.Module([], [])


def _imports(source: Path, folder: Path) -> set[Path]:
    """The Python files beside a file, or below a folder, that it imports, wherever in its code that stands."""
    names = set[tuple[Path, str]]()
    for node in ast.walk(_tree(source)):
        if isinstance(node, ast.Import):
            names |= {(place, part.name) for part in node.names for place in (folder, source.parent)}
        elif isinstance(node, ast.ImportFrom):
            start = [source.parents[node.level - 1]] if 0 < node.level <= len(source.parents) else []
            for place in start or (folder, source.parent):
                whole = node.module or ""
                names |= {(place, whole), *((place, f"{whole}.{part.name}".strip(".")) for part in node.names)}
    found = set[Path]()
    for place, name in names:
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            module = place.joinpath(*parts[:depth])
            found |= {path for path in (module.with_suffix(".py"), module / "__init__.py") if path.is_file()}
    return {path.resolve() for path in found} - {source}


def _named(source: Path) -> set[Path]:
    """Files of weights that texts in a Python file name: by a path, or by a folder beside it and the rest of a path."""
    constants = (node.value for node in ast.walk(_tree(source)) if isinstance(node, ast.Constant))
    texts = {text for text in constants if isinstance(text, str)}
    parts = {part for text in texts for part in Path(text).parts} - {"/", ".", ".."}
    places = [Path.cwd(), source.parent, *(source.parent / part for part in islice(sorted(parts), _MOST_FOLDERS))]
    names = [text for text in texts if os.path.splitext(text)[1].lower() in WEIGHT_FILES]
    return {Path(path).resolve() for name in names for place in places if os.path.isfile(path := place / name)}


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
    """SHA-256 of a file, of its size and pieces all over it where it is large; None for what is no regular file."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return None
        with path.open("rb") as file:
            if found.st_size <= LARGEST:
                return hashlib.file_digest(file, "sha256").hexdigest()
            total = hashlib.sha256(str(found.st_size).encode())
            for piece in range(PIECES):
                file.seek(piece * (found.st_size - PIECE) // (PIECES - 1))
                total.update(file.read(PIECE))
            return total.hexdigest()
    except OSError:
        return None

"""Who may ask, and for how many queries: bearer tokens from a file of hashes, and what each has spent, on disk.

A line of the file is `name:sha256`, or `name:sha256:budget` with the most queries that the token may ever spend. The
token itself is nowhere: only its SHA-256 (hex) is.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sqlite3
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from certibox.errors import CertiboxError, InvalidInput, UnreadableFile
from certibox.serving.protocol import Refused
from certibox.storage.files import append_text
from certibox.storage.places import read_bytes

_LINE = re.compile(r"([\w.-]{1,64}):([0-9a-f]{64})(?::(\d{1,15}))?")


@dataclass(frozen=True)
class Token:
    """Someone who may ask."""

    name: str
    """Name, as logs and accounts have it."""
    budget: int | None = None
    """Most queries that it may ever spend; None for no limit of its own."""


class Tokens:
    """The tokens of a file, read again whenever it changes.

    Args:
        path: File of tokens.

    Raises:
        UnreadableFile: The file cannot be read, or a line of it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._state = self._stated()
        self._known = read_tokens(self.path)

    def found(self, authorization: str | None) -> Token:
        """The token that a request names.

        Args:
            authorization: Value of its header Authorization; None where there is none.

        Raises:
            Refused: It names none, or one that the file does not have.
        """
        with self._lock:
            if (now := self._stated()) != self._state:
                with suppress(UnreadableFile):  # half written: the next request finds it whole, this one what was there
                    self._known, self._state = read_tokens(self.path), now
            known = self._known
        kind, _, secret = (authorization or "").partition(" ")
        token = known.get(hashlib.sha256(secret.strip().encode()).hexdigest()) if kind.lower() == "bearer" else None
        if token is None:
            came = "the token is not known" if authorization else "a token is wanted: Authorization: Bearer TOKEN"
            raise Refused(401, came, {"WWW-Authenticate": "Bearer"})
        return token

    def _stated(self) -> tuple[int, int, int] | None:
        try:
            state = self.path.stat()
        except OSError:
            return None
        return state.st_mtime_ns, state.st_size, state.st_ino


def read_tokens(path: Path) -> dict[str, Token]:
    """The tokens of a file, by the SHA-256 (hex) of each.

    Args:
        path: File of tokens.

    Raises:
        UnreadableFile: naming the line that is no token.
    """
    found: dict[str, Token] = {}
    for number, line in enumerate(read_bytes(path).decode("utf-8", "replace").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        if (parts := _LINE.fullmatch(line.strip())) is None:
            raise UnreadableFile(f"{path}, line {number} is no token; wanted name:sha256 or name:sha256:budget")
        token = Token(parts[1], None if parts[3] is None else int(parts[3]))
        if parts[2] in found or token.name in {one.name for one in found.values()}:
            raise UnreadableFile(f"{path}, line {number}: {token.name} stands twice; wanted one line a token")
        found[parts[2]] = token
    return found


def new_token(path: str | Path, name: str, budget: int | None) -> str:
    """Make a token, append its hash to a file that its owner alone may read, and return the token.

    Args:
        path: File of tokens, made where there is none.
        name: Name of who gets it.
        budget: Most queries that it may ever spend; None for no limit.

    Raises:
        InvalidInput: The name is taken, or holds other letters than a name may.
    """
    path, secret = Path(path), secrets.token_urlsafe(32)
    line = f"{name}:{hashlib.sha256(secret.encode()).hexdigest()}" + ("" if budget is None else f":{budget}")
    if _LINE.fullmatch(line) is None:
        raise InvalidInput(f"name is {name!r}; wanted up to 64 letters, digits, '-', '_' and '.'")
    if path.exists():
        if any(token.name == name for token in read_tokens(path).values()):
            raise InvalidInput(f"{path} has a token for {name!r}; wanted another name, or the line of the old one gone")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
    text = path.read_text()
    append_text(path, ("\n" if text and not text.endswith("\n") else "") + line + "\n")
    return secret


class Accounts:
    """What each token has spent.

    Args:
        path: SQLite file, made where there is none; None to count in memory.

    Raises:
        UnreadableFile: The file is no such file.
    """

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")  # outlives the process; a dead machine may lose seconds
            self._db.execute("CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY, spent INTEGER NOT NULL)")
            self._spent: dict[str, int] = dict(self._db.execute("SELECT name, spent FROM accounts"))
        except sqlite3.Error as error:
            raise UnreadableFile(f"the accounts {path} cannot be opened ({error})") from error

    def spent(self, name: str) -> int:
        """Queries that a token has spent.

        Args:
            name: Name of the token.
        """
        return self._spent.get(name, 0)

    def charge(self, counts: Mapping[str, int]) -> None:
        """Book queries before they are sent, or give them back.

        Args:
            counts: Queries of each token, by name; below 0 to give them back.
        """
        if not counts:
            return
        add = "INSERT INTO accounts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET spent = spent + excluded.spent"
        with self._lock:
            try:
                with self._db:
                    self._db.execute("BEGIN IMMEDIATE")
                    self._db.executemany(add, list(counts.items()))
            except sqlite3.Error as error:
                raise CertiboxError(f"the accounts cannot be written ({error})") from error
            for name, count in counts.items():
                self._spent[name] = self._spent.get(name, 0) + count

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

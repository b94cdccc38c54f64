"""The file of a ledger: made whole, told from other programs' files, and checked before anybody believes it.

A ledger says who made it in the header of its file (`APPLICATION`, `VERSION`); those of 0.1.0 say nothing there and are
known by their tables. What it counts it holds twice, as a total in `committed` and as rows of `spend` that are never
deleted, and it opens only where the two agree: what a damage took away must not be there to spend again.

SQLite keeps a rollback journal, and no write-ahead log: every booking stands in the file itself as soon as it is made,
so that no file beside it can be lost with bookings in it, and it works on network file systems. A killed process leaves
at most a journal of the one transaction that it was in, which the next process rolls back.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import sys
import uuid
from array import array
from contextlib import closing, suppress
from pathlib import Path

from certibox.queries.bills import BILLS

APPLICATION = int.from_bytes(b"CxLg")
VERSION = 2  # of a ledger with the table `bills`; all others have 1, which earlier versions of certibox read
WAIT = 60.0  # seconds for another process to finish its transaction

SCHEMA = """
CREATE TABLE spend (
    id INTEGER PRIMARY KEY, phase TEXT NOT NULL, sent_at TEXT NOT NULL,
    attempted INTEGER NOT NULL, answered INTEGER);
CREATE TABLE committed (queries INTEGER NOT NULL);
INSERT INTO committed VALUES (0);
CREATE TABLE journal (
    scope TEXT NOT NULL, position INTEGER NOT NULL, inputs TEXT NOT NULL,
    dtype TEXT NOT NULL, shape TEXT NOT NULL, answers BLOB NOT NULL, PRIMARY KEY (scope, position));
"""
_IDENTITY = """
CREATE TABLE IF NOT EXISTS identity (name TEXT NOT NULL);
INSERT INTO identity SELECT lower(hex(randomblob(16))) WHERE NOT EXISTS (SELECT * FROM identity);
"""
_BILLS = "CREATE TABLE bills (by TEXT NOT NULL);"
_MARKS = f"PRAGMA application_id={APPLICATION}; PRAGMA user_version="
_COLUMNS = {
    "spend": ["id", "phase", "sent_at", "attempted", "answered"],
    "committed": ["queries"],
    "journal": ["scope", "position", "inputs", "dtype", "shape", "answers"],
    "identity": ["name"],
    "bills": ["by"],
}
_IMPOSSIBLE = """
typeof(attempted) != 'integer' OR attempted < 0
OR answered IS NOT NULL AND (typeof(answered) != 'integer' OR answered < 0 OR answered > attempted)
"""
_NEW = "wanted a certibox ledger or a new path"


class NoLedger(Exception):
    """Why a file cannot serve as a ledger, and what to do.

    Args:
        reason: What is wrong with it.
        advice: What to do, an attribute too.
    """

    def __init__(self, reason: str, advice: str = _NEW) -> None:
        super().__init__(reason)
        self.advice = advice


def make(file: Path, bills: str) -> None:
    """Make a ledger where there is no file. It appears whole, so that no crash leaves an empty one.

    Args:
        file: Absolute path of the ledger.
        bills: Name of what its budget counts.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(file):
        return
    new = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        with closing(sqlite3.connect(new, isolation_level=None)) as db:
            marks = f"{_MARKS}1;" if bills == "image" else f"{_BILLS}{_MARKS}{VERSION};"
            db.executescript(f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; {SCHEMA}{_IDENTITY}{marks}")
            if bills != "image":
                db.execute("INSERT INTO bills VALUES (?)", (bills,))
        _name(new, file)
    finally:
        new.unlink(missing_ok=True)


def _name(new: Path, file: Path) -> None:
    """Give a file its name, unless another process was first."""
    try:
        os.link(new, file)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not os.path.lexists(file):
            new.rename(file)


def recognise(file: Path) -> None:
    """Refuse a file that is no ledger, before anything is written to it.

    Args:
        file: Absolute path of the ledger.

    Raises:
        NoLedger: The file is something else, is empty, or was made by a later version.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise NoLedger("it is no regular file")
    if status.st_size == 0:
        raise NoLedger("it is empty, which a ledger never is: what it held is lost", _restore(None))
    application, version, tables = _header(file)
    if application == APPLICATION:
        if version > VERSION:
            raise NoLedger(f"its version is {version}", f"wanted at most {VERSION}: use the certibox that made it")
        return
    of_old = (application, version) == (0, 0) and {"spend", "journal"} <= set(tables) <= set(_COLUMNS)
    if not of_old or any(columns != _COLUMNS[table] for table, columns in tables.items()):
        raise NoLedger("it is another program's SQLite file")


def _header(file: Path) -> tuple[int, int, dict[str, list[str]]]:
    """Application, version, and the columns of each table, read without a trace where SQLite can."""
    ways = ["mode=ro", "mode=rw"]  # the last one only rolls back what a killed process was writing
    if not file.with_name(f"{file.name}-wal").exists():
        ways.insert(0, "immutable=1")
    for way in ways:
        try:
            with closing(sqlite3.connect(f"{file.as_uri()}?{way}", uri=True, timeout=WAIT)) as db:
                (application,), (version,) = (
                    db.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
                )
                return application, version, _tables(db)
        except sqlite3.Error as error:
            if way == ways[-1]:
                raise _no_ledger(error) or error from error
    raise AssertionError("the last way returns or raises")


def _tables(db: sqlite3.Connection) -> dict[str, list[str]]:
    names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    columns = "SELECT name FROM pragma_table_info(?) ORDER BY cid"
    return {name: [column for (column,) in db.execute(columns, (name,))] for name in names}


def connect(file: Path) -> sqlite3.Connection:
    """A connection to a ledger that is there, for any thread.

    Args:
        file: Absolute path of the ledger.

    Raises:
        NoLedger: The file is damaged, or the log is that 0.1.0 kept beside it.
    """
    if reason := _log_damage(file):
        raise NoLedger(reason, _restore(None))
    db = sqlite3.connect(
        f"{file.as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=WAIT, check_same_thread=False
    )
    try:
        db.execute("PRAGMA journal_mode=PERSIST")  # leaves the log that 0.1.0 kept, with all that is in it
        db.execute(f"PRAGMA journal_size_limit={2**20}")
    except sqlite3.Error as error:
        db.close()
        raise _no_ledger(error) or error from error
    return db


def _log_damage(file: Path) -> str | None:
    """What is wrong with the write-ahead log of a ledger of 0.1.0: SQLite passes over what it cannot read there."""
    log, index = (file.with_name(f"{file.name}{end}") for end in ("-wal", "-shm"))
    with file.open("rb") as opened:
        logs = opened.read(20)[18:19] == b"\x02"
    if not logs or not log.exists():
        return f"{log.name}, its log, is gone while {index.name} is there" if logs and index.exists() else None
    content = log.read_bytes()
    head, size = content[:32], int.from_bytes(content[8:12])
    if not content:
        return None
    swapped = (head[3] & 1) != (sys.byteorder == "big") if len(head) == 32 else False
    sums = _sums(head[:24], (0, 0), swapped)
    if len(head) < 32 or size < 512 or head[24:] != _stored(sums):
        return f"{log.name}, its log, is damaged"
    for start in range(32, len(content), 24 + size):
        frame = content[start : start + 24 + size]
        if len(frame) == 24 + size and frame[8:16] != head[16:24]:
            return None  # what is left of an earlier round, whose pages are in the file
        sums = _sums(frame[:8] + frame[24:], sums, swapped)
        if len(frame) < 24 + size or frame[16:24] != _stored(sums):
            return f"{log.name}, its log, is damaged at byte {start}"
    return None


def _sums(content: bytes, sums: tuple[int, int], swapped: bool) -> tuple[int, int]:
    """The running checksum of SQLite's log."""
    words = array("I", content[: len(content) // 8 * 8])
    if swapped:
        words.byteswap()
    one, two = sums
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two


def _stored(sums: tuple[int, int]) -> bytes:
    return b"".join(part.to_bytes(4) for part in sums)


def check(db: sqlite3.Connection) -> None:
    """Refuse a ledger that is damaged, and bring one of 0.1.0 up to date.

    Args:
        db: Connection to a file that was recognised.

    Raises:
        NoLedger: A part is missing, or what is counted twice does not agree.
    """
    try:
        db.execute("BEGIN IMMEDIATE")  # nobody writes meanwhile
        reason = _damage(db)
        if reason is None and db.execute("PRAGMA application_id").fetchone() != (APPLICATION,):
            for statement in f"{_IDENTITY}{_MARKS}1;".split(";"):
                db.execute(statement)
        db.execute("COMMIT")
    except sqlite3.Error as error:
        raise _no_ledger(error, _most(db)) or error from error
    if reason is not None:
        raise NoLedger(reason, _restore(_most(db)))


def _no_ledger(error: sqlite3.Error, shown: int | None = None) -> NoLedger | None:
    """What an error of SQLite says of a file; None where the file may be whole, and only cannot be used now."""
    if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT):
        return NoLedger(f"it is damaged: {error}", _restore(shown))
    return None


def _damage(db: sqlite3.Connection) -> str | None:
    """What is wrong with a ledger; None for a whole one."""
    (said,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if said != "ok":
        return "it is damaged: " + " ".join(said.split())
    if alien := db.execute("SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'view')").fetchone():
        return f"it holds the {alien[0]} {alien[1]}, which certibox never made"
    tables = _tables(db)
    optional = {"identity"} if db.execute("PRAGMA application_id").fetchone() == (0,) else set()
    if db.execute("PRAGMA user_version").fetchone() != (VERSION,):
        optional.add("bills")
    for table, columns in _COLUMNS.items():
        if table not in tables and table not in optional:
            return f"its table {table} is missing"
        if tables.get(table, columns) != columns:
            return f"its table {table} has the columns {', '.join(tables[table])}"
    totals = db.execute("SELECT queries, typeof(queries) FROM committed").fetchall()
    if [kind for _, kind in totals] != ["integer"]:
        return f"its table committed holds {len(totals)} rows, not one whole number"
    if (unit := billed_by(db)) not in BILLS:
        return f"its table bills says {unit!r}"
    rows, last, counted = db.execute(f"SELECT COUNT(*), MAX(id), {BILLS[unit].sql} FROM spend").fetchone()
    if rows != (last or 0):
        return f"its table spend holds {rows} rows of {last}"
    if db.execute(f"SELECT COUNT(*) FROM spend WHERE {_IMPOSSIBLE}").fetchone() != (0,):
        return "its table spend holds impossible numbers"
    if totals[0][0] != (counted or 0):
        return f"its table committed says {totals[0][0]} {BILLS[unit].unit}, and spend {counted or 0}"
    return None


def _most(db: sqlite3.Connection) -> int | None:
    """The most queries that a damaged ledger still shows; None where it shows none."""
    found = []
    bill = BILLS["image"]
    with suppress(sqlite3.Error, KeyError):
        bill = BILLS[billed_by(db)]
    for query in (f"SELECT {bill.sql} FROM spend", "SELECT MAX(queries) FROM committed"):
        with suppress(sqlite3.Error):
            (number,) = db.execute(query).fetchone()
            if isinstance(number, int):
                found.append(number)
    return max(found, default=None)


def _restore(shown: int | None) -> str:
    """What to do about a ledger that has lost something."""
    spent = "what was spent" if shown is None else f"what was spent: it still shows {shown:,} queries"
    return f"restore it from a copy, or begin a new ledger elsewhere and lower the budget by {spent}"


def billed_by(db: sqlite3.Connection) -> str:
    """The name of what a ledger counts against a budget.

    Args:
        db: Connection to the ledger.
    """
    if "bills" not in _tables(db):
        return "image"
    found = db.execute("SELECT by FROM bills").fetchall()
    return found[0][0] if len(found) == 1 else f"{len(found)} rows"


def identity(db: sqlite3.Connection) -> str:
    """The name that a ledger was given when it was made.

    Args:
        db: Connection to the ledger.

    Raises:
        NoLedger: It has none.
    """
    found = db.execute("SELECT name FROM identity").fetchone()
    if found is None:
        raise NoLedger("its table identity is empty", _restore(_most(db)))
    return found[0]


def disconnect(db: sqlite3.Connection) -> None:
    """Close a connection and, where nobody else is writing, remove the empty journal beside the file.

    Args:
        db: Connection to the ledger.
    """
    with suppress(sqlite3.Error):
        db.execute("PRAGMA journal_mode=DELETE")
    db.close()

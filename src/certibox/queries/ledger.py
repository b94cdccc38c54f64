"""What was spent, by whom, when; and the answers paid for since the last checkpoint. An SQLite file, no pickle.

A row is written before its batch is sent and settled when the answer is in, so a process killed at any moment leaves
at most one unsettled row, and so does a box that raises: its queries may have been billed and count against the budget.
An answer is journalled in the same transaction that settles it, so nothing paid for is lost.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from certibox.errors import BudgetExceeded, CertiboxError, InvalidInput, UnreadableFile
from certibox.queries import ledger_file
from certibox.queries.bills import BILLS
from certibox.queries.concurrency import Forkable
from certibox.queries.ledger_file import NoLedger

SYNC_EVERY = 0.05  # seconds after which a transaction waits for the disk again
SYNC_SHARE = 0.05  # most of the time that is spent so: a disk that others keep busy takes 20 ms, else 1 ms
_AS_BEFORE = "wanted the ledger that was open here before"


class Ledger(Forkable):
    """The ledger file of one client. Rows accumulate over every run that opens the same file.

    Threads share one connection, one after the other: SQLite has one writer a file in any case, a booking takes some
    tens of microseconds, and a connection a thread would have to be found and closed whenever a thread ends. No
    connection crosses a fork, which SQLite does not survive: it is closed before, and each process opens its own.

    The death of a process loses nothing. For the death of a whole machine a transaction must wait for the disk, and it
    does where the last wait was 50 ms ago, or longer where the disk is slow: always with a box that takes its time.

    Args:
        path: File of the ledger, made where there is none.
        identity: Name that the file must hold, for a ledger that must already be there; see `identity`.
        bills: Name of what its budget counts, one of `bills.BILLS`.

    Raises:
        UnreadableFile: The file is no ledger, is damaged, counts something else, or is not the one that `identity`
            names.
    """

    def __init__(self, path: str | Path, identity: str | None = None, bills: str = "image") -> None:
        self._connection: sqlite3.Connection | None = None  # a fork finds it in order, whatever fails below
        super().__init__()
        self.path = Path(path)
        self.file = self.path.absolute()  # another working directory must not make it another ledger
        self._closed, self._sync_at = False, float("-inf")
        self.bills = bills
        self._connection, self.identity = self._connect(identity)

    def __repr__(self) -> str:
        try:
            answered, _, lost = self.totals()
        except CertiboxError:
            return f"Ledger({self.path}, {'closed' if self._closed else 'unreadable'})"
        return f"Ledger({self.path}, {answered:,} answered, {lost:,} lost)"

    def _connect(self, identity: str | None, check: bool = True) -> tuple[sqlite3.Connection, str]:
        """A connection, and the name of the file. With `identity` the file must be there, and be that one."""
        db: sqlite3.Connection | None = None
        advice = "wanted a certibox ledger or a new path" if identity is None else _AS_BEFORE
        try:
            if identity is None:
                ledger_file.make(self.file, self.bills)
            elif not self.file.exists():
                raise NoLedger("it is gone", _AS_BEFORE)
            ledger_file.recognise(self.file)
            db = ledger_file.connect(self.file)
            if check:
                ledger_file.check(db)
            if (name := ledger_file.identity(db)) != (identity or name):
                raise NoLedger("it is another ledger", _AS_BEFORE)
            if (counts := ledger_file.billed_by(db)) != self.bills:
                unit, own = BILLS[counts].unit, BILLS[self.bills].unit
                advice = f"wanted a box declared with bills={counts!r}, or a new path"
                raise NoLedger(f"its budget counts {unit}, and that of this box {own}", advice)
        except (NoLedger, OSError, ValueError, sqlite3.Error) as error:
            if db is not None:
                db.close()
            advice = error.advice if isinstance(error, NoLedger) else advice
            raise UnreadableFile(f"the ledger {self.path} cannot be opened ({error}); {advice}") from error
        return db, name

    @contextmanager
    def _using(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time; SQLite's errors in words.

        write: in one transaction, which commits, or rolls back when the block raises.
        """
        with self.lock:
            if self._closed:
                raise InvalidInput(f"the ledger {self.path} is closed; open it again to go on")
            if self._connection is None:  # closed for a fork
                self._connection, _ = self._connect(self.identity, check=False)
            try:
                if not write:
                    yield self._connection
                    return
                with self._synced(self._connection), self._connection as db:
                    db.execute("BEGIN IMMEDIATE")
                    yield db
            except sqlite3.Error as error:
                raise CertiboxError(
                    f"the ledger {self.path} failed ({error}); wanted a writable disk and no long locks"
                ) from error

    @contextmanager
    def _synced(self, db: sqlite3.Connection) -> Iterator[None]:
        """Let the transaction inside wait for the disk, where it is time to."""
        began = time.monotonic()
        due = began >= self._sync_at
        db.execute(f"PRAGMA synchronous={'NORMAL' if due else 'OFF'}")
        yield
        if due:
            ended = time.monotonic()
            self._sync_at = ended + max(SYNC_EVERY, (ended - began) / SYNC_SHARE)

    def send(self, phase: str, n: int, wanted: int | None = None, budget: int | None = None) -> int:
        """Book queries that are about to be sent; returns the row to settle.

        Check and booking are one transaction, so clients that share a ledger cannot overspend together.

        Args:
            phase: Name under which the queries are booked.
            n: Number of queries to book, those of one request.
            wanted: Number of queries that the budget must still allow, n a request; n by default.
            budget: Most that the ledger may ever hold, in what the box bills; None for no limit.

        Raises:
            BudgetExceeded: The budget does not allow `wanted` more queries. Nothing was booked.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        bill = BILLS[self.bills]
        asked = bill.of_call(n if wanted is None else wanted, n)
        with self._using(write=True) as db:
            if budget is not None and asked > budget - (committed := _committed(db)):
                raise BudgetExceeded(asked, max(0, budget - committed), bill.unit)
            db.execute("UPDATE committed SET queries = queries + ?", (bill.of(n),))
            insert = "INSERT INTO spend (phase, sent_at, attempted) VALUES (?, ?, ?)"
            row = db.execute(insert, (phase, now, n)).lastrowid
        assert row is not None
        return row

    def settle(self, row: int, answered: int, entry: tuple[str, int, str, np.ndarray] | None = None) -> None:
        """Note how many of a row's queries were answered and, with `entry`, journal the answers.

        Args:
            row: Row that `send` returned.
            answered: Number of queries that were answered.
            entry: Scope, position, digest of the inputs, and answers, as `Journal.entry` returns them.
        """
        with self._using(write=True) as db:
            (attempted,) = db.execute("SELECT attempted FROM spend WHERE id = ?", (row,)).fetchone()
            bill = BILLS[self.bills]
            if given_back := bill.of(attempted) - bill.of(attempted, answered):
                db.execute("UPDATE committed SET queries = queries - ?", (given_back,))
            db.execute("UPDATE spend SET answered = ? WHERE id = ?", (answered, row))
            if entry:
                scope, position, inputs, answers = entry
                stored = (answers.dtype.str, ",".join(map(str, answers.shape)), answers.tobytes())
                values = (scope, position, f"{inputs}/{_checksum(*stored)}", *stored)
                db.execute("INSERT OR REPLACE INTO journal VALUES (?, ?, ?, ?, ?, ?)", values)

    def slot(self, seconds: float) -> float:
        """Take the next place in time, of all who ask through this file; see `flow.Clock`.

        Args:
            seconds: Seconds that must pass before the place after it.

        Returns:
            Seconds to wait for it.
        """
        with self._using(write=True) as db:
            db.execute("CREATE TABLE IF NOT EXISTS pace (next REAL NOT NULL)")
            found = db.execute("SELECT next FROM pace").fetchone()
            now = time.time()
            at = max(now, found[0]) if found else now
            db.execute("UPDATE pace SET next = ?" if found else "INSERT INTO pace VALUES (?)", (at + seconds,))
        return at - now

    def committed(self) -> int:
        """What counts against a budget, in what the box bills: answered, in flight, or lost."""
        with self._using() as db:
            return _committed(db)

    def recall(self, scope: str, position: int, inputs: str) -> np.ndarray | None:
        """The journalled answers at a position, if they answer these inputs and are what was written.

        Args:
            scope: Name of the piece of work that owns the journal.
            position: Number of the batch within that work.
            inputs: Digest of the images.
        """
        with self._using() as db:
            found = db.execute(
                "SELECT inputs, dtype, shape, answers FROM journal WHERE scope = ? AND position = ?", (scope, position)
            ).fetchone()
        if found is None or found[0] not in (inputs, f"{inputs}/{_checksum(*found[1:])}"):  # 0.1.0 kept no checksum
            return None
        shape = tuple(int(size) for size in found[2].split(",") if size)
        return np.frombuffer(found[3], dtype=found[1]).reshape(shape).copy()

    def forget(self, scope: str, before: int) -> None:
        """Drop the journalled answers of a scope before a position that a checkpoint covers.

        Args:
            scope: Name of the piece of work that owns the journal.
            before: Position of the first batch to keep.
        """
        with self._using() as db:
            db.execute("DELETE FROM journal WHERE scope = ? AND position < ?", (scope, before))

    def totals(self) -> tuple[int, int, int]:
        """(answered, attempted, lost): lost queries were sent, and no answer to them was noted."""
        with self._using() as db:
            return _totals(db)

    def by_phase(self) -> dict[str, int]:
        """Answered queries of each phase, in order of first spending."""
        sums = "SELECT phase, SUM(answered) FROM spend WHERE answered > 0 GROUP BY phase ORDER BY MIN(id)"
        with self._using() as db:
            return dict(db.execute(sums).fetchall())

    def close(self) -> None:
        """Close the file; the ledger cannot be used afterwards."""
        with self.lock:
            self._closed = True
            self._disconnect()

    def before_fork(self) -> None:
        """Close the connection: the first use in either process opens one of its own."""
        self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            ledger_file.disconnect(self._connection)
            self._connection = None

    def __del__(self) -> None:
        if (connection := getattr(self, "_connection", None)) is None:
            return
        try:  # with methods alone: when a process ends, functions may be gone by now
            connection.execute("PRAGMA journal_mode=DELETE")
        except Exception:
            self._connection = None  # the file is not what it was: there is nothing to tidy
        connection.close()


def _checksum(dtype: str, shape: str, answers: bytes) -> str:
    return f"{zlib.crc32(answers, zlib.crc32(f'{dtype} {shape}'.encode())):08x}"


def _committed(db: sqlite3.Connection) -> int:
    return db.execute("SELECT queries FROM committed").fetchone()[0]


def _totals(db: sqlite3.Connection) -> tuple[int, int, int]:
    lost = "SUM(CASE WHEN answered IS NULL THEN attempted END)"
    sums = db.execute(f"SELECT SUM(answered), SUM(attempted), {lost} FROM spend").fetchone()
    answered, attempted, lost = (total or 0 for total in sums)
    return answered, attempted, lost

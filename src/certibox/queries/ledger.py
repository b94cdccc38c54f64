"""What was spent, by whom, when; and the answers paid for since the last checkpoint. SQLite in WAL mode, no pickle.

A row is written before its batch is sent and settled when the answer is in, so a process killed at any moment leaves
at most one unsettled row: its queries may have been paid for and count against the budget. An answer is journalled in
the same transaction that settles it, so nothing paid for is lost.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from certibox.errors import BudgetExceeded, CertiboxError, UnreadableFile

SCHEMA = """
CREATE TABLE IF NOT EXISTS spend (
    id INTEGER PRIMARY KEY, phase TEXT NOT NULL, sent_at TEXT NOT NULL,
    attempted INTEGER NOT NULL, answered INTEGER);
CREATE TABLE IF NOT EXISTS committed (queries INTEGER NOT NULL);
INSERT INTO committed SELECT 0 WHERE NOT EXISTS (SELECT * FROM committed);
CREATE TABLE IF NOT EXISTS journal (
    scope TEXT NOT NULL, position INTEGER NOT NULL, inputs TEXT NOT NULL,
    dtype TEXT NOT NULL, shape TEXT NOT NULL, answers BLOB NOT NULL, PRIMARY KEY (scope, position));
"""


class Ledger:
    """The ledger file of one client. Rows accumulate over every run that opens the same file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, isolation_level=None, timeout=60)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(SCHEMA)
            self.totals()  # a damaged file, or another program's, shows here
        except (OSError, sqlite3.DatabaseError) as error:
            what = f"the ledger {path} cannot be opened ({error})"
            raise UnreadableFile(f"{what}; wanted a certibox ledger or a new path") from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commits, or rolls back when it raises; SQLite's errors in words."""
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                yield
        except sqlite3.Error as error:
            raise CertiboxError(
                f"the ledger {self.path} failed ({error}); wanted a writable disk and no long locks"
            ) from error

    def send(self, phase: str, n: int, wanted: int | None = None, budget: int | None = None) -> int:
        """Book n queries that are about to be sent; returns the row to settle.

        Raises `BudgetExceeded`, booking nothing, unless `wanted` more queries (n by default) fit the budget. Check and
        booking are one transaction, so clients that share a ledger cannot overspend together.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        wanted = n if wanted is None else wanted
        with self._transaction():
            if budget is not None and wanted > budget - self.committed():
                raise BudgetExceeded(wanted, max(0, budget - self.committed()))
            self._db.execute("UPDATE committed SET queries = queries + ?", (n,))
            insert = "INSERT INTO spend (phase, sent_at, attempted) VALUES (?, ?, ?)"
            row = self._db.execute(insert, (phase, now, n)).lastrowid
        assert row is not None
        return row

    def settle(self, row: int, answered: int, entry: tuple[str, int, str, np.ndarray] | None = None) -> None:
        """Note that `answered` of a row's queries were answered and, with `entry`, journal the answers."""
        with self._transaction():
            refused = "(SELECT attempted FROM spend WHERE id = ?) - ?"
            self._db.execute(f"UPDATE committed SET queries = queries - ({refused})", (row, answered))
            self._db.execute("UPDATE spend SET answered = ? WHERE id = ?", (answered, row))
            if entry:
                scope, position, inputs, answers = entry
                shape = ",".join(map(str, answers.shape))
                values = (scope, position, inputs, answers.dtype.str, shape, answers.tobytes())
                self._db.execute("INSERT OR REPLACE INTO journal VALUES (?, ?, ?, ?, ?, ?)", values)

    def committed(self) -> int:
        """Queries that count against a budget: answered, in flight, or lost; not those that the box refused."""
        return self._db.execute("SELECT queries FROM committed").fetchone()[0]

    def recall(self, scope: str, position: int, inputs: str) -> np.ndarray | None:
        """The journalled answers at `position`, if they answer these `inputs` (a digest)."""
        found = self._db.execute(
            "SELECT inputs, dtype, shape, answers FROM journal WHERE scope = ? AND position = ?", (scope, position)
        ).fetchone()
        if found is None or found[0] != inputs:
            return None
        shape = tuple(int(size) for size in found[2].split(","))
        return np.frombuffer(found[3], dtype=found[1]).reshape(shape).copy()

    def forget(self, scope: str, before: int) -> None:
        """Drop the journalled answers of `scope` before a position that a checkpoint covers."""
        self._db.execute("DELETE FROM journal WHERE scope = ? AND position < ?", (scope, before))

    def totals(self) -> tuple[int, int, int]:
        """(answered, attempted, lost): lost queries were sent by a process that died before the answer was noted."""
        lost = "SUM(CASE WHEN answered IS NULL THEN attempted END)"
        sums = self._db.execute(f"SELECT SUM(answered), SUM(attempted), {lost} FROM spend").fetchone()
        answered, attempted, lost = (total or 0 for total in sums)
        return answered, attempted, lost

    def by_phase(self) -> dict[str, int]:
        """Answered queries of each phase, in order of first spending."""
        sums = "SELECT phase, SUM(answered) FROM spend WHERE answered > 0 GROUP BY phase ORDER BY MIN(id)"
        return dict(self._db.execute(sums).fetchall())

    def close(self) -> None:
        """Close the file; the ledger cannot be used afterwards."""
        self._db.close()

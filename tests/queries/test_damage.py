"""A damaged ledger is refused, or what it leaves of the budget is no more than before; never does it begin again."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from certibox.errors import UnreadableFile
from certibox.queries import ledger_file
from certibox.queries.client import QueryClient
from certibox.queries.ledger import Ledger
from doubles import LinearBox

BUDGET, LEFT = 100, 34  # of the ledger that is damaged


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a ledger as a killed process leaves it: answered, given back, lost and in flight."""
    folder, copy = tmp_path_factory.mktemp("alive"), tmp_path_factory.mktemp("killed")
    ledger = Ledger(folder / "ledger.sqlite")
    for position in range(10):
        answers = np.arange(8, dtype=np.float32).reshape(4, 2)
        ledger.settle(ledger.send("train", 4), 4, ("scope", position, "digest", answers))
    ledger.settle(ledger.send("train", 9), 0)
    ledger.send("certify", 21)
    ledger.settle(ledger.send("certify", 3), 3)
    ledger.send("certify", 2)
    for file in folder.iterdir():
        shutil.copy(file, copy)
    ledger.close()
    return copy


@pytest.fixture
def path(killed: Path, tmp_path: Path) -> Path:
    shutil.copytree(killed, tmp_path / "run")
    return tmp_path / "run" / "ledger.sqlite"


def left(path: Path) -> int:
    """What a client may still spend; as much as the box is then sent."""
    with QueryClient(LinearBox(torch.eye(4)), BUDGET, path) as client:
        assert client.left is not None
        return client.left


def refusal(path: Path) -> str:
    with pytest.raises(UnreadableFile) as caught:
        left(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sql(*statements: str) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        with closing(sqlite3.connect(path)) as db:
            for statement in statements:
                db.execute(statement)
            db.commit()

    return act


def test_a_ledger_that_a_killed_process_left_goes_on_where_it_stood(path: Path) -> None:
    assert left(path) == left(path) == LEFT


REFUSED = {
    "no committed": (sql("DROP TABLE committed"), "its table committed is missing"),
    "no spend": (sql("DROP TABLE spend"), "its table spend is missing"),
    "no journal": (sql("DROP TABLE journal"), "its table journal is missing"),
    "no identity": (sql("DROP TABLE identity"), "its table identity is missing"),
    "nameless": (sql("DELETE FROM identity"), "its table identity is empty"),
    "committed empty": (sql("DELETE FROM committed"), "its table committed holds 0 rows, not one whole number"),
    "committed 0": (sql("UPDATE committed SET queries = 0"), "its table committed says 0 queries, and spend 66"),
    "committed twice": (
        sql("INSERT INTO committed VALUES (0)"),
        "its table committed holds 2 rows, not one",
    ),
    "committed text": (
        sql("UPDATE committed SET queries = 'few'"),
        "its table committed holds 1 rows, not one",
    ),
    "spend empty": (sql("DELETE FROM spend"), "its table committed says 66 queries, and spend 0"),
    "a row lost": (sql("DELETE FROM spend WHERE id = 12"), "its table spend holds 13 rows of 14"),
    "the last row lost": (sql("DELETE FROM spend WHERE id = 14"), "its table committed says 66 queries, and spend 64"),
    "a refund": (
        sql("UPDATE spend SET answered = 0 WHERE id = 12"),
        "its table committed says 66 queries, and",
    ),
    "a negative row": (
        sql("UPDATE spend SET answered = -40 WHERE id = 12", "UPDATE committed SET queries = 5"),
        "its table spend holds impossible numbers",
    ),
    "another column": (sql("ALTER TABLE spend RENAME answered TO paid"), "its table spend has the columns id, phase"),
    "a trigger": (
        sql("CREATE TRIGGER undo AFTER INSERT ON spend BEGIN UPDATE committed SET queries = 0; END"),
        "it holds the trigger undo, which certibox never made",
    ),
    "zero bytes": (lambda path: path.write_bytes(b""), "it is empty, which a ledger never is"),
    "cut": (lambda path: os.truncate(path, 8192), "it is damaged"),
    "zeros": (lambda path: path.write_bytes(bytes(8192)), "file is not a database"),
}


@pytest.mark.parametrize("damage", REFUSED)
def test_a_damaged_ledger_is_refused_with_what_to_do(damage: str, path: Path) -> None:
    act, reason = REFUSED[damage]
    act(path)
    before = path.read_bytes()
    said = refusal(path)
    assert said.startswith(f"the ledger {path} cannot be opened ({reason}"), said
    assert path.read_bytes() == before  # nothing was made in its place
    if damage != "zeros":
        assert (
            "; restore it from a copy, or begin a new ledger elsewhere and lower the budget by what was spent" in said
        )
    if damage not in ("no spend", "zero bytes", "cut", "zeros", "another column", "a negative row"):
        assert said.endswith(": it still shows 66 queries")


@pytest.mark.parametrize("beside", ["-journal", "-wal", "-shm"])
@pytest.mark.parametrize("how", ["gone", "cut", "noise"])
def test_nothing_beside_the_file_holds_a_booking(beside: str, how: str, path: Path) -> None:
    other = path.with_name(path.name + beside)
    if how == "gone":
        other.unlink(missing_ok=True)
    elif how == "cut" and other.exists():
        os.truncate(other, 100)
    elif how == "noise":
        other.write_bytes(np.random.default_rng(0).bytes(9000))
    assert left(path) == LEFT


def test_a_flipped_byte_or_a_cut_never_gives_queries_back(path: Path) -> None:
    whole = path.read_bytes()
    spoilt = [whole[:size] for size in (1, 15, 16, 99, 100, 511, 512, 4095, 4096, 4097, 12288, len(whole) - 1)]
    for place in [*range(16, 100, 3), *range(100, len(whole), 101)]:
        spoilt.append(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
    outcomes = [left_or_refused(path, content) for content in spoilt]
    assert set(outcomes) == {None, LEFT}
    assert outcomes[:11] == [None] * 11


def left_or_refused(path: Path, content: bytes) -> int | None:
    """What a file leaves of the budget; None where it is refused."""
    path.write_bytes(content)
    try:
        return left(path)
    except UnreadableFile:
        return None


@pytest.mark.parametrize("kept", [True, False], ids=["with its journal", "without"])
def test_a_transaction_that_a_kill_cut_short_gives_nothing_back(kept: bool, path: Path, tmp_path: Path) -> None:
    """Half of its pages are in the file; the journal beside it undoes them, and without it the two counts disagree."""
    cut = tmp_path / "cut.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA cache_size = 1")
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE committed SET queries = 0")
        for _ in range(2000):
            db.execute("INSERT INTO spend (phase, sent_at, attempted, answered) VALUES ('train', '', 1, 0)")
        shutil.copy(path, cut)
        if kept:
            shutil.copy(f"{path}-journal", f"{cut}-journal")
    assert cut.stat().st_size > 0
    assert left_or_refused(cut, cut.read_bytes()) == (LEFT if kept else None)


@pytest.mark.parametrize("column", ["answers", "shape", "dtype"])
def test_a_journalled_answer_that_was_changed_is_asked_again(column: str, path: Path) -> None:
    changed = {"answers": "zeroblob(32)", "shape": "'2,4'", "dtype": "'<i4'"}[column]
    sql(f"UPDATE journal SET {column} = {changed} WHERE position = 3")(path)
    with closing(Ledger(path)) as ledger:
        found = [ledger.recall("scope", position, "digest") for position in range(10)]
    assert [position for position, answers in enumerate(found) if answers is None] == [3]


def test_answers_that_0_1_0_journalled_without_a_checksum_are_found(path: Path) -> None:
    sql("UPDATE journal SET inputs = 'digest'")(path)
    with closing(Ledger(path)) as ledger:
        assert ledger.recall("scope", 3, "digest") is not None
        assert ledger.recall("scope", 3, "other") is None


FOREIGN = {
    "tables of its own": sql("CREATE TABLE points (x, y)"),
    "a table of our name": sql("CREATE TABLE spend (amount)"),
    "no table": sql("PRAGMA user_version = 3"),
    "its own mark": sql("PRAGMA application_id = 5", ledger_file.SCHEMA.split(";")[0]),
    "our tables and others": sql(*ledger_file.SCHEMA.split(";"), "CREATE TABLE points (x, y)"),
    "in WAL mode": sql("PRAGMA journal_mode = WAL", "CREATE TABLE points (x, y)"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_another_program_is_refused_and_left_as_it_is(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    FOREIGN[kind](path)
    before = path.read_bytes()
    assert refusal(path).endswith("(it is another program's SQLite file); wanted a certibox ledger or a new path")
    assert [file.name for file in tmp_path.iterdir()] == ["other.sqlite"]
    assert path.read_bytes() == before


def test_a_ledger_of_a_later_version_is_refused(path: Path) -> None:
    sql("PRAGMA user_version = 3")(path)
    assert refusal(path).endswith("(its version is 3); wanted at most 2: use the certibox that made it")


MARKS = {"application_id": 0, "user_version": 0, "journal_mode": "wal"}


def old(path: Path) -> None:
    """A ledger as 0.1.0 made it: without a mark and a name, in WAL mode."""
    sql("DROP TABLE identity", "PRAGMA application_id = 0", "PRAGMA user_version = 0", "PRAGMA journal_mode = WAL")(
        path
    )


def test_a_ledger_of_0_1_0_is_known_by_its_tables_and_goes_on(path: Path) -> None:
    old(path)
    assert left(path) == LEFT
    with closing(sqlite3.connect(path)) as db:
        marks = [
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version", "journal_mode")
        ]
        assert marks == [ledger_file.APPLICATION, 1, "delete"]
        assert len(db.execute("SELECT name FROM identity").fetchone()[0]) == 32
    assert left(path) == LEFT


def test_what_0_1_0_had_in_its_log_is_not_lost(path: Path) -> None:
    old(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("INSERT INTO spend (phase, sent_at, attempted) VALUES ('train', '', 10)")
        db.execute("UPDATE committed SET queries = queries + 10")
        db.commit()
        killed = path.with_name("killed.sqlite")
        for end in ("", "-wal"):
            shutil.copy(path.with_name(path.name + end), killed.with_name(killed.name + end))
    assert left(killed) == LEFT - 10


def flip(at: int) -> Callable[[Path], object]:
    """Change one byte of a file."""

    def act(log: Path) -> None:
        content = bytearray(log.read_bytes())
        content[at] ^= 0xFF
        log.write_bytes(content)

    return act


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip(0), "is damaged"),
        (flip(20), "is damaged"),
        (flip(60), "is damaged at byte 32"),
        (flip(-1), "is damaged at byte"),
        (lambda log: os.truncate(log, log.stat().st_size - 1), "is damaged at byte"),
        (lambda log: log.write_bytes(b"x" * 9000), "is damaged"),
        (lambda log: log.rename(log.with_name(log.name.replace("-wal", "-shm"))), "is gone while"),
    ],
)
def test_a_log_of_0_1_0_that_is_damaged_or_lost_is_refused(
    damage: Callable[[Path], object], reason: str, path: Path
) -> None:
    old(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("INSERT INTO spend (phase, sent_at, attempted) VALUES ('train', '', 10)")
        db.execute("UPDATE committed SET queries = queries + 10")
        db.commit()
        killed = path.with_name("killed.sqlite")
        for end in ("", "-wal"):
            shutil.copy(path.with_name(path.name + end), killed.with_name(killed.name + end))
    damage(killed.with_name("killed.sqlite-wal"))
    said = refusal(killed)
    assert f"(killed.sqlite-wal, its log, {reason}" in said
    assert "; restore it from a copy, or begin a new ledger elsewhere" in said


def test_a_damaged_ledger_of_0_1_0_is_refused(path: Path) -> None:
    old(path)
    sql("DROP TABLE committed")(path)
    assert "(its table committed is missing); restore it from a copy" in refusal(path)


def test_a_new_ledger_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process killed while it makes one leaves no empty file, which would be refused."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "ledger.sqlite"
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", killed)
        with pytest.raises(KeyboardInterrupt):
            Ledger(path)
    assert not list(tmp_path.iterdir())
    assert left(path) == BUDGET
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.sqlite"]


def test_a_ledger_is_made_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refused)
    assert left(tmp_path / "ledger.sqlite") == BUDGET
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.sqlite"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no such files")
def test_what_is_no_regular_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    os.mkfifo(path)
    assert "(it is no regular file); wanted a certibox ledger or a new path" in refusal(path)
    assert path.is_fifo()
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    assert "cannot be opened" in refusal(path)
    path.unlink()
    Ledger(tmp_path / "real.sqlite").close()
    path.symlink_to(tmp_path / "real.sqlite")
    assert left(path) == BUDGET

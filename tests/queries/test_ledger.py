"""The ledger tells what was spent, by whom and when, after any death of the process that wrote it."""

from __future__ import annotations

import ast
import shutil
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, eye, rand

import certibox
from certibox.errors import BudgetExceeded, CertiboxError, UnreadableFile
from certibox.queries.client import QueryClient
from certibox.queries.ledger import Ledger
from doubles import CountingBox, LinearBox


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def rows(path: Path, query: str) -> list[tuple]:
    """What an outside reader of the file sees."""
    reader = sqlite3.connect(path)
    found = reader.execute(query).fetchall()
    reader.close()
    return found


def test_every_booking_stands_in_the_file_itself(path: Path, tmp_path: Path) -> None:
    """Nothing that lies beside it is needed, so nothing beside it can be lost."""
    ledger = Ledger(path)
    ledger.settle(ledger.send("train", 3), 3)
    ledger.send("train", 5)
    shutil.copy(path, tmp_path / "alone.sqlite")
    assert Ledger(tmp_path / "alone.sqlite").totals() == (3, 8, 5)
    ledger.close()
    assert [file.name for file in tmp_path.glob("ledger*")] == ["ledger.sqlite"]


def test_rows_say_phase_time_attempted_and_answered(path: Path) -> None:
    ledger = Ledger(path)
    before = datetime.now(UTC)
    first, second, _ = ledger.send("train", 3), ledger.send("certify", 5), ledger.send("train", 7)
    after = datetime.now(UTC)
    ledger.settle(first, 3)
    ledger.settle(second, 0)
    found = rows(path, "SELECT phase, attempted, answered FROM spend ORDER BY id")
    assert found == [("train", 3, 3), ("certify", 5, 0), ("train", 7, None)]
    times = [datetime.fromisoformat(time) for (time,) in rows(path, "SELECT sent_at FROM spend ORDER BY id")]
    assert all(time.utcoffset() == timedelta(0) for time in times)
    assert before - timedelta(milliseconds=1) <= times[0] <= times[1] <= times[2] <= after
    assert ledger.totals() == (3, 15, 7)
    assert ledger.by_phase() == {"train": 3}


def test_phases_come_in_order_of_first_spending(path: Path) -> None:
    ledger = Ledger(path)
    for phase, n in (("train", 1), ("certify", 2), ("audit", 4), ("train", 8)):
        ledger.settle(ledger.send(phase, n), n)
    assert list(ledger.by_phase().items()) == [("train", 9), ("certify", 2), ("audit", 4)]


def test_a_row_is_written_before_its_batch_is_sent(path: Path) -> None:
    box = LinearBox(eye(4))
    seen: list[list[tuple]] = []

    class Watching:
        spec = box.spec

        def __call__(self, x: Tensor) -> Tensor:
            seen.append(rows(path, "SELECT attempted, answered FROM spend ORDER BY id"))
            return box(x)

    QueryClient(Watching(), ledger=path, batch_size=2)(rand(3, 1, 2, 2))
    assert seen == [[(2, None)], [(2, 2), (1, None)]]


def test_an_unsettled_row_is_lost_and_counts_against_the_budget(path: Path) -> None:
    ledger = Ledger(path)
    ledger.settle(ledger.send("train", 4), 4)
    ledger.send("train", 5)  # and dies here
    ledger.close()
    box = CountingBox(LinearBox(eye(4)))
    client = QueryClient(box, budget=10, ledger=path)
    assert (client.queries, client.attempts, client.lost, client.left) == (4, 9, 5, 1)
    with pytest.raises(BudgetExceeded):
        client(rand(2, 1, 2, 2))
    client(rand(1, 1, 2, 2))
    assert (box.images, client.left) == (1, 0)


def test_totals_accumulate_over_clients(path: Path) -> None:
    clients = []
    for n in (1, 2, 3):
        clients.append(QueryClient(LinearBox(eye(4)), ledger=path))
        with clients[-1].phase(f"run {n}"):
            clients[-1](rand(n, 1, 2, 2))
    assert [client.queries for client in clients] == [1, 3, 6]
    assert Ledger(path).by_phase() == {"run 1": 1, "run 2": 2, "run 3": 3}


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<i8"])
@pytest.mark.parametrize("shape", [(3,), (3, 2), (1, 2, 3), (3, 0)])
def test_journalled_answers_keep_type_shape_and_bits(dtype: str, shape: tuple[int, ...], path: Path) -> None:
    answers = (np.random.default_rng(0).standard_normal(shape) * 1e9).astype(dtype)
    ledger = Ledger(path)
    ledger.settle(ledger.send("train", 3), 3, ("scope", 7, "digest", answers.T.copy().T))
    ledger.close()
    found = Ledger(path).recall("scope", 7, "digest")
    assert found is not None
    assert (found.dtype, found.shape, found.tobytes()) == (answers.dtype, shape, answers.tobytes())
    assert found.flags.writeable


def test_answers_are_found_by_scope_position_and_inputs(path: Path) -> None:
    ledger, answers = Ledger(path), np.ones(2)
    ledger.settle(ledger.send("train", 2), 2, ("scope", 7, "digest", answers))
    assert ledger.recall("scope", 7, "digest") is not None
    for scope, position, inputs in (("other", 7, "digest"), ("scope", 6, "digest"), ("scope", 7, "other")):
        assert ledger.recall(scope, position, inputs) is None


def test_forget_drops_one_scope_before_a_position(path: Path) -> None:
    ledger = Ledger(path)
    for scope in ("a", "b"):
        for position in range(4):
            ledger.settle(ledger.send("train", 1), 1, (scope, position, "digest", np.ones(1)))
    ledger.forget("a", 2)
    kept = rows(path, "SELECT scope, position FROM journal ORDER BY scope, position")
    assert kept == [("a", 2), ("a", 3), ("b", 0), ("b", 1), ("b", 2), ("b", 3)]


def test_settling_is_all_or_nothing(path: Path) -> None:
    ledger = Ledger(path)
    row = ledger.send("train", 2)
    with pytest.raises(CertiboxError, match=r"ledger\.sqlite failed"):
        ledger.settle(row, 2, (None, 0, "digest", np.ones(2)))  # pyright: ignore[reportArgumentType]
    assert ledger.totals() == (0, 2, 2)
    ledger.settle(row, 2, ("scope", 0, "digest", np.ones(2)))  # the failed transaction is closed
    assert ledger.totals() == (2, 2, 0)


def foreign(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE spend (amount)")
    other.commit()
    other.close()


def cut(path: Path) -> None:
    ledger = Ledger(path)
    ledger.send("train", 2)
    ledger.close()
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    "spoil",
    [lambda path: path.write_text("not a ledger\n" * 99), Path.mkdir, foreign, cut],
    ids=["text", "directory", "another program's", "cut"],
)
def test_a_file_that_is_no_ledger_is_refused_in_one_line(spoil: Callable[[Path], object], path: Path) -> None:
    spoil(path)
    with pytest.raises(UnreadableFile, match=r"ledger\.sqlite cannot be opened") as caught:
        Ledger(path)
    assert "\n" not in str(caught.value)


ALLOWED = {
    "released.py": ["torch.load(..., weights_only=True)"],  # the authors' release, as tensors and plain values
    "copying.py": ["pickle.Pickler"],  # which writes, and to nowhere
}


def unpickling(tree: ast.AST) -> list[str]:
    """Imports and calls in a module that could run code from a file, and those that read a pickle without doing so."""
    found, guarded = [], []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load" and weights_only(node):
            found.append("torch.load(..., weights_only=True)")
            guarded.append(node.func)
        elif isinstance(node, ast.Attribute) and node not in guarded:  # a call comes before what it calls
            found.append(ast.unparse(node))
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found.append(f"allow_pickle={ast.unparse(node.value)}")
    roots = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    calls = {"torch.load", "torch.load(..., weights_only=True)", "torch.hub", "allow_pickle=True"}
    return [name for name in found if name.split(".")[0] in roots or name in calls]


def weights_only(call: ast.Call) -> bool:
    """Whether a call of torch.load is written so that torch reads nothing but tensors and plain values."""
    return any(item.arg == "weights_only" and ast.unparse(item.value) == "True" for item in call.keywords)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import pickle\nfrom joblib import load", ["pickle", "joblib.load"]),
        ("np.load(f, allow_pickle=True)\nnp.load(f, allow_pickle=False)", ["allow_pickle=True"]),
        ("torch.load(f)", ["torch.load"]),
        ("torch.load(f, weights_only=False)", ["torch.load"]),
        ("torch.load(f, weights_only=flag)", ["torch.load"]),
        ("torch.load(f, **options)", ["torch.load"]),
        ("read = torch.load\nread(f)", ["torch.load"]),
        ("from torch import load", ["torch.load"]),
        ("with open(p) as f:\n    x = torch.load(f, weights_only=True)", ["torch.load(..., weights_only=True)"]),
        ("torch.load(torch.load, weights_only=True)", ["torch.load(..., weights_only=True)", "torch.load"]),
    ],
)
def test_unpickling_is_seen(code: str, found: list[str]) -> None:
    assert unpickling(ast.parse(code)) == found


def test_no_module_unpickles() -> None:
    sources = list(Path(certibox.__file__).parent.rglob("*.py"))
    assert {source.name for source in sources} >= {"ledger.py", "tensors.py", "sources.py", "released.py"}
    for source in sources:
        found = unpickling(ast.parse(source.read_text(encoding="utf-8")))
        assert found == ALLOWED.get(source.name, []), source

"""A client in another process, or copied: the same ledger, or one line that refuses. A budget is never copied."""

from __future__ import annotations

import contextvars
import copy
import io
import multiprocessing
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from certibox.blackbox import BlackBox, as_blackbox
from certibox.errors import BudgetExceeded, CertiboxError, InvalidInput, UnreadableFile
from certibox.queries.client import QueryClient
from certibox.queries.ledger import Ledger
from doubles import LinearBox
from places import TESTS

WEIGHT = torch.eye(4)
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
# Python 3.12 warns of every fork beside threads, and pytest and torch have some; that is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def images(n: int) -> Tensor:
    return torch.rand((n, 1, 2, 2), generator=torch.Generator().manual_seed(0))


def means(x: np.ndarray) -> np.ndarray:
    """A function of a module, so that pickle can name it."""
    return np.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], 1)


def forked(*jobs: Callable[[], Any]) -> list[str]:
    """What each job returned or raised, in a fork of its own, all at the same time."""
    readers, children = [], []
    for job in jobs:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)  # a child that waits for a lock that nobody holds ends all the same
            try:
                said = repr(job())
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            os.write(writer, said.encode())
            os._exit(0)
        os.close(writer)
        readers.append(reader)
        children.append(child)
    said = []
    for reader, child in zip(readers, children, strict=True):
        with open(reader, encoding="utf-8") as file:
            said.append(file.read())
        os.waitpid(child, 0)
    return said


def spend(client: QueryClient, most: int = 10**6) -> int:
    """Queries that were answered until the budget, or `most`, was spent."""
    answered = 0
    with suppress(BudgetExceeded):
        while answered < most:
            answered += len(client(images(1)))
    return answered


# --- copies -----------------------------------------------------------------------------------------------------------

COPIES: dict[str, Callable[[QueryClient], QueryClient]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda client: pickle.loads(pickle.dumps(client)),
}


@pytest.mark.parametrize("make", COPIES)
def test_a_copy_pays_from_the_same_ledger(make: str, tmp_path: Path) -> None:
    client = QueryClient(LinearBox(WEIGHT), 10, tmp_path / "ledger.sqlite", batch_size=3)
    client(images(4))
    with client.phase("mine"):
        other = COPIES[make](client)
        other(images(3))
    assert (other.left, client.left) == (3, 3)
    assert (other.queries, other.spent) == (7, {"query": 7})  # the phase stayed with the client that is in it
    assert (other.batch_size, other.budget) == (3, 10)
    with pytest.raises(BudgetExceeded):
        client(images(4))
    assert torch.equal(other(images(3)), LinearBox(WEIGHT)(images(3)))
    client.close()
    assert other.left == 0  # it has a connection of its own


@pytest.mark.parametrize("make", COPIES)
def test_a_budget_without_a_ledger_is_not_copied(make: str) -> None:
    client = QueryClient(LinearBox(WEIGHT), 10)
    with pytest.raises(InvalidInput, match="a budget of 10 and no ledger cannot be copied") as caught:
        COPIES[make](client)
    assert str(caught.value).endswith("give it a ledger, which all copies share")


@pytest.mark.parametrize("make", COPIES)
def test_without_budget_and_ledger_a_copy_counts_from_0(make: str) -> None:
    client = QueryClient(LinearBox(WEIGHT))
    client(images(4))
    other = COPIES[make](client)
    other(images(3))
    assert (client.queries, other.queries, other.left) == (4, 3, None)
    assert (other.box is client.box) is (make == "copy")


@pytest.mark.parametrize("moved", ["gone", "another"])
def test_a_copy_without_its_ledger_is_refused(moved: str, tmp_path: Path) -> None:
    """A new, empty ledger at the same place would be the whole budget again."""
    path = tmp_path / "ledger.sqlite"
    client = QueryClient(LinearBox(WEIGHT), 10, path)
    spend(client)
    sent = pickle.dumps(client)
    client.close()
    path.rename(tmp_path / "elsewhere")
    if moved == "another":
        Ledger(path).close()
    with pytest.raises(UnreadableFile, match=r"ledger\.sqlite cannot be opened \(it is (gone|another ledger)\)"):
        pickle.loads(sent)
    assert path.exists() is (moved == "another")


def test_the_ledger_is_found_from_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    client = QueryClient(LinearBox(WEIGHT), 10, "ledger.sqlite")
    client(images(4))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(pickle.dumps(client)).left == 6
    if hasattr(os, "fork"):
        assert forked(lambda: len(client(images(2)))) == ["2"]
        assert client.left == 4
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    "model", [lambda x: means(x), nn.Sequential(nn.Flatten(), nn.Linear(4, 2))], ids=["lambda", "a hook"]
)
def test_a_box_that_cannot_be_pickled_is_named_in_one_line(model: Any, tmp_path: Path) -> None:
    if isinstance(model, nn.Module):
        model.register_forward_hook(lambda *_: None)
    client = QueryClient(as_blackbox(model, "logits", name="mine"), 10, tmp_path / "ledger.sqlite")
    with pytest.raises(InvalidInput, match=r"^box mine cannot be sent to another process \(.*\); wanted") as caught:
        pickle.dumps(client)
    assert "\n" not in str(caught.value)
    assert copy.copy(client).left == 10  # within a process there is nothing to pickle


def test_a_pickler_of_lambdas_is_not_kept_from_it(tmp_path: Path) -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    client = QueryClient(as_blackbox(lambda x: means(x), "logits"), 10, tmp_path / "ledger.sqlite")
    file = io.BytesIO()
    cloudpickle.dump(client, file)
    assert pickle.loads(file.getvalue())(images(3)).shape == (3, 2)
    assert client.left == 7


def linear_onnx(path: Path) -> Path:
    onnx = pytest.importorskip("onnx")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    image, scores = (helper.make_tensor_value_info(n, floats, s) for n, s in (("x", ["n", 1, 2, 2]), ("y", ["n", 4])))
    graph = helper.make_graph([helper.make_node("Flatten", ["x"], ["y"])], "flat", [image], [scores])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


BOXES: dict[str, Callable[[Path], BlackBox]] = {
    "torch": lambda _: as_blackbox(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten()), "logits", mean=(0.5,)),
    "function": lambda _: as_blackbox(means, "logits"),
    "sklearn": lambda _: as_blackbox(LogisticRegression().fit(np.eye(4), range(4)), "probabilities"),
    "onnx": lambda folder: as_blackbox(linear_onnx(folder / "m.onnx"), "logits"),
}


@pytest.mark.parametrize("kind", BOXES)
def test_every_adapter_can_be_pickled_and_copied(kind: str, tmp_path: Path) -> None:
    client, x = QueryClient(BOXES[kind](tmp_path), 99, tmp_path / "ledger.sqlite"), images(5)
    for make in COPIES.values():
        other = make(client)
        assert torch.equal(other(x), client(x))
        assert other.spec == client.spec
        assert other.model_id == client.model_id
    assert client.left == 99 - 2 * 3 * 5


def test_an_onnx_file_that_has_changed_is_another_box(tmp_path: Path) -> None:
    sent = pickle.dumps(BOXES["onnx"](tmp_path))
    file = tmp_path / "m.onnx"
    file.write_bytes(file.read_bytes().replace(b"flat", b"flap"))
    with pytest.raises(UnreadableFile, match=r"m\.onnx has changed since box m\.onnx was made"):
        pickle.loads(sent)


def test_spawned_processes_pay_from_the_same_ledger(tmp_path: Path) -> None:
    client = QueryClient(as_blackbox(means, "logits"), 10, tmp_path / "ledger.sqlite")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert sorted(pool.map(spend, [client] * 2, chunksize=1))[1] <= 10
    assert (client.left, QueryClient(client.box, 10, tmp_path / "ledger.sqlite").queries) == (0, 10)


# --- forks ------------------------------------------------------------------------------------------------------------


@forks
def test_forked_processes_together_spend_the_budget_of_their_ledger_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    client = QueryClient(LinearBox(WEIGHT), 300, path)
    client(images(5))
    answered = [int(said) for said in forked(*[lambda: spend(client)] * 4)]
    assert sum(answered) == 295
    assert client.left == 0
    assert QueryClient(LinearBox(WEIGHT), 300, path).queries == 300
    assert client.queries == 5  # this one's, and what stood there before


@forks
def test_a_budget_in_memory_is_refused_in_a_fork_and_goes_on_in_the_parent() -> None:
    client = QueryClient(LinearBox(WEIGHT), 300)
    client(images(5))
    refused = "InvalidInput: this process is a fork, and a budget without a ledger cannot be in two processes; "
    for said in forked(lambda: client(images(1)), lambda: client.left, lambda: repr(client)):
        assert said.startswith((refused, "'QueryClient(linear: logits, 3", "'QueryClient(linear: logits, 4")), said
        assert "\n" not in said
    assert spend(client) == 295


@forks
def test_without_budget_and_ledger_a_fork_counts_on_for_itself() -> None:
    client = QueryClient(LinearBox(WEIGHT))
    client(images(5))
    assert forked(lambda: (spend(client, 7), client.queries)) == ["(7, 12)"]
    assert client.queries == 5


@forks
def test_a_ledger_that_was_refused_does_not_stand_in_the_way_of_a_fork(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no ledger")
    with pytest.raises(UnreadableFile) as kept:  # its traceback keeps the ledger alive
        Ledger(tmp_path / "notes.txt")
    client = QueryClient(LinearBox(WEIGHT), 100, tmp_path / "ledger.sqlite")
    assert forked(lambda: spend(client, 20)) == ["20"]
    assert client.left == 80
    assert "notes.txt" in str(kept.value)


def test_no_connection_crosses_a_fork(tmp_path: Path) -> None:
    """The parent closes its ledger while the child spends: were the child's locks the parent's, rows would be lost."""
    path = tmp_path / "ledger.sqlite"
    client = QueryClient(LinearBox(WEIGHT), 1000, path)
    client(images(5))
    ready, go = os.pipe()

    def child() -> int:
        before = spend(client, 20)
        os.read(ready, 1)
        return before + spend(client, 20)

    def parent() -> None:
        spend(client, 30)
        client.close()
        os.write(go, b".")

    thread = threading.Timer(0.2, parent)
    thread.start()
    assert forked(child) == ["40"]
    thread.join()
    assert QueryClient(LinearBox(WEIGHT), 1000, path).left == 1000 - 5 - 40 - 30
    with closing(sqlite3.connect(path)) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@forks
def test_a_fork_finds_every_lock_free_though_threads_were_busy(tmp_path: Path) -> None:
    clients = [QueryClient(LinearBox(WEIGHT), ledger=path) for path in (tmp_path / "ledger.sqlite", None)]
    stop = threading.Event()

    def work(client: QueryClient) -> None:
        while not stop.is_set():
            client(images(1))

    threads = [threading.Thread(target=work, args=(client,)) for client in clients for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            assert forked(*[lambda client=client: spend(client, 3) for client in clients]) == ["3", "3"]
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@forks
def test_a_journal_belongs_to_the_process_that_opened_it(tmp_path: Path) -> None:
    client = QueryClient(LinearBox(WEIGHT), ledger=tmp_path / "ledger.sqlite")
    ready, go = os.pipe()

    def child() -> int:
        os.read(ready, 1)
        return len(client(images(3)))  # after the parent has asked at the same position

    with client.journal("work", 0), client.phase("work"):
        client(images(1))
        said: list[str] = []
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(contextvars.copy_context().run, forked, child)
            time.sleep(0.2)  # it has forked
            bought = client(images(2))
            os.write(go, b".")
            said += asked.result()
    assert said == ["3"]
    with client.journal("work", 0):
        assert torch.equal(client(images(1)), LinearBox(WEIGHT)(images(1)))
        assert torch.equal(client(images(2)), bought)
    assert QueryClient(client.box, ledger=tmp_path / "ledger.sqlite").spent == {"work": 6}  # 1 + 2, and 3 of the child


@forks
def test_a_ledger_that_is_gone_is_not_begun_again_in_a_fork(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    client = QueryClient(LinearBox(WEIGHT), 10, path)
    spend(client)

    def moved() -> Tensor:
        path.unlink()
        return client(images(1))

    assert "cannot be opened (it is gone); wanted the ledger that was open here before" in forked(moved)[0]


# --- what is printed --------------------------------------------------------------------------------------------------


def test_a_client_and_its_ledger_say_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    client = QueryClient(as_blackbox(means, "logits", num_classes=2, image_shape=(1, 2, 2)), 2000, path)
    client(images(4))
    assert repr(client.box) == "FunctionBox(means: logits, 2 classes, images 1x2x2)"
    assert repr(client) == (
        f"QueryClient(means: logits, 2 classes, images 1x2x2, 4 queries spent, 1,996 of 2,000 left, ledger {path})"
    )
    assert repr(client.ledger) == f"Ledger({path}, 4 answered, 0 lost)"
    assert repr(QueryClient(LinearBox(WEIGHT))) == "QueryClient(linear: logits, 4 classes, 0 queries spent)"


def test_nothing_of_a_ledger_that_is_out_of_reach_is_raised(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    client = QueryClient(LinearBox(WEIGHT), 10, path)
    with closing(sqlite3.connect(path)) as other:
        other.execute("DROP TABLE committed")
        other.execute("DROP TABLE spend")
        other.commit()
    assert repr(client.ledger) == f"Ledger({path}, unreadable)"
    assert repr(client) == f"QueryClient(linear: logits, 4 classes, 0 queries spent, budget 10, ledger {path})"
    with pytest.raises(CertiboxError, match=r"ledger\.sqlite failed"):
        client(images(1))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("https://me:secret@host:8080/v2/models/m?key=secret", "https://...@host:8080/v2/models/m?..."),
        ("two\nlines", "two lines"),
    ],
)
def test_secrets_and_lines_of_a_name_are_not_printed(name: str, said: str) -> None:
    box = as_blackbox(means, "logits", name=name)
    assert repr(box) == f"FunctionBox({said}: logits)"
    assert repr(QueryClient(box)) == f"QueryClient({said}: logits, 0 queries spent)"


def test_an_open_client_leaves_nothing_behind_when_the_process_ends(tmp_path: Path) -> None:
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[2]); from doubles import LinearBox; import certibox as cb\n"
        "client = cb.QueryClient(LinearBox(torch.eye(4)), 9, sys.argv[1]); client(torch.rand(2, 1, 2, 2))"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "ledger.sqlite"), str(TESTS)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stderr == ""
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.sqlite"]
    assert QueryClient(LinearBox(WEIGHT), 9, tmp_path / "ledger.sqlite").left == 7

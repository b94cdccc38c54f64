"""A budget counts what the provider bills, and stands whatever way that is."""

from __future__ import annotations

import itertools
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest
import torch

from certibox.blackbox import BlackBox, as_blackbox
from certibox.errors import BoxFailed, BudgetExceeded, InvalidInput, NotAnswered, Overloaded, UnreadableFile
from certibox.queries import flow
from certibox.queries.bills import BILLS
from certibox.queries.client import QueryClient
from certibox.queries.ledger import Ledger

IMAGES = torch.rand(8, 1, 2, 2)
# What happens to a call of four images, by its number: an answer, a refusal for now, a refusal for good, a failure.
EVENTS = {"answered": None, "busy": Overloaded("full"), "refused": NotAnswered("no"), "failed": OSError("reset")}


def box(bills: str, events: list[str], max_batch: int = 4) -> BlackBox:
    """A box whose calls meet these events, and are answered once they are used up."""

    def answer(images):
        if (event := EVENTS[events.pop(0) if events else "answered"]) is not None:
            raise event
        return images.reshape(len(images), -1)[:, :2]

    return as_blackbox(answer, "values", max_batch=max_batch, name="billed", bills=bills)


def spent(client: QueryClient) -> int:
    """What the budget has lost."""
    assert client.budget is not None
    assert client.left is not None
    return client.budget - client.left


@pytest.mark.parametrize("ledger", [False, True])
@pytest.mark.parametrize("bills", BILLS)
@pytest.mark.parametrize("events", list(itertools.product(EVENTS, EVENTS)))
def test_a_bill_follows_from_what_happened_to_each_request(
    bills: str, events: tuple[str, str], ledger: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answered and lost requests are billed; refused ones where every attempt is. A busy box is asked again."""
    monkeypatch.setattr(flow, "SHORTEST", 0.001)
    path = tmp_path / "ledger.sqlite" if ledger else None
    asked, coming = list(events), list(events)
    if asked[-1] == "busy":
        asked.append("answered")
    with QueryClient(box(bills, coming), 1000, path) as client:
        while coming:
            with suppress(NotAnswered, BoxFailed):
                client(IMAGES[:4])
        answered, lost = asked.count("answered"), asked.count("failed")
        requests = len(asked) if bills == "attempt" else answered + lost
        assert spent(client) == requests * (1 if bills == "request" else 4)
        assert (client.queries, client.lost, client.attempts) == (4 * answered, 4 * lost, 4 * len(asked))
    if path:
        with QueryClient(box(bills, []), 1000, path) as again:
            assert spent(again) == requests * (1 if bills == "request" else 4)


@pytest.mark.parametrize("ledger", [False, True])
def test_a_budget_of_requests_is_kept_to_the_last_one(ledger: bool, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite" if ledger else None
    with QueryClient(box("request", []), 3, path) as client:
        assert client.images_left == 12
        client(IMAGES[:5])  # two requests, of four and of one
        assert (client.queries, client.left, client.images_left) == (5, 1, 4)
        with pytest.raises(BudgetExceeded, match="2 requests wanted, 1 left in the budget") as raised:
            client(IMAGES[:5])
        assert (raised.value.wanted, raised.value.left) == (2, 1)
        assert client.queries == 5
        client(IMAGES[:4])
        assert (client.queries, client.left) == (9, 0)
        with pytest.raises(BudgetExceeded, match="1 requests wanted, 0 left"):
            client(IMAGES[:1])


def test_several_requests_at_once_cannot_overspend_together(tmp_path: Path) -> None:
    spec = {"max_batch": 1, "concurrency": 4, "bills": "request", "name": "many"}

    def answer(images):
        return images.reshape(len(images), -1)[:, :2]

    with QueryClient(as_blackbox(answer, "values", **spec), 20, tmp_path / "ledger.sqlite") as client:
        client(torch.rand(17, 1, 2, 2))
        with pytest.raises(BudgetExceeded):
            client(torch.rand(4, 1, 2, 2))
        assert (client.queries, client.left) == (17, 3)


def test_a_ledger_counts_in_one_unit(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with QueryClient(box("request", []), 10, path) as client:
        client(IMAGES)
    with pytest.raises(UnreadableFile, match=r"its budget counts requests, and that of this box queries.*'request'"):
        QueryClient(box("image", []), 10, path)
    other = tmp_path / "images.sqlite"
    Ledger(other).close()
    with pytest.raises(UnreadableFile, match="its budget counts queries, and that of this box attempts"):
        QueryClient(box("attempt", []), 10, other)


def test_a_ledger_of_requests_that_lost_a_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with QueryClient(box("request", []), 10, path) as client:
        client(IMAGES)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE committed SET queries = 1")
    with pytest.raises(UnreadableFile, match="committed says 1 requests, and spend 2"):
        Ledger(path, bills="request")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DROP TABLE bills")
    with pytest.raises(UnreadableFile, match="its table bills is missing"):
        Ledger(path, bills="request")


def test_what_is_billed_is_declared_and_changes_no_name() -> None:
    plain, other = box("image", []), box("attempt", [])
    assert plain.spec.model_id == other.spec.model_id
    with pytest.raises(InvalidInput, match="bills is 'hour'; give one of image, request, attempt"):
        box("hour", [])

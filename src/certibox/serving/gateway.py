"""The gateway without HTTP: images and terms in, certificates out, every query booked, every answer kept for audit."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from certibox.certification.alone import booked_as
from certibox.certification.certificate import Certificate, Prediction
from certibox.certification.images import image_digest
from certibox.certification.noise import NEWEST
from certibox.certification.pieces import Certifying, Drawn
from certibox.certification.smoothing import SmoothedClassifier
from certibox.errors import (
    BlackBoxError,
    BoxChanged,
    BudgetExceeded,
    CertiboxError,
    InvalidInput,
    NotAnswered,
    UnreadableFile,
    one_line,
)
from certibox.queries.client import QueryClient
from certibox.queries.fingerprint import Fingerprint
from certibox.serving.accounts import Accounts, Token, Tokens
from certibox.serving.audit import AuditLog, Entry, now, seed_of
from certibox.serving.engine import Engine
from certibox.serving.health import Health
from certibox.serving.metrics import Metrics
from certibox.serving.protocol import Refused
from certibox.serving.signature import Answer, Signature
from certibox.serving.terms import Limits, Terms
from certibox.serving.tickets import Full, Stopped, Ticket, TimedOut, Vote
from certibox.storage.files import exclusive, read_json, write_json_atomic
from certibox.storage.places import naming, read_bytes

PHASE = "serve"  # under which queries are booked
KEY, FINGERPRINT, ACCOUNTS = "noise.key", "fingerprint.json", "accounts.sqlite"  # files of a gateway's folder
CANARIES = 8
_SPENT = "the budget is spent"
Log = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Settings:
    """How a gateway runs, besides what it serves."""

    limits: Limits = field(default_factory=Limits)
    """What a request may take."""
    out: Path | None = None
    """Folder of its key, its accounts and its canaries' answers; None to keep none of them."""
    audit: Path | None = None
    """File to which every answer is appended; None for none."""
    tokens: Path | None = None
    """File of tokens; None to answer everybody."""
    canaries: float | None = None
    """Seconds between two looks at whether the box is still the same; None to look only where it fails."""
    batch_size: int = 1000
    """Most noisy copies at a time."""


@dataclass(frozen=True)
class Asker:
    """Who asks."""

    request: str
    """Id of the request, in logs and in the audit log."""
    token: Token | None = None
    """Its token; None where none is wanted."""


class Gateway:
    """Answers requests with certificates of one smoothed classifier.

    Args:
        smoothed: Smoothed classifier.
        signature: What it takes and gives.
        settings: How it runs.
        log: Function that is told of events: a name, and what there is to say.
    """

    def __init__(
        self,
        smoothed: SmoothedClassifier,
        signature: Signature,
        settings: Settings,
        log: Log = lambda event, values: None,
    ) -> None:
        self.smoothed, self.signature, self.settings, self.log = smoothed, signature, settings, log
        owner: Any = smoothed.owner
        client = getattr(owner, "client", owner)
        self.client: QueryClient | None = client if isinstance(client, QueryClient) else None
        gauges = {
            "certibox_images_in_flight": ("Images in flight.", lambda: float(self._engine.images)),
            "certibox_ready": ("1 where requests are answered, else 0.", lambda: float(not self.reason)),
        }
        if self.client is not None:
            gauges["certibox_queries_lost"] = ("Queries sent and never answered.", lambda: float(client.lost))
            if self.client.budget is not None:
                gauges["certibox_budget_left"] = (
                    "Queries that the budget still allows.",
                    lambda: float(client.left or 0),
                )
        self.metrics = Metrics(smoothed.sigma, gauges)
        self._stack = ExitStack()
        try:
            self._start(owner)
        except BaseException:
            self._stack.close()
            raise

    def _start(self, owner: Any) -> None:
        out = self.settings.out
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            self._stack.enter_context(exclusive(out / KEY))
        self._key = secrets.token_bytes(32) if out is None else key_of(out / KEY)
        self.tokens = None if self.settings.tokens is None else Tokens(self.settings.tokens)
        self.accounts = Accounts(None if out is None else out / ACCOUNTS)
        self._stack.callback(self.accounts.close)
        self.audit = None if self.settings.audit is None else AuditLog(self.settings.audit)
        client, look = self.client, None
        if client is not None and (self.settings.canaries is not None or out is not None):
            look = self._look(owner, client)
        self.health = Health(look, self.settings.canaries, self._state)
        self._stack.callback(self.health.stop)
        with booked_as(owner, PHASE):
            batches = self.smoothed.batches(self.settings.batch_size)
            self._engine = Engine(batches, self.settings.limits.max_waiting, self.accounts.charge, self._told)

    def _look(self, owner: Any, client: QueryClient) -> Callable[[], None] | None:
        """What looks whether the box is still the same; None where a spent budget pays for no first look."""
        try:
            return partial(self._canaries(owner, client).check, client)
        except BudgetExceeded as error:
            self.log("canaries", {"asked": False, "reason": one_line(error)})
            return None

    def _canaries(self, owner: Any, client: QueryClient) -> Fingerprint:
        """The answers that the box has to its canaries: the defense's, or those kept, which it must still give."""
        kept = None if self.settings.out is None else self.settings.out / FINGERPRINT
        found: Fingerprint | None = getattr(owner, "fingerprint", None)
        if found is None and kept is not None and kept.exists():
            try:
                found = Fingerprint.from_dict(read_json(kept))
            except (KeyError, TypeError, ValueError) as error:
                raise UnreadableFile(f"{kept} cannot be read; wanted it as it was, or another folder") from error
        if found is None:
            found = Fingerprint.take(client, self.signature.image_shape, CANARIES)
            if kept is not None:
                write_json_atomic(kept, found.as_dict())
        else:
            found.check(client)
        return found

    def _state(self, reason: str) -> None:
        self.log("box", {"ready": not reason, "reason": reason} if reason else {"ready": True})

    def _told(self, error: BaseException | None, samples: int) -> None:
        self.health.told(error)
        self.metrics.batch(error, samples)
        if error is not None:
            self.log("batch failed", {"error": type(error).__name__, "reason": one_line(error), "samples": samples})

    @property
    def reason(self) -> str:
        """Why requests are not answered; "" where they are."""
        if reason := self.broken or self.health.reason:
            return reason
        left = None if self.client is None else self.client.images_left
        return _SPENT if left is not None and left <= 0 else ""

    @property
    def broken(self) -> str:
        """Why nothing will ever be answered any more; "" where that is not so. A new process is wanted then."""
        return self._engine.broken

    def close(self, seconds: float = 0.0) -> None:
        """Wait for what is in flight, end it, and give back what is held. The client of the box stays open.

        Args:
            seconds: Seconds that requests have to finish.
        """
        self._engine.stop(seconds)
        self._stack.close()

    # --- one request --------------------------------------------------------------------------------------------------

    async def answers(
        self,
        images: Tensor,
        terms: Terms,
        asker: Asker,
        gone: Callable[[], Awaitable[object]] | None = None,
        watched: Callable[[list[Vote]], None] | None = None,
    ) -> list[Answer]:
        """What votes say of some images.

        Args:
            images: Images (n, c, h, w), float pixels on [0, 1].
            terms: What is asked for.
            asker: Who asks.
            gone: Function whose result comes once nobody waits for the answer any more; None where nobody can tell.
            watched: Function that is shown the votes whenever some came in, in the thread of the caller.

        Raises:
            Refused: The answer is none, and says why.
        """
        if reason := self.reason:
            status, headers = (402, {}) if reason == _SPENT else (503, {"Retry-After": "5"})
            raise Refused(status, f"the model cannot answer now: {reason}", headers)
        ticket = self._ticket(images, terms, asker, watched)
        try:
            self._engine.begin(ticket, lambda: self._admit(ticket, asker))
            await self._waited(ticket, terms.seconds, gone)
        except BaseException as error:
            raise refused(error) from error
        finally:
            self._engine.cancel(ticket)  # where it is not done: the caller was cancelled, say
        found = [poll.certificate() if isinstance(poll, Certifying) else poll.prediction() for poll in ticket.polls]
        answers = [answered(one, ticket.asked[i]) for i, one in enumerate(found)]
        if self.audit is not None:
            await asyncio.to_thread(self.audit.add, self._entries(ticket, found, asker))
        self.metrics.answers(answers)
        return answers

    def _ticket(
        self, images: Tensor, terms: Terms, asker: Asker, watched: Callable[[list[Vote]], None] | None
    ) -> Ticket:
        polls: list[Vote] = []
        try:
            for x in images:
                drawn = Drawn(self.smoothed.law, seed_of(self._key, image_digest(x)), NEWEST)
                polls.append(terms.begin(self.smoothed, x, drawn))
        except InvalidInput as error:
            few = f" (max_queries is {terms.queries}, of which the first {terms.first} prove nothing)"
            raise Refused(400, f"{one_line(error)}{few if 'smallest' in str(error) else ''}") from error
        loop = asyncio.get_running_loop()

        def changed() -> None:
            if watched is not None:
                loop.call_soon_threadsafe(watched, polls)

        return Ticket(polls, None if asker.token is None else asker.token.name, changed)

    def _admit(self, ticket: Ticket, asker: Asker) -> None:
        """Refuse what a budget could not pay in full, beside all that is in flight."""
        left = None if self.client is None else self.client.images_left
        if left is not None:
            _require(ticket.reserved, left, self._engine.reserved(), "the budget")
        if (token := asker.token) is not None and token.budget is not None:
            left = max(0, token.budget - self.accounts.spent(token.name))
            _require(ticket.reserved, left, self._engine.reserved(token.name), f"the token {token.name}")

    async def _waited(self, ticket: Ticket, seconds: float, gone: Callable[[], Awaitable[object]] | None) -> None:
        """Wait until the votes of a ticket are in, its time runs out, or nobody waits for it."""
        done = asyncio.wrap_future(ticket.done)
        left = None if gone is None else asyncio.ensure_future(gone())
        try:
            await asyncio.wait({done} | ({left} if left else set()), timeout=seconds, return_when="FIRST_COMPLETED")
            if left is not None and left.done() and not done.done():
                self._engine.cancel(ticket)
            elif not done.done():
                self._engine.time_out(ticket)
            await done
        finally:
            done.cancel()
            if left is not None:
                left.cancel()

    def _entries(self, ticket: Ticket, found: list[Certificate | Prediction], asker: Asker) -> list[Entry]:
        time, token, model = now(), None if asker.token is None else asker.token.name, self.smoothed.model_id
        return [
            Entry(time, asker.request, token, i, ticket.polls[i].image, ticket.asked[i], model, one)
            for i, one in enumerate(found)
        ]


def _require(most: int, left: int, reserved: int, whose: str) -> None:
    """Refuse a request that may take more than is left; for a while only where those in flight may give some back."""
    if left < most:
        came = f"the request may take {most} queries, and {whose} has {left} left"
        raise Refused(402, f"{came}; lower max_queries")
    if left - reserved < most:
        came = f"the request may take {most} queries, and of the {left} that {whose} has left"
        raise Refused(429, f"{came} requests in flight may take {reserved}; ask again", {"Retry-After": "1"})


def answered(found: Certificate | Prediction, queries: int) -> Answer:
    """What a client gets of a certificate or a prediction.

    Args:
        found: Certificate or prediction.
        queries: Queries that it took.
    """
    if isinstance(found, Certificate):
        return Answer(found.label, found.radius, found.p_lower, found.counts, queries)
    return Answer(found.label, 0.0, 0.0, found.counts, queries)


def refused(error: BaseException) -> BaseException:
    """What a client is told of an error; the error itself where that is a fault of ours.

    Args:
        error: Error of a request.
    """
    text = one_line(error)
    if isinstance(error, Full):
        return Refused(429, text, {"Retry-After": str(round(error.seconds))})
    if isinstance(error, TimedOut):
        return Refused(504, text)
    if isinstance(error, BudgetExceeded):
        return Refused(402, text)
    if isinstance(error, Stopped | BoxChanged | NotAnswered):
        return Refused(503, text, {"Retry-After": "5"})
    if isinstance(error, BlackBoxError):
        return Refused(502, text)
    return Refused(503, text) if isinstance(error, CertiboxError) else error


def key_of(path: Path) -> bytes:
    """The key of a gateway's noise, made where there is none; its owner alone may read the file.

    Args:
        path: File of 32 bytes.

    Raises:
        UnreadableFile: The file holds something else.
    """
    with naming(path):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            if len(key := read_bytes(path)) != 32:
                raise UnreadableFile(f"{path} has {len(key)} bytes; wanted the 32 of a key") from None
            return key
        with os.fdopen(descriptor, "wb") as file:
            file.write(key := secrets.token_bytes(32))
    return key

"""Votes of all requests in flight from shared batches, fair between requests.

Whenever a call to the box is free, a batch is
filled: every ticket that wants something gets an equal share of it, and what one leaves the others take. A batch that
fails ends the tickets that were in it, and no other.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context

import torch
from torch import Tensor

from certibox.certification.batches import MOST_KEPT, Answers, Batch, Batches, Part, alike, processors
from certibox.certification.noise import BLOCK
from certibox.errors import BudgetExceeded, CertiboxError, NotAnswered, one_line
from certibox.seeds.switches import settled
from certibox.serving.shares import shared
from certibox.serving.tickets import Full, Stopped, Ticket, TimedOut, Vote

SIZES = 16  # sizes of batches, up to the largest, that are asked while so many images are open
LONG = 0.002  # seconds of a batch from which on noise is drawn meanwhile that may be wanted after it
Asked = tuple[Ticket, int, int]  # a ticket, the position of an image, and samples of it
RECENT = 8.0  # seconds over which the rate of queries is measured


class Engine:
    """Asks one base classifier about the images of all tickets, in threads of its own.

    They book under the phase in which it is made.

    Args:
        batches: What makes batches for the base classifier.
        most_images: Most images in flight.
        booked: Function that is told, before a batch is sent, how many samples each account asks for, and again with
            negative numbers where the box refused the batch and bills nothing; what it raises ends the batch.
        told: Function that is told of every batch: its error, None where it was answered, and its samples.
    """

    def __init__(
        self,
        batches: Batches,
        most_images: int,
        booked: Callable[[dict[str, int]], None] = lambda counts: None,
        told: Callable[[BaseException | None, int], None] = lambda error, samples: None,
    ) -> None:
        self._batches, self.most_images, self._booked, self._told = batches, most_images, booked, told
        self._change = threading.Condition()
        self._tickets: deque[Ticket] = deque()  # those that are not done; who is served first goes round
        self._places: dict[int, tuple[Ticket, int]] = {}  # ticket and position of a poll
        self._under_way = self._ahead = 0  # batches that are asked, and that are drawn for later
        self._sending = 0  # samples of the batches that are asked
        self._stopping = False
        self.broken = ""
        """Why the threads ended, where a fault of ours ended them."""
        self._batch, self._seconds = 0, 0.0  # number of starts and ends of batches; seconds of the last one
        self._foreseen: list[Vote] = []  # images whose next noise may be drawn while a batch is asked
        self._spare = processors() > torch.get_num_threads()
        self._rates: deque[tuple[float, int]] = deque()  # when batches were answered, and their samples
        self._calls = batches.calls_at_once
        self._threads = [
            threading.Thread(target=copy_context().run, args=(self._work,), name=f"votes-{i}", daemon=True)
            for i in range(self._calls + 1)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def images(self) -> int:
        """Images in flight."""
        return sum(len(ticket.open) for ticket in self._tickets)

    @property
    def rate(self) -> float:
        """Samples a second that were answered of late; 0 where none were."""
        self._forget()
        return sum(samples for _, samples in self._rates) / RECENT

    def reserved(self, account: str | None = None) -> int:
        """Most queries that the tickets in flight may still ask, and for all accounts those that are under way.

        An account has paid for what is under way, whereas a budget of the box may not count it yet.

        Args:
            account: Name of who pays for them; None for all.
        """
        with self._change:
            still = sum(one.reserved for one in self._tickets if account in (None, one.account))
            return still + (self._sending if account is None else 0)

    def begin(self, ticket: Ticket, admit: Callable[[], None] = lambda: None) -> None:
        """Take a ticket in.

        Args:
            ticket: Ticket, whose `done` tells when its votes are in.
            admit: Function that is called before, while no other can come in; what it raises keeps the ticket out.

        Raises:
            Full: There are too many images in flight; nothing was asked.
            Stopped: The engine is stopped.
        """
        with self._change:
            if self._stopping:
                raise Stopped("the server is shutting down")
            if (images := self.images) + len(ticket.polls) > self.most_images and images:
                raise Full(self._drained())
            admit()
            for i, poll in enumerate(ticket.polls):
                self._places[id(poll)] = ticket, i
            self._tickets.append(ticket)
            self._finish(ticket)
            self._change.notify_all()

    def cancel(self, ticket: Ticket) -> None:
        """Ask for no more votes of a ticket, for nobody waits for them.

        Args:
            ticket: Ticket that was begun.
        """
        self._end(ticket, Stopped("nobody waits for the answer"))

    def time_out(self, ticket: Ticket) -> None:
        """End the votes of a ticket with what they have proven so far.

        Args:
            ticket: Ticket that was begun. It ends with `TimedOut` where an image had no look at its votes.
        """
        with self._change:
            if ticket.done.done():
                return
            still = [ticket.polls[i] for i in ticket.open]
            if not all(poll.looks for poll in still):
                self._end(ticket, TimedOut("the time of the request ran out before its votes said anything"))
                return
            ticket.ended = True
            for poll in still:
                poll.end()
            self._finish(ticket)

    def stop(self, seconds: float = 0.0) -> None:
        """Wait for what is in flight, then end it; a batch that was sent is waited for and settled.

        Args:
            seconds: Seconds that tickets have to finish.
        """
        end = time.monotonic() + seconds
        with self._change:
            while self._tickets and (left := end - time.monotonic()) > 0:
                self._change.wait(left)
            self._stopping = True
            for ticket in list(self._tickets):
                self._end(ticket, Stopped("the server was shut down"))
            self._change.notify_all()
        for thread in self._threads:
            thread.join()

    # --- tickets ------------------------------------------------------------------------------------------------------

    def _end(self, ticket: Ticket, error: BaseException) -> None:
        with self._change:
            if ticket.done.done():
                return
            ticket.open.clear()
            if ticket in self._tickets:  # else it was refused
                self._leave(ticket)
            ticket.done.set_exception(error)

    def _finish(self, ticket: Ticket) -> None:
        """Take the images that are finished out of a ticket, and the ticket out where all are."""
        ticket.open = deque(i for i in ticket.open if not ticket.polls[i].finished)
        if not ticket.open and not ticket.done.done():
            self._leave(ticket)
            ticket.done.set_result(None)

    def _leave(self, ticket: Ticket) -> None:
        self._tickets.remove(ticket)
        for poll in ticket.polls:
            del self._places[id(poll)]
        self._change.notify_all()

    def _forget(self) -> None:
        """Leave out batches that were answered too long ago to say anything of the rate."""
        while self._rates and self._rates[0][0] < time.monotonic() - RECENT:
            self._rates.popleft()

    def _drained(self) -> float:
        """Seconds until about half of what is in flight has its votes, 1 to 60."""
        wanted = self.reserved() / 2
        return min(60.0, max(1.0, wanted / rate)) if (rate := self.rate) else 1.0

    # --- threads ------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._change:
                while (taken := self._taken()) is None and not self._foreseen:
                    if self._stopping:
                        return
                    self._change.wait()
                ahead, self._foreseen = self._foreseen, []
            try:
                if taken is not None:
                    self._ask(*taken)
                else:
                    self._foresee(ahead)
            except BaseException as error:  # a fault of ours: what is left of the batch is not known
                self._break(error)
                raise

    def _break(self, error: BaseException) -> None:
        """End everything, and take nothing more."""
        with self._change:
            self.broken = (
                f"the votes broke off ({type(error).__name__}: {one_line(error)}); the server must be restarted"
            )
            self._stopping = True
            for ticket in list(self._tickets):
                self._end(ticket, error)
            self._change.notify_all()

    def _foresee(self, polls: list[Vote]) -> None:
        """Draw noise that images may want once the batch is answered that is asked meanwhile."""
        under_way = self._batch
        with settled(), torch.inference_mode():
            for poll in polls:
                if self._batch != under_way or BLOCK * poll.x.numel() > MOST_KEPT // 4:
                    return
                poll.foresee(BLOCK)

    def _taken(self) -> tuple[list[Part], bool] | None:
        """Pieces for a batch, and whether its call is free: else it is drawn ahead, which only a full one is."""
        if self._under_way + self._ahead < self._calls:
            if parts := self._next(full=False):
                self._under_way += 1
                return parts, True
        elif self._ahead == 0 and (parts := self._next(full=True)):
            self._ahead += 1
            return parts, False
        return None

    def _ask(self, parts: list[Part], now: bool) -> None:
        """Ask one batch, and give its tickets their votes."""
        asked, counts = list[Asked](), Counter[str]()
        with settled():
            batch, error = self._drawn(parts)
        with self._change:
            if not now:
                while self._under_way >= self._calls and not self.broken:
                    self._change.wait()
                self._ahead -= 1
                self._under_way += 1
            batch = None if batch is None else self._alive(batch)
            if batch is not None:  # in one step with the look at who waits, so that all that is sent is paid for
                asked, counts, error = self._paid(batch)
        if batch is not None:
            if error is None:
                with settled():
                    error = self._answered(batch, asked, counts)
            else:
                self._told(error, len(batch))
        with self._change:
            self._under_way -= 1
            if error is not None:
                for ticket in self._tickets_of(parts):
                    self._end(ticket, error)
            self._change.notify_all()

    def _drawn(self, parts: list[Part]) -> tuple[Batch | None, BaseException | None]:
        """The batch of some pieces with its noise, or the error of drawing it, such as a lack of memory."""
        try:
            return self._batches.draw(self._batches.made(parts)), None
        except BaseException as error:
            return None, error

    def _alive(self, batch: Batch) -> Batch | None:
        """What is left of a batch once the samples that nobody waits for any more are out; they are not paid for."""
        kept: list[Part] = []
        rows: list[Tensor] = []
        start = 0
        for poll, piece in batch.parts:
            stop = start + piece.stop - piece.start
            if (place := self._places.get(id(poll))) and place[1] in place[0].open:
                kept.append((poll, piece))
                rows.append(batch.images[start:stop])
            start = stop
        return batch if len(kept) == len(batch.parts) else Batch(kept, torch.cat(rows)) if kept else None

    def _paid(self, batch: Batch) -> tuple[list[Asked], Counter[str], BaseException | None]:
        """Book a batch before it is sent: whose samples it has, how many each account pays, and the error of paying."""
        asked = [(*self._places[id(poll)], piece.stop - piece.start) for poll, piece in batch.parts]
        counts: Counter[str] = Counter()
        for ticket, _, samples in asked:
            if ticket.account is not None:
                counts[ticket.account] += samples
        try:
            self._booked(counts)
        except BaseException as error:
            return [], counts, NotAnswered(str(error))
        for ticket, position, samples in asked:
            ticket.asked[position] += samples
        self._sending += len(batch)
        self._batch += 1
        if self._spare and self._seconds > LONG:
            self._foreseen = batch.polls()
            self._change.notify_all()
        return asked, counts, None

    def _answered(self, batch: Batch, asked: list[Asked], counts: Counter[str]) -> BaseException | None:
        """Send a batch and count its votes; its error, if it has one."""
        began, answers, error = time.monotonic(), None, None
        try:
            answers = self._batches.ask(batch)
        except BaseException as raised:
            error = raised
        self._told(error, len(batch))  # before anybody has an answer, so that what it cost is counted by then
        with self._change:
            self._batch += 1
            self._sending -= len(batch)
            self._foreseen, self._seconds = [], time.monotonic() - began
            if answers is not None:
                self._rates.append((time.monotonic(), len(batch)))
                self._forget()
                error = self._counted(batch, answers)
            elif isinstance(error, NotAnswered | BudgetExceeded):  # nothing was billed
                for ticket, position, samples in asked:
                    ticket.asked[position] -= samples
                with suppress(CertiboxError):  # what cannot be given back stays booked
                    self._booked({account: -count for account, count in counts.items()})
        return error

    def _counted(self, batch: Batch, answers: Answers) -> BaseException | None:
        """Count the votes of a batch; the error of a rule that cannot be."""
        try:
            self._batches.count(batch, answers)
        except Exception as error:
            return error
        for ticket in self._tickets_of(batch.parts):
            self._finish(ticket)
            if ticket.changed is not None:
                ticket.changed()
        if sum(poll.blocks for ticket in self._tickets for poll in ticket.polls) > MOST_KEPT:
            for ticket in self._tickets:
                for poll in ticket.polls:
                    poll.let_go()
        return None

    def _tickets_of(self, parts: Sequence[Part]) -> list[Ticket]:
        """The tickets of some pieces that are not done, each once."""
        places = [place for poll, _ in parts if (place := self._places.get(id(poll)))]
        return list({id(ticket): ticket for ticket, _ in places}.values())

    # --- whose samples come next --------------------------------------------------------------------------------------

    def _next(self, full: bool) -> list[Part]:
        """Pieces for the next batch; none where nothing is wanted, or where it would not be full and is to be."""
        wanting = [(ticket, polls) for ticket in self._tickets if (polls := ticket.wanting)]
        if not wanting:
            return []
        first = wanting[0][1][0]
        wanting = [(ticket, like) for ticket, polls in wanting if (like := [one for one in polls if alike(first, one)])]
        size = self._batches.size(first)
        wanted = sum(piece.stop - piece.start for _, polls in wanting for one in polls for piece in one.wanted)
        if full and wanted < size:
            return []
        room = size
        if wanted < size and self.images >= SIZES:  # a network is planned anew for each size that it meets
            step = max(1, size // SIZES)
            room = wanted - wanted % step or wanted
        self._tickets.rotate(-1)
        return shared([polls for _, polls in wanting], room)

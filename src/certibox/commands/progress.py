"""Progress of long work: a bar on a terminal of 80 columns, and a plain line at intervals in a pipe or a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from certibox.commands.lines import plain, tell
from certibox.queries.client import QueryClient

Report = Callable[[int, int, str], None]
INTERVAL = 30.0  # seconds between the lines of a log


class _Stage:
    """How far a stage has come, in words: one source for the bar and for the lines."""

    def __init__(self, title: str, client: QueryClient | None) -> None:
        self.title, self._client = plain(title), client
        self._before = self._asked = client.queries if client else 0
        self._started, self._first = time.monotonic(), None
        self.done, self.total, self.note = 0, 0, ""

    def move(self, done: int, total: int, note: str) -> None:
        if self._first is None or done < self._first or total != self.total:  # a stage after another starts anew
            self._first, self._started = done, time.monotonic()
        self.done, self.total, self.note = done, total, plain(note)
        self._asked = self._client.queries if self._client else 0

    @property
    def rate(self) -> str:
        rate = self._rate()
        for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if rate >= size:
                return f"{rate / size:.1f}{unit}/s"
        return f"{rate:.1f}/s" if rate else "-/s"

    @property
    def left(self) -> str:
        rate = self._rate()
        return f"{_clock((self.total - self.done) / rate)} left" if rate else "-:-- left"

    @property
    def queries(self) -> str:
        return "" if self._client is None else f"{self._asked - self._before:,} queries"

    def _rate(self) -> float:
        passed = time.monotonic() - self._started
        return (self.done - (self._first or 0)) / passed if passed > 0 else 0.0

    def line(self) -> str:
        parts = (f"{self.title} {self.done}/{self.total}", self.rate, self.queries, self.left)
        return ", ".join(part for part in parts if part)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class _Words(ProgressColumn):
    """A part of a stage's words, which only the stage knows how to spell."""

    def __init__(self, stage: _Stage, part: str) -> None:
        super().__init__()
        self._stage, self._part = stage, part

    def render(self, task: Task) -> Text:
        words = getattr(self._stage, self._part)
        return Text(words if self._part == "left" or not words else f"{words},", no_wrap=True)


@contextmanager
def bar(
    title: str, client: QueryClient | None = None, console: Console | None = None, interval: float = INTERVAL
) -> Iterator[Report]:
    """A bar or lines that `report(done, total, text)` moves, with the queries that `client` spends meanwhile.

    Args:
        title: Title of the stage.
        client: Meter whose queries are shown; None for work without queries.
        console: Console to draw on; standard error by default.
        interval: Seconds between lines where the console is no terminal.
    """
    where, stage = console or Console(stderr=True, markup=False, highlight=False, emoji=False), _Stage(title, client)
    with _drawn(stage, where) if where.is_terminal else _told(stage, console, interval) as report:
        yield report


@contextmanager
def _drawn(stage: _Stage, console: Console) -> Iterator[Report]:
    """On a terminal: title, bar, count, rate, time left and queries. On fewer than 80 columns, less is shown."""
    names = ("rate", "queries", "left") if console.width >= 80 else ("left",)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.completed:.0f}/{task.total:.0f}", markup=False),
        *(_Words(stage, name) for name in names),
    )
    progress, tasks = Progress(*columns, console=console), []

    def report(done: int, total: int, text: str) -> None:
        stage.move(done, total, text)
        if not tasks:  # no bar before there is progress: what is refused at once gets its one line alone
            tasks.append(progress.add_task(stage.title[:20], total=total))
            progress.start()
        progress.update(tasks[0], completed=done, total=total)

    try:
        yield report
    finally:
        if tasks:
            progress.stop()


@contextmanager
def _told(stage: _Stage, console: Console | None, interval: float) -> Iterator[Report]:
    """In a pipe or a log: a line at intervals, and one at the end."""
    told, moved = time.monotonic(), False
    say = tell if console is None else lambda text: print(text, file=console.file)

    def report(done: int, total: int, text: str) -> None:
        nonlocal told, moved
        stage.move(done, total, text)
        moved = True
        if time.monotonic() - told >= interval:
            told = time.monotonic()
            say(stage.line())

    try:
        yield report
    finally:
        if moved:
            say(stage.line())

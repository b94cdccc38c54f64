"""Progress bars for long work: rate, time left, queries spent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from certibox.queries.client import QueryClient

Report = Callable[[int, int, str], None]


class _Rate(ProgressColumn):
    """Units done a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f}/s" if speed else "–/s")


@contextmanager
def bar(title: str, client: QueryClient | None = None, console: Console | None = None) -> Iterator[Report]:
    """A bar that `report(done, total, text)` moves; shows the queries that `client` has spent."""
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    progress, tasks = Progress(*columns, console=console or Console(stderr=True)), []

    def report(done: int, total: int, text: str) -> None:
        if not tasks:  # no bar before there is progress: what is refused at once gets its one line alone
            tasks.append(progress.add_task(title, total=total, note=""))
            progress.start()
        spent = f"  {client.queries:,} queries" if client else ""
        progress.update(tasks[0], completed=done, total=total, note=text + spent)

    try:
        yield report
    finally:
        if tasks:
            progress.stop()

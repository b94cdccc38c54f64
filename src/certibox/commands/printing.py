"""What commands print with."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, cast

from rich.console import Console

from certibox.commands import process
from certibox.commands.lines import plain

if TYPE_CHECKING:
    from certibox.queries.client import QueryClient


class _Output:
    """Standard output as a file: names and texts from outside reach it as text, and nothing raises."""

    @property
    def encoding(self) -> str:
        return getattr(process.output(), "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        process.say(plain(text))
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def isatty(self) -> bool:
        return False


# No styles, so that no escape code is ours: then none can pass.
OUT = Console(file=cast(IO[str], _Output()), soft_wrap=True, highlight=False, markup=False, emoji=False)


def spent(client: QueryClient) -> str:
    """Queries spent, in all and by phase, in words.

    Args:
        client: Meter around a box.
    """
    parts = ", ".join(f"{phase} {count:,}" for phase, count in client.spent.items())
    return f"{client.queries:,} ({parts})" if parts else "0"

"""What commands print with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from certibox.queries.client import QueryClient

OUT = Console(soft_wrap=True, highlight=False)


def spent(client: QueryClient) -> str:
    """Queries spent, in all and by phase, in words."""
    parts = ", ".join(f"{phase} {count:,}" for phase, count in client.spent.items())
    return f"{client.queries:,} ({parts})" if parts else "0"

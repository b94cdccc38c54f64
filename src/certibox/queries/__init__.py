"""The one door to a black box: it counts, bounds, batches, checks and remembers every answer."""

from __future__ import annotations

from certibox.queries.client import QueryClient
from certibox.queries.fingerprint import Fingerprint, canary_images
from certibox.queries.journal import Journal
from certibox.queries.meter import Tally

__all__ = [
    "Fingerprint",
    "Journal",
    "QueryClient",
    "Tally",
    "canary_images",
]

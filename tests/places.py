"""Folders that tests know: the repository, the tests themselves, and the data that a checkout may have beside it."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
FIXTURES = TESTS / "fixtures"
SHARED = ROOT.parent / "shared"
PEERS = Path(os.environ.get("CERTIBOX_PEERS", ROOT / ".peers"))  # environments that tools/peers.sh makes

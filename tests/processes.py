"""Processes that a test may kill. Each forks from one that has imported the test's module, so it starts at once."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from typing import Any
from unittest import mock


def started(function: Callable[..., object], *args: Any) -> ForkServerProcess:
    """A process that calls a function of a test module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    process = context.Process(target=function, args=args, daemon=True)
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):  # where a new server looks for the module
        process.start()
    return process


def status(process: ForkServerProcess) -> int | None:
    """Its exit status, once it has ended."""
    process.join()
    return process.exitcode

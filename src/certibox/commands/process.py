"""The ends of a process: signals, streams, and what reaches standard output. Loaded before all else: standard library.

While a command works, standard output is for what the command prints, and whatever else is printed goes to standard
error: a box, its libraries and its threads print as they like, and the lines of `predict` stay JSON.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TextIO

GRACE = 10.0  # seconds
INTERRUPTED = "interrupted; work so far is kept, run the same command to go on"


class _Output:
    """Where commands print, and whether something that was printed never arrived."""

    stream: TextIO | None = None
    lost = False


def prepare(name: str) -> None:
    """Make the process fit for a command: streams that can be written to, and Ctrl-C in one line from now on.

    Args:
        name: Name of the command.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: else the next file that opens would be standard output
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    _on_interrupt(name)


def _on_interrupt(name: str) -> None:
    """Ctrl-C ends the process at once, in one line: for the time in which nothing has been done, or all has been."""

    def stop(*_: object) -> None:
        with suppress(OSError):
            os.write(2, f"certibox {name}: {INTERRUPTED}\n".encode())
        os._exit(130)

    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_DFL):  # not where it is ignored
        signal.signal(signal.SIGINT, stop)


@contextmanager
def interruptible(name: str) -> Iterator[None]:
    """Ctrl-C inside the block is a `KeyboardInterrupt`, once; where it gets lost, the process ends all the same.

    Args:
        name: Name of the command.
    """
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):
        yield
        return

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, before)  # the next one ends it at once
        raise KeyboardInterrupt

    def unraised(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):  # in a callback that cannot pass it on
            before(signal.SIGINT, None)
        sys.__unraisablehook__(unraisable)

    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = unraised
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def printing_alone(whole: bool) -> Iterator[None]:
    """Inside the block `say` alone writes to standard output; what others print there goes to standard error.

    Args:
        whole: Whether the process is this command's: then descriptor 1 too, which other languages write to.
    """
    _Output.stream, _Output.lost = sys.stdout, False
    if whole:
        with suppress(OSError):
            sys.stdout.flush()
        encoding = sys.stdout.encoding
        ours = open(os.dup(1), "w", buffering=1, encoding=encoding, errors="backslashreplace")  # noqa: SIM115
        os.dup2(2, 1)
        _Output.stream = ours
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _Output.stream = None


def output() -> TextIO:
    """Where commands print."""
    return _Output.stream or sys.stdout


def say(text: str) -> None:
    """Write to standard output. A reader that has gone, or a full disk, ends nothing: see `lost`.

    Args:
        text: Text, with its line breaks.
    """
    stream = output()
    try:
        stream.write(text)
        stream.flush()
    except UnicodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    except (OSError, ValueError, AttributeError):  # gone, full or closed
        _Output.lost = True


def lost() -> bool:
    """Whether something that was printed since the command began never arrived."""
    return _Output.lost


def let_go() -> None:
    """Write what is left to standard output to nowhere, since nobody reads it: else the interpreter complains."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def leave(name: str, status: int) -> None:
    """Let the process end within `GRACE` seconds, though threads that a model began may never do.

    Args:
        name: Name of the command.
        status: Exit status.
    """
    left = [
        thread.name for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()
    ]

    def end() -> None:
        time.sleep(GRACE)
        with suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
        told = f"certibox {name}: note: threads that were not certibox's did not end, and were left: {', '.join(left)}"
        with suppress(OSError):
            os.write(2, f"{ascii(told)[1:-1]}\n".encode())
        os._exit(status)

    if left:
        threading.Thread(target=end, daemon=True).start()

"""The command line: argv → options → one call. Exit statuses: see `STATUSES`; work is kept in every case."""

from __future__ import annotations

import importlib
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from certibox.commands import process
from certibox.commands.lines import one_line, tell
from certibox.errors import BoxFailed, CertiboxError, InvalidInput, Notice, described, did_you_mean


@dataclass(frozen=True)
class Command:
    """A subcommand. Its module is imported when it is asked for: most need torch, which takes a second to load."""

    module: str
    """Name of the module under `certibox.commands`."""
    options: str
    """Name of the dataclass of options in that module."""
    run: str
    """Name of the function in that module that takes the options."""
    purpose: str
    """First line of the help, which is that of the docstring of the options too."""

    def load(self) -> tuple[type, Callable[[Any], None]]:
        """The class of the options, and the function that runs them."""
        module = importlib.import_module(f"certibox.commands.{self.module}")
        return getattr(module, self.options), getattr(module, self.run)


COMMANDS = {
    "demo": Command(
        "demo",
        "Demo",
        "run",
        "Defend a scikit-learn digits model through queries alone, certify it, and compare: about a minute.",
    ),
    "train": Command(
        "training",
        "Train",
        "run_train",
        "Train a defense in front of a black box. Interrupted runs resume from --out and pay for nothing twice.",
    ),
    "certify": Command(
        "certifying",
        "Certify",
        "run_certify",
        "Certify images: one row each, appended as earned. Interrupted runs resume from --out.",
    ),
    "predict": Command(
        "certifying",
        "Predict",
        "run_predict",
        "Predict with the smoothed classifier, the one that certificates speak of; prints one JSON line an image.",
    ),
    "watch": Command(
        "watching",
        "Watch",
        "run_watch",
        "Ask a defense's canaries again, and end with status 5 when the model has changed.",
    ),
    "serve": Command(
        "serving",
        "Serve",
        "run_serve",
        "Stand where the box stood: answer its clients with certificates, by the Open Inference Protocol over HTTP.",
    ),
    "token": Command(
        "serving",
        "NewToken",
        "run_token",
        "Make a token for a gateway; prints it once, and appends its hash to the file.",
    ),
    "verify": Command(
        "serving",
        "Verify",
        "run_verify",
        "Check files of certificates and audit logs: whether every answer follows from its votes. Asks no query.",
    ),
    "merge": Command(
        "reporting",
        "Merge",
        "run_merge",
        "Merge the certificate files of shards into one.",
    ),
    "report": Command(
        "reporting",
        "Report",
        "run_report",
        "Compare certified runs: a table, curves of certified accuracy and one self-contained HTML page.",
    ),
    "import-authors": Command(
        "importing",
        "ImportAuthors",
        "run_import_authors",
        "Import an autoencoder that the paper's authors released, for `train --autoencoder`.",
    ),
    "query-cost": Command(
        "cost",
        "QueryCost",
        "run",
        "Print what a plan would spend, in queries and money, before a single query is sent.",
    ),
    "paper list": Command(
        "paper",
        "PaperList",
        "run_list",
        "List the paper's tables and figures: their scales, and how many rows are measured at each.",
    ),
    "paper run": Command(
        "paper",
        "PaperRun",
        "run_run",
        "Measure rows of a table at a scale. Rows measured before stand; interrupted work goes on where it stopped.",
    ),
    "paper report": Command(
        "paper",
        "PaperReport",
        "run_report",
        "Write RESULTS.md, a page for every table and their plots, from the measured rows alone.",
    ),
}
GROUPS = {"paper": "Reproduce the paper's tables and figures, and test its claims: list, run, report."}


# Threads of a parallel loop that have nothing left to do go to sleep soon. By default they spin for milliseconds, which
# costs nothing on a quiet machine, but beside another busy process it keeps the last of them from the processor. Asleep
# at once, they would wake too late on a quiet machine. Read when the libraries load, which is after this; the figures
# are those of benchmarks/contention.py.
WAITING = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "0"}


STATUSES = {
    0: "done",
    2: "bad input",
    3: "budget spent",
    4: "the box failed",
    5: "the box has changed",
    130: "interrupted",
    141: "nobody read what was printed",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status. Every error is one line on standard error.

    Args:
        argv: Words after `certibox`; by default those of the process, which is then this command's alone.
    """
    if argv is not None:
        return _main(argv, whole=False)
    words = sys.argv[1:]
    process.prepare(_name(words)[0])
    try:
        status = _main(words, whole=True)
        sys.stdout.flush()
    except OSError:  # the reader of a help text, such as `head`, has seen enough
        status = 141
    if status == 141:
        process.let_go()
    process.leave(_name(words)[0], status)
    return status


def _main(words: list[str], whole: bool) -> int:
    """One command, or what explains them."""
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0
    if words[0] == "--version":
        from certibox import __version__

        print(f"certibox {__version__}")
        return 0
    if words[0] in GROUPS and (len(words) == 1 or words[1] in ("-h", "--help")):
        print(group_usage(words[0]))
        return 0
    return _run(*_name(words), whole)


def _name(words: list[str]) -> tuple[str, list[str]]:
    """The name of the command that words begin with, and the words after it."""
    count = 2 if words and words[0] in GROUPS else 1
    return " ".join(words[:count]), words[count:]


def _run(name: str, arguments: list[str], whole: bool) -> int:
    """The command `name`, its errors as messages and exit statuses."""
    for library in ("DATASETS", "HF_HUB"):
        os.environ.setdefault(f"{library}_VERBOSITY", "critical")  # their errors arrive as ours, in one line
    os.environ.update(WAITING | {key: os.environ[key] for key in WAITING if key in os.environ})
    kind = None
    try:
        if name not in COMMANDS:
            raise InvalidInput(f"there is no command {name!r}; wanted {_known_commands(name)}")
        kind, run = COMMANDS[name].load()
        from certibox.commands.arguments import ours, parse, typed
        from certibox.commands.fields import require_effect

        arguments = ours(arguments)
        options = parse(name, kind, arguments)
        require_effect(options, typed(arguments))
        with process.interruptible(name), process.printing_alone(whole), _warnings_in_lines(name):
            _work(run, options)
        return 141 if process.lost() else 0
    except SystemExit:  # --help and --print-config have printed what was asked
        raise
    except BaseException as error:
        status, text = _failure(error)
        if os.environ.get("CERTIBOX_TRACEBACK"):
            sys.excepthook(type(error), error, error.__traceback__)
        if status != 141:
            tell(f"certibox {name}: {_in_flags(text, kind)}")
        return status


def _work(run: Callable[[Any], None], options: Any) -> None:
    """The command's work. What it calls may end the process, but not the command, and not with status 0."""
    try:
        run(options)
    except SystemExit as error:
        ended = f"code that the command called wanted to end the process, by SystemExit({error.code!r})"
        raise BoxFailed(f"{ended}; a model has to answer or to raise an error") from error


def _failure(error: BaseException) -> tuple[int, str]:
    """Exit status and text of what ended a command."""
    if isinstance(error, CertiboxError):
        return error.exit_status, str(error)
    if isinstance(error, BrokenPipeError):  # the reader of standard output, such as `head`, has seen enough
        return 141, ""
    if isinstance(error, KeyboardInterrupt):
        return 130, process.INTERRUPTED
    if isinstance(error, OSError):  # a place to write to that is no folder, is not ours, or is full
        return 2, f"{error.filename or 'a file'}: {error.strerror or error}; check the path"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        return 2, "there is not enough memory; wanted fewer images (--limit), or fewer of them at a time"
    return 2, f"this is a fault of certibox: {described(error)}; CERTIBOX_TRACEBACK=1 in the environment shows where"


_NO_MEMORY = re.compile("can't allocate memory|out of memory", re.IGNORECASE)  # as torch says it


def _in_flags(text: str, kind: type | None) -> str:
    """A message with the parameters that the command has as flags named as such."""
    if kind is None:
        return text
    from certibox.commands.arguments import in_flags

    return in_flags(text, kind)


@contextmanager
def _warnings_in_lines(name: str) -> Iterator[None]:
    """Warnings inside the block are lines on standard error, without the line of code that raised them."""
    import warnings

    shown = set[str]()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if (text := one_line(message)) not in shown:
            shown.add(text)
            tell(f"certibox {name}: note: {text}")

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=Notice)
        warnings.showwarning = show
        yield


def usage() -> str:
    """What `certibox --help` prints: a line for each command or group of commands."""
    purposes = {name: command.purpose for name, command in COMMANDS.items() if " " not in name} | GROUPS
    width = max(map(len, purposes)) + 2
    return "\n".join(
        [
            "usage: certibox COMMAND [OPTIONS]",
            "",
            "Certified adversarial robustness for models that can only be queried.",
            "Try `certibox demo`; with a model of your own: query-cost, train, certify, report, in this order.",
            "",
            *(f"  {name:<{width}}{purpose}" for name, purpose in purposes.items()),
            "",
            "certibox COMMAND --help explains a command and its options.",
            "Options may come from a YAML file: --config run.yaml; flags override it.",
            f"Exit status: {', '.join(f'{status} {meaning}' for status, meaning in STATUSES.items())}.",
            "Work is kept in every case: the same command, run again, goes on.",
        ]
    )


def group_usage(group: str) -> str:
    """What `certibox GROUP` and `certibox GROUP --help` print."""
    commands = _of_group(group)
    width = max(map(len, commands)) + 4
    purposes = [
        textwrap.fill(command.purpose, 100, initial_indent=f"  {name}".ljust(width), subsequent_indent=" " * width)
        for name, command in commands.items()
    ]
    heading = [f"usage: certibox {group} COMMAND [OPTIONS]", "", GROUPS[group], ""]
    return "\n".join([*heading, *purposes, "", f"certibox {group} COMMAND --help explains a command and its options."])


def _known_commands(name: str) -> str:
    """The commands that there are instead of `name`, and the one that may have been meant."""
    group, _, word = name.partition(" ")
    known = _of_group(group) or COMMANDS
    meant = did_you_mean(word or name, [command.rpartition(" ")[2] if word else command for command in known])
    return f"one of {', '.join(known)}{meant}"


def _of_group(group: str) -> dict[str, Command]:
    """The commands of a group; none for a word that names no group."""
    return {name: command for name, command in COMMANDS.items() if name.startswith(f"{group} ")}


if __name__ == "__main__":
    sys.exit(main())

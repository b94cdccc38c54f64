"""The command line: argv → options → one call. Exit status: 0 done, 2 bad input, 3 budget spent (work kept)."""

from __future__ import annotations

import importlib
import os
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from certibox import __version__
from certibox.errors import CertiboxError, InvalidInput, did_you_mean


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
        "Defend a scikit-learn digits model through queries alone, certify it, and compare: a few minutes.",
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


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status. Every deliberate error is one line on standard error."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"certibox {__version__}")
        return 0
    name, *rest = arguments
    if name in GROUPS:
        if not rest or rest[0] in ("-h", "--help"):
            print(group_usage(name))
            return 0
        name, *rest = f"{name} {rest[0]}", *rest[1:]
    return _run(name, rest)


def _run(name: str, arguments: list[str]) -> int:
    """The command `name`, its errors as messages and exit statuses."""
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")  # its errors arrive as ours, in one line
    os.environ.update(WAITING | {key: os.environ[key] for key in WAITING if key in os.environ})
    try:
        if name not in COMMANDS:
            raise InvalidInput(f"there is no command {name!r}; wanted {_known_commands(name)}")
        kind, run = COMMANDS[name].load()
        from certibox.commands.arguments import parse, typed
        from certibox.commands.fields import require_effect

        options = parse(name, kind, arguments)
        require_effect(options, typed(arguments))
        run(options)
    except CertiboxError as error:
        print(f"certibox {name}: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:  # the reader of standard output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a place to write to that is no folder, is not ours, or is full
        print(
            f"certibox {name}: {error.filename or 'a file'}: {error.strerror or error}; check the path", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print(f"certibox {name}: interrupted; work so far is kept, run the same command to go on", file=sys.stderr)
        return 130
    return 0


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
            "Exit status: 0 done, 2 bad input, 3 budget spent, 130 interrupted. Work is kept in every case.",
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

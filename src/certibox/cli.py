"""The command line: argv → options → one call. Exit status: 0 done, 2 bad input, 3 budget spent (work kept)."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from certibox import demo, query_cost
from certibox.arguments import parse, typed
from certibox.commands import certifying, importing, reporting, training
from certibox.errors import CertiboxError, InvalidInput
from certibox.options import require_effect
from certibox.paper import commands as paper
from certibox.version import VERSION


@dataclass(frozen=True)
class Command:
    """A subcommand: its options and what runs them."""

    options: type
    run: Callable[[Any], None]

    @property
    def purpose(self) -> str:
        """The first line of its help."""
        return (self.options.__doc__ or "").splitlines()[0]


COMMANDS = {
    "demo": Command(demo.Demo, demo.run),
    "train": Command(training.Train, training.run_train),
    "certify": Command(certifying.Certify, certifying.run_certify),
    "predict": Command(certifying.Predict, certifying.run_predict),
    "merge": Command(reporting.Merge, reporting.run_merge),
    "report": Command(reporting.Report, reporting.run_report),
    "import-authors": Command(importing.ImportAuthors, importing.run_import_authors),
    "query-cost": Command(query_cost.QueryCost, query_cost.run),
    "paper list": Command(paper.PaperList, paper.run_list),
    "paper run": Command(paper.PaperRun, paper.run_run),
    "paper report": Command(paper.PaperReport, paper.run_report),
}
GROUPS = {"paper": "Reproduce the paper's tables and figures, and test its claims: list, run, report."}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status. Every deliberate error is one line on standard error."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"certibox {VERSION}")
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
    try:
        if name not in COMMANDS:
            known = _of_group(name.partition(" ")[0]) or COMMANDS
            raise InvalidInput(f"there is no command {name!r}; wanted one of {', '.join(known)}")
        command = COMMANDS[name]
        options = parse(name, command.options, arguments)
        require_effect(options, typed(arguments))
        command.run(options)
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


def _of_group(group: str) -> dict[str, Command]:
    """The commands of a group; none for a word that names no group."""
    return {name: command for name, command in COMMANDS.items() if name.startswith(f"{group} ")}


if __name__ == "__main__":
    sys.exit(main())

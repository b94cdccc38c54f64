"""Bad invocations and bad models at the command line: none may end in a traceback, hang, or keep its reason to itself.

python tools/bad_input.py                          all of it, in two processes: some minutes
python tools/bad_input.py --only boxes --match nan those whose name holds a word, with what they printed
python tools/bad_input.py --write                  keep the counts in tools/results/bad_input.json

Invocations are made from the options of every command: each option is given values that cannot be, the other options
being right. Each runs in a process of its own and in a folder of its own, for a minute at most. It must end with status
0, 2, 3, 4 or 130, say why on standard error without a traceback, and name the value that it refuses. Outputs lie in
that folder, and are never named otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from bad_lines import Case, invocations, models
from certibox.cli import COMMANDS, main

RESULTS = Path(__file__).parent / "results" / "bad_input.json"
STATUSES = (0, 2, 3, 4, 130)
LIMIT = 60  # seconds


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    status: int | None
    printed: str
    said: str
    seconds: float


def furnish(place: Path) -> None:
    """Put into a folder what the lines name: images, a good model, one certified run, and much that is broken."""
    from furniture import furnish_files

    furnish_files(place)
    os.mkfifo(place / "fifo")
    os.mkfifo(place / "fifo.onnx")
    os.mkfifo(place / "fifo.py")
    (place / "link").symlink_to("box.py")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(place)  # a socket's path must be short
        listener.bind("socket")
        os.chdir(here)


def run(case: Case, furnished: Path) -> Outcome:
    """A case in a process of its own, in a copy of the furnished folder."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "place"
        _copy(furnished, place)
        if case.source:
            file = next(word for word in case.arguments if word.startswith("wrong")).partition(":")[0]
            (place / file).write_text(case.source, encoding="utf-8")
        out, err = Path(scratch) / "out", Path(scratch) / "err"
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            _become(case, place, out, err)
        status = _wait(child, started + LIMIT)
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in (out, err)]
        return Outcome(status, texts[0], texts[1], time.monotonic() - started)


def _copy(furnished: Path, place: Path) -> None:
    """A copy with its pipes and links as they are; sockets and pipes are linked, since they cannot be copied."""
    place.mkdir()
    for entry in furnished.iterdir():
        if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
            os.link(entry, place / entry.name, follow_symlinks=False)
        elif entry.is_dir():
            shutil.copytree(entry, place / entry.name, symlinks=True)
        else:
            shutil.copy2(entry, place / entry.name)


def _become(case: Case, place: Path, out: Path, err: Path) -> None:
    """In the child: the command line, as the shell would run it. Never returns."""
    status = 99
    try:
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(place)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
        sys.argv = ["certibox", *case.arguments]
        status = main(list(case.arguments))
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 98
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # the case may have closed it
                stream.flush()
        os._exit(status or 0)


def _wait(child: int, until: float) -> int | None:
    """The exit status of a child, None if it had to be killed."""
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def faults(case: Case, outcome: Outcome) -> list[str]:
    """What is wrong with an outcome; nothing for a good one."""
    found, said = [], outcome.said
    if outcome.status is None:
        return ["hangs"]
    if "Traceback" in said + outcome.printed:
        found.append("traceback")
    if outcome.status not in STATUSES:
        found.append(f"status {outcome.status}")
    if "\x1b" in said + outcome.printed:
        found.append("escape codes")
    if "secret" in said:
        found.append("a secret")
    if outcome.status in (2, 3, 4):
        lines = [line for line in said.splitlines() if re.match(r"certibox (?!\S+(?: \S+)?: note: )", line)]
        if len(lines) != 1 or len(said.splitlines()) > 6:
            found.append(f"{len(lines)} lines of reason among {len(said.splitlines())}")
        elif not _names(lines[0], case.value) and "diverged" not in lines[0]:
            found.append("unnamed value")
        elif re.search(r"fault of certibox|internal error", lines[0]):
            found.append("our own fault")
    if case.good is True and outcome.status != 0:
        found.append("refused")
    if case.good is False and outcome.status == 0:
        found.append("accepted")
    return found


def _names(line: str, value: str) -> bool:
    """Whether a line names a value: as it was typed, as a number, or its beginning if it is long."""
    plain = "".join(char for char in value if char.isprintable())
    head, _, tail = plain.partition(":")
    forms = {value, repr(value)[1:-1], plain[:20], plain.strip("[]{}"), plain.partition("=")[2], head, tail}
    for part in (value, *value.strip("[]").split(",")):
        for spelt in (float, lambda text: f"{float(text):g}", lambda text: int(float(text))):
            with contextlib.suppress(ValueError, OverflowError):
                forms.add(str(spelt(part)))
    return not plain.strip() or any(form in line for form in {*forms, Path(plain).name} - {""})


def judge(cases: Sequence[Case], furnished: Path, tell: Callable[[Case, Outcome, list[str]], object]) -> Counter[str]:
    """Run cases; count their statuses and faults."""
    counts: Counter[str] = Counter()
    for case in cases:
        outcome = run(case, furnished)
        wrong = faults(case, outcome)
        counts.update([f"status {outcome.status}", *wrong, "cases"])
        tell(case, outcome, wrong)
    return counts


def _tell(case: Case, outcome: Outcome, wrong: list[str], *, loud: bool) -> None:
    if wrong or loud:
        print(f"{', '.join(wrong) or 'fine'}: {case.name} -> {outcome.status}, {outcome.seconds:.1f} s", flush=True)
        tail = (outcome.said.strip() or outcome.printed.strip()).splitlines()[-3:]
        print("".join(f"    {line[:300]!r}\n" for line in tail), end="", flush=True)


def go(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for; the number of faults, at most 100."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("invocations", "boxes"))
    parser.add_argument("--match", help="only cases whose name holds this")
    parser.add_argument("--every", type=int, default=1, help="only every so many cases")
    parser.add_argument("--part", default="1/1", help="i/k: this part of the cases")
    parser.add_argument("--write", action="store_true", help=f"keep the counts in {RESULTS.name}")
    asked = parser.parse_args(arguments)
    groups = {"invocations": invocations, "boxes": models}
    part, parts = map(int, asked.part.split("/"))
    counted: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as home:
        furnished = Path(home) / "furnished"
        furnished.mkdir()
        furnish(furnished)
        for group, make in groups.items():
            if asked.only in (None, group):
                cases = [case for case in make() if not asked.match or asked.match in case.name]
                chosen = cases[part - 1 :: parts][:: asked.every]
                counts = judge(chosen, furnished, partial(_tell, loud=bool(asked.match)))
                counted[group] = dict(sorted(counts.items()))
                print(f"{group}: {counted[group]}", flush=True)
    if asked.write:
        RESULTS.write_text(json.dumps(counted, indent=2) + "\n", encoding="utf-8")
    bad = {"cases", *(f"status {status}" for status in STATUSES)}
    return min(100, sum(count for counts in counted.values() for name, count in counts.items() if name not in bad))


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "DATASETS_VERBOSITY": "critical", "HF_HUB_VERBOSITY": "critical"}
    for command in COMMANDS.values():  # the libraries load once, before any case
        command.load()
    np.zeros(1)
    sys.exit(go())

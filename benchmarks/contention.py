"""Training steps a second beside other busy processes: what waiting threads cost, and what commands do about it.

    python benchmarks/contention.py [--write] [--tiny]

A small denoiser (DnCNN, 6 layers of 32 channels, 64 images of 28x28) trains in a process of its own for 3 seconds, with

- `one thread`: torch on one thread;
- `two threads`: torch on two threads that spin while they wait, its default and what commands did before;
- `as commands do`: two threads that soon go to sleep while they wait, as `certibox` sets it up;

on a quiet machine and beside busy processes (loops in Python, or torch multiplying matrices on two threads). Three
rounds, each way in turn, so that what slows the machine slows all; the figure is the median over rounds. Goals: as
commands do, at least half the steps of one thread at every load, and on a quiet machine no fewer than two spinning
threads (0.97 of them, the noise of a round).

Then the command line itself: `certibox train` on the digits, quiet and beside eight busy processes: as it is, with one
thread, and with threads that spin. Hardware and versions are printed with the result; `--write` puts both into
benchmarks/results/contention.json.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from certibox.cli import WAITING
from certibox.networks import dncnn
from certibox.paper.logbook import destination, hardware, parser, versions
from certibox.storage.files import write_json_atomic

RESULT = Path(__file__).parent / "results" / "contention.json"
OURS, SPINNING, SINGLE = "as commands do", "two threads", "one thread"
WAYS: dict[str, tuple[int, Mapping[str, str]]] = {SINGLE: (1, {}), SPINNING: (2, {}), OURS: (2, WAITING)}
BUSY = {
    "loops": "while True: pass",
    "matrices": "import torch; torch.set_num_threads(2); a = torch.rand(400, 400)\nwhile True: a @ a",
}
TRAIN = (
    "train --model model.py:predict --outputs probabilities --data digits --sigma 0.25 --gamma 1 --d-z 16 "
    "--autoencoder-epochs {epochs} --denoise-epochs {epochs} --epochs 1 --limit 200 --out {out}"
)
MODEL = """
import numpy as np
WEIGHTS = np.random.default_rng(0).normal(size=(64, 10))
def predict(images):
    powers = np.exp(images.reshape(len(images), -1) @ WEIGHTS)
    return powers / powers.sum(1, keepdims=True)
"""


@dataclass(frozen=True)
class Size:
    """How large the benchmark is."""

    loads: tuple[tuple[str, int], ...]
    """Kind and number of the busy processes of each load."""
    seconds: float
    """Length of a timed run."""
    rounds: int
    """Number of rounds."""
    epochs: int
    """Number of query-free epochs of the command."""
    beside: int
    """Number of busy processes beside the command."""


FULL = Size((("loops", 0), ("loops", 2), ("loops", 8), ("matrices", 2)), 3.0, 3, 20, 8)
TINY = Size((("loops", 1),), 0.1, 1, 1, 0)


@contextmanager
def busy(kind: str, count: int) -> Iterator[None]:
    """So many processes of a kind that never rest, inside the block."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY[kind]]) for _ in range(count)]
    try:
        time.sleep(1.0 if count else 0.0)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def environment(changes: Mapping[str, str]) -> dict[str, str]:
    """This process's, without what it says of threads, and with the changes."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_", "MKL_"))}
    return plain | dict(changes)


def rate(way: str, seconds: float) -> float:
    """Steps a second of a fresh process that trains in one way."""
    threads, changes = WAYS[way]
    command = [sys.executable, __file__, "--steps", str(seconds), "--threads", str(threads)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, env=environment(changes))
    return float(ran.stdout)


def steps_per_second(seconds: float) -> float:
    """Training steps a second in this process."""
    torch.manual_seed(0)
    network = dncnn(1, depth=6, width=32).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    clean = torch.rand(64, 1, 28, 28).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        loss = (network(clean + 0.25 * torch.randn(clean.shape)) - clean).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    started, done = time.perf_counter(), 0
    while (took := time.perf_counter() - started) < seconds:
        step()
        done += 1
    return done / took


def at_load(kind: str, count: int, size: Size) -> dict[str, Any]:
    """Steps a second of every way beside so many busy processes, and how commands compare with one thread."""
    with busy(kind, count):
        rounds = [{way: rate(way, size.seconds) for way in WAYS} for _ in range(size.rounds)]
    found = {way: round(statistics.median(one[way] for one in rounds), 2) for way in WAYS}
    return {
        "beside": f"{count} busy processes, {kind}" if count else "nothing: a quiet machine",
        "steps_per_s": found,
        "commands_to_one_thread": round(found[OURS] / found[SINGLE], 2) if found[SINGLE] else None,
        "commands_to_two_threads": round(found[OURS] / found[SPINNING], 2) if found[SPINNING] else None,
    }


def command_seconds(size: Size, changes: Mapping[str, str]) -> float:
    """Seconds of `certibox train` in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.py").write_text(MODEL, encoding="utf-8")
        line = TRAIN.format(epochs=size.epochs, out="run").split()
        started = time.perf_counter()
        command = [sys.executable, "-m", "certibox.cli", *line]
        subprocess.run(command, check=True, capture_output=True, cwd=folder, env=environment(changes))
        return time.perf_counter() - started


def of_command(size: Size) -> dict[str, Any]:
    """Seconds of the command, as it is, with one thread and with spinning threads; quiet and busy."""
    ways = {OURS: {}, SINGLE: {"OMP_NUM_THREADS": "1"}, SPINNING: {"GOMP_SPINCOUNT": "300000"}}
    found = {}
    for count in (0, size.beside):
        with busy("loops", count):
            found[f"beside {count}"] = {way: round(command_seconds(size, change), 1) for way, change in ways.items()}
    return found


def measure(size: Size) -> dict[str, Any]:
    """All of the result."""
    return {
        "loads": [at_load(kind, count, size) for kind, count in size.loads],
        "train_seconds": of_command(size),
        "goals": {"commands_to_one_thread": ">= 0.5", "commands_to_two_threads, quiet": ">= 0.97"},
        "seconds": size.seconds,
        "rounds": size.rounds,
        "hardware": hardware(),
        "versions": versions(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--write", action="store_true", help="write the result")
    options.add_argument("--steps", type=float, metavar="S", help="print the steps a second of S seconds and exit")
    options.add_argument("--threads", type=int, default=2, help="torch threads of --steps")
    options = options.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.steps:
        print(steps_per_second(options.steps))
        return
    result = measure(TINY if options.tiny else FULL)
    print(json.dumps(result, indent=2))
    if options.write:
        write_json_atomic(destination(options, RESULT), result)


if __name__ == "__main__":
    main()

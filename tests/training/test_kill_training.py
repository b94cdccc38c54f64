"""A training process that is killed at random moments, and started again, arrives where an undisturbed one does."""

from __future__ import annotations

import os
import random
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest

from certibox import seeds
from certibox.blackbox import as_blackbox
from certibox.data import load_images
from certibox.estimators import CGE, Guided
from certibox.networks import dncnn, fitting_autoencoder
from certibox.queries.client import QueryClient
from certibox.storage.tensors import read_tensors, tensors_digest
from certibox.training.defenses import train
from certibox.training.schedules import Phase, Schedule
from processes import started, status

KILLS, BATCH = 4, 8
ESTIMATORS = {
    "cge": CGE(0.05, central=True),
    "guided": Guided(distill=20, updates=1, probe_every=2),  # measures mu, probes, buys corrections, learns on the way
}


def train_digits(out: str, estimator: str, pause: float) -> None:
    """Train ZO-AE-DS in `out`, where `calls` tells the images of each call before it is answered."""
    weight = np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32)
    calls = os.open(f"{out}/calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def answer(x: np.ndarray) -> np.ndarray:
        os.write(calls, f"{len(x)}\n".encode())
        time.sleep(pause)
        return x.reshape(len(x), 64) @ weight

    client = QueryClient(as_blackbox(answer, "logits"), ledger=f"{out}/ledger.sqlite", batch_size=BATCH)
    with seeds.initialisation(0, "autoencoder"):
        autoencoder, denoiser = fitting_autoencoder((1, 8, 8), 8, width=4), dncnn(1, 3, 4)
    defense = train(
        client,
        load_images("digits", "train", limit=44),
        method="ZO-AE-DS",
        sigma=0.25,
        schedule=Schedule((Phase(2, 3e-3), Phase(2, 1e-2, "sgd")), 16),
        seed=0,
        estimator=ESTIMATORS[estimator],
        gamma=1.0,
        denoiser=denoiser,
        autoencoder=autoencoder,
        out=out,
        checkpoint_every=2,
    )
    defense.save(f"{out}/defense")


def start(out: Path, estimator: str, pause: float) -> ForkServerProcess:
    out.mkdir(exist_ok=True)
    return started(train_digits, str(out), estimator, pause)


def asked(out: Path) -> list[int]:
    calls = out / "calls"
    # A line that is still being written has no end yet.
    return [int(line) for line in calls.read_text(encoding="utf-8").split("\n")[:-1]] if calls.exists() else []


def spending(out: Path) -> QueryClient:
    """The meter of a finished run."""
    return QueryClient(as_blackbox(lambda x: x, "logits"), ledger=out / "ledger.sqlite")


@pytest.mark.kill
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill as a crash does")
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_killed_process_loses_the_batch_in_flight_and_changes_no_weight(tmp_path: Path, estimator: str) -> None:
    plain, out, moments = tmp_path / "plain", tmp_path / "out", random.Random(0)
    assert status(start(plain, estimator, 0.0)) == 0
    spread = len(asked(plain)) // (KILLS + 2)  # it cannot finish before
    for _ in range(KILLS):
        goal = len(asked(out)) + moments.randint(1, spread)
        process = start(out, estimator, 0.002)
        try:
            while len(asked(out)) < goal and process.is_alive():
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.02))
        finally:
            process.kill()
        assert status(process) == -signal.SIGKILL
    assert status(start(out, estimator, 0.0)) == 0

    assert (out / "rows.jsonl").read_bytes() == (plain / "rows.jsonl").read_bytes()
    for file in ("checkpoint.safetensors", "defense/defense.safetensors"):
        (tensors, _), (expected, _) = read_tensors(out / file), read_tensors(plain / file)
        assert tensors_digest(tensors) == tensors_digest(expected)
    undisturbed, killed = spending(plain), spending(out)
    assert undisturbed.queries == undisturbed.attempts == sum(asked(plain))
    spent = killed.spent
    canaries = spent.pop("canaries")  # nothing but its answers tells this box apart
    assert canaries in range(8, 8 * (KILLS + 1) + 1, 8)
    assert killed.queries - canaries == undisturbed.queries
    assert spent == undisturbed.spent
    assert killed.queries <= sum(asked(out)) <= killed.attempts == killed.queries + killed.lost
    assert killed.lost <= KILLS * BATCH

"""The command line: bad input is one line and status 2, a spent budget 3, and nothing paid for is ever lost."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from certibox.queries.ledger import Ledger
from certibox.records.certificates import CertificateRow, read_rows

IMAGES, CLASSES, N0, N = 12, 3, 10, 30
CHECK = 2  # queries that a function costs once a run: whether its answers depend on the batch
SIGMA = 0.3
BOX = '''
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

WEIGHTS = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
HERE = Path(__file__).parent


@dataclass
class Meter:  # annotations are text here: they are looked up in the module
    asked: int = 0

    def passes(self, images) -> bool:
        """Whether the box has more than `limit` images to answer, counting from the start of the process."""
        self.asked += len(images)
        limit = HERE / "limit"
        return limit.exists() and self.asked > int(limit.read_text())


METER = Meter()


def logits(images):
    return images.reshape(len(images), -1) @ WEIGHTS


def probabilities(images):
    powers = np.exp(logits(images))
    return powers / powers.sum(1, keepdims=True)


def labels(images):
    return logits(images).argmax(1)


def raises(images):
    if METER.passes(images):
        raise RuntimeError("the\\nendpoint is down")
    return logits(images)


def turns_nan(images):
    return logits(images) * (np.nan if METER.passes(images) else 1)


def turns_wider(images):
    return np.concatenate([logits(images)] * (2 if METER.passes(images) else 1), axis=1)


def interrupted(images):
    if METER.passes(images):
        raise KeyboardInterrupt
    return logits(images)


number = 3


class Model:
    pass
'''


@dataclass(frozen=True)
class Ran:
    """What a command left: its exit status and what it printed."""

    status: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one line of the error; only a progress bar and notes may stand above it."""
        *above, message = self.err.splitlines()
        assert all(
            re.match(r"(certifying|training|autoencoder) .*/s, |certibox [\w-]+: note: ", line) for line in above
        )
        return message


def furnish(place: Path) -> None:
    """A box, and images of it, in a folder."""
    (place / "box.py").write_text(BOX)
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (IMAGES, 1, 4, 4), dtype=np.uint8)
    np.savez(place / "images.npz", images=pixels, labels=np.arange(IMAGES) % CLASSES)
    np.savez(place / "unlabelled.npz", images=pixels)
    np.savez(place / "larger.npz", images=rng.integers(0, 256, (IMAGES, 1, 5, 5), dtype=np.uint8))


def certify(box: str = "box.py:logits", out: str = "out", more: str = "", outputs: str = "logits") -> str:
    rule = "" if "--rule" in more else "--rule fixed"  # so that what it spends is known
    settings = f"--outputs {outputs} --data images.npz {rule} --n0 {N0} --n {N} --alpha 0.01 --out {out}"
    sigma = "" if "--defense" in more or "--sigma" in more else f"--sigma {SIGMA}"
    return f"certify --model {box} {settings} {sigma} {more}"


def train(box: str = "box.py:logits", out: str = "run", more: str = "", method: str = "ZO-DS") -> str:
    settings = f"--outputs logits --data images.npz --sigma {SIGMA} --train-batch-size 4 --epochs 1"
    queries = "" if method == "DS" else "--gamma 1 --mu 0.05"
    return f"train --model {box} --method {method} {settings} {queries} --out {out} {more}"


AE = "--d-z 4 --autoencoder-epochs 2"


def timeless(path: Path | str) -> list[CertificateRow]:
    return [replace(row, seconds=0.0) for row in read_rows(path)]


def votes(path: Path | str) -> list[tuple[int, ...]]:
    return [row.counts for row in read_rows(path)]


def totals(path: Path | str) -> tuple[int, int, int]:
    """(answered, attempted, lost) of a ledger that exists."""
    assert Path(path).is_file()
    ledger = Ledger(path)
    try:
        return ledger.totals()
    finally:
        ledger.close()

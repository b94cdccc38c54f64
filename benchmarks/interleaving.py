"""What a stopping rule costs above the votes that it draws: ratios within one run, and the time of a look.

    python benchmarks/interleaving.py [--write] [--tiny]

1. `certify_dataset` of random smooth images 3x32x32 by a small convolutional network in this process, with the default
   rule (radii sigma/2, sigma, 2 sigma; sigma 0.25, alpha 0.001) and with a fixed n that draws as many samples: samples
   a second of the rule over those of the fixed n, the two in turn, with one torch thread and with two, on a quiet
   machine and beside one busy process. Goal: a median of at least 0.9.
2. Microseconds of one look at the votes, from those that come to what is wanted next, the final bound included, for
   images that look often and for images that look seldom. Goal: at most 50 on average, whatever the number of looks.

`--write` puts the figures into benchmarks/results/interleaving.json.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import certibox as cb
from certibox.certification.pieces import ESTIMATE, Certifying, Drawn
from certibox.paper.logbook import destination, hardware, parser, versions
from certibox.storage.files import write_json_atomic
from remote import RULE, SIGMA

RESULT = Path(__file__).parent / "results" / "interleaving.json"
N0, ALPHA = 25, 0.001


@dataclass(frozen=True)
class Size:
    """How large the benchmark is."""

    images: int
    """Number of images that are certified."""
    most: int
    """Most votes of a certificate."""
    rounds: int
    """Number of pairs of runs, of which the median counts."""
    looked: int
    """Number of certificates whose looks are timed."""


FULL = Size(images=60, most=100_000, rounds=5, looked=200)
TINY = Size(images=3, most=300, rounds=1, looked=5)


def network() -> nn.Module:
    """A small convolutional network, random but the same each time; its classes are about equally likely."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
        last = nn.Linear(128, 10)
        made = nn.Sequential(*layers, nn.Flatten(), last).eval()
        with torch.no_grad():
            last.bias -= made(pictures(64).floats()).mean(0)
            last.weight *= 8
    return made


def pictures(count: int) -> cb.Images:
    """Smooth random images."""
    coarse = torch.rand((count, 3, 4, 4), generator=torch.Generator().manual_seed(1))
    smooth = nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    return cb.load_images((smooth * 255).to(torch.uint8))


def busy() -> AbstractContextManager[Any]:
    """Another process that computes without a pause, until the block ends."""
    process = subprocess.Popen([sys.executable, "-c", "while True: sum(range(10000))"])

    class Ended(AbstractContextManager[None]):
        def __exit__(self, *_: object) -> None:
            process.kill()
            process.wait()

    return Ended()


def ratios(size: Size) -> dict[str, Any]:
    """Samples a second of the rule over those of a fixed n, by threads and company."""
    images, found = pictures(size.images), dict[str, Any]()
    smoothed = cb.SmoothedClassifier(network(), 10, SIGMA)
    smoothed.batch_check.skip()

    def rate(sampling: cb.Sampling) -> tuple[float, int]:
        started = time.perf_counter()
        rows = cb.certify_dataset(smoothed, images, sampling=sampling, seed=0)
        samples = sum(row.queries for row in rows)
        return samples / (time.perf_counter() - started), samples

    _, samples = rate(cb.Sampling(N0, size.most, ALPHA, RULE))  # warms up too
    fixed = cb.Sampling(N0, max(100, samples // len(images) - N0), ALPHA)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for beside, company in (("quiet", nullcontext), ("beside one busy process", busy)):
            with company():
                pairs = [rate(cb.Sampling(N0, size.most, ALPHA, RULE))[0] / rate(fixed)[0] for _ in range(size.rounds)]
            name = f"{threads} thread{'s' if threads > 1 else ''}, {beside}"
            found[name] = {"median": round(statistics.median(pairs), 3), "all": [round(pair, 3) for pair in pairs]}
    return found | {"samples_an_image": samples // len(images)}


def looks(size: Size) -> dict[str, Any]:
    """Microseconds of a look, by the number of looks that a certificate takes."""
    drawn, sampling = Drawn(cb.Gaussian(SIGMA), 0, 2), cb.Sampling(N0, size.most, ALPHA, RULE)
    sizes = sampling.sizes(drawn.law, 2)
    x, rng, found = torch.zeros(1, 1, 1), np.random.default_rng(0), dict[int, list[float]]()
    for repetition in range(2):  # the first fills what is computed once for all images
        for share in np.linspace(0.5, 0.9999, size.looked):
            one = Certifying(x, drawn, 2, sampling, sizes, 1.0)
            spent = 0.0
            while one.wanted:
                piece = one.begin(size.most)
                wins = rng.binomial(piece.stop - piece.start, share) if piece.name == ESTIMATE else piece.stop
                votes = np.array([piece.stop - piece.start - wins, wins])
                started = time.perf_counter()
                one.take(piece, votes)
                spent += time.perf_counter() - started
            if repetition:
                found.setdefault(len(one.looks), []).append(spent / len(one.looks) * 1e6)
    few = [value for count, values in found.items() if count <= 10 for value in values]
    many = [value for count, values in found.items() if count > 10 for value in values]
    every = [(count, value) for count, values in found.items() for value in values]
    mean = sum(count * value for count, value in every) / sum(count for count, _ in every)
    return {
        "mean": round(mean, 1),
        "of_certificates_with_at_most_10": round(statistics.median(few), 1) if few else None,
        "of_certificates_with_more": round(statistics.median(many), 1) if many else None,
        "most_looks": max(found),
        "goal": 50,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--write", action="store_true", help="write the result")
    options = options.parse_args(arguments)
    size = TINY if options.tiny else FULL
    before = torch.get_num_threads()
    row = {"rule_over_fixed": ratios(size), "goal": 0.9, "microseconds_a_look": looks(size)}
    torch.set_num_threads(before)
    row |= {"hardware": hardware("cpu"), "versions": versions()}
    print(json.dumps(row, indent=2))
    if options.write:
        write_json_atomic(destination(options, RESULT), row)


if __name__ == "__main__":
    main()

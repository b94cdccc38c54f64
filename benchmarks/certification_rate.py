"""What certification costs above the base classifier: noise, votes and statistics, as ratios within one run.

    python benchmarks/certification_rate.py [--write] [--tiny]

Measures three things on the CPU with 2 torch threads, sigma 0.25, alpha 0.001, float32, random weights:

1. samples/s through `SmoothedClassifier.certify` over samples/s of the bare network on as many noisy samples, ready
   before the clock starts, in the same batches of 1,000, for the `mnist-cnn` network (1-16-32 channels, 64 hidden
   units, 10 classes) at 28x28; n = 10,000 samples (n0 = 1,000 of them), 31 pairs timed in turn. Goal: a median ratio
   of at least 0.93.
2. microseconds a sample that certification adds to a linear model 784 -> 10; n = 100,000 (n0 = 1,000 of them), 31
   pairs. Goal: at most 4.
3. growth of the peak memory (RSS) of a process from n = 1,000 to n = 1,000,000, linear model; the median
   of three processes each, for the allocator keeps one to three batches (3 MiB each) as it happens.
   Goal: flat, which here means below 8 MiB: two batches of noise.

Hardware and versions are printed with the result; `--write` puts both into benchmarks/results/certification_rate.json.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from certibox.certification.noise import noisy_batches
from certibox.certification.smoothing import SmoothedClassifier
from certibox.confidence import Gaussian
from certibox.networks import mnist_cnn
from certibox.paper.logbook import destination, hardware, parser, versions
from certibox.storage.files import write_json_atomic

BATCH, THREADS, N0 = 1000, 2, 1000
SIGMA, ALPHA = 0.25, 0.001
RESULT = Path(__file__).parent / "results" / "certification_rate.json"
Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Size:
    """How large the benchmark is."""

    pairs: int
    """Number of timed pairs of raw and certified samples."""
    cnn: int
    """Number of samples of the convolutional network in a pair."""
    linear: int
    """Number of samples of the linear model in a pair."""
    peaks: tuple[int, int]
    """Sample sizes n between which the peak memory grows."""
    processes: int
    """Number of processes whose median peak is taken."""


FULL = Size(pairs=31, cnn=10_000, linear=100_000, peaks=(1_000, 1_000_000), processes=3)
TINY = Size(pairs=2, cnn=2_000, linear=2_000, peaks=(1_000, 2_000), processes=1)


def linear() -> Model:
    """784 -> 10."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))


def image() -> Tensor:
    """Random pixels (1, 28, 28)."""
    return torch.rand(1, 28, 28, generator=torch.Generator().manual_seed(0))


def ready_batches() -> list[Tensor]:
    """Noisy batches as certification makes them: how fast max-pooling runs depends on the pixels."""
    return list(noisy_batches(image(), Gaussian(SIGMA), 0, 10 * BATCH, BATCH, (0, "benchmark")))


def raw_seconds(model: Model, samples: int, batches: list[Tensor]) -> float:
    """The bare model on `samples` images in batches that were ready before the clock started."""
    with torch.inference_mode():
        started = time.perf_counter()
        for i in range(samples // BATCH):
            model(batches[i % len(batches)])
        return time.perf_counter() - started


def certify_seconds(model: Model, samples: int) -> float:
    """One certificate that asks the model for `samples` images in all."""
    smoothed, x = SmoothedClassifier(model, 10, SIGMA), image()
    started = time.perf_counter()
    smoothed.certify(x, n0=N0, n=samples - N0, alpha=ALPHA, seed=0, batch_size=BATCH)
    return time.perf_counter() - started


def pairs(model: Model, samples: int, count: int) -> list[tuple[float, float]]:
    """(raw, certify) seconds, taken in turn so that what slows the machine slows both; the first pair warms up."""
    batches = ready_batches()
    return [(raw_seconds(model, samples, batches), certify_seconds(model, samples)) for _ in range(count + 1)][1:]


def spread(values: list[float], digits: int) -> dict[str, float]:
    """Median and extremes."""
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in figures.items()}


def peak_rss_mib(n: int) -> float:
    """Peak RSS of a fresh process that certifies one image with n samples."""
    command = [sys.executable, __file__, "--peak", str(n)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def own_peak_mib() -> float:
    """Peak RSS of this process. Linux: from /proc, since there getrusage starts at the peak of the parent process."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def measure(size: Size) -> dict[str, Any]:
    """All of the result."""
    cnn = pairs(mnist_cnn().eval(), size.cnn, size.pairs)
    flat, microseconds = pairs(linear(), size.linear, size.pairs), 1e6 / size.linear
    small, large = (statistics.median(peak_rss_mib(n) for _ in range(size.processes)) for n in size.peaks)
    peaks = {f"n={n}": round(peak, 1) for n, peak in zip(size.peaks, (small, large), strict=True)}
    return {
        "cnn_queries": size.cnn,
        "cnn_ratio": spread([raw / certified for raw, certified in cnn], 4),
        "cnn_raw_samples_per_s": spread([size.cnn / raw for raw, _ in cnn], 0),
        "linear_queries": size.linear,
        "linear_overhead_us_per_sample": spread([(certified - raw) * microseconds for raw, certified in flat], 3),
        "linear_raw_us_per_sample": spread([raw * microseconds for raw, _ in flat], 3),
        "peak_rss_mib": {**peaks, "growth": round(large - small, 1)},
        "goals": {"cnn_ratio": ">= 0.93", "linear_overhead_us_per_sample": "<= 4", "peak_rss_growth_mib": "< 8"},
        "pairs": size.pairs,
        "batch_size": BATCH,
        "torch_threads": torch.get_num_threads(),
        "hardware": hardware(),
        "versions": versions("scipy"),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--write", action="store_true", help="write the result")
    options.add_argument("--peak", type=int, metavar="N", help="print this process's peak RSS in MiB after n = N")
    options = options.parse_args(arguments)
    torch.set_num_threads(THREADS)
    if options.peak:
        certify_seconds(linear(), options.peak + N0)
        print(own_peak_mib())
        return
    result = measure(TINY if options.tiny else FULL)
    print(json.dumps(result, indent=2))
    if options.write:
        write_json_atomic(destination(options, RESULT), result)


if __name__ == "__main__":
    main()

"""What certification costs above the base classifier, as users meet it: ratios within one run.

    python benchmarks/certification_rate.py [--write] [--tiny]

A certificate is asked for as the command line does: `certify_dataset` on a `QueryClient` with a ledger and its
defaults, rows and votes on disk. Beside it, *bare*: `SmoothedClassifier.certify` on the network itself, in batches of
1,000. All on the CPU, sigma 0.25, alpha 0.001, float32, random weights, with one torch thread and with two:

1. samples/s through certification over the best raw rate of the network: the fastest of two memory formats
   (contiguous, channels last) and five batch sizes (64 to 1,000), on noisy samples that were ready before the clock
   started. `mnist-cnn` (1-16-32 channels, 64 hidden units, 10 classes) at 28x28; n = 10,000 samples (n0 = 1,000 of
   them), 31 pairs timed in turn. Goal: a median ratio of at least 0.93.
2. microseconds a sample that certification adds to a linear model 784 -> 10 and to the noise itself; n = 100,000 (n0 =
   1,000 of them), 31 triples of model, noise and certificate, timed in turn. Goal: at most 4.
3. growth of the peak memory (RSS) of a process from n = 1,000 to n = 1,000,000, linear model; the median
   of three processes each, for the allocator keeps one to three batches (3 MiB each) as it happens.
   Goal: flat, which here means below 8 MiB: two batches of noise.

Hardware and versions are printed with the result; `--write` puts both into benchmarks/results/certification_rate.json.
"""

from __future__ import annotations

import copy
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from certibox.blackbox import as_blackbox
from certibox.certification import certify_dataset
from certibox.certification.noise import noisy
from certibox.certification.smoothing import SmoothedClassifier
from certibox.confidence import Gaussian
from certibox.data import Images
from certibox.networks import mnist_cnn
from certibox.paper.logbook import destination, hardware, parser, versions
from certibox.queries import QueryClient
from certibox.storage.files import write_json_atomic

BATCH, N0 = 1000, 1000
THREADS = (1, 2)
SIZES = (64, 128, 256, 512, 1000)  # raw batch sizes
SIGMA, ALPHA = 0.25, 0.001
RESULT = Path(__file__).parent / "results" / "certification_rate.json"
Certify = Callable[[int], float]  # samples in all -> seconds


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


def linear() -> nn.Module:
    """784 -> 10."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()


def picture() -> Images:
    """One image (1, 28, 28) of random pixels."""
    return Images(
        torch.randint(0, 256, (1, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        None,
        "random",
    )


def noise(samples: int) -> Iterator[Tensor]:
    """Noisy batches as certification makes them: how fast max-pooling runs depends on the pixels."""
    x, kept = picture().floats()[0], dict[int, Tensor]()
    for start in range(0, samples, BATCH):
        batch = torch.empty((min(BATCH, samples - start), *x.shape))
        noisy(x, Gaussian(SIGMA), start, (0, "benchmark"), batch, kept)
        yield batch


def noise_seconds(samples: int) -> float:
    """The noise alone."""
    started = time.perf_counter()
    for batch in noise(samples):
        del batch
    return time.perf_counter() - started


def raw_seconds(network: nn.Module, samples: int, ready: list[Tensor], size: int) -> float:
    """The network on `samples` images that were ready before the clock started, `size` at a time."""
    parts = [part for batch in ready for part in batch.split(size)]
    with torch.inference_mode():
        started, done, place = time.perf_counter(), 0, 0
        while done < samples:
            network(parts[place % len(parts)])
            done, place = done + len(parts[place % len(parts)]), place + 1
        return (time.perf_counter() - started) * samples / done


def fastest(network: nn.Module, samples: int) -> tuple[nn.Module, list[Tensor], int, str]:
    """The network and its inputs in the memory format and batch size of the best raw rate, and what these are."""
    found = []
    for name, layout in (("contiguous", torch.contiguous_format), ("channels last", torch.channels_last)):
        laid = copy.deepcopy(network).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        ready = [batch.contiguous(memory_format=layout) for batch in noise(10 * BATCH)]
        for size in SIZES:
            seconds = min(raw_seconds(laid, samples, ready, size) for _ in range(3))
            found.append((seconds, laid, ready, size, f"{name}, {size} at a time"))
    return min(found, key=lambda one: one[0])[1:]


def metered(network: nn.Module, folder: Path) -> Certify:
    """A certificate as users ask for it: through a meter with a ledger, rows and votes on disk."""
    client = QueryClient(as_blackbox(copy.deepcopy(network), outputs="logits"), ledger=folder / "ledger.sqlite")
    smoothed, images, numbers = SmoothedClassifier(client, 10, SIGMA), picture(), count()

    def seconds(samples: int) -> float:
        number = next(numbers)
        started = time.perf_counter()
        certify_dataset(
            smoothed,
            images,
            n0=N0,
            n=samples - N0,
            alpha=ALPHA,
            seed=number,
            out=folder / f"{number}.jsonl",
        )
        return time.perf_counter() - started

    return seconds


def bare(network: Callable[[Tensor], Tensor]) -> Certify:
    """A certificate of the network itself."""
    smoothed, x, numbers = SmoothedClassifier(network, 10, SIGMA), picture().floats()[0], count()

    def seconds(samples: int) -> float:
        seed = next(numbers)
        started = time.perf_counter()
        smoothed.certify(x, n0=N0, n=samples - N0, alpha=ALPHA, seed=seed, batch_size=BATCH)
        return time.perf_counter() - started

    return seconds


def in_turn(jobs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every job, round by round, so that what slows the machine slows all; two rounds warm up."""
    times = [{name: job() for name, job in jobs.items()} for _ in range(rounds + 2)][2:]
    return {name: [row[name] for row in times] for name in jobs}


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


def of_network(size: Size, folder: Path) -> dict[str, Any]:
    """Certification of the convolutional network, as a share of its best raw rate."""
    network = mnist_cnn().eval()
    laid, ready, at_once, what = fastest(network, size.cnn)
    ways = {"metered": metered(network, folder), "bare": bare(network)}
    jobs = {"raw": lambda: raw_seconds(laid, size.cnn, ready, at_once)}
    times = in_turn(jobs | {name: partial(way, size.cnn) for name, way in ways.items()}, size.pairs)
    ratios = {name: [raw / own for raw, own in zip(times["raw"], times[name], strict=True)] for name in ways}
    rates = [size.cnn / seconds for seconds in times["raw"]]
    return {
        "cnn_raw": what,
        "cnn_raw_samples_per_s": spread(rates, 0),
        **{f"cnn_ratio_{name}": spread(values, 4) for name, values in ratios.items()},
    }


def of_linear(size: Size, folder: Path) -> dict[str, Any]:
    """What certification adds to a linear model and to the noise, in microseconds a sample."""
    network, microseconds = linear(), 1e6 / size.linear
    laid, ready, at_once, what = fastest(network, size.linear)
    ways = {"metered": metered(network, folder), "bare": bare(network)}
    jobs = {"raw": lambda: raw_seconds(laid, size.linear, ready, at_once), "noise": lambda: noise_seconds(size.linear)}
    times = in_turn(jobs | {name: partial(way, size.linear) for name, way in ways.items()}, size.pairs)
    own = list(zip(times["raw"], times["noise"], strict=True))
    added = {
        name: [(whole - raw - drawn) * microseconds for whole, (raw, drawn) in zip(times[name], own, strict=True)]
        for name in ways
    }
    return {
        "linear_raw": what,
        "linear_raw_us_per_sample": spread([raw * microseconds for raw, _ in own], 3),
        "noise_us_per_sample": spread([drawn * microseconds for _, drawn in own], 3),
        **{f"linear_added_us_per_sample_{name}": spread(values, 3) for name, values in added.items()},
    }


def measure(size: Size) -> dict[str, Any]:
    """All of the result."""
    by_threads = {}
    for threads in THREADS:
        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory() as folder:
            found = of_network(size, Path(folder) / "cnn") | of_linear(size, Path(folder) / "linear")
        by_threads[f"{threads} threads" if threads > 1 else "1 thread"] = found
    small, large = (statistics.median(peak_rss_mib(n) for _ in range(size.processes)) for n in size.peaks)
    peaks = {f"n={n}": round(peak, 1) for n, peak in zip(size.peaks, (small, large), strict=True)}
    return {
        "cnn_queries": size.cnn,
        "linear_queries": size.linear,
        **by_threads,
        "peak_rss_mib": {**peaks, "growth": round(large - small, 1)},
        "goals": {"cnn_ratio": ">= 0.93", "linear_added_us_per_sample": "<= 4", "peak_rss_growth_mib": "< 8"},
        "rounds": size.pairs,
        "hardware": hardware(),
        "versions": versions("scipy"),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--write", action="store_true", help="write the result")
    options.add_argument("--peak", type=int, metavar="N", help="print this process's peak RSS in MiB after n = N")
    options = options.parse_args(arguments)
    torch.set_num_threads(max(THREADS))
    if options.peak:
        bare(linear())(options.peak + N0)
        print(own_peak_mib())
        return
    result = measure(TINY if options.tiny else FULL)
    print(json.dumps(result, indent=2))
    if options.write:
        write_json_atomic(destination(options, RESULT), result)


if __name__ == "__main__":
    main()

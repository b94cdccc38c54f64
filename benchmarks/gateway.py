"""What the gateway costs: throughput beside `certify_dataset`, latency by the number of clients, its own share, memory.

    python benchmarks/gateway.py [--write] [--tiny] [--only NAME ...]

The gateway, `certibox serve`, runs in a process of its own with one torch thread, its clients in another. Requests are
in binary form and hold one image 3x32x32, as smooth as noise that was made large.

1. `throughput`: noise samples a second through the gateway at 16 clients, over those of `certify_dataset` of as many
   images by the same network, with the same votes (radii sigma/2, sigma, 2 sigma; at most 1,000 an image), in turn.
   Goal: at least 0.85.
2. `latency`: seconds of a certificate at 1, 4, 16 and 64 clients, the median and the 99th percentile.
3. `added`: milliseconds of a request where the box answers at once and the fewest votes are drawn that can be an
   answer (a prediction at alpha 0.5). Goal: a median of at most 3.
4. `memory`: megabytes that the process takes after so many requests. Goal: flat over 100,000.

`--write` puts the figures into benchmarks/results/gateway.json.
"""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import certibox as cb
from certibox.paper.logbook import destination, hardware, parser, versions
from certibox.storage.files import write_json_atomic
from interleaving import network, pictures

RESULT = Path(__file__).parent / "results" / "gateway.json"
SIGMA, ALPHA, N0, MOST, SHAPE = 0.25, 0.001, 25, 1000, (3, 32, 32)
BOXES = """
import numpy as np, sys
sys.path.insert(0, {here!r})
from interleaving import network
convolutions = network()
def at_once(x):
    return np.tile(np.eye(10)[3], (len(x), 1))
"""


@dataclass(frozen=True)
class Size:
    """How large the benchmark is."""

    images: int
    """Number of images of a run."""
    rounds: int
    """Number of pairs of runs, of which the median counts."""
    clients: tuple[int, ...]
    """Numbers of clients at once."""
    at_once: int
    """Number of requests whose own share is timed."""
    soak: int
    """Number of requests after which memory is read, ten times."""


FULL = Size(images=480, rounds=3, clients=(1, 4, 16, 64), at_once=3000, soak=10_000)
TINY = Size(images=8, rounds=1, clients=(1, 2), at_once=20, soak=5)


class Load(NamedTuple):
    """What clients saw."""

    seconds: float
    """Seconds that all requests took together."""
    latencies: list[float]
    """Seconds of each request."""
    queries: int
    """Queries that the answers name."""

    def quantiles(self) -> dict[str, float]:
        """The median and the 99th percentile of the latencies, in seconds."""
        low, high = np.quantile(self.latencies, [0.5, 0.99])
        return {"p50_s": round(float(low), 4), "p99_s": round(float(high), 4)}


class Server(NamedTuple):
    """A gateway that runs."""

    port: int
    process: subprocess.Popen[str]

    @property
    def megabytes(self) -> float:
        """Resident memory of its process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def serving(box: str, *more: str, shape: tuple[int, ...] = SHAPE) -> Iterator[Server]:
    """A gateway in front of one of `BOXES`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "box.py"
        file.write_text(BOXES.format(here=str(Path(__file__).parent)))
        command = [sys.executable, "-m", "certibox.cli", "serve", "--model", f"{file}:{box}", "--outputs", "logits"]
        command += ["--sigma", str(SIGMA), "--num-classes", "10", "--image-shape", json.dumps(shape), "--port", "0"]
        command += ["--page", "false", "--out", str(Path(folder) / "out"), *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=quiet, text=True, env=environment) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            try:
                yield Server(int(line.split(";")[0].rpartition(":")[2]), process)
            finally:
                process.terminate()
                process.stdout.read()


def body_of(image: np.ndarray, parameters: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    """A request in binary form, and its headers."""
    raw = image.astype("<f4").tobytes()
    tensor = {"name": "input", "shape": [1, *image.shape], "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": len(raw)}
    outputs = [{"name": name} for name in ("label", "queries")]
    head = json.dumps({"inputs": [tensor], "outputs": outputs, "parameters": parameters}).encode()
    return head + raw, {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}


def load(port: int, images: np.ndarray, clients: int, requests: int, parameters: dict[str, Any]) -> Load:
    """Ask with so many clients at once; each image of a run is another one, for the same has the same noise."""
    latencies, queries = list[float](), list[int]()
    left = iter(range(requests))
    lock = threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            with lock:
                i = next(left, None)
            if i is None:
                break
            body, headers = body_of(images[i % len(images)], parameters)
            began = time.perf_counter()
            connection.request("POST", "/v2/models/defended/infer", body, headers)
            response = connection.getresponse()
            text = response.read()
            latencies.append(time.perf_counter() - began)
            if response.status != 200:
                raise RuntimeError(text.decode())
            queries.append(json.loads(text)["outputs"][1]["data"][0])
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(queries) != requests:
        raise RuntimeError(f"{len(queries)} of {requests} requests were answered")
    return Load(time.perf_counter() - began, latencies, sum(queries))


def data_set(images: cb.Images) -> float:
    """Samples a second of `certify_dataset`."""
    smoothed = cb.SmoothedClassifier(network(), 10, SIGMA)
    rule = cb.EProcess(radii=(SIGMA / 2, SIGMA, 2 * SIGMA))
    began = time.perf_counter()
    rows = cb.certify_dataset(smoothed, images, sampling=cb.Sampling(N0, MOST - N0, ALPHA, rule), seed=0)
    return sum(row.queries for row in rows) / (time.perf_counter() - began)


def throughput(size: Size) -> dict[str, Any]:
    """Samples a second at 16 clients over those of `certify_dataset`."""
    images = pictures(size.images)
    arrays = images.floats().numpy()
    pairs, rates = [], []
    with serving("convolutions") as server:
        load(server.port, arrays[:4], 4, 8, {})
        for _ in range(size.rounds):
            alone = data_set(images)
            found = load(server.port, arrays, 16, size.images, {})
            pairs.append(found.queries / found.seconds / alone)
            rates.append(alone)
    median = round(statistics.median(pairs), 3)
    return {
        "ratio": median,
        "all": [round(pair, 3) for pair in pairs],
        "data_set_a_second": round(max(rates)),
        "goal": 0.85,
    }


def latency(size: Size) -> dict[str, Any]:
    """Seconds of a certificate, by the number of clients."""
    arrays = pictures(size.images).floats().numpy()
    found = {}
    with serving("convolutions", "--max-waiting", "512") as server:
        load(server.port, arrays[:4], 4, 8, {})
        for clients in size.clients:
            seen = load(server.port, arrays, clients, max(clients * 4, size.images // 2), {})
            found[f"{clients} clients"] = {**seen.quantiles(), "samples_a_second": round(seen.queries / seen.seconds)}
    return found


def added(size: Size) -> dict[str, Any]:
    """Milliseconds of a request where the box answers at once."""
    found = {}
    for shape in ((1, 28, 28), SHAPE):
        arrays = np.random.default_rng(0).random((8, *shape), np.float32)
        with serving("at_once", shape=shape) as server:
            fewest = {"certify": False, "alpha": 0.5, "max_queries": 20}
            load(server.port, arrays, 1, size.at_once // 10, fewest)
            seen = load(server.port, arrays, 1, size.at_once, fewest)
        milliseconds = {key.replace("_s", "_ms"): round(1000 * value, 2) for key, value in seen.quantiles().items()}
        found["x".join(map(str, shape))] = {**milliseconds, "votes": seen.queries / size.at_once}
    return {**found, "goal_ms": 3}


def memory(size: Size) -> dict[str, Any]:
    """Megabytes after so many requests."""
    arrays = pictures(64).floats().numpy()
    found = {}
    with serving("at_once") as server:
        fewest = {"certify": False, "alpha": 0.5, "max_queries": 20}
        for tenth in range(1, 11):
            load(server.port, arrays, 8, size.soak, fewest)
            found[f"{tenth * size.soak}"] = round(server.megabytes, 1)
    return {"megabytes": found}


PARTS = {"throughput": throughput, "latency": latency, "added": added, "memory": memory}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--write", action="store_true", help="write the result")
    options.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts to measure")
    options = options.parse_args(arguments)
    size = TINY if options.tiny else FULL
    torch.set_num_threads(1)
    place = destination(options, RESULT)
    row: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {}
    row |= {name: PARTS[name](size) for name in options.only}
    row |= {"hardware": hardware("cpu"), "versions": versions()}
    print(json.dumps(row, indent=2))
    if options.write:
        write_json_atomic(place, row)


if __name__ == "__main__":
    main()

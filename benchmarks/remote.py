"""Certification of a remote model against the rate at which its server answers: ratios within one run.

    python benchmarks/remote.py [--write] [--tiny]

A server in another process speaks the Open Inference Protocol in binary form, waits 50 ms before every answer, and
serves a logistic regression on the digits of scikit-learn. Asked with 32 images a request:

1. `blind`: requests that are ready, sent by as many threads as the client uses, nobody looking at the answers. The rate
   that no client can beat.
2. `certify`: `certify_dataset` of 200 digits with the default rule (radii sigma/2, sigma, 2 sigma; sigma 0.25, alpha
   0.001, n at most 10,000), through a `QueryClient` with a ledger, rows and votes on disk. Goal: at least 0.9 of blind.
3. `one at a time`: the same for a few digits, one image after the other and one request after the other.

Beside it the time that the client adds to a request of 3x32x32 images, in binary form and as JSON: microseconds an
image above those of the same bytes sent blindly, to a server that does not wait. Goal: at most 60 in binary form.

`--write` puts the figures into benchmarks/results/remote.json.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import certibox as cb
from certibox.blackbox import InferenceProtocolBox
from certibox.paper.logbook import destination, hardware, parser, versions
from certibox.storage.files import write_json_atomic

RESULT = Path(__file__).parent / "results" / "remote.json"
SIGMA, CALLS, AT_ONCE, LATENCY = 0.25, 8, 32, 0.05
RULE = cb.EProcess(radii=(SIGMA / 2, SIGMA, 2 * SIGMA))


@dataclass(frozen=True)
class Size:
    """How large the benchmark is."""

    digits: int
    """Number of digits that are certified."""
    alone: int
    """Number of digits that are certified one at a time."""
    most: int
    """Most votes of a certificate."""
    rounds: int
    """Number of rounds, of which the median counts."""
    requests: int
    """Number of requests whose overhead is timed."""


FULL = Size(digits=200, alone=3, most=10_000, rounds=3, requests=200)
TINY = Size(digits=3, alone=1, most=300, rounds=1, requests=3)


# ---------------------------------------------------------------------------------------------------------- the server


def weights() -> tuple[np.ndarray, np.ndarray]:
    """A logistic regression on the digits, pixels on [0, 1]."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    pixels, labels = load_digits(return_X_y=True)
    model = LogisticRegression(max_iter=200).fit(pixels[:1000] / 16, labels[:1000])
    return model.coef_.astype(np.float32), model.intercept_.astype(np.float32)


async def request(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    """The head of the next request, in small letters, and its headers."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    return head, dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)


async def body_of(reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
    """The body of the request with these headers."""
    return await reader.readexactly(int(fields.get("content-length", 0)))


def whole(content: bytes, status: str = "200 OK", more: str = "") -> bytes:
    """The bytes of an answer."""
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(content)}\r\n{more}\r\n".encode() + content


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float, linear: Any) -> None:
    """One connection: requests until it is closed."""
    with_weights, bias = linear
    try:
        while True:
            head, fields = await request(reader)
            body = await body_of(reader, fields)
            more, content = "", b'{"name": "slow", "extensions": ["binary_tensor_data"]}'
            if head.startswith("post"):
                length = int(fields.get("inference-header-content-length", len(body)))
                asked = json.loads(body[:length])
                tensor = asked["inputs"][0]
                images = np.frombuffer(body[length:], "<f4") if length < len(body) else np.array(tensor["data"], "<f4")
                flat = images.reshape(tensor["shape"][0], -1)[:, :64]
                scores = (flat @ with_weights.T + bias).astype("<f4")
                one = {"name": "scores", "datatype": "FP32", "shape": list(scores.shape)}
                binary = length < len(body)
                one |= (
                    {"parameters": {"binary_data_size": scores.nbytes}} if binary else {"data": scores.ravel().tolist()}
                )
                told = json.dumps({"model_name": "m", "id": asked.get("id"), "outputs": [one]}).encode()
                content = told + (scores.tobytes() if binary else b"")
                more = f"inference-header-content-length: {len(told)}\r\n" if binary else ""
                await asyncio.sleep(seconds)
            writer.write(whole(content, more=more))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def serve(seconds: float) -> None:
    """Serve until the process is ended; the port is the first line of the output."""
    linear = weights()
    server = await asyncio.start_server(lambda r, w: answer(r, w, seconds, linear), "127.0.0.1", 0, limit=1 << 24)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


@contextmanager
def served(seconds: float) -> Iterator[str]:
    """The model's address at a server of its own process."""
    process = subprocess.Popen([sys.executable, __file__, "--serve", str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v2/models/m"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# ------------------------------------------------------------------------------------------------------------- clients


def blind(url: str, requests: int, calls: int, images: Tensor, binary: bool = True) -> float:
    """Seconds of requests that are ready, sent by so many threads."""
    box = InferenceProtocolBox(url, "logits", connection=cb.Connection(binary=binary))
    content, headers = box._request(images.numpy(), "0")
    with ThreadPoolExecutor(calls) as pool:
        list(pool.map(lambda _: box._server.post(content, headers), range(calls)))  # opens the connections
        started = time.perf_counter()
        list(pool.map(lambda _: box._server.post(content, headers), range(requests)))
        return time.perf_counter() - started


def certified(url: str, digits: cb.Images, most: int, calls: int, together: bool) -> tuple[float, int, int]:
    """Seconds, samples and requests of a certification as users start it."""
    with tempfile.TemporaryDirectory() as folder:
        box = cb.as_blackbox(url, outputs="logits", concurrency=calls)
        client = cb.QueryClient(box, ledger=Path(folder) / "ledger.sqlite")
        smoothed = cb.SmoothedClassifier(client, 10, SIGMA)
        smoothed.batch_check.skip()
        parts = [digits] if together else [digits.select([i]) for i in range(len(digits))]
        started, samples = time.perf_counter(), 0
        for i, part in enumerate(parts):
            sampling = cb.Sampling(25, most, 0.001, RULE)
            out = Path(folder) / f"{i}.jsonl"
            samples += sum(
                row.queries for row in cb.certify_dataset(smoothed, part, sampling=sampling, seed=0, out=out)
            )
        return time.perf_counter() - started, samples, client._meter.batches


def of_certification(size: Size) -> dict[str, Any]:
    """Rates of the three ways, in samples a second."""
    digits = cb.load_images("digits", "test").select(range(size.digits))
    ready = torch.rand(AT_ONCE, 1, 8, 8)
    rates: dict[str, list[float]] = {"blind": [], "certify": [], "one_at_a_time": []}
    ratios, filled = [], []
    with served(LATENCY) as url:
        for _ in range(size.rounds):
            seconds, samples, requests = certified(url, digits, size.most, CALLS, together=True)
            rate = AT_ONCE * requests / blind(url, requests, CALLS, ready)
            rates["certify"].append(samples / seconds)
            rates["blind"].append(rate)
            ratios.append(samples / seconds / rate)
            filled.append(samples / requests)
            alone, few, _ = certified(url, digits.select(range(size.alone)), size.most, 1, together=False)
            rates["one_at_a_time"].append(few / alone)
    return {
        "samples_a_second": {name: round(statistics.median(found), 1) for name, found in rates.items()},
        "certify_over_blind": round(statistics.median(ratios), 3),
        "images_a_request": round(statistics.median(filled), 1),
        "goal": 0.9,
    }


def of_overhead(size: Size) -> dict[str, Any]:
    """Microseconds an image that the client adds to a request of images 3x32x32."""
    images, found = torch.rand(AT_ONCE, 3, 32, 32), dict[str, float]()
    with served(0.0) as url:
        for name, binary in (("binary", True), ("json", False)):
            box = cb.as_blackbox(url, outputs="logits", connection=cb.Connection(binary=binary), concurrency=1)
            client, added = cb.QueryClient(box), []
            for _ in range(size.rounds):
                bare = blind(url, size.requests, 1, images, binary)
                started = time.perf_counter()
                for _ in range(size.requests):
                    client(images)
                added.append((time.perf_counter() - started - bare) / size.requests / AT_ONCE * 1e6)
            found[name] = round(statistics.median(added), 1)
    return {"microseconds_an_image": found, "goal": 60}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--write", action="store_true", help="write the result")
    options.add_argument("--serve", type=float, help="serve with this latency in seconds, and measure nothing")
    options = options.parse_args(arguments)
    if options.serve is not None:
        asyncio.run(serve(options.serve))
        return
    torch.set_num_threads(1)
    size = TINY if options.tiny else FULL
    row = {"certification": of_certification(size), "overhead": of_overhead(size), "size": vars(size)}
    row |= {"hardware": hardware("cpu"), "versions": versions()}
    print(json.dumps(row, indent=2))
    if options.write:
        write_json_atomic(destination(options, RESULT), row)


if __name__ == "__main__":
    main()

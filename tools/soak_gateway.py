"""A gateway under load, killed every minute, in front of a model that fails: are its answers and its books right?

python tools/soak_gateway.py --minutes 30 --write  the whole of it; the counts go into tools/results/soak_gateway.json
python tools/soak_gateway.py --tiny                some 25 seconds, with two kills and one restart of the model

The model is a server of its own, whose classes are known exactly. By a seeded schedule it is slow, refuses (503, 429),
fails (500), cuts the connection, answers NaN or half a body, and is killed and started again every 2.5 minutes. It
notes every image that it begins to answer. The gateway, `certibox serve`, is killed every minute, two times of three
without a warning, and started again in the same folder. Six clients ask for certificates and predictions, in JSON and
in binary form, with and without a budget; some hang up, some ask for what cannot be.

Every answer must be one of the protocol. At the end the audit log must follow from its votes and its seeds, each answer
that a client got must be in it, the votes must be those that the model gives here, and no budget may be overspent.
Exits with 1 where something is wrong, and says what.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import http.client
import json
import os
import random
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from certibox import SmoothedClassifier
    from certibox.certification.certificate import Certificate, Prediction
    from certibox.serving.audit import Entry

RESULT = Path(__file__).parent / "results" / "soak_gateway.json"
SHAPE, CLASSES, SIGMA, SEED = (3, 8, 8), 4, 0.25, 0
MOST_IMAGES, MOST_QUERIES, MOST_BODY, NO_LIMIT = 8, 1000, 1 << 16, 10**9
INFER = "/v2/models/defended/infer"
LENGTH = "Inference-Header-Content-Length"
KINDS = {"INT64": "<i8", "BOOL": "|b1", "FP64": "<f8", "FP32": "<f4"}
ERRORS = (402, 429, 502, 503, 504)  # that a good request may get
LATER = (402, 429, 502, 503)  # after which a client waits


@dataclass(frozen=True)
class Plan:
    """How long the soak takes, and how often things happen."""

    minutes: float
    """Minutes of load."""
    every: float
    """Seconds from the start of the gateway to its next kill."""
    upstream_every: float
    """Seconds from a start of the model to its next kill."""
    down: tuple[float, float]
    """Seconds that the model is away then, at least and at most."""
    wait: float
    """Seconds for which the gateway asks a busy model again."""
    recounts: int
    """Answers whose votes are counted again."""
    draws: int
    """Noisy copies of an image from which its true class is taken."""
    starting: float = 0.2
    """Share of kills after which the gateway is killed once more while it starts."""


# --- the model --------------------------------------------------------------------------------------------------------

SIGNS = np.random.default_rng(5).choice([-1.0, 1.0], (CLASSES, int(np.prod(SHAPE))))


def scores(images: np.ndarray) -> np.ndarray:
    """Probabilities (n, 4), float32, of images (n, 3, 8, 8): the same to the last bit, whatever else is in the batch.

    Args:
        images: Images, clipped to [0, 1] here.
    """
    whole = np.rint(np.clip(images.reshape(len(images), -1), 0, 1).astype(np.float64) * 2**16)
    found = whole @ SIGNS.T - 2.0**15 * SIGNS.sum(1)  # whole numbers, whose sums are exact in any order
    shares = ((found - found.min(1, keepdims=True)) * 2.0**-20 + 1) ** 2
    total = shares[:, 0] + shares[:, 1] + shares[:, 2] + shares[:, 3]
    return (shares / total[:, None]).astype(np.float32)


def pool() -> np.ndarray:
    """The 60 images that clients ask about, (60, 3, 8, 8); every fifth lies on the border of two classes."""
    chosen = np.random.default_rng(7)
    found = []
    for i in range(60):
        one, other = SIGNS[i % CLASSES], SIGNS[(i + 1) % CLASSES]
        if i % 5 == 4:
            found.append(0.5 + 0.1 * (one + other))
        else:
            found.append(0.5 + chosen.uniform(0.01, 0.12) * one + chosen.uniform(-0.03, 0.03, one.shape))
    return np.clip(np.array(found), 0, 1).astype(np.float32).reshape(-1, *SHAPE)


def fault(number: int, chosen: random.Random) -> str:
    """What goes wrong with a request; "" for nothing. Now and then more goes wrong than right.

    Args:
        number: Number of the request since the model was started.
        chosen: Generator of the schedule.
    """
    drawn = chosen.random()
    if number % 1000 in range(200, 212):
        return ("500", "cut", "nan", "torn", "503", "429", "", "")[int(drawn * 8)]
    shares = {"slow": 0.1, "503": 0.01, "429": 0.004, "500": 0.002, "cut": 0.002, "nan": 0.001, "torn": 0.001}
    for name, share in shares.items():
        if drawn < share:
            return name
        drawn -= share
    return ""


def serve_model(port: int, notes: str, start: int) -> None:
    """Answer as the model; never returns.

    Args:
        port: Port to listen at.
        notes: File to which a line is appended for each request: what became of it, and its number of images.
        start: Number of the start, which seeds the schedule.
    """
    chosen, lock, number = random.Random(1000 * SEED + start), threading.Lock(), iter(range(10**12))
    noted = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    ports = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, *SHAPE]}]}
    ports["outputs"] = [{"name": "p", "datatype": "FP32", "shape": [-1, CLASSES]}]
    pages = {
        "/v2": {"name": "soaked", "version": "1", "extensions": ["binary_tensor_data"]},
        "/v2/models/m": {"name": "m", "versions": ["1"], "platform": "numpy", **ports},
    }

    class Model(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def reply(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            page = pages.get(self.path)
            self.reply(200 if page else 404, json.dumps(page or {"error": "nothing here"}).encode())

        def do_POST(self) -> None:
            body, length = self.rfile.read(int(self.headers["Content-Length"])), int(self.headers[LENGTH])
            asked = json.loads(body[:length])
            images = np.frombuffer(body[length:], "<f4").reshape(asked["inputs"][0]["shape"])
            with lock:
                what, seconds = fault(next(number), chosen), chosen.uniform(0, 0.3)
                os.write(noted, f"{what or 'well'} {len(images)}\n".encode())
            if what in ("503", "429"):
                self.reply(int(what), b'{"error": "busy"}', {"Retry-After": "1"} if what == "429" else {})
                return
            found = scores(images)
            if what == "slow":
                time.sleep(seconds)
            elif what == "500":
                self.reply(500, b'{"error": "failed"}')
                return
            elif what == "cut":
                self.close_connection = True
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                return
            elif what == "nan":
                found = np.full_like(found, np.nan)
            answer = {"model_name": "m", "model_version": "1", "id": asked["id"], "outputs": [answered(found)]}
            head = json.dumps(answer).encode()
            if what == "torn":
                self.reply(200, head[: len(head) // 2])
            else:
                self.reply(200, head + found.tobytes(), {LENGTH: str(len(head))})

    def answered(found: np.ndarray) -> dict[str, Any]:
        about = {"name": "p", "datatype": "FP32", "shape": list(found.shape)}
        return {**about, "parameters": {"binary_data_size": found.nbytes}}

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: Any, client_address: Any) -> None:  # a client that is gone is no news
            pass

    Server(("127.0.0.1", port), Model).serve_forever()


# --- what is seen -----------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What clients and the keeper of the processes saw; all threads write to it."""

    counts: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    starts: list[str] = field(default_factory=list)
    """Why starts of the gateway failed."""
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """What must never be, with the texts of it, by its name in the result."""
    answers: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    """Outputs of each answered request, by its id."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, name: str, by: int = 1) -> None:
        """Count something."""
        with self.lock:
            self.counts[name] += by

    def wrong(self, name: str, text: str) -> None:
        """Note what must never be."""
        with self.lock:
            self.faults[name].append(text)
            if len(self.faults[name]) <= 5:
                print(f"WRONG, {name}: {text}", file=sys.stderr, flush=True)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


class Upstream:
    """The model's process, killed and started again by a thread of its own.

    Args:
        folder: Folder of its notes.
        plan: When it is killed.
        seen: What is seen.
    """

    def __init__(self, folder: Path, plan: Plan, seen: Seen) -> None:
        self.port, self.notes, self._plan, self._seen = free_port(), folder / "upstream.txt", plan, seen
        self._chosen, self._starts, self._ended = random.Random(SEED + 1), 0, threading.Event()
        self._process = self._started()
        self._thread = threading.Thread(target=self._keep)

    def __enter__(self) -> Upstream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._kill()

    def _started(self) -> subprocess.Popen[bytes]:
        self._starts += 1
        command = [sys.executable, __file__, "--upstream", str(self.port), str(self.notes), str(self._starts)]
        return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _keep(self) -> None:
        while not self._ended.wait(self._plan.upstream_every):
            self._kill()
            self._ended.wait(self._chosen.uniform(*self._plan.down))
            self._process = self._started()
            self._seen.count("upstream restarts")

    def noted(self) -> Counter[str]:
        """Images by what became of them."""
        found: Counter[str] = Counter()
        for line in self.notes.read_text().splitlines():
            what, images = line.split()
            found[what] += int(images)
        return found


class Gateway:
    """The gateway's process, its budgets and its books.

    Args:
        folder: Folder of its files.
        model: Port of the model.
        plan: How long it asks a busy model again.
        seen: What is seen.
    """

    def __init__(self, folder: Path, model: int, plan: Plan, seen: Seen) -> None:
        from certibox.serving.accounts import new_token

        self.out, self.tokens, self.log = folder / "out", folder / "tokens", folder / "gateway.log"
        self.port, self.budget, self.small, self.seen = free_port(), NO_LIMIT, NO_LIMIT, seen
        self.secrets = {name: new_token(self.tokens, name, None) for name in ("open", "small")}
        self.set_small(NO_LIMIT)
        options = {"--model": f"http://127.0.0.1:{model}/v2/models/m", "--outputs": "probabilities"}
        options |= {"--sigma": str(SIGMA), "--num-classes": str(CLASSES), "--image-shape": json.dumps(SHAPE)}
        options |= {"--port": str(self.port), "--tokens": str(self.tokens), "--audit": str(self.audit)}
        options |= {"--out": str(self.out), "--every": "20s", "--wait": str(plan.wait), "--timeout": "5"}
        options |= {"--n": "600", "--max-queries": str(MOST_QUERIES), "--max-images": str(MOST_IMAGES)}
        options |= {"--max-waiting": "12", "--max-body": str(MOST_BODY), "--answer-within": "10"}
        self._command = [
            sys.executable,
            "-m",
            "certibox.cli",
            "serve",
            *(word for pair in options.items() for word in pair),
        ]
        self._process: subprocess.Popen[str] | None = None
        self._down = [(0.0, float("inf"))]  # times at which it was away
        self._chosen = random.Random(SEED + 2)
        self.slowest = 0.0
        """Seconds that the slowest good end took."""

    @property
    def audit(self) -> Path:
        """The audit log."""
        return self.out.with_name("audit.jsonl")

    def was_down(self, start: float, stop: float) -> bool:
        """Whether it was away at some time between two."""
        return any(start <= until and stop >= since for since, until in self._down)

    def start(self, kill_first: bool = False) -> None:
        """Start it, until it serves; it may not while the model is away."""
        while True:
            with open(self.log, "a") as log:
                command = [*self._command, "--budget", str(self.budget)]
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                self._process = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
                )
            assert self._process.stdout is not None
            if kill_first:
                kill_first = False
                time.sleep(self._chosen.uniform(0.2, 4.0))
                self.seen.count("kills while it starts")
                self._process.kill()
                self._process.communicate()
                continue
            if self._process.stdout.readline().startswith("serving"):
                self._down[-1] = (self._down[-1][0], time.monotonic())
                return
            self._process.communicate()
            self._failed(self._process.returncode)

    def _failed(self, status: int) -> None:
        """A start that failed, which only the model and the budget may be the reason of."""
        reason = (self.log.read_text().splitlines() or [""])[-1][:200]
        self.seen.starts.append(f"{status}: {reason}")
        if status == 3 and "budget" in reason:
            self.budget += 2000
            self.seen.count("starts that a spent budget ended")
        elif status == 4:
            self.seen.count("starts that the model ended")
        else:
            self.seen.wrong("starts that failed otherwise", f"status {status}: {reason}")
        time.sleep(0.5)

    def kill(self, with_signal: signal.Signals) -> None:
        """End it; with SIGTERM it must end well, and within a minute."""
        assert self._process is not None
        self._down.append((time.monotonic(), float("inf")))
        self._process.send_signal(with_signal)
        began = time.monotonic()
        self.seen.count(f"kills by {with_signal.name}")
        try:
            self._process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            self.seen.wrong("bad ends", "it had not ended 90 s after SIGTERM")
            self._process.kill()
            self._process.communicate()
            return
        if with_signal == signal.SIGTERM:
            self.slowest = max(self.slowest, time.monotonic() - began)
            if (status := self._process.returncode) != 0:
                last = self.log.read_text().splitlines()[-3:]
                self.seen.wrong("bad ends", f"status {status} after SIGTERM: {last}")

    def set_small(self, budget: int) -> None:
        """Set the budget of the token that has one; not while requests are in flight."""
        self.small = budget
        lines = [
            f"{name}:{hashlib.sha256(secret.encode()).hexdigest()}" + (f":{budget}" if name == "small" else "")
            for name, secret in self.secrets.items()
        ]
        self.tokens.write_text("\n".join(lines) + "\n")

    def committed(self) -> int:
        """What the ledger counts against the budget."""
        return self._read("ledger.sqlite", "SELECT queries FROM committed")[0][0]

    def spent(self) -> dict[str, int]:
        """What each token has spent."""
        return dict(self._read("accounts.sqlite", "SELECT name, spent FROM accounts"))

    def booked(self) -> dict[str, tuple[int, int]]:
        """Queries that the ledger has as sent, and as answered or lost, by phase."""
        asked = "SELECT phase, SUM(attempted), SUM(COALESCE(answered, attempted)) FROM spend GROUP BY phase"
        return {phase: (attempted, kept) for phase, attempted, kept in self._read("ledger.sqlite", asked)}

    def _read(self, file: str, query: str) -> list[Any]:
        with closing(sqlite3.connect(f"file:{self.out / file}?mode=ro", uri=True, timeout=10)) as db:
            return db.execute(query).fetchall()

    def watch(self) -> None:
        """Look whether a budget is overspent now."""
        try:
            committed, spent = self.committed(), self.spent()
        except (sqlite3.Error, IndexError):  # a killed process left what only a writer may clear up, or no file yet
            return
        self.seen.count("looks at the books")
        if committed > self.budget:
            self.seen.wrong("queries beyond the budget", f"{committed} of {self.budget}")
        if (small := spent.get("small", 0)) > self.small:
            self.seen.wrong("queries beyond a token's budget", f"{small} of {self.small}")


# --- clients ----------------------------------------------------------------------------------------------------------


@dataclass
class Request:
    """A request, and what its answer must be."""

    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    images: int = 1
    certify: bool = True
    queries: int = MOST_QUERIES
    statuses: tuple[int, ...] = (200, *ERRORS)
    method: str = "POST"
    path: str = INFER
    kind: str = "good"


def request_of(images: np.ndarray, chosen: random.Random, parameters: dict[str, Any], **more: Any) -> Request:
    """A request for an answer to images, in JSON or in binary form."""
    tensor: dict[str, Any] = {"name": "x", "shape": list(images.shape), "datatype": "FP32"}
    asked: dict[str, Any] = {"inputs": [tensor], "parameters": parameters, "id": str(chosen.randrange(10**9)), **more}
    headers = {"Content-Type": "application/json"}
    if chosen.random() < 0.2:
        headers["Accept-Encoding"] = "gzip"
    if chosen.random() < 0.5:
        tensor["data"] = images.ravel().tolist()
        body = json.dumps(asked).encode()
        if chosen.random() < 0.1:
            body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
    else:
        raw = images.astype("<f4").tobytes()
        tensor["parameters"] = {"binary_data_size": len(raw)}
        head = json.dumps(asked).encode()
        body, headers = head + raw, {**headers, "Content-Type": "application/octet-stream", LENGTH: str(len(head))}
    return Request(body, headers, len(images))


def good_request(images: np.ndarray, chosen: random.Random) -> Request:
    """A request that may be answered."""
    count = chosen.choice((1, 1, 1, 2, 3, 4, 6, 8))
    parameters: dict[str, Any] = {}
    certify, queries = chosen.random() < 0.7, 600
    if not certify:
        parameters["certify"] = False
    if chosen.random() < 0.4:
        parameters["alpha"] = chosen.choice((0.001, 0.01))
    if certify and chosen.random() < 0.4:
        parameters["radius"] = chosen.choice((0.05, 0.125, 0.25))
    if chosen.random() < 0.5:
        few = () if "radius" in parameters else (100, 150)
        parameters["max_queries"] = queries = chosen.choice((*few, 300, 400, 1000))
    if chosen.random() < 0.3:
        parameters["timeout_ms"] = chosen.choice((1, 20, 100, 500, 2000))
    if chosen.random() < 0.5:
        parameters["binary_data_output"] = True
    more: dict[str, Any] = {}
    if chosen.random() < 0.2:
        more["outputs"] = [{"name": "label", "parameters": {"binary_data": chosen.random() < 0.5}}]
    request = request_of(images[chosen.sample(range(len(images)), count)], chosen, parameters, **more)
    request.certify, request.queries = certify, queries
    return request


def bad_request(images: np.ndarray, chosen: random.Random) -> Request:
    """A request that must be refused, each kind with its status."""
    one = images[:1]
    makers = {
        "no JSON": (400, lambda: Request(b'{"inputs": [')),
        "no object": (400, lambda: Request(b"[1, 2]")),
        "an unknown parameter": (400, lambda: request_of(one, chosen, {"radios": 0.1})),
        "alpha of 2": (400, lambda: request_of(one, chosen, {"alpha": 2})),
        "too many queries": (400, lambda: request_of(one, chosen, {"max_queries": 10**6})),
        "a radius of a prediction": (400, lambda: request_of(one, chosen, {"certify": False, "radius": 0.1})),
        "another shape": (400, lambda: request_of(one[:, :, :7], chosen, {})),
        "NaN": (400, lambda: request_of(np.full_like(one, np.nan), chosen, {})),
        "pixels up to 255": (400, lambda: request_of(255 * one, chosen, {})),
        "an unknown output": (400, lambda: request_of(one, chosen, {}, outputs=[{"name": "logits"}])),
        "a header too long": (400, lambda: Request(b'{"inputs": []}', {LENGTH: "999"})),
        "no images": (400, lambda: request_of(one[:0], chosen, {})),
        "too many images": (413, lambda: request_of(images[: MOST_IMAGES + 1], chosen, {})),
        "too many bytes": (413, lambda: Request(b" " * (MOST_BODY + 1))),
        "another encoding": (415, lambda: Request(b"{}", {"Content-Encoding": "br"})),
        "no such path": (404, lambda: Request(b"{}", path="/v2/models/other/infer")),
        "no such method": (405, lambda: Request(b"", method="GET")),
        "no token": (401, lambda: request_of(one, chosen, {})),
        "an unknown token": (401, lambda: request_of(one, chosen, {})),
    }
    kind = chosen.choice(list(makers))
    status, make = makers[kind]
    request = make()
    request.kind, request.statuses = kind, (status,)
    return request


def outputs_of(headers: Mapping[str, str], body: bytes) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """An answer, and its outputs by name; raises what is wrong with it."""
    length = headers.get(LENGTH.lower())
    head, raw = (body, b"") if length is None else (body[: int(length)], body[int(length) :])
    answer, found, at = json.loads(head), {}, 0
    for output in answer["outputs"]:
        kind = np.dtype(KINDS[output["datatype"]])
        if "data" in output:
            values = np.array(output["data"], dtype=kind)
            plain = {"INT64": (int,), "BOOL": (bool,)}.get(output["datatype"], (int, float))
            if not all(type(value) in plain for value in output["data"]):
                raise ValueError(f"{output['name']} holds something else than {output['datatype']}")
        else:
            size = output["parameters"]["binary_data_size"]
            values, at = np.frombuffer(raw[at : at + size], kind), at + size
        found[output["name"]] = values.reshape(output["shape"]).tolist()
    if at != len(raw):
        raise ValueError(f"{len(raw) - at} bytes too many")
    return answer, found


def check_answer(request: Request, answer: Mapping[str, Any], found: Mapping[str, list[Any]]) -> None:
    """Raise `ValueError` unless an answer is what its request asked for."""
    if answer["model_name"] != "defended" or not isinstance(answer["model_version"], str):
        raise ValueError(f"it is of the model {answer['model_name']}, version {answer['model_version']}")
    if any(len(values) != request.images for values in found.values()):
        raise ValueError(f"{ {name: len(values) for name, values in found.items()} } values to {request.images} images")
    labels, abstained = found["label"], found.get("abstained")
    if any(label not in range(-1, CLASSES) for label in labels):
        raise ValueError(f"the labels are {labels}")
    if -1 in labels and abstained is None:
        raise ValueError("an abstention without its reason")
    if abstained is not None and [label == -1 for label in labels] != abstained:
        raise ValueError(f"the labels are {labels}, and abstained is {abstained}")
    if "radius" not in found:
        return
    for label, radius, p_lower, queries in zip(
        *(found[n] for n in ("label", "radius", "p_lower", "queries")), strict=True
    ):
        if not request.certify and (radius, p_lower) != (0, 0):
            raise ValueError(f"a prediction has the radius {radius}")
        if request.certify and (label >= 0) != (radius > 0):
            raise ValueError(f"the label is {label}, and the radius {radius}")
        if not 0 <= radius < 10 or not 0 <= p_lower <= 1 or not 1 <= queries <= request.queries:
            raise ValueError(f"radius {radius}, p_lower {p_lower}, {queries} queries of {request.queries}")
    if not all(abs(sum(shares) - 1) < 1e-5 for shares in found["p"]):
        raise ValueError("shares do not sum to 1")


class Client:
    """One of those who ask.

    Args:
        name: Name in the ids of its requests.
        gateway: Gateway that it asks.
        images: Images that it asks about.
        end: Set where it is to end.
    """

    def __init__(self, name: str, gateway: Gateway, images: np.ndarray, end: threading.Event) -> None:
        self.name, self._gateway, self._images, self._end, self._seen = name, gateway, images, end, gateway.seen
        self._chosen, self._number = random.Random(f"{SEED} {name}"), 0
        self._connection: http.client.HTTPConnection | None = None
        self._opened = self._used = 0.0

    def run(self) -> None:
        """Ask until the end."""
        while not self._end.is_set():
            try:
                pause = self._step()
            except Exception as error:  # the client itself must not stop without a word
                self._seen.wrong("clients that failed", f"{type(error).__name__}: {error}")
                pause = 0.1
            self._end.wait(pause)

    def _step(self) -> float:
        """One request; seconds to wait after it."""
        drawn, chosen = self._chosen.random(), self._chosen
        if drawn < 0.04:
            self._hang_up(self._with_token(good_request(self._images, chosen)))
            return 0.02
        if drawn < 0.07:
            return self._asked(Request(b"", method="GET", path="/v2/health/ready", kind="look", statuses=(200, 503)))
        if drawn < 0.14:
            request = bad_request(self._images, chosen)
            if request.kind == "an unknown token":
                request.headers["Authorization"] = "Bearer nobody"
            elif request.kind != "no token":
                self._with_token(request)
            return self._asked(request)
        return self._asked(self._with_token(good_request(self._images, chosen)))

    def _with_token(self, request: Request) -> Request:
        secret = self._gateway.secrets["small" if self._chosen.random() < 0.3 else "open"]
        request.headers["Authorization"] = f"Bearer {secret}"
        return request

    def _ident(self) -> str:
        self._number += 1
        return f"{self.name}-{self._number}"

    def _asked(self, request: Request) -> float:
        ident = self._ident()
        now = time.monotonic()
        if self._connection is None or now - self._used > 2:  # the server may be closing one that nobody uses
            self._close()
            self._connection = http.client.HTTPConnection("127.0.0.1", self._gateway.port, timeout=60)
            self._opened = now
        try:
            headers = {"X-Request-ID": ident, **request.headers}
            self._connection.request(request.method, request.path, request.body, headers)
            response = self._connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._unanswered(request, ident, error)
            return 0.2
        self._used = time.monotonic()
        if response.will_close:
            self._close()
        headers = {name.lower(): value for name, value in response.getheaders()}
        self._seen.count("requests")
        with self._seen.lock:
            self._seen.statuses[response.status] += 1
        try:
            self._check(request, ident, response.status, headers, body)
        except Exception as error:
            text = f"{request.kind}: {response.status}, {type(error).__name__}: {error}, {body[:300]!r}"
            self._seen.wrong("answers that are no protocol", text)
        return self._chosen.uniform(0.1, 0.4) if response.status in LATER else self._chosen.uniform(0, 0.05)

    def _check(self, request: Request, ident: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
        if status not in request.statuses:
            raise ValueError(f"wanted one of {request.statuses}")
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if request.kind == "look":
            if (said := json.loads(body)).get("ready") != (status == 200):
                raise ValueError(f"it says {said}")
            return
        if request.path == INFER and request.method == "POST" and headers.get("x-request-id") != ident:
            raise ValueError(f"the id is {headers.get('x-request-id')}, and was {ident}")
        if status != 200:
            said = json.loads(body)
            if said.keys() != {"error"} or not isinstance(said["error"], str) or not said["error"]:
                raise ValueError("no error in the protocol's form")
            if status == 429 and not headers["retry-after"].isdigit():
                raise ValueError(f"Retry-After is {headers['retry-after']}")
            return
        answer, found = outputs_of(headers, body)
        check_answer(request, answer, found)
        with self._seen.lock:
            self._seen.answers[ident] = found

    def _unanswered(self, request: Request, ident: str, error: Exception) -> None:
        """No answer, which is right while the gateway is away, and where too many bytes are cut short."""
        since, now = self._opened, time.monotonic()
        self._close()
        if isinstance(error, ConnectionRefusedError):
            self._seen.count("refused connections")
        elif request.kind == "too many bytes":
            self._seen.count("connections cut while too much was sent")
            return
        else:
            self._seen.count("cut connections")
        time.sleep(0.05)  # the keeper may have seen it later than this client
        if not self._gateway.was_down(since, now):
            text = f"{ident}, {request.kind}, after {now - since:.2f} s: {type(error).__name__}: {error}"
            self._seen.wrong("requests without an answer", text)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _hang_up(self, request: Request) -> None:
        """Send a request, or a part of it, and be gone."""
        ident, chosen = self._ident(), self._chosen
        lines = [f"{request.method} {request.path} HTTP/1.1", "Host: here", f"X-Request-ID: {ident}"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        text = "\r\n".join([*lines, f"Content-Length: {len(request.body)}", "", ""]).encode() + request.body
        whole = chosen.random() < 0.6
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._gateway.port), timeout=5) as sending:
            sending.sendall(text if whole else text[: chosen.randrange(1, len(text))])
            time.sleep(chosen.choice((0, 0.01, 0.1, 0.3)))
            if chosen.random() < 0.5:
                sending.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._seen.count("clients that hung up")


# --- the load ---------------------------------------------------------------------------------------------------------


def soaked(plan: Plan, gateway: Gateway) -> None:
    """Ask, kill and start again, until the time is over; then end the gateway."""
    seen, chosen, end = gateway.seen, random.Random(SEED + 3), threading.Event()
    images = pool()
    clients = [Client(f"client{i}", gateway, images, end) for i in range(6)]
    threads = [threading.Thread(target=client.run) for client in clients]
    gateway.start()
    began, kills = time.monotonic(), 0
    for thread in threads:
        thread.start()
    try:
        while True:
            until = time.monotonic() + plan.every * chosen.uniform(0.85, 1.15)
            while (now := time.monotonic()) < until and now < began + 60 * plan.minutes:
                time.sleep(0.5)
                gateway.watch()
            if time.monotonic() >= began + 60 * plan.minutes:
                break
            kills += 1
            gateway.kill(signal.SIGTERM if kills % 3 == 0 else signal.SIGKILL)
            _tighten(gateway, (time.monotonic() - began) / (60 * plan.minutes))
            gateway.start(kill_first=chosen.random() < plan.starting)
            gateway.watch()
            tell = {**seen.counts, "by status": dict(sorted(seen.statuses.items()))}
            print(f"{(time.monotonic() - began) / 60:.1f} min: {json.dumps(tell)}", file=sys.stderr, flush=True)
    finally:
        gateway.kill(signal.SIGTERM)
        end.set()
        for thread in threads:
            thread.join()
    gateway.watch()


def _tighten(gateway: Gateway, share: float) -> None:
    """Budgets that will be spent at about the half and the end, set once it is known how fast they are spent."""
    with suppress(sqlite3.Error, IndexError):  # what a killed process left unfinished is read at the next kill
        if share > 0.25 and gateway.small == NO_LIMIT:
            gateway.set_small(2 * gateway.spent().get("small", 0))
        if share > 0.5 and gateway.budget == NO_LIMIT:
            gateway.budget = round(gateway.committed() * 0.92 / share)


# --- what must hold at the end ----------------------------------------------------------------------------------------


def check_audit(gateway: Gateway) -> list[Entry]:
    """The entries of the audit log, each of which follows from its votes and from the key."""
    from certibox.errors import UnreadableFile
    from certibox.serving.audit import check_seeds, read_audit

    try:
        entries = read_audit(gateway.audit)
        check_seeds(entries, gateway.out / "noise.key", gateway.audit)
    except UnreadableFile as error:
        gateway.seen.wrong("audit logs that do not hold", str(error))
        return []
    for (request, idx), times in Counter((entry.request, entry.idx) for entry in entries).items():
        if times > 1:
            gateway.seen.wrong("answers that the audit log lacks", f"image {idx} of {request} is there {times} times")
    return entries


def check_delivered(seen: Seen, entries: Sequence[Entry]) -> int:
    """Look every answer up that a client got; returns the number of images."""
    by_request: dict[str, dict[int, Entry]] = defaultdict(dict)
    for entry in entries:
        by_request[entry.request][entry.idx] = entry
    images = 0
    for ident, outputs in seen.answers.items():
        for idx, label in enumerate(outputs["label"]):
            images += 1
            seen.counts["abstentions"] += label == -1
            if (entry := by_request[ident].get(idx)) is None:
                seen.wrong("answers that the audit log lacks", f"image {idx} of {ident}")
                continue
            votes = sum(entry.found.counts)
            wanted = {"label": -1 if entry.found.label is None else entry.found.label, "queries": entry.asked}
            wanted |= {"radius": getattr(entry.found, "radius", 0.0), "p_lower": getattr(entry.found, "p_lower", 0.0)}
            wanted |= {"p": np.float32(np.array(entry.found.counts) / max(votes, 1)).tolist()}
            for name, values in outputs.items():
                if name in wanted and values[idx] != wanted[name]:
                    text = f"{name} of image {idx} of {ident} was {values[idx]}, and is {wanted[name]} in the log"
                    seen.wrong("answers that the audit log lacks", text)
    return images


def check_votes(seen: Seen, entries: Sequence[Entry], plan: Plan) -> None:
    """Count the votes of some answers again, with the model itself, and compare every label with the true class."""
    import torch

    from certibox import SmoothedClassifier
    from certibox.certification.images import image_digest

    torch.set_num_threads(1)
    images = {image_digest(x): x for x in torch.from_numpy(pool())}
    smoothed = SmoothedClassifier(lambda x: torch.from_numpy(scores(x.numpy())), CLASSES, SIGMA)
    truth = {digest: _true_shares(x.numpy(), plan.draws) for digest, x in images.items()}
    margin = 4 * (0.5 / plan.draws**0.5)
    for entry in entries:
        shares, label = truth[entry.image], entry.found.label
        if label is not None and shares[label] < shares.max() - 2 * margin:
            text = f"{entry.request}: class {label} of {np.round(shares, 3).tolist()}"
            seen.wrong("wrong answers", text)
        elif label is not None and getattr(entry.found, "p_lower", 0.0) > shares[label] + margin:
            text = f"{entry.request}: at least {entry.found.p_lower} of {shares[label]}"  # pyright: ignore
            seen.wrong("wrong answers", text)
    chosen = random.Random(SEED + 4)
    for entry in chosen.sample(list(entries), min(plan.recounts, len(entries))):
        what = recounted(entry.found, images[entry.image], smoothed)
        seen.count("answers counted again")
        if what == "time":
            seen.count("of them, ended by time")
        elif what:
            seen.wrong("wrong answers", f"{entry.request}, image {entry.idx}: {what}")


def _true_shares(image: np.ndarray, draws: int) -> np.ndarray:
    noise = np.random.default_rng(11).normal(0, SIGMA, (draws, *SHAPE))
    return np.bincount(scores(image + noise).argmax(1), minlength=CLASSES) / draws


def recounted(found: Certificate | Prediction, x: Tensor, smoothed: SmoothedClassifier) -> str:
    """What differs where the votes of an answer are counted again; "" for nothing, "time" where time ended them.

    Args:
        found: Answer.
        x: Its image.
        smoothed: Smoothed model.
    """
    from certibox.certification.certificate import Certificate
    from certibox.certification.sampling import Sampling
    from certibox.confidence.ranks import RankVerification
    from certibox.confidence.recorded import rule_from_dict

    def votes(name: str, n: int) -> np.ndarray:
        answers = smoothed.answers(x, n=n, seed=found.seed, name=name, stream=found.stream)
        return answers.argmax(1).numpy()

    def counted(classes: np.ndarray) -> tuple[int, ...]:
        return tuple(int(count) for count in np.bincount(classes, minlength=CLASSES))

    rule = dict(found.rule or {})
    cap = rule.pop("cap")
    later, n0 = votes("estimate", found.n), found.queries - found.n
    first = counted(votes("select", n0))
    if counted(later) != found.counts:
        return f"the votes are {counted(later)}, and were {found.counts}"
    if isinstance(found, Certificate):
        selected, looks = int(np.argmax(first)), found.looks or ()
        if selected != found.selected:
            return f"class {selected} is selected, and was {found.selected}"
        again = [(size, int((later[:size] == selected).sum())) for size, _ in looks]
        if again != list(looks):
            return f"the looks are {again}, and were {looks}"
        sampling = Sampling(n0, cap, rule["alpha"], rule_from_dict(found.rule or {}), spent=True)
        whole = smoothed.certify(x, sampling=sampling, seed=found.seed, stream=found.stream)
        if len(whole.looks) > len(looks) and whole.looks[: len(looks)] == looks:
            return "time"
        names = ("label", "radius", "p_lower", "counts", "looks", "queries", "image")
    else:
        if first != found.first:
            return f"the first votes are {first}, and were {found.first}"
        settings = {name: value for name, value in rule.items() if name != "name"}
        early, seed = RankVerification(**settings), found.seed
        whole = smoothed.predict(x, n=cap, n0=n0, alpha=found.alpha, seed=seed, rule=early, stream=found.stream)
        if whole.n > found.n and found.label is None:
            return "time"
        names = ("label", "p_value", "counts", "first", "queries", "n")
    differing = [name for name in names if getattr(whole, name) != getattr(found, name)]
    return "; ".join(f"{name} is {getattr(whole, name)}, and was {getattr(found, name)}" for name in differing)


def check_books(gateway: Gateway, noted: Counter[str], entries: Sequence[Entry]) -> dict[str, int]:
    """Compare what the model noted, the ledger, the accounts and the audit log; returns the numbers of queries."""
    seen, booked, spent = gateway.seen, gateway.booked(), gateway.spent()
    began = sum(count for what, count in noted.items() if what not in ("503", "429"))
    attempted, kept = (sum(pair[i] for pair in booked.values()) for i in range(2))
    committed, served = gateway.committed(), booked["serve"][1]
    for name, low, high in (
        ("queries that the ledger lacks", began, min(attempted, committed)),
        ("queries that the ledger lacks", kept, committed),
        ("queries beyond the budget", committed, gateway.budget),
        ("queries beyond a token's budget", spent.get("small", 0), gateway.small),
        ("queries that no token paid for", served, sum(spent.values())),
    ):
        if low > high:
            seen.wrong(name, f"{low}, and at most {high} were right")
    asked: Counter[str] = Counter()
    for entry in entries:
        asked[str(entry.token)] += entry.asked
    for name, count in asked.items():
        if count > spent.get(name, 0):
            seen.wrong("queries that no token paid for", f"{count} in the audit log of {name}, which spent {spent}")
    books = {"begun by the model": began, "attempted": attempted, "committed": committed, "budget": gateway.budget}
    tokens = {f"spent by {name}": count for name, count in sorted(spent.items())}
    return {**books, **tokens, "budget of small": gateway.small, "in the audit log": sum(asked.values())}


def check_log(gateway: Gateway) -> Iterator[tuple[str, str]]:
    """Faults that the gateway itself noted."""
    for line in gateway.log.read_text().splitlines():
        if "Traceback" in line or '"event": "fault"' in line:
            yield "faults in the log", line[:500]
        elif "has changed" in line or "answers as version" in line:
            yield "changes of a model that never changed", line[:500]


ZEROS = (
    "answers that are no protocol",
    "requests without an answer",
    "answers that the audit log lacks",
    "audit logs that do not hold",
    "wrong answers",
    "queries beyond the budget",
    "queries beyond a token's budget",
    "queries that the ledger lacks",
    "queries that no token paid for",
    "bad ends",
    "starts that failed otherwise",
    "faults in the log",
    "changes of a model that never changed",
    "clients that failed",
)


def measured(plan: Plan, folder: Path) -> tuple[dict[str, Any], Seen]:
    """The counts of a soak, and what was seen."""
    seen = Seen()
    with Upstream(folder, plan, seen) as upstream:
        gateway = Gateway(folder, upstream.port, plan, seen)
        soaked(plan, gateway)
    noted = upstream.noted()
    for name, text in check_log(gateway):
        seen.wrong(name, text)
    entries = check_audit(gateway)
    delivered = check_delivered(seen, entries)
    check_votes(seen, entries, plan)
    row = {
        "minutes": plan.minutes,
        **dict(sorted(seen.counts.items())),
        "answered requests": len(seen.answers),
        "answered images": delivered,
        "entries of the audit log": len(entries),
        "by status": {str(status): count for status, count in sorted(seen.statuses.items())},
        "slowest good end, seconds": round(gateway.slowest, 1),
        "images at the model": dict(sorted(noted.items())),
        "queries": check_books(gateway, noted, entries),
        "failed starts": dict(Counter(text.split(":")[0] for text in seen.starts)),
    }
    return {**row, "must be 0": {name: len(seen.faults.get(name, ())) for name in ZEROS}}, seen


FULL = Plan(minutes=30, every=60, upstream_every=150, down=(2.0, 9.0), wait=5, recounts=1000, draws=40_000)
TINY = Plan(
    minutes=0.34, every=4, upstream_every=7, down=(2.5, 2.5), wait=1, recounts=60, draws=4_000, starting=0.0
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak, check and print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="minutes of load (default: 30)")
    parser.add_argument("--every", type=float, help="seconds between two kills of the gateway (default: 60)")
    parser.add_argument("--tiny", action="store_true", help="some 25 seconds")
    parser.add_argument("--write", action="store_true", help=f"keep the counts in {RESULT.name}")
    parser.add_argument("--keep", type=Path, help="folder for the files of the gateway; by default one that goes away")
    parser.add_argument("--upstream", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.upstream:
        serve_model(int(asked.upstream[0]), asked.upstream[1], int(asked.upstream[2]))
    from dataclasses import replace

    from certibox.paper.logbook import hardware, versions
    from certibox.storage.files import write_json_atomic

    given = {name: getattr(asked, name) for name in ("minutes", "every") if getattr(asked, name) is not None}
    plan = replace(TINY if asked.tiny else FULL, **given)
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        row, seen = measured(plan, folder)
    row |= {"hardware": hardware(), "versions": versions("fastapi", "uvicorn")}
    print(json.dumps(row, indent=2))
    for name, texts in seen.faults.items():
        print(f"WRONG, {name}, {len(texts)} times: {texts[:5]}", file=sys.stderr)
    if asked.write:
        write_json_atomic(RESULT, row)
    return 1 if seen.faults else 0


if __name__ == "__main__":
    sys.exit(main())

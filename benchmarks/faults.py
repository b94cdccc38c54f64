"""Certification through a server that fails in every way, by a client that is killed again and again.

    python benchmarks/faults.py [--write] [--tiny]

The server speaks the Open Inference Protocol and, at random, answers 429 or 503 with and without Retry-After, resets
the connection before it has read the request or after it has computed the answer, waits past the client's timeout, cuts
an answer short, sends one twice, and gives one the number of another request. The client certifies digits with the
default rule, and is killed (SIGKILL) after a random time; what ends by itself, for a failure that nobody may repeat, is
started again too. Counted are:

- whether the rows are those of an undisturbed run, to the digit;
- images that the server computed, against those that the ledger has as answered and as lost: none may be computed that
  the ledger does not know of, so computed <= answered + lost. (A wrong answer counts as paid: one that was sent twice
  may be taken for the answer to a request that the server never saw, and is refused by its number.)
- whether more was ever booked than the budget.

`--write` puts the counts into benchmarks/results/faults.json.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import certibox as cb
import remote
from certibox.errors import BudgetExceeded, CertiboxError
from certibox.paper.logbook import destination, hardware, parser, versions
from certibox.queries.ledger import Ledger
from certibox.storage.files import write_json_atomic

RESULT = Path(__file__).parent / "results" / "faults.json"
FAULTS = {  # share of all requests
    "429": 0.01,
    "429 with Retry-After": 0.01,
    "503": 0.01,
    "503 with Retry-After": 0.01,
    "reset before": 0.001,
    "reset after": 0.001,
    "late": 0.0005,
    "cut": 0.001,
    "twice": 0.002,
    "another's number": 0.001,
}
TIMEOUT, AT_ONCE, CALLS = 0.5, 4, 4


@dataclass(frozen=True)
class Size:
    """How large the run is."""

    digits: int
    """Number of digits that are certified."""
    most: int
    """Most votes of a certificate."""
    kills: int
    """Number of kills, after which the client is left to end."""
    between: tuple[float, float]
    """Least and most seconds between two of them."""


FULL = Size(digits=100, most=2_000, kills=60, between=(0.2, 1.2))
TINY = Size(digits=2, most=200, kills=2, between=(0.1, 0.2))


class Server:
    """A server in this process's event loop, with its counts."""

    def __init__(self, faulty: bool) -> None:
        self.shares = FAULTS if faulty else {}
        self.linear, self.draw = remote.weights(), random.Random(0)
        self.computed = self.requests = 0
        self.met: Counter[str] = Counter()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: requests until it is closed, or fails."""
        try:
            while True:
                head, fields = await remote.request(reader)
                fault = self.fault() if head.startswith("post") else None
                if fault == "reset before":
                    writer.transport.abort()
                    return
                body = await remote.body_of(reader, fields)
                if not await self.reply(writer, head, fields, body, fault):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def fault(self) -> str | None:
        """What goes wrong with the next request."""
        self.requests += 1
        at = self.draw.random()
        for name, share in self.shares.items():
            at -= share
            if at < 0:
                self.met[name] += 1
                return name
        return None

    async def reply(
        self, writer: asyncio.StreamWriter, head: str, fields: dict[str, str], body: bytes, fault: str | None
    ) -> bool:
        """Answer one request; False where the connection ends."""
        if not head.startswith("post"):
            writer.write(remote.whole(b'{"name": "faulty", "extensions": ["binary_tensor_data"]}'))
            await writer.drain()
            return True
        if fault and fault[:3] in ("429", "503"):
            later = "retry-after: 0\r\n" if "Retry-After" in fault else ""
            writer.write(remote.whole(b'{"error": "busy"}', f"{fault[:3]} Busy", later))
            await writer.drain()
            return True
        length = int(fields["inference-header-content-length"])
        asked = json.loads(body[:length])
        images = np.frombuffer(body[length:], "<f4").reshape(asked["inputs"][0]["shape"][0], -1)
        weight, bias = self.linear
        scores = ((images[:, None, :] * weight).sum(2) + bias).astype("<f4")
        self.computed += len(images)
        one = {"name": "scores", "datatype": "FP32", "shape": list(scores.shape)}
        one["parameters"] = {"binary_data_size": scores.nbytes}
        number = "0" if fault == "another's number" else asked["id"]
        told = json.dumps({"model_name": "m", "id": number, "outputs": [one]}).encode()
        content = remote.whole(told + scores.tobytes(), more=f"inference-header-content-length: {len(told)}\r\n")
        if fault == "reset after":
            writer.transport.abort()
            return False
        if fault == "late":
            await asyncio.sleep(2 * TIMEOUT)
        writer.write(content[: len(content) - 20] if fault == "cut" else content * (2 if fault == "twice" else 1))
        await writer.drain()
        if fault == "cut":
            writer.close()
        return fault != "cut"


def certify(url: str, folder: str, size: Size, budget: int | None) -> None:
    """One start of the client, in a process of its own; the exit status says how it ended."""
    torch.set_num_threads(1)
    try:
        box = cb.as_blackbox(
            url, outputs="logits", batch_size=AT_ONCE, concurrency=CALLS, connection=cb.Connection(timeout=TIMEOUT)
        )
        client = cb.QueryClient(box, budget, Path(folder) / "ledger.sqlite")
        smoothed = cb.SmoothedClassifier(client, 10, remote.SIGMA)
        smoothed.batch_check.skip()
        digits = cb.load_images("digits", "test").select(range(size.digits))
        sampling, out = cb.Sampling(25, size.most, 0.001, remote.RULE), Path(folder) / "rows.jsonl"
        cb.certify_dataset(smoothed, digits, sampling=sampling, seed=0, out=out, model="digits")
    except BudgetExceeded:
        sys.exit(3)
    except CertiboxError:
        sys.exit(4)


async def campaign(folder: Path, size: Size, faulty: bool, budget: int | None = None) -> dict[str, Any]:
    """Start the client until it has ended well, killing it meanwhile; the counts."""
    server, draw, ends = Server(faulty), random.Random(1), Counter[str]()
    served = await asyncio.start_server(server.answer, "127.0.0.1", 0, limit=1 << 24)
    url = f"http://127.0.0.1:{served.sockets[0].getsockname()[1]}/v2/models/m"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["faults"])
    kills = size.kills if faulty else 0
    while True:
        process = context.Process(target=certify, args=(url, str(folder), size, budget), daemon=True)
        await asyncio.to_thread(process.start)
        until = time.monotonic() + (draw.uniform(*size.between) if ends["killed"] < kills else 1e9)
        while process.is_alive() and time.monotonic() < until:
            await asyncio.sleep(0.01)
        if process.is_alive():
            process.kill()
        await asyncio.to_thread(process.join)
        ends["killed" if process.exitcode == -9 else f"status {process.exitcode}"] += 1
        if process.exitcode in (0, 3):
            break
    await asyncio.sleep(3 * TIMEOUT if faulty else 0)  # what is late is computed
    served.close()
    ledger = Ledger(folder / "ledger.sqlite")
    answered, attempted, lost = ledger.totals()
    counts = {"requests": server.requests, "computed": server.computed, "answered": answered, "lost": lost}
    counts |= {"attempted": attempted, "booked": ledger.committed(), "ends": dict(ends), "faults": dict(server.met)}
    ledger.close()
    return counts


def rows(folder: Path) -> list[str]:
    """The rows, without what differs between two equal runs."""
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.dumps({key: value for key, value in json.loads(line).items() if key != "seconds"}) for line in lines]


def run(size: Size) -> dict[str, Any]:
    """All of the result."""
    with tempfile.TemporaryDirectory() as place:
        plain, hard, poor = (Path(place) / name for name in ("plain", "hard", "poor"))
        undisturbed = asyncio.run(campaign(plain, size, faulty=False))
        disturbed = asyncio.run(campaign(hard, size, faulty=True))
        budget = undisturbed["answered"] // 2
        bounded = asyncio.run(campaign(poor, size, faulty=True, budget=budget))
        return {
            "rows": len(rows(plain)),
            "rows_are_the_same": rows(plain) == rows(hard),
            "all_that_was_computed_is_booked": all(
                one["computed"] <= one["answered"] + one["lost"] for one in (disturbed, bounded)
            ),
            "budget_was_kept": bounded["booked"] <= budget,
            "undisturbed": undisturbed,
            "disturbed": disturbed,
            "with_half_the_budget": bounded | {"budget": budget},
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and print."""
    options = parser(__doc__)
    options.add_argument("--write", action="store_true", help="write the result")
    options = options.parse_args(arguments)
    found = run(TINY if options.tiny else FULL) | {"hardware": hardware("cpu"), "versions": versions()}
    print(json.dumps(found, indent=2))
    if options.write:
        write_json_atomic(destination(options, RESULT), found)


if __name__ == "__main__":
    main()

"""A gateway in the process of a test: a box of known classes, and requests as an ASGI server makes them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from certibox.blackbox import BoxSpec
from certibox.certification.smoothing import SmoothedClassifier
from certibox.queries.client import QueryClient

SIGMA, CLASSES, SHAPE = 0.25, 3, (1, 4, 4)
PATH = "/v2/models/defended"


class Bright:
    """Classes 0, 1 and 2 for dark, bright and very bright images: shares that a test can foresee.

    It can be held, so that a test decides when batches are answered, and told to fail.
    """

    answers_alone = True

    def __init__(self, **declared: Any) -> None:
        self.spec = BoxSpec("probabilities", **{"num_classes": CLASSES, "name": "bright", **declared})
        self.free = threading.Event()
        self.free.set()
        self.sizes: list[int] = []
        self.errors: list[BaseException] = []
        self.turned = False

    def __call__(self, x: Tensor) -> Tensor:
        self.free.wait(30)
        self.sizes.append(len(x))
        if self.errors:
            raise self.errors.pop(0)
        bright = x.flatten(1).double().mean(1)
        scores = torch.stack([0.5 - bright, bright - 0.5, 2 * bright - 1.35], 1).softmax(1)
        return scores.flip(1) if self.turned else scores


def images_of(*brightness: float) -> Tensor:
    """Images (n, c, h, w), each of one brightness; near 0.5 they abstain."""
    return torch.tensor(brightness).reshape(-1, 1, 1, 1).expand(-1, *SHAPE).contiguous()


def smoothed_of(box: Bright, **given: Any) -> SmoothedClassifier:
    return SmoothedClassifier(QueryClient(box, **given), CLASSES, SIGMA)


@dataclass
class Reply:
    """What an application answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def outputs(self) -> dict[str, list[Any]]:
        return {one["name"]: one["data"] for one in self.json["outputs"]}


def ask(app: Any, method: str, path: str, body: bytes = b"", gone: float | None = None, **headers: str) -> Reply:
    """One request; the client is gone after so many seconds."""
    return asyncio.run(asked(app, method, path, body, gone, **headers))


async def asked(
    app: Any, method: str, path: str, body: bytes = b"", gone: float | None = None, **headers: str
) -> Reply:
    sent: list[dict[str, Any]] = []
    parts = [body[: len(body) // 2], body[len(body) // 2 :]]

    async def receive() -> dict[str, Any]:
        if parts:
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}
        await asyncio.sleep(60 if gone is None else gone)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    given = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Reply(sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:]))


def request_of(images: Tensor, **parameters: Any) -> dict[str, Any]:
    """A request in JSON."""
    data = images.flatten().tolist()
    tensor = {"name": "input", "shape": list(images.shape), "datatype": "FP32", "data": data}
    return {"inputs": [tensor], "parameters": parameters}


def infer(app: Any, images: Tensor, more: dict[str, Any] | None = None, **parameters: Any) -> Reply:
    """What an application answers to images."""
    body = json.dumps({**request_of(images, **parameters), **(more or {})}).encode()
    return ask(app, "POST", f"{PATH}/infer", body)


def at_once(*calls: Callable[[], Awaitable[Any]]) -> list[Any]:
    """What calls return that are made at once, in one loop."""

    async def gathered() -> list[Any]:
        return await asyncio.gather(*(call() for call in calls))

    return asyncio.run(gathered())


@contextmanager
def closing(app: Any) -> Iterator[Any]:
    """An application that is closed at the end."""
    try:
        yield app
    finally:
        app.state.close()

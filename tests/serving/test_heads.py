"""The heads of requests: a long one is taken, an endless one is not, whatever reads HTTP."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from certibox.serving.heads import MOST, settings


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the number of bytes of the body."""
    count, more = 0, True
    while more:
        message = await receive()
        count, more = count + len(message.get("body", b"")), message.get("more_body", False)
    body = str(count).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(params=["httptools", "h11"])
def port(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    if request.param == "httptools":
        pytest.importorskip("httptools", reason="httptools reads HTTP where it is installed")
    else:
        monkeypatch.setitem(sys.modules, "uvicorn.protocols.http.httptools_impl", None)
    listening = socket.create_server(("127.0.0.1", 0))
    config = settings(echo, log_config=None, access_log=False, lifespan="off")
    assert (config.http == "h11") == (request.param == "h11")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()
    listening.close()


def answer(connection: socket.socket) -> bytes:
    """Status and body of the next answer."""
    text = b""
    while b"\r\n\r\n" not in text:
        text += connection.recv(4096)
    head, _, body = text.partition(b"\r\n\r\n")
    length = int(next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")).split()[1])
    while len(body) < length:
        body += connection.recv(4096)
    return head.split()[1] + b" " + body


def test_requests_of_one_connection_are_taken_however_they_are_cut(port: int) -> None:
    long = b"x-long: " + b"a" * (MOST // 2) + b"\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for size, more in ((0, b""), (1 << 20, b""), (300_000, long), (5, long), (2 << 20, b"")):
            text = b"POST / HTTP/1.1\r\nhost: a\r\n" + more + b"content-length: %d\r\n\r\n" % size + b"b" * size
            for start in range(0, len(text), 150_000):
                connection.sendall(text[start : start + 150_000])
            assert answer(connection) == b"200 %d" % size


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n", b"GET /"], ids=["headers", "address"])
def test_a_head_without_an_end_is_refused(port: int, start: bytes) -> None:
    piece = (b"x: " + b"a" * 1000 + b"\r\n") if start.endswith(b"\n") else b"a" * 1000
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(start)
        try:
            for _ in range(100 * MOST // 1000):
                connection.sendall(piece)
            assert answer(connection).startswith(b"400")
        except ConnectionError:  # it was closed before all was sent
            pass

"""A server on this machine that answers as models behind HTTP do, counts what it was asked, and fails on demand."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

Model = Callable[[np.ndarray], np.ndarray]
NUMPY = {"FP32": "<f4", "FP64": "<f8", "FP16": "<f2", "UINT8": "|u1", "INT64": "<i8"}
NAMES = {"f4": "FP32", "f8": "FP64", "f2": "FP16", "u1": "UINT8", "i8": "INT64"}


class StandIn:
    """A server whose answers are given by functions of the request, and whose faults are taken from a list.

    A fault is taken off the list by each request for an answer; when none is left, all goes well.
    """

    def __init__(self, port: int = 0) -> None:
        self.faults: list[str | tuple[int, dict[str, str], bytes]] = []
        self.requests = self.images = 0
        """Requests for an answer that arrived whole, and images that were answered, whether or not it was delivered."""
        self.most_at_once = self.at_once = 0
        self.delay = 0.0
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.pages: dict[str, Callable[[], tuple[int, dict[str, str], bytes]]] = {}
        self.answers: dict[str, Callable[[dict[str, str], bytes], tuple[int, dict[str, str], bytes]]] = {}
        self.lock = threading.Lock()
        self.http = _Http(("127.0.0.1", port), _handler(self))
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def serve_model(
        self,
        model: Model,
        name: str = "m",
        *,
        inputs: list[dict[str, Any]] | None = None,
        outputs: list[dict[str, Any]] | None = None,
        extensions: tuple[str, ...] = (),
        version: str | None = "1",
        answer_names: tuple[str, ...] = ("scores",),
        binary_answers: bool | None = None,
    ) -> str:
        """Serve a function of arrays under the Open Inference Protocol; returns the model's address."""
        about = {"name": "stand-in", "version": "3", "extensions": list(extensions)}
        facts = {"name": name, "platform": "test", "inputs": inputs or [], "outputs": outputs or []}
        self.version = version
        self.pages["/v2"] = lambda: _json(about)
        self.pages[f"/v2/models/{name}"] = lambda: _json(facts)

        def infer(headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
            length = headers.get("inference-header-content-length")
            head, raw = (body, b"") if length is None else (body[: int(length)], body[int(length) :])
            asked = json.loads(head)
            tensor = asked["inputs"][0]
            kind = NUMPY[tensor["datatype"]]
            if "data" in tensor:
                images = np.array(tensor["data"], dtype=kind).reshape(tensor["shape"])
            else:
                assert tensor["parameters"]["binary_data_size"] == len(raw)
                images = np.frombuffer(raw, kind).reshape(tensor["shape"])
            scores = model(images)
            with self.lock:
                self.images += len(images)
            wanted: list[dict[str, Any]] = asked.get("outputs") or [{"name": one} for one in answer_names]
            in_binary = asked.get("parameters", {}).get("binary_data_output", False)
            parts, found = b"", []
            for output in wanted:
                one: dict[str, Any] = {"name": output["name"], "shape": list(scores.shape)}
                one["datatype"] = NAMES[scores.dtype.str[1:]]
                asked_binary = output.get("parameters", {}).get("binary_data", in_binary)
                if binary_answers if binary_answers is not None else asked_binary:
                    one["parameters"] = {"binary_data_size": scores.nbytes}
                    parts += scores.tobytes()
                else:
                    one["data"] = scores.ravel().tolist()
                found.append(one)
            answer = {"model_name": name, "id": asked.get("id"), "outputs": found}
            answer |= {} if self.version is None else {"model_version": self.version}
            content = json.dumps(answer).encode()
            more = {"Inference-Header-Content-Length": str(len(content))} if parts else {}
            return 200, more, content + parts

        self.answers[f"/v2/models/{name}/infer"] = infer
        return f"{self.url}/v2/models/{name}"

    def serve_json(self, path: str, answer: Callable[[Any], Any]) -> str:
        """Serve a function of JSON values; returns its address."""
        self.answers[path] = lambda headers, body: _json(answer(json.loads(body)))
        return self.url + path

    def serve_bytes(self, path: str, answer: Callable[[dict[str, str], bytes], Any]) -> str:
        """Serve a function of headers and body; returns its address."""
        self.answers[path] = lambda headers, body: _json(answer(headers, body))
        return self.url + path


@contextmanager
def stand_in(port: int = 0) -> Iterator[StandIn]:
    """A server that runs inside the block, at a free port or at this one."""
    server = StandIn(port)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:  # a client that is gone is no news
        pass


def _handler(server: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def reply(self, status: int, headers: dict[str, str], body: bytes, cut: int | None = None) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if cut is None else body[:cut])

        def reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

        def do_GET(self) -> None:
            page = server.pages.get(self.path.rstrip("/"))
            self.reply(*(page() if page else (404, {}, b'{"error": "nothing here"}')))

        def do_POST(self) -> None:
            with server.lock:
                fault = server.faults.pop(0) if server.faults else None
            if fault == "reset before":
                self.reset()
                return
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            with server.lock:
                server.requests += 1
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
                server.headers.append(headers)
                server.bodies.append(body)
            try:
                self.fail_or_answer(fault, headers, body)
            finally:
                with server.lock:
                    server.at_once -= 1

        def fail_or_answer(self, fault: Any, headers: dict[str, str], body: bytes) -> None:
            if isinstance(fault, tuple):
                self.reply(*fault)
                return
            answer = server.answers.get(self.path)
            if answer is None:
                self.reply(404, {}, b'{"error": "no such model"}')
                return
            status, more, content = answer(headers, body)
            time.sleep(server.delay)
            if fault == "reset after":
                self.reset()
            elif fault == "cut":
                self.reply(status, more, content, cut=len(content) // 2)
                self.close_connection = True
            elif fault == "late":
                time.sleep(1.0)
                self.reply(status, more, content)
            else:
                self.reply(status, more, content)

        do_PUT = do_POST

    return Handler

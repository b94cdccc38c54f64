"""One HTTP server: requests that are sent once, answers of bounded size, and what a failure says of the bill.

Nothing is retried here. Whoever counts the queries asks again, and only after `Overloaded`: the server said so (429,
503), or the request never arrived whole. Whatever fails after that may have been billed, and is raised as it is.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from certibox.blackbox.connection import Connection, required
from certibox.errors import BadOutput, BlackBoxError, BoxChanged, InvalidInput, NotAnswered, Overloaded, one_line

# Statuses of a server that looked at no tensor: nothing is billed, and the same again would be refused again.
_REFUSED = {
    401: "it wants another token, or one at all",
    403: "access is refused to this token",
    404: "there is no such model at this address",
    405: "the address takes no POST",
    411: "the server wants the length of the body",
    413: "the request is too large: lower max_batch or largest_request",
    414: "the address is too long",
    415: "the server does not take this content type",
    422: "the server does not take inputs of this form",
    431: "the headers are too large",
}
_IDLE = 2.0  # seconds after which an unused connection is not trusted any more: the server may be closing it
_CHUNK = 1 << 16


class ServerFailed(BlackBoxError):
    """The server failed after the whole request was sent: whether it was answered and billed is not known."""


@dataclass(frozen=True)
class Reply:
    """One answer of a server."""

    status: int
    headers: dict[str, str]
    """Headers, their names in small letters."""
    body: bytes


class Server:
    """The server of an address. It serves any number of threads, and can be pickled; no secret goes along.

    Args:
        url: Address that a request goes to, http or https, without user, password and query.
        connection: Limits and secrets.
        busy_texts: Texts in the body of a refusal of any status that say that the same may be asked again later.

    Raises:
        InvalidInput: The address cannot be used, or httpx2 is missing.
    """

    def __init__(self, url: str, connection: Connection, busy_texts: Sequence[str] = ()) -> None:
        self.url, self.connection, self.busy_texts = _checked(url), connection, tuple(busy_texts)
        self._httpx = required("httpx2")
        self._lock = threading.Lock()
        self._client: Any = None
        self._process = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "connection": self.connection, "busy_texts": self.busy_texts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def __repr__(self) -> str:
        return f"Server({self.url})"

    def get(self, url: str) -> Reply:
        """What is read at an address of this server: metadata, never an answer that is billed.

        Args:
            url: Address, of the same scheme, host and port.

        Raises:
            NotAnswered: The server cannot be reached, or fails.
        """
        try:
            return self._sent("GET", url, b"", {})
        except (ServerFailed, BadOutput, Overloaded) as error:
            raise NotAnswered(str(error)) from None

    def post(self, content: bytes, headers: dict[str, str], url: str | None = None, method: str = "POST") -> Reply:
        """The answer to one request, which is sent once.

        Args:
            content: Body.
            headers: Headers of this request; those of the connection are added.
            url: Address, of the same scheme, host and port; by default the server's own.
            method: HTTP method.

        Raises:
            Overloaded: Nothing was computed; the same may be asked again later.
            NotAnswered: Nothing was computed, and the same would be refused again.
            ServerFailed: The request was sent, and no whole answer came.
            BadOutput: The answer is larger than allowed.
        """
        reply = self._sent(method, url or self.url, content, headers)
        if 200 <= reply.status < 300:
            return reply
        said = self._said(reply)
        if reply.status in self.connection.busy or any(text.encode() in reply.body for text in self.busy_texts):
            raise Overloaded(f"{self.url} is busy ({said})", retry_after(reply.headers.get("retry-after")))
        if 300 <= reply.status < 400:
            raise NotAnswered(f"{self.url} answers with a redirection ({said}), which is not followed; give its target")
        if why := _REFUSED.get(reply.status):
            raise NotAnswered(f"{self.url}: {why} ({said})")
        raise ServerFailed(f"{self.url} failed ({said})")

    def _said(self, reply: Reply) -> str:
        """A status and what the body says beside it, on one line and without secrets."""
        text = self.connection.without_secrets(reply.body[:2000].decode("utf-8", "replace"))
        page = text.lstrip()[:1] == "<"
        return f"status {reply.status}" + (f": {one_line(text, 160)}" if text.strip() and not page else "")

    def _sent(self, method: str, url: str, content: bytes, headers: dict[str, str]) -> Reply:
        """One request, and its whole answer. Never follows a redirection, so that secrets stay with this server."""
        httpx, ends = self._httpx, time.monotonic() + self.connection.timeout
        if _origin(url) != _origin(self.url):
            raise InvalidInput(f"{url} is not on the server of {self.url}; secrets are sent to that one alone")
        sent = {**headers, **self.connection.secret_headers()}
        try:
            with self._open().stream(method, url, content=content, headers=sent) as reply:
                return Reply(
                    reply.status_code, {k.lower(): v for k, v in reply.headers.items()}, self._body(reply, ends)
                )
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.WriteError, httpx.WriteTimeout) as e:
            raise Overloaded(f"{url} was not reached ({self._told(e)})") from None
        except (httpx.ReadTimeout, _Late):
            seconds = f"{self.connection.timeout:g} seconds"
            raise ServerFailed(f"{url} was sent a request, and did not answer it within {seconds}") from None
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL) as error:
            raise InvalidInput(f"{url} cannot be asked ({self._told(error)})") from None
        except httpx.HTTPError as error:
            raise ServerFailed(f"{url} broke off its answer ({self._told(error)})") from None

    def _body(self, reply: Any, ends: float) -> bytes:
        parts, size, most = [], 0, self.connection.largest_answer
        for part in reply.iter_bytes(_CHUNK):
            parts.append(part)
            size += len(part)
            if size > most:
                raise BadOutput(f"the answer of {self.url} has more than {most:,} bytes (largest_answer)")
            if time.monotonic() > ends:
                raise _Late
        return b"".join(parts)

    def _told(self, error: Exception) -> str:
        text = one_line(self.connection.without_secrets(str(error)), 160)
        return f"{type(error).__name__}: {text}" if text else type(error).__name__

    def _open(self) -> Any:
        """The connections of this process; a fork has its own."""
        with self._lock:
            if self._client is None or self._process != os.getpid():
                httpx, timeout = self._httpx, self.connection.timeout
                verify = True
                if self.connection.ca_file is not None:
                    verify = _authorities(str(self.connection.ca_file))
                self._client, self._process = (
                    httpx.Client(
                        timeout=httpx.Timeout(timeout, connect=min(10.0, timeout)),
                        limits=httpx.Limits(max_connections=None, keepalive_expiry=_IDLE),
                        follow_redirects=False,
                        verify=verify,
                    ),
                    os.getpid(),
                )
                weakref.finalize(self, self._client.close)
            return self._client


class _Late(Exception):
    """The time of a request is over while its answer is still coming."""


class ServedVersion:
    """The version that a server's answers carry: the first is kept, and another one is refused.

    Args:
        model: Name of the model in messages.
        known: Version that must answer; None for that of the first answer.
    """

    def __init__(self, model: str, known: object = None) -> None:
        self._model, self._known, self._lock = model, known, threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self._model, "known": self._known}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def check(self, version: object) -> None:
        """Keep the first version; refuse another.

        Args:
            version: Version that an answer carries.

        Raises:
            BoxChanged: It is another than before.
        """
        with self._lock:
            known = self._known = version if self._known is None else self._known
        if version != known:
            raise BoxChanged(
                f"{self._model} answers as version {one_line(version, 40)}, and answered as {one_line(known, 40)} "
                "before; certificates and defenses of the earlier version do not hold for this one"
            )


def retry_after(value: str | None) -> float | None:
    """Seconds to wait, from a Retry-After in seconds or as an HTTP date; None where it says neither.

    Args:
        value: Text of the header; None where it is missing.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isdigit():
        return float(text) if len(text) < 10 else None
    try:
        then = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    then = then if then.tzinfo is not None else then.replace(tzinfo=UTC)
    return max(0.0, (then - datetime.now(UTC)).total_seconds())


def _checked(url: str) -> str:
    """The address, refused where it cannot be used or would show a secret wherever it is written."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput(f"{one_line(url)} is no address; wanted one such as http://127.0.0.1:8080/v2/models/digits")
    if parts.username or parts.password or parts.query or parts.fragment:
        clean = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise InvalidInput(
            f"the address {clean} came with a user, a query or a fragment, which would be written down with it; give "
            "secrets as token_env, token_file or headers"
        )
    return url.rstrip("/")


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _authorities(path: str) -> Any:
    import ssl

    try:
        return ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(f"ca_file {path} cannot be read ({one_line(error)})") from error

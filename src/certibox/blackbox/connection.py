"""How a remote model is reached: limits, and secrets that stand in the environment or in a file and nowhere else."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from certibox.blackbox.identity import joined
from certibox.errors import InvalidInput, UnreadableFile, described

BUSY = (429, 503)
LARGEST = 16 << 20  # bytes of a request over HTTP, where the connection does not say
AT_ONCE, CONCURRENCY = 32, 8  # images in a request, and requests at once, where nobody says otherwise
_NAME = re.compile(r"\$\{(\w+)\}")  # of a variable of the environment, in a header
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True)
class Connection:
    """How a server is reached. Secrets are named here and read when a request is sent; none is kept, shown or pickled.

    Raises:
        InvalidInput: A number is out of range, or two places are given for one token.
    """

    token_env: str | None = None
    """Name of the variable of the environment that holds the token, sent as `Authorization: Bearer`."""
    token_file: str | Path | None = None
    """File that holds the token, instead."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further headers; `${NAME}` in a value stands for a variable of the environment."""
    timeout: float = 60.0
    """Seconds that one request may take, from the connection to the last byte of its answer."""
    largest_request: int | None = None
    """Most bytes of the body of a request: larger batches are sent in parts. None for 16 MiB over HTTP, 4 MiB over
    gRPC, which is what servers take unless they are told otherwise."""
    largest_answer: int = 64 << 20
    """Most bytes of an answer that are read."""
    ca_file: str | Path | None = None
    """File of the certificate authorities to trust, in place of the usual ones. TLS is always verified."""
    busy: tuple[int, ...] = BUSY
    """HTTP statuses that say that nothing was computed and the same may be asked again later."""
    binary: bool | None = None
    """Whether tensors are sent in binary form under the Open Inference Protocol; None asks the server's metadata."""

    def __post_init__(self) -> None:
        if self.token_env is not None and self.token_file is not None:
            raise InvalidInput("token_env and token_file were both given; name one place that holds the token")
        for name, least in (("timeout", 0.0), ("largest_request", 0), ("largest_answer", 0)):
            value = getattr(self, name)
            if value is None and name == "largest_request":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not least < value < float("inf"):
                raise InvalidInput(f"{name} is {value!r}; wanted a number above {least:g}")
        for name, value in dict(self.headers).items():
            if not _HEADER.fullmatch(str(name)) or not isinstance(value, str) or "\n" in value or "\r" in value:
                raise InvalidInput(f"the header {name!r} cannot be sent; wanted a name and one line of text")
        object.__setattr__(self, "headers", dict(self.headers))
        busy = tuple(self.busy)
        if not all(isinstance(status, int) and 400 <= status < 600 for status in busy):
            raise InvalidInput(f"busy is {busy!r}; wanted HTTP statuses from 400 to 599")
        object.__setattr__(self, "busy", busy)

    def __repr__(self) -> str:  # header values may be secrets
        shown = [f"token_env={self.token_env!r}"] if self.token_env else []
        shown += [f"token_file={str(self.token_file)!r}"] if self.token_file else []
        shown += [f"headers=[{', '.join(self.headers)}]"] if self.headers else []
        return f"Connection({', '.join([*shown, f'timeout={self.timeout:g}'])})"

    def secret_headers(self) -> dict[str, str]:
        """The headers of a request, with the secrets that they hold; read anew each time, so that a token may change.

        Raises:
            InvalidInput: A variable of the environment is not set.
            UnreadableFile: The file of the token cannot be read.
        """
        headers = {name: _NAME.sub(lambda found: _variable(found[1]), value) for name, value in self.headers.items()}
        if self.token_env is not None:
            headers["Authorization"] = f"Bearer {_variable(self.token_env)}"
        elif self.token_file is not None:
            headers["Authorization"] = f"Bearer {_first_line(Path(self.token_file))}"
        return headers

    def without_secrets(self, text: str) -> str:
        """A text without the secrets of this connection, whatever put them there.

        Args:
            text: Text from outside, such as the message of an error.
        """
        try:
            sent = self.secret_headers()
        except (InvalidInput, UnreadableFile):  # then none was sent
            return text
        plain = set(self.headers.values())
        for value in sorted((value for value in sent.values() if value not in plain), key=len, reverse=True):
            for part in (value, value.split()[-1]):
                text = text.replace(part, "...") if len(part) > 3 else text
        return text


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise InvalidInput(f"the variable {name} of the environment, which holds a secret of the endpoint, is not set")
    return _sendable(value, f"the variable {name}")


def _first_line(path: Path) -> str:
    try:
        content = path.read_text(encoding="utf-8")[:65536]
    except (OSError, ValueError) as error:
        raise UnreadableFile(f"the token's file {path} cannot be read ({type(error).__name__})") from None
    lines = content.split("\n")
    if not lines[0].strip():
        raise UnreadableFile(f"the token's file {path} is empty; wanted the token on its first line")
    return _sendable(lines[0].strip(), f"the file {path}")


def _sendable(secret: str, place: str) -> str:
    """The secret, if a header can hold it; else an error that does not show it."""
    if not secret.isascii() or not secret.isprintable():
        raise InvalidInput(f"{place} holds characters that a header cannot have; wanted one line of plain text")
    return secret


def served(declared: dict[str, Any], name: str, digest: str) -> dict[str, Any]:
    """What is declared of a model at an address, with what is usual for one.

    Args:
        declared: Fields of `BoxSpec` that a user gave.
        name: Name of the box, where none was given.
        digest: Digest of what the adapter knows of the model.
    """
    at_once = min(AT_ONCE, declared.get("max_batch") or AT_ONCE)
    usual = {"clip": True, "name": name, "concurrency": CONCURRENCY, "batch_size": at_once}
    return usual | declared | {"identity": joined(declared.get("identity"), digest)}


def required(module: str, extra: str = "remote") -> Any:
    """A module of an extra.

    Args:
        module: Name of the module.
        extra: Name of the extra.

    Raises:
        InvalidInput: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InvalidInput(f"a model at this address needs {module}; run pip install 'certibox[{extra}]'") from error


def connection_of(value: Any) -> Connection:
    """A connection, from one or from its fields.

    Args:
        value: `Connection`, mapping of its fields, or None for the defaults.

    Raises:
        InvalidInput: It is something else.
    """
    if value is None or isinstance(value, Connection):
        return value or Connection()
    try:
        return Connection(**value)
    except TypeError as error:
        raise InvalidInput(f"connection is {type(value).__name__} ({described(error)}); wanted its fields") from None

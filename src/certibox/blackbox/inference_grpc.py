"""A model behind the Open Inference Protocol v2, over gRPC."""

from __future__ import annotations

import math
import os
import re
import threading
import weakref
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import numpy as np

from certibox.blackbox.connection import Connection, connection_of, required
from certibox.blackbox.grpc_messages import SERVICE, TYPED, messages
from certibox.blackbox.http import ServerFailed, retry_after
from certibox.blackbox.inference_model import ANSWERS, Answered, InferenceModelBox, Metadata, little_endian
from certibox.errors import InvalidInput, NotAnswered, Overloaded, UnreadableFile, one_line

ADDRESS = re.compile(
    r"(?P<scheme>grpcs?)://(?P<host>[^/@?#]+)/(?:v2/models/)?(?P<model>[^/@?#]+)(?:/versions/(?P<version>[^/@?#]+))?/?"
)
_REFUSED = {  # statuses of a server that computed nothing
    "UNAUTHENTICATED": "it wants another token, or one at all",
    "PERMISSION_DENIED": "access is refused to this token",
    "NOT_FOUND": "there is no such model at this address",
    "UNIMPLEMENTED": "the server does not speak this protocol",
    "INVALID_ARGUMENT": "the server does not take inputs of this form",
}
# Texts of UNAVAILABLE that say that nothing was computed; after any other, the request may have been answered.
_UNSENT = ("failed to connect", "DNS resolution failed", "Exceeds maximum queue size")
_TOO_LARGE = "larger than max"


class InferenceGrpcBox(InferenceModelBox):
    """A model at `grpc://host:port/NAME`, or `grpc://host:port/NAME/versions/VERSION`; `grpcs` for TLS.

    Tensors go in binary form; answers are read in either. Requests are split to 4 MiB, which servers take unless they
    are told otherwise, or to `connection.largest_request`. For names, datatype, sizes and version see
    `InferenceProtocolBox`.

    Args:
        url: Address of the model.
        outputs: Kind of the answers, as in `BoxSpec`.
        input_name: Name of the input that takes the images; by default the only one.
        output_name: Name of the output to answer with; by default the only one, or the server's own choice.
        connection: Limits and secrets, or their names as a dictionary; headers are sent as metadata.
        declared: Other fields of `BoxSpec`, with the defaults of `InferenceProtocolBox`.

    Raises:
        InvalidInput: The address is none of the protocol, metadata and declaration disagree, or grpcio is missing.
        NotAnswered: The server is not there, or has no such model.
    """

    largest_request = 4 << 20

    def __init__(
        self,
        url: str,
        outputs: str,
        input_name: str | None = None,
        output_name: str | None = None,
        connection: Connection | dict[str, Any] | None = None,
        **declared: Any,
    ) -> None:
        limits, found = connection_of(connection), ADDRESS.fullmatch(url)
        if found is None:
            raise InvalidInput(f"{one_line(url)} is no address of a model; wanted grpc://HOST:PORT/NAME")
        if limits.binary is False:
            raise InvalidInput("binary is False, but gRPC sends tensors in binary form alone; leave it out")
        self._name, self._pinned = unquote(found["model"]), unquote(found["version"] or "")
        version = f"/versions/{found['version']}" if found["version"] else ""
        model = f"{found['scheme']}://{found['host']}/{found['model']}{version}"
        self._channel = _Channel(model, found["host"], found["scheme"] == "grpcs", limits)
        super().__init__(model, self._read(), self._pinned or None, outputs, input_name, output_name, limits, declared)

    def _answered(self, images: np.ndarray, ident: str) -> Answered:
        known = messages()
        request = known["ModelInferRequest"](model_name=self._name, model_version=self._pinned, id=ident)
        request.inputs.add(name=self.input, datatype=self.datatype, shape=images.shape)
        request.raw_input_contents.append(little_endian(images))
        if self.output is not None:
            request.outputs.add(name=self.output)
        reply = self._channel.ask("ModelInfer", request, "ModelInferResponse")
        return Answered(reply.id, reply.model_version, self._tensors(reply))

    def _tensors(self, reply: Any) -> dict[str, np.ndarray]:
        """All outputs of an answer by name: raw ones stand beside them in the same order, others within them."""
        raw, found = list(reply.raw_output_contents), {}
        if raw and len(raw) != len(reply.outputs):
            raise self.bad(f"{len(raw)} tensors for {len(reply.outputs)} outputs")
        for i, output in enumerate(reply.outputs):
            if not self.wants(output.name):
                continue
            name, shape = one_line(output.name, 60), tuple(output.shape)
            kind = ANSWERS.get(output.datatype)
            if kind is None:
                raise self.bad(f"output {name} of datatype {one_line(output.datatype, 30)}")
            if min(shape, default=0) < 0:
                raise self.bad(f"output {name} of shape {shape}")
            if raw:
                if len(raw[i]) != math.prod(shape) * np.dtype(kind).itemsize:
                    raise self.bad(f"output {name} of shape {shape} in {len(raw[i])} bytes")
                values = np.frombuffer(raw[i], kind)
            else:
                values = np.array(getattr(output.contents, TYPED.get(output.datatype, ""), ()), dtype=kind)
                if values.size != math.prod(shape):
                    raise self.bad(f"{values.size} values in output {name} of shape {shape}")
            found[output.name] = values.reshape(shape)
        return found

    def _read(self) -> Metadata:
        """The server's metadata, and those of the model; empty where the server has no such call."""
        known, server, model = messages(), {}, {}
        with suppress(_Unknown):
            about = self._channel.read("ServerMetadata", known["ServerMetadataRequest"](), "ServerMetadataResponse")
            server = {"name": about.name, "version": about.version, "extensions": list(about.extensions)}
        with suppress(_Unknown):
            asked = known["ModelMetadataRequest"](name=self._name, version=self._pinned)
            said = self._channel.read("ModelMetadata", asked, "ModelMetadataResponse")
            model = {"name": said.name, "versions": list(said.versions), "platform": said.platform}
            for kind in ("inputs", "outputs"):
                ports = getattr(said, kind)
                model[kind] = [{"name": p.name, "datatype": p.datatype, "shape": list(p.shape)} for p in ports]
        return Metadata(server, model)


class _Unknown(Exception):
    """The server does not know a call of metadata."""


class _Channel:
    """The connection to one server. It serves any number of threads, and can be pickled; no secret goes along."""

    def __init__(self, url: str, host: str, secure: bool, connection: Connection) -> None:
        self._url, self._host, self._secure, self._connection = url, host, secure, connection
        self._grpc = required("grpc", "grpc")
        self._lock = threading.Lock()
        self._open: Any = None
        self._process = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self._url, "host": self._host, "secure": self._secure, "connection": self._connection}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def read(self, call: str, request: Any, answer: str) -> Any:
        """What metadata say: nothing that is billed."""
        try:
            return self.ask(call, request, answer)
        except (ServerFailed, Overloaded) as error:
            raise NotAnswered(str(error)) from None

    def ask(self, call: str, request: Any, answer: str) -> Any:
        """The answer to one call, which is sent once."""
        method = self._channel().unary_unary(
            SERVICE + call,
            request_serializer=type(request).SerializeToString,
            response_deserializer=messages()[answer].FromString,
        )
        secrets = [(name.lower(), value) for name, value in self._connection.secret_headers().items()]
        try:
            return method(request, timeout=self._connection.timeout, metadata=secrets)
        except self._grpc.RpcError as error:
            raise self._meant(error, call) from None

    def _meant(self, error: Any, call: str) -> Exception:
        """What a failed call says of the bill."""
        status, text = error.code().name, self._connection.without_secrets(error.details() or "")
        said = f"{status}: {one_line(text, 160)}" if text.strip() else status
        if status == "UNIMPLEMENTED" and call.endswith("Metadata"):
            return _Unknown()
        if status == "RESOURCE_EXHAUSTED" and _TOO_LARGE in text:
            return NotAnswered(f"{self._url}: the request is too large: lower max_batch or largest_request ({said})")
        if status == "RESOURCE_EXHAUSTED" or (status == "UNAVAILABLE" and any(part in text for part in _UNSENT)):
            return Overloaded(f"{self._url} is busy or was not reached ({said})", _asked_to_wait(error))
        if why := _REFUSED.get(status):
            return NotAnswered(f"{self._url}: {why} ({said})")
        if status == "DEADLINE_EXCEEDED":
            seconds = f"{self._connection.timeout:g} seconds"
            return ServerFailed(f"{self._url} was sent a request, and did not answer it within {seconds}")
        return ServerFailed(f"{self._url} failed ({said})")

    def _channel(self) -> Any:
        """The channel of this process; a fork has its own."""
        with self._lock:
            if self._open is None or self._process != os.getpid():
                most = self._connection.largest_answer
                options = [
                    ("grpc.max_receive_message_length", most),
                    ("grpc.max_send_message_length", -1),
                    ("grpc.enable_retries", 0),
                ]
                if self._secure:
                    authorities = _authorities(self._connection.ca_file)
                    credentials = self._grpc.ssl_channel_credentials(root_certificates=authorities)
                    self._open = self._grpc.secure_channel(self._host, credentials, options)
                else:
                    self._open = self._grpc.insecure_channel(self._host, options)
                self._process = os.getpid()
                weakref.finalize(self, self._open.close)
            return self._open


def _asked_to_wait(error: Any) -> float | None:
    """Seconds that a server asks to wait, from its trailing metadata; None where it does not say."""
    said = {str(key): str(value) for key, value in (error.trailing_metadata() or ())}
    if (pushback := said.get("grpc-retry-pushback-ms", "")).isdigit():
        return int(pushback) / 1000
    return retry_after(said.get("retry-after"))


def _authorities(path: Any) -> bytes | None:
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UnreadableFile(f"ca_file {path} cannot be read ({one_line(error)})") from error

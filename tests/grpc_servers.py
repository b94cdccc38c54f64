"""A server on this machine that answers under the Open Inference Protocol over gRPC, counts, and fails on demand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np

from certibox.blackbox.grpc_messages import TYPED, messages
from servers import NAMES, NUMPY

Port = dict[str, Any]


class GrpcStandIn:
    """A model whose answers are a function of arrays, and whose faults are taken from a list, one a request.

    A fault is a status with its text, and with trailing metadata, or "late".
    """

    def __init__(self, model: Callable[[np.ndarray], np.ndarray]) -> None:
        self.model = model
        self.faults: list[tuple[str, str] | tuple[str, str, tuple[tuple[str, str], ...]] | str] = []
        self.inputs: list[Port] = []
        self.outputs: list[Port] = []
        self.has_metadata, self.raw = True, True
        self.version, self.ident = "1", ""
        """Version that answers name, and number of the request; "" for the one that was asked."""
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.images = 0
        self.lock = threading.Lock()
        self.url = ""

    def infer(self, request: Any, context: Any) -> Any:
        with self.lock:
            self.requests.append(request)
            self.metadata.append({str(key): str(value) for key, value in context.invocation_metadata()})
            fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, tuple):
            if len(fault) == 3:
                context.set_trailing_metadata(fault[2])
            context.abort(getattr(grpc.StatusCode, fault[0]), fault[1])
        if fault == "late":
            time.sleep(1.0)
        tensor = request.inputs[0]
        images = np.frombuffer(request.raw_input_contents[0], NUMPY[tensor.datatype]).reshape(tuple(tensor.shape))
        scores = self.model(images)
        with self.lock:
            self.images += len(images)
        reply = messages()["ModelInferResponse"](model_name=request.model_name, model_version=self.version)
        reply.id = self.ident or request.id
        for name in [output.name for output in request.outputs] or ["scores"]:
            datatype = NAMES[scores.dtype.str[1:]]
            made = reply.outputs.add(name=name, datatype=datatype, shape=scores.shape)
            if self.raw:
                reply.raw_output_contents.append(scores.tobytes())
            else:
                getattr(made.contents, TYPED[datatype]).extend(scores.ravel().tolist())
        return reply

    def about(self, request: Any, context: Any) -> Any:
        if not self.has_metadata:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method")
        return messages()["ServerMetadataResponse"](name="stand-in", version="3", extensions=["a"])

    def facts(self, request: Any, context: Any) -> Any:
        if not self.has_metadata:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method")
        if request.name != "m":
            context.abort(grpc.StatusCode.NOT_FOUND, f"Model {request.name} not found")
        reply = messages()["ModelMetadataResponse"](name="m", versions=["1"], platform="test")
        for listed, ports in ((reply.inputs, self.inputs), (reply.outputs, self.outputs)):
            for port in ports:
                listed.add(**port)
        return reply


@contextmanager
def grpc_stand_in(
    model: Callable[[np.ndarray], np.ndarray], credentials: Any = None, largest: int = 4 << 20
) -> Iterator[GrpcStandIn]:
    """A server that runs inside the block, its model at `.url`."""
    stand_in, known = GrpcStandIn(model), messages()
    calls = {
        "ModelInfer": ("ModelInferRequest", stand_in.infer),
        "ServerMetadata": ("ServerMetadataRequest", stand_in.about),
        "ModelMetadata": ("ModelMetadataRequest", stand_in.facts),
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            function,
            request_deserializer=known[kind].FromString,
            response_serializer=known[kind.replace("Request", "Response")].SerializeToString,
        )
        for name, (kind, function) in calls.items()
    }
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool, options=[("grpc.max_receive_message_length", largest)])
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),)
        )
        where = "127.0.0.1:0"
        port = server.add_insecure_port(where) if credentials is None else server.add_secure_port(where, credentials)
        server.start()
        stand_in.url = f"grpc{'' if credentials is None else 's'}://127.0.0.1:{port}/m"
        try:
            yield stand_in
        finally:
            server.stop(None).wait()

"""A model behind the Open Inference Protocol over gRPC answers as the same function beside us."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("grpc")

from certibox.blackbox import Connection, InferenceGrpcBox, as_blackbox
from certibox.blackbox.grpc_messages import messages
from certibox.errors import BadOutput, BoxChanged, BoxFailed, InvalidInput, NotAnswered, UnreadableFile
from certibox.queries import flow
from certibox.queries.client import QueryClient
from grpc_servers import GrpcStandIn, grpc_stand_in

SHAPE = (3, 2, 4)
WEIGHT = np.random.default_rng(0).normal(size=(5, 24)).astype(np.float32)


def linear(images: np.ndarray) -> np.ndarray:
    """Sums of products in one order, whatever the number of images."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    return (flat[:, None, :] * WEIGHT).sum(2, dtype=np.float32)


@pytest.fixture
def server() -> Iterator[GrpcStandIn]:
    with grpc_stand_in(linear) as running:
        yield running


@pytest.fixture
def x() -> Tensor:
    return torch.rand((7, *SHAPE), generator=torch.Generator().manual_seed(1)) * 1.4 - 0.2


def test_a_request_is_these_bytes() -> None:
    """Field numbers and kinds of the protocol's text, written out by hand: 0x0a is field 1 with a length, and so on."""
    request = messages()["ModelInferRequest"](model_name="m", model_version="2", id="7")
    request.inputs.add(name="x", datatype="FP32", shape=(1, 300))
    request.outputs.add(name="y")
    request.raw_input_contents.append(struct.pack("<f", 1.0))
    tensor = b"\x0a\x01x" + b"\x12\x04FP32" + b"\x1a\x03\x01\xac\x02"
    wanted = b"\x0a\x01m" + b"\x12\x012" + b"\x1a\x017" + b"\x2a" + bytes([len(tensor)]) + tensor
    wanted += b"\x32\x03\x0a\x01y" + b"\x3a\x04\x00\x00\x80\x3f"
    assert request.SerializeToString(deterministic=True) == wanted


def test_an_answer_in_these_bytes_is_read() -> None:
    """Typed contents: fp32 is field 6, packed; fields that we do not list are passed over."""
    contents = b"\x32\x08" + struct.pack("<2f", 0.25, 0.75)
    tensor = b"\x0a\x01y" + b"\x12\x04FP32" + b"\x1a\x02\x01\x02" + b"\x2a" + bytes([len(contents)]) + contents
    parameters = b"\x22\x07\x0a\x01k\x12\x02\x08\x01"  # a map entry: "k" to a boolean
    body = b"\x0a\x01m" + b"\x12\x013" + parameters + b"\x2a" + bytes([len(tensor)]) + tensor
    reply = messages()["ModelInferResponse"].FromString(body)
    assert (reply.model_version, list(reply.outputs[0].contents.fp32_contents)) == ("3", [0.25, 0.75])
    assert list(reply.outputs[0].shape) == [1, 2]


@pytest.mark.parametrize("raw", [True, False])
def test_answers_are_those_of_the_function_to_the_bit(server: GrpcStandIn, x: Tensor, raw: bool) -> None:
    server.raw = raw
    box = as_blackbox(server.url, "logits")
    assert isinstance(box, InferenceGrpcBox)
    assert np.array_equal(box(x).numpy(), linear(x.clamp(0, 1).numpy()))


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "FP16", "UINT8"])
def test_the_datatype_of_the_metadata_is_sent(server: GrpcStandIn, x: Tensor, datatype: str) -> None:
    seen = list[np.ndarray]()
    server.model = lambda images: (seen.append(images), linear(images))[1]
    server.inputs = [{"name": "pixels", "datatype": datatype, "shape": [-1, 3, 2, 4]}]
    server.outputs = [{"name": "scores", "datatype": "FP32", "shape": [-1, 5]}]
    box = as_blackbox(server.url, "logits")
    box(x)
    clean = x.clamp(0, 1).numpy()
    wanted = (clean * 255).round() if datatype == "UINT8" else clean
    assert np.array_equal(seen[0], wanted.astype(seen[0].dtype))
    assert (server.requests[0].inputs[0].name, server.requests[0].inputs[0].datatype) == ("pixels", datatype)
    assert (box.spec.num_classes, box.spec.takes) == (5, (3, 2, 4))


def test_a_server_without_metadata_is_asked_as_the_user_says(server: GrpcStandIn, x: Tensor) -> None:
    server.has_metadata = False
    box = as_blackbox(server.url, "logits", input_name="a", output_name="b", layout="flat")
    box(x)
    asked = server.requests[0]
    assert (asked.inputs[0].name, list(asked.inputs[0].shape), asked.outputs[0].name) == ("a", [7, 24], "b")


def test_requests_are_split_to_four_mebibytes() -> None:
    """341 images of 3x32x32 in FP32, as the default limit of servers holds; one more is refused by this one."""
    with grpc_stand_in(lambda images: images.reshape(len(images), -1)[:, :2].copy()) as server:
        box = as_blackbox(server.url, "logits", batch_size=1000)
        assert box.images_at_once((3, 32, 32)) == 341  # pyright: ignore[reportAttributeAccessIssue]
        client, images = QueryClient(box), torch.rand(700, 3, 32, 32)
        assert torch.equal(client(images), images.flatten(1)[:, :2])
        assert sorted(request.inputs[0].shape[0] for request in server.requests) == [18, 341, 341]
        wide = as_blackbox(server.url, "logits", connection=Connection(largest_request=8 << 20), batch_size=1000)
        before = len(server.requests)
        with pytest.raises(NotAnswered, match="too large: lower max_batch or largest_request"):
            QueryClient(wide)(images[:400])
        assert len(server.requests) == before


@pytest.mark.parametrize(
    ("fault", "kind", "words", "paid", "lost"),
    [
        (("UNAUTHENTICATED", "who?"), NotAnswered, "another token, or one at all .UNAUTHENTICATED: who", 0, 0),
        (("NOT_FOUND", "m"), NotAnswered, "no such model", 0, 0),
        (("INVALID_ARGUMENT", "shape"), NotAnswered, "does not take inputs of this form", 0, 0),
        (("INTERNAL", "out of memory"), BoxFailed, "INTERNAL: out of memory.*1 query counts as lost", 0, 1),
        (("UNAVAILABLE", "Socket closed"), BoxFailed, "UNAVAILABLE: Socket closed", 0, 1),
        ("late", BoxFailed, "did not answer it within 0.5 seconds", 0, 1),
    ],
)
def test_what_a_failure_costs(
    server: GrpcStandIn, fault: Any, kind: type[Exception], words: str, paid: int, lost: int
) -> None:
    client = QueryClient(as_blackbox(server.url, "logits", connection=Connection(timeout=0.5)))
    server.faults = [fault]
    with pytest.raises(kind, match=words):
        client(torch.rand(1, *SHAPE))
    assert (client.queries, client.lost) == (paid, lost)
    client(torch.rand(1, *SHAPE))  # and goes on
    assert (client.queries, client.lost) == (paid + 1, lost)


@pytest.mark.parametrize(
    "fault",
    [
        ("RESOURCE_EXHAUSTED", "quota"),
        ("UNAVAILABLE", "Exceeds maximum queue size"),
        ("RESOURCE_EXHAUSTED", "quota", (("retry-after", "0"),)),
        ("RESOURCE_EXHAUSTED", "quota", (("grpc-retry-pushback-ms", "20"),)),
    ],
)
def test_a_busy_server_is_asked_again(server: GrpcStandIn, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "SHORTEST", 0.001)
    client = QueryClient(as_blackbox(server.url, "logits"))
    server.faults = [fault, fault]
    client(torch.rand(2, *SHAPE))
    assert (client.queries, client.lost, client.attempts, len(server.requests)) == (2, 0, 6, 3)


def test_another_version_and_another_request_are_refused_and_paid(server: GrpcStandIn) -> None:
    client = QueryClient(as_blackbox(server.url, "logits"))
    client(torch.rand(3, *SHAPE))
    server.version = "2"
    with pytest.raises(BoxChanged, match="answers as version 2, and answered as 1 before"):
        client(torch.rand(2, *SHAPE))
    server.version, server.ident = "1", "other"
    with pytest.raises(BadOutput, match="request other where 3 was asked"):
        client(torch.rand(1, *SHAPE))
    assert (client.queries, client.lost) == (6, 0)


def test_a_version_is_asked_for_by_the_address(server: GrpcStandIn) -> None:
    box = as_blackbox(f"{server.url}/versions/7", "logits")
    with pytest.raises(BoxChanged, match="version 1, and answered as 7"):
        box(torch.rand(1, *SHAPE))
    assert server.requests[0].model_version == "7"


def test_a_token_is_sent_as_metadata_and_kept_nowhere(server: GrpcStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_TOKEN", "hunter2hunter2")
    limits = Connection(token_env="GRPC_TOKEN", headers={"X-Team": "blue"})
    box = as_blackbox(server.url, "logits", connection=limits)
    box(torch.rand(1, *SHAPE))
    assert server.metadata[0]["authorization"] == "Bearer hunter2hunter2"
    assert server.metadata[0]["x-team"] == "blue"
    server.faults = [("INTERNAL", "bad token hunter2hunter2")]
    with pytest.raises(BoxFailed) as caught:
        QueryClient(box)(torch.rand(1, *SHAPE))
    for text in (str(caught.value), repr(box), repr(pickle.dumps(box)), box.spec.model_id):
        assert "hunter2" not in text


def test_a_box_can_go_to_another_process(server: GrpcStandIn, x: Tensor) -> None:
    box = as_blackbox(server.url, "logits")
    assert torch.equal(pickle.loads(pickle.dumps(box))(x), box(x))


def test_addresses_that_cannot_be_used() -> None:
    with pytest.raises(NotAnswered, match=r"grpc://127.0.0.1:1/m is busy or was not reached .UNAVAILABLE"):
        as_blackbox("grpc://127.0.0.1:1/m", "logits")
    for url in ("grpc://127.0.0.1:8001", "grpc://me:pw@host:1/m", "grpc://host:1/m?key=1"):
        with pytest.raises(InvalidInput, match="wanted grpc://HOST:PORT/NAME"):
            as_blackbox(url, "logits")
    with pytest.raises(InvalidInput, match="binary form alone"):
        as_blackbox("grpc://127.0.0.1:1/m", "logits", connection=Connection(binary=False))


def test_a_model_that_is_not_there(server: GrpcStandIn) -> None:
    with pytest.raises(NotAnswered, match=r"no such model at this address .NOT_FOUND: Model other not found"):
        as_blackbox(server.url.replace("/m", "/other"), "logits")


def test_both_protocols_may_be_in_one_process() -> None:
    """Messages of the same names, made by another library in the usual pool, do not collide with ours."""
    from google.protobuf import descriptor_pb2, descriptor_pool

    file = descriptor_pb2.FileDescriptorProto(name=f"other{os.getpid()}.proto", package="certibox", syntax="proto3")
    file.message_type.add(name="ModelInferRequest")
    descriptor_pool.Default().Add(file)
    assert messages()["ModelInferRequest"](id="1").id == "1"


def test_tls_is_verified(certificate: tuple[Path, Path], x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    grpc = pytest.importorskip("grpc")
    key, chain = (path.read_bytes() for path in certificate)
    with grpc_stand_in(linear, grpc.ssl_server_credentials([(key, chain)])) as server:
        box = as_blackbox(server.url, "logits", connection=Connection(ca_file=certificate[1]))
        assert np.array_equal(box(x).numpy(), linear(x.clamp(0, 1).numpy()))
        with pytest.raises(NotAnswered, match="was not reached"):
            as_blackbox(server.url, "logits")
        assert len(server.requests) == 1
    with pytest.raises(UnreadableFile, match=r"ca_file .* cannot be read"):
        as_blackbox(server.url, "logits", connection=Connection(ca_file="none.pem"))

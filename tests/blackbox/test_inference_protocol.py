"""A model behind the Open Inference Protocol answers as the same function beside us, in either form of tensors."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from certibox.blackbox import Connection, InferenceProtocolBox, as_blackbox, is_told_apart
from certibox.blackbox.json_text import written
from certibox.errors import BadOutput, BoxChanged, BoxFailed, InvalidInput, NotAnswered
from certibox.queries.client import QueryClient
from servers import StandIn

SHAPE = (3, 2, 4)
WEIGHT = np.random.default_rng(0).normal(size=(5, 24)).astype(np.float32)
BINARY = ("binary_tensor_data",)


@pytest.fixture
def x() -> Tensor:
    return torch.rand((7, *SHAPE), generator=torch.Generator().manual_seed(1)) * 1.4 - 0.2


def linear(images: np.ndarray) -> np.ndarray:
    """Sums of products in one order, whatever the number of images."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    return (flat[:, None, :] * WEIGHT).sum(2, dtype=np.float32)


def port(shape: list[int], datatype: str = "FP32", name: str = "x") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape}


@pytest.mark.parametrize("extensions", [(), BINARY], ids=["json", "binary"])
@pytest.mark.parametrize("answers", [None, False, True], ids=["as asked", "json back", "binary back"])
def test_answers_are_those_of_the_function_to_the_bit(
    server: StandIn, x: Tensor, extensions: tuple[str, ...], answers: bool | None
) -> None:
    url = server.serve_model(linear, extensions=extensions, binary_answers=answers)
    got = as_blackbox(url, "logits")(x)
    assert np.array_equal(got.numpy(), linear(x.clamp(0, 1).numpy()))
    assert server.headers[0]["content-type"] == ("application/octet-stream" if extensions else "application/json")


@pytest.mark.parametrize(("layout", "axes"), [("NCHW", (0, 1, 2, 3)), ("NHWC", (0, 2, 3, 1))])
@pytest.mark.parametrize("flat", [False, True])
def test_layouts(server: StandIn, x: Tensor, layout: str, axes: tuple[int, ...], flat: bool) -> None:
    url, seen = server.serve_model(lambda images: (seen.append(images), linear(images))[1]), list[np.ndarray]()
    declared = {"NCHW": "flat", "NHWC": "flat-NHWC"}[layout] if flat else layout
    as_blackbox(url, "logits", layout=declared)(x)
    wanted = x.clamp(0, 1).numpy().transpose(axes)
    assert np.array_equal(seen[0], wanted.reshape(7, -1) if flat else wanted)


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "FP16", "UINT8"])
def test_the_datatype_of_the_metadata_is_sent(server: StandIn, x: Tensor, datatype: str) -> None:
    seen = list[np.ndarray]()
    url = server.serve_model(
        lambda images: (seen.append(images), linear(images))[1],
        inputs=[port([-1, 3, 2, 4], datatype)],
        extensions=BINARY,
    )
    box = as_blackbox(url, "logits")
    box(x)
    clean = x.clamp(0, 1).numpy()
    wanted = (clean * 255).round() if datatype == "UINT8" else clean
    assert seen[0].dtype == {"FP32": "f4", "FP64": "f8", "FP16": "f2", "UINT8": "u1"}[datatype]
    assert np.array_equal(seen[0], wanted.astype(seen[0].dtype))
    with pytest.raises(InvalidInput, match="shape"):
        as_blackbox(url, "logits", image_shape=(1, 2, 4))


def test_names_sizes_and_classes_come_from_the_metadata(server: StandIn) -> None:
    url = server.serve_model(
        linear, inputs=[port([8, 3, 2, 4], name="pixels")], outputs=[port([8, 5], name="scores")], version=None
    )
    box = as_blackbox(url, "logits")
    assert (box.spec.num_classes, box.spec.max_batch, box.spec.takes) == (5, 8, (3, 2, 4))
    box(torch.rand(2, *SHAPE))
    asked = json.loads(server.bodies[0])
    assert asked["inputs"][0]["name"] == "pixels"
    assert asked["outputs"] == [{"name": "scores"}]
    with pytest.raises(InvalidInput, match=r"num_classes is 4, but .* answers 5 scores"):
        as_blackbox(url, "logits", num_classes=4)
    with pytest.raises(InvalidInput, match="no input 'y', but pixels"):
        as_blackbox(url, "logits", input_name="y")


def test_one_of_several_outputs_is_chosen_before_a_query(server: StandIn) -> None:
    url = server.serve_model(linear, outputs=[port([-1, 5], name="a"), port([-1, 5], name="b")])
    with pytest.raises(InvalidInput, match="has the outputs a, b; choose one by output_name"):
        as_blackbox(url, "logits")
    assert as_blackbox(url, "logits", output_name="b")(torch.rand(1, *SHAPE)).shape == (1, 5)
    assert server.requests == 1


def test_a_flat_input_is_seen_in_the_metadata(server: StandIn, x: Tensor) -> None:
    url = server.serve_model(linear, inputs=[port([-1, 24])])
    assert as_blackbox(url, "logits").spec.layout == "flat"
    assert np.array_equal(as_blackbox(url, "logits")(x).numpy(), linear(x.clamp(0, 1).numpy()))


def test_floats_read_back_to_the_same_floats() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    values = np.concatenate([values[np.isfinite(values)], rng.random(50_000, np.float32)])
    assert np.array_equal(np.array(json.loads(written(values)), np.float32), values)


def test_another_version_stops_the_run_and_its_answer_is_paid(server: StandIn) -> None:
    client = QueryClient(as_blackbox(server.serve_model(linear), "logits"))
    client(torch.rand(3, *SHAPE))
    server.version = "2"
    with pytest.raises(BoxChanged, match="answers as version 2, and answered as 1 before"):
        client(torch.rand(2, *SHAPE))
    assert (client.queries, client.lost) == (5, 0)


def test_the_version_of_the_address_is_the_one_that_must_answer(server: StandIn) -> None:
    server.serve_model(linear)
    server.pages["/v2/models/m/versions/7"] = server.pages["/v2/models/m"]
    server.answers["/v2/models/m/versions/7/infer"] = server.answers["/v2/models/m/infer"]
    with pytest.raises(BoxChanged, match="version 1, and answered as 7"):
        as_blackbox(f"{server.url}/v2/models/m/versions/7", "logits")(torch.rand(1, *SHAPE))


def changed(answer: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({**answer, **changes}).encode()


GOOD = {"model_name": "m", "outputs": [{"name": "scores", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}]}


def output(**changes: Any) -> bytes:
    return changed(GOOD, outputs=[{**GOOD["outputs"][0], **changes}])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html><body>Bad gateway</body></html>", "answered a page of HTML"),
        (b"", "answered nothing"),
        (b'{"outputs": [', "answered no JSON"),
        (b'{"outputs": [{"name": "s", "data": [NaN]}]}', "answered NaN or Infinity, which JSON does not have"),
        (b'{"model_name": "m"}', "JSON without a list of outputs"),
        (output(data=[1.0, None]), "answered null, which stands for NaN, in output scores"),
        (output(data=["a", "b"]), "answered no numbers in output scores"),
        (output(data=[1.0]), r"1 values in output scores of shape \[1, 2\]"),
        (output(shape=[2, 1]), r"shape \(2, 1\) to 1 images"),
        (output(shape=[-1, 2]), "output scores of shape"),
        (output(datatype="BYTES"), "datatype BYTES"),
        (output(parameters={"binary_data_size": 8}, data=None), r"in 8 bytes of 0"),
        (changed(GOOD, outputs=[{**GOOD["outputs"][0], "name": n} for n in "ab"]), "outputs a, b; choose one"),
        (changed(GOOD, id="other"), "request other where"),
    ],
)
def test_a_bad_answer_is_named_and_paid(server: StandIn, body: bytes, words: str) -> None:
    client = QueryClient(as_blackbox(server.serve_model(linear), "logits"))
    server.faults = [(200, {}, body)]
    with pytest.raises(BadOutput, match=words):
        client(torch.rand(1, *SHAPE))
    assert (client.queries, client.lost) == (1, 0)


@pytest.mark.parametrize(
    ("fault", "kind", "words", "paid", "lost"),
    [
        ((401, {}, b'{"error": "who?"}'), NotAnswered, "wants another token, or one at all .status 401: .*who", 0, 0),
        ((404, {}, b""), NotAnswered, "no such model", 0, 0),
        ((413, {}, b""), NotAnswered, "lower max_batch", 0, 0),
        ((422, {}, b'{"detail": ["bad"]}'), NotAnswered, "does not take inputs of this form", 0, 0),
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), NotAnswered, "redirection", 0, 0),
        (
            (500, {}, b'{"error": "out of memory"}'),
            BoxFailed,
            "status 500: .*out of memory.*1 query counts as lost",
            0,
            1,
        ),
        ((400, {}, b""), BoxFailed, "status 400", 0, 1),
        ("reset after", BoxFailed, "broke off its answer", 0, 1),
        ("cut", BoxFailed, "broke off its answer", 0, 1),
        ("late", BoxFailed, "did not answer it within 0.5 seconds", 0, 1),
    ],
)
def test_what_a_failure_costs(
    server: StandIn, fault: Any, kind: type[Exception], words: str, paid: int, lost: int
) -> None:
    url = server.serve_model(linear)
    client = QueryClient(as_blackbox(url, "logits", connection=Connection(timeout=0.5)))
    server.faults = [fault]
    with pytest.raises(kind, match=words):
        client(torch.rand(1, *SHAPE))
    assert (client.queries, client.lost) == (paid, lost)
    client(torch.rand(1, *SHAPE))  # and goes on
    assert (client.queries, client.lost) == (paid + 1, lost)


def test_an_answer_that_is_too_large_is_not_read(server: StandIn) -> None:
    url = server.serve_model(linear)
    box = as_blackbox(url, "logits", connection=Connection(largest_answer=1000))
    server.faults = [(200, {}, b" " * 100_000)]
    with pytest.raises(BadOutput, match="more than 1,000 bytes"):
        QueryClient(box)(torch.rand(1, *SHAPE))


def test_a_request_holds_no_more_bytes_than_are_allowed(server: StandIn) -> None:
    url = server.serve_model(linear, extensions=BINARY)
    box = as_blackbox(url, "logits", connection=Connection(largest_request=1024 + 3 * 96))
    QueryClient(box)(torch.rand(8, *SHAPE))
    assert sorted(len(body) for body in server.bodies)[-1] <= 1024 + 3 * 96
    assert server.requests == 3


def test_a_box_can_go_to_another_process(server: StandIn, x: Tensor) -> None:
    box = as_blackbox(server.serve_model(linear), "logits")
    assert torch.equal(pickle.loads(pickle.dumps(box))(x), box(x))


def test_metadata_tell_boxes_apart_but_do_not_vouch_for_the_model(server: StandIn) -> None:
    one, two = as_blackbox(server.serve_model(linear), "logits"), as_blackbox(server.serve_model(linear), "logits")
    assert one.spec.model_id == two.spec.model_id
    assert not is_told_apart(one)
    other = as_blackbox(server.serve_model(linear, extensions=BINARY), "logits")
    assert other.spec.model_id != one.spec.model_id
    named = as_blackbox(server.serve_model(linear), "logits", identity="release 12")
    assert is_told_apart(named)
    assert named.spec.model_id != one.spec.model_id


def test_a_server_that_is_not_there_and_a_model_that_is_not_there(server: StandIn) -> None:
    with pytest.raises(NotAnswered, match=r"127.0.0.1:1/v2 was not reached"):
        as_blackbox("http://127.0.0.1:1/v2/models/m", "logits")
    with pytest.raises(NotAnswered, match=r"no model at .*/v2/models/other"):
        as_blackbox(f"{server.url}/v2/models/other", "logits")
    with pytest.raises(InvalidInput, match="no address of the Open Inference Protocol"):
        as_blackbox(f"{server.url}/predict", "logits")
    with pytest.raises(InvalidInput, match="came with a user, a query or a fragment") as caught:
        InferenceProtocolBox("http://me:hunter2@127.0.0.1:1/v2/models/m", "logits")
    assert "hunter2" not in str(caught.value)

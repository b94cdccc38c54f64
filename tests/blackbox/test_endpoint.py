"""Any endpoint that answers JSON is a box: by a template, an encoding and a path, or by a ready profile."""

from __future__ import annotations

import base64
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from torch import Tensor

from certibox.blackbox import BoxSpec, Connection, Endpoint, EndpointBox, as_blackbox, check_outputs
from certibox.blackbox.outputs import completed
from certibox.errors import BadOutput, BoxChanged, BoxFailed, InvalidInput
from certibox.queries.client import QueryClient
from certibox.training.losses import LOSSES, predictions
from servers import StandIn

LABELS = ("cat", "dog", "owl")


@pytest.fixture
def x() -> Tensor:
    """Images on the grid of 8 bits, which every encoding but JPEG keeps."""
    levels = torch.randint(0, 256, (4, 3, 5, 4), generator=torch.Generator().manual_seed(0))
    return levels.float() / 255


def scores_of(images: np.ndarray) -> np.ndarray:
    """Shares of the three channels of images (n, 3, h, w): probabilities."""
    sums = images.astype(np.float64).sum((2, 3))
    return sums / sums.sum(1, keepdims=True)


def decoded(text: str) -> np.ndarray:
    """A picture in base64 as an image (3, h, w) on [0, 1]."""
    return np.asarray(Picture.open(io.BytesIO(base64.b64decode(text)))).transpose(2, 0, 1) / 255


READERS = {  # image in a request -> (3, h, w)
    "nested": lambda image: np.array(image),
    "flat": lambda image: np.array(image).reshape(3, 5, 4),
    "base64-float32": lambda image: np.frombuffer(base64.b64decode(image), "<f4").reshape(3, 5, 4),
    "base64-png": decoded,
    "base64-jpeg": decoded,
}


@pytest.mark.parametrize("image", READERS)
@pytest.mark.parametrize("many", [True, False])
def test_every_encoding_reaches_the_model(server: StandIn, x: Tensor, image: str, many: bool) -> None:
    read = READERS[image]
    wanted = scores_of(x.numpy())

    def answer(asked: Any) -> Any:
        if many:
            return {"out": {"scores": scores_of(np.stack([read(one["img"]) for one in asked["batch"]])).tolist()}}
        return {"out": {"scores": scores_of(read(asked["img"])[None])[0].tolist()}}

    request, item = ({"batch": "$images"}, {"img": "$image"}) if many else ({"img": "$image", "k": 3}, None)
    endpoint = Endpoint(server.serve_json("/ask", answer), request=request, item=item, image=image, answer="out.scores")
    got = QueryClient(as_blackbox(endpoint, "probabilities"))(x)
    np.testing.assert_allclose(got.numpy(), wanted, atol=0.03 if image.endswith("jpeg") else 1e-6)
    assert server.requests == (1 if many else 4)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("part", [None, "file"])
def test_pictures_as_files(server: StandIn, x: Tensor, kind: str, part: str | None) -> None:
    def answer(headers: dict[str, str], body: bytes) -> Any:
        content = body
        if part is not None:
            edge = headers["content-type"].partition("boundary=")[2].encode()
            head, _, rest = body.partition(b"\r\n\r\n")
            assert b'name="file"' in head
            content = rest.removesuffix(b"\r\n--" + edge + b"--\r\n")
        pixels = np.asarray(Picture.open(io.BytesIO(content))).transpose(2, 0, 1)
        return scores_of(pixels[None])[0].tolist()

    endpoint = Endpoint(server.serve_bytes("/ask", answer), image=f"file-{kind}", part=part, answer="@")
    got = QueryClient(as_blackbox(endpoint, "probabilities"))(x)
    np.testing.assert_allclose(got.numpy(), scores_of(x.numpy()), atol=0.03 if kind == "jpeg" else 1e-6)


# --- ready profiles: each against an answer in the server's documented form ---


def test_tensorflow_serving(server: StandIn, x: Tensor) -> None:
    def answer(asked: Any) -> Any:
        return {"predictions": scores_of(np.array(asked["instances"]).transpose(0, 3, 1, 2)).tolist()}

    url = server.serve_json("/v1/models/half:predict", answer)
    box = as_blackbox(Endpoint(url, profile="tensorflow-serving"), "probabilities", layout="NHWC")
    np.testing.assert_allclose(QueryClient(box)(x).numpy(), scores_of(x.numpy()), atol=1e-6)


def test_torchserve(server: StandIn, x: Tensor) -> None:
    def answer(headers: dict[str, str], body: bytes) -> Any:
        pixels = np.asarray(Picture.open(io.BytesIO(body))).transpose(2, 0, 1)
        return dict(sorted(zip(LABELS, scores_of(pixels[None])[0].tolist(), strict=True), key=lambda pair: -pair[1]))

    endpoint = Endpoint(server.serve_bytes("/predictions/m", answer), profile="torchserve", labels=LABELS)
    got = QueryClient(as_blackbox(endpoint, "probabilities"))(x)
    np.testing.assert_allclose(got.numpy(), scores_of(x.numpy()), atol=1e-6)
    labels = QueryClient(as_blackbox(endpoint, "labels"))(x)
    assert labels.tolist() == scores_of(x.numpy()).argmax(1).tolist()


def test_mlflow(server: StandIn, x: Tensor) -> None:
    def answer(asked: Any) -> Any:
        assert list(asked) == ["inputs"]
        return {"predictions": scores_of(np.array(asked["inputs"])).tolist()}

    box = as_blackbox(Endpoint(server.serve_json("/invocations", answer), profile="mlflow"), "probabilities")
    np.testing.assert_allclose(QueryClient(box)(x).numpy(), scores_of(x.numpy()), atol=1e-6)


@pytest.fixture
def label_list(server: StandIn) -> str:
    """An endpoint that names the two likeliest classes, in percent, rounded to two decimals."""

    def answer(asked: Any) -> Any:
        scores = scores_of(decoded(asked["Image"]["Bytes"])[None])[0]
        order = np.argsort(-scores)[:2]
        return {"Labels": [{"Name": LABELS[i], "Confidence": round(100 * scores[i], 2)} for i in order]}

    return server.serve_json("/", answer)


def test_a_label_list(server: StandIn, label_list: str, x: Tensor) -> None:
    endpoint = Endpoint(label_list, profile="label-list", labels=LABELS)
    got = QueryClient(as_blackbox(endpoint, "top-k"))(x)
    np.testing.assert_allclose(got.numpy(), scores_of(x.numpy()), atol=2e-4)  # what is left to 1 is the third's
    labels = QueryClient(as_blackbox(endpoint, "labels"))(x)
    assert labels.tolist() == scores_of(x.numpy()).argmax(1).tolist()
    throttled = b'{"__type": "ThrottlingException", "message": "slow down"}'
    server.faults = [(400, {}, throttled), (400, {}, throttled)]
    client = QueryClient(as_blackbox(endpoint, "labels"))
    client(x[:1])
    assert (client.queries, client.attempts, client.lost) == (1, 3, 0)
    server.faults = [(400, {"Retry-After": "0"}, b" " * 1000 + throttled)]  # wherever it stands in the refusal
    pickle.loads(pickle.dumps(client))(x[:1])
    assert server.requests == 13
    server.faults = [(400, {}, b'{"__type": "InvalidImageFormatException"}')]
    with pytest.raises(BoxFailed, match="InvalidImageFormatException"):
        client(x[:1])


def test_an_unknown_name_is_named(server: StandIn, label_list: str, x: Tensor) -> None:
    client = QueryClient(as_blackbox(Endpoint(label_list, profile="label-list", labels=("bat", "bee")), "labels"))
    with pytest.raises(BadOutput, match=r"answered the label '(cat|dog|owl)', which is none of the 2 declared"):
        client(x[:1])
    assert client.queries == 1


# --- top-k ---


def test_what_is_left_out_has_an_even_share_below_the_least_that_was_said() -> None:
    nan = torch.nan
    scores = torch.tensor([[0.7, nan, 0.2, nan], [nan, 0.3, nan, nan], [0.25, 0.25, 0.25, 0.25], [nan] * 4])
    got = completed(scores)
    torch.testing.assert_close(got[0], torch.tensor([0.7, 0.05, 0.2, 0.05]))  # the 0.1 that is missing, halved
    assert got[1].argmax() == 1
    assert bool((got[1][[0, 2, 3]] < 0.3).all())
    torch.testing.assert_close(got[1].sum(), torch.tensor(1.0))
    assert torch.equal(got[2], scores[2])
    assert bool(got[3].isnan().all())


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_the_top_class_stays_the_one_that_was_said(classes: int) -> None:
    least = torch.full((1, classes), torch.nan)
    least[0, classes - 1] = 1 / classes  # whose even shares would tie with it
    assert int(completed(least).argmax()) == classes - 1
    assert int(predictions(check_outputs(completed(least), 1, BoxSpec("top-k")), "top-k")) == classes - 1


def test_the_loss_of_a_class_that_was_said_is_exact() -> None:
    scores = torch.tensor([[0.7, torch.nan, 0.2, torch.nan]])
    loss = LOSSES["top-k"](completed(scores), torch.tensor([2]))
    torch.testing.assert_close(loss, -torch.tensor([0.2]).log())


def test_a_function_may_leave_classes_out(x: Tensor) -> None:
    def model(images: np.ndarray) -> np.ndarray:
        scores = scores_of(images)
        scores[scores < scores.max(1, keepdims=True)] = np.nan
        return scores

    got = QueryClient(as_blackbox(model, "top-k"))(x)
    assert got.argmax(1).tolist() == scores_of(x.numpy()).argmax(1).tolist()
    with pytest.raises(BadOutput, match="must be finite"):
        QueryClient(as_blackbox(lambda images: np.full((len(images), 3), np.nan), "top-k"))(x)
    with pytest.raises(InvalidInput, match="only functions and endpoints"):
        as_blackbox(torch.nn.Flatten(), "top-k")


# --- what cannot be ---


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"profile": "torchsreve"}, "profile is 'torchsreve'; give .*torchserve"),
        ({"request": {"a": 1}}, r"holds \$images 0 times and \$image 0 times"),
        ({"request": ["$images", "$images"]}, r"\$images 2 times"),
        ({"request": "$images", "item": {"a": 1}}, r"item must hold \$image once"),
        ({"image": "bmp"}, "image is 'bmp'"),
        ({"answer": "a..b"}, "answer is 'a..b', which is no JMESPath"),
        ({"form": "mapping"}, "form is 'mapping' without labels"),
        ({"labels": ["a", "a"]}, "labels name 'a' twice"),
        ({"labels": ["a"]}, "fewer than two classes"),
        ({"labels": "abc"}, "labels are no list of names"),
        ({"image": "file-png", "request": {"a": "$images"}}, "one picture a request"),
        ({"part": "file"}, "goes with image: file-png"),
        ({"method": "GET"}, "method is 'GET'"),
        ({"connection": {"timeot": 3}}, "wanted its fields"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        Endpoint("http://127.0.0.1:1/ask", **given)


@pytest.mark.parametrize(
    ("given", "outputs", "words"),
    [
        ({"form": "top-k", "labels": LABELS}, "probabilities", "give top-k or labels"),
        ({"form": "top-k", "labels": LABELS}, "top-k", "'top-k' without scores"),
        ({"url": "http://a:b@127.0.0.1/"}, "logits", "came with a user"),
        ({"url": "http://127.0.0.1/?key=1"}, "logits", "came with a user, a query"),
        ({"url": "ftp://127.0.0.1/"}, "logits", "is no address"),
    ],
)
def test_what_an_endpoint_does_not_answer_is_refused(given: dict[str, Any], outputs: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        EndpointBox(Endpoint(**{"url": "http://127.0.0.1:1/ask", **given}), outputs)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"other": 1}, "answered 4 images with nothing at 'predictions'"),
        ({"predictions": [[0.5, 0.5]]}, "answered 4 images with 1 entries"),
        ({"predictions": [[0.5, None]] * 4}, "answered null among the scores"),
        ({"predictions": [[0.5], [0.5, 0.5], [1], [2]]}, "where numbers were wanted"),
        ({"predictions": [{"a": 1}] * 4}, "where numbers were wanted"),
    ],
)
def test_a_bad_answer_is_named(server: StandIn, x: Tensor, answer: Any, words: str) -> None:
    client = QueryClient(as_blackbox(Endpoint(server.serve_json("/ask", lambda _: answer)), "probabilities"))
    with pytest.raises(BadOutput, match=words):
        client(x)
    assert (client.queries, client.lost) == (4, 0)


def test_a_mapping_without_a_class_says_what_to_declare(server: StandIn, x: Tensor) -> None:
    url = server.serve_json("/ask", lambda _: [{"cat": 0.9, "dog": 0.1}] * 4)
    endpoint = Endpoint(url, answer="@", form="mapping", labels=LABELS)
    with pytest.raises(BadOutput, match=r"without a score for 'owl'; .*outputs='top-k'"):
        QueryClient(as_blackbox(endpoint, "probabilities"))(x)
    assert QueryClient(as_blackbox(endpoint, "top-k"))(x)[:, 0].tolist() == pytest.approx([0.9] * 4)


def test_another_version_stops_the_run(server: StandIn, x: Tensor) -> None:
    versions = iter([1, 1, 2])
    url = server.serve_json("/ask", lambda _: {"predictions": [[0.5, 0.5]] * 4, "meta": {"v": next(versions)}})
    client = QueryClient(as_blackbox(Endpoint(url, version="meta.v"), "probabilities"))
    client(x)
    client(x)
    with pytest.raises(BoxChanged, match="version 2, and answered as 1 before"):
        client(x)


def test_limits_and_secrets_are_not_what_tells_endpoints_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "a-key")
    one = Endpoint("http://127.0.0.1:1/ask", connection=Connection(timeout=1, token_env="A"))
    two = Endpoint("http://127.0.0.1:1/ask", busy_texts=("slow",))
    other = Endpoint("http://127.0.0.1:1/ask", image="flat")
    assert EndpointBox(one, "logits").spec.model_id == EndpointBox(two, "logits").spec.model_id
    assert EndpointBox(one, "logits").spec.model_id != EndpointBox(other, "logits").spec.model_id


def test_a_variable_that_is_not_set_is_found_before_a_request() -> None:
    endpoint = Endpoint("http://127.0.0.1:1/ask", connection=Connection(headers={"X-Key": "${NOT_SET_ANYWHERE}"}))
    with pytest.raises(InvalidInput, match="the variable NOT_SET_ANYWHERE of the environment"):
        EndpointBox(endpoint, "logits")

"""The Python blocks of the docs run, those of one page one after the other in one namespace.

They run at a smaller size: `SMALLER` names the public functions that get less to do. What a page expects its reader to
have, such as an endpoint, is made by `reader` and `FURNISH`.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

import certibox as cb
import certibox.reconstruction
from certibox.networks import AUTOENCODERS, dncnn
from doubles import QuadraticBox
from gateways import ask
from places import FIXTURES, ROOT
from servers import StandIn

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "examples" / "README.md"]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[tuple[str, int]]:
    """The Python blocks of a page, each with the number of lines before it."""
    text = page.read_text(encoding="utf-8")
    return [(found[1], text.count("\n", 0, found.start(1))) for found in BLOCK.finditer(text)]


def test_there_are_blocks_and_each_is_closed() -> None:
    found = {name(page): len(blocks(page)) for page in PAGES}
    assert found["README.md"] >= 1
    assert found["docs/quickstart.md"] >= 4
    for page in PAGES:
        opened = re.findall(r"^```(?:python|py)\b", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(opened) == len(blocks(page)), page


# ------------------------------------------------------------------------------------------------- smaller sizes


def shrunk(whole: Callable[..., Any], smaller: Callable[..., Any]) -> Callable[..., Any]:
    """A function that passes its arguments through `smaller`, which calls `whole`."""

    @functools.wraps(whole)
    def run(*args: Any, **more: Any) -> Any:
        return smaller(whole, *args, **more)

    return run


def few(images: Any, count: int) -> Any:
    return images.select(range(min(count, len(images)))) if isinstance(images, cb.Images) else images


def short_schedule(make: Callable[..., cb.Schedule], epochs: int, *args: Any, **more: Any) -> cb.Schedule:
    return make(1, *args, **more | {"denoise_epochs": min(more.get("denoise_epochs", 0), 1)})


def on_few_images(function: Callable[..., Any], images: Any, *args: Any, **more: Any) -> Any:
    held = {"validation": few(more["validation"], 8)} if "validation" in more else {}
    return function(few(images, 24), *args, **more | held)


def with_a_small_denoiser(train: Callable[..., Any], client: Any, images: Any, *args: Any, **more: Any) -> Any:
    c = images.shape[0]
    return on_few_images(
        lambda chosen, *args, **more: train(client, chosen, *args, **{"denoiser": dncnn(c, 3, 4)} | more),
        images,
        *args,
        **more,
    )


def with_few_votes(certify: Callable[..., Any], self: Any, x: Any, *args: Any, **more: Any) -> Any:
    if (sampling := more.get("sampling")) is not None:  # certify_dataset was given fewer already
        assert sampling.n <= 1000
        return certify(self, x, *args, **more)
    return certify(self, x, *args, **more | {"n": min(more["n"], 1000)})


def of_few_images(function: Callable[..., Any], first: Any, images: Any, *args: Any, **more: Any) -> Any:
    smaller = {"n": min(more["n"], 1000)} if "n" in more else {}
    return function(first, few(images, 2), *args, **more | smaller)


def at_the_stand_in(function: Callable[..., Any], model: Any, *args: Any, **more: Any) -> Any:
    """The reader's server is one of this test's."""
    if isinstance(model, str) and model.startswith(READERS_SERVER):
        model = os.environ["STAND_IN"] + model.removeprefix(READERS_SERVER)
    return function(model, *args, **more)


READERS_SERVER = "http://127.0.0.1:8080"
SMALLER: list[tuple[Any, str, Callable[..., Any]]] = [
    (cb, "as_blackbox", at_the_stand_in),
    (cb, "one_cycle", short_schedule),
    (cb, "pretrain_autoencoder", on_few_images),
    (cb, "train", with_a_small_denoiser),
    (cb, "certify_dataset", of_few_images),
    (cb.SmoothedClassifier, "certify", with_few_votes),
    (certibox.reconstruction, "train_reconstructor", on_few_images),
    (certibox.reconstruction, "evaluate", of_few_images),
]


# ---------------------------------------------------------------------------------------- what the reader has


def save_digits(folder: Path, count: int, side: int) -> None:
    """Images of digits of the split that the folder is named after, a folder a class."""
    digits = cb.load_images("digits", folder.name)
    assert digits.labels is not None
    for i in range(count):
        at = i % len(digits)
        image = Image.fromarray(digits.images[at, 0].numpy())
        kind = folder / str(int(digits.labels[at]))
        kind.mkdir(parents=True, exist_ok=True)
        image.resize((side, side)).save(kind / f"{i:04}.png", compress_level=1)


def rows_of(sigma: float, darker: float) -> list[Any]:
    """Certificates of three grey images."""
    box = cb.SmoothedClassifier(lambda x: (x.mean((1, 2, 3)) > 0.5).long(), num_classes=2, sigma=sigma)
    pixels = torch.tensor([0.1, 0.3, 0.9]).sub(darker).reshape(3, 1, 1, 1).expand(3, 1, 8, 8)
    images = cb.load_images((pixels, [0, 0, 1]))
    return cb.certify_dataset(box, images, n0=10, n=100, alpha=0.001, seed=0)


def write_release(folder: Path) -> None:
    """The two files of an autoencoder, as its authors released them."""
    autoencoder = AUTOENCODERS["ae-192"]()
    for role in ("encoder", "decoder"):
        state = {f"module.{role}.{name}": value for name, value in getattr(autoencoder, role).state_dict().items()}
        torch.save({"epoch": 1, "state_dict": state}, folder / f"cifar10_ae192_{role}.pth.tar")


def reader() -> dict[str, Any]:
    """What every page expects its reader to have: a model behind an endpoint, and an image."""
    weight = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)

    def my_endpoint(images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.float32
        powers = np.exp(images.reshape(len(images), -1) @ weight)
        return powers / powers.sum(1, keepdims=True)

    def my_logits(x: Tensor) -> Tensor:
        return x.flatten(1) @ torch.from_numpy(weight)

    return {"my_endpoint": my_endpoint, "my_logits": my_logits, "x": torch.full((1, 8, 8), 0.5)}


def guarantees() -> dict[str, Any]:
    sigmas, uses = {"quarter": 0.25, "half": 0.5}, {"validation": 0.0, "test": 0.05}
    return {f"{use}_{size}": rows_of(sigmas[size], uses[use]) for size in sigmas for use in uses}


def models_and_data() -> dict[str, Any]:
    """A model of each kind for digits of 8×8 pixels, and digits in files."""
    from datasets import Dataset
    from sklearn.linear_model import LogisticRegression

    from file_makers import linear_tflite, onnx_with_weights_elsewhere

    digits = cb.load_images("digits", split="validation")
    assert digits.labels is not None
    pixels, labels = digits.floats().flatten(1).numpy(), digits.labels.numpy()
    weight = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    onnx_with_weights_elsewhere(Path("model.onnx"), "weights.bin", weight)
    linear_tflite(Path("model.tflite"), weight.T, (8, 8, 1))
    Image.fromarray(digits.images[0, 0].numpy()).save("photo.png")
    np.savez("digits.npz", images=digits.images.numpy(), labels=labels)
    Dataset.from_dict({"image": digits.images[:9].tolist(), "digit": labels[:9]}).to_parquet("digits.parquet")
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    return {"network": network, "classifier": LogisticRegression(max_iter=9, tol=1.0).fit(pixels, labels)}


FURNISH: dict[str, Callable[[], dict[str, Any]]] = {
    "docs/guarantees.md": guarantees,
    "docs/models-and-data.md": models_and_data,
    "docs/extending.md": lambda: write_release(Path()) or {},
    "docs/how-to/resume-and-audit.md": lambda: copy_certificates(Path("runs/mine")) or {},
    "docs/reproducing.md": lambda: save_digits(Path("data/mnist/train"), 1966, 28) or {},
}


def copy_certificates(folder: Path) -> None:
    folder.mkdir(parents=True)
    shutil.copy(FIXTURES / "interrupted" / "reference" / "certification" / "certificates.jsonl", folder)


# -------------------------------------------------------------------------------------------- what came out


def defended(told: dict[str, Any]) -> None:
    assert told["client"].queries > 0
    assert told["certificate"].sigma == told["defense"].sigma == 0.25


def certified(told: dict[str, Any]) -> None:
    """The defense is in front of the meter, and the rows have what the meter counted."""
    assert told["defense"].client is told["client"]
    assert told["client"].spent["certify"] == sum(row.queries for row in told["rows"])
    assert {row.sigma for row in told["rows"]} == {told["defense"].sigma} == {0.25}


def quickstart(told: dict[str, Any]) -> None:
    defended(told)
    assert [row.idx for row in told["rows"]] == [0, 1]
    assert [answer.shape for answer in told["answers"]] == [(25, 10)] * 4
    assert told["client"].spent["audit"] == 100


def extended(told: dict[str, Any]) -> None:
    """The box answers behind the meter, and the estimator's mean is the gradient."""
    client = cb.QueryClient(told["MyBox"]())
    assert client(torch.rand(3, 1, 8, 8)).shape == (3, 10)
    matrix, linear = torch.eye(4), torch.arange(4.0)
    box, z = QuadraticBox(matrix, linear), torch.ones(1, 4)
    estimator = told["GaussianEstimator"](q=20_000, mu=1e-3)

    def values(points: Tensor) -> Tensor:  # (k, b, d) -> (k, b)
        return box(points.reshape(-1, 1, 2, 2)).reshape(points.shape[:2])

    estimate = estimator.estimate(values, z, torch.Generator().manual_seed(0))
    gradient = z @ matrix + linear
    # Entry i of u u'g has variance |g|² + g_i², from E u_i⁴ = 3.
    error = ((gradient.square().sum() + gradient.square()) / estimator.q).sqrt()
    assert ((estimate - gradient).abs() < 4 * error + 0.01).all()
    assert estimator.cost(4) == estimator.q + 1


def brought(told: dict[str, Any]) -> None:
    """Every box answers for ten classes, and every set has its images."""
    assert [cb.QueryClient(box)(told["x"][None]).shape for box in told["boxes"]] == [(1, 10)] * 7
    assert [len(images) for images in told["sets"]] == [100, 9, 297, 500, 500, 1]
    assert [images.labels is None for images in told["sets"]] == [False] * 5 + [True]
    train, test = (set(images.digests.tolist()) for images in (told["train"], told["test"]))
    assert (len(train | test), len(train & test)) == (297, 0)


def served(told: dict[str, Any]) -> None:
    """The application answers below the address where it is mounted."""
    try:
        assert ask(told["site"], "GET", "/safe/v2/health/ready").json == {"ready": True}
        assert told["client"].spent == {"fingerprint": 8}  # the canaries alone
    finally:
        told["defended"].state.close()


def asked_remotely(told: dict[str, Any]) -> None:
    """The address answers, and is metered."""
    client = told["client"]
    np.testing.assert_allclose(client(told["x"][None]).numpy(), np.full((1, 10), 0.1), rtol=1e-6)
    assert client.queries == 1


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "README.md": certified,
    "docs/quickstart.md": quickstart,
    "docs/extending.md": extended,
    "docs/how-to/remote.md": asked_remotely,
    "docs/how-to/serve.md": served,
    "docs/models-and-data.md": brought,
}


def shares(images: np.ndarray) -> np.ndarray:
    """Ten scores of flat digits that sum to one."""
    powers = np.exp(images.reshape(len(images), -1)[:, :10])
    return powers / powers.sum(1, keepdims=True)


@pytest.fixture
def readers_server(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of the page on remote models."""
    server.serve_model(shares, "digits")
    monkeypatch.setenv("STAND_IN", server.url)
    monkeypatch.setenv("DIGITS_TOKEN", "a-token")


@pytest.mark.usefixtures("readers_server")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        save_digits(Path("path/to/folder", split), 100, 8)
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where a dataclass of a block looks for its names
    told = vars(module)
    told |= reader() | FURNISH.get(name(page), dict)()
    for owner, attribute, smaller in SMALLER:
        monkeypatch.setattr(owner, attribute, shrunk(getattr(owner, attribute), smaller))
    for block, above in blocks(page):
        exec(compile("\n" * above + block, str(page), "exec"), told)
    CHECKS.get(name(page), lambda told: None)(told)


def test_the_endpoints_of_the_page_on_remote_models_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISION_KEY", "a-key")
    page = (ROOT / "docs" / "how-to" / "remote.md").read_text(encoding="utf-8")
    described = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    kinds = (("top-k", 256), ("probabilities", 256), ("top-k", None))
    for fields, (outputs, levels) in zip(described, kinds, strict=True):
        box = cb.as_blackbox(cb.Endpoint("https://127.0.0.1:1/ask", **fields), outputs=outputs)
        assert box.spec.levels == levels

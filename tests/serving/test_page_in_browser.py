"""The page for people, in a browser: an image chosen by keyboard, file or drop, and what it says of the answer."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import shutil
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import certibox
from certibox.certification.sampling import SEQUENTIAL
from certibox.serving.accounts import new_token
from gateways import PATH
from places import SHARED

playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
pytest.importorskip("fastapi", reason="fastapi is what the gateway is made of")
uvicorn = pytest.importorskip("uvicorn", reason="uvicorn serves the page")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("chromium shows the page", allow_module_level=True)

SIGMA, N = 0.25, 1000
NAMES = ("red", "green", "blue")
SAMPLES = np.empty((4, 8, 8, 3), np.uint8)
SAMPLES[:3] = 70 + 120 * np.eye(3, dtype=np.uint8)[:, None, None]
SAMPLES[3] = 128  # which abstains
WIDE = (1, 6, 10)  # shape of the grey images of the second model
SCREENSHOT = "CERTIBOX_SCREENSHOT"  # file that a picture of the page is written to


class Strongest:
    """Classes 0, 1 and 2 for images that are mostly red, green and blue; it can be held, all but some batches."""

    def __init__(self) -> None:
        self.free, self.let = threading.Event(), threading.Semaphore(0)
        self.free.set()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if not self.free.is_set() and not self.let.acquire(blocking=False):
            self.free.wait(20)
        scores = np.exp(20 * x.mean((2, 3)))
        return scores / scores.sum(1, keepdims=True)


class Denoising:
    """Classes 0 to 11 of brightness behind a denoiser that takes means of neighbours."""

    image_shape = WIDE
    answers_alone = True

    def classes(self, x: Tensor) -> Tensor:
        bright = self.denoise(x).flatten(1).mean(1)
        return -((bright[:, None] - (torch.arange(12) + 0.5) / 12) ** 2)

    def denoise(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


@dataclass
class Site:
    """A gateway that listens."""

    url: str
    app: Any
    box: Strongest | None = None
    token: str | None = None

    def infer(self, pixels: np.ndarray, **parameters: Any) -> dict[str, Any]:
        """What the protocol answers for one image (h, w, c) of bytes."""
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        tensor = {"name": "input", "shape": list(x.shape), "datatype": "FP32", "data": x.flatten().tolist()}
        body = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
        request = urllib.request.Request(f"{self.url}{PATH}/infer", body)
        if self.token is not None:
            request.add_header("Authorization", f"Bearer {self.token}")
        with urllib.request.urlopen(request) as reply:
            return {one["name"]: one["data"] for one in json.load(reply)["outputs"]}


@dataclass
class Seen:
    """What a page asked for, and what went wrong in it."""

    page: Any
    addresses: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    refused: int = 0
    """Errors of the console that say no more than that the server refused a request."""

    def told(self, message: Any) -> None:
        if message.type in ("error", "warning") and "the server responded with a status of" in message.text:
            self.refused += 1
        elif message.type in ("error", "warning"):
            self.errors.append(message.text)


@contextmanager
def listening(app: Any, **more: Any) -> Iterator[Site]:
    door = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
    thread.start()
    try:
        end = time.monotonic() + 20
        while not server.started and thread.is_alive() and time.monotonic() < end:
            time.sleep(0.01)
        assert server.started
        yield Site(f"http://127.0.0.1:{door.getsockname()[1]}", app, **more)
    finally:
        server.should_exit = True
        thread.join()
        door.close()


@contextmanager
def showing(browser: Any, url: str, model: Callable[[Any], None] | None = None, **more: Any) -> Iterator[Seen]:
    """A page that has loaded; nothing it does may fail or leave its own server. What it is told can be changed."""
    with browser.new_context(**more) as context:
        seen = Seen(page := context.new_page())
        page.set_default_timeout(20_000)
        page.on("request", lambda request: seen.addresses.append(request.url))
        page.on("requestfailed", lambda request: seen.given_up.append(request.url))
        page.on("console", seen.told)
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        if model is not None:
            page.route("**/page/model", model)
        page.goto(url + "/")
        page.locator("#ready[class]").wait_for()
        yield seen
        assert seen.errors == []
        assert [address for address in seen.addresses if not address.startswith(url + "/")] == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as tool:
        one = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Three classes of colours, samples, and nobody who must say who asks."""
    box = Strongest()
    client = certibox.QueryClient(
        certibox.as_blackbox(box, "probabilities", num_classes=3, image_shape=(3, 8, 8), name="colours")
    )
    samples = replace(certibox.images_from_arrays(SAMPLES, [0, 1, 2, 0]), class_names=NAMES)
    app = certibox.serving.app(certibox.SmoothedClassifier(client, 3, SIGMA), samples=samples)
    with listening(app, box=box) as one:
        yield one


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Twelve classes of grey behind a denoiser, no samples, and a token that is wanted."""
    tokens = tmp_path_factory.mktemp("closed") / "tokens"
    token = new_token(tokens, "somebody", None)
    smoothed = certibox.SmoothedClassifier(Denoising().classes, 12, 0.1)
    with listening(certibox.serving.app(smoothed, tokens=tokens), token=token) as one:
        yield one


@pytest.fixture
def seen(browser: Any, site: Site) -> Iterator[Seen]:
    with showing(browser, site.url) as one:
        one.page.locator("#samples button").nth(len(SAMPLES) - 1).wait_for()
        yield one


@pytest.fixture
def page(seen: Seen) -> Any:
    return seen.page


# --- what tests do, and what they read --------------------------------------------------------------------------------


def pick(page: Any, number: int) -> None:
    page.locator("#samples button").nth(number).click()


def certify(page: Any) -> str:
    """Press the button; what the page says at the end."""
    page.get_by_role("button", name="Certify", exact=True).click()
    return said(page)


def said(page: Any) -> str:
    page.locator("#answer[data-outcome]").wait_for()
    return page.locator("#answer").inner_text()


def radius_of(page: Any) -> float:
    return float(page.locator("#answer").get_attribute("data-radius"))


def counted(page: Any) -> dict[str, int]:
    """The votes, as rows of the table have them, by the name of the class."""
    rows = page.get_by_role("row").all()[1:]
    cells = [[cell.inner_text() for cell in row.locator("th, td").all()] for row in rows]
    return {name: int(votes.replace(",", "")) for name, _, votes, _ in cells}


def drawn(page: Any, name: str) -> np.ndarray:
    """What a canvas shows, (h, w, 3)."""
    script = """canvas => [canvas.height, canvas.width,
        ...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]"""
    height, width, *data = page.locator(f"canvas#{name}").evaluate(script)
    return np.array(data).reshape(height, width, 4)[..., :3]


def png(pixels: np.ndarray) -> bytes:
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def give(page: Any, content: bytes, name: str = "some.png") -> None:
    page.get_by_label("choose a file").set_input_files({"name": name, "mimeType": "image/png", "buffer": content})
    page.locator("#about", has_text=name).wait_for()


def tab_to(page: Any, selector: str) -> None:
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            return
    raise AssertionError(f"{selector} cannot be reached")


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 2])
def test_a_sample_is_certified_by_keyboard_alone(seen: Seen, site: Site, number: int) -> None:
    page = seen.page
    tab_to(page, f"[aria-label='sample {number + 1}, class {NAMES[number]}']")
    page.keyboard.press("Enter")
    tab_to(page, "#certify")
    page.keyboard.press("Enter")
    text, radius, known = said(page), radius_of(page), site.infer(SAMPLES[number])
    assert known["label"] == [number]
    assert known["radius"] == [radius]
    assert radius > 0
    shown = f"{math.floor(1000 * radius) / 1000:.3f}"
    assert text.split("\n") == [
        f"Certified: class {NAMES[number]}.",
        f"No change of the image with ℓ2 norm below {shown} changes this answer "
        "(wrong with probability at most 0.001).",
    ]
    votes = counted(page)
    total = known["queries"][0] - SEQUENTIAL[0]
    assert sum(votes.values()) == total > 0
    assert [votes[name] / total for name in NAMES] == pytest.approx(known["shares"], abs=1e-6)
    assert next(iter(votes)) == NAMES[number]
    assert f"The answer cost {known['queries'][0]} queries and 0." in page.locator("#cost").inner_text()
    assert (seen.errors, seen.refused) == ([], 0)
    assert f"{site.url}/page/answer" in seen.addresses
    assert page.evaluate("document.activeElement.id") == "certify"


def test_the_pictures_are_of_the_radius(page: Any) -> None:
    pick(page, 0)
    certify(page)
    radius = radius_of(page)
    clean, noisy, perturbed, alone = (drawn(page, name) for name in ("clean", "noisy", "perturbed", "perturbation"))
    assert float(page.locator("#perturbed").get_attribute("data-norm")) == pytest.approx(radius, abs=1e-3)
    assert np.array_equal(clean, SAMPLES[0])
    change = (perturbed - clean) / 255  # nothing is clipped here, but all is rounded to 8 bits
    assert math.sqrt((change**2).sum()) == pytest.approx(radius, rel=0.02)
    factor = int(page.locator("#perturbation").get_attribute("data-factor"))
    amplified = (alone / 255 - 0.5) / factor
    assert math.sqrt((amplified**2).sum()) == pytest.approx(radius, rel=0.05)
    assert np.corrcoef(amplified.ravel(), change.ravel())[0, 1] > 0.99
    assert abs(change).max() < 5 * radius / math.sqrt(change.size)  # a direction at random, and no single pixel
    assert 0.5 * SIGMA < ((noisy - clean) / 255).std() < SIGMA
    captions = [caption.inner_text().split("\n")[0] for caption in page.locator("figcaption").all()]
    assert captions == ["clean", "noisy", "perturbed", "perturbation"]
    assert f"amplified {factor} times" in page.locator("figcaption").last.inner_text()
    for canvas in page.locator("#pictures canvas").all():
        assert canvas.get_attribute("aria-label").startswith(canvas.get_attribute("id"))


def test_a_radius_is_never_rounded_up(page: Any) -> None:
    told = {"0.1239": "0.123", "0.507": "0.507", "0.25": "0.250", "1.9999": "1.999", "0.0004": "0.0004"}
    assert {value: page.evaluate(f"roundedDown({value})") for value in told} == told


def test_settings_reach_the_server(page: Any, site: Site) -> None:
    pick(page, 1)
    assert page.get_by_label("Most queries").input_value() == str(N)
    page.get_by_label("Radius").fill("0.2")
    page.get_by_label("Risk").fill("0.02")
    page.get_by_label("Most queries").fill("300")
    assert certify(page).endswith("(wrong with probability at most 0.02).")
    known = site.infer(SAMPLES[1], radius=0.2, alpha=0.02, max_queries=300)
    assert known["radius"] == [radius_of(page)] != site.infer(SAMPLES[1])["radius"]
    page.get_by_label("Most queries").fill("26")
    page.get_by_role("button", name="Certify", exact=True).click()
    assert "status 400" in page.get_by_role("alert").inner_text()
    assert "the first 25 prove nothing" in page.get_by_role("alert").inner_text()
    assert page.locator("#answer[data-outcome]").count() == page.locator("#seen:visible").count() == 0


def test_an_abstention_says_so(page: Any, site: Site) -> None:
    known = site.infer(SAMPLES[3])
    assert known["abstained"] == [True]
    pick(page, 3)
    assert certify(page) == "Abstained: the votes do not prove a class at these settings; more queries may."
    assert sum(counted(page).values()) == known["queries"][0] - SEQUENTIAL[0]
    assert page.locator("#perturbed, #perturbation").count() == 0
    assert "because the answer abstains" in page.locator("#unperturbed").inner_text()


def test_a_prediction_has_no_radius(page: Any, site: Site) -> None:
    pick(page, 1)
    page.get_by_label("Radius").fill("0.2")
    page.get_by_label("Prediction only").check()
    assert page.get_by_label("Radius").is_disabled()
    assert certify(page).startswith("Predicted: class green, without a radius.")
    known = site.infer(SAMPLES[1], certify=False)
    assert known["label"] == [1]
    assert f"cost {known['queries'][0]} queries" in page.locator("#cost").inner_text()
    assert page.locator("#perturbed, #perturbation").count() == 0
    assert "because a prediction has no radius" in page.locator("#unperturbed").inner_text()


def test_votes_are_shown_as_they_come_and_a_second_click_cancels_the_first(seen: Seen, site: Site) -> None:
    page, box, button = seen.page, site.box, seen.page.get_by_role("button", name="Certify", exact=True)
    assert box is not None
    total = site.infer(SAMPLES[0])["queries"][0] - SEQUENTIAL[0]  # and the check of the very first batch is over
    pick(page, 0)
    box.free.clear()
    try:
        box.let.release()
        button.click()
        page.locator("#asked", has_text="of at most 1,000 queries so far").wait_for()
        assert 0 < sum(counted(page).values()) < total
        assert page.locator("#clean, #noisy").count() == 2
        page.get_by_label("Risk").fill("0.01")
        button.click()
        page.locator("#count").wait_for(state="hidden")
    finally:
        box.free.set()
    assert said(page).endswith("(wrong with probability at most 0.01).")
    assert page.locator("#clean").count() == 1
    assert seen.given_up == [f"{site.url}/page/answer"]


# --- images of one's own ----------------------------------------------------------------------------------------------


def test_a_file_is_answered_as_it_is(page: Any, site: Site) -> None:
    pixels = (SAMPLES[2] + np.random.default_rng(0).integers(-40, 40, (8, 8, 3))).astype(np.uint8)
    give(page, png(pixels))
    certify(page)
    assert np.array_equal(drawn(page, "clean"), pixels)
    assert site.infer(pixels)["radius"] == [radius_of(page)]
    assert radius_of(page) > 0


def test_the_middle_of_a_larger_image_is_taken(page: Any) -> None:
    pixels = np.full((32, 64, 3), (200, 40, 40), np.uint8)
    pixels[:, 16:48] = 40, 200, 40
    give(page, png(pixels), "wide.png")
    assert page.locator("#about").inner_text() == "wide.png: 64 × 32 pixels brought to 8 × 8, cut at the sides"
    assert certify(page).startswith("Certified: class green.")
    assert np.array_equal(drawn(page, "clean"), np.broadcast_to(np.array([40, 200, 40]), (8, 8, 3)))


def test_an_image_is_dropped(page: Any) -> None:
    script = """content => {
        const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0)), dropped = new DataTransfer();
        dropped.items.add(new File([bytes], "dropped.png", {type: "image/png"}));
        return dropped;
    }"""
    dropped = page.evaluate_handle(script, base64.b64encode(png(SAMPLES[0])).decode())
    page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    page.locator("#about", has_text="dropped.png").wait_for()
    assert certify(page).startswith("Certified: class red.")


def test_what_is_no_image_is_told(page: Any) -> None:
    page.get_by_role("button", name="Certify", exact=True).click()
    assert page.get_by_role("alert").inner_text() == "No image is chosen yet."
    page.get_by_label("choose a file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"no"})
    page.get_by_role("alert").filter(has_text="a.png is not an image").wait_for()


# --- another model ----------------------------------------------------------------------------------------------------


def test_a_token_is_wanted_and_grey_images_are_denoised(browser: Any, closed: Site) -> None:
    pixels = np.full((6, 10, 1), 116, np.uint8)
    pixels[:, 5:] = 160
    with showing(browser, closed.url) as seen:
        page, alert = seen.page, seen.page.get_by_role("alert")
        assert page.locator("#samples").is_hidden()
        secret = page.get_by_label("Access token")
        assert secret.get_attribute("type") == "password"
        give(page, png(pixels[..., 0]))
        for wrong, told in (("", "a token is wanted"), ("wrong", "the token is not known")):
            secret.fill(wrong)
            page.get_by_role("button", name="Certify", exact=True).click()
            alert.filter(has_text=f"The server refused (status 401): {told}").wait_for()
        assert seen.refused == 2
        assert closed.token is not None
        secret.fill(closed.token)
        assert certify(page).startswith("Certified: class 6.")
        assert alert.is_hidden()
        assert closed.infer(pixels)["radius"] == [radius_of(page)]
        assert radius_of(page) > 0
        clean, noisy, denoised = (drawn(page, name)[..., :1] for name in ("clean", "noisy", "denoised"))
        assert np.array_equal(clean, pixels)
        x = torch.from_numpy(noisy[..., 0] / 255)[None, None]
        again = Denoising().denoise(x)[0, 0].numpy() * 255
        inside = (noisy > 0) & (noisy < 255)  # what was not clipped before it was drawn
        near = F.avg_pool2d(torch.from_numpy(inside[..., 0] * 1.0)[None, None], 3, 1, 1, count_include_pad=False)[0, 0]
        assert (near == 1).any()
        assert np.abs(again - denoised[..., 0])[near.numpy() == 1].max() <= 1
        votes = counted(page)
        assert next(iter(votes)) == "class 6"
        assert len(votes) == 11
        assert "2 more" in votes
        assert sum(votes.values()) == closed.infer(pixels)["queries"][0] - SEQUENTIAL[0]


def test_what_the_server_says_is_text(browser: Any, site: Site) -> None:
    harm = "<img src=x onerror=document.title='harm'>"

    def changed(route: Any) -> None:
        model = route.fetch().json()
        route.fulfill(json={**model, "name": harm, "ready": False, "reason": harm, "class_names": [harm] * 3})

    with showing(browser, site.url, changed) as seen:
        page = seen.page
        assert page.locator("#name").inner_text() == harm
        assert page.locator("#ready").inner_text() == f"not ready: {harm}"
        pick(page, 0)
        assert certify(page).startswith(f"Certified: class {harm}.")
        assert list(counted(page)) == [harm]
        assert page.locator("img").count() == 0
        assert page.title() == "certibox: certified answers"


@pytest.mark.parametrize("width", [400, 320])
def test_a_narrow_page_has_no_scroll_to_the_side(browser: Any, site: Site, width: int) -> None:
    with showing(browser, site.url, viewport={"width": width, "height": 800}) as seen:
        page = seen.page
        page.locator("summary").click()
        pick(page, 0)
        certify(page)
        page.locator("#perturbation").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        for part in page.locator("#certify, #answer, table, input:visible").all():
            box = part.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width


# --- a picture of it --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(SCREENSHOT not in os.environ, reason=f"{SCREENSHOT} names no file for the picture")
def test_a_screenshot_is_written(browser: Any) -> None:
    """CIFAR-10 and a pretrained model behind a denoiser of fixed weights, which nobody trained."""
    samples = certibox.load_images(str(SHARED / "data" / "cifar10-jpeg"), "test", limit=24)
    file = SHARED / "data" / "boxes" / "pretrainedResnet.tflite"
    box = certibox.as_blackbox(str(file), "probabilities", input_range=(0, 255))
    smoothed = certibox.SmoothedClassifier(Thresholding(certibox.QueryClient(box), 0.12).classes, 10, 0.12)
    app = certibox.serving.app(smoothed, name="cifar10", samples=samples)
    size = {"width": 1100, "height": 900}
    with listening(app) as site, showing(browser, site.url, viewport=size, color_scheme="light") as seen:
        pick(seen.page, 15)
        assert certify(seen.page).startswith("Certified: class bird.")
        seen.page.wait_for_timeout(500)  # until the bars have come to rest
        whole = Image.open(io.BytesIO(seen.page.screenshot(full_page=True))).convert("RGB")
    whole.quantize(256, dither=Image.Dither.NONE).save(os.environ[SCREENSHOT], "PNG", optimize=True)


class Thresholding:
    """A model behind a denoiser: small coefficients of overlapping cosine transforms of 4x4 pixels become 0."""

    answers_alone = True
    image_shape = (3, 32, 32)

    def __init__(self, client: certibox.QueryClient, sigma: float) -> None:
        self.client, self.sigma = client, sigma
        k = torch.arange(4.0)
        waves = torch.cos(math.pi * (k + 0.5) * k[:, None] / 4) * math.sqrt(0.5)
        waves[0] /= math.sqrt(2)
        self.waves = torch.einsum("ai,bj->abij", waves, waves).reshape(16, 1, 4, 4)
        colours = torch.tensor([[1.0, 1, 1], [1, 0, -1], [0.5, -1, 0.5]])
        self.colours = colours / colours.norm(dim=1, keepdim=True)

    def classes(self, x: Tensor) -> Tensor:
        return self.client(self.denoise(x))

    def denoise(self, x: Tensor) -> Tensor:
        planes = torch.einsum("dc,nchw->ndhw", self.colours, x).flatten(0, 1)[:, None]
        parts = F.conv2d(F.pad(planes, (3, 3, 3, 3), mode="reflect"), self.waves)
        kept = parts.abs() > 2.7 * self.sigma
        kept[:, 0] = True
        smooth = F.conv_transpose2d(parts * kept, self.waves)[:, 0, 3:-3, 3:-3] / 16
        return torch.einsum("dc,ndhw->nchw", self.colours, smooth.reshape(x.shape)).clamp(0, 1)

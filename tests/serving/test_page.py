"""The page for people without a browser: what it is served with, its lines, and what is told of its requests."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
import torch

import certibox
from certibox.data import images_from_arrays
from gateways import CLASSES, SHAPE, Bright, ask, closing, infer, smoothed_of
from gateways import images_of as images

app = certibox.serving.app
ASKED = json.dumps({"pixels": base64.b64encode(bytes([255] * 16)).decode()}).encode()


def lines_of(site: Any, **headers: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ask(site, "POST", "/page/answer", ASKED, **headers).body.splitlines()]


def test_the_page_sees_votes_as_they_come() -> None:
    x = images(1.0)
    pixels = (x[0] * 255).round().to(torch.uint8)
    sample = images_from_arrays(pixels[None].numpy(), np.array([2]))
    with closing(app(smoothed_of(Bright()), image_shape=SHAPE, samples=sample)) as site:
        page = ask(site, "GET", "/")
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        about = ask(site, "GET", "/page/model").json
        assert (about["image_shape"], about["samples"], about["num_classes"]) == (list(SHAPE), 1, CLASSES)
        shown = ask(site, "GET", "/page/samples/0").json
        assert (base64.b64decode(shown["pixels"]), shown["label"]) == (pixels.numpy().tobytes(), 2)
        assert ask(site, "GET", "/page/samples/1").status == 404
        reply = ask(site, "POST", "/page/answer", json.dumps({"pixels": shown["pixels"]}).encode())
        pictures, *votes, last = [json.loads(line) for line in reply.body.splitlines()]
        assert len(base64.b64decode(pictures["noisy"])) == 16
        assert [sum(one["votes"]) for one in votes] == sorted(sum(one["votes"]) for one in votes)
        direct = infer(site, pixels[None].float() / 255).outputs
        assert (last["label"], last["radius"], last["queries"]) == (2, direct["radius"][0], direct["queries"][0])
        assert last["votes"] == votes[-1]["votes"]
        for body in (b"{", b"[]", b'{"pixels": "?"}', b'{"pixels": "QQ=="}'):
            assert ask(site, "POST", "/page/answer", body).status == 400
        line = json.loads(ask(site, "POST", "/page/answer", json.dumps({**shown, "max_queries": 26}).encode()).body)
        assert "'label' is not known" in line["error"]
    with closing(app(smoothed_of(Bright()), image_shape=SHAPE, page=False)) as site:
        assert ask(site, "GET", "/").status == 404


def test_a_request_of_the_page_is_counted_and_logged_as_any_other() -> None:
    told: list[tuple[str, Any]] = []
    box = Bright()
    smoothed = smoothed_of(box, budget=1100)
    with closing(app(smoothed, image_shape=SHAPE, log=lambda event, values: told.append((event, values)))) as site:
        *_, last = lines_of(site, x_request_id="mine")
        asked = list(box.sizes)
        assert ask(site, "POST", "/page/answer", b"{").status == 400
        (refusal,) = lines_of(site)  # the budget does not pay for another: no picture is made
        assert refusal["status"] == 402
        box.free.clear()
        ask(site, "POST", "/page/answer", json.dumps({**json.loads(ASKED), "max_queries": 100}).encode(), gone=0.05)
        box.free.set()
        text = ask(site, "GET", "/metrics").body.decode()
    logged = [values for event, values in told if event == "page"]
    assert [one["status"] for one in logged] == [200, 400, 402, 499]
    assert (logged[0]["request"], logged[0]["queries"]) == ("mine", last["queries"])
    assert last["queries"] == sum(asked)
    for status in (200, 400, 402, 499):
        assert f'certibox_requests_total{{code="{status}"}} 1.0' in text


def test_a_fault_of_ours_ends_the_lines_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, Any]] = []
    with closing(
        app(smoothed_of(Bright()), image_shape=SHAPE, log=lambda event, values: told.append((event, values)))
    ) as site:

        async def broken(*_: Any, **__: Any) -> None:
            raise ZeroDivisionError("by zero")

        monkeypatch.setattr(site.state.gateway, "answers", broken)
        assert lines_of(site) == [{"error": "the server failed; its log says how", "status": 500}]
    assert ("fault", {"path": "/page/answer", "error": "ZeroDivisionError: by zero"}) in told
    assert [values["status"] for event, values in told if event == "page"] == [500]

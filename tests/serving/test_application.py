"""The application: certificates over the protocol, money, overload, a changed box; in its process, without a socket."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import certibox
from certibox.blackbox.inference_model import Metadata
from certibox.certification.images import image_digest
from certibox.certification.sampling import Sampling
from certibox.confidence.ranks import RankVerification
from certibox.confidence.sequential import EProcess
from certibox.errors import BoxChanged, InvalidInput, NotAnswered, UnreadableFile
from certibox.serving.accounts import new_token
from certibox.serving.audit import read_audit, seed_of
from certibox.serving.protocol import HEADER
from gateways import PATH, SHAPE, SIGMA, Bright, ask, asked, at_once, closing, infer, request_of, smoothed_of
from gateways import images_of as images

app, Limits = certibox.serving.app, certibox.serving.Limits
RULE = EProcess(radii=(SIGMA / 2, SIGMA, 2 * SIGMA))
GREYS = (0.05, 0.5, 1.0)


def made(box: Bright | None = None, budget: int | None = None, **more: Any) -> Any:
    """An application whose noise is the same in every run, where it has a folder."""
    if (out := more.get("out")) is not None and not (out / "noise.key").exists():
        out.mkdir(exist_ok=True)
        (out / "noise.key").write_bytes(out.name.encode().ljust(32)[:32])
    smoothed = smoothed_of(box or Bright(), budget=budget)
    return closing(app(smoothed, **{"image_shape": SHAPE, **more}))


def test_answers_are_the_certificates_of_the_images(tmp_path: Path) -> None:
    smoothed, x = smoothed_of(Bright()), images(*GREYS)
    with made(out=tmp_path, audit=tmp_path / "audit.jsonl") as site:
        reply = infer(site, x, {"id": "seven"})
        early = infer(site, x, certify=False, alpha=0.01, max_queries=300)
        narrow = infer(site, x, radius=0.1, alpha=0.01, max_queries=400)
    key = (tmp_path / "noise.key").read_bytes()
    seeds = [seed_of(key, image_digest(one)) for one in x]
    for answer, sampling in (
        (reply, Sampling(25, 975, 0.001, RULE, spent=True)),
        (narrow, Sampling(25, 375, 0.01, EProcess(radii=(0.1,)), spent=True)),
    ):
        certificates = [smoothed.certify(one, sampling=sampling, seed=seed) for one, seed in zip(x, seeds, strict=True)]
        outputs = answer.outputs
        assert outputs["label"] == [-1 if one.label is None else one.label for one in certificates]
        assert outputs["abstained"] == [one.label is None for one in certificates]
        assert outputs["radius"] == [one.radius for one in certificates]
        assert outputs["p_lower"] == [one.p_lower for one in certificates]
        assert outputs["queries"] == [one.queries for one in certificates]
        shares = np.array([np.array(one.counts) / one.n for one in certificates], "f4").ravel()
        assert np.array_equal(np.array(outputs["shares"], "f4"), shares)
    assert reply.outputs["label"] == [0, -1, 2]
    assert reply.json["id"] == "seven"
    assert reply.json["parameters"] == {"sigma": SIGMA, "alpha": 0.001}
    rule = RankVerification()
    predictions = [
        smoothed.predict(one, n=295, n0=5, alpha=0.01, seed=seed, rule=rule) for one, seed in zip(x, seeds, strict=True)
    ]
    assert early.outputs["label"] == [-1 if one.label is None else one.label for one in predictions]
    assert early.outputs["queries"] == [one.queries for one in predictions]
    assert (early.outputs["radius"], early.outputs["p_lower"]) == ([0.0] * 3, [0.0] * 3)
    entries = read_audit(tmp_path / "audit.jsonl")
    assert [entry.found for entry in entries[3:6]] == predictions
    assert [entry.found.seed for entry in entries] == seeds * 3


def test_the_same_image_has_the_same_votes_and_another_server_others(tmp_path: Path) -> None:
    x, seen = images(0.62), []
    for folder in ("a", "a", "b"):
        with made(out=tmp_path / folder) as site:
            seen += [infer(site, x).outputs["shares"], infer(site, torch.cat([images(0.1), x])).outputs["shares"][3:]]
    assert seen[0] == seen[1] == seen[2] == seen[3] != seen[4]


def test_binary_requests_get_what_json_gets(tmp_path: Path) -> None:
    x = images(*GREYS)
    raw = x.numpy().astype("<f4").tobytes()
    tensor = {"name": "input", "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    with made(out=tmp_path) as site:
        plain = infer(site, x).outputs
        headers: dict[str, Any] = {HEADER: str(len(head)), "content_encoding": "gzip"}
        reply = ask(site, "POST", f"{PATH}/infer", gzip.compress(head + raw), **headers)
        listed = infer(site, x, {"outputs": [{"name": "label"}]}).outputs
    length = int(reply.headers[HEADER.lower()])
    at, kinds = length, {"INT64": "<i8", "BOOL": "?", "FP32": "<f4", "FP64": "<f8"}
    for output in json.loads(reply.body[:length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        values = np.frombuffer(reply.body[at : at + size], kinds[output["datatype"]])
        assert np.array_equal(values, np.array(plain[output["name"]], values.dtype)), output["name"]
        at += size
    assert at == len(reply.body)
    assert listed == {"label": [0, -1, 2], "abstained": [False, True, False]}  # -1 never stands alone


def test_paths_say_what_is_there() -> None:
    with made() as site:
        version = site.state.gateway.signature.version
        assert ask(site, "GET", "/v2").json["extensions"] == ["binary_tensor_data"]
        assert ask(site, "GET", "/v2/health/live").status == 200
        for path in ("/v2/health/ready", f"{PATH}/ready", f"{PATH}/versions/{version}/ready"):
            assert ask(site, "GET", path).json == {"ready": True}
        about = ask(site, "GET", PATH)
        assert about.json == ask(site, "GET", f"{PATH}/versions/{version}").json
        assert about.json["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, *SHAPE]}]
        body = json.dumps(request_of(images(0.05))).encode()
        assert ask(site, "POST", f"{PATH}/versions/{version}/infer", body).outputs["label"] == [0]
        for method, path, status in (
            ("GET", "/v2/models/other", 404),
            ("POST", f"{PATH}/versions/other/infer", 404),
            ("GET", f"{PATH}/infer", 405),
            ("POST", "/v2", 405),
        ):
            reply = ask(site, method, path)
            assert (reply.status, list(reply.json)) == (status, ["error"])
        described = ask(site, "GET", "/openapi.json").json["paths"]
        assert f"{PATH}/infer" in described
        assert not any(path.startswith("/page") for path in described)


PARAMETERS = [
    ({"alpha": 0}, "alpha is 0"),
    ({"alpha": 1}, "alpha is 1"),
    ({"alpha": "x"}, "alpha is x"),
    ({"alpha": True}, "alpha is True"),
    ({"radius": -1}, "radius is -1"),
    ({"radius": 9}, "radius"),
    ({"radius": 0.1, "certify": False}, "radius was given with certify false"),
    ({"max_queries": 0}, "max_queries is 0"),
    ({"max_queries": 2.5}, "max_queries is 2.5"),
    ({"max_queries": 10_001}, "at most 10000"),
    ({"max_queries": 26}, "smallest"),
    ({"timeout_ms": 0}, "timeout_ms is 0"),
    ({"timeout_ms": 5, "timeout": 5000}, "were both given"),
    ({"certify": "no"}, "certify is no"),
    ({"max_querys": 5}, "did you mean max_queries?"),
]


@pytest.mark.parametrize(("parameters", "told"), PARAMETERS, ids=str)
def test_parameters_that_cannot_be_are_refused_before_a_query(parameters: dict[str, Any], told: str) -> None:
    box = Bright()
    with made(box) as site:
        reply = infer(site, images(0.05), **parameters)
    assert reply.status == 400
    assert told in reply.json["error"]
    assert box.sizes == []


def test_a_budget_is_refused_before_it_is_overspent() -> None:
    box = Bright()
    with made(box, budget=700) as site:
        client = site.state.gateway.client
        refused = infer(site, images(0.05))
        assert (refused.status, client.queries) == (402, 0)
        assert "may take 1000 queries" in refused.json["error"]
        assert infer(site, images(0.05), max_queries=500).outputs["label"] == [0]
        while (reply := infer(site, images(0.05), max_queries=60)).status == 200:
            pass
        assert reply.status == 402
        assert client.queries == sum(box.sizes) <= 700
        assert ask(site, "GET", "/v2/health/ready").status == 200
        client.budget = client.queries
        assert ask(site, "GET", "/v2/health/ready").json == {"ready": False, "error": "the budget is spent"}
        assert infer(site, images(0.05), max_queries=60).status == 402


def test_each_token_has_a_budget_of_its_own_that_outlives_the_server(tmp_path: Path) -> None:
    poor, rich = (new_token(tmp_path / "tokens", name, budget) for name, budget in (("poor", 700), ("rich", None)))
    body = json.dumps(request_of(images(0.05), max_queries=600)).encode()
    spent = 0
    for _ in range(2):
        with made(out=tmp_path / "out", tokens=tmp_path / "tokens", audit=tmp_path / "audit.jsonl") as site:
            path = f"{PATH}/infer"
            assert ask(site, "POST", path, body).status == 401
            assert ask(site, "POST", path, body, Authorization="Bearer no").status == 401
            reply = ask(site, "POST", path, body, Authorization=f"Bearer {poor}")
            if spent:
                assert reply.status == 402
                assert f"the token poor has {700 - spent} left" in reply.json["error"]
            else:
                spent = reply.outputs["queries"][0]
                assert spent == site.state.gateway.accounts.spent("poor") > 100
            assert ask(site, "POST", path, body, Authorization=f"Bearer {rich}").status == 200
            assert ask(site, "GET", "/v2/health/ready").status == 200  # health wants no token
    assert [entry.token for entry in read_audit(tmp_path / "audit.jsonl")] == ["poor", "rich", "rich"]


def test_overload_is_refused_before_a_query_with_the_time_to_wait() -> None:
    box = Bright()
    with made(box, limits=Limits(max_waiting=2)) as site:
        box.free.clear()
        body = json.dumps(request_of(images(0.05, 1.0))).encode()

        async def first() -> Any:
            return await asked(site, "POST", f"{PATH}/infer", body)

        async def second() -> Any:
            reply = await asked(site, "POST", f"{PATH}/infer", body)
            box.free.set()
            return reply

        answered, refused = at_once(first, second)
        assert answered.status == 200
        assert refused.status == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert site.state.gateway.client.queries == sum(answered.outputs["queries"])


def test_time_that_runs_out_gives_what_is_proven_or_an_error(tmp_path: Path) -> None:
    box = Bright()
    with made(box, audit=tmp_path / "audit.jsonl") as site:
        box.free.clear()
        late = infer(site, images(1.0), timeout_ms=30)
        assert (late.status, list(late.json)) == (504, ["error"])
        box.free.set()
        whole = infer(site, images(0.05)).outputs

        class Slow(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                time.sleep(0.05)
                return True

        box.free = Slow()
        early = infer(site, images(0.05), timeout_ms=400).outputs
    assert early["queries"][0] < whole["queries"][0]
    assert early["label"] == [0]
    assert 0 < early["radius"][0] < whole["radius"][0]
    *_, last = read_audit(tmp_path / "audit.jsonl")
    assert last.asked == early["queries"][0]


def test_a_client_that_is_gone_is_not_paid_for() -> None:
    box = Bright()
    with made(box) as site:
        box.free.clear()
        body = json.dumps(request_of(images(1.0))).encode()
        reply = ask(site, "POST", f"{PATH}/infer", body, gone=0.1)
        box.free.set()
        assert reply.status == 503
        assert len(box.sizes) <= 1
    assert len(box.sizes) <= 1


def test_a_changed_box_is_not_ready_and_says_why(tmp_path: Path) -> None:
    box = Bright()
    with made(box, out=tmp_path, canaries=0.05) as site:
        assert infer(site, images(0.05)).status == 200
        box.turned = True
        end = time.monotonic() + 20
        while (reply := ask(site, "GET", "/v2/health/ready")).status == 200:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert "the box has changed" in reply.json["error"]
        spent = site.state.gateway.client.spent["serve"]
        refused = infer(site, images(0.05))
        assert (refused.status, "the box has changed" in refused.json["error"]) == (503, True)
        assert site.state.gateway.client.spent["serve"] == spent
        box.turned = False
        while ask(site, "GET", "/v2/health/ready").status != 200:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert infer(site, images(0.05)).status == 200
    box.turned = True
    with pytest.raises(BoxChanged, match=r"the box has changed"):
        app(smoothed_of(box), image_shape=SHAPE, out=tmp_path)


def test_what_the_box_does_wrong_is_told_in_the_form_of_the_protocol() -> None:
    box = Bright()
    with made(box) as site:
        box.errors.append(RuntimeError("out of order"))
        reply = infer(site, images(0.05))
        assert (reply.status, "out of order" in reply.json["error"]) == (502, True)
        box.errors.append(NotAnswered("closed on Sundays"))
        reply = infer(site, images(0.05))
        assert (reply.status, "closed on Sundays" in reply.json["error"]) == (503, True)
        assert infer(site, images(0.05)).status == 200
        text = ask(site, "GET", "/metrics").body.decode()
    counted = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    assert counted['certibox_requests_total{code="200"}'] == 1
    assert counted['certibox_requests_total{code="502"}'] == 1
    assert counted['certibox_upstream_errors_total{kind="BoxFailed"}'] == 1
    assert counted['certibox_images_total{answer="answered"}'] == 1
    assert counted["certibox_queries_total"] == counted["certibox_queries_per_image_sum"]
    assert counted["certibox_radius_count"] == 1
    assert counted["certibox_ready"] == 1
    assert counted["certibox_images_in_flight"] == 0


def test_logs_have_a_line_a_request_without_secrets(tmp_path: Path) -> None:
    secret = new_token(tmp_path / "tokens", "shop", None)
    events: list[tuple[str, dict[str, Any]]] = []
    with made(tokens=tmp_path / "tokens", log=lambda event, values: events.append((event, dict(values)))) as site:
        body = json.dumps(request_of(images(0.05))).encode()
        ask(site, "POST", f"{PATH}/infer", body, Authorization=f"Bearer {secret}", X_Request_ID="mine-1")
        ask(site, "POST", f"{PATH}/infer", body, Authorization=f"Bearer {secret}x", X_Request_ID="bad id\n")
    (_, first), (_, second) = events
    assert {key: first[key] for key in ("request", "status", "token", "images", "abstained")} == {
        "request": "mine-1",
        "status": 200,
        "token": "shop",
        "images": 1,
        "abstained": 0,
    }
    assert first["queries"] > 100
    assert (second["status"], len(second["request"])) == (401, 32)
    assert secret not in repr(events)


def test_bodies_and_images_have_a_limit() -> None:
    box = Bright()
    with made(box, limits=Limits(max_body=2000, max_images=2)) as site:
        assert infer(site, images(*GREYS)).status == 413
        for headers in (dict[str, Any](), dict[str, Any](content_length="9000")):
            reply = ask(site, "POST", f"{PATH}/infer", b" " * 9000, **headers)
            assert reply.status == 413
        bomb = gzip.compress(b" " * 100_000)
        assert len(bomb) < 2000
        assert ask(site, "POST", f"{PATH}/infer", bomb, content_encoding="gzip").status == 413
    assert box.sizes == []


def test_what_cannot_be_served_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"a Bright cannot be served"):
        app(Bright())  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidInput, match=r"n is 9, above max_queries, 5"):
        Limits(n=9, max_queries=5)
    with pytest.raises(UnreadableFile):
        app(smoothed_of(Bright()), image_shape=SHAPE, tokens="/nowhere/tokens")


def test_what_requests_in_flight_may_take_is_refused_for_a_while_only() -> None:
    box = Bright()
    with made(box, budget=1500) as site:
        box.free.clear()

        async def both() -> tuple[Any, Any]:
            body = json.dumps(request_of(images(0.05))).encode()
            first = asyncio.ensure_future(asked(site, "POST", f"{PATH}/infer", body))
            await asyncio.sleep(0.3)
            second = await asked(site, "POST", f"{PATH}/infer", body)
            box.free.set()
            return await first, second

        first, second = asyncio.run(both())
        assert (first.status, second.status, second.headers["retry-after"]) == (200, 429, "1")
        assert "requests in flight may take 1000; ask again" in second.json["error"]
        assert infer(site, images(0.05)).status == 200  # they took less
        assert infer(site, images(0.05), max_queries=5000).status == 402


def test_a_gateway_starts_again_where_its_budget_is_spent(tmp_path: Path) -> None:
    box = Bright()
    with made(box, budget=8, out=tmp_path):  # its canaries take all there is
        assert box.sizes == [8]
    told: list[tuple[str, Any]] = []
    with made(box, budget=5, out=tmp_path, log=lambda event, values: told.append((event, values))) as site:
        assert ("canaries", False) in [(event, values.get("asked")) for event, values in told]
        assert infer(site, images(0.05)).status == 402
    assert box.sizes == [8]


def test_two_gateways_in_a_row_are_refused() -> None:
    class Gateway(Bright):
        metadata = Metadata({}, {"platform": "certibox_smoothed"})

    with pytest.raises(InvalidInput, match=r"is a certibox gateway"):
        app(smoothed_of(Gateway()), image_shape=SHAPE)
    app(smoothed_of(Gateway()), image_shape=SHAPE, smooth_twice=True).state.close()


def test_one_folder_serves_one_gateway(tmp_path: Path) -> None:
    with made(out=tmp_path), pytest.raises(InvalidInput, match=r"another process"):
        app(smoothed_of(Bright()), image_shape=SHAPE, out=tmp_path)
    (tmp_path / "noise.key").write_bytes(b"short")
    with pytest.raises(UnreadableFile, match=r"wanted the 32 of a key"):
        app(smoothed_of(Bright()), image_shape=SHAPE, out=tmp_path)

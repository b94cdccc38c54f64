"""The command line defends a model at an address: over the Open Inference Protocol, or as a file describes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from certibox.queries.ledger import Ledger
from servers import StandIn

VOTES = "--data digits --limit 6 --sigma 0.25 --n0 10 --n 200 --out out"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def brightness(images: np.ndarray) -> np.ndarray:
    """Probabilities of ten classes: shares of ten columns of pixels."""
    sums = np.exp(images.reshape(len(images), -1)[:, 20:30].astype(np.float64))
    return sums / sums.sum(1, keepdims=True)


def rows(out: str = "out") -> list[dict[str, Any]]:
    lines = (Path(out) / "certificates.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key not in ("seconds", "model")} for line in lines
    ]


def test_a_model_at_an_address_is_trained_for_and_certified(server: StandIn, run, monkeypatch) -> None:
    monkeypatch.setenv("BOX_TOKEN", "t0ken-of-the-box")
    url = server.serve_model(brightness, "digits", extensions=("binary_tensor_data",))
    box = f"--model {url} --outputs probabilities --layout flat --token-env BOX_TOKEN"
    train = f"train {box} --data digits --limit 24 --sigma 0.25 --gamma 1 --d-z 8 --epochs 1 --autoencoder-epochs 1 "
    assert run(f"{train} --budget 2000 --out run").status == 0
    assert Ledger("run/ledger.sqlite").totals()[0] == server.images
    before = server.images
    assert run(f"certify {box} {VOTES.replace('--sigma 0.25 ', '')} --defense run/defense").status == 0
    assert len(rows()) == 6
    assert Ledger("out/ledger.sqlite").totals() == (server.images - before,) * 2 + (0,)
    assert {headers["authorization"] for headers in server.headers} == {"Bearer t0ken-of-the-box"}
    files = [path for folder in ("run", "out") for path in Path(folder).rglob("*") if path.is_file()]
    assert len(files) > 6
    assert [path for path in files if b"t0ken-of-the-box" in path.read_bytes()] == []


def test_rows_are_those_of_the_function_itself(server: StandIn, run, place: Path) -> None:
    (place / "box.py").write_text(
        "import numpy as np\n"
        "def box(images):\n"
        "    sums = np.exp(images.reshape(len(images), -1)[:, 20:30].astype(np.float64))\n"
        "    return sums / sums.sum(1, keepdims=True)\n"
    )
    url = server.serve_model(brightness)
    for model, out in ((url, "out"), ("box.py:box", "here")):
        assert (
            run(f"certify --model {model} --outputs probabilities {VOTES.replace('--out out', f'--out {out}')}").status
            == 0
        )
    assert rows() == rows("here")
    assert server.images <= 6 * 210


def test_an_endpoint_as_a_file_describes_it(server: StandIn, run, place: Path) -> None:
    def answer(asked: Any) -> Any:
        scores = brightness(np.array([one["img"] for one in asked["batch"]]))
        return {"found": [{"label": f"digit {i}"} for i in scores.argmax(1)]}

    url = server.serve_json("/ask", answer)
    labels = ", ".join(f"digit {i}" for i in range(10))
    (place / "endpoint.yaml").write_text(
        f"request: {{batch: $images}}\nitem: {{img: $image}}\nimage: flat\nanswer: found[*].[label]\nform: top-k\n"
        f"labels: [{labels}]\nconnection: {{timeout: 5}}\n"
    )
    assert run(f"certify --model {url} --endpoint endpoint.yaml --outputs labels {VOTES}").status == 0
    assert len(rows()) == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--endpoint endpoint.yaml", ["endpoint.yaml has the field 'lables'", "labels"]),
        ("--endpoint no.yaml", ["no.yaml", "does not exist"]),
        ("--token-env NO_SUCH_VARIABLE", ["variable NO_SUCH_VARIABLE"]),
        ("--token-env A --token-file b", ["--token-env and --token-file were both given"]),
        ("--rate fast", ["rate is 'fast'", "200 images/s"]),
        ("--input-name y", ["no input 'y', but x"]),
        ("--output-name y", ["no output 'y', but scores"]),
        ("--num-classes 3", ["--num-classes is 3", "answers 10 scores"]),
        ("--dtype uint8", ["dtype is 'uint8'", "takes FP32"]),
        ("--output-key a", ["--output-key='a'", "only torch modules and functions have it"]),
    ],
)
def test_what_cannot_be_is_refused_before_a_query(server: StandIn, refused, place: Path, options: str, words) -> None:
    (place / "endpoint.yaml").write_text("lables: [a, b]\n")
    ports = ([{"name": name, "datatype": "FP32", "shape": [-1, n]}] for name, n in (("x", 64), ("scores", 10)))
    url = server.serve_model(brightness, inputs=next(ports), outputs=next(ports))
    refused(f"certify --model {url} --outputs probabilities {VOTES} {options}", *words, status=2)
    assert server.requests == 0


@pytest.mark.parametrize("option", ["--endpoint e.yaml", "--token-env A", "--binary true", "--timeout 5"])
def test_options_of_an_address_go_with_one(refused, place: Path, option: str) -> None:
    (place / "box.py").write_text("def box(images):\n    return images.reshape(len(images), -1)[:, :10]\n")
    refused(f"certify --model box.py:box --outputs logits {VOTES} {option}", "no address", status=2)


def test_a_server_that_is_away_is_named(refused) -> None:
    line = f"certify --model http://127.0.0.1:1/v2/models/m --outputs logits {VOTES}"
    refused(line, "127.0.0.1:1", "was not reached", status=4)


def test_a_server_that_fails_keeps_what_was_paid(server: StandIn, run, refused) -> None:
    url = server.serve_model(brightness)
    line = f"certify --model {url} --outputs probabilities {VOTES}"
    server.faults = ["", "", "", (500, {}, b"")]
    refused(line, "status 500", "lost", "run the same again", status=4)
    assert run(line).status == 0
    answered, attempted, lost = Ledger("out/ledger.sqlite").totals()
    assert (answered, attempted) == (server.images, server.images + lost)
    assert answered <= sum(row["n0"] + row["n"] for row in rows()) + 10  # the check of batches, and canaries


def test_a_watch_ends_with_a_status_of_its_own_when_the_model_changes(server: StandIn, run, refused, place) -> None:
    url = server.serve_model(brightness)
    box = f"--model {url} --outputs probabilities --layout flat"
    train = f"train {box} --data digits --limit 12 --method DS --sigma 0.25 --epochs 0 --denoise-epochs 1"
    assert run(f"{train} --fingerprint true --budget 2000 --out run").status == 0
    asked = server.images
    watch = f"watch {box} --defense run"
    same = run(f"{watch} --every 0.01s --times 3")
    assert same.status == 0
    assert same.out.count("answers its 8 canaries as when the defense was trained") == 3
    assert server.images == asked + 3 * 8
    server.serve_model(lambda images: brightness(images)[:, ::-1].copy())
    refused(f"{watch} --every 1h", "the box has changed", "8 of 8 canaries", status=5)
    refused(f"{watch} --every soon", "every is 'soon'", "10min")
    refused(watch.replace("--defense run", "--defense nowhere"), "nowhere")
    server.answers.clear()
    refused(watch, "no such model", status=4)


def test_a_budget_counts_requests_where_requests_are_billed(server: StandIn, run) -> None:
    url = server.serve_model(brightness)
    asked = f"certify --model {url} --outputs probabilities {VOTES} --bills request --budget {{}}"
    ended = run(asked.format(2))
    assert ended.status == 3
    assert "requests wanted" in ended.message
    assert server.requests <= 2
    assert run(asked.format(200)).status == 0
    assert Ledger("out/ledger.sqlite", bills="request").committed() == server.requests
    assert len(rows()) == 6

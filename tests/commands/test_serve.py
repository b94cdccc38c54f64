"""`certibox serve`, `token` and `verify`, as processes and as functions."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import certibox
from certibox.cli import main
from certibox.queries.ledger import Ledger
from certibox.serving.accounts import read_tokens
from servers import StandIn

BOX = """
import numpy as np

def bright(x):
    mean = x.reshape(len(x), -1).mean(1)
    return np.stack([0.5 - mean, mean - 0.5], 1) * 9
"""


@contextmanager
def served(folder: Path, *more: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a gateway, and its process."""
    (folder / "box.py").write_text(BOX)
    command = [sys.executable, "-m", "certibox.cli", "serve", "--port", "0", "--sigma", "0.25", *more]
    if "--model" not in more:
        command += ["--model", f"{folder / 'box.py'}:bright", "--outputs", "logits", "--num-classes", "2"]
        command += ["--image-shape", "[1, 4, 4]", "--layout", "flat"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ}) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield line.split(";")[0].rpartition(" at ")[2], process
        finally:
            process.kill()


def asked(url: str, x: np.ndarray, token: str | None = None, **parameters: Any) -> dict[str, Any]:
    flat = x.reshape(len(x), -1)
    tensor = {"name": "input", "shape": list(flat.shape), "datatype": "FP32", "data": flat.ravel().tolist()}
    body = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{url}/v2/models/defended/infer", body, headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        return {one["name"]: one["data"] for one in json.load(reply)["outputs"]}


def test_a_gateway_from_start_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, tokens = tmp_path / "out", tmp_path / "tokens"
    assert main(["token", "--name", "shop", "--tokens", str(tokens), "--budget", "5000"]) == 0
    secret = capsys.readouterr().out.strip()
    assert [one.name for one in read_tokens(tokens).values()] == ["shop"]
    x = np.stack([np.full((1, 4, 4), grey) for grey in (0.1, 0.5, 0.8)])
    audit = str(out / "audit.jsonl")
    first: dict[str, Any] = {}
    for ended in (signal.SIGTERM, signal.SIGINT):
        with served(tmp_path, "--out", str(out), "--tokens", str(tokens), "--audit", audit) as (url, process):
            answers = asked(url, x, secret, max_queries=400)
            assert answers["label"] == [0, -1, 1]
            assert answers["abstained"] == [False, True, False]
            assert answers == (first or answers)  # the key of the noise is kept
            first = answers
            process.send_signal(ended)
            printed, logged = process.communicate(timeout=30)
            assert process.returncode == 0
        assert printed.startswith("ended; queries spent: ")
        events = [json.loads(line) for line in logged.splitlines() if line.startswith("{")]
        assert [one["event"] for one in events] == ["start", "infer", "stop"]
        assert events[1]["queries"] == sum(answers["queries"])
        assert secret not in logged
    ledger = Ledger(out / "ledger.sqlite")
    assert ledger.by_phase()["serve"] == 2 * sum(first["queries"])
    ledger.close()
    assert main(["verify", audit, "--key", str(out / "noise.key")]) == 0
    assert "6 certificates and 0 predictions follow from their votes, and their seeds from the key" in (
        capsys.readouterr().out
    )
    line = json.loads(Path(audit).read_text().splitlines()[0])
    line["certificate"]["radius"] *= 2
    Path(audit).write_text(json.dumps(line) + "\n")
    assert main(["verify", audit]) == 2
    assert "line 1 does not hold" in capsys.readouterr().err


def test_a_gateway_behind_a_server_takes_what_that_takes(server: StandIn, tmp_path: Path) -> None:
    """The box's own name of input and output, its datatype and its binary form; and no gateway behind a gateway."""
    model = server.serve_model(
        lambda x: np.stack([0.5 - x.reshape(len(x), -1).mean(1), x.reshape(len(x), -1).mean(1) - 0.5], 1) * 9,
        inputs=[{"name": "pixels", "datatype": "FP32", "shape": [-1, 1, 4, 4]}],
        outputs=[{"name": "scores", "datatype": "FP64", "shape": [-1, 2]}],
        extensions=("binary_tensor_data",),
    )
    with served(tmp_path, "--model", model, "--outputs", "logits", "--out", str(tmp_path / "out")) as (url, _):
        with urllib.request.urlopen(f"{url}/v2/models/defended") as reply:
            about = json.load(reply)
        assert about["inputs"] == [{"name": "pixels", "datatype": "FP32", "shape": [-1, 1, 4, 4]}]
        assert about["outputs"][0] == {"name": "scores", "datatype": "FP64", "shape": [-1, 2]}
        x = np.full((2, 1, 4, 4), 0.9, "f4")
        tensor = {"name": "pixels", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
        body = json.dumps({"inputs": [tensor], "outputs": [{"name": "scores"}]}).encode()
        with urllib.request.urlopen(f"{url}/v2/models/defended/infer", body) as reply:
            (answer,) = json.load(reply)["outputs"]
        assert (answer["name"], answer["datatype"], answer["shape"]) == ("scores", "FP64", [2, 2])
        assert np.array(answer["data"]).reshape(2, 2).argmax(1).tolist() == [1, 1]
        command = ["serve", "--model", f"{url}/v2/models/defended", "--outputs", "probabilities", "--sigma", "0.25"]
        command += ["--output-name", "scores", "--port", "0", "--out", str(tmp_path / "second")]
        assert main(command) == 2


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "wanted --defense DIR, or --sigma 0.25"),
        (["--sigma", "0.25"], "the number of classes is unknown"),
        (["--sigma", "0.25", "--num-classes", "2"], "the shape of an image is not known"),
        (["--sigma", "0.25", "--num-classes", "2", "--image-shape", "[1,4,4]", "--n", "20000"], "above --max-queries"),
        (["--sigma", "0.25", "--num-classes", "2", "--every", "soon"], "wanted a time such as 30s"),
        (["--sigma", "-1"], "sigma is -1"),
        (["--sigma", "0.25", "--split", "train"], "has no effect without --data"),
        (
            ["--sigma", "0.25", "--tokens", "/nowhere/tokens", "--num-classes", "2", "--image-shape", "[1,4,4]"],
            "tokens",
        ),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(
    more: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "box.py").write_text(BOX)
    command = ["serve", "--model", f"{tmp_path / 'box.py'}:bright", "--outputs", "logits", "--port", "0"]
    assert main([*command, "--out", str(tmp_path / "out"), *more]) == 2
    printed = capsys.readouterr()
    assert told in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("wanted", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_as_soon_as_it_serves_is_a_good_end(tmp_path: Path, wanted: signal.Signals) -> None:
    with served(tmp_path, "--out", str(tmp_path / "out")) as (_, process):
        process.send_signal(wanted)
        assert process.wait(30) == 0


def test_a_port_that_is_taken_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "box.py").write_text(BOX)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = ["serve", "--model", f"{tmp_path / 'box.py'}:bright", "--outputs", "logits", "--port", str(port)]
        assert main([*command, "--sigma", "0.25", "--num-classes", "2", "--out", str(tmp_path / "out")]) == 2
    assert f"127.0.0.1:{port} cannot be listened at" in capsys.readouterr().err


def test_verify_reads_files_of_certificates_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = certibox.images_from_arrays(np.full((2, 4, 4), 230, "u1"))
    smoothed = certibox.SmoothedClassifier(lambda x: (x.mean((1, 2, 3)) > 0.5).long(), 2, 0.25)
    sampling = certibox.Sampling(10, 100, 0.001)
    certibox.certify_dataset(smoothed, images, sampling=sampling, seed=0, out=tmp_path / "rows.jsonl")
    assert main(["verify", str(tmp_path / "rows.jsonl")]) == 0
    assert "2 certificates follow from their votes" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "rows.jsonl"), "--key", "x"]) == 2
    assert "is no audit log" in capsys.readouterr().err

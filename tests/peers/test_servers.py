"""Servers that others wrote: MLServer with the committed example, and KServe, each in an environment of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from certibox.blackbox import Connection, as_blackbox
from certibox.queries import QueryClient
from places import PEERS, ROOT

EXAMPLE = ROOT / "examples" / "remote"


def python_of(name: str) -> Path:
    """The interpreter of an environment that tools/peers.sh made; the test is skipped where there is none."""
    path = PEERS / name / "bin" / "python"
    if not path.exists():
        pytest.skip(f"{name} is not installed: tools/peers.sh makes an environment for it")
    return path


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


@contextmanager
def running(command: list[str | Path], url: str, log: Path) -> Iterator[None]:
    """A server's process, once its model answers that it is there."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(url, timeout=5)
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                assert process.poll() is None, log.read_text()[-2000:]
                time.sleep(0.25)
        yield
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def test_mlserver_serves_the_example(tmp_path: Path) -> None:
    python, port = python_of("mlserver"), free_port()
    ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    settings = json.loads((EXAMPLE / "settings.json").read_text()) | ports
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    url = f"http://127.0.0.1:{port}/v2/models/digits"
    with running([python, EXAMPLE / "serve.py", tmp_path], url, tmp_path / "log"):
        box = as_blackbox(
            url, "probabilities", layout="flat", input_name="predict", output_name="predict_proba", num_classes=10
        )
        client = QueryClient(box)
        x = torch.rand(70, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        got = client(x).numpy()
        np.save(tmp_path / "x.npy", x.flatten(1).numpy())
        told = "import joblib, numpy as np; m = joblib.load('model.joblib')"
        command = f"{told}; np.save('y.npy', m.predict_proba(np.load('x.npy')))"
        subprocess.run([python, "-c", command], cwd=tmp_path, check=True)
        np.testing.assert_allclose(got, np.load(tmp_path / "y.npy"), atol=1e-12)
        assert client.queries == 70
        grpc = as_blackbox(
            f"grpc://127.0.0.1:{ports['grpc_port']}/digits",
            "probabilities",
            layout="flat",
            input_name="predict",
            output_name="predict_proba",
            num_classes=10,
        )
        assert np.array_equal(QueryClient(grpc)(x).numpy(), got)
        labels = as_blackbox(url, "labels", layout="flat", input_name="predict", output_name="predict", num_classes=10)
        assert QueryClient(labels)(x).tolist() == got.argmax(1).tolist()


@pytest.mark.parametrize("answers", ["json", "binary"])
@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
def test_kserve(tmp_path: Path, binary: bool, answers: str) -> None:
    python, port, grpc_port = python_of("kserve"), free_port(), free_port()
    script = shutil.copy(Path(__file__).with_name("kserve_model.py"), tmp_path)
    url = f"http://127.0.0.1:{port}/v2/models/sums"
    with running([python, script, str(port), str(grpc_port), answers], url, tmp_path / "log"):
        box = as_blackbox(url, "logits", input_name="x", connection=Connection(binary=binary))
        x = torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        flat = x.flatten(1).numpy()
        wanted = np.stack([flat[:, i::3].sum(1) for i in range(3)], 1)
        np.testing.assert_allclose(QueryClient(box)(x).numpy(), wanted, rtol=1e-5)
        grpc = as_blackbox(f"grpc://127.0.0.1:{grpc_port}/sums", "logits", input_name="x")
        assert torch.equal(QueryClient(grpc)(x), QueryClient(box)(x))

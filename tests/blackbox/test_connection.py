"""A secret goes to its own server, and nowhere else: into no text, no file, no pickle and no other server."""

from __future__ import annotations

import pickle
import ssl
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from certibox.blackbox import Connection, as_blackbox
from certibox.blackbox.http import retry_after
from certibox.certification import certify_dataset
from certibox.certification.smoothing import SmoothedClassifier
from certibox.data import Images
from certibox.errors import CertiboxError, InvalidInput, UnreadableFile
from certibox.queries.client import QueryClient
from servers import StandIn, stand_in

SECRET = "q7-Zr0fK3pLw9xTb"
IMAGE = torch.full((1, 1, 2, 2), 0.25)


def first_pixels(images: np.ndarray) -> np.ndarray:
    flat = images.reshape(len(images), -1).astype(np.float32)
    return np.stack([flat[:, 0], 2 - flat[:, 0]], 1)


@pytest.fixture(params=["env", "file", "header"])
def connection(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Connection:
    monkeypatch.setenv("BOX_TOKEN", SECRET)
    (tmp_path / "token").write_text(f"{SECRET}\n")
    return {
        "env": Connection(token_env="BOX_TOKEN"),
        "file": Connection(token_file=tmp_path / "token"),
        "header": Connection(headers={"Authorization": "Bearer ${BOX_TOKEN}"}),
    }[request.param]


def test_it_is_sent_with_every_request(server: StandIn, connection: Connection) -> None:
    as_blackbox(server.serve_model(first_pixels), "logits", connection=connection)(IMAGE)
    assert server.headers[0]["authorization"] == f"Bearer {SECRET}"


def test_it_stands_in_no_text_file_or_pickle(server: StandIn, connection: Connection, tmp_path: Path) -> None:
    out = tmp_path / "out"
    box = as_blackbox(server.serve_model(first_pixels), "logits", connection=connection)
    client = QueryClient(box, ledger=out / "ledger.sqlite")
    certify_dataset(
        SmoothedClassifier(client, 2, 0.1), Images(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), None, "zeros"),
        n0=5, n=20, alpha=0.01, seed=0, out=out / "certificates.jsonl",
    )  # fmt: skip
    server.faults = [(500, {}, f'{{"error": "bad token {SECRET} of {SECRET[::-1]}"}}'.encode())]
    with pytest.raises(CertiboxError) as caught:
        client(IMAGE)
    shown = "".join(traceback.format_exception(caught.value))
    assert "..." in shown
    texts = [shown, repr(connection), repr(box), repr(client), str(box.spec), pickle.dumps(box).decode("latin-1")]
    client.close()
    texts += [path.read_bytes().decode("latin-1") for path in out.iterdir()]
    assert [text for text in texts if SECRET in text] == []
    assert {"ledger.sqlite", "certificates.jsonl"} <= {path.name for path in out.iterdir()}


def test_it_follows_no_redirection(server: StandIn, connection: Connection) -> None:
    with stand_in() as other:
        box = as_blackbox(server.serve_model(first_pixels), "logits", connection=connection)
        target = other.serve_model(first_pixels)
        server.faults = [(status, {"Location": f"{target}/infer"}, b"") for status in (301, 307, 308)]
        for _ in range(3):
            with pytest.raises(CertiboxError, match="redirection"):
                QueryClient(box)(IMAGE)
        assert other.requests == 0
        assert other.headers == []


def test_a_token_that_changes_is_read_anew(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOX_TOKEN", "one")
    box = as_blackbox(server.serve_model(first_pixels), "logits", connection=Connection(token_env="BOX_TOKEN"))
    box(IMAGE)
    monkeypatch.setenv("BOX_TOKEN", "two")
    box(IMAGE)
    assert [headers["authorization"] for headers in server.headers] == ["Bearer one", "Bearer two"]


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({"token_env": "NO_SUCH_TOKEN"}, InvalidInput, "variable NO_SUCH_TOKEN .* is not set"),
        ({"token_file": "no/such/file"}, UnreadableFile, "no/such/file cannot be read"),
        ({"headers": {"X-Key": "${NO_SUCH_TOKEN}"}}, InvalidInput, "variable NO_SUCH_TOKEN .* is not set"),
        ({"token_env": "A", "token_file": "b"}, InvalidInput, "token_env and token_file were both given"),
        ({"timeout": 0}, InvalidInput, "timeout is 0; wanted a number above 0"),
        ({"timeout": float("nan")}, InvalidInput, "timeout is nan"),
        ({"busy": (200,)}, InvalidInput, "wanted HTTP statuses"),
        ({"headers": {"a b": "c"}}, InvalidInput, "header 'a b' cannot be sent"),
        ({"headers": {"a": "c\r\nd: e"}}, InvalidInput, "header 'a' cannot be sent"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        as_blackbox("http://127.0.0.1:1/v2/models/m", "logits", connection=Connection(**given))


@pytest.mark.parametrize("secret", ["ab\x0bcd", "schlüssel", "a\x00b"])
def test_a_secret_that_no_header_holds_is_not_shown(secret: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(secret)
    with pytest.raises((InvalidInput, UnreadableFile)) as caught:
        as_blackbox("http://127.0.0.1:1/v2/models/m", "logits", connection=Connection(token_file=tmp_path / "token"))
    assert secret not in str(caught.value)


def test_tls_is_verified(tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("no certificate")
    with pytest.raises(InvalidInput, match=r"ca_file .*none.pem cannot be read"):
        as_blackbox("https://127.0.0.1:1/v2/models/m", "logits", connection=Connection(ca_file=tmp_path / "none.pem"))
    with stand_in() as plain:  # speaks no TLS
        address = plain.url.replace("http:", "https:")
        with pytest.raises(CertiboxError, match="was not reached"):
            as_blackbox(f"{address}/v2/models/m", "logits")


def test_a_server_is_trusted_by_the_authority_that_is_named(certificate: tuple[Path, Path]) -> None:
    with stand_in() as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate[1], certificate[0])
        server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
        url = server.serve_model(first_pixels).replace("http:", "https:")
        box = as_blackbox(url, "logits", connection=Connection(ca_file=certificate[1]))
        assert box(IMAGE).tolist() == [[0.25, 1.75]]
        with pytest.raises(CertiboxError, match="was not reached"):
            as_blackbox(url, "logits")
        assert server.requests == 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("soon", None),
        (None, None),
        ("-3", None),
        ("9" * 12, None),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after(header) == seconds


def test_retry_after_as_a_date() -> None:
    from datetime import UTC, datetime, timedelta
    from email.utils import format_datetime

    then = datetime.now(UTC) + timedelta(seconds=30)
    found = retry_after(format_datetime(then, usegmt=True))
    assert found is not None
    assert 28 <= found <= 30

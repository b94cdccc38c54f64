"""A gateway on 127.0.0.1 before a box that tells red, green, blue and dark images apart, for programs of others."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import uvicorn

import certibox
from certibox.blackbox import as_blackbox
from certibox.certification.smoothing import SmoothedClassifier
from certibox.queries import QueryClient

SHAPE, CLASSES, SIGMA = (3, 8, 8), 4, 0.25


def colours(images: np.ndarray) -> np.ndarray:
    """Scores for red, green, blue and dark images."""
    levels = np.concatenate([images.mean((2, 3)), np.full((len(images), 1), 0.4)], 1)
    powers = np.exp(20 * levels)
    return powers / powers.sum(1, keepdims=True)


@contextmanager
def gateway(folder: Path) -> Iterator[str]:
    """The address of a gateway whose noise is the same in every run."""
    folder.mkdir()
    (folder / "noise.key").write_bytes(bytes(32))
    box = as_blackbox(colours, "probabilities", num_classes=CLASSES, image_shape=SHAPE, name="colours")
    app = certibox.serving.app(SmoothedClassifier(QueryClient(box), CLASSES, SIGMA), out=folder)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
        app.state.close()

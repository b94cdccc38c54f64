"""Every test starts from the same global generators, so that weights drawn without a seed are the same in every run.

One thread computes, here and in every process that a test starts: results then do not depend on the machine, and
processes that run side by side do not wait for one another's threads.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything that reads it is imported

import random
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest
import torch

from servers import StandIn, stand_in

hypothesis.settings.register_profile("suite", deadline=None)  # on a busy machine an example may take any time
hypothesis.settings.load_profile("suite")


@pytest.fixture(autouse=True)
def generators() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (scikit-learn draws from it)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def server() -> Iterator[StandIn]:
    """A server on this machine that stands in for models at an address."""
    with stand_in() as one:
        yield one


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A key, and a certificate for 127.0.0.1 that it signed itself; skipped where openssl is missing."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("openssl is not there to make a certificate")
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    made = ["-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", chain, "-days", "2", "-subj", "/CN=127.0.0.1"]
    command = [openssl, "req", "-x509", *made, "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    return key, chain

"""Every test starts from the same global generators, so that weights drawn without a seed are the same in every run.

One thread computes, here and in every process that a test starts: results then do not depend on the machine, and
processes that run side by side do not wait for one another's threads.
"""

from __future__ import annotations

import os

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

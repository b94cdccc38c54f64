"""Every test starts from the same global generators and number of threads, so that it does not depend on others."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch


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

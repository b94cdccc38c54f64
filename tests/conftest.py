"""Every test starts from the same global generators, so that weights drawn without a seed are the same in every run."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def generators() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (scikit-learn draws from it)
    torch.manual_seed(0)

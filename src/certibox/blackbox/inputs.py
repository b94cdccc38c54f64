"""Images as the arrays that a function or a server takes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from certibox.blackbox.base import BoxSpec


def as_array(spec: BoxSpec, x: Tensor) -> np.ndarray:
    """Images as their declaration has them: prepared, arranged, of the declared type, in memory of their own.

    Args:
        spec: Declaration of the box.
        x: Images (n, c, h, w), floats, on [0, 1] where they are clean.

    Returns:
        A C-contiguous array in the order of `spec.layout`; float32 where no `dtype` is declared.
    """
    prepared = spec.prepare(x.detach()).cpu().resolve_neg()
    if prepared.dtype == torch.bfloat16:  # which numpy does not know
        prepared = prepared.float()
    arranged = spec.arrange(prepared.round() if spec.dtype == "uint8" else prepared)
    return np.array(arranged.numpy(), dtype=spec.dtype or np.float32, order="C")

"""Any Python function on numpy arrays as a black box."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from certibox.blackbox.base import BoxSpec, to_outputs


class FunctionBox:
    """A function from C-contiguous numpy float32 (n, c, h, w) to an array, a tensor or nested lists of outputs.

    Every call gets an array of its own, to write to or to keep: a function that normalises in place must not change the
    images that are certified.

    Args:
        function: Function of images, pixels in the declared range.
        outputs: Kind of the answers, as in `BoxSpec`.
        declared: Other fields of `BoxSpec`; `name` is the function's own by default.
    """

    def __init__(self, function: Callable[[np.ndarray], Any], outputs: str, **declared: Any) -> None:
        declared.setdefault("name", getattr(function, "__name__", type(function).__name__))
        self.spec = BoxSpec(outputs, **declared)
        self.function = function

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec.summary})"

    def __call__(self, x: Tensor) -> Tensor:  # (n, c, h, w) -> outputs
        """See `BlackBox.__call__`."""
        images = np.array(self.spec.prepare(x.detach()).cpu().numpy(), dtype=np.float32, order="C")
        return to_outputs(self.function(images), self.spec, x.device)

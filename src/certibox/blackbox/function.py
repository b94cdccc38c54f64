"""Any Python function on numpy arrays as a black box."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from certibox.blackbox.base import BoxSpec
from certibox.blackbox.outputs import picked, to_outputs


class FunctionBox:
    """A function from C-contiguous numpy float32 (n, c, h, w) to an array, a tensor or nested lists of outputs.

    Every call gets an array of its own, to write to or to keep: a function that normalises in place must not change the
    images that are certified.

    Args:
        function: Function of images, pixels in the declared range.
        outputs: Kind of the answers, as in `BoxSpec`.
        output_key: Key, position or attribute of the answers in what the function returns; None for all of it.
        declared: Other fields of `BoxSpec`; `name` is the function's own by default, and pixels are clipped.
    """

    def __init__(
        self, function: Callable[[np.ndarray], Any], outputs: str, output_key: str | None = None, **declared: Any
    ) -> None:
        self.vouched = "name" in declared
        """Whether its user gave the name by which it is told from another function."""
        self._output_key = output_key
        declared.setdefault("clip", True)
        declared.setdefault("name", getattr(function, "__name__", type(function).__name__))
        self.spec = BoxSpec(outputs, **declared)
        self.function = function

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec.summary})"

    def __call__(self, x: Tensor) -> Tensor:  # (n, c, h, w) -> outputs
        """See `BlackBox.__call__`."""
        arranged = self.spec.arrange(self.spec.prepare(x.detach()).cpu())
        images = np.array(arranged.numpy(), dtype=self.spec.dtype or np.float32, order="C")
        return to_outputs(picked(self.function(images), self._output_key, self.spec), self.spec, x.device)

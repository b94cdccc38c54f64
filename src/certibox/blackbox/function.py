"""Any Python function on numpy arrays as a black box."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from certibox.blackbox.base import BoxSpec
from certibox.blackbox.inputs import as_array
from certibox.blackbox.outputs import picked, to_outputs


class FunctionBox:
    """A function from a C-contiguous numpy array to an array, a tensor, a table or nested lists of outputs.

    It gets float32 (n, c, h, w), or what `layout` and `dtype` declare; with `dtype="uint8"` whole numbers 0 to 255. Its
    pixels lie on [0, 1], or `input_range`, since they are clipped by default; with `clip=False` noise and defenses take
    them out of that range. Every call gets an array of its own, to write to or to keep: a function that normalises in
    place must not change the images that are certified.

    Args:
        function: Function of images, pixels in the declared range.
        outputs: Kind of the answers, as in `BoxSpec`.
        output_key: Key, position or attribute of the answers in what the function returns; None for all of it.
        declared: Other fields of `BoxSpec`; `name` is the function's own by default, and pixels are clipped.
    """

    def __init__(
        self,
        function: Callable[[np.ndarray], Any],
        outputs: str,
        output_key: str | int | None = None,
        **declared: Any,
    ) -> None:
        self.vouched = "name" in declared
        """Whether its user gave the name by which it is told from another function."""
        self._output_key = output_key
        declared.setdefault("clip", True)
        declared.setdefault("name", _name(function))
        self.spec = BoxSpec(outputs, **declared)
        self.function = function

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec.summary})"

    def __call__(self, x: Tensor) -> Tensor:  # (n, c, h, w) -> outputs
        """See `BlackBox.__call__`."""
        images = as_array(self.spec, x)
        return to_outputs(picked(self.function(images), self._output_key, self.spec), self.spec, x.device, len(x))


def _name(function: Any) -> str:
    """The name of a function, also where it is wrapped."""
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)

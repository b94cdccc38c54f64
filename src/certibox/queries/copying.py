"""Whether a box can go to another process, said in one line before a pickler says it in many."""

from __future__ import annotations

import sys
from pickle import Pickler
from typing import Any

import numpy as np
from torch import Tensor

from certibox.blackbox import BlackBox
from certibox.errors import InvalidInput


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, data: Any) -> int:
        return len(data)


class _Trial(Pickler):
    """A pickler that leaves the numbers out: what cannot be pickled is never an array."""

    def persistent_id(self, obj: Any) -> str | None:
        return "numbers" if isinstance(obj, Tensor | np.ndarray) else None


def require_picklable(box: BlackBox) -> None:
    """Refuse a box that pickle cannot write.

    Args:
        box: Black box that is about to be pickled.

    Raises:
        InvalidInput: The box holds something that only this process has.
    """
    if _pickles_more():
        return
    try:
        _Trial(_Nowhere()).dump(box)
    except Exception as error:  # picklers raise whatever the object at fault raises
        reason = " ".join(str(error).split())[:200]
        raise InvalidInput(
            f"box {box.spec.name} cannot be sent to another process ({reason}); wanted one that pickle takes, such as "
            "a function of a module, or a client made in that process"
        ) from error


def _pickles_more() -> bool:
    """Whether the pickler at work is one that takes lambdas and closures too, as those of Ray and joblib do."""
    frame = sys._getframe()
    while (frame := frame.f_back) is not None:
        if {"cloudpickle", "dill"} & set(frame.f_globals.get("__name__", "").split(".")):
            return True
    return False

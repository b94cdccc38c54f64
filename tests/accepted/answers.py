"""Numeric forms of answers × kinds of answers."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accepted.linear import KINDS, asked, require_equal, scores
from accepted.models import CLASSES
from accepted.table import Table


def _nested(array: np.ndarray, kind: Callable[[Any], Any]) -> Any:
    return [_nested(part, kind) for part in array] if array.ndim > 1 else [kind(item) for item in array.tolist()]


def _as(kind: str) -> Callable[[np.ndarray], Any]:
    return lambda array: array.astype(kind)


def _frame(array: np.ndarray) -> Any:
    import pandas as pd

    return pd.DataFrame(array) if array.ndim == 2 else pd.Series(array)


def _sparse(array: np.ndarray) -> Any:
    from scipy import sparse

    return sparse.csr_matrix(array if array.ndim == 2 else array[:, None])


def _bfloat16(array: np.ndarray) -> Any:
    import ml_dtypes

    return array.astype(ml_dtypes.bfloat16)


def _quantised(array: np.ndarray) -> Any:
    shares = array.min() >= 0 and array.max() <= 1
    scale, zero = (1 / 256, 0) if shares else (1 / 16, 128)
    return torch.quantize_per_tensor(torch.from_numpy(array).float(), scale, zero, torch.quint8)


def _masked(array: np.ndarray) -> Any:
    hidden = np.ma.array(array)
    hidden[0] = np.ma.masked
    return hidden


def _ragged(array: np.ndarray) -> Any:
    return [part.tolist() if i else [0.5] * 9 for i, part in enumerate(array)]


async def _later() -> None: ...


class Read:
    """What jax and tensorflow answer: no array, but something that NumPy reads."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.array.astype(dtype or self.array.dtype)


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "float32; whole numbers as labels": lambda array: array,
    "float64": _as("f8"),
    "other byte orders": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "half precision": _as("f2"),
    "bfloat16": _bfloat16,
    "long double": _as("g"),
    "array of objects": _as("O"),
    "`Decimal`": lambda array: _nested(array, Decimal),
    "`Fraction`": lambda array: np.array(_nested(array, Fraction)),
    "data frame, series": _frame,
    "sparse matrix": _sparse,
    "nested lists": lambda array: array.tolist(),
    "nested tuples": lambda array: tuple(map(tuple, array.tolist())) if array.ndim > 1 else tuple(array.tolist()),
    "list of NumPy scalars or rows": list,
    "torch tensor": torch.from_numpy,
    "torch tensor with a gradient": lambda array: torch.from_numpy(array.astype("f4")).requires_grad_(),
    "sparse tensor": lambda array: torch.from_numpy(array).to_sparse(),
    "quantised tensor": _quantised,
    "list of tensors": lambda array: [torch.tensor(part) for part in array],
    "what NumPy reads, as of jax": Read,
    "read-only or backwards": lambda array: np.broadcast_to(array[::-1].copy(), array.shape)[::-1],
    "masked array, nothing hidden": np.ma.array,
    "masked array, numbers hidden": _masked,
    "NaN, infinity": lambda array: np.where(np.arange(len(array)) == 0, np.nan, array.T).T,
    "complex numbers": _as("c8"),
    "text": _as("U"),
    "lists of unequal lengths": _ragged,
    "dictionary without `output_key`": lambda array: {"scores": array},
    "coroutine": lambda array: _later(),
    "nothing (`None`)": lambda array: None,
}
_ERRORS = {"half precision": 0.01, "bfloat16": 0.1, "quantised tensor": 0.04}
COLUMNS = ("logits", "probabilities", "labels")


def attempt(row: str, column: str, folder: Path) -> None:
    def predict(images: np.ndarray) -> Any:
        answer = KINDS[column](scores(torch.from_numpy(images))).numpy()
        return FORMS[row](answer)

    answer = asked(predict, column, **({"num_classes": CLASSES} if column == "labels" else {}))
    require_equal(answer, column, error=_ERRORS.get(row, 1e-4))


_REFUSED = {
    "masked array, numbers hidden": "hidden numbers",
    "NaN, infinity": "not finite",
    "complex numbers": "not real",
    "text": "no numbers",
    "lists of unequal lengths": "no array",
    "dictionary without `output_key`": "give `output_key`",
    "coroutine": "nobody waits for it",
    "nothing (`None`)": "nothing came",
}
CELLS = {row: (f"no: {_REFUSED[row]}" if row in _REFUSED else "yes",) * len(COLUMNS) for row in FORMS}
REASONS = {
    "hidden numbers": r"answered an array with masked numbers; return one array of numbers",
    "not finite": r"must be finite, got nan|labels must be integers, got nan",
    "not real": r"must be real numbers, got torch.complex64",
    "no numbers": r"answered an array of str; return one array of numbers",
    "no array": r"answered a list; return one array of numbers",
    "give `output_key`": r"answered a dict with 'scores', where one array of numbers was wanted; choose by output_key",
    "nobody waits for it": r"answered a coroutine; give a function that waits for it",
    "nothing came": r"answered a NoneType; return one array of numbers",
}
TABLE = Table("numbers", COLUMNS, CELLS, attempt, REASONS)

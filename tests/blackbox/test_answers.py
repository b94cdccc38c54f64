"""Answers as they come: in any numeric form, of models with one output, and with what gives a mistake away."""

from __future__ import annotations

import asyncio
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from torch import Tensor, nn

from certibox.blackbox import BoxSpec, as_blackbox, check_outputs, differentiable
from certibox.errors import BadOutput
from certibox.queries.client import QueryClient

ROWS = [[0.5, 0.25], [0.0, -2.0], [1.5, 3.0]]
THREE = torch.zeros(3, 1, 2, 2)


def asked(answer: Any, outputs: str = "logits", n: int = 3, **declared: Any) -> Tensor:
    """The checked answer of a function that answers n images so."""
    box = as_blackbox(lambda images: answer, outputs, name="talk", **declared)
    return check_outputs(box(THREE[:1].expand(n, -1, -1, -1)), n, box.spec, None)


@dataclass
class ModelOutput:
    logits: Any
    loss: Any = None


class Array:
    """What jax and tensorflow answer: no array, but something that numpy reads."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(ROWS, dtype=dtype)


FORMS: dict[str, Callable[[list[list[float]]], Any]] = {
    "big endian": lambda rows: np.array(rows, ">f4"),
    "half": lambda rows: np.array(rows, "f2"),
    "long double": lambda rows: np.array(rows, np.longdouble),
    "bfloat16": lambda rows: np.array(rows, ml_dtypes.bfloat16),
    "objects": lambda rows: np.array(rows, object),
    "Decimal": lambda rows: [[Decimal(str(value)) for value in row] for row in rows],
    "Fraction": lambda rows: np.array([[Fraction(value) for value in row] for row in rows]),
    "frame": pd.DataFrame,
    "frame of objects": lambda rows: pd.DataFrame(rows, dtype=object),
    "sparse": lambda rows: sparse.csr_matrix(np.array(rows)),
    "sparse array": lambda rows: sparse.coo_array(np.array(rows)),
    "sparse tensor": lambda rows: torch.tensor(rows).to_sparse(),
    "quantised": lambda rows: torch.quantize_per_tensor(torch.tensor(rows), 0.25, 0, torch.qint8),
    "what numpy reads": lambda rows: Array(),
    "tuples": lambda rows: tuple(map(tuple, rows)),
    "numpy's scalars": lambda rows: [[np.float32(value) for value in row] for row in rows],
    "list of arrays": lambda rows: [np.array(row) for row in rows],
    "list of tensors": lambda rows: [torch.tensor(row, requires_grad=True) for row in rows],
    "objects that are arrays": lambda rows: pd.Series([np.array(row) for row in rows]),
    "read-only": lambda rows: np.broadcast_to(np.array(rows), (3, 2)),
    "backwards": lambda rows: np.array(rows[::-1])[::-1],
    "matrix": lambda rows: np.ma.array(rows),
}


@pytest.mark.filterwarnings("ignore:.*quantize")
@pytest.mark.parametrize("form", FORMS)
def test_numbers_are_read_in_any_form(form: str) -> None:
    answer = asked(FORMS[form](ROWS))
    assert answer.dtype in (torch.float32, torch.float64)
    assert answer.tolist() == ROWS


@pytest.mark.parametrize(
    "labels",
    [
        np.array([1, 0, 2], ">i2"),
        np.array([1, 0, 2], "u2"),
        np.array([1, 0, 2], "u8"),
        [np.int64(1), 0, 2.0],
        pd.Series([1, 0, 2]),
        pd.Series([1, 0, 2], dtype="category"),
        np.array([[1], [0], [2]]),
        torch.tensor([[1], [0], [2]]),
        [Decimal(1), Fraction(0), 2],
    ],
    ids=str,
)
def test_labels_are_read_in_any_form(labels: Any) -> None:
    assert asked(labels, "labels", num_classes=3).tolist() == [1, 0, 2]


def test_booleans_are_labels_and_integers_beyond_precision_are_numbers() -> None:
    assert asked([True, False, True], "labels", num_classes=2).tolist() == [1, 0, 1]
    assert asked([[10**30, 1], [2**63, 2], [3, 4]]).tolist() == [[1e30, 1], [2.0**63, 2], [3, 4]]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.array(["a", "b"]), "an array of str"),
        (["a", "b"], "a list of str"),
        (np.array(["0.5", "1"], object), "an array of str"),
        (np.array(["2020"], "M8[Y]"), "an array of datetime64"),
        (np.array([5], "m8[s]"), "an array of timedelta64"),
        (np.zeros(3, [("a", "f4")]), "an array of records"),
        (pd.DataFrame({"a": ["x", "y"]}), "a DataFrame of str"),
        ([[1.0], [None]], "a list of NoneType"),
        ([[1.0], [1.0, 2.0]], "a list"),
        (np.ma.array([1.0, 2.0], mask=[True, False]), "an array with masked numbers"),
        (pd.DataFrame({"a": [1, pd.NA]}, dtype=object), "a DataFrame of NAType"),
        ({1, 2}, "a set"),
        (b"abc", "a bytes"),
        (iter([1]), "a list_iterator"),
    ],
)
def test_what_came_is_named_with_its_type(answer: Any, message: str) -> None:
    with pytest.raises(BadOutput, match=rf"^box talk answered {message}; return one array of numbers$"):
        asked(answer)


Pair = namedtuple("Pair", "scores features")


@pytest.mark.parametrize(
    ("answer", "parts", "key"),
    [
        ({"logits": ROWS, "loss": 0.5}, "a dict with 'logits', 'loss'", "logits"),
        ({0: ROWS, 1: []}, "a dict with 0, 1", "0"),
        (ModelOutput(np.array(ROWS)), "a ModelOutput with logits, loss", "logits"),
        (SimpleNamespace(logits=torch.tensor(ROWS)), "a SimpleNamespace with logits", "logits"),
        (Pair(ROWS, []), "a Pair with scores, features", "scores"),
        ((torch.zeros(3), torch.tensor(ROWS)), r"a tuple with 0 of shape \(3,\), 1 of shape \(3, 2\)", "1"),
        ([np.array(ROWS), np.array(ROWS)], r"a list with 0 of shape \(3, 2\), 1 of shape \(3, 2\)", 1),
        ((np.array(ROWS),), r"a tuple with 0 of shape \(3, 2\)", -1),
    ],
)
def test_an_answer_of_several_parts_is_chosen_from(answer: Any, parts: str, key: str | int) -> None:
    with pytest.raises(BadOutput, match=rf"^box talk answered {parts}, .* choose by output_key$"):
        asked(answer)
    assert asked(answer, output_key=key).tolist() == ROWS
    with pytest.raises(BadOutput, match="which has no 'none'; give another output_key"):
        asked(answer, output_key="none")


def test_a_function_that_is_not_awaited_is_named() -> None:
    async def later(images: np.ndarray) -> list[list[float]]:
        return ROWS

    box = as_blackbox(later, "logits")
    with pytest.raises(BadOutput, match="box later answered a coroutine; give a function that waits for it"):
        box(THREE)
    assert as_blackbox(lambda images: asyncio.run(later(images)), "logits")(THREE).tolist() == ROWS


# One output


@pytest.mark.parametrize("shape", [(3, 1), (3,)])
def test_one_output_has_two_classes(shape: tuple[int, ...]) -> None:
    p = torch.tensor([0.25, 0.5, 1.0])
    answer = p.reshape(shape).numpy()
    assert asked(answer, "probabilities").tolist() == [[0.75, 0.25], [0.5, 0.5], [0.0, 1.0]]
    assert asked(answer, "logits", num_classes=2).tolist() == [[0, 0.25], [0, 0.5], [0, 1.0]]
    assert asked(answer, "values").tolist() == answer.tolist()
    for outputs in ("probabilities", "logits"):
        with pytest.raises(
            BadOutput, match=r"answers one score an image, which is for 2 classes, while num_classes is 3; give 2"
        ):
            asked(answer, outputs, num_classes=3)
    with pytest.raises(BadOutput, match=r"must be in \[0, 1\], got 1.5"):
        asked(answer * 1.5, "probabilities")


@pytest.mark.parametrize(
    ("outputs", "answer", "wanted"),
    [
        ("logits", [1.0, 2.0, 3.0], [[1.0, 2.0, 3.0]]),
        ("probabilities", [0.25, 0.75], [[0.25, 0.75]]),
        ("probabilities", 0.25, [[0.75, 0.25]]),
        ("probabilities", [0.25], [[0.75, 0.25]]),
        ("logits", np.float32(-2.0), [[0.0, -2.0]]),
        ("labels", 1, [1]),
        ("labels", [[1]], [1]),
        ("values", [1.0, 2.0], [[1.0, 2.0]]),
        ("values", [1.0], [1.0]),
    ],
)
def test_the_answer_to_one_image_may_lack_its_dimension(outputs: str, answer: Any, wanted: Any) -> None:
    num_classes = 2 if outputs == "labels" else None
    assert asked(answer, outputs, n=1, num_classes=num_classes).tolist() == wanted


class Sigmoid(nn.Module):
    """The probability of class 1, by one output; without its dimension where there is one image, as `squeeze` does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)).sigmoid().squeeze()


def test_the_gradient_flows_through_both_columns_of_one_output() -> None:
    module = Sigmoid()
    box = as_blackbox(module, "probabilities")
    x = torch.rand(3, 1, 2, 2, requires_grad=True)
    outputs = differentiable(box)(x)
    p = module.linear(x.detach().flatten(1)).sigmoid()
    torch.testing.assert_close(outputs, torch.cat([1 - p, p], 1))
    torch.testing.assert_close(outputs, box(x))
    torch.testing.assert_close(torch.cat([box(image[None]) for image in x]), outputs)
    (gradient,) = torch.autograd.grad((outputs * torch.tensor([1.0, 3.0])).sum(), x)
    torch.testing.assert_close(gradient.flatten(1), 2 * p * (1 - p) * module.linear.weight)


# Sums, and what gives a mistake away


def probabilities(rows: Any) -> Tensor:
    return check_outputs(torch.tensor(rows), len(rows), BoxSpec("probabilities"))


@pytest.mark.parametrize(
    "row",
    [
        [0.15] * 2 + [0.09] * 8,  # 1.02 by two decimals
        [0.11] * 9 + [0.06],  # 1.05, the limit
        [round(255 / 10) / 255] * 10,
        [0.3, 0.3, 0.3, 0.1, 0.05][:4],
        [0.5, 0.495],
    ],
    ids=["two decimals", "the limit", "8 bits", "one decimal", "in full"],
)
def test_rounded_probabilities_may_miss_their_sum_by_half_a_step_each(row: list[float]) -> None:
    assert probabilities([row, row]).shape == (2, len(row))


@pytest.mark.parametrize(
    ("row", "came"),
    [
        ([0.12] * 9 + [0.0], "1.08"),  # more than the limit
        ([0.5, 0.48], "0.98"),  # two decimals of two classes: half a percent each
        ([0.1531, 0.1527] + [0.0897] * 8, "1.0234"),  # in full to four decimals
    ],
)
def test_sums_that_rounding_does_not_explain_are_refused(row: list[float], came: str) -> None:
    with pytest.raises(BadOutput, match=f"must sum to 1, got {came}; divide them by their sum"):
        probabilities([row, row])


@pytest.mark.parametrize(("row", "came"), [([0.6, 0.7, 0.2], "1.5"), ([0.1, 0.2, 0.2], "0.5")])
def test_independent_sigmoids_are_named(row: list[float], came: str) -> None:
    with pytest.raises(BadOutput, match=f"must sum to 1, got {came}; these look like independent sigmoids"):
        probabilities([row, row])


def test_log_probabilities_and_logits_are_told_what_to_declare() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 3.0, 1.0]])
    with pytest.raises(BadOutput, match=r"these look like log-probabilities: declare outputs='logits'"):
        probabilities(logits.log_softmax(1).tolist())
    with pytest.raises(BadOutput, match=r"in \[0, 1\], got 3; if they are logits, declare outputs='logits'"):
        probabilities(logits.tolist())


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[25.0, 25.0, 50.0], [10.0, 10.0, 81.0]], "got 81; those of each image sum to about 100: divide them by"),
        (
            [[0.001] * 900 + [0.0] * 100] * 2,
            "got 0.9; they are rounded to steps of 1/1000, too coarse for 1000",
        ),
    ],
    ids=["percent", "too coarse"],
)
def test_probabilities_in_other_units_are_told_to_be_divided(rows: list[list[float]], words: str) -> None:
    with pytest.raises(BadOutput, match=words):
        probabilities(rows)


def test_logits_that_sum_to_1_are_warned_of_at_the_first_answer_alone() -> None:
    spec, answer = BoxSpec("logits", name="soft"), torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    with pytest.warns(UserWarning, match="logits of box soft look like probabilities.*declare outputs='probabilities'"):
        check_outputs(answer, 2, spec)
    check_outputs(answer, 2, spec, (2,))  # warnings are errors here
    for harmless in (answer - 1, torch.eye(2), answer.log_softmax(1)):
        check_outputs(harmless, 2, spec)


def test_labels_in_the_place_of_probabilities_are_known_for_what_they_are() -> None:
    """One whole number an image, as a server gives them that was asked for its other output."""
    box = as_blackbox(lambda images: np.array([[9.0], [0.0], [3.0]]), "probabilities", name="labels")
    with pytest.raises(
        BadOutput, match=r"got 9; these look like labels: declare outputs='labels', or choose the output"
    ):
        QueryClient(box)(torch.rand(3, 1, 2, 2))

"""Settings: what counts as a number, what stays as it came, and one line for the rest."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from certibox.errors import InvalidInput
from certibox.storage import values


@pytest.mark.parametrize("given", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers_of_any_kind_are_pythons_own(given: Any) -> None:
    assert type(values.whole("n", given, 1, 3)) is int
    assert values.whole("n", given, 3) == 3


@pytest.mark.parametrize("given", [0, 2.0, "3", True, None, math.nan, torch.tensor(3), [3]])
def test_what_is_no_whole_number_is_named(given: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^n is .*; wanted a whole number, at least 1$"):
        values.whole("n", given, 1)


@pytest.mark.parametrize("given", [values.MOST + 1, 10**400, 10**5000], ids=["one", "400", "5000"])
def test_what_nobody_counts_to_is_refused_in_a_short_line(given: int) -> None:
    with pytest.raises(InvalidInput, match=r"^n is .*; wanted at most 1,000,000,000$") as caught:
        values.whole("n", given, 1)
    assert len(str(caught.value)) < 100


def test_numbers_stay_as_they_came_where_json_takes_them() -> None:

    for given, kept in ((1, int), (0.5, float), (np.float32(0.5), float), (Fraction(1, 2), float)):
        came = values.number("w", given, "a weight")
        assert came == given
        assert type(came) is kept


@pytest.mark.parametrize("given", [-0.1, math.nan, math.inf, torch.tensor(0.5), "0.5", True, None, 1j])
def test_what_is_no_finite_number_in_its_bounds_is_named(given: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^w is .*; wanted a weight$"):
        values.number("w", given, "a weight", low=0)


def test_a_number_beyond_floats_is_no_finite_number() -> None:
    with pytest.raises(InvalidInput, match=r"^w is a number of too many digits; wanted a weight$"):
        values.number("w", 10**400, "a weight")


def test_a_bound_may_be_left_out() -> None:
    assert values.number("w", 0, "a weight", low=0, high=1) == 0
    for given in (0, 0.0, 1.5):
        with pytest.raises(InvalidInput, match="wanted more"):
            values.number("w", given, "more", low=0, high=1, above=True)


def test_yes_or_no_is_a_bool_alone() -> None:
    assert values.yes_or_no("b", True) is True
    assert values.yes_or_no("b", False) is False
    for given in (1, 0, "yes", None, np.bool_(True)):
        with pytest.raises(InvalidInput, match=r"^b is .*; wanted True or False$"):
            values.yes_or_no("b", given)


def test_seeds_are_whole_numbers_of_64_bits() -> None:
    for given in (0, -5, 2**63 - 1, np.int64(7)):
        assert values.seed(given) == given
    for given in (2**63, 1.0, "0", None, True):
        with pytest.raises(InvalidInput, match=r"^seed is "):
            values.seed(given)


class Nameless:
    def __repr__(self) -> str:
        raise ValueError("no name")


def test_what_is_shown_is_short_and_on_one_line() -> None:
    assert values.shown("a\nb") == "'a\\nb'"
    assert values.shown(Nameless()) == "a Nameless"
    assert values.shown(np.float64(0.5)) == "0.5"
    assert len(values.shown("x" * 1000)) == values.LONGEST
    assert values.shown(np.zeros((2, 2))) == "array([[0., 0.], [0., 0.]])"

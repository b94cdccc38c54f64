"""Names that are in no table are answered with the table, and with the name that may have been meant."""

from __future__ import annotations

import pytest

from certibox.errors import did_you_mean, one_of

METHODS = ("RS", "DS", "FO-DS", "FO-AE-DS", "ZO-DS", "ZO-AE-DS")


@pytest.mark.parametrize(
    ("came", "meant"),
    [
        ("ZO-AEDS", "ZO-AE-DS"),
        ("zo-ae-ds", "ZO-AE-DS"),
        ("ZOAE-DS", "ZO-AE-DS"),
        ("ZO-DS ", "ZO-DS"),
        ("FO-AE-DDS", "FO-AE-DS"),
        ("rs", "RS"),
    ],
)
def test_a_slip_is_answered_with_the_name(came: str, meant: str) -> None:
    assert did_you_mean(came, METHODS) == f"; did you mean {meant}?"
    assert one_of(came, METHODS) == f"one of {', '.join(METHODS)}; did you mean {meant}?"


@pytest.mark.parametrize("came", ["XY", "", "denoiser", None, 3, ("RS",)])
def test_another_word_is_answered_with_the_table_alone(came: object) -> None:
    assert did_you_mean(came, METHODS) == ""
    assert one_of(came, METHODS) == f"one of {', '.join(METHODS)}"


def test_an_empty_table_has_nothing_to_suggest() -> None:
    assert did_you_mean("RS", ()) == ""

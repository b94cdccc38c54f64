"""Names that are in no table are answered with the table, and with the name that may have been meant."""

from __future__ import annotations

import time

import pytest

from certibox.errors import described, did_you_mean, one_line, one_of

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


SHOWN = {
    "two\nlines\tand  spaces ": "two lines and spaces",
    "\x1b[31;1mred\x1b[0m \x00\x07\u202eback\u200b": "red back",
    "https://me:hunter2@host:8080/v2/models/m?key=hunter2": "https://...@host:8080/v2/models/m?...",
    "GET /v1/m?key=hunter2 failed (503)": "GET /v1/m?... failed (503)",
    "what? a = b": "what? a = b",
    "{'Authorization': 'Bearer hunter2', 'Accept': '*'}": "{'Authorization': '...', 'Accept': '*'}",
    "Authorization: Basic aHVudGVyMg==": "Authorization: ...",
    "401 for bearer hunter2hunter2": "401 for bearer ...",
    "the bearer died": "the bearer died",
    "api_key=hunter2, model=m": "api_key=..., model=m",
    "X-Api-Key: hunter2": "X-Api-Key: ...",
    '{"access_token": "hunter2", "n": 3}': '{"access_token": "...", "n": 3}',
    "password='hunter2 and hunter2', user='me'": "password='...', user='me'",
    "Incorrect API key provided: hunter2. See the docs": "Incorrect API key provided: ... See the docs",
    "key sk-hunter2hunter2hunter2 is unknown": "key ... is unknown",
    "max_tokens=100 of a tokenizer": "max_tokens=100 of a tokenizer",
    "mail to a@b.org": "mail to a@b.org",
    "": "",
}


@pytest.mark.parametrize("text", SHOWN, ids=repr)
def test_a_text_from_outside_is_shown_on_one_line_without_secrets(text: str) -> None:
    assert one_line(text) == SHOWN[text]
    assert one_line(ValueError(text)) == SHOWN[text]
    assert "hunter2" not in one_line(f"{text}\n" * 40)


def test_a_long_text_is_cut_after_its_secrets_were_masked() -> None:
    assert one_line("a" * 301) == "a" * 297 + "..."
    assert one_line("a" * 300) == "a" * 300
    assert one_line("b" * 20, most=10) == "bbbbbbb..."
    assert one_line("word " * 58 + "token=hunter2hunter2").endswith("token=...")


def test_an_exception_that_cannot_say_what_it_is_is_shown_all_the_same() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    class Ends(BaseException):
        def __str__(self) -> str:
            raise SystemExit(0)

    assert one_line(Mute()) == one_line(Ends()) == "(no text)"
    assert [described(error) for error in (Mute(), KeyError(), KeyError("a"), OSError("\n", ""))] == [
        "Mute: (no text)",
        "KeyError",
        "KeyError: 'a'",
        "OSError: [Errno ]",
    ]


@pytest.mark.parametrize("text", ["://" * 10**5, "?a" * 10**5, "token" * 10**5, "a=" * 10**5, "//" + "a" * 10**6])
def test_no_text_takes_long(text: str) -> None:
    started = time.perf_counter()
    one_line(text)
    assert time.perf_counter() - started < 1

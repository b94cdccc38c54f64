"""Text from outside on a terminal: one line, nothing that it obeys, no secret."""

from __future__ import annotations

import pytest

from certibox.commands.lines import LONGEST, masked, one_line, plain
from certibox.commands.printing import OUT


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b]0;title\x00", "\\x1b[31mred\\x1b]0;title\\x00"),
        ("a\x9bb", "a\\x9bb"),
        ("abc\u202edef", "abc\\u202edef"),
        ("caf\udce9", "caf\\udce9"),
        ("[bold]a[/b] :smile: ü\n", "[bold]a[/b] :smile: ü\n"),
    ],
)
def test_control_characters_are_spelt_out_and_all_else_is_as_it_came(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plain(text) == shown
    OUT.print(text, end="")
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    ("text", "kept", "secret"),
    [
        ("https://user:hunter2@host/v1", "host/v1", "hunter2"),
        ("GET https://host/v1?key=hunter2 failed", "failed", "hunter2"),
        ("Authorization: Bearer hunter2hunter2", "Authorization", "hunter2"),
        ("{'Authorization': 'Token hunter2'}", "Authorization", "hunter2"),
        ("api_key=hunter2, retry", "retry", "hunter2"),
        ("token: 'hunter2'", "token", "hunter2"),
        ("key hf_hunter2hunter2hunter2", "key", "hunter2"),
    ],
)
def test_secrets_are_masked_and_what_stands_beside_them_is_kept(text: str, kept: str, secret: str) -> None:
    assert secret not in masked(text)
    assert kept in masked(text)


@pytest.mark.parametrize("text", ["runs/mine/defense is no directory", "sigma is -1.0; wanted 0.25", "a token of 3"])
def test_what_is_no_secret_is_kept(text: str) -> None:
    assert masked(text) == text


def test_a_line_is_one_line_and_has_an_end() -> None:
    assert one_line("a\n  b\r\nc") == "a b c"
    assert len(one_line("x" * 10**6)) < LONGEST + 10

    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert one_line(Mute()) == "a Mute without a text (ValueError)"

"""Tokens and what they spent: the file holds no secret, and a process that dies loses no query."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from certibox.errors import CertiboxError, InvalidInput, UnreadableFile
from certibox.serving.accounts import Accounts, Token, Tokens, new_token, read_tokens
from certibox.serving.protocol import Refused


def test_a_token_is_known_by_its_hash_alone(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    secret = new_token(path, "shop", 100)
    other = new_token(path, "lab", None)
    text = path.read_text()
    assert secret not in text
    assert hashlib.sha256(secret.encode()).hexdigest() in text
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    tokens = Tokens(path)
    assert tokens.found(f"Bearer {secret}") == Token("shop", 100)
    assert tokens.found(f"bearer {other}") == Token("lab", None)
    for wrong in (None, "", "Bearer", "Bearer x", f"Basic {secret}", secret, f"Bearer {secret}x"):
        with pytest.raises(Refused) as refused:
            tokens.found(wrong)
        assert refused.value.status == 401
        assert refused.value.headers == {"WWW-Authenticate": "Bearer"}
        assert secret not in refused.value.reason


def test_a_changed_file_is_read_again_and_a_broken_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    first = new_token(path, "shop", None)
    tokens = Tokens(path)
    second = new_token(path, "lab", 5)
    assert tokens.found(f"Bearer {second}") == Token("lab", 5)
    path.write_text("half a li")
    assert tokens.found(f"Bearer {first}") == Token("shop")
    path.write_text("# nobody\n\n")
    with pytest.raises(Refused):
        tokens.found(f"Bearer {first}")


def test_lines_that_are_no_token_are_refused(tmp_path: Path) -> None:
    path, digest = tmp_path / "tokens", "a" * 64
    for text, told in (
        ("shop", "line 1 is no token"),
        (f"shop:{digest[1:]}", "line 1 is no token"),
        (f"shop:{digest}:-5", "line 1 is no token"),
        (f"shop:{digest}\nshop:{'b' * 64}", "line 2: shop stands twice"),
        (f"shop:{digest}\nlab:{digest}", "line 2: lab stands twice"),
    ):
        path.write_text(text)
        with pytest.raises(UnreadableFile, match=told):
            read_tokens(path)
    path.write_text(f"shop:{digest}")  # no line break at the end
    new_token(path, "lab", None)
    assert {token.name for token in read_tokens(path).values()} == {"shop", "lab"}
    with pytest.raises(InvalidInput, match=r"has a token for 'lab'"):
        new_token(path, "lab", None)
    for name in ("", "a b", "a:b", "x" * 65):
        with pytest.raises(InvalidInput, match=r"wanted up to 64 letters"):
            new_token(path, name, None)


def test_accounts_outlive_their_process(tmp_path: Path) -> None:
    path = tmp_path / "accounts.sqlite"
    accounts = Accounts(path)
    accounts.charge({"shop": 70, "lab": 1})
    accounts.charge({"shop": -20})
    accounts.charge({})
    again = Accounts(path)  # as after a kill: the first was not closed
    assert (again.spent("shop"), again.spent("lab"), again.spent("nobody")) == (50, 1, 0)
    accounts.close()
    again.charge({"shop": 1})
    assert again.spent("shop") == 51
    again.close()
    with pytest.raises(CertiboxError, match=r"the accounts cannot be written"):
        again.charge({"shop": 1})
    assert again.spent("shop") == 51  # what could not be written is not counted either


def test_a_file_that_holds_no_accounts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("this is no database, and longer than a header of one" * 10)
    with pytest.raises(UnreadableFile, match=r"cannot be opened"):
        Accounts(tmp_path / "x")

"""Files of options: plain values, or one line that says what stands in their place."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from certibox.commands.settings_files import LARGEST, check_file, check_text
from certibox.errors import InvalidInput

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{after}: &{after} [{','.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, ["line 1: &a", "anchor"]),
        ("sigma: *a\n", ["line 1: *a"]),
        ("out: !!python/object/apply:os.system [ls]\n", ["line 1", "the tag", "os.system"]),
        ("sigma: 1\nn: 2\nsigma: 2\n", ["line 3: sigma is given twice"]),
        ("radii: " + "[" * 200 + "]" * 200, ["levels"]),
        ("radii: [" + "1," * 6000 + "]", ["values"]),
        ("a: [1,\n b: : }\n", ["line 2"]),
        ("seed: 1" + ":59" * 5000, ["line 1: 1:59", "15,001 characters; wanted 4,096 at most"]),
    ],
)
def test_what_is_no_plain_value_is_named_at_once(text: str, words: list[str]) -> None:
    started = time.perf_counter()
    with pytest.raises(InvalidInput) as refused:
        check_text(text, "run.yaml")
    assert time.perf_counter() - started < 5
    assert "\n" not in str(refused.value)
    for word in ("run.yaml", *words):
        assert word in str(refused.value)


def test_plain_values_pass() -> None:
    check_text("# of a run\nsigma: 0.25\nradii: [0, .5]\nout: 'a & b*'\nlr: null\nmodel: box.py:predict\n", "run.yaml")


def test_a_place_that_is_no_file_is_named(place: Path, refused) -> None:
    os.mkfifo("pipe")
    Path("large.yaml").write_bytes(b"#" * (LARGEST + 1))
    Path("binary.yaml").write_bytes(bytes(range(128, 256)))
    for name, word in (
        ("pipe", "a pipe"),
        (".", "a directory"),
        ("large.yaml", "65,537 bytes"),
        ("binary.yaml", "UTF-8"),
        ("nope.yaml", "does not exist"),
    ):
        refused(f"certify --config {name}", name, word)
        refused(f"certify --config={name}", name, word)
    Path("good.yaml").write_text("sigma: 0.25\n")
    check_file("good.yaml")


def test_a_flag_holds_no_bomb_either(refused) -> None:
    refused("certify --radii '[&a 1, *a]'", "--radii, line 1: &a")
    refused("certify --radii='[&a 1, *a]'", "--radii, line 1: &a")
    refused(f"certify --out {'x' * 5000}", "5,000 characters")

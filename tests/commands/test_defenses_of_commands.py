"""The command line: bad input is one line and status 2, a spent budget 3, and nothing paid for is ever lost."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from command_line import certify, totals, train


@pytest.mark.parametrize(
    ("more", "outputs", "words"),
    [
        ("--data larger.npz", "logits", ["(1, 4, 4)", "(1, 5, 5)"]),
        ("--model box.py:probabilities", "probabilities", ["answers logits", "answers probabilities"]),
        ("--model changed.py:logits --check-box true", "logits", ["the box has changed", "8 of 8 canaries"]),
        ("--model changed.py:wider --check-box true", "logits", ["the box has changed", "(8, 6)"]),
    ],
)
def test_a_defense_in_the_wrong_place_is_refused(
    place: Path, refused, trained: Path, more: str, outputs: str, words: list[str]
) -> None:
    (place / "changed.py").write_text(
        "import numpy as np\nimport box\n"
        "def logits(images):\n    return 2 * box.logits(images)\n"
        "def wider(images):\n    return np.concatenate([box.logits(images)] * 2, axis=1)\n"
    )
    status = 5 if "--check-box" in more else 2
    refused(certify(more=f"--defense {trained}/defense {more}", outputs=outputs), *words, status=status)
    assert not (place / "out" / "certificates.jsonl").exists()
    assert totals("out/ledger.sqlite")[0] == (8 if "--check-box" in more else 0)


def test_canaries_are_not_paid_for_where_certify_must_fail_anyway(place: Path, refused, trained: Path) -> None:
    refused(certify(more=f"--defense {trained}/defense --check-box true --n 2"), "n = 2")
    assert not (place / "out").exists()


def test_a_defense_without_a_fingerprint_cannot_be_checked(place: Path, run, refused) -> None:
    assert run(train(method="DS", more="--denoise-epochs 1 --epochs 0")).status == 0
    assert totals("run/ledger.sqlite") == (0, 0, 0)
    refused(certify(more="--defense run/defense --check-box true"), "--fingerprint true")


def test_checking_the_box_leaves_the_json_lines_of_predict_alone(run, trained: Path) -> None:
    line = "predict --model box.py:logits --outputs logits --data images.npz --n 20 --limit 2"
    ran = run(f"{line} --defense {trained}/defense --check-box true")
    assert ran.status == 0
    assert [json.loads(text)["idx"] for text in ran.out.splitlines()] == [0, 1]
    assert "canaries" in ran.err


def test_another_sigma_than_the_one_trained_at_is_told(run, trained: Path) -> None:
    note = "the defense was trained at sigma = 0.3, and is smoothed at 0.5\n"
    other = run(certify(more=f"--defense {trained}/defense --sigma 0.5"))
    assert (other.status, note in other.err) == (0, True)
    same = run(certify(out="same", more=f"--defense {trained}/defense --sigma 0.3"))
    assert (same.status, "was trained at" in same.err) == (0, False)
    line = "predict --model box.py:logits --outputs logits --data images.npz --n 20 --limit 1 --sigma 0.5"
    made = run(f"{line} --defense {trained}/defense")
    assert (len(made.out.splitlines()), note in made.err) == (1, True)


@pytest.mark.parametrize(
    ("more", "probes"),
    [("--target 1", 1), ("--target 1 --epochs 14", None), ("--target 0", None)],
)
def test_training_tells_why_no_correction_was_bought(run, more: str, probes: int | None) -> None:
    """Three steps an epoch, and a probe at every twentieth."""
    ran = run(train(more=f"--validate-every 99 {more}"))
    (line,) = [line for line in ran.out.splitlines() if line.startswith("cosine")]
    assert re.search(r"on average over the last epoch: -?\d\.\d\d; \d+\.\d corrections an image", line)
    early = f"below 1, but training ended after {probes} of the 3 probes, one every 20 steps"
    assert (early in line) == (probes is not None)
    assert ("training ended" in line) == (probes is not None)
    assert ("; 0.0 corrections" in line) == (probes is not None or "--target 0" in more)


def test_a_damaged_defense_is_named(place: Path, refused, trained: Path) -> None:
    shutil.copytree(trained / "defense", place / "defense")
    saved = place / "defense" / "defense.safetensors"
    saved.write_bytes(saved.read_bytes()[:-10])
    refused(certify(more="--defense defense"), "defense/defense.safetensors", "cut short")

"""The tool that runs bad command lines: it sees what is wrong, and a sample of its lines is refused as it should be."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bad_boxes import boxes
from bad_input import Outcome, faults
from bad_lines import Case, invocations, models
from places import ROOT

CASE = Case("a line", ("certify",), "0.7x")
SAID = "certibox certify: sigma is '0.7x'; wanted a number\n"


@pytest.mark.parametrize(
    ("outcome", "wanted"),
    [
        (Outcome(2, "", SAID, 0.1), []),
        (Outcome(2, "", f"certibox certify: note: this is no reason\n{SAID}", 0.1), []),
        (Outcome(0, "", "", 0.1), []),
        (Outcome(None, "", SAID, 60.0), ["hangs"]),
        (Outcome(2, "", f"Traceback (most recent call last):\n{SAID}", 0.1), ["traceback"]),
        (Outcome(1, "", SAID, 0.1), ["status 1"]),
        (Outcome(2, "", SAID.replace("0.7x", "x"), 0.1), ["unnamed value"]),
        (Outcome(2, "", SAID * 2, 0.1), ["2 lines of reason among 2"]),
        (Outcome(2, "", "", 0.1), ["0 lines of reason among 0"]),
        (Outcome(2, "", SAID.replace("sigma", "\x1b[31msigma"), 0.1), ["escape codes"]),
        (Outcome(2, "", "certibox certify: this is a fault of certibox: 0.7x\n", 0.1), ["our own fault"]),
    ],
)
def test_what_is_wrong_with_an_outcome_is_seen(outcome: Outcome, wanted: list[str]) -> None:
    assert faults(CASE, outcome) == wanted


@pytest.mark.parametrize(
    ("good", "status", "wanted"), [(True, 2, ["refused"]), (False, 0, ["accepted"]), (None, 2, [])]
)
def test_a_model_is_taken_or_refused_as_it_should_be(good: bool | None, status: int, wanted: list[str]) -> None:
    assert faults(Case("a model", (), good=good), Outcome(status, "", SAID if status else "", 0.1)) == wanted


def test_there_are_as_many_as_promised_each_once() -> None:
    lines = [case.arguments for case in invocations()]
    assert len(set(lines)) >= 400
    assert len({case.source for case in models()}) >= 150
    assert len({box.name for box in boxes()}) == len(boxes())


def test_a_sample_is_refused_as_it_should_be() -> None:
    command = [sys.executable, "tools/bad_input.py", "--every", "90"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stdout + ran.stderr

"""The command line: bad input is one line and status 2, a spent budget 3, and nothing paid for is ever lost."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from certibox.cli import main
from command_line import AE, Ran, furnish, train


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a box and images; what the command line imports from it is forgotten afterwards."""
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str]):
    """Run one command line in `place`."""

    def go(line: str) -> Ran:
        capsys.readouterr()
        status = main(shlex.split(line))
        printed = capsys.readouterr()
        return Ran(status, printed.out, printed.err)

    return go


@pytest.fixture
def refused(run):
    """Run a command line that must end in one line with all `words` in it, and return that line."""

    def go(line: str, *words: str, status: int = 2) -> str:
        ran = run(line)
        assert ran.status == status
        assert ran.message.startswith(f"certibox {line.split()[0]}: ")
        for word in words:
            assert word in ran.message
        return ran.message

    return go


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ZO-AE-DS with a fingerprint, trained once."""
    home = tmp_path_factory.mktemp("trained")
    furnish(home)
    with contextlib.chdir(home):
        assert main(shlex.split(train(more=f"{AE} --fingerprint true", method="ZO-AE-DS"))) == 0
    return home / "run"

"""What a stranger meets first: names that load on first use, and commands that load no more than they need."""

from __future__ import annotations

import subprocess
import sys

import pytest

from certibox.cli import COMMANDS
from places import ROOT

LIGHT = [
    "import certibox.confidence",
    "import certibox.records, certibox.report",
    "from certibox import confidence, report, errors, __version__",
    "from certibox.certification import at_alpha, choose_sigma, merge, replay",
    "from certibox.cli import main; main(['--help'])",
    "from certibox.cli import main; main(['paper', '--help'])",
    "from certibox.cli import main; main(['--version'])",
    "from certibox.cli import main\ntry: main(['report', '--help'])\nexcept SystemExit: pass",
    "from certibox.cli import main\ntry: main(['merge', '--help'])\nexcept SystemExit: pass",
]


@pytest.mark.parametrize("code", LIGHT)
def test_what_needs_no_torch_loads_none(code: str) -> None:
    asked = f"{code}\nimport sys\nprint([name for name in ('torch', 'sklearn') if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_purpose_of_a_command_is_the_first_line_of_its_help(name: str) -> None:
    options, run = COMMANDS[name].load()
    assert (options.__doc__ or "").splitlines()[0] == COMMANDS[name].purpose
    assert callable(run)


def test_the_first_level_has_at_most_twenty_names() -> None:
    names = {path.stem for path in (ROOT / "src" / "certibox").iterdir()} - {"py", "__init__", "__pycache__"}
    assert len(names) <= 20, sorted(names)


def test_no_module_is_longer_than_a_head_can_hold() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "src").rglob("*.py")}
    assert max(lengths.values()) <= 400, max(lengths, key=lambda path: lengths[path])


def test_no_two_test_modules_have_one_name() -> None:
    """pytest imports them by their names alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))

"""The check of a release: every extra is checked, and a failure is one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import check_release


def test_every_extra_of_a_user_is_checked() -> None:
    extras = check_release.PROJECT["optional-dependencies"].keys() - {"dev", "test"}
    assert check_release.MODULES.keys() == extras


def test_a_call_that_fails_ends_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check_release, "environment", lambda folder: Path(sys.executable))
    monkeypatch.setattr(
        check_release, "pip", lambda python, *packages: check_release.run(python, "-c", "raise SystemExit(7)")
    )
    assert check_release.main(["--work", str(tmp_path)]) == 1
    assert "failed: " in capsys.readouterr().err
    with pytest.raises(subprocess.CalledProcessError) as caught:
        check_release.run(Path(sys.executable), "-c", "import sys; print('said'); sys.exit(7)")
    assert (caught.value.returncode, caught.value.stdout) == (7, "said\n")

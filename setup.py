"""Puts the settings of the paper's experiments into the wheel; all else about the package is in pyproject.toml.

The settings are written once, in `experiments/`, where the measured rows lie beside them. A wheel gets a copy below
`certibox/paper/`, in the same folders, so that `certibox paper` works without a checkout.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SETTINGS = ("experiments/*.yaml", "experiments/paper/*.yaml")


def copy_settings(package: Path) -> list[Path]:
    """Copy the settings into a folder of the package `certibox.paper`; returns the paths of the copies."""
    copies = []
    for file in sorted(file for pattern in SETTINGS for file in ROOT.glob(pattern)):
        copy = package / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
        copies.append(copy)
    if not copies:
        raise FileNotFoundError(f"{ROOT / 'experiments'} holds no settings; build from a checkout or its sdist")
    return copies


class BuildWithSettings(build_py):
    """`build_py`, and the settings; an editable install reads them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            copy_settings(Path(self.build_lib) / "certibox" / "paper")


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildWithSettings})

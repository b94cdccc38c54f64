"""The settings that a wheel carries are the suite's, and they are found where no folder of experiments is."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from certibox.errors import UnreadableFile
from certibox.paper import shipped
from certibox.paper.shipped import EXPERIMENTS, find_suite
from certibox.paper.suite import NAMES, Suite
from places import ROOT


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The folder of a package `certibox.paper` as a wheel has it, without its code."""
    copies = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")["copy_settings"](tmp_path / "package")
    assert {copy.suffix for copy in copies} == {".yaml"}
    return tmp_path / "package"


def digests(suite: Suite) -> dict[tuple[str, str, str], str]:
    return {
        (table.name, row.name, scale): plan.digest
        for table in suite.tables.values()
        for row in table.rows
        for scale, plan in row.plans.items()
    }


def test_a_wheel_carries_every_setting(package: Path) -> None:
    """Every table has the plans that it has here, and the data sets are known too."""
    carried, here = Suite(package / EXPERIMENTS), Suite(ROOT / EXPERIMENTS)
    assert list(carried.tables) == list(NAMES)
    assert digests(carried) == digests(here)
    assert carried.datasets == here.datasets


def test_measured_rows_stay_in_the_repository(package: Path) -> None:
    assert not [path for path in package.rglob("*") if path.is_file() and path.suffix != ".yaml"]
    assert sum(path.stat().st_size for path in package.rglob("*.yaml")) < 100_000


def test_the_settings_of_the_package_stand_in_for_the_default_folder_alone(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(shipped, "PLACES", (tmp_path / "nowhere", package / EXPERIMENTS))
    assert find_suite(EXPERIMENTS).folder == package / EXPERIMENTS
    with pytest.raises(UnreadableFile, match=r"other holds no setups.yaml; wanted the folder of experiments"):
        find_suite("other")
    monkeypatch.setattr(shipped, "PLACES", ())
    with pytest.raises(UnreadableFile, match=rf"{EXPERIMENTS} holds no setups.yaml"):
        find_suite(EXPERIMENTS)


def test_a_folder_of_experiments_comes_before_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert find_suite(EXPERIMENTS).folder == Path(EXPERIMENTS)

"""pyproject.toml promises versions: the oldest are tested as they are named, the newest are pinned, and all agree."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml

from places import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
USED = [*PROJECT["dependencies"], *(item for name in EXTRAS if name != "dev" for item in EXTRAS[name])]
BOUNDS = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(USED), re.MULTILINE))  # package -> oldest promised
FOR_CHECKS = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(EXTRAS["dev"]), re.MULTILINE))


def pins(name: str) -> dict[str, str]:
    """Package, as the index spells it -> version."""
    found = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[_.]", "-", package).lower(): version for package, version in found}


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0]))


def test_every_dependency_has_a_lower_bound() -> None:
    named = {re.match(r"[\w-]+", item)[0] for item in USED} - {"certibox"}  # pyright: ignore[reportOptionalSubscript]
    assert set(BOUNDS) == named


@pytest.mark.parametrize("package", BOUNDS)
def test_the_oldest_versions_are_those_promised(package: str) -> None:
    """Of the promised series the first that can be had: 1.11.1 where 1.11.0 was withdrawn."""
    oldest = pins("constraints-oldest.txt")[package]
    assert f"{oldest}.".startswith(f"{BOUNDS[package]}.")


@pytest.mark.parametrize("package", BOUNDS | FOR_CHECKS)
def test_the_pinned_versions_keep_the_promise(package: str) -> None:
    assert numbers(pins("constraints.txt")[package]) >= numbers((BOUNDS | FOR_CHECKS)[package])


def test_messages_are_read_of_one_major_version_of_jsonargparse_only() -> None:
    bounds = next(item for item in PROJECT["dependencies"] if item.startswith("jsonargparse"))
    assert bounds.partition(",")[2] == f"<{numbers(BOUNDS['jsonargparse'])[0] + 1}"


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert citation["version"] == headings[0] == PROJECT["version"]


def test_the_hooks_run_what_make_check_runs() -> None:
    """Each from .venv, so that a commit needs no network."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    entries = [hook["entry"] for repository in config["repos"] for hook in repository["hooks"]]
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    recipe = re.search(r"^check: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe
    commands = re.findall(r"\$\(BIN\)/(.*)", recipe[1])
    bare = [entry.removeprefix(".venv/bin/").replace(" --force-exclude", "") for entry in entries]
    assert bare == [command.removesuffix(" .") for command in commands]

"""The docs say what the committed results say."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

import perceptron
import publish
from certibox.paper.logbook import Rows
from places import ROOT
from tune_demo import RESULTS as TUNED

DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "examples" / "README.md"]


def test_every_table_is_what_its_file_says() -> None:
    for path, text in publish.published().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run python tools/publish.py"


def test_the_tables_stand_where_they_are_promised() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in DOCS)
    for name in publish.TABLES:
        found = re.search(rf"<!-- {name} -->\n(.+?)<!-- /{name} -->", text, re.DOTALL)
        assert found, name
        assert found[1].startswith("|") != (name in ("price", "few-and-many")), name  # sentences, not tables


def test_the_demo_has_the_best_settings_of_its_tuning() -> None:
    best = max(Rows(TUNED).read(), key=lambda row: row["score"])
    preset = ROOT / "src" / "certibox" / "commands" / "presets" / "demo.yaml"
    assert yaml.safe_load(preset.read_text(encoding="utf-8")) == best["settings"]


def test_the_perceptron_of_the_studies_has_the_best_settings_of_its_tuning() -> None:
    best = max(Rows(perceptron.RESULTS).read(), key=lambda row: row["cge"]["average_certified_radius"])
    assert asdict(perceptron.SETTINGS) == best["settings"]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing


def test_the_readme_is_short_and_says_first_what_an_answer_costs() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert any("every certified answer costs n queries" in line for line in lines[:15])


def tree() -> dict[str, set[str]]:
    """Folder -> files that the tree of docs/architecture.md names in it; lines without a name go on with the last."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```\n(src/certibox/\n.*?)^```", text, re.MULTILINE | re.DOTALL)
    named: dict[str, set[str]] = {}
    path: list[str] = []  # folders that the line lies in, two spaces each
    for line in block.splitlines():
        if entry := re.match(r"( {0,4})([\w/]+/|[\w-]+\.py)(?: |$)", line):
            path = path[: len(entry[1]) // 2] + [entry[2].rstrip("/")] * entry[2].endswith("/")
        named.setdefault("/".join(path), set()).update(re.findall(r"(?<![\w/])[\w-]+\.(?:pyi?|yaml)\b", line))
    return named


def test_the_tree_of_the_architecture_is_true() -> None:
    named = tree()
    for folder, files in named.items():
        beside = {path.name for path in (ROOT / folder).iterdir()}
        assert files <= beside, f"{folder} has no {sorted(files - beside)}"
    modules = [path for path in (ROOT / "src" / "certibox").rglob("*.py") if path.name != "__init__.py"]
    unnamed = [str(path) for path in modules if path.name not in named[path.parent.relative_to(ROOT).as_posix()]]
    assert not unnamed, "docs/architecture.md leaves modules out"
    assert {"experiments/paper", "studies", "benchmarks", "tools", "tests", "docs/measurements"} <= named.keys()

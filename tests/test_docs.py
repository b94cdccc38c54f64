"""The docs say what the committed results say."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

from places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import publish

DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "README.md"]


def test_every_table_is_what_its_file_says() -> None:
    for path, text in publish.published().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run python benchmarks/publish.py"


def test_the_tables_stand_where_they_are_promised() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in DOCS)
    for name in publish.TABLES:
        assert re.search(rf"<!-- {name} -->\n\|.*<!-- /{name} -->", text, re.DOTALL), name


def test_the_demo_has_the_best_settings_of_its_tuning() -> None:
    rows = publish.read_rows("tune_demo.jsonl")
    best = max(rows, key=lambda row: row["cge"]["average_certified_radius"])
    preset = ROOT / "src" / "certibox" / "presets" / "demo.yaml"
    assert yaml.safe_load(preset.read_text(encoding="utf-8")) == best["settings"]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing

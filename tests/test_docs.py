"""The docs say what the committed results say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

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
        assert re.search(rf"<!-- {name} -->\n\|.*<!-- /{name} -->", text, re.DOTALL), name


def test_the_demo_has_the_best_settings_of_its_tuning() -> None:
    rows = Rows(TUNED).read()
    best = max(rows, key=lambda row: row["cge"]["average_certified_radius"])
    preset = ROOT / "src" / "certibox" / "presets" / "demo.yaml"
    assert yaml.safe_load(preset.read_text(encoding="utf-8")) == best["settings"]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing

"""The documentation site: every page has its place, every public name is explained, and no link leads nowhere."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

import build_site
import certibox
from places import ROOT

NAMES = set(vars(certibox)["__all__"])


class Settings(yaml.SafeLoader):
    """Settings of the site, whose one function of Python is of no matter here."""


Settings.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def navigation() -> list[str]:
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Settings)

    def places(item: Any) -> list[str]:
        if isinstance(item, str):
            return [item]
        return [place for inner in (item.values() if isinstance(item, dict) else item) for place in places(inner)]

    return places(settings["nav"])


def test_every_page_of_the_docs_has_one_place_in_the_navigation() -> None:
    named = navigation()
    assert max(Counter(named).values()) == 1
    staged = {place.as_posix() for place in build_site.pages().values() if place.suffix == ".md"}
    assert set(named) <= staged
    docs = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert docs <= set(named)


def test_every_public_name_is_on_one_page_of_the_reference() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md"))
    shown = re.findall(r"^::: certibox\.([\w.]+)$", text, re.MULTILINE)
    assert max(Counter(shown).values()) == 1
    assert {name for name in shown if "." not in name} == NAMES - {
        "__version__",
        "report",
    }  # of `report` the functions are shown


@pytest.mark.parametrize(
    ("link", "there"),
    [
        ("[a](guarantees.md#stopping-early)", "[a](guarantees.md#stopping-early)"),
        ("[a](../README.md#limits)", "[a](index.md#limits)"),
        ("![a](images/pipeline.svg)", "![a](images/pipeline.svg)"),
        ("[results](../results/table2.md)", "[results](results/table2.md)"),
        ("[the example](../examples/README.md)", "[the example](how-to/example.md)"),
        ("[`box.py`](../examples/box.py)", "`box.py`"),
        ("[experiments](../experiments)", "`experiments`"),
        ("[a script](../tools/publish.py)", "a script"),
        ("[a](https://example.org/a.md)", "[a](https://example.org/a.md)"),
        ("[a](#here)", "[a](#here)"),
        ("```\n[a](../nowhere.md)\n```", "```\n[a](../nowhere.md)\n```"),
    ],
)
def test_links_hold_in_the_site(link: str, there: str) -> None:
    assert (
        build_site.linked(
            link, ROOT / "docs" / "page.md", build_site.pages() | {ROOT / "docs" / "page.md": Path("page.md")}
        )
        == there
    )


def test_shell_lines_of_the_docs_are_shell() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for block in re.findall(r"^```bash\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            checked = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True, check=False)
            assert checked.returncode == 0, f"{path.name}: {checked.stderr}"


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("zensical", reason="the site is built with zensical")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for name, place in (
        ("docs_dir: build/site-source", "docs_dir: source"),
        ("site_dir: build/site", "site_dir: site"),
    ):
        assert name in settings
        settings = settings.replace(name, place)
    (tmp_path / "mkdocs.yml").write_text(settings.replace("paths: [src]", f"paths: [{ROOT / 'src'}]"), encoding="utf-8")
    build_site.stage(tmp_path / "source")
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(navigation())
    for page in pages:
        loaded = re.findall(
            r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?(https?:)?//", page.read_text(encoding="utf-8")
        )
        assert not loaded, page.name
    training = (tmp_path / "site" / "reference" / "training.html").read_text(encoding="utf-8")
    assert "Train a defense of a black box on unlabelled images" in training

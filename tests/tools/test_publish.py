"""Publishing: tables go between their markers, on every page, and a finished demo's numbers go where they are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import publish


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A page at every depth, with a stale table."""
    for name in ("README.md", "docs/a.md", "docs/measurements/b.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("Before.\n<!-- rates -->\n| stale |\n<!-- /rates -->\nAfter.\n", encoding="utf-8")
    return tmp_path


def test_pages_at_every_depth_are_filled(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "TABLES", {"rates": lambda: "| fresh |\n", "other": lambda: "| never |\n"})
    publish.main([], root)
    for name in ("README.md", "docs/a.md", "docs/measurements/b.md"):
        text = (root / name).read_text(encoding="utf-8")
        assert text == "Before.\n<!-- rates -->\n| fresh |\n<!-- /rates -->\nAfter.\n"


def test_a_finished_demo_is_taken(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "TABLES", {})
    demo = tmp_path / "demo"
    demo.mkdir()
    for name in ("summary.json", "ca_curve.png", "digits.png"):
        (demo / name).write_text(name, encoding="utf-8")
    publish.main(["--demo", str(demo)], root)
    taken = {path.name: path.read_text(encoding="utf-8") for path in root.rglob("demo*.*")}
    assert taken == {
        "demo.json": "summary.json",
        "demo_ca_curve.png": "ca_curve.png",
        "demo_digits.png": "digits.png",
    }


def test_the_demos_table_is_made_of_its_numbers(tmp_path: Path) -> None:
    row = {"name": "(a)", "radii": [0.0, 0.25], "share": [0.5, 0.25], "interval": [[0.4, 0.6], [0.2, 0.3]]}
    facts = {"sigma": "0.25", "n0": "10", "n": "100", "alpha": "0.001", "images": "4 digits", "box": "a box"}
    counts = {"training_queries": 1234, "certification_queries": 4444, "images": 4}
    result = {"rows": [row | counts], "notes": ["a note"], "legend": ["(a): a row"], "facts": facts}
    (tmp_path / "demo.json").write_text(json.dumps(result), encoding="utf-8")
    assert publish.demo_table(tmp_path / "demo.json") == (
        "| | r = 0 | r = 0.25 | queries to train | queries a certificate |\n|---|---:|---:|---:|---:|\n"
        "| (a) | 50.0 [40, 60] | 25.0 [20, 30] | 1,234 | 1,111 |\n\n"
        "Certified accuracy in % with 95 % intervals; a box, 4 digits, σ = 0.25, n0 = 10, n ≤ 100, α = 0.001.\n\n"
        "- (a): a row\n- a note\n"
    )

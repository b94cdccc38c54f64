"""The pages as a reader meets them: the verdict first, every link leads somewhere, every page explains its words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from certibox.paper.blocks import Block, blocks_of
from certibox.paper.cells import NONE, reported_difference, verdicts
from certibox.paper.measured import Results
from certibox.paper.shipped import EXPERIMENTS
from certibox.paper.suite import NAMES, Suite
from places import ROOT

PAGES = [ROOT / "RESULTS.md", *(ROOT / "results" / f"{name}.md" for name in (*NAMES, "gpu"))]


@pytest.fixture(scope="module")
def blocks() -> list[Block]:
    """The committed rows, table by table and scale by scale."""
    suite, known = Suite(ROOT / EXPERIMENTS), Results(ROOT / EXPERIMENTS).by_plan()
    return [block for table in suite.tables.values() for block in blocks_of(table, known)]


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings: lower case, no punctuation, a hyphen for a space."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_link_leads_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", text_of(path))
    assert links
    for link in links:
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.is_file(), link
        assert not anchor or anchor in anchors(text_of(target)), link


def test_every_page_is_reached_from_the_first_and_leads_back() -> None:
    first = text_of(PAGES[0])
    for page in PAGES[1:]:
        assert f"(results/{page.name})" in first
        assert "[All results](../RESULTS.md)" in text_of(page)


def test_the_first_page_is_short() -> None:
    assert len(text_of(PAGES[0]).splitlines()) <= 150


def test_the_first_page_starts_with_the_verdict(blocks: list[Block]) -> None:
    """Counted here by hand: every claim of every block that rows can decide, by scale."""
    found: dict[str, list[str]] = {}
    for block in blocks:
        for _, finding in block.findings:
            if finding is not None:
                found.setdefault(block.scale, []).append(finding.verdict)
    lines = text_of(PAGES[0]).splitlines()
    for position, (scale, own) in enumerate(found.items()):
        line = lines[2 + 2 * position]
        assert line.startswith(f"**{len(own)} claims were tested at scale `{scale}`** (")
        counted = [int(number) for number in re.findall(r"(\d+) (?:holds?|do(?:es)? not hold|cannot)", line)]
        assert counted == [own.count(kind) for kind in ("holds", "does not hold", "cannot be told")]
    against = [f"- {claim.text}: " for block in blocks for claim, finding in block.findings if refuted(finding)]
    assert [line.partition(": ")[0] + ": " for line in lines if line.startswith("- ")][: len(against)] == against


def refuted(finding) -> bool:
    return finding is not None and finding.verdict == "does not hold"


def test_claims_without_numbers_in_the_paper_are_counted_apart(blocks: list[Block]) -> None:
    tested = [(block, claim) for block in blocks for claim, finding in block.findings if finding]
    for words, reported in (("has both numbers", True), ("lacks them", False)):
        cells = re.findall(rf"^\| `.*` \| the paper's table {words} \| (\d+) \|", text_of(PAGES[0]), re.MULTILINE)
        counted = [claim for block, claim in tested if (reported_difference(block, claim) != NONE) is reported]
        assert sum(map(int, cells)) == len(counted) > 0


def test_a_verdict_is_a_sentence_of_its_own_number(blocks: list[Block]) -> None:
    figure = next(block for block in blocks if block.table.name == "figure4")
    assert verdicts([figure]) == []  # a figure claims nothing
    cifar = next(block for block in blocks if block.table.name == "tableA2" and block.scale == "cpu-cifar10")
    assert verdicts([cifar]) == [
        "**1 claim was tested at scale `cpu-cifar10`** (small networks and few images of CIFAR-10, cifar10-jpeg): "
        "**0 hold, 0 do not hold, and 1 cannot be told.**"
    ]


@pytest.mark.parametrize("path", [page for page in PAGES if page.stem != "gpu"], ids=lambda path: path.stem)
def test_a_page_alone_explains_its_words(path: Path) -> None:
    """Whatever shorthand a page uses, its own last section says what it means."""
    text, _, words = text_of(path).partition("\n## Words\n")
    for term in ("Black box", "Query", "White box", "σ (sigma)", "Seed", "Scale"):
        assert f"**{term}**: " in words
    for shorthand in ("MSE denoiser", "FO-DS", "ZO-AE-DS", "RGE", "CGE", "RMSE", "SSIM", "Eq. 2", "‖δ‖", "n0", "[low"):
        if shorthand in text:
            assert shorthand in words
    for scale in re.findall(r"[Ss]cale `([^`]*)`", text):
        assert f"  - `{scale}`: " in words


def test_provenance_is_folded(blocks: list[Block]) -> None:
    for page in PAGES[1:-1]:
        open_text = re.sub(r"<details>.*?</details>", "", text_of(page), flags=re.DOTALL)
        assert "--seed" not in open_text
        assert text_of(page).count("<details>") == sum(block.table.name == page.stem for block in blocks)

"""The page of all results: how many of the paper's claims hold, each claim in a line, links to all pages. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from certibox.paper.blocks import Block
from certibox.paper.cells import NONE, VERDICTS, difference, reported_difference, short_title, verdicts
from certibox.paper.claims import Finding
from certibox.paper.measured import Measured
from certibox.paper.suite import Table
from certibox.paper.table_page import kind_of
from certibox.paper.words import PAPER, Kind, words
from certibox.report import markdown

OWN_SCALES = {"paper", "paper-eq2"}
_ABOUT = f"""The paper is {PAPER}.
It puts a trained denoiser, and an autoencoder, in front of a classifier that answers queries and shows nothing else,
and certifies the answers of the whole: no small change of the image can alter them. Every claim says that one way to
train such a defense is better than another, or nearly as good. This page is made by `certibox paper report` from
measured rows: [how they are measured](docs/reproducing.md#how-a-row-is-measured),
[how claims are decided](docs/reproducing.md#how-claims-are-decided), [what the words mean](#words).
"""


class Tested(NamedTuple):
    """One claim at one scale with what the measured rows say of it."""

    block: Block
    """Measured rows that the claim is about."""
    finding: Finding
    """What the rows say of it."""


def summary_page(suite: Mapping[str, Table], blocks: Mapping[str, Sequence[Block]], folder: str, gpu: str) -> str:
    """The page as Markdown.

    Args:
        suite: Tables and figures by name, in the order of the paper.
        blocks: Measured rows by name of the table, one block a scale.
        folder: Link from this page to the folder of the other pages.
        gpu: Name of the page of what was checked on a GPU, in that folder.
    """
    all_blocks = [block for own in blocks.values() for block in own]
    tested = [Tested(block, finding) for block in all_blocks for _, finding in block.findings if finding]
    scales = list(dict.fromkeys(scale for table in suite.values() for scale in table.scales))
    kinds: list[Kind] = list(dict.fromkeys(kind_of(table) for table in suite.values()))
    parts = ["# Results: which of the paper's claims hold\n", _verdict(tested, all_blocks, folder), _ABOUT]
    parts += [_counts(tested), _claims(tested, folder), _pages(suite, blocks, folder, gpu), words(kinds, scales)]
    return "\n".join(part for part in parts if part)


def _verdict(tested: Sequence[Tested], blocks: Sequence[Block], folder: str) -> str:
    """The answer in a few sentences."""
    if not tested:
        return "**No claim was tested yet: no two rows that a claim compares are measured.**\n"
    lines = verdicts(blocks)
    if not {one.block.scale for one in tested} & OWN_SCALES:
        lines.append(
            "No claim was tested at the paper's own scale: the verdicts compare the order of methods, as small "
            "measurements have it, not the levels that the paper reports."
        )
    against = [one for one in tested if one.finding.verdict == "does not hold"]
    parts = ["\n\n".join(lines) + "\n"]
    if against:
        texts = [f"- {one.finding.claim.text}: {_difference(one)} ({_link(one, folder)}).\n" for one in against]
        parts.append(f"What does not hold:\n\n{''.join(texts)}")
    return "\n".join(parts)


def _difference(one: Tested) -> str:
    return difference(one.finding, one.block)


def _by_scale(tested: Sequence[Tested]) -> dict[str, list[Tested]]:
    found: dict[str, list[Tested]] = {}
    for one in tested:
        found.setdefault(one.block.scale, []).append(one)
    return found


def _counts(tested: Sequence[Tested]) -> str:
    """How many claims hold, those that the paper reports numbers for apart from those that were added here."""
    body = []
    for scale, own in _by_scale(tested).items():
        for reported, kind in ((True, "the paper's table has both numbers"), (False, "the paper's table lacks them")):
            part = [one for one in own if (reported_difference(one.block, one.finding.claim) != NONE) is reported]
            if part:
                found = [one.finding.verdict for one in part]
                body.append([f"`{scale}`", kind, str(len(part)), *(str(found.count(kind)) for kind in VERDICTS)])
    if not body:
        return ""
    return markdown([["scale", "claims", "tested", *VERDICTS.values()], *body], left=(0, 1))


def _claims(tested: Sequence[Tested], folder: str) -> str:
    """All claims at a glance."""
    body = [
        [
            one.finding.claim.text,
            f"**{one.finding.verdict}**",
            _difference(one),
            reported_difference(one.block, one.finding.claim),
            str(len(one.finding.by_seed)),
            f"`{one.block.scale}`, {one.block.measured[0].data}",
            _link(one, folder),
        ]
        for one in tested
    ]
    header = ["claim", "verdict", "measured difference", "reported difference", "seeds", "scale, images", "page"]
    return "## The paper's claims\n\n" + markdown([header, *body], left=(0, 1, 5, 6)) if body else ""


def _link(one: Tested, folder: str) -> str:
    return f"[{short_title(one.block.table)}]({folder}/{one.block.table.name}.md#scale-{one.block.scale})"


def _pages(suite: Mapping[str, Table], blocks: Mapping[str, Sequence[Block]], folder: str, gpu: str) -> str:
    """A link to every page, with what is measured of it."""
    body = []
    for name, table in suite.items():
        counts = [_measured(block) for block in blocks[name]]
        body.append([f"[{table.title}]({folder}/{name}.md)", ", ".join(counts) or "nothing yet"])
    body.append([f"[Checks on a GPU: precision of gradients, time of an epoch]({folder}/{gpu})", ""])
    return "## Tables and figures\n\n" + markdown([["page", "rows measured"], *body], left=(0, 1))


def _measured(block: Block) -> str:
    wanted = sum(block.scale in row.plans for row in block.table.rows)
    rows: Sequence[Sequence[Measured]] = list(block.rows.values())
    return f"`{block.scale}`: {len(rows)} of {wanted}"

"""RESULTS.md, a page for each table and figure, and their plots, from the suite and its measured rows alone. No torch.

The same rows give the same bytes, in whatever order they were measured.
"""

from __future__ import annotations

from pathlib import Path

from certibox.paper import gpu
from certibox.paper.blocks import blocks_of
from certibox.paper.measured import Results
from certibox.paper.plots import draw
from certibox.paper.suite import Suite
from certibox.paper.summary import summary_page
from certibox.paper.table_page import table_page
from certibox.storage.files import write_text_atomic

FOLDER = "results"  # of the pages and plots, beside the page of all results
GPU_PAGE = "gpu.md"


def is_page(content: bytes) -> bool:
    """Whether a file that begins so may be a page of results: all of them begin with a heading.

    Args:
        content: First bytes of the file.
    """
    return content.startswith(b"# ")


def write_results(suite: Suite, results: Results, page: Path) -> list[Path]:
    """Write the page of all results, the other pages and the plots.

    Args:
        suite: Tables and figures, with what the paper reports and claims.
        results: Measured rows of the suite.
        page: Path of the page of all results; all else goes into the folder `results` beside it.

    Returns:
        The paths of all written files, `page` first.
    """
    folder, back = page.parent / FOLDER, f"../{page.name}"
    known = results.by_plan()
    blocks = {name: blocks_of(table, known) for name, table in suite.tables.items()}
    plots = {name: draw(blocks[name], folder) for name in blocks}
    texts = {page: summary_page(suite.tables, blocks, FOLDER, GPU_PAGE)}
    earlier: set[tuple[str, int]] = set()
    for name, table in suite.tables.items():
        texts[folder / f"{name}.md"] = table_page(table, blocks[name], plots[name], back, earlier)
        earlier |= {row.key for block in blocks[name] for row in block.measured}
    texts[folder / GPU_PAGE] = gpu.page(results.folder.parent / "gpu.jsonl", back)
    for path, text in texts.items():
        write_text_atomic(path, text, is_page)
    return [*texts, *(path for paths in plots.values() for path in paths.values())]

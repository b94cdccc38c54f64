"""Build the documentation site: pages of docs/, the README, the results and the reference, in build/site.

python tools/build_site.py [--stage-only] [--out FOLDER]

Pages are staged in build/site-source: the README is the first page, RESULTS.md and results/ come below results/, and a
link to a file that is on no page, such as a script, becomes the name of the file. Then zensical builds them as
mkdocs.yml says; any warning ends the build with an error.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "build" / "site-source"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Stage the pages and build the site; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage-only", action="store_true", help="stage the pages and build nothing")
    parser.add_argument("--out", type=Path, default=SOURCE, help="folder of the staged pages")
    options = parser.parse_args(arguments)
    stage(options.out)
    if options.stage_only:
        return 0
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def pages(root: Path = ROOT) -> dict[Path, Path]:
    """File of the repository -> place in the site, for pages and pictures."""
    docs = root / "docs"
    placed = {
        path: path.relative_to(docs) for path in sorted(docs.rglob("*")) if path.suffix in (".md", ".png", ".svg")
    }
    placed |= {root / "README.md": Path("index.md"), root / "RESULTS.md": Path("results/index.md")}
    placed[root / "CHANGELOG.md"] = Path("changelog.md")
    placed |= {
        path: path.relative_to(root) for path in sorted((root / "results").rglob("*")) if path.suffix in (".md", ".png")
    }
    placed[root / "examples" / "README.md"] = Path("how-to/example.md")
    return placed


def stage(out: Path, root: Path = ROOT) -> None:
    """Write the pages with links that hold in the site.

    Args:
        out: Folder of the staged pages, which is emptied.
        root: Folder of the repository.
    """
    placed = pages(root)
    shutil.rmtree(out, ignore_errors=True)
    for path, place in placed.items():
        target = out / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            target.write_text(linked(path.read_text(encoding="utf-8"), path, placed), encoding="utf-8")
        else:
            shutil.copy(path, target)


def linked(text: str, page: Path, placed: dict[Path, Path]) -> str:
    """The text of a page with every relative link as it holds in the site, or without it.

    Args:
        text: Text of the page.
        page: File of the page.
        placed: Places of all pages and pictures.
    """

    def there(found: re.Match[str]) -> str:
        mark, words, link = found.groups()
        if "://" in link or link.startswith(("#", "mailto:")):
            return found[0]
        path, _, anchor = link.partition("#")
        target = Path(os.path.normpath(page.parent / path))
        if target not in placed and (target / "README.md") in placed:
            target = target / "README.md"
        if target not in placed:
            return words if words.startswith("`") or " " in words else f"`{words}`"
        place = os.path.relpath(placed[target], placed[page].parent)
        return f"{mark}[{words}]({place}{'#' + anchor if anchor else ''})"

    parts = re.split(r"(^```.*?^```\s*$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(there, part) for part in parts)


if __name__ == "__main__":
    sys.exit(main())

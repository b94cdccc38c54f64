"""`certibox merge` and `certibox report`: what is made of certificate files alone, without a box."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from certibox import certification, report
from certibox.commands.printing import OUT
from certibox.errors import UnreadableFile
from certibox.options import option
from certibox.records import CertificateRow, read_rows, write_tsv


@dataclass(frozen=True)
class Merge:
    """Merge the certificate files of shards into one.

    example: certibox merge runs/mine/certified/certificates.*-of-4.jsonl --out runs/mine/certificates.jsonl
    """

    files: list[str] = option("certificate files of the shards", positional=True)
    out: str = option("the merged file", "certificates.jsonl")


@dataclass(frozen=True)
class Report:
    """Compare certified runs: a table, curves of certified accuracy and one self-contained HTML page.

    example: certibox report bare=runs/bare/certificates.jsonl defended=runs/mine/certified/certificates.jsonl \\
                 --radii "[0, 0.25, 0.5]" --out runs/report
    """

    files: list[str] = option("certificate files, each as NAME=FILE or FILE", positional=True)
    radii: list[float] = option("l2 radii of the table, as [0, 0.25, ...]", (0.0, 0.25, 0.5, 0.75))
    alpha: float | None = option("replay the stored votes at another alpha; costs no query", None)
    title: str = option("title of the page", "Certified accuracy")
    out: str = option("directory for report.html, ca_curve.png and the TSV files", "report")


def run_merge(options: Merge) -> None:
    """`certibox merge`."""
    for file in options.files:
        _rows(file)
    rows = certification.merge(options.files, options.out)
    OUT.print(f"saved {options.out}: {len(rows)} certificates")
    if gaps := rows[-1].idx + 1 - len(rows):
        OUT.print(f"{gaps} image{'s' if gaps > 1 else ''} below {rows[-1].idx} without one: is a shard missing?")


def run_report(options: Report) -> None:
    """`certibox report`."""
    out, runs = Path(options.out), []
    for entry in options.files:
        name, _, file = entry.rpartition("=")
        rows = _rows(file)
        rows = certification.at_alpha(rows, options.alpha) if options.alpha is not None else rows
        runs.append(report.Run(name or Path(file).parent.name or Path(file).stem, rows, {}))
    page = report.write_report(out, runs, list(options.radii), title=options.title, facts=_shared_facts(runs))
    for run in runs:
        if all(row.label is not None for row in run.rows):
            write_tsv(run.rows, out / f"{run.name.replace('/', '_')}.tsv")
    OUT.print(report.render_table(runs, list(options.radii)))
    OUT.print(f"saved {page}")


def _rows(file: str) -> list[CertificateRow]:
    rows = read_rows(file)
    if not rows:
        raise UnreadableFile(f"{file} holds no certificate; wanted a file that certibox certify wrote")
    return rows


def _shared_facts(runs: list[report.Run]) -> dict[str, str]:
    """Settings that all rows share, for the head of the page."""
    facts = {}
    for key in ("sigma", "n0", "n", "alpha", "seed"):
        values = {getattr(row, key) for run in runs for row in run.rows}
        facts[key] = ", ".join(str(value) for value in sorted(values))
    return facts

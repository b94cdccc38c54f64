"""`certibox merge` and `certibox report`: what is made of certificate files alone, without a box."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from certibox import certification, report
from certibox.commands.fields import option
from certibox.commands.printing import OUT
from certibox.errors import InvalidInput, UnreadableFile
from certibox.records.certificates import CertificateRow, read_rows
from certibox.records.tsv import write_tsv


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

    With --validation, the runs are of one model trained and certified at several sigmas: for each radius, the sigma
    that certifies most validation images is picked, and the accuracy on the images of FILE under it is printed.

    example: certibox report bare=runs/bare/certificates.jsonl defended=runs/mine/certified/certificates.jsonl \\
                 --radii "[0, 0.25, 0.5]" --out runs/report
    """

    files: list[str] = option("certificate files, each as NAME=FILE or FILE", positional=True)
    radii: list[float] | None = option(
        "l2 radii of the table, as [0, 0.25, ...]; by default those that sequential certificates decided, else 0, "
        "0.25, 0.5 and 0.75",
        None,
    )
    validation: list[str] | None = option(
        "certificate files of validation images, as [FILE, ...], one for the sigma of each FILE", None
    )
    alpha: float | None = option("replay the stored votes at another alpha; costs no query", None)
    title: str = option("title of the page", "Certified accuracy")
    out: str = option("directory for report.html, ca_curve.png and the TSV files", "report")


def run_merge(options: Merge) -> None:
    """`certibox merge`.

    Args:
        options: Options of the command.
    """
    for file in options.files:
        _rows(file)
    rows = certification.merge(options.files, options.out)
    OUT.print(f"saved {options.out}: {len(rows)} certificates")
    if gaps := rows[-1].idx + 1 - len(rows):
        OUT.print(f"{gaps} image{'s' if gaps > 1 else ''} below {rows[-1].idx} without one: is a shard missing?")


def run_report(options: Report) -> None:
    """`certibox report`.

    Args:
        options: Options of the command.
    """
    out, runs, tables = Path(options.out), [], []
    for entry in options.files:
        name, _, file = entry.rpartition("=")
        rows = _rows(file, options.alpha)
        tables.append(rows)
        runs.append(report.Run(name or Path(file).parent.name or Path(file).stem, rows, {}))
    validation = [_rows(file, options.alpha) for file in options.validation or ()]
    radii = list(options.radii) if options.radii is not None else _decided(tables)
    notes = _envelope(validation, tables, radii) if validation else []
    for run, rows in zip(runs, tables, strict=True):
        notes += filter(None, (_undecided(run.name, rows, radii), _ended_early(run.name, rows)))
    facts = _shared_facts([row for rows in tables for row in rows])
    page = report.write_report(out, runs, radii, title=options.title, facts=facts, notes=notes)
    for run in runs:
        if all(row.label is not None for row in run.rows):
            write_tsv(run.rows, out / f"{run.name.replace('/', '_')}.tsv")
    OUT.print(report.render_table(runs, radii))
    for note in notes:
        OUT.print(note)
    OUT.print(f"saved {page}")


def _rows(file: str, alpha: float | None = None) -> list[CertificateRow]:
    rows = read_rows(file)
    if not rows:
        raise UnreadableFile(f"{file} holds no certificate; wanted a file that certibox certify wrote")
    return rows if alpha is None else certification.at_alpha(rows, alpha)


def _decided(runs: list[list[CertificateRow]]) -> list[float]:
    """The radii that the rules of sequential certificates decided; without any, some usual ones."""
    found = {radius for rows in runs for row in rows for radius in row.decided or ()}
    return sorted(found) or [0.0, 0.25, 0.5, 0.75]


def _undecided(name: str, rows: list[CertificateRow], radii: list[float]) -> str | None:
    """A warning for radii that a run's rule was not asked about."""
    open_ = ", ".join(f"{radius:g}" for radius in certification.undecided(rows, radii))
    return f"{name}: the rule did not decide r = {open_}; its shares there are lower bounds" if open_ else None


def _ended_early(name: str, rows: list[CertificateRow]) -> str | None:
    """A warning for votes that ended at an alpha larger than the one that they are replayed at."""
    ran = [row.rule["alpha"] for row in rows if row.rule is not None and row.rule["alpha"] > row.alpha]
    if not ran:
        return None
    ended = f"{name}: the votes ended when they had decided at alpha = {max(ran):g}"
    return f"{ended}; at {rows[0].alpha:g} the shares are lower bounds, and certifying at it finds more"


def _envelope(
    validation: list[list[CertificateRow]], tests: list[list[CertificateRow]], radii: list[float]
) -> list[str]:
    """A line for each radius: the sigma that validation images chose for it, and what it certifies on the others."""
    candidates, tested = _by_sigma(validation), _by_sigma(tests)
    if absent := sorted(tested.keys() - candidates.keys()):
        missing = ", ".join(f"{sigma:g}" for sigma in absent)
        raise InvalidInput(f"no validation certificates are of sigma = {missing}; wanted a file of each run's sigma")
    choice = certification.choose_sigma(candidates, radii)
    lines = []
    for radius, accuracy in certification.envelope(choice, tested).items():
        sigma = choice.sigmas[radius]
        (low, high) = report.certified_accuracy_interval(tested[sigma], [radius])[0]
        share = f"{100 * accuracy:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        lines.append(f"r = {radius:g}: sigma = {sigma:g}, chosen on validation images, certifies {share}")
    return lines


def _by_sigma(files: Iterable[list[CertificateRow]]) -> dict[float, list[CertificateRow]]:
    """The rows of several files by their sigma, one file for each."""
    rows_by_sigma: dict[float, list[CertificateRow]] = {}
    for rows in files:
        if rows[0].sigma in rows_by_sigma:
            raise InvalidInput(f"two files are of sigma = {rows[0].sigma}; wanted one for each sigma")
        rows_by_sigma[rows[0].sigma] = rows
    return rows_by_sigma


def _shared_facts(rows: list[CertificateRow]) -> dict[str, str]:
    """Settings that all rows share, for the head of the page."""
    facts = {}
    for key in ("sigma", "n0", "cap", "alpha", "seed"):
        values = {getattr(row, key) for row in rows}
        facts["n" if key == "cap" else key] = ", ".join(str(value) for value in sorted(values))
    if any(row.rule for row in rows):
        facts["rule"] = _rules(rows)
    return facts


def _rules(rows: list[CertificateRow]) -> str:
    """Which rule ended the votes; where several did, how many rows each and what it was asked."""
    counted = Counter(_rule(row) for row in rows)
    if len(counted) == 1:
        return f"{next(iter(counted))}, with n as its maximum"
    return (
        "; ".join(f"{rule}: {count} rows" for rule, count in sorted(counted.items())) + "; n is the maximum of a rule"
    )


def _rule(row: CertificateRow) -> str:
    if row.rule is None:
        return "fixed n"
    if row.decided is not None:
        return f"{row.rule['name']} (r = {', '.join(f'{radius:g}' for radius in row.decided)})"
    tolerance = row.rule.get("tolerance")  # a rule that is not certibox's may have none
    return f"{row.rule['name']} (tolerance {tolerance})" if tolerance is not None else row.rule["name"]

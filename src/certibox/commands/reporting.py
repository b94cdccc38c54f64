"""`certibox merge` and `certibox report`: what is made of certificate files alone, without a box."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from certibox import certification, report
from certibox.certification.stored import believed, is_decided, read
from certibox.commands.fields import Needs, option
from certibox.commands.printing import OUT
from certibox.commands.runs import named, tsv_places
from certibox.confidence.binomial import check_alpha
from certibox.errors import InvalidInput, UnreadableFile
from certibox.records.certificates import CertificateRow, read_rows
from certibox.records.checks import Outcome
from certibox.records.places import rows_in
from certibox.records.tsv import is_published, read_tsv, write_tsv
from certibox.report.boards import BOARDS, export
from certibox.report.findings import comparisons
from certibox.report.numbers import checked_radii
from certibox.report.tables import plain
from certibox.storage.files import require_place, write_text_atomic

Rows = TypeVar("Rows", bound=Sequence[Outcome])


@dataclass(frozen=True)
class Merge:
    """Merge the certificate files of shards into one.

    example: certibox merge runs/mine/certified/certificates.*-of-4.jsonl --out runs/mine/certificates.jsonl
    """

    files: list[str] = option("certificate files of the shards, or folders of one certificates.jsonl", positional=True)
    out: str = option("the merged file", "certificates.jsonl")


@dataclass(frozen=True)
class Report:
    """Compare certified runs: a table, curves of certified accuracy and one self-contained HTML page.

    With --validation, the runs are of one model trained and certified at several sigmas: for each radius, the sigma
    that certifies most validation images is picked, and the accuracy on the images of FILE under it is printed.

    example: certibox report bare=runs/bare/certificates.jsonl defended=runs/mine/certified/certificates.jsonl \\
                 --radii "[0, 0.25, 0.5]" --out runs/report
    """

    NEEDS: ClassVar = (Needs("dataset", lambda o: o.export is not None, "without --export", "--export"),)

    files: list[str] = option(
        "certificate files, TSVs or folders of a certificates.jsonl, each as NAME=FILE or FILE", positional=True
    )
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
    export: Literal["robustbench", "sok"] | None = option(
        "also write an entry for a public board: robustbench.json of RobustBench, or sok.yml of the SoK leaderboard",
        None,
    )
    dataset: str = option("with --export: name of the data set, as the board has it", "")
    out: str = option("directory for report.html, ca_curve.png and the TSV files", "report")


def run_merge(options: Merge) -> None:
    """`certibox merge`.

    Args:
        options: Options of the command.
    """
    parts = [rows_in(file) for file in options.files]
    for part in parts:
        _require_some(part, read_rows(part))
    rows = certification.merge(parts, options.out)
    OUT.print(f"saved {plain(options.out)}: {len(rows)} certificates", markup=False)
    for note in filter(None, (_gaps(rows), _believed("merged rows", rows))):
        OUT.print(note, markup=False)


def _gaps(rows: Sequence[CertificateRow]) -> str | None:
    """A line on images that have no row, below the last that has one."""
    gaps = rows[-1].idx + 1 - len(rows)
    images = f"{gaps} image{'s' if gaps > 1 else ''} below {rows[-1].idx}"
    return f"{images} without one: is a shard missing?" if gaps else None


def run_report(options: Report) -> None:
    """`certibox report`.

    Args:
        options: Options of the command.
    """
    asked, out = _asked(options), Path(options.out)
    places = named(options.files)
    tsvs = tsv_places(out, places)
    report.require_report_place(out)
    board = None if options.export is None else out / BOARDS[options.export].file
    if board is not None:
        require_place(board)
    validating = [rows_in(file) for file in options.validation or ()]
    for file in [*places.values(), *validating] if validating or options.alpha is not None else ():
        _require_votes(file)
    runs = [report.Run(name, _rows(file, options.alpha)) for name, file in places.items()]
    validation = [list(_certificates(_rows(file, options.alpha))) for file in validating]
    tables = [list(_certificates(run.rows)) for run in runs]
    radii = asked or _decided(tables)
    notes = _envelope(validation, tables, radii) if validation else []
    for run, rows in zip(runs, tables, strict=True):
        warnings = (_undecided, _spent, _ended_early, _believed)
        notes += filter(None, (warning(run.name, rows, radii) for warning in warnings))
    facts = _shared_facts([row for rows in tables for row in rows])
    page = report.write_report(out, runs, radii, title=options.title, facts=facts, notes=notes)
    for run, rows in zip(runs, tables, strict=True):
        if rows and all(row.label is not None for row in rows):
            write_tsv(rows, tsvs[run.name])
    OUT.print(report.render_table(runs, radii))
    compared, apart = comparisons(runs, radii)
    for note in [*(pair.line for pair in compared), *apart, *notes]:
        OUT.print(plain(note), markup=False)
    OUT.print(f"saved {plain(str(page))}", markup=False)
    if options.export is not None and board is not None:
        write_text_atomic(board, export(runs, radii, options.export, options.dataset))
        OUT.print(f"saved {plain(str(board))}", markup=False)


def _asked(options: Report) -> list[float] | None:
    """The radii that were asked for, in order and each once; options that no report can follow are refused."""
    if options.alpha is not None:
        check_alpha(options.alpha)
    if options.radii is None:
        return None
    if not options.radii:
        raise InvalidInput("radii are []; wanted at least one, such as --radii [0, 0.25]")
    return sorted(set(checked_radii(options.radii).tolist()))


def _rows(file: Path, alpha: float | None) -> Sequence[Outcome]:
    """The rows of a file, certificates or published, each of which holds."""
    if is_published(file):
        return _require_some(file, read_tsv(file))
    rows = _require_some(file, read(file))
    try:
        return rows if alpha is None else certification.at_alpha(rows, alpha)
    except InvalidInput as error:
        raise InvalidInput(f"{file} at alpha = {alpha}: {error}") from error


def _require_votes(file: Path) -> None:
    if is_published(file):
        wanted = "--alpha and --validation want the JSON lines that certibox certify wrote"
        raise InvalidInput(f"{file} is a TSV, which has neither votes nor sigma; {wanted}")


def _require_some(file: Path, rows: Rows) -> Rows:
    if not rows:
        raise UnreadableFile(f"{file} holds no certificate; wanted a file that certibox certify wrote")
    return rows


def _certificates(rows: Iterable[Outcome]) -> Iterator[CertificateRow]:
    """Those of the rows that have votes: all of a file, or none."""
    return (row for row in rows if isinstance(row, CertificateRow))


def _believed(name: str, rows: Iterable[CertificateRow], radii: list[float] | None = None) -> str | None:
    """A line on bounds that nothing here can check."""
    rules = ", ".join(repr(rule) for rule in believed(rows))
    return f"{name}: rule {rules} is not certibox's own: its bound is taken as stated" if rules else None


def _decided(runs: list[list[CertificateRow]]) -> list[float]:
    """The radii that the rules of sequential certificates decided; without any, some usual ones."""
    found = {radius for rows in runs for row in rows for radius in row.decided or ()}
    return sorted(found) or [0.0, 0.25, 0.5, 0.75]


def _undecided(name: str, rows: list[CertificateRow], radii: list[float]) -> str | None:
    """A warning for radii that a run's rule was not asked about."""
    open_ = ", ".join(f"{radius:g}" for radius in certification.undecided(rows, radii))
    return f"{name}: the rule did not decide r = {open_}; its shares there are lower bounds" if open_ else None


def _spent(name: str, rows: list[CertificateRow], radii: list[float]) -> str | None:
    """A warning for images that the rule had not decided when the queries were spent."""
    if believed(rows) or not (count := sum(not is_decided(row) for row in rows)):
        return None
    images = "1 image was" if count == 1 else f"{count} images were"
    return f"{name}: {images} not decided when the queries were spent; the shares are lower bounds"


def _ended_early(name: str, rows: list[CertificateRow], radii: list[float]) -> str | None:
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

"""Measured rows on disk, and the pages made of them: the same rows give the same bytes, and none but theirs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import norm

from certibox.errors import UnreadableFile
from certibox.paper.measured import Measured, Results
from certibox.paper.results import write_results
from certibox.paper.suite import NAMES, Suite
from paper_rows import ATTACKED, CERTIFIED, SIGMA, attacked_row, certified_row, measured_row
from places import ROOT

EXPERIMENTS = ROOT / "experiments" / "paper"

# --------------------------------------------------------------------------------------------------- rows on the disk


def test_rows_come_back_as_they_were_and_in_their_order(tmp_path: Path) -> None:
    results = Results(tmp_path)
    rows = [
        measured_row(seed=1),
        measured_row(row="two σ – \u2028 and a quote'", clean_accuracy=None),
        attacked_row({"adaptive rmse 0": [0.1, 0.25]}, table="table5"),
        measured_row(seed=0),
    ]
    for row in rows:
        results.append(row)
    assert results.read("table1") == [rows[0], rows[1], rows[3]]
    assert results.read("table5") == [rows[2]]
    assert results.read("table2") == []
    assert {file.name for file in (tmp_path / "measured").iterdir()} == {"table1.jsonl", "table5.jsonl"}


def test_a_last_line_cut_short_is_ignored_and_then_overwritten(tmp_path: Path) -> None:
    results, first, second = Results(tmp_path), measured_row(row="σ"), measured_row(row="cut: σ")
    results.append(first)
    whole = results.path("table1").read_bytes()
    line = json.dumps(asdict(second), ensure_ascii=False).encode()
    for length in (1, line.index("σ".encode()) + 1, len(line) // 2, len(line) - 1):  # also inside a letter
        results.path("table1").write_bytes(whole + line[:length])
        assert results.read("table1") == [first]
        results.append(measured_row(seed=2))
        assert results.read("table1") == [first, measured_row(seed=2)]


def test_a_last_line_without_its_newline_is_a_line(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.append(measured_row())
    path = results.path("table1")
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert results.read("table1") == [measured_row()]
    results.append(measured_row(seed=2))
    assert results.read("table1") == [measured_row(), measured_row(seed=2)]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda values: {**values, "sigma": 0.5},
        lambda values: {key: value for key, value in values.items() if key != "digest"},
        lambda values: [values],
        lambda values: 3,
    ],
    ids=["a field too many", "a field too few", "a list", "a number"],
)
def test_a_line_of_other_fields_is_named(tmp_path: Path, spoil) -> None:
    results = Results(tmp_path)
    lines = [asdict(measured_row()), spoil(asdict(measured_row(seed=1))), asdict(measured_row(seed=2))]
    results.folder.mkdir()
    results.path("table1").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UnreadableFile, match=r"table1\.jsonl, line 2: .*; restore the file or delete the line"):
        results.read("table1")


def test_a_row_lies_in_the_file_of_its_table(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.append(measured_row())
    results.path("table1").rename(results.path("table2"))
    with pytest.raises(UnreadableFile, match=r"table2\.jsonl, line 1: the row is of table1, wanted table2; restore"):
        results.read("table2")


FARTHEST = SIGMA * float(norm.ppf(0.001 ** (1 / 10_000)))  # of what 10,000 unanimous votes certify
BROKEN_LINES: dict[str, tuple[dict[str, Any], str]] = {
    "a name that is no text": ({"digest": ["0"]}, "digest is list, wanted str"),
    "series that are no mapping": ({"values": [0.1]}, "values is list, wanted dict"),
    "a seed that is no whole number": ({"seed": 0.5}, "seed is 0.5, wanted a whole number >= 0"),
    "a seed that is a truth": ({"seed": True}, "seed is True, wanted a whole number >= 0"),
    "a negative seed": ({"seed": -1}, "seed is -1, wanted a whole number >= 0"),
    "epochs that are text": ({"epochs": "3"}, "epochs is '3', wanted a whole number >= 0"),
    "negative queries": ({"queries": {"train": -1, "evaluate": 0}}, "queries train is -1, wanted a whole number >= 0"),
    "half a query": ({"queries": {"train": 0.5, "evaluate": 0}}, "queries train is 0.5, wanted a whole number >= 0"),
    "no queries to train": ({"queries": {"evaluate": 0}}, "queries train is None, wanted a whole number >= 0"),
    "no seconds of the defense": ({"seconds": {"evaluation": 1}}, "seconds defense is None, wanted a number >= 0"),
    "accuracy that is text": ({"clean_accuracy": "0.9"}, "clean_accuracy is '0.9', wanted a number >= 0"),
    "no sigma": ({"settings": {}}, "settings.sigma is None, wanted a number > 0"),
    "settings that lack one": ({"settings": {"sigma": 0.5, "n0": 10, "n": 100}}, "settings: .*'alpha'"),
    "settings of no certificate": ({"settings": CERTIFIED | {"n": 9}}, "settings: n = 9 can only abstain at alpha = 0"),
    "n that is text": ({"settings": CERTIFIED | {"n": "100"}}, "settings.n is '100'; wanted int"),
    "settings of the other kind": ({"settings": ATTACKED}, "settings has 'epsilons'; wanted one of n0, n, alpha"),
    "a series that is no list": ({"values": {"reach": 0.5}}, "series 'reach' is no list of numbers"),
    "a series of nothing": ({"values": {"reach": []}}, "series 'reach' is no list of numbers"),
    "a reach that is text": ({"values": {"reach": ["0.5"]}}, "series 'reach' is no list of numbers"),
    "a reach that is a truth": ({"values": {"reach": [True]}}, "series 'reach' is no list of numbers"),
    "a reach without end": ({"values": {"reach": [float("inf")]}}, "series 'reach' is no list of numbers"),
    "a negative reach": ({"values": {"reach": [0.5, -0.1]}}, "a reach is outside 0 to 1.5993, the most that n unan"),
    "a reach that n votes cannot certify": (
        {"values": {"reach": [FARTHEST + 1e-4]}},
        "a reach is outside 0 to 1.5993, the most that n unanimous votes certify",
    ),
    "an error that is missing": (
        {"values": {"adaptive rmse 0": [0.1, None]}, "settings": ATTACKED},
        "series 'adaptive rmse 0' is no list of numbers",
    ),
    "an error that is no number": (
        {"values": {"adaptive rmse 0": [float("nan")]}, "settings": ATTACKED},
        "series 'adaptive rmse 0' is no list of numbers",
    ),
    "no norms": ({"values": {}, "settings": ATTACKED | {"epsilons": []}}, "settings: an attack has epsilons \\(\\), 4"),
    "series of no measurement": ({"values": {"pace": [1.0]}, "settings": ATTACKED}, "the series are those of no meas"),
}


@pytest.mark.parametrize(("given", "said"), BROKEN_LINES.values(), ids=BROKEN_LINES)
def test_a_broken_line_is_named_with_its_file(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    results = Results(tmp_path)
    results.append(measured_row(seed=1))
    with results.path("table1").open("a", encoding="utf-8") as file:  # not appended: NaN is to be read too
        file.write(json.dumps(asdict(measured_row(**given))) + "\n")
    with pytest.raises(UnreadableFile, match=rf"table1\.jsonl, line 2: {said}.*; restore the file or del") as caught:
        results.read("table1")
    assert "\n" not in str(caught.value)


def test_the_farthest_reach_is_a_reach(tmp_path: Path) -> None:
    results, row = Results(tmp_path), certified_row([FARTHEST - 1e-4, 0.0, None])
    results.append(row)
    assert results.read("table1") == [row]


def test_two_rows_of_one_plan_and_seed_agree(tmp_path: Path) -> None:
    """A table may hold the row of another; where they differ, one of the two is not what the plan gives."""
    results = Results(tmp_path)
    results.append(measured_row())
    results.append(measured_row(table="table2", row="the same", date="2023-01-01"))
    assert list(results.by_plan().values()) == [measured_row()]  # the first
    results.append(measured_row(table="table2", row="another seed", seed=1, values={"reach": [0.1]}))
    assert len(results.by_plan()) == 2
    results.append(measured_row(table="table4", row="not the same", values={"reach": [0.1]}))
    said = r"table4\.jsonl: not the same, seed 0, is also table1 / a row, with other values; one plan .*: delete one of"
    with pytest.raises(UnreadableFile, match=said):
        results.by_plan()


def test_garbage_before_the_last_line_is_named(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.folder.mkdir()
    results.path("table1").write_bytes(b'{"table": "ta\n' + json.dumps(asdict(measured_row())).encode() + b"\n")
    with pytest.raises(UnreadableFile, match=r"table1\.jsonl, line 1: "):
        results.read("table1")


def test_what_is_no_number_is_not_written(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.append(measured_row())
    before = results.path("table1").read_bytes()
    with pytest.raises(ValueError, match="Out of range float"):
        results.append(certified_row([float("nan")]))
    assert results.path("table1").read_bytes() == before


def test_a_plan_is_found_in_any_table_under_its_seed(tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert results.by_plan() == {}
    for table, digest, seed in (("table1", "a", 0), ("table4", "b", 0), ("figure4", "b", 1)):
        results.append(measured_row(table=table, digest=digest * 16, seed=seed))
    found = results.by_plan()
    assert found.keys() == {("a" * 16, 0), ("b" * 16, 0), ("b" * 16, 1)}
    assert found["b" * 16, 0].table == "table4"


def test_committed_rows_are_of_the_suite(suite: Suite) -> None:
    """Every committed row can be read, lies in the file of its table and is named as a row and scale of it."""
    read = 0
    for file in sorted((EXPERIMENTS / "measured").glob("*.jsonl")):
        for row in Results(EXPERIMENTS).read(file.stem):
            assert row.table == file.stem
            assert row.scale in suite.tables[row.table].row(row.row).plans
            lengths = {len(series) for name, series in row.values.items() if "pictures" not in name}
            assert len(lengths) == 1
            read += 1
    assert read > 0


# ------------------------------------------------------------------------------------------------------ a page of rows


@pytest.fixture(scope="module")
def suite() -> Suite:
    return Suite(EXPERIMENTS)


def row_of(suite: Suite, table: str, name: str, reach: Sequence[float | None], seed: int = 0, **given) -> Measured:
    """A row of the suite at scale cpu, measured under its present settings."""
    plan = suite.tables[table].row(name).plans["cpu"]
    assert plan.certify is not None
    settings = {"sigma": plan.defense.sigma, **asdict(plan.certify)}
    return certified_row(
        reach, table=table, row=name, seed=seed, **({"digest": plan.digest, "settings": settings} | given)
    )


def table_1(suite: Suite) -> list[Measured]:
    """Table 1 at scale cpu: of 100 images 40 + 10 i are certified up to 0, σ or 2σ in turn; seed s lacks s of them."""
    rows = []
    for i, row in enumerate(suite.tables["table1"].rows):
        sigma = row.plans["cpu"].defense.sigma
        for seed in (0, 1, 2):
            certified = 40 + 10 * i - seed
            reach = [k % 3 * sigma if k < certified else None for k in range(100)]
            rows.append(row_of(suite, "table1", row.name, reach, seed, queries={"train": 1000 * i, "evaluate": 7}))
    return rows


def pages_of(suite: Suite, rows: Sequence[Measured], folder: Path) -> dict[str, str]:
    """The pages made of these rows alone, by name, as they are with rows and plots in `folder`."""
    results = Results(folder)
    shutil.rmtree(results.folder, ignore_errors=True)
    for row in rows:
        results.append(row)
    made = write_results(suite, results, folder / "RESULTS.md")
    return {path.stem: path.read_text(encoding="utf-8") for path in made if path.suffix == ".md"}


def cells(text: str, name: str) -> dict[str, str]:
    """The cells of the row of this name in the first table of `text` that has one, by column."""
    header: list[str] = []
    for line in text.splitlines():
        row = [cell.strip() for cell in line.strip("| ").split(" | ")] if line.startswith("|") else []
        if not row:
            header = []
        elif not header:
            header = row
        elif row[0].partition(" <br>")[0] == name:
            return dict(zip(header, row, strict=True))
    raise AssertionError(f"no row {name!r}")


def written_in(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.suffix in (".md", ".png")]


def test_the_same_rows_give_the_same_bytes_in_any_order(suite: Suite, tmp_path: Path) -> None:
    rows = [replace(row, table="figure4") for row in table_1(suite)] + table_1(suite)
    made = []
    for number, order in enumerate((rows, rows[::-1])):
        folder = tmp_path / str(number)
        pages_of(suite, order, folder)
        made.append({file.relative_to(folder): file.read_bytes() for file in written_in(folder)})
    pages = {"RESULTS.md", *(f"results/{name}.md" for name in (*NAMES, "gpu"))}
    assert {path.as_posix() for path in made[0]} == pages | {"results/figure4-cpu.png"}
    assert made[0] == made[1]


def test_cells_are_the_shares_of_the_rows(suite: Suite, tmp_path: Path) -> None:
    text = pages_of(suite, table_1(suite), tmp_path)["table1"]
    for i, row in enumerate(suite.tables["table1"].rows):
        shown = cells(text, row.name)
        for k in (0, 1, 2):
            counts = [sum(j % 3 >= k for j in range(40 + 10 * i - seed)) for seed in (0, 1, 2)]
            share = sum(counts) / 3  # of 100 images
            said, low, high = re.fullmatch(r"\*\*(.+)\*\* \[(.+), (.+)\]", shown[column(k)]).groups()  # pyright: ignore
            assert said == f"{share:.1f}"
            assert float(low) < share < float(high)
        white = " + white box" if row.name == "FO-DS" else ""
        assert shown["queries to train"] == f"{1000 * i:,}{white}"
        assert shown["epochs"] == str(row.plans["cpu"].epochs)


def numbers(text: str) -> list[float]:
    """Those with three decimals."""
    return [float(number) for number in re.findall(r"\d\.\d{3}\b", text)]


def column(k: int) -> str:
    return "measured r = " + ("0", "σ", "2σ")[k]


def test_reported_numbers_stand_at_their_radii(suite: Suite, tmp_path: Path) -> None:
    """The paper's columns are radii at σ = 0.25: its Table 1 has 0.00 and 0.50, which is 2σ."""
    pages = pages_of(suite, table_1(suite), tmp_path)
    assert cells(pages["table1"], "FO-DS")["reported r = 0 / 2σ"] == "71.80 / 30.22"
    assert cells(pages["table2"], "FO-AE-DS")["reported r = 0 / σ / 2σ / 3σ"] == "75.97 / 59.12 / 38.50 / 18.18"


def test_norms_are_not_radii(suite: Suite, tmp_path: Path) -> None:
    """Before it is measured, Table 5 still tells the paper's errors at attack norms, not at multiples of sigma."""
    text = pages_of(suite, [], tmp_path)["table5"]
    table, _, _ = text.partition("## Not measured")
    assert numbers(next(line for line in table.splitlines() if "Standard" in line))[:4] == [0.112, 0.888, 0.346, 0.417]
    assert "‖δ‖" in table
    assert "σ" not in table


def test_claims_stand_beside_what_the_paper_reports(suite: Suite, tmp_path: Path) -> None:
    sigma = suite.tables["table2"].row("FO-AE-DS").plans["cpu"].defense.sigma
    cge = row_of(suite, "table2", "ZO-AE-DS (CGE, q=192)", [sigma] * 50 + [None] * 50)
    first = row_of(suite, "table2", "FO-AE-DS", [sigma] * 90 + [None] * 10)
    pages = pages_of(suite, [cge, first], tmp_path)
    claim = cells(pages["table2"], "CGE comes near FO-AE-DS (within 4 points)")
    assert claim["reported difference"] == "-4.25"  # 54.87 - 59.12
    assert claim["measured difference"].startswith("-40.0 [")
    assert claim["by seed"] == "-40.0"
    assert claim["verdict"] == "**does not hold**"
    assert cells(pages["table2"], "CGE beats FO-DS")["measured difference"] == "not measured"
    summary = pages["RESULTS"].partition("## The paper's claims")[2].partition("## ")[0]
    assert summary.count("\n| ") == 3  # header, rule and this one: the others are not measured
    assert "CGE comes near FO-AE-DS" in summary


def test_a_row_of_other_settings_is_not_shown(suite: Suite, tmp_path: Path) -> None:
    rows = table_1(suite)
    fresh = [row for row in rows if row.row != "FO-DS"]
    stale = [replace(row, digest="f" * 16) for row in rows if row.row == "FO-DS"]
    assert pages_of(suite, fresh + stale, tmp_path) == pages_of(suite, fresh, tmp_path)
    elsewhere = [replace(row, seed=9) for row in fresh if row.row == "bare model" and row.seed == 0]
    assert pages_of(suite, fresh + elsewhere, tmp_path) == pages_of(suite, fresh, tmp_path)


def test_a_row_measured_again_replaces_the_first(suite: Suite, tmp_path: Path) -> None:
    """A stale row and its successor have one name: the page shows that of the present settings, wherever it stands."""
    rows = table_1(suite)
    stale = [replace(row, digest="f" * 16, values={"reach": [None] * 100}) for row in rows]
    assert pages_of(suite, stale + rows, tmp_path) == pages_of(suite, rows + stale, tmp_path)
    assert pages_of(suite, rows + stale, tmp_path) == pages_of(suite, rows, tmp_path)


def test_a_deleted_row_shows_as_not_measured(suite: Suite, tmp_path: Path) -> None:
    rows = table_1(suite)
    before = pages_of(suite, rows, tmp_path)["table1"]
    after = pages_of(suite, [row for row in rows if row.row != "FO-DS"], tmp_path)["table1"]
    for k in (0, 1, 2):
        assert cells(before, "FO-DS")[column(k)] != "–"
        assert cells(after, "FO-DS")[column(k)] == "–"
    assert cells(after, "FO-DS")["queries to train"] == "–"
    assert cells(after, "bare model") == cells(before, "bare model")
    claim = suite.tables["table1"].claims[0].text
    assert cells(after, claim)["measured difference"] == "not measured"


def test_tables_without_rows_say_how_to_measure_them(suite: Suite, tmp_path: Path) -> None:
    """So it is with STL-10 and ImageNet, which were not at hand: reported numbers, `not measured`, and the command."""
    pages = pages_of(suite, table_1(suite), tmp_path)
    for name in ("table3", "tableA4"):
        text, table = pages[name], suite.tables[name]
        for row in table.rows:
            assert "not measured" in cells(text, row.name).values()
        for scale in table.scales:
            assert f"`certibox paper run {name} --scale {scale} --data DIR`" in text
        assert all(note in text for note in table.notes)
        assert table.notes
    assert cells(pages["table3"], "FO-DS")["reported r = 0 / σ / 2σ / 3σ"] == "53.36 / 35.83 / 21.61 / 9.86"
    text = pages["table1"]
    assert "`certibox paper run table1 --scale gpu --data DIR`" in text
    assert "`certibox paper run table1 --scale cpu --data DIR`" not in text


def test_every_table_has_its_page(suite: Suite, tmp_path: Path) -> None:
    pages = pages_of(suite, [], tmp_path)
    assert list(pages) == ["RESULTS", *NAMES, "gpu"]
    for name in NAMES:
        assert pages[name].startswith(f"# {suite.tables[name].title}\n")
        assert pages["RESULTS"].count(f"(results/{name}.md)") == 1
    assert "The paper's claims" not in pages["RESULTS"]
    assert "**No claim was tested yet" in pages["RESULTS"]


def test_provenance_of_every_row(suite: Suite, tmp_path: Path) -> None:
    given = {"command": "certibox paper run table1 --row X", "date": "1999-12-31", "hardware": "two cores"}
    rows = [replace(row, **given) if row.row == "FO-DS" and row.seed == 1 else row for row in table_1(suite)]
    text = pages_of(suite, rows, tmp_path)["table1"].partition("<details>")[2]
    assert "| FO-DS | 1 | `certibox paper run table1 --row X` | 2,000, 7 | 60, 30 | 1999-12-31 |" in text
    assert text.count("| 2022-04-25 |") == len(rows) - 1
    assert "an abacus, 1 thread; two cores" in text
    assert "certibox 0.1.0" in text
    assert f"took {len(rows) * 90 / 60:.0f} minutes" in text


def test_time_of_shared_rows_is_counted_once(suite: Suite, tmp_path: Path) -> None:
    bare = row_of(suite, "table1", "bare model", [None, 1.0])
    pages = pages_of(suite, [bare], tmp_path)  # table 2 has the same row
    assert "took 2 minutes of one thread." in pages["table1"]  # 90 seconds
    assert "took 0 minutes of one thread, and 2 in rows shared with earlier tables." in pages["table2"]


def test_reconstructions_show_the_mean_errors_of_both_threats(suite: Suite, tmp_path: Path) -> None:
    """The mean RMSE, its interval, which of two images is the two themselves, and the mean SSIM."""
    plan = suite.tables["table5"].row("FO-DS").plans["cpu"]
    assert plan.attack is not None
    errors: dict[str, list[float]] = {}
    for t, threat in enumerate(("transfer", "adaptive")):
        for epsilon in plan.attack.epsilons:
            errors[f"{threat} rmse {epsilon:g}"] = [0.1 + epsilon / 10, 0.2 + epsilon / 10 + t / 10]
            errors[f"{threat} ssim_padded {epsilon:g}"] = [0.5, 0.7 - epsilon / 10]
            errors[f"{threat} ssim {epsilon:g}"] = [0.0, 0.0]
    settings = {"sigma": plan.defense.sigma, **asdict(plan.attack)}
    row = attacked_row(errors, table="table5", row="FO-DS", digest=plan.digest, settings=settings)
    text = pages_of(suite, [row], tmp_path)["table5"]
    transfer, adaptive = text.partition("**Transfer**")[2].split("**Adaptive**")
    for epsilon in range(5):
        mean, similarity = 0.15 + epsilon / 10, 0.6 - epsilon / 20
        low, high = 0.1 + epsilon / 10, 0.2 + epsilon / 10
        wanted = {"transfer": [mean, low, high, similarity], "adaptive": [mean + 0.05, low, high + 0.1, similarity]}
        assert numbers(cells(transfer, "FO-DS")[f"‖δ‖ = {epsilon}"]) == pytest.approx(wanted["transfer"])
        assert numbers(cells(adaptive, "FO-DS")[f"‖δ‖ = {epsilon}"]) == pytest.approx(wanted["adaptive"])
        assert cells(transfer, "Standard")[f"‖δ‖ = {epsilon}"] == "–"
    assert numbers(cells(transfer, "FO-DS, *reported*")["‖δ‖ = 1"]) == [0.168, 0.703]


# ------------------------------------------------------------------------------------------------ the committed pages


def test_committed_pages_are_made_of_the_committed_rows(suite: Suite, tmp_path: Path) -> None:
    """All pages as `certibox paper report` makes them here and now, with the plots beside them, and no page more."""
    made = write_results(suite, Results(EXPERIMENTS), tmp_path / "RESULTS.md")
    for path in made:
        committed = ROOT / path.relative_to(tmp_path)
        if path.suffix == ".md":
            assert committed.read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), committed
        assert committed.is_file()
    assert {path.name for path in (ROOT / "results").iterdir()} == {path.name for path in made[1:]}


def test_changing_one_committed_row_changes_the_page(suite: Suite, tmp_path: Path) -> None:
    rows = [
        row
        for row in Results(EXPERIMENTS).read("table1")
        if row.digest == suite.tables["table1"].row(row.row).plans[row.scale].digest
    ]
    before = pages_of(suite, rows, tmp_path)
    reach = list(rows[0].values["reach"])
    reach[0] = None if reach[0] is not None else 0.0
    changed = [replace(rows[0], values={"reach": reach}), *rows[1:]]
    after = pages_of(suite, changed, tmp_path)
    assert after != before
    assert cells(after["table1"], rows[0].row) != cells(before["table1"], rows[0].row)
    assert pages_of(suite, rows, tmp_path) == before

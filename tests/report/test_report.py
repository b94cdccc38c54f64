"""Shares against a plain loop, intervals against SciPy, curves against shares, and a page that loads nothing."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from scipy.stats import binomtest

from certibox.errors import InvalidImages, InvalidInput
from certibox.records.tsv import PublishedRow
from certibox.report import (
    Run,
    abstention_rate,
    average_certified_radius,
    certified_accuracy,
    certified_accuracy_interval,
    certified_share,
    markdown,
    markdown_table,
    paired_difference,
    plot_ca_curves,
    plot_images,
    render_table,
    summary_table,
    write_report,
)
from certibox.report.pictures import _draw_curve

RADII = [0.0, 0.25, 0.5]


@dataclass(frozen=True)
class Unlabelled:
    """An outcome on an image whose class nobody knows, which also tells its queries."""

    idx: int
    predict: int | None
    radius: float
    label: None = None
    correct: None = None
    seconds: float = 1.0
    queries: int = 110


def row(idx: int, label: int, predict: int | None, radius: float) -> PublishedRow:
    return PublishedRow(idx, label, predict, radius, predict == label, 1.0)


# right at .25, wrong at .5, abstained, right at .75
ROWS = [row(0, 1, 1, 0.25), row(1, 1, 2, 0.5), row(2, 3, None, 0.0), row(3, 0, 0, 0.75)]
UNLABELLED = [Unlabelled(0, 1, 0.25), Unlabelled(1, None, 0.0)]

one_row = st.tuples(st.integers(0, 2), st.none() | st.integers(0, 2), st.sampled_from([0.1, 0.25, 0.5, 0.75]))
some_rows = st.lists(one_row, min_size=1, max_size=30).map(
    lambda cells: [row(i, label, guess, 0.0 if guess is None else r) for i, (label, guess, r) in enumerate(cells)]
)
some_radii = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.5, 0.6, 0.75, 1.0]), max_size=6)


# --- numbers --------------------------------------------------------------------------------------------------------


def test_hand_made_rows_have_the_shares_one_counts_by_hand():
    radii = [0, 0.25, 0.2500001, 0.5, 0.75, 0.8]
    np.testing.assert_array_equal(certified_accuracy(ROWS, radii), [0.5, 0.5, 0.25, 0.25, 0.25, 0])
    np.testing.assert_array_equal(certified_share(ROWS, radii), [0.75, 0.75, 0.5, 0.5, 0.25, 0])
    assert abstention_rate(ROWS) == 0.25
    assert average_certified_radius(ROWS) == (0.25 + 0.75) / 4


@given(some_rows, some_radii)
def test_shares_equal_a_plain_loop(rows, radii):
    accuracy = [sum(r.predict is not None and r.predict == r.label and r.radius >= at for r in rows) for at in radii]
    share = [sum(r.predict is not None and r.radius >= at for r in rows) for at in radii]
    np.testing.assert_allclose(certified_accuracy(rows, radii), np.array(accuracy) / len(rows), rtol=1e-15)
    np.testing.assert_allclose(certified_share(rows, radii), np.array(share) / len(rows), rtol=1e-15)


@given(some_rows, some_radii)
def test_certified_accuracy_falls_with_the_radius_and_stays_below_the_share(rows, radii):
    accuracy = certified_accuracy(rows, sorted(radii))
    assert np.all(np.diff(accuracy) <= 0)
    assert np.all(accuracy <= certified_share(rows, sorted(radii)))


@given(some_rows)
def test_average_certified_radius_is_the_area_under_the_curve(rows):
    edges = np.array([0, 0.1, 0.25, 0.5, 0.75])  # the curve is constant between these radii, up to the right edge
    area = float(np.sum(np.diff(edges) * certified_accuracy(rows, edges[1:])))
    assert average_certified_radius(rows) == pytest.approx(area, abs=1e-12)


@given(some_rows, some_radii, st.sampled_from([0.8, 0.95, 0.99]))
def test_intervals_are_the_exact_ones_of_scipy(rows, radii, confidence):
    intervals = certified_accuracy_interval(rows, radii, confidence)
    assert intervals.shape == (len(radii), 2)
    for accuracy, pair in zip(certified_accuracy(rows, radii), intervals, strict=True):
        exact = binomtest(round(accuracy * len(rows)), len(rows)).proportion_ci(confidence, method="exact")
        np.testing.assert_allclose(pair, exact, atol=1e-9)


@pytest.mark.parametrize(
    "number",
    [
        lambda rows: certified_accuracy(rows, RADII),
        lambda rows: certified_accuracy_interval(rows, RADII),
        lambda rows: certified_share(rows, RADII),
        abstention_rate,
        average_certified_radius,
        lambda rows: paired_difference(rows, rows, 0.25),
    ],
)
def test_no_rows_have_no_numbers(number):
    with pytest.raises(InvalidInput, match="got no rows"):
        number([])


def test_accuracy_without_labels_points_to_the_share():
    with pytest.raises(InvalidInput, match="row of image 0 has no label; give labels, or use certified_share"):
        certified_accuracy(UNLABELLED, RADII)
    np.testing.assert_array_equal(certified_share(UNLABELLED, RADII), [0.5, 0.5, 0])


@pytest.mark.parametrize("radii", [0.25, [-0.1], [float("nan")], [float("inf")], [[0.25]]])
def test_impossible_radii_are_refused(radii):
    with pytest.raises(InvalidInput, match="radii are"):
        certified_accuracy(ROWS, radii)


def test_paired_difference_joins_on_the_image_not_on_the_order():
    better = [row(r.idx, r.label, r.label, 0.5) for r in ROWS]
    difference, low, high = paired_difference(better[::-1], ROWS, 0.5)
    assert difference == 0.75
    assert 0 <= low < difference < high <= 1
    assert paired_difference(ROWS, ROWS[::-1], 0.5) == (0, 0, 0)


def test_paired_difference_covers_a_difference_that_independent_intervals_miss():
    many = [row(i, 1, 1 if i % 2 else 0, 0.5) for i in range(200)]
    better = [row(r.idx, 1, 1 if r.idx % 2 or r.idx < 20 else 0, 0.5) for r in many]
    _, low, high = paired_difference(better, many, 0.5)
    standard_error = np.sqrt(0.05 * 0.95 / 200)  # of the share of images that differ
    assert low == pytest.approx(0.05 - 1.96 * standard_error, abs=0.01)
    assert high == pytest.approx(0.05 + 1.96 * standard_error, abs=0.01)
    intervals = [certified_accuracy_interval(rows, [0.5])[0] for rows in (many, better)]
    assert intervals[0][1] > intervals[1][0]


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (ROWS[:3], r"1 image\(s\) are in one run only"),
        ([*ROWS, ROWS[0]], "appears twice"),
        ([row(0, 2, 1, 0.25), *ROWS[1:]], "different labels"),
    ],
)
def test_runs_on_other_images_are_not_compared(other, complaint):
    with pytest.raises(InvalidInput, match=complaint):
        paired_difference(ROWS, other, 0.25)
    with pytest.raises(InvalidInput, match=complaint):
        paired_difference(other, ROWS, 0.25)


# --- tables ---------------------------------------------------------------------------------------------------------


def test_the_summary_is_json_and_holds_the_numbers_of_the_functions():
    queries = {"fingerprint": 7, "train DS": 30, "train ZO-AE-DS": 12, "certify": 440}
    (summary,) = summary_table([Run("a", ROWS, queries)], RADII)
    assert json.loads(json.dumps(summary)) == summary
    assert summary["share"] == certified_accuracy(ROWS, RADII).tolist()
    assert summary["interval"] == certified_accuracy_interval(ROWS, RADII).tolist()
    assert (summary["images"], summary["abstention_rate"], summary["average_certified_radius"]) == (4, 0.25, 0.25)
    assert (summary["training_queries"], summary["certification_queries"]) == (42, 440)
    assert summary["queries"] == queries


def test_unknown_queries_are_none_and_rows_tell_theirs():
    published, own = summary_table([Run("published", ROWS), Run("own", UNLABELLED)], RADII)
    assert (published["training_queries"], published["certification_queries"]) == (None, None)
    assert (own["training_queries"], own["certification_queries"]) == (None, 220)


def test_queries_of_neither_kind_are_not_booked_as_training():
    (summary,) = summary_table([Run("a", UNLABELLED, {"fingerprint": 7, "training-set": 5})], RADII)
    assert (summary["training_queries"], summary["certification_queries"]) == (None, 220)


def test_one_run_without_labels_turns_the_table_to_shares():
    labelled, unlabelled = summary_table([Run("a", ROWS), Run("b", UNLABELLED)], RADII)
    assert labelled["measure"] == unlabelled["measure"] == "certified share"
    assert labelled["share"] == certified_share(ROWS, RADII).tolist()
    assert labelled["average_certified_radius"] is None


def shown(table: Any) -> str:
    """A table as a wide terminal shows it."""
    screen = io.StringIO()
    Console(file=screen, width=200).print(table)
    return screen.getvalue()


@dataclass(frozen=True)
class Sampled(Unlabelled):
    """An outcome that also tells the rule that decided its samples."""

    rule: dict[str, str] | None = None


def test_samples_an_image_are_shown_where_a_rule_decided_them():
    fixed = [Sampled(i, 0, 0.3, queries=1000) for i in range(2)]
    rule = {"name": "e-process"}
    ruled = [Sampled(0, 0, 0.3, queries=100, rule=rule), Sampled(1, None, 0.0, queries=301, rule=rule)]
    runs = [Run("published", ROWS), Run("fixed", fixed), Run("ruled", ruled)]
    assert [summary["samples_per_image"] for summary in summary_table(runs, [0.25])] == [None, 1000.0, 200.5]
    header, *body = [[cell.strip() for cell in line.split("|")] for line in markdown_table(runs, [0.25]).splitlines()]
    column = header.index("samples an image")
    assert [line[column] for line in body[1:]] == ["–", "1,000", "200"]
    assert shown(render_table(runs, [0.25])).count("samples") == 1
    assert "samples" not in markdown_table(runs[:2], [0.25]) + shown(render_table(runs[:2], [0.25]))


@pytest.mark.parametrize("runs", [[], [Run("a", ROWS), Run("a", ROWS)]])
def test_runs_need_distinct_names(runs):
    with pytest.raises(InvalidInput, match="distinct names"):
        summary_table(runs, RADII)


def test_a_markdown_table_may_have_a_rule_of_its_own():
    rows = [["box", "trained with", "queries"], ["a|b", "nothing", "1,000"]]
    assert markdown(rows) == ("| box | trained with | queries |\n| --- | ---: | ---: |\n| a\\|b | nothing | 1,000 |\n")
    assert markdown(rows, rule="|---|---|---:|").splitlines()[1] == "|---|---|---:|"
    assert markdown(rows[:1]) == "| box | trained with | queries |\n| --- | ---: | ---: |\n"


def test_the_markdown_table_to_the_letter():
    low, high = (100 * end for end in binomtest(1, 4).proportion_ci(0.95, method="exact"))
    assert markdown_table([Run("a|b\nc", ROWS, {"train": 12_000, "certify": 440})], [0.5]).splitlines() == [
        "| run | images | CA(0.5) % | abstain % | ACR | training queries | certification queries |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| a\\|b c | 4 | 25.0 [{low:.1f}, {high:.1f}] | 25.0 | 0.250 | 12,000 | 440 |",
    ]


def test_queries_to_train_are_a_column_where_a_run_tells_them():
    """Certificates alone do not, and nothing is not none."""
    untold, told = [Run("a", ROWS, {"certify": 440})], [Run("a", ROWS, {"certify": 440}), Run("b", ROWS, {"train": 9})]
    assert "training queries" not in markdown_table(untold, [0.5])
    assert "train" not in shown(render_table(untold, [0.5]))
    header, _, *body = [[cell.strip() for cell in line.split("|")] for line in markdown_table(told, [0.5]).splitlines()]
    assert [line[header.index("training queries")] for line in body] == ["–", "9"]
    assert "train" in shown(render_table(told, [0.5]))


def test_the_terminal_table_prints_names_as_they_are():
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    console.print(render_table([Run("[red]a[/blue]", ROWS)], [0.5]))
    printed = screen.getvalue()
    low, high = certified_accuracy_interval(ROWS, [0.5])[0]
    assert "[red]a[/blue]" in printed
    assert "25.0" in printed
    assert f"{100 * low:.0f}–{100 * high:.0f}" in printed


# --- pictures -------------------------------------------------------------------------------------------------------


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=float) / 255


@given(some_rows)
def test_the_drawn_curve_is_the_certified_accuracy_at_every_radius(rows):
    axes = Figure().add_subplot()
    _draw_curve(axes, np.array([r.radius if r.correct else -np.inf for r in rows]), "black", "-")
    (line,) = axes.get_lines()
    assert line.get_drawstyle() == "steps-pre"  # a value holds up to its x, not from it
    x, y = np.array(line.get_data())
    asked = np.linspace(0, 1, 101)
    steps = np.append(y, 0.0)[np.searchsorted(x, asked, side="left")]
    np.testing.assert_allclose(steps, certified_accuracy(rows, asked))
    assert y[-1] == 0


def test_a_curve_picture_depends_on_the_rows_alone(tmp_path):
    runs = [Run("$\\nomath$", ROWS), Run("_hidden", ROWS[:3])]
    png = plot_ca_curves(runs, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes() == png == plot_ca_curves(runs, None)
    assert b"Software" not in png
    assert b"tIME" not in png
    assert png != plot_ca_curves([runs[0], Run("_hidden", ROWS[1:])], None)
    assert not np.array_equal(pixels(png), pixels(plot_ca_curves([runs[0], Run("_other!", ROWS[:3])], None)))


def test_image_grid_has_a_row_for_each_image_and_a_column_for_each_stage():
    red = np.array([1.0, 0.0, 0.0]).reshape(3, 1, 1)
    colours = np.stack([np.broadcast_to(colour, (3, 8, 8)) for colour in (red, 1 - red)])
    greys = np.stack([np.full((1, 8, 8), 0.0), np.full((1, 8, 8), 7.0)])  # 7 shows as white
    grid = pixels(plot_images({"colour": colours, "$\\grey$": greys}, None))
    height, width, _ = grid.shape
    upper, lower = height * 2 // 5, height * 4 // 5
    np.testing.assert_allclose(grid[upper, width // 4], [1, 0, 0], atol=0.01)
    np.testing.assert_allclose(grid[lower, width // 4], [0, 1, 1], atol=0.01)
    np.testing.assert_allclose(grid[upper, width * 3 // 4], [0, 0, 0], atol=0.01)
    np.testing.assert_allclose(grid[lower, width * 3 // 4], [1, 1, 1], atol=0.01)


@pytest.mark.parametrize(
    "shapes",
    [[], [(2, 8, 8)], [(2, 2, 8, 8)], [(0, 3, 8, 8)], [(2, 3, 8, 8), (1, 3, 8, 8)], [(2, 3, 8, 8), (2, 4, 8, 8)]],
)
def test_columns_that_are_no_grid_are_refused(shapes):
    with pytest.raises(InvalidImages, match="columns have shapes"):
        plot_images({str(number): np.zeros(shape) for number, shape in enumerate(shapes)}, None)


# --- the page -------------------------------------------------------------------------------------------------------

EVIL = "</td><script src='https://evil.example/x.js'></script>\"&"


class Tags(HTMLParser):
    """What a browser would see: tags, the addresses they load, and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def report(directory: Path) -> str:
    runs = [
        Run(EVIL, ROWS, {EVIL: 12_345, "certify": 440}),
        Run("plain", [row(r.idx, r.label, r.label, 0.5) for r in ROWS]),
        Run("fewer", ROWS[:3]),
    ]
    facts = {"sigma": "0.25", EVIL: EVIL}
    picture = plot_images({"clean": np.zeros((1, 1, 4, 4))}, None)
    path = write_report(directory, runs, RADII, title=EVIL, pictures={EVIL: picture}, facts=facts, notes=[EVIL])
    assert path == directory / "report.html"
    return path.read_text(encoding="utf-8")


def test_the_page_loads_nothing_and_runs_nothing_whatever_the_names(tmp_path):
    page = report(tmp_path)
    seen = Tags(page)
    assert not {"script", "link", "iframe", "object"} & set(seen.tags)
    assert [address[:22] for address in seen.addresses] == ["data:image/png;base64,"] * 2
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*https?:""", page)
    assert (
        seen.text.count(EVIL) >= 14
    )  # title 2, fact 2, table, phases 2, pairs 6 and 2 apart, classes, images, caption, note
    assert page.count(EVIL) == 0
    assert "url(" not in page


def test_the_page_holds_every_number_and_what_it_means(tmp_path):
    text = Tags(report(tmp_path)).text
    low, high = certified_accuracy_interval(ROWS, [0.25])[0]
    difference, below, above = paired_difference([row(r.idx, r.label, r.label, 0.5) for r in ROWS], ROWS, 0.5)
    assert f"50.0 [{100 * low:.1f}, {100 * high:.1f}]" in text
    assert f"{100 * difference:+.1f} [{100 * below:+.1f}, {100 * above:+.1f}]" in text
    assert "fewer minus plain: not compared: 1 image(s) are in one run only" in text
    assert "12,345" in text
    assert "smoothed classifier" in text
    assert "alpha holds image by image" in text


def test_the_same_rows_give_the_same_bytes(tmp_path):
    report(tmp_path / "a")
    report(tmp_path / "b")
    for name in ("report.html", "ca_curve.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["ca_curve.png", "report.html"]


def test_the_page_of_one_plain_run_has_no_empty_sections(tmp_path):
    seen = Tags(write_report(tmp_path, [Run("a", UNLABELLED)], RADII, title="t").read_text(encoding="utf-8"))
    assert "Result: certified share" in seen.text
    for heading in ("Queries by phase", "Differences between runs", "Notes"):
        assert heading not in seen.text


def test_columns_of_words_are_set_to_the_left() -> None:
    lines = [["claim", "n", "verdict"], ["a | b", "1", "holds"]]
    assert markdown(lines) == "| claim | n | verdict |\n| --- | ---: | ---: |\n| a \\| b | 1 | holds |\n"
    assert markdown(lines, left=(0, 2)).splitlines()[1] == "| --- | ---: | --- |"


def test_results_come_first_and_settings_last(tmp_path):
    page = report(tmp_path)
    headings = re.findall(r"<h[12]>(.*?)</h[12]>", page)
    assert headings[1:3] == ["Result: certified accuracy", "How to read the table"]
    assert headings[-1] == "Settings"


def test_every_cell_says_on_a_narrow_page_which_column_it_is_of(tmp_path):
    page = report(tmp_path)
    for table in re.findall(r"<table>(.*?)</table>", page, re.DOTALL):
        header, *body = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
        names = re.findall(r"<th[^>]*>(.*?)</th>", header)
        for line in body:
            assert re.findall(r'data-label="(.*?)"', line) == names


def test_pages_explain_the_columns_that_they_have(tmp_path):
    labelled = Tags(report(tmp_path)).text
    unlabelled = write_report(tmp_path / "u", [Run("a", UNLABELLED)], RADII, title="t").read_text(encoding="utf-8")
    assert "certified accuracy: share of the images" in labelled
    assert "average certified radius over all images" in labelled
    assert "holds for every change up to r, right or wrong" not in labelled
    assert "holds for every change up to r, right or wrong" in unlabelled
    assert "certified accuracy: share of the images" not in unlabelled


def test_no_table_is_wider_than_a_page(tmp_path):
    radii = [0.1 * i for i in range(12)]
    page = write_report(tmp_path, [Run("a", ROWS), Run("b", ROWS)], radii, title="t").read_text(encoding="utf-8")
    tables = re.findall(r"<table>(.*?)</table>", page, re.DOTALL)
    headers = [re.findall(r"<th[^>]*>(.*?)</th>", table) for table in tables]
    assert max(map(len, headers)) <= 7
    result = [name for header in headers[:3] for name in header[1:]]
    assert result == ["images", *(f"CA({r:g}) %" for r in radii), "abstain %", "ACR", "certification queries"]
    assert [header[0] for header in headers[:3]] == ["run"] * 3

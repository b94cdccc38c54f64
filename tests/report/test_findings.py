"""What a report finds in rows: by counting a handful of them by hand."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from certibox.report import Run, paired_difference, plot_ca_curves, write_report
from certibox.report.findings import (
    Comparison,
    by_class,
    clean_accuracy,
    comparisons,
    decided_radii,
    least_robust,
    margin,
)
from certibox.report.numbers import certified_accuracy, certified_accuracy_interval
from certibox.report.pictures import _draw_points
from outcomes import Voted

ROWS = [
    Voted(0, 1, 1, 0.25, (3, 9)),  # right
    Voted(1, 1, 0, 0.5, (9, 3)),  # wrong
    Voted(2, 1, None, 0.0, (5, 7)),  # abstains, though most votes are right
    Voted(3, 0, 0, 0.75, (12, 0)),  # right
    Voted(4, 0, 1, 0.125, (5, 7)),  # wrong, but not by much
]


def test_clean_accuracy_is_that_of_the_most_votes() -> None:
    assert clean_accuracy(ROWS) == 3 / 5
    assert clean_accuracy(ROWS[2:3]) == 1.0  # an abstention counts by its votes
    assert clean_accuracy([*ROWS, Voted(5, None, 1, 0.1, (1, 9))]) is None
    assert clean_accuracy([]) is None


def test_classes_are_counted_apart() -> None:
    found = by_class(ROWS, [0.0, 0.5])
    assert {label: count for label, (count, _) in found.items()} == {0: 2, 1: 3}
    np.testing.assert_allclose(found[0][1], [1 / 2, 1 / 2])
    np.testing.assert_allclose(found[1][1], [1 / 3, 0])
    whole = sum(count * shares for count, shares in found.values()) / len(ROWS)
    np.testing.assert_allclose(whole, certified_accuracy(ROWS, [0.0, 0.5]))
    assert by_class([*ROWS, Voted(5, None, 1, 0.1)], [0.0]) == {}


def test_images_that_hold_least_come_first() -> None:
    assert [margin(row) for row in ROWS] == [0.25, -0.5, 0.0, 0.75, -0.125]
    assert [row.idx for row in least_robust(ROWS)] == [1, 4, 2, 0, 3]
    assert [row.idx for row in least_robust(ROWS, 2)] == [1, 4]


def test_radii_are_decided_where_every_rule_decided_them() -> None:
    assert decided_radii(ROWS) is None
    ruled = [Voted(0, 1, 1, 0.5, decided=(0.25, 0.5)), Voted(1, 1, 1, 0.5, decided=(0.5, 1.0))]
    assert decided_radii(ruled) == (0.5,)
    assert decided_radii([*ruled, *ROWS]) == (0.5,)  # a fixed n decides at every radius


def test_comparisons_are_of_later_runs_minus_earlier_ones_and_speak() -> None:
    bare = [Voted(i, 1, 1 if i < 10 else 0, 0.5) for i in range(100)]
    better = [Voted(i, 1, 1 if i < 60 else 0, 0.5) for i in range(100)]
    found, apart = comparisons([Run("bare", bare), Run("better", better), Run("few", bare[:5])], [0.25, 0.75])
    assert [(each.a, each.b, each.radius) for each in found] == [("better", "bare", 0.25), ("better", "bare", 0.75)]
    assert (found[0].difference, found[0].low, found[0].high) == paired_difference(better, bare, 0.25)
    assert found[0].difference == 0.5
    assert found[0].verdict == "better certifies more"
    assert found[1].verdict == "no difference can be told"
    assert found[0].line.startswith("better minus bare at r = 0.25: +50.0 points, 95 % interval [+40.0, +60.0]:")
    assert [line.split(":")[0] for line in apart] == ["few minus bare", "few minus better"]
    assert Comparison("a", "b", 0.25, -0.2, -0.3, -0.1).verdict == "b certifies more"


@pytest.fixture
def axes() -> Axes:
    return Figure().add_subplot()


def test_points_stand_at_the_decided_radii_with_exact_intervals(axes: Axes) -> None:
    reach, radii = np.array([0.25, -np.inf, -np.inf, 0.75, -np.inf]), np.array([0.25, 0.5])
    container = _draw_points(axes, reach, radii, 0.0, "black", "o")
    line = container.lines[0]
    x, y = np.array(line.get_data())
    np.testing.assert_allclose(x, radii)
    np.testing.assert_allclose(y, certified_accuracy(ROWS, radii))
    assert line.get_linestyle() == "None"  # nothing between the points
    (bars,) = container.lines[2]
    low, high = np.array([segment[:, 1] for segment in bars.get_segments()]).T
    np.testing.assert_allclose(np.stack([low, high], 1), certified_accuracy_interval(ROWS, radii))


def test_a_sequential_run_has_no_staircase(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(
        "certibox.report.pictures._draw_curve", lambda axes, *rest: drawn.append("curve") or axes.plot([0])
    )
    draw = _draw_points
    monkeypatch.setattr("certibox.report.pictures._draw_points", lambda *rest: drawn.append("points") or draw(*rest))
    ruled = [Voted(row.idx, row.label, row.predict, row.radius, row.counts, (0.25,)) for row in ROWS]
    plot_ca_curves([Run("ruled", ruled), Run("fixed", ROWS), Run("ruled too", ruled)], None)
    assert drawn == ["points", "curve", "points"]


EVIL = "<img src=x onerror=alert(1)>.png"


def page_of(folder: Path, rows: list[Any]) -> str:
    return write_report(folder, [Run("a", rows)], [0.25], title="t").read_text(encoding="utf-8")


def test_pages_name_the_files_of_the_images_that_hold_least(tmp_path: Path) -> None:
    rows = [Voted(i, 0, 0, 0.1 + i, (9, 1), file=f"digits/{i}.png") for i in range(12)]
    page = page_of(tmp_path, [*rows, Voted(12, 0, None, 0.0, (5, 5), file=EVIL)])
    listed = page[page.index("Images that hold least") :]
    assert re.findall(r"digits/\d+\.png", listed) == [f"digits/{i}.png" for i in range(9)]
    assert EVIL not in page
    assert "&lt;img src=x onerror=alert(1)&gt;.png" in listed
    assert "abstains: the votes prove no class" in listed


def test_pages_have_the_accuracy_of_each_class_and_the_worst_of_many(tmp_path: Path) -> None:
    few = page_of(tmp_path / "few", ROWS)
    block = few[few.index("By class") : few.index("Images that hold least")]
    assert re.findall(r">([^<>]+)</td>", block) == ["0", "2", "50.0", "1", "3", "33.3"]
    many = [Voted(i, i, i if i >= 10 else None, 0.5 if i >= 10 else 0.0, (1,) * 41) for i in range(40)]
    block = page_of(tmp_path / "many", many)
    block = block[block.index("By class") : block.index("Images that hold least")]
    assert "The 30 of 40 classes that hold least" in block
    assert re.findall(r'data-label="class">(\d+)<', block) == [str(i) for i in range(30)]


def test_a_picture_of_points_depends_on_the_rows_alone() -> None:
    ruled = [Voted(row.idx, row.label, row.predict, row.radius, row.counts, (0.25,)) for row in ROWS]
    assert plot_ca_curves([Run("a", ruled)], None) == plot_ca_curves([Run("a", ruled)], None)
    assert io.BytesIO(plot_ca_curves([Run("a", ruled)], None)).read(4) == b"\x89PNG"

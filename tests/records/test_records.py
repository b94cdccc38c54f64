"""Rows survive the disk exactly; torn, corrupt and missing files are told apart; the TSV is the field's own."""

from __future__ import annotations

import io
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certibox import confidence
from certibox.errors import InvalidInput, UnreadableFile
from certibox.records.certificates import CertificateRow, add_row, append_row, is_rows, read_rows
from certibox.records.tsv import TSV_HEADER, PublishedRow, read_tsv, write_tsv
from certibox.storage.files import (
    read_json,
    truncate_partial_line,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)

ROW = CertificateRow(
    idx=0,
    label=1,
    predict=1,
    radius=0.1 + 0.2,
    correct=True,
    seconds=15.25,
    selected=1,
    p_lower=0.9,
    counts=(3, 97, 0),
    n0=10,
    n=100,
    alpha=0.001,
    sigma=0.25,
    seed=7,
    queries=110,
    image="ab" * 32,
    model="digits-svc",
    version="0.1.0",
)
ABSTENTION = replace(ROW, idx=1, predict=None, radius=0.0, correct=False, p_lower=0.4, counts=(50, 50, 0))
UNLABELLED = replace(ROW, idx=2, label=None, correct=None)
SEQUENTIAL = replace(
    ROW,
    idx=3,
    radius=confidence.radius(0.9, 0.25),
    rule={"name": "e-process", "radii": [0.1, 0.25], "cap": 1000, "alpha": 0.001},
    looks=((50, 49), (80, 78), (100, 97)),
)
SECOND = replace(ROW, idx=4, second_class=True)
ROWS = [ROW, ABSTENTION, UNLABELLED, SEQUENTIAL, SECOND]


ODD_RADII = [[], [0.5, 0.25], [0.25, 0.25], [-0.1], [float("nan")], [0.1, float("inf")], ["0.1"], [True], 0.25, "0.25"]


def written(path: Path, rows: list[CertificateRow] = ROWS) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            append_row(file, row)
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"counts": (3, 96, 0)},
        {"radius": -0.1},
        {"radius": float("nan")},
        {"radius": float("inf")},
        {"predict": None, "correct": False},  # a radius on an abstention
        {"predict": 0, "correct": False},  # not the selected class
        {"correct": False},
        {"correct": None},
        {"label": None},
        {"selected": 3, "predict": 3, "label": 3},
        {"p_lower": 1.5},
        {"sigma": 0.0},
        {"sigma": float("nan")},
        {"idx": -1, "image": "ab" * 32},
        {"label": -1, "correct": False},
        {"label": 3, "correct": False},  # of three classes
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"seconds": -1.0},
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"alpha": float("nan")},
        {"n0": 0, "queries": 100},
        {"queries": 100},
        {"image": "ab" * 31},
        {"image": "AB" * 32},
        {"image": "ab" * 32 + "\n"},
        {"model": ""},
        {"version": ""},
    ],
)
def test_contradicting_fields_are_refused(change):
    with pytest.raises(InvalidInput, match=f"row of image {change.get('idx', 0)}: "):
        replace(ROW, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"looks": None},
        {"rule": None},
        {"looks": ()},
        {"looks": ((50, 49), (80, 78))},  # the last look is not at n
        {"looks": ((50, 49), (100, 96))},  # nor of the selected class's votes
        {"looks": ((50, 49), (50, 49), (100, 97))},
        {"looks": ((80, 78), (50, 49), (100, 97))},
        {"looks": ((50, 51), (100, 97))},
        {"looks": ((50, 49), (80, 48), (100, 97))},  # votes that are taken back
        {"looks": ((50, 49), (51, 51), (100, 97))},  # two votes of one sample
        {"rule": {"name": "e-process", "alpha": 0.001}},
        {"rule": {"name": "e-process", "alpha": 0.001, "cap": 99}},
        {"rule": {"name": "e-process", "cap": 1000}},
        {"rule": {"name": "e-process", "cap": 1000, "alpha": 1.5}},
        {"rule": {"name": "e-process", "cap": 2**53 + 1, "alpha": 0.001}},
        {"rule": {"cap": 1000, "alpha": 0.001}},  # a rule without a name
        {"rule": {"name": "", "cap": 1000, "alpha": 0.001}},
        {"rule": {"name": 3, "cap": 1000, "alpha": 0.001}},
        *({"rule": {"name": "e-process", "radii": radii, "cap": 1000, "alpha": 0.001}} for radii in ODD_RADII),
        {"radius": 0.33},  # not the radius of p_lower
        {"second_class": True},
    ],
)
def test_looks_that_no_rule_could_have_are_refused(change):
    with pytest.raises(InvalidInput, match="row of image 3"):
        replace(SEQUENTIAL, **change)


def test_a_rule_that_was_asked_for_no_radius_decided_none():
    tolerant = {"name": "e-process", "tolerance": 0.05, "cap": 1000, "alpha": 0.001}
    assert replace(SEQUENTIAL, rule=tolerant).decided is None
    assert replace(SEQUENTIAL, rule=tolerant | {"radii": [0.1, 0.2]}).decided == (0.1, 0.2)


def test_the_cap_is_what_might_have_been_drawn():
    assert [row.cap for row in ROWS] == [100, 100, 100, 1000, 100]


def test_rows_of_fixed_n_are_written_as_they_were_before_there_were_rules(tmp_path):
    later = {"second_class", "rule", "looks", "stream", "file"}
    for row in (ROW, ABSTENTION, UNLABELLED):
        (line,) = written(tmp_path / "rows.jsonl", [row]).read_text().splitlines()
        assert json.loads(line).keys() == asdict(row).keys() - later
        (tmp_path / "full.jsonl").write_text(json.dumps(asdict(row)) + "\n")  # every field is read, too
        assert read_rows(tmp_path / "full.jsonl") == read_rows(tmp_path / "rows.jsonl") == [row]


def test_rows_read_back_as_they_were_written(tmp_path):
    assert read_rows(written(tmp_path / "rows.jsonl")) == ROWS


def test_each_row_is_on_disk_as_soon_as_it_is_appended(tmp_path):
    path = tmp_path / "rows.jsonl"
    with path.open("a", encoding="utf-8") as file:
        for count, row in enumerate(ROWS, 1):
            append_row(file, row)
            assert read_rows(path) == ROWS[:count]


def test_a_row_that_json_cannot_hold_leaves_the_file_untouched():
    file = io.StringIO()
    with pytest.raises(ValueError, match="JSON compliant"):
        append_row(file, replace(SEQUENTIAL, rule={**(SEQUENTIAL.rule or {}), "of its own": float("nan")}))
    assert file.getvalue() == ""


def test_a_crash_at_any_byte_costs_at_most_the_line_being_written(tmp_path):
    rows = [ROW, SEQUENTIAL, ABSTENTION]
    content = written(tmp_path / "rows.jsonl", rows).read_bytes()
    ends = [number for number, byte in enumerate(content) if byte == ord("\n")]
    torn = tmp_path / "torn.jsonl"
    for cut in range(len(content) + 1):
        torn.write_bytes(content[:cut])
        whole = sum(cut >= end for end in ends)  # a line that lacks only its newline is whole
        assert read_rows(torn) == rows[:whole]
        truncate_partial_line(torn)
        assert torn.read_bytes() == written(tmp_path / "whole.jsonl", rows[:whole]).read_bytes()


def test_appending_after_the_cut_completes_the_file(tmp_path):
    path = written(tmp_path / "rows.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] + b"\x00\xff")  # what a power failure can leave
    truncate_partial_line(path)
    with path.open("a", encoding="utf-8") as file:
        append_row(file, ROWS[-1])
    assert path.read_bytes() == whole


def test_truncating_a_missing_file_does_not_create_it(tmp_path):
    truncate_partial_line(tmp_path / "none.jsonl")
    assert list(tmp_path.iterdir()) == []


def corrupted(**change: object) -> str:
    return json.dumps({**asdict(ROW), **change})


@pytest.mark.parametrize(
    "line",
    [
        "",
        '{"idx": 0, "lab',
        "[]",
        "{}",
        corrupted(extra=1),
        corrupted(idx="0"),
        corrupted(idx=True),
        corrupted(radius=None),
        corrupted(n=99),
        corrupted(counts=[3, 98, -1]),
        corrupted(counts=[3.0, 97, 0]),
        corrupted(counts=100),
        corrupted(second_class=1),
        corrupted(rule="e-process"),
        corrupted(seed=7.0),
        corrupted(seed="7"),
        corrupted(image=7),
        corrupted(file=7),
        corrupted(seconds=10**400),
        corrupted(idx=2**53 + 1),
        corrupted(counts=[3, 97, 10**400]),
        corrupted(seconds=0).replace('"seconds": 0', '"seconds": 1e999'),
        corrupted(seconds=0).replace('"seconds": 0', '"seconds": NaN'),
        corrupted(seconds=0).replace('"seconds": 0', f'"seconds": {"9" * 5000}'),
        corrupted().replace('"idx": 0', '"idx": 0, "idx": 0'),
        corrupted().replace('"digits-svc"', "[" * 100_000 + "]" * 100_000),
        corrupted(looks=[[100, 97]]),  # of no rule
        corrupted(rule=SEQUENTIAL.rule, looks=[100, 97]),
        corrupted(rule=SEQUENTIAL.rule, looks=[[100, 97, 0]], radius=SEQUENTIAL.radius),
        corrupted(rule=SEQUENTIAL.rule, looks=[[100.0, 97]], radius=SEQUENTIAL.radius),
    ],
)
def test_a_corrupt_line_before_the_last_is_an_error_that_names_it(tmp_path, line):
    path = written(tmp_path / "rows.jsonl", [ABSTENTION, UNLABELLED])
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{line}\n{second}\n")
    with pytest.raises(UnreadableFile, match=r"rows\.jsonl, line 2: "):
        read_rows(path)


def test_a_row_is_added_whole_and_names_its_file_where_it_is_not(tmp_path):
    path = tmp_path / "rows.jsonl"
    for row in ROWS:
        add_row(path, row)
    assert path.read_bytes() == written(tmp_path / "same.jsonl").read_bytes()
    with pytest.raises(OSError, match="No such file") as error:
        add_row(tmp_path / "none" / "rows.jsonl", ROW)
    assert error.value.filename == str(tmp_path / "none" / "rows.jsonl")


@pytest.mark.parametrize("content", [b"", b"{", b'{"idx": 0, "lab', b'{"label": 1, "idx": 0}'])
def test_what_may_be_rows_is_told_by_its_first_bytes(tmp_path, content):
    assert is_rows(content)


@pytest.mark.parametrize("content", [b"notes", b"{}", b'{"label": 1}', b"[1]", TSV_HEADER.encode(), b"\x00" * 9])
def test_a_file_of_another_kind_is_refused_before_it_is_read(tmp_path, content):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(UnreadableFile, match=r"rows\.jsonl(, line 1: .* begins no row| is a TSV)"):
        read_rows(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("content", [b"\xff", "σ".encode("utf-16"), b"{" + b" " * (1 << 24) + b"}"])
def test_a_line_of_other_bytes_is_an_error_of_one_short_line(tmp_path, content):
    path = written(tmp_path / "rows.jsonl", [ABSTENTION])
    path.write_bytes(path.read_bytes() + content + b"\n")
    with pytest.raises(UnreadableFile, match=r"rows\.jsonl, line 2: ") as error:
        read_rows(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300 + len(str(path))


def test_a_long_value_is_cut_in_the_message(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(corrupted(idx="0" * 10_000) + "\n")
    with pytest.raises(UnreadableFile, match=r"line 1: idx is '0+…") as error:
        read_rows(path)
    assert len(str(error.value)) < 300 + len(str(path))


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    path = written(tmp_path / "rows.jsonl")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_rows(path) == ROWS


def test_the_name_of_a_file_is_kept_where_there_is_one(tmp_path):
    named = replace(ROW, file="cats/σ 1.png")
    path = written(tmp_path / "rows.jsonl", [named, ABSTENTION])
    assert read_rows(path) == [named, ABSTENTION]
    assert [json.loads(line).get("file") for line in path.read_text().splitlines()] == ["cats/σ 1.png", None]


def test_an_image_certified_twice_is_an_error(tmp_path):
    path = written(tmp_path / "rows.jsonl", [ROW, ABSTENTION, ROW])
    with pytest.raises(UnreadableFile, match=r"line 3: image 0 is already on line 1"):
        read_rows(path)


@pytest.mark.parametrize("read", [read_rows, read_tsv, read_json])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(UnreadableFile, match=r"none\.file: No such file"):
        read(tmp_path / "none.file")


def test_the_tsv_is_the_fields_own_to_the_byte(tmp_path):
    slow = replace(ROW, idx=20, seconds=25 * 3600 + 61.000001)
    write_tsv([ROW, ABSTENTION, slow], tmp_path / "rows.tsv")
    assert (tmp_path / "rows.tsv").read_bytes() == (
        b"idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
        b"0\t1\t1\t0.300000\t1\t0:00:15.250000\n"
        b"1\t1\t-1\t0.000000\t0\t0:00:15.250000\n"
        b"20\t1\t1\t0.300000\t1\t25:01:01.000001\n"
    )


@given(st.floats(0, 10))
def test_the_tsv_never_rounds_a_radius_up(tmp_path_factory, radius):
    path = tmp_path_factory.getbasetemp() / "radius.tsv"
    write_tsv([replace(ROW, radius=radius)], path)
    (read,) = read_tsv(path)
    assert radius - 1.000001e-6 <= read.radius <= radius


def test_the_largest_values_of_a_row_are_written_in_full(tmp_path):
    write_tsv([replace(ROW, radius=1e300, seconds=2.0**53)], tmp_path / "rows.tsv")
    (read,) = read_tsv(tmp_path / "rows.tsv")
    assert (read.radius, read.seconds) == (1e300, pytest.approx(2.0**53))


def test_a_tsv_of_windows_reads_as_the_same(tmp_path):
    content = f"{TSV_HEADER}\n0\t3\t3\t0.378\t1\t15.4\n".encode()
    (tmp_path / "rows.tsv").write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    assert read_tsv(tmp_path / "rows.tsv") == [PublishedRow(0, 3, 3, 0.378, True, 15.4)]


def test_another_file_is_no_place_for_a_tsv(tmp_path):
    (tmp_path / "rows.tsv").write_text("mine")
    with pytest.raises(InvalidInput, match="did not write"):
        write_tsv([ROW], tmp_path / "rows.tsv")
    assert (tmp_path / "rows.tsv").read_text() == "mine"


def test_the_tsv_reads_back(tmp_path):
    path = tmp_path / "rows.tsv"
    published = [PublishedRow(0, 3, 3, 0.378, True, 15.4), PublishedRow(20, 7, None, 0.0, False, 90061.5)]
    write_tsv(published, path)
    assert read_tsv(path) == published


@pytest.mark.parametrize(
    ("time", "seconds"), [("15.4", 15.4), ("0:00:15.4", 15.4), ("0:02:03", 123.0), ("1 day, 2:00:00.5", 93600.5)]
)
def test_every_published_way_to_write_a_time_is_read(tmp_path, time, seconds):
    (tmp_path / "rows.tsv").write_text(f"{TSV_HEADER}\n0\t3\t3\t0.378\t1\t{time}\n")
    assert read_tsv(tmp_path / "rows.tsv")[0].seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    "line",
    [
        "1\t7\t7\t0.1\t1",  # no time
        "1\t7\tx\t0.1\t1\t1.0",
        "1\t7\t7\t0.1\t2\t1.0",
        "1\t7\t-1\t0.1\t0\t1.0",  # a radius on an abstention
        "1\t7\t7\tnan\t1\t1.0",
        "1\t7\t7\tinf\t1\t1.0",
        "1\t7\t7\t-0.1\t1\t1.0",
        "1\t7\t7\twide\t1\t1.0",
        "1\t7\t7\t0.1\t1\tnan",
        "1\t7\t7\t0.1\t1\t-1.0",
        "1\t7\t7\t0.1\t1\tnoon",
        "-7\t7\t7\t0.1\t1\t1.0",
        "1\t-1\t-1\t0.0\t1\t1.0",
        "1\t7\t-2\t0.0\t0\t1.0",
        "1_0\t7\t7\t0.1\t1\t1.0",
        f"{10**400}\t7\t7\t0.1\t1\t1.0",
        "",
        "0\t1\t1\t.1\t1\t1",  # image 0 again
    ],
)
def test_a_corrupt_tsv_line_is_named(tmp_path, line):
    (tmp_path / "rows.tsv").write_text(f"{TSV_HEADER}\n0\t3\t3\t0.378\t1\t15.4\n{line}\n")
    with pytest.raises(UnreadableFile, match=r"rows\.tsv, line 3: "):
        read_tsv(tmp_path / "rows.tsv")


@pytest.mark.parametrize("content", ["", "idx,label\n"])
def test_another_header_is_not_a_tsv(tmp_path, content):
    (tmp_path / "rows.tsv").write_text(content)
    with pytest.raises(UnreadableFile, match="line 1: wanted the header"):
        read_tsv(tmp_path / "rows.tsv")


def test_the_tsv_refuses_rows_without_labels_and_writes_nothing(tmp_path):
    with pytest.raises(InvalidInput, match="row of image 2 has no label"):
        write_tsv(ROWS, tmp_path / "rows.tsv")
    assert list(tmp_path.iterdir()) == []


def test_json_reads_back_and_text_is_utf8_with_plain_newlines(tmp_path):
    value = {"σ": 0.25, "runs": [1, None, "ℓ2"]}
    write_json_atomic(tmp_path / "new" / "value.json", value)
    assert read_json(tmp_path / "new" / "value.json") == value
    write_text_atomic(tmp_path / "text", "σ\n")
    assert (tmp_path / "text").read_bytes() == b"\xcf\x83\n"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_what_is_not_json_is_named(tmp_path, content):
    (tmp_path / "value.json").write_bytes(content)
    with pytest.raises(UnreadableFile, match=r"value\.json: not JSON"):
        read_json(tmp_path / "value.json")


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes_atomic(path, b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_bytes_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]

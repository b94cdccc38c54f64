"""`report` and `merge`: what they take as a run, what they call it, and what they refuse before they read a file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from certibox.certification.certificate import fixed_bounds
from certibox.confidence.gaussian import Gaussian
from certibox.confidence.recorded import record
from certibox.confidence.sequential import EProcess
from certibox.records.certificates import CertificateRow, add_row, read_rows
from certibox.records.tsv import TSV_HEADER, read_tsv
from certibox.report import certified_accuracy

PUBLISHED = f"{TSV_HEADER}\n0\t3\t3\t0.378\t1\t15.4\n20\t7\t-1\t0.0\t0\t15.6\n40\t7\t2\t0.5\t0\t0:00:15.6\n"


def row(idx: int, label: int | None = 0) -> CertificateRow:
    counts, rng = (95, 5, 0), np.random.default_rng(idx)
    p_lower, radius = fixed_bounds(Gaussian(0.25), counts, 0, 0.01, False)
    correct = None if label is None else label == 0
    image = rng.bytes(32).hex()
    bounds = (0, p_lower, counts, 10, 100, 0.01, 0.25, 7, 110, image, "m", "0.2.0")
    return CertificateRow(idx, label, 0, radius, correct, 0.5, *bounds)


def write(path: Path | str, rows: list[CertificateRow]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    for each in rows:
        add_row(path, each)


def test_a_published_tsv_is_reported_beside_certificates(place: Path, run) -> None:
    write("mine/certificates.jsonl", [row(0), row(1)])
    for content in (PUBLISHED, "\ufeff" + PUBLISHED.replace("\n", "\r\n")):
        (place / "cohen.tsv").write_bytes(content.encode())
        ran = run("report cohen.tsv mine --radii [0,0.25,0.5] --out page")
        assert ran.status == 0
        assert "33.3" in ran.out  # one of three is right at 0.25
        page = (place / "page" / "report.html").read_text()
        assert ">cohen</td>" in page
        assert ">mine</td>" in page
        assert {path.name for path in (place / "page").iterdir()} == {"report.html", "ca_curve.png", "mine.tsv"}
    np.testing.assert_allclose(certified_accuracy(read_tsv("cohen.tsv"), [0.25, 0.5]), [1 / 3, 0])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("report cohen.tsv --alpha 0.01", ["cohen.tsv is a TSV, which has neither votes", "--alpha", "JSON lines"]),
        ("report good.jsonl --validation [cohen.tsv]", ["cohen.tsv is a TSV", "--validation", "JSON lines"]),
        ("report cohen.tsv --validation [good.jsonl]", ["cohen.tsv is a TSV", "--validation", "JSON lines"]),
        ("report empty.tsv", ["empty.tsv holds no certificate"]),
        ("report predictions.tsv", ["predictions.tsv, line 1", "wanted the header"]),
        ("report nan.tsv", ["nan.tsv, line 2", "radius nan"]),
        ("merge cohen.tsv", ["cohen.tsv is a TSV, which has no votes", "JSON lines"]),
        ("merge good.jsonl cohen.tsv", ["cohen.tsv is a TSV", "certificates.jsonl"]),
        ("query-cost --certify-images 10 --rule e-process --pilot cohen.tsv", ["cohen.tsv is a TSV", "JSON lines"]),
    ],
)
def test_what_wants_votes_says_so_of_a_tsv(place: Path, refused, line: str, words: list[str]) -> None:
    Path("cohen.tsv").write_text(PUBLISHED)
    Path("empty.tsv").write_text(f"{TSV_HEADER}\n")
    Path("predictions.tsv").write_text("idx\tlabel\tpredict\tcorrect\ttime\n0\t3\t3\t1\t15.4\n")
    Path("nan.tsv").write_text(f"{TSV_HEADER}\n0\t3\t3\tnan\t1\t15.4\n")
    write("good.jsonl", [row(0)])
    refused(line, *words)
    assert not Path("report").exists()
    assert not Path("certificates.jsonl").exists()


def test_a_folder_of_certificates_is_a_run(place: Path, run, refused) -> None:
    write("runs/mine/certified/certificates.jsonl", [row(0), row(1)])
    write("parts/certificates.1-of-2.jsonl", [row(0)])
    assert run("report runs/mine/certified").status == 0
    assert ">certified</td>" in Path("report/report.html").read_text()
    assert run("merge runs/mine/certified --out all.jsonl").status == 0
    assert read_rows("all.jsonl") == [row(0), row(1)]
    for command in ("report", "merge"):
        refused(f"{command} runs/mine", "runs/mine is a directory", "mean runs/mine/certified/certificates.jsonl?")
        refused(f"{command} parts", "did you mean parts/certificates.1-of-2.jsonl?")
        Path("nothing").mkdir(exist_ok=True)
        Path("nothing/notes.jsonl").write_text("{}")
        assert "mean" not in refused(f"{command} nothing", "nothing is a directory without certificates.jsonl")


def test_a_folder_of_tsvs_is_named_where_a_tsv_would_do(place: Path, refused) -> None:
    Path("cohen").mkdir()
    Path("cohen/a.tsv").write_text(PUBLISHED)
    refused("report cohen", "cohen is a directory", "did you mean cohen/a.tsv?")
    assert "mean" not in refused("merge cohen", "cohen is a directory")


def test_runs_without_a_name_are_called_by_what_makes_them_differ(place: Path, run) -> None:
    files = ["a/certified/certificates.jsonl", "b/certified/certificates.jsonl", "c/one.jsonl", "sigma=0.25/two.jsonl"]
    for file in files:
        write(file, [row(0)])
    assert run(f"report {' '.join(files)} own=name=c/../c/three.jsonl").status == 2
    write("c/three.jsonl", [row(0)])
    assert run(f"report {' '.join(files)} own=name=c/../c/three.jsonl").status == 0
    page = Path("report/report.html").read_text()
    for name in ("a/certified", "b/certified", "one", "two", "own=name"):
        assert f">{name}</td>" in page
    written = {path.name for path in Path("report").glob("*.tsv")}
    assert written == {"a_certified.tsv", "b_certified.tsv", "one.tsv", "two.tsv", "own=name.tsv"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("report =good.jsonl", ["good.jsonl is named ''", "plain characters"]),
        ("report ..=good.jsonl", ["is named '..'"]),
        ("report a=", ["no file"]),
        ("report ''", ["no file"]),
        (
            "report 'a\x1b[31m=good.jsonl'",
            ["files holds 'a\\x1b[31m=good.jsonl'; wanted", "without control characters"],
        ),
        ("report good.jsonl 'a\x1b[31m=good.jsonl'", ["files holds 'a\\x1b[31m=good.jsonl'; wanted"]),
        ("report 'a\nb=good.jsonl'", ["good.jsonl is named"]),
        (f"report {'a' * 101}=good.jsonl", ["1 to 100"]),
        ("report a/b=good.jsonl a_b=other.jsonl", ["'a/b' and 'a_b' would both write report/a_b.tsv"]),
        ("report a=good.jsonl A=other.jsonl", ["'a' and 'A' would both write"]),
        ("report good.jsonl a=./good.jsonl", ["good.jsonl is given 2 times"]),
        ("report good.jsonl --radii []", ["radii are []"]),
        ("report good.jsonl --radii [0.1,.nan]", ["radii holds nan", "finite"]),
        ("report good.jsonl --radii [.inf]", ["radii holds inf", "finite"]),
        ("report good.jsonl --alpha .nan", ["alpha is nan"]),
        ("report good.jsonl --out taken", ["taken/report.html is a file that certibox did not write"]),
        ("report notes=good.jsonl --out .", ["notes.tsv is a file that certibox did not write"]),
        ("report cohen=good.jsonl published=cohen.tsv --out .", ["would write cohen.tsv, which is read here"]),
        ("merge good.jsonl --out notes.tsv", ["notes.tsv is a file that certibox did not write"]),
        ("merge good.jsonl --out fifo", ["fifo is a pipe"]),
        ("merge good.jsonl --out link", ["link is a symbolic link"]),
        ("report fifo", ["fifo is a pipe"]),
    ],
)
def test_what_cannot_be_reported_is_refused_and_nothing_is_written(
    place: Path, refused, line: str, words: list[str]
) -> None:
    write("good.jsonl", [row(0)])
    write("other.jsonl", [row(0)])
    Path("cohen.tsv").write_text(PUBLISHED)
    Path("notes.tsv").write_text("mine")
    Path("taken").mkdir()
    Path("taken/report.html").write_text("<html>mine</html>")
    os.mkfifo("fifo")
    Path("link").symlink_to("notes.tsv")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    refused(line, *words)
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    assert Path("link").is_symlink()
    assert Path("fifo").is_fifo()


def test_radii_are_sorted_and_each_is_shown_once(place: Path, run) -> None:
    write("good.jsonl", [row(0)])
    assert run("report good.jsonl --radii [0.5,0,0.5,0.25]").status == 0
    assert "<th>CA(0) %</th><th>CA(0.25) %</th><th>CA(0.5) %</th><th>abstain" in Path("report/report.html").read_text()


def test_names_and_titles_are_no_markup(place: Path, run) -> None:
    write("good.jsonl", [row(0)])
    rule = record(EProcess(radii=(0.1,)), 100, 0.01) | {"name": "[/b]<script>"}
    own = CertificateRow(**{**vars(row(1)), "rule": rule, "looks": ((100, 95),)})
    write("[bold]/certificates.jsonl", [own])
    ran = run("report '[/b]<script>=good.jsonl' '[bold]' --title '</title><script>' --out page")
    assert ran.status == 0
    assert "[/b]<script>" in ran.out
    assert "[bold]: rule '[/b]<script>' is not certibox's own: its bound is taken as stated" in ran.out
    page = Path("page/report.html").read_text()
    assert "<script>" not in page
    assert "<title>&lt;/title&gt;&lt;script&gt;</title>" in page
    assert {path.name for path in Path("page").glob("*.tsv")} == {"__b__script_.tsv", "_bold_.tsv"}


def test_rows_without_labels_make_no_tsv(place: Path, run) -> None:
    write("café/certificates.jsonl", [row(0, label=None)])
    assert run("report café --out page").status == 0
    assert ">café</td>" in Path("page/report.html").read_text(encoding="utf-8")
    assert not list(Path("page").glob("*.tsv"))


def test_merging_over_an_input_and_the_same_file_twice_is_safe(place: Path, run) -> None:
    write("all.jsonl", [row(0)])
    write("more.jsonl", [row(0), row(1)])
    assert run("merge all.jsonl more.jsonl more.jsonl --out all.jsonl").out == "saved all.jsonl: 2 certificates\n"
    assert read_rows("all.jsonl") == [row(0), row(1)]
    assert read_rows("more.jsonl") == [row(0), row(1)]


def test_an_import_is_refused_before_the_work_where_it_cannot_be_saved(place: Path, refused) -> None:
    Path("taken").mkdir()
    Path("taken/autoencoder.safetensors").write_text("mine")
    refused("import-authors --encoder no --decoder no --out taken", "autoencoder.safetensors is a file that certibox")
    refused("import-authors --encoder no --decoder no --out box.py", "box.py is no directory")
    assert Path("taken/autoencoder.safetensors").read_text() == "mine"


def test_an_entry_for_a_board_is_written_beside_the_page(place: Path, run, refused) -> None:
    write("mine/certificates.jsonl", [row(0), row(1)])
    ran = run("report mine --radii [0.25] --export sok --dataset MNIST --out page")
    assert ran.status == 0
    assert "page/sok.yml" in ran.out
    text = (place / "page" / "sok.yml").read_text(encoding="utf-8")
    assert "MNIST" in text
    assert "score: 100.00%" in text
    assert run("report mine --radii [0.25] --export robustbench --out page").status == 0
    assert '"certified_acc": "100.00"' in (place / "page" / "robustbench.json").read_text(encoding="utf-8")
    assert "--export" in refused("report mine --dataset MNIST --out page")

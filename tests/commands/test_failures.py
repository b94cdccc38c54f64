"""The command line: bad input is one line and status 2, a spent budget 3, and nothing paid for is ever lost."""

from __future__ import annotations

import contextlib
import html
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from certibox.records.certificates import CertificateRow
from certibox.storage.tensors import read_tensors, tensors_digest
from command_line import AE, BOX, CHECK, CLASSES, IMAGES, N0, N, certify, timeless, totals, train


def contents(folder: Path, *suffixes: str) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("*")) if file.suffix in suffixes}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("merge nope.jsonl", ["nope.jsonl"]),
        ("merge good.jsonl corrupt.jsonl", ["corrupt.jsonl, line 2"]),
        ("merge good.jsonl torn.jsonl", ["torn.jsonl holds no certificate"]),
        ("merge good.jsonl other.jsonl", ["other.jsonl", "seed is 1"]),
        ("merge good.jsonl --out folder", ["folder"]),
        ("report nope.jsonl", ["nope.jsonl"]),
        ("report a=nope.jsonl", ["nope.jsonl"]),
        ("report corrupt.jsonl", ["corrupt.jsonl, line 2"]),
        ("report torn.jsonl", ["torn.jsonl holds no certificate"]),
        ("report a=good.jsonl a=other.jsonl", ["['a', 'a']"]),
        ("report good.jsonl --alpha 0", ["alpha is 0.0"]),
        ("report good.jsonl --alpha 1e-12", ["n = 30", "smallest n is 40"]),
        ("report good.jsonl --radii [-1]", ["-1"]),
        ("report good.jsonl --out images.npz", ["images.npz"]),
        ("report stream.jsonl", ["stream.jsonl, line 1", "stream is 3; wanted 1 or 2"]),
    ],
)
def test_merge_and_report_name_the_file_and_write_nothing(
    place: Path, run, refused, line: str, words: list[str]
) -> None:
    assert run(certify()).status == 0
    assert run(certify(out="other", more="--seed 1")).status == 0
    good = (place / "out" / "certificates.jsonl").read_text()
    (place / "good.jsonl").write_text(good)
    shutil.copy("other/certificates.jsonl", "other.jsonl")
    (place / "corrupt.jsonl").write_text(good.replace('"n0": 10', '"n0": "ten"').replace('"n0": "ten"', '"n0": 10', 1))
    (place / "torn.jsonl").write_text(good[:40])
    (place / "stream.jsonl").write_text(good.replace('"stream": 2', '"stream": 3'))
    (place / "folder").mkdir()
    (place / "certificates.jsonl").write_text(good)  # what an earlier merge left
    refused(line, *words)
    assert (place / "certificates.jsonl").read_text() == (place / "good.jsonl").read_text() == good
    assert not list((place / "folder").iterdir())
    assert not (place / "report" / "report.html").exists()


def test_a_damaged_parquet_file_is_one_line_of_a_whole_process(place: Path) -> None:
    (place / "rows").mkdir()
    (place / "rows" / "train.parquet").write_bytes(b"PAR1 and no more")
    command = [sys.executable, "-m", "certibox.cli", *shlex.split(certify(more="--data rows --split train"))]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=place)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert re.fullmatch(r"certibox certify: rows cannot be read: .*\n", ran.stderr)


@pytest.mark.parametrize(
    ("box", "words", "paid_for_nothing"),
    [
        ("raises", ["RuntimeError", "the endpoint is down"], 0),
        ("turns_nan", ["finite", "nan"], N0 + N),
        ("turns_wider", ["shape (3,)", "(6,)"], N0 + N),
    ],
)
def test_certify_keeps_the_rows_before_a_box_fails_and_goes_on_when_it_is_repaired(
    place: Path, run, refused, box: str, words: list[str], paid_for_nothing: int
) -> None:
    assert run(certify(f"box.py:{box}", "undisturbed")).status == 0
    (place / "limit").write_text("100")  # two images of 40, and not the third
    alone = f"--noise-batch-size {N0 + N}"  # an image a call
    refused(certify(f"box.py:{box}", more=alone), *words, status=4)
    assert timeless("out/certificates.jsonl") == timeless("undisturbed/certificates.jsonl")[:2]
    assert totals("out/ledger.sqlite")[0] == CHECK + 80 + paid_for_nothing
    (place / "limit").unlink()
    assert run(certify(f"box.py:{box}")).status == 0
    assert timeless("out/certificates.jsonl") == timeless("undisturbed/certificates.jsonl")
    assert totals("out/ledger.sqlite")[0] == CHECK + IMAGES * (N0 + N) + paid_for_nothing


def test_certify_stops_at_the_budget_and_goes_on_when_it_is_raised(place: Path, run, refused) -> None:
    assert run(certify(out="undisturbed")).status == 0
    refused(certify(more="--budget 100"), "40 queries wanted, 20 left", "raise the budget", status=3)
    assert timeless("out/certificates.jsonl") == timeless("undisturbed/certificates.jsonl")[:2]
    assert totals("out/ledger.sqlite") == (80, 80, 0)  # what would not end in a certificate is not begun
    refused(certify(more="--budget 100"), "40 queries wanted, 20 left", status=3)
    assert totals("out/ledger.sqlite") == (80, 80, 0)  # what would not end in a certificate is not begun
    assert run(certify(more=f"--budget {IMAGES * (N0 + N)}")).status == 0
    assert timeless("out/certificates.jsonl") == timeless("undisturbed/certificates.jsonl")
    assert totals("out/ledger.sqlite") == (IMAGES * (N0 + N),) * 2 + (0,)


def test_an_interrupted_certify_says_how_to_go_on(place: Path, run, refused) -> None:
    assert run(certify("box.py:interrupted", "undisturbed")).status == 0
    (place / "limit").write_text("100")
    alone = f"--noise-batch-size {N0 + N}"  # an image a call
    refused(certify("box.py:interrupted", more=alone), "interrupted", "run the same command", status=130)
    assert totals("out/ledger.sqlite") == (82, 122, 40)  # the batch in flight may have been paid for
    (place / "limit").unlink()
    assert run(certify("box.py:interrupted")).status == 0
    assert timeless("out/certificates.jsonl") == timeless("undisturbed/certificates.jsonl")
    assert totals("out/ledger.sqlite") == (482, 522, 40)


@pytest.mark.parametrize(
    ("box", "status", "wasted"),  # how the batch that failed counts: answered, attempted, lost
    [("logits", 3, (0, 0, 0)), ("raises", 4, (0, 1, 1)), ("turns_nan", 4, (1, 1, 0)), ("interrupted", 130, (0, 1, 1))],
)
def test_training_goes_on_to_the_same_defense(
    place: Path, run, refused, box: str, status: int, wasted: tuple[int, int, int]
) -> None:
    line = train(f"box.py:{box}", more=AE, method="ZO-AE-DS")
    assert run(f"{line} --out undisturbed").status == 0
    spent = totals("undisturbed/ledger.sqlite")[0]
    assert spent > 40
    (place / "limit").write_text("40")
    refused(f"{line} --budget {40 if status == 3 else 1000}", status=status)
    assert IMAGES < totals("run/ledger.sqlite")[0] <= 40 + 16 * wasted[0]
    assert not (place / "run" / "defense").exists()
    (place / "limit").unlink()
    assert run(f"{line} --budget 1000").status == 0

    for name in ("training/rows.jsonl", "defense/defense.json"):
        assert (place / "run" / name).read_text() == (place / "undisturbed" / name).read_text()
    ours, theirs = (read_tensors(Path(out) / "defense/defense.safetensors")[0] for out in ("run", "undisturbed"))
    assert tensors_digest(ours) == tensors_digest(theirs)
    answered, attempted, lost = totals("run/ledger.sqlite")
    batch = attempted - spent  # the one batch that failed: 4 images at 4 coordinates at most
    assert 0 <= batch <= 16
    assert (batch > 0) == any(wasted)
    assert (answered - spent, attempted - spent, lost) == tuple(batch * share for share in wasted)


def test_a_finished_command_run_again_spends_nothing(place: Path, run) -> None:
    for line, ledger in ((train(more="--fingerprint true"), "run/ledger.sqlite"), (certify(), "out/ledger.sqlite")):
        assert run(line).status == 0
        before = totals(ledger)
        assert run(line).status == 0
        assert totals(ledger) == before
        assert before[0] > 0


@pytest.mark.parametrize(
    ("first", "then", "words"),
    [
        (certify(), certify(more="--seed 1"), ["out/certificates.jsonl", "seed is 0 there and 1 here"]),
        (certify(), certify("box.py:raises"), ["model is 'bare:box.py:logits:"]),
        (train(), train(more="--gamma 2"), ["run/training", "gamma is 1.0 there and 2.0 here"]),
        (
            train(more=AE, method="ZO-AE-DS"),
            train(more=AE + " --autoencoder-epochs 3", method="ZO-AE-DS"),
            ["run/training/autoencoder", "schedule.phases.0.epochs is 2 there and 3 here"],
        ),
    ],
)
def test_a_directory_of_another_configuration_is_left_alone(
    place: Path, run, refused, first: str, then: str, words: list[str]
) -> None:
    assert run(first).status == 0
    (folder,) = (place / name for name in ("out", "run") if (place / name).exists())
    kept = contents(folder, ".jsonl", ".json", ".safetensors", ".tsv")
    spent = totals(folder / "ledger.sqlite")
    refused(then, "another", *words)
    assert contents(folder, ".jsonl", ".json", ".safetensors", ".tsv") == kept
    assert totals(folder / "ledger.sqlite") == spent


@pytest.mark.parametrize("name", ["training", "training/autoencoder"])
def test_a_checkpoint_cut_short_is_named_and_nothing_is_spent(place: Path, run, refused, name: str) -> None:
    line = train(more=AE, method="ZO-AE-DS")
    assert run(line).status == 0
    checkpoint = place / "run" / name / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    spent = totals("run/ledger.sqlite")
    refused(line, f"run/{name}/checkpoint.safetensors", "cut short")
    assert totals("run/ledger.sqlite") == spent


def test_a_torn_last_row_is_certified_again_and_a_corrupt_one_is_named(place: Path, run, refused) -> None:
    assert run(certify()).status == 0
    path = place / "out" / "certificates.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-20])
    assert run(certify()).status == 0
    assert timeless(path) == timeless_text(whole, place)
    assert totals("out/ledger.sqlite")[0] == CHECK + (IMAGES + 1) * (N0 + N)
    path.write_text(whole.replace('"idx": 1,', '"idx": one,', 1))
    refused(certify(), "out/certificates.jsonl, line 2")
    assert '"idx": one,' in path.read_text()


def timeless_text(text: str, place: Path) -> list[CertificateRow]:
    (place / "earlier.jsonl").write_text(text)
    return timeless(place / "earlier.jsonl")


@pytest.mark.parametrize("theirs", ["defense/defense.safetensors", "defense/defense.json", "training/rows.jsonl"])
def test_training_refuses_files_of_others_before_a_query_and_leaves_them(place: Path, refused, theirs: str) -> None:
    diary = place / "out" / theirs
    diary.parent.mkdir(parents=True)
    diary.write_text("my diary\n")
    refused(train(out="out"), theirs, "is a file that certibox did not write")
    assert diary.read_text() == "my diary\n"
    ledger = place / "out" / "ledger.sqlite"
    assert not ledger.exists() or totals(ledger) == (0, 0, 0)


def test_certify_refuses_a_table_of_others_before_a_query(place: Path, refused) -> None:
    (place / "out").mkdir()
    (place / "out" / "certificates.tsv").write_text("my diary\n")
    refused(certify(), "out/certificates.tsv is a file that certibox did not write")
    assert not (place / "out" / "ledger.sqlite").exists()


def test_a_budget_does_not_begin_again_where_the_ledger_is_gone(place: Path, run, refused) -> None:
    assert run(certify(more="--budget 1000")).status == 0
    (place / "out" / "ledger.sqlite").unlink()
    refused(certify(more="--budget 1000"), "budget is 1000", "out/ledger.sqlite", "is gone", "--ledger")
    assert not (place / "out" / "ledger.sqlite").exists()
    assert run(certify(more="--budget 1000 --ledger new.sqlite")).status == 0


def test_fewer_images_than_there_are_rows_are_told_so(run, refused) -> None:
    assert run(certify(more=f"--num-classes {CLASSES}")).status == 0
    refused(
        certify(more=f"--num-classes {CLASSES} --limit 1"),
        "holds a certificate of image 1, but the images here end at 0",
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("class E(BaseException):\n    def __str__(self): raise E()\nraise E()", "cannot be imported: E: (no text)"),
        ("import builtins\nbuiltins.print = None\nraise ValueError('x')", "cannot be imported: ValueError: x"),
        ("raise RuntimeError('token=hunter2')", "cannot be imported: RuntimeError: token=..."),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_line_whatever_it_raises(
    place: Path, refused, monkeypatch: pytest.MonkeyPatch, body: str, words: str
) -> None:
    monkeypatch.setattr("builtins.print", print)  # set back afterwards
    (place / "odd.py").write_text(body)
    refused(certify(more="--model odd.py:f"), f"odd.py {words}")


@pytest.mark.parametrize("name", ["[/b]", "[red]", "{x}", "*x", "!x", "<script>"])
def test_a_run_is_named_as_it_is_written(place: Path, run, name: str) -> None:
    assert run(certify()).status == 0
    ran = run(f"report {shlex.quote(f'{name}=out')} --alpha 0.01")
    assert ran.status == 0
    assert f"│ {name} " in ran.out
    page = (place / "report" / "report.html").read_text()
    assert html.escape(name) in page
    assert "<script>" not in page


@pytest.mark.parametrize("classes", [2, 4])
def test_a_wrong_number_of_classes_is_bad_input_and_costs_one_query(refused, classes: int) -> None:
    words = [f"the box answers for {CLASSES} classes while --num-classes is {classes}; give {CLASSES}"]
    line = certify(more=f"--num-classes {classes} --ledger ledger").replace("images.npz", "unlabelled.npz")
    refused(line, *words)
    assert totals(Path("ledger")) == (1, 1, 0)
    refused(train(more=f"--num-classes {classes}", method="ZO-DS", out="trained"), *words)


def test_outputs_stay_where_they_were_asked_for_though_the_box_moves(place: Path, run) -> None:
    """A box that changes the working directory while it is asked moves nothing of ours."""
    moves = "import os\n\ndef moving(images):\n    os.makedirs('below', exist_ok=True)\n    os.chdir('below')\n"
    place.joinpath("moving.py").write_text(f"{BOX}\n{moves}    return logits(images)\n")
    with contextlib.chdir(place):
        assert run(certify("moving.py:moving", out="moved")).status == 0
    assert run(certify(out="still")).status == 0
    assert sorted(os.listdir(place / "moved")) == sorted(os.listdir(place / "still"))
    assert [row.counts for row in timeless("moved/certificates.jsonl")] == [
        row.counts for row in timeless("still/certificates.jsonl")
    ]
    with contextlib.chdir(place):
        assert run(train("moving.py:moving", method="ZO-DS", out="trained")).status == 0
    assert {"defense", "training", "ledger.sqlite"} <= set(os.listdir(place / "trained"))
    assert not [path for path in (place / "below").rglob("*") if path.is_file()]

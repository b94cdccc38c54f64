"""The command line: bad input is one line and status 2, a spent budget 3, and nothing paid for is ever lost."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from certibox import certification
from certibox.certification.smoothing import SmoothedClassifier
from certibox.certification.stored import is_decided
from certibox.cli import main
from certibox.commands.arguments import parse
from certibox.commands.certifying import Certify
from certibox.commands.cost import QueryCost, cost_of
from certibox.commands.models import load_model
from certibox.confidence import RankVerification
from certibox.data import load_images
from certibox.defense.autoencoders import save_autoencoder
from certibox.errors import InvalidInput
from certibox.networks import fitting_autoencoder
from certibox.records.certificates import read_rows
from certibox.records.tsv import read_tsv
from certibox.report import certified_accuracy
from certibox.storage.files import read_json
from certibox.storage.tensors import module_digest, read_tensors, tensors_digest, under
from certibox.training.tracking import TRACKERS
from command_line import AE, CLASSES, IMAGES, SIGMA, N, certify, timeless, totals, train, votes

FEW = f"--limit 3 --num-classes {CLASSES}"


def test_train_certify_merge_and_report(place: Path, run, trained: Path) -> None:
    defended = f"--defense {trained}/defense"
    whole = run(certify(out="whole", more=f"{defended} --check-box true"))
    assert whole.status == 0
    assert "canaries" in whole.err
    assert "queries spent: 490 (fingerprint 8, certify 480, batch check 2)" in whole.out
    rows = timeless("whole/certificates.jsonl")
    facts = read_json(trained / "defense" / "defense.json")
    assert {row.sigma for row in rows} == {facts["sigma"]} == {SIGMA}
    assert {row.model for row in rows} == {rows[0].model}
    assert re.fullmatch(r"ZO-AE-DS:[0-9a-f]{12}:box\.py:logits:[0-9a-f]{12}", rows[0].model)

    for shard in ("1/2", "2/2"):
        assert run(certify(out="parts", more=f"{defended} --shard {shard} --noise-batch-size 7")).status == 0
    merged = run("merge parts/certificates.1-of-2.jsonl parts/certificates.2-of-2.jsonl --out merged/all.jsonl")
    assert (merged.status, merged.out) == (0, "saved merged/all.jsonl: 12 certificates\n")
    assert timeless("merged/all.jsonl") == rows

    assert run(certify(out="bare")).status == 0
    line = "report bare=bare/certificates.jsonl defended=merged/all.jsonl --radii [0,0.15] --title 'A & B' --out page"
    assert run(line).status == 0
    page = (place / "page" / "report.html").read_text()
    assert "<title>A &amp; B</title>" in page
    for name, path in (("bare", "bare/certificates.jsonl"), ("defended", "merged/all.jsonl")):
        (share,) = certified_accuracy(read_rows(path), [0.15])
        assert re.search(rf">{name}</td>.*>{100 * share:.1f} <span class=\"whole\">\[", page)
        tsv = read_tsv(place / "page" / f"{name}.tsv")
        assert [(row.idx, row.predict) for row in tsv] == [(row.idx, row.predict) for row in read_rows(path)]
    assert (place / "page" / "ca_curve.png").read_bytes().startswith(b"\x89PNG")


def test_report_replays_votes_at_another_alpha(place: Path, run) -> None:
    assert run(certify()).status == 0
    assert run("report out/certificates.jsonl --alpha 0.2 --out page").status == 0
    stored = read_rows("out/certificates.jsonl")
    replayed = certification.at_alpha(stored, 0.2)
    assert sum(row.radius for row in replayed) > sum(row.radius for row in stored)
    shown = read_tsv(place / "page" / "out.tsv")
    assert [row.predict for row in shown] == [row.predict for row in replayed]
    assert [row.radius for row in shown] == [pytest.approx(row.radius, abs=1e-6) for row in replayed]
    assert "<dt>alpha</dt><dd>0.2</dd>" in (place / "page" / "report.html").read_text()


def test_a_rule_stops_before_n_and_its_certificates_price_the_next_ones(place: Path, run) -> None:
    asked = "--n 400 --rule e-process --radii [0.05,0.15]"
    ran = run(certify(more=asked))
    assert ran.status == 0
    rows = read_rows("out/certificates.jsonl")
    assert certification.replay(rows) == rows
    assert {row.cap for row in rows} == {400}
    mean = sum(row.n for row in rows) / len(rows)
    assert mean < 400
    titles, values = (re.search(rf"^[│┃] ({name} .*)[│┃]$", ran.out, re.M) for name in ("run", "out"))
    assert titles is not None
    assert values is not None
    shown = dict(zip(re.split(r" *┃ *", titles[1]), re.split(r" *│ *", values[1]), strict=True))
    assert {"r=0.05", "r=0.15"} <= shown.keys()
    assert "r=0" not in shown  # which the rule did not decide
    assert shown["an image"] == f"{sum(row.queries for row in rows) / len(rows):,.0f}"
    assert "samples" not in run(certify(out="fixed")).out  # there it is a setting

    resumed = run(certify(more=asked))
    assert f"(certify {sum(row.queries for row in rows):,}, batch check 2)" in resumed.out  # as before: nothing more
    other = run(certify(more=asked.replace("0.15", "0.1")))
    assert other.status == 2
    assert "rule.radii is [0.05, 0.15] there and [0.05, 0.1] here" in other.err
    priced = run("query-cost --certify-images 1000 --n0 10 --n 400 --rule e-process --radii [0.05,0.15] "
                 "--pilot out/certificates.jsonl")  # fmt: skip
    assert f"expects {mean:,.0f} estimation votes an image" in priced.out
    assert f"{round(1000 * (10 + mean)):,}" in priced.out
    assert run("report out/certificates.jsonl --out page").status == 0
    assert "<dt>n</dt><dd>400</dd>" in (place / "page" / "report.html").read_text()

    decided = run("report out/certificates.jsonl --out page").out
    assert "r=0.15" in decided
    assert "did not decide" not in decided
    assert "the votes ended" not in decided
    ran = rows[0].alpha
    tighter = run(f"report out/certificates.jsonl --alpha {ran / 10} --out page").out
    assert (
        f"out: the votes ended when they had decided at alpha = {ran:g}; at {ran / 10:g} the shares are lower"
        in tighter
    )
    assert "the votes ended" not in run(f"report out/certificates.jsonl --alpha {2 * ran} --out page").out
    told = run("report out/certificates.jsonl --radii [0,0.05] --out page").out
    assert "the rule did not decide r = 0; its shares there are lower bounds" in told
    with pytest.raises(InvalidInput, match=r"did not decide r = 0\.1"):
        certification.choose_sigma({SIGMA: rows}, [0.05, 0.1])


def test_unless_told_otherwise_certify_decides_three_radii(place: Path, run) -> None:
    """The rule of the evidence, spent as query-cost says; a fixed n has its own votes."""
    line = f"certify --model box.py:logits --outputs logits --data images.npz --sigma {SIGMA} {FEW}"
    assert run(f"{line} --out out").status == 0
    rows = read_rows("out/certificates.jsonl")
    kept = {"name": "e-process", "radii": [SIGMA / 2, SIGMA, 2 * SIGMA], "cap": 100_000}
    assert all(row.rule is not None and kept.items() <= row.rule.items() and row.n0 == 25 for row in rows)
    mean = sum(row.n for row in rows) / len(rows)
    assert mean < 100_000
    assert cost_of(QueryCost(certify_images=3, pilot="out/certificates.jsonl")).certification == round(3 * (25 + mean))

    assert run(f"{line} --rule fixed --out fixed").status == 0
    assert {(row.n0, row.n, row.rule) for row in read_rows("fixed/certificates.jsonl")} == {(100, 10_000, None)}
    assert run(f"{line} --tolerance 0.5 --n 1000 --out full").status == 0
    full = [row.rule or {} for row in read_rows("full/certificates.jsonl")]
    assert [(rule["radii"], rule["tolerance"], rule["cap"]) for rule in full] == [(None, 0.5, 1000)] * 3


def test_radii_that_n_cannot_certify_are_named_before_the_votes(run) -> None:
    line = f"certify --model box.py:logits --outputs logits --data images.npz --sigma {SIGMA} {FEW} --n 50"
    ran = run(f"{line} --out out")
    assert ran.status == 0
    note, *_ = ran.out.splitlines()
    assert note == "n = 50 cannot certify r = 0.6 (the smallest n is 325): 0 % there says nothing of the model"
    assert "cannot certify" not in run(f"{line} --out less --radii [0.15,0.3]").out


def test_a_report_of_several_rules_tells_how_many_rows_each_has(place: Path, run) -> None:
    asked = {"fixed": "", "whole": "--rule e-process --radii [0.1]", "other": "--rule e-process --tolerance 0.5"}
    for out, more in asked.items():
        assert run(certify(out=out, more=f"{more} --limit {2 if out == 'whole' else 3} --num-classes 3")).status == 0
    shown = []
    for names in (["fixed"], ["whole"], ["fixed", "whole", "other"]):
        assert run(f"report {' '.join(f'{name}/certificates.jsonl' for name in names)} --out page").status == 0
        shown.append(re.findall("<dt>rule</dt><dd>(.*?)</dd>", (place / "page" / "report.html").read_text()))
    several = (
        "e-process (r = 0.1): 2 rows; e-process (tolerance 0.5): 3 rows; fixed n: 3 rows; n is the maximum of a rule"
    )
    assert shown == [[], ["e-process (r = 0.1), with n as its maximum"], [several]]


def test_the_second_class_is_a_setting_of_the_file(place: Path, run) -> None:
    assert run(certify(more="--second-class true")).status == 0
    rows = read_rows("out/certificates.jsonl")
    assert {row.second_class for row in rows} == {True}
    assert certification.replay(rows) == rows
    ran = run(certify())
    assert ran.status == 2
    assert "--second-class is True there and False here" in ran.err


def test_report_reads_the_envelope_of_sigmas_that_validation_images_chose(place: Path, run) -> None:
    images = load_images("images.npz")
    for name, part in (("validation", slice(6)), ("test", slice(6, 12))):
        some = images.select(part)
        assert some.labels is not None
        np.savez(place / f"{name}.npz", images=some.images.numpy(), labels=some.labels.numpy())
        for sigma in ("0.1", "0.3"):
            more = f"--data {name}.npz --sigma {sigma} --n 200"
            assert run(certify(out=f"{name}{sigma}", more=more)).status == 0
    files = {name: [f"{name}{sigma}/certificates.jsonl" for sigma in ("0.1", "0.3")] for name in ("validation", "test")}
    ran = run(f"report {' '.join(files['test'])} --validation [{','.join(files['validation'])}] --radii [0,0.2]")
    assert ran.status == 0
    held = {name: {rows[0].sigma: rows for rows in map(read_rows, paths)} for name, paths in files.items()}
    choice = certification.choose_sigma(held["validation"], [0.0, 0.2])
    for radius, share in certification.envelope(choice, held["test"]).items():
        line = f"r = {radius:g}: sigma = {choice.sigmas[radius]:g}, chosen on validation images"
        assert f"{line}, certifies {100 * share:.1f} % [" in ran.out
        assert line in (place / "report" / "report.html").read_text()
    unheard = run(f"report {' '.join(files['test'])} --validation [{files['validation'][0]}]")
    assert unheard.status == 2
    assert "certibox report: no validation certificates are of sigma = 0.3; wanted" in unheard.message
    same = run(f"report {files['test'][0]} --validation [{files['test'][0]}]")
    assert (same.status, "6 of the test images" in same.err) == (2, True)
    twice = run(f"report {files['test'][0]} --validation [{files['validation'][0]},{files['validation'][0]}]")
    assert (twice.status, "two files are of sigma = 0.1" in twice.err) == (2, True)


def test_predict_prints_one_json_line_an_image(place: Path, run) -> None:
    line = f"predict --model box.py:logits --outputs logits --data images.npz --sigma {SIGMA} --n 50 --seed 4 {FEW}"
    line += " --rule fixed"
    ran = run(line)
    assert ran.status == 0
    assert ran.err.startswith("certibox predict: note: images.npz has no splits: 'test' is all of its 12 images")
    assert ran.err.count("\n") == 1
    assert run(f"{line} --split train") == replace(ran, err="")
    function, _ = load_model("box.py:logits")
    smoothed = SmoothedClassifier(lambda x: torch.from_numpy(function(x.clamp(0, 1).numpy())), CLASSES, SIGMA)
    wanted = []
    for i, x in enumerate(load_images("images.npz", limit=3).floats()):
        made = smoothed.predict(x, n=50, alpha=0.001, seed=4)
        told = {"predict": made.label, "p_value": made.p_value, "counts": list(made.counts), "queries": 50}
        wanted.append({"idx": i, **told})
    assert [json.loads(text) for text in ran.out.splitlines()] == wanted
    early = [json.loads(text) for text in run(line.replace("--rule fixed", "--n0 3")).out.splitlines()]
    for i, x in enumerate(load_images("images.npz", limit=3).floats()):
        made = smoothed.predict(x, n=50, alpha=0.001, seed=4, rule=RankVerification(), n0=3)
        assert early[i]["predict"] == made.label
        assert early[i]["counts"] == list(made.counts)
        assert early[i]["queries"] == 3 + sum(made.counts) <= 53
    assert sorted(os.listdir(place)) == ["box.py", "images.npz", "larger.npz", "unlabelled.npz"]  # wrote nothing


def test_the_same_weights_give_the_same_votes_by_file_by_package_and_by_onnx(place: Path, run) -> None:
    from onnx import TensorProto, helper, numpy_helper, save

    (place / "a_package_of_this_test").mkdir()
    (place / "a_package_of_this_test" / "inner.py").write_text("from box import logits\n")
    assert str(place) not in sys.path
    assert run(certify("a_package_of_this_test.inner:logits", "package")).status == 0
    weights, _ = load_model("box.py:WEIGHTS")
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 4, 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])]
    graph = helper.make_graph(nodes, "linear", inputs, outputs, [numpy_helper.from_array(weights, "w")])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), place / "model.onnx")

    assert run(certify(out="file")).status == 0
    assert run(certify("model.onnx", "onnx")).status == 0
    for out, model in (("package", "a_package_of_this_test.inner:logits"), ("onnx", "model.onnx")):
        assert votes(f"{out}/certificates.jsonl") == votes("file/certificates.jsonl")
        (name,) = {row.model.rpartition(":")[0] for row in read_rows(f"{out}/certificates.jsonl")}
        assert name == f"bare:{model}"


def test_labels_give_the_votes_of_their_logits(place: Path, run) -> None:
    assert run(certify(out="logits")).status == 0
    assert run(certify("box.py:labels", "labels", f"--num-classes {CLASSES}", "labels")).status == 0
    assert votes("labels/certificates.jsonl") == votes("logits/certificates.jsonl")


def test_unlabelled_images_are_certified_without_a_tsv(place: Path, run) -> None:
    assert run(certify(out="labelled")).status == 0
    assert run(certify(more=f"--data unlabelled.npz --num-classes {CLASSES}")).status == 0
    assert votes("out/certificates.jsonl") == votes("labelled/certificates.jsonl")
    assert {row.correct for row in read_rows("out/certificates.jsonl")} == {None}
    assert [path.name for path in sorted((place / "out").glob("cert*"))] == ["certificates.jsonl"]
    assert len(read_tsv("labelled/certificates.tsv")) == IMAGES
    assert run("report out/certificates.jsonl --out page").status == 0
    assert "Certified share" in (place / "page" / "report.html").read_text()


def test_too_few_classes_in_the_labels_name_the_flag(place: Path, run, refused) -> None:
    refused(certify(more="--limit 2"), "the first 2 images show 2 classes", "--num-classes K")
    np.savez(place / "two.npz", images=np.zeros((4, 1, 4, 4), np.uint8), labels=[0, 1, 0, 1])
    refused(certify(more="--data two.npz"), "3 scores", "2 classes", "--num-classes 3")
    assert totals("out/ledger.sqlite") == (1, 1, 0)  # one answer tells
    np.savez(place / "one.npz", images=np.zeros((4, 1, 4, 4), np.uint8), labels=[0] * 4)
    refused(certify(more="--data one.npz"), "the data shows one class alone; wanted --num-classes K")
    assert run(certify(more=f"--limit 2 --num-classes {CLASSES}")).status == 0


def test_data_that_names_its_classes_may_show_only_some_of_them(place: Path, run) -> None:
    (place / "ten.py").write_text("def scores(images):\n    return images.reshape(len(images), -1)[:, :10]\n")
    assert load_images("digits", "train", limit=1).num_classes != 10
    ran = run(f"predict --model ten.py:scores --outputs logits --data digits --split train --limit 1 --sigma {SIGMA}")
    assert (ran.status, len(json.loads(ran.out)["counts"])) == (0, 10)


def test_flags_go_over_the_file_and_the_file_over_defaults(place: Path, run) -> None:
    options = {"model": "box.py:logits", "outputs": "logits", "data": "images.npz", "sigma": SIGMA, "alpha": 0.02}
    Path("run.yaml").write_text(yaml.safe_dump(options | {"n": 20, "input_range": [0, 2], "limit": 3, "out": "yaml"}))
    made = parse("certify", Certify, shlex.split(f"--config run.yaml --n {N} --out flags --num-classes 3"))
    assert (made.n, made.out, made.num_classes) == (N, "flags", 3)
    assert (made.alpha, made.sigma, made.input_range, made.limit) == (0.02, SIGMA, [0.0, 2.0], 3)
    assert (made.n0, made.seed, made.split) == (None, 0, "test")
    assert run(f"certify --config run.yaml --n {N} --out flags --num-classes 3").status == 0
    rows = read_rows("flags/certificates.jsonl")
    assert [(row.cap, row.n0, row.alpha, row.sigma) for row in rows] == [(N, 25, 0.02, SIGMA)] * 3


def test_print_config_writes_a_file_that_config_reads(run, capsys: pytest.CaptureFixture[str]) -> None:
    flags = shlex.split(certify(more="--input-range [0,255]"))[1:]
    with pytest.raises(SystemExit) as done:
        main(["certify", *flags, "--print-config"])
    assert done.value.code == 0
    Path("printed.yaml").write_text(capsys.readouterr().out)
    assert parse("certify", Certify, ["--config", "printed.yaml"]) == parse("certify", Certify, flags)


def test_training_spends_what_query_cost_says_and_the_seed_names_the_result(run) -> None:
    line = train(more=f"{AE} --skip-dead false --estimator rge --q 3 --central true", method="ZO-AE-DS")
    assert run(f"{line} --out a").status == 0
    assert run(f"{line} --out b").status == 0
    assert run(f"{line} --out c --seed 1").status == 0
    cost = QueryCost(
        estimator="rge", q=3, mu=0.05, central=True, train_images=IMAGES, epochs=1, train_batch_size=4, d_z=4
    )
    assert totals("a/ledger.sqlite")[0] == totals("c/ledger.sqlite")[0] == cost_of(cost).total
    a, b, c = (read_tensors(Path(out) / "defense/defense.safetensors")[0] for out in "abc")
    assert tensors_digest(a) == tensors_digest(b)
    frozen = next(name for name in a if "decoder" in name)
    assert not torch.equal(a[frozen], c[frozen])  # the autoencoder, too, starts from the seed


@pytest.mark.parametrize("given", ["--q 0", "--q 2", "--estimator cge", "--estimator cge --central true"])
def test_a_step_that_is_not_given_is_measured_as_query_cost_says(run, given: str) -> None:
    ran = run(train(more=f"{AE} --skip-dead false --mu null {given}", method="ZO-AE-DS"))
    assert ran.status == 0
    planned = f"--train-images {IMAGES} --epochs 1 --train-batch-size 4 --d-z 4 {given}"
    cost = cost_of(parse("query-cost", QueryCost, shlex.split(planned)))
    assert totals("run/ledger.sqlite")[0] == cost.total
    measured = re.search(r"^mu = \S+, measured with (\d+) queries$", ran.out, re.M)
    assert cost.measuring == (int(measured[1]) if measured else 0)
    assert (measured is None) == (given == "--q 0")


def test_a_saved_autoencoder_is_taken_as_pre_trained(place: Path, run) -> None:
    ours = fitting_autoencoder((1, 4, 4), d_z=4)
    save_autoencoder(ours, "ours")
    assert run(train(more="--autoencoder ours --scheme denoiser", method="ZO-AE-DS")).status == 0
    assert not (place / "run" / "training" / "autoencoder").exists()
    tensors, facts = read_tensors("run/defense/defense.safetensors")
    assert facts["modules"]["autoencoder"] == ours.spec
    assert tensors_digest(under("autoencoder", tensors)) == module_digest(ours)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--autoencoder ours --d-z 4", ["--d-z is 4", "saved in ours"]),
        ("--autoencoder ours --data larger.npz", ["(1, 4, 4)", "(1, 5, 5)"]),
        ("--autoencoder empty", ["empty/autoencoder.safetensors"]),
        ("--autoencoder ae-48", ["(3, 32, 32)", "(1, 4, 4)"]),  # a name wins over a directory
        ("--autoencoder ./ae-48", ["ae-48/autoencoder.safetensors"]),
        ("--autoencoder nowhere", ["'nowhere'", "directory of a saved one"]),
    ],
)
def test_a_saved_autoencoder_that_does_not_fit_is_refused(place: Path, refused, more: str, words: list[str]) -> None:
    save_autoencoder(fitting_autoencoder((1, 4, 4), d_z=4), "ours")
    for empty in ("empty", "ae-48"):
        (place / empty).mkdir()
    refused(train(more=more, method="ZO-AE-DS"), *words)
    assert totals("run/ledger.sqlite") == (0, 0, 0)


def test_a_model_file_may_bear_the_name_of_a_module_that_others_need(place: Path, run) -> None:
    (place / "shlex.py").write_text("from box import logits\n")
    assert run(certify("shlex.py:logits")).status == 0
    assert sys.modules["shlex"] is shlex


def test_training_sends_its_values_to_the_tracker_that_is_named(run, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    stand_in = SimpleNamespace(
        start=lambda settings: told.append(settings["sigma"]),
        log=lambda values, step: told.append(step),
        close=lambda: told.append("closed"),
    )
    monkeypatch.setitem(TRACKERS, "mlflow", lambda run: told.append(run) or stand_in)
    assert run(train(out="tracked", more="--tracker mlflow")).status == 0
    steps = [json.loads(line)["step"] for line in Path("tracked/training/rows.jsonl").read_text().splitlines()]
    assert told == ["tracked", SIGMA, *steps, "closed"]
    assert not Path("tracked/training/tensorboard").exists()


def test_a_tracker_that_is_not_installed_is_named_before_the_work(refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "wandb is not installed" in refused(train(out="tracked", more="--tracker wandb"))
    assert not Path("tracked").exists()


def test_queries_are_spent_where_certificates_are_near(place: Path, run, refused) -> None:
    asked = certify(more="--rule e-process --n 20000 --radius 0.05 --spend {}")
    ran = run(asked.format(300))
    assert ran.status == 0
    rows = read_rows("out/certificates.jsonl")
    bought = sum(row.queries for row in rows)
    assert f"(certify {bought}, batch check 2)" in ran.out
    assert bought <= 300
    certified = sum(row.predict is not None and row.radius >= 0.05 for row in rows)
    undecided = sum(not is_decided(row) for row in rows)
    words = r"(\d+) of (\d+) images \([\d.]+%\) certified at r = 0.05 for (\d+) votes; (\d+) undecided, (\d+) not begun"
    found = re.search(words, ran.out)
    assert found is not None
    of = int(found[2])
    assert [int(number) for number in found.groups()] == [certified, of, bought, undecided, of - len(rows)]
    told = run("report out/certificates.jsonl --out page").out
    assert f"out: {undecided} images were not decided when the queries were spent; the shares are lower bounds" in told

    assert run(asked.format(10**7)).status == 0
    rows = read_rows("out/certificates.jsonl")
    assert len(rows) == of
    assert all(is_decided(row) for row in rows)
    assert "not decided" not in run("report out/certificates.jsonl --out page").out
    refused(certify(more="--rule e-process --spend 300"), "spend is 300 without a radius; wanted --radius")
    refused(certify(more="--radius 0.05"), "has no effect without --spend")
    refused(
        certify(more="--rule e-process --spend 300 --radius 0.05 --tolerance 0.1"),
        "--tolerance was given beside --spend",
    )

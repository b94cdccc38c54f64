"""The command line: bad input is one line and status 2, a spent budget 3, and nothing paid for is ever lost."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from certibox.cli import COMMANDS
from certibox.commands.arguments import parse
from certibox.commands.cost import QueryCost
from certibox.commands.fields import require_effect
from certibox.commands.options import EstimatorOptions
from certibox.commands.training import Train
from certibox.errors import InvalidInput
from certibox.estimators import CGE, RGE, Guided
from command_line import IMAGES, SIGMA, totals, train


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("certify --data nope.npz", ["nope.npz", "no such file"]),
        ("certify --data nope", ["'nope'"]),
        ("certify --data broken.npz", ["broken.npz cannot be read"]),
        ("certify --data bytes.npz", ["bytes.npz", "[0, 1]", "divide by 255"]),
        ("certify --data two.npz", ["two.npz", "(12, 2, 4, 4)"]),
        ("certify --data nan.npz", ["nan.npz", "image 3", "NaN"]),
        ("certify --limit 0", ["limit is 0"]),
        ("certify --model nope.py:logits", ["nope.py"]),
        ("certify --model fails.py:logits", ["fails.py cannot be imported", "nowhere_to_be_found"]),
        ("certify --model syntax.py:logits", ["syntax.py cannot be imported", "SyntaxError"]),
        ("certify --model exits.py:logits", ["exits.py cannot be imported", "SystemExit: goodbye"]),
        ("certify --model no_package.module:logits", ["no_package.module cannot be imported"]),
        ("certify --model box.py:nope", ["box.py has no 'nope'"]),
        ("certify --model box.py:number", ["model is box.py:number, 3"]),
        ("certify --model box.py:Model", ["model is box.py:Model, a Model;"]),
        ("certify --model box.py", ["'box.py'", "file.py:function"]),
        ("certify --model model.pkl", ["'model.pkl'", "file.py:function"]),
        ("certify --model nope.onnx", ["nope.onnx"]),
        ("certify --model broken.onnx", ["broken.onnx is no ONNX model"]),
        ("certify --sigma 0", ["sigma is 0.0"]),
        ("certify --sigma -1", ["sigma is -1.0"]),
        ("certify --sigma null", ["--sigma 0.25"]),
        ("certify --alpha 0", ["alpha is 0.0"]),
        ("certify --alpha 1", ["alpha is 1.0"]),
        ("certify --alpha 0.001 --n 9", ["n = 9", "alpha = 0.001", "smallest n is 10"]),
        ("certify --n0 0", ["n0 is 0"]),
        ("certify --alpha 0.001 --n 9 --rule fixed", ["n = 9", "alpha = 0.001", "smallest n is 10"]),
        ("certify --rule fixed --radii [0.1]", ["--radii [0.1]", "with --rule fixed", "--rule e-process"]),
        ("certify --rule fixed --tolerance 0.1", ["--tolerance 0.1", "with --rule fixed", "--rule e-process"]),
        ("certify --radii [0.1] --tolerance 0.1", ["exactly one"]),
        ("certify --rule e-process --radii [0.1] --tolerance 0.1", ["exactly one"]),
        ("certify --rule e-process --radii [0.3,0.1]", ["radii are [0.3, 0.1]", "ascending"]),
        ("certify --rule e-process --radii [0.75] --n 500", ["n = 500", "r = 0.75", "smallest n is"]),
        ("certify --rule e-process --radii [9]", ["radius 9", "ask for less"]),
        ("certify --rule alpha-spending --tolerance 1", ["tolerance is 1.0"]),
        ("certify --rule e-process --radii [0.1] --futility 1", ["futility is 1.0"]),
        ("certify --second-class true", ["--second-class true", "e-process", "--rule fixed"]),
        ("certify --rule alpha-spending --second-class true", ["alpha-spending", "--rule fixed"]),
        ("certify --rule fixed --second-class true --n 10", ["n = 10", "alpha = 0.0005", "smallest n is 11"]),
        ("certify --shard 5/4", ["'5/4'", "i/k"]),
        ("certify --shard 0/4", ["'0/4'", "i/k"]),
        ("certify --shard x", ["'x'", "i/k"]),
        ("certify --shard 13/13", ["13/13", "12 images"]),
        ("certify --budget -1", ["budget is -1"]),
        ("certify --input-range [0]", ["--input-range is [0.0]"]),
        ("certify --levels 1", ["levels is 1"]),
        ("certify --outputs labels", ["--num-classes"]),
        ("certify --outputs values", ["'values'"]),
        ("certify --data unlabelled.npz", ["--num-classes"]),
        ("certify --defense nope", ["nope/defense.safetensors"]),
        ('certify --defense ""', ["defense.safetensors"]),
        ("certify --check-box true", ["--fingerprint true"]),
        ("certify --out images.npz", ["images.npz"]),
        ("certify --ledger images.npz", ["the ledger images.npz"]),
        ("train --sigma 0", ["sigma is 0.0"]),
        ("train --gamma null", ["no gamma", "such as 1.0"]),
        ("train --gamma -1", ["-1"]),
        ("train --mu 0", ["mu is 0.0"]),
        ("train --mu much", ["mu is 'much'", "a number or auto"]),
        ("train --q ten", ["q is 'ten'", "a whole number or auto"]),
        ("train --method ZO-DS --estimator orthogonal --q 17", ["q = 17", "16 dimensions"]),
        ("train --d-z 4 --estimator orthogonal --q 5", ["q = 5", "4 dimensions"]),
        ("train --method ZO-DS --levels 256 --mu 0.0001", ["mu = 0.0001", "256 grey levels"]),
        ("train --levels 256 --d-z 4 --mu 0.0001", ["mu = 0.0001", "256 grey levels"]),
        ("train --method FO-DS", ["box.py:logits", "gradients"]),
        ("train --autoencoder ae-13", ["'ae-13'"]),
        ("train --lr 0", ["lr is 0.0"]),
        ("train --epochs -1", ["epochs is -1; wanted at least 0"]),
        ("train --train-batch-size 1", ["--train-batch-size is 1; wanted at least 2"]),
        ("train --validation 0", ["share 0.0"]),
        ("train --validation-votes 0", ["--validation-votes is 0"]),
        ("train --patience 0", ["patience is 0; wanted a whole number, at least 1 validation"]),
        ("train --validate-every 0", ["--validate-every is 0; wanted a whole number, at least 1 epoch"]),
        ("predict --n 0", ["n is 0"]),
        ("predict --alpha 2", ["alpha is 2.0"]),
    ],
)
def test_a_wrong_value_is_named_before_the_first_query(place: Path, refused, line: str, words: list[str]) -> None:
    pixels = np.random.default_rng(2).uniform(0, 1, (IMAGES, 1, 4, 4)).astype(np.float32)
    np.savez(place / "bytes.npz", images=255 * pixels)
    np.savez(place / "two.npz", images=np.concatenate([pixels, pixels], axis=1))
    pixels[3, 0, 1, 1] = np.nan
    np.savez(place / "nan.npz", images=pixels)
    (place / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    (place / "broken.onnx").write_bytes(b"no protobuf")
    (place / "fails.py").write_text("import nowhere_to_be_found\n")
    (place / "syntax.py").write_text("def logits(:\n")
    (place / "exits.py").write_text("raise SystemExit('goodbye')\n")

    name, *given = shlex.split(line)
    usual = {"--model": "box.py:logits", "--outputs": "logits", "--data": "images.npz", "--sigma": str(SIGMA)}
    if name == "train":
        usual |= {"--gamma": "1", "--epochs": "1"}
        usual |= {} if "FO-DS" in given else {"--mu": "0.05"}
        usual |= {} if "--method" in given else {"--autoencoder-epochs": "1", "--d-z": "4"}
    if name != "predict":
        usual["--out"] = "out"
    if "--defense" in given:
        del usual["--sigma"]
    asked = usual | dict(zip(given[::2], given[1::2], strict=True))
    refused(shlex.join([name, *(word for pair in asked.items() for word in pair)]), *words)
    if (place / "out" / "ledger.sqlite").exists():
        assert totals("out/ledger.sqlite") == (0, 0, 0)
    assert not (place / "out" / "certificates.jsonl").exists()
    # Only the step on a grid needs the trained autoencoder to be judged; the rest is refused before those minutes.
    assert (place / "out" / "training" / "autoencoder").exists() == ("--levels 256 --d-z 4" in line)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("frobnicate --out x", ["'frobnicate'", "certify"]),
        ("--frob", ["'--frob'"]),
        ("certify", ["--model", "--outputs", "--data", "--out", "not given"]),
        ("certify --nn 10", ["--nn 10", "certify --help"]),
        ("certify --sigmma 0.3", ["--sigmma 0.3; did you mean --sigma? see certibox certify --help"]),
        ("certify --limit 3 --sigmma=0.3", ["did you mean --sigma?"]),
        ("certfy --out x", ["no command 'certfy'", "did you mean certify?"]),
        ("certify --rule e-proces", ["rule is 'e-proces'", "alpha-spending; did you mean e-process? see"]),
        ("train --method ZO-AEDS", ["method is 'ZO-AEDS'", "did you mean ZO-AE-DS? see"]),
        ("certify stray", ["stray"]),
        ("query-cost --q 1.5", ["q is '1.5'", "a whole number or auto"]),
        ("certify --n ten", ["n is 'ten'", "a whole number"]),
        ("certify --rule hunch", ["rule is 'hunch'", "fixed, e-process, alpha-spending"]),
        ("certify --radii 0.1", ["radii is '0.1'", "[0, 0.25]"]),
        ("certify --n 1e3", ["n is '1e3'", "a whole number"]),
        ("certify --sigma much", ["sigma is 'much'", "a number"]),
        ("certify --clip", ["--clip has no value", "true or false"]),
        ("certify --clip perhaps", ["clip is 'perhaps'", "true or false"]),
        ("certify --outputs scores", ["outputs is 'scores'", "logits, probabilities, labels, values"]),
        ("certify --input-range 0,255", ["--input-range is '0,255'", "[0, 0.25]"]),
        ("report x --radii 0.5", ["radii is '0.5'", "[0, 0.25]"]),
        ("report", ["files not given"]),
        ("certify --config nope.yaml", ["nope.yaml", "not exist"]),
        ("certify --config unknown.yaml", ["unknown.yaml", "'sgima'", "did you mean sigma?"]),
        ("certify --config=unknown.yaml", ["unknown.yaml", "'sgima'"]),
        ("certify --config invalid.yaml", ["invalid.yaml", "line 2"]),
        ("certify --config typed.yaml", ["sigma is 'much'", "a number"]),
        ("certify --config list.yaml", ["list.yaml", "sigma: 0.25"]),
        ("certify --config binary.yaml", ["binary.yaml", "sigma: 0.25"]),
    ],
)
def test_a_wrong_command_line_is_one_line(place: Path, refused, line: str, words: list[str]) -> None:
    (place / "unknown.yaml").write_text("sigma: 0.3\nsgima: 0.3\n")
    (place / "invalid.yaml").write_text("a: [1,\n b: : }\n")
    (place / "typed.yaml").write_text("sigma: much\n")
    (place / "list.yaml").write_text("- sigma\n")
    (place / "binary.yaml").write_bytes(bytes(range(128, 256)))
    refused(line, *words)


@pytest.mark.parametrize(
    ("line", "idle", "instead"),
    [
        *((f"train --estimator cge --{word}", "--estimator cge", "--estimator guided")
          for word in ("surrogate latent", "ask 0.5", "distill 100", "jitter 0.1", "votes 2", "updates 8", "target 0.9",
                       "ask 1.0", "updates=4")),
        ("train --estimator cge --q 4", "--estimator cge", "--estimator rge"),
        *((f"train --outputs labels --{word}", "--outputs labels and --estimator guided", "--jitter")
          for word in ("q 4", "mu 0.1", "mu auto", "central true", "target 0.9")),
        *((f"train --q 0 --{word}", "--q 0", "another --q") for word in ("mu 0.1", "central true", "target 0.9")),
        ("train --q 3 --target 0.9", "--q 3", "--q auto"),
        ("train --ask 0 --distill 9 --jitter 0.1", "--ask 0", "another --ask"),
        *((f"train --method {method} --{word}", f"--method {method}", "--method ZO-AE-DS")
          for method in ("RS", "DS", "FO-AE-DS") for word in ("q 4", "mu 0.1", "estimator cge", "updates 8")),
        *((f"train --method ZO-DS --{word}", "--method ZO-DS", "--method ZO-AE-DS")
          for word in ("d-z 4", "scheme denoiser", "autoencoder ae-48", "latent linear", "autoencoder-epochs 3",
                       "skip-dead false")),
        ("train --method FO-AE-DS --skip-dead false", "--method FO-AE-DS", "--method ZO-AE-DS"),
        ("train --latent linear --skip-dead false", "--latent linear", "--latent relu"),
        ("train --autoencoder . --autoencoder-epochs 3", "--autoencoder .", "the name of a network"),
        *((f"train --method DS --{word}", "--method DS", "another --method")
          for word in ("gamma 1", "targets soft", "reconstruction-weight 1")),
        *((f"train --method RS --{word}", "--method RS", "another --method")
          for word in ("denoiser unet", "denoise-weight 0", "reconstruction-weight 1")),
        ("train --outputs values --targets soft", "--outputs values", "scores"),
        ("train --outputs values --num-classes 3", "--outputs values", "scores"),
        ("train --schedule paper-scratch --epochs 9", "--schedule paper-scratch", "--schedule one-cycle"),
        ("train --schedule paper-finetune --denoise-epochs 9", "--schedule paper-finetune", "--schedule one-cycle"),
        *((f"certify --rule fixed --{word}", "--rule fixed", "--rule e-process or alpha-spending")
          for word in ("radii [0.1]", "tolerance 0.1", "futility 0.05", "futility=0.1")),
        ("certify --second-class true", "--rule e-process", "--rule fixed"),
        ("query-cost --q 3", "without --train-images", "--train-images"),
        ("query-cost --epochs 3", "without --train-images", "--train-images"),
        ("query-cost --n 100", "without --certify-images", "--certify-images"),
        ("query-cost --certify-images 3 --pilot x --sigma 0.1", "--pilot", "no --pilot"),
        ("query-cost --certify-images 3 --pilot x --alpha 0.1", "--pilot", "no --pilot"),
        ("query-cost --certify-images 3 --rule fixed --futility 0.1", "--rule fixed", "--rule e-process"),
        ("query-cost --train-images 9 --live 0.5", "but with --estimator cge", "both"),
        ("query-cost --train-images 9 --method DS --q 3", "--method DS", "--method ZO-AE-DS"),
        ("query-cost --train-images 9 --outputs labels --q 3", "--outputs labels", "--jitter"),
    ],
)  # fmt: skip
def test_an_option_without_effect_is_refused_before_anything_is_read(
    refused, line: str, idle: str, instead: str
) -> None:
    name, *given = shlex.split(line)
    *_, flag = (word.partition("=")[0] for word in given if word.startswith("--"))
    usual = {"--model": "nope.py:nope", "--outputs": "logits", "--data": "nope.npz", "--sigma": "1", "--out": "out"}
    needed = [] if name == "query-cost" else [word for pair in usual.items() for word in pair]
    message = refused(shlex.join([name, *needed, *given]), f": {flag} ", " has no effect ", idle)
    assert f"; leave it out, or give {instead}" in message


@pytest.mark.parametrize("more", ["--q 0 --central false", "--estimator cge --distill 0", "--q 0 --mu null"])
def test_saying_that_nothing_is_asked_for_is_no_option_without_effect(refused, more: str) -> None:
    refused(
        train("nope.py:nope", more=f"--data nope.npz {more}", method="ZO-DS").replace("--mu 0.05", ""), "no such file"
    )


def test_what_a_file_says_is_not_refused_beside_a_flag(refused, place: Path) -> None:
    """One file of settings serves several methods: a flag chooses."""
    place.joinpath("both.yaml").write_text("gamma: 2.0\nq: 3\nask: 0.5\n", encoding="utf-8")
    flags = "--model nope.py:nope --outputs logits --data nope.npz --sigma 1 --out out --config both.yaml"
    refused(f"train {flags} --method DS", "no such file")
    refused(f"train {flags} --method DS --gamma 2", "--gamma 2.0 has no effect with --method DS")


def test_what_needs_others_is_an_option_of_some_command() -> None:
    kinds = {kind for command in COMMANDS.values() for kind in command.load()[0].__mro__}
    named = {name for kind in kinds for row in vars(kind).get("NEEDS", ()) for name in row.names.split()}
    assert named <= {item.name for command in COMMANDS.values() for item in fields(command.load()[0])}
    assert {"ask", "futility", "second_class"} <= named


OTHERS: dict[str, Any] = {
    "q": 3,
    "mu": 0.1,
    "central": True,
    "surrogate": "latent",
    "ask": 0.5,
    "distill": 5,
    "jitter": 0.1,
}
OTHERS |= {"votes": 2, "target": 0.9, "updates": 8}


@pytest.mark.parametrize("estimator", ["guided", "cge", "rge", "orthogonal"])
@pytest.mark.parametrize("name", OTHERS)
def test_an_option_is_refused_exactly_where_the_estimator_is_the_same_without_it(estimator: str, name: str) -> None:
    plain = Train(model="m", data="d", out="o", sigma=0.1, outputs="logits", estimator=estimator)  # pyright: ignore
    given = replace(plain, **{name: OTHERS[name]})
    with (
        pytest.raises(InvalidInput) if given.build_estimator() == plain.build_estimator() else contextlib.nullcontext()
    ):
        require_effect(given, {name})


def test_auto_is_what_python_says(run) -> None:
    assert EstimatorOptions(q="auto", mu="auto").build_estimator() == Guided("auto", "auto")
    assert EstimatorOptions(estimator="cge", mu="auto").build_estimator() == CGE("auto")
    assert EstimatorOptions(estimator="rge", mu="auto").build_estimator() == RGE(20, "auto")
    for words, q, mu in (
        ("--q auto --mu auto", "auto", "auto"),
        ("--q 3 --mu 1e-3", 3, 0.001),
        ("--mu null", None, None),
    ):
        parsed = parse("query-cost", QueryCost, shlex.split(words))
        assert (parsed.q, parsed.mu) == (q, mu)
    ran = run("query-cost --train-images 100 --q auto --mu auto")
    assert (ran.status, ran.out) == (0, run("query-cost --train-images 100").out)
    assert run("query-cost --train-images 100 --estimator rge --d-z 32 --q auto").message.endswith(
        "wanted a number for rge"
    )


def test_what_the_surrogate_does_between_queries_reaches_the_estimator() -> None:
    flags = "--model m --outputs logits --data d --out o --sigma 0.1 --updates 9 --target 0.8"
    assert parse("train", Train, shlex.split(flags)).build_estimator() == Guided(updates=9, target=0.8)

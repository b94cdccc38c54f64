"""The command line: bad input is one line and status 2, a spent budget 3, and nothing paid for is ever lost."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from certibox import certification, checkpoints
from certibox.arguments import parse
from certibox.autoencoders import save_autoencoder
from certibox.cli import COMMANDS, GROUPS, main
from certibox.commands.certifying import Certify
from certibox.commands.training import Train
from certibox.data import load_images
from certibox.errors import InvalidInput
from certibox.estimators import CGE, RGE, Guided
from certibox.files import read_json
from certibox.ledger import Ledger
from certibox.models import load_model
from certibox.networks import fitting_autoencoder
from certibox.options import EstimatorOptions, require_effect
from certibox.query_cost import QueryCost, plan
from certibox.records.certificates import CertificateRow, read_rows
from certibox.records.tsv import read_tsv
from certibox.report import certified_accuracy
from certibox.smoothing import SmoothedClassifier

ROOT = Path(__file__).parents[1]
IMAGES, CLASSES, N0, N = 12, 3, 10, 30
SIGMA = 0.3

BOX = '''
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

WEIGHTS = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
HERE = Path(__file__).parent


@dataclass
class Meter:  # annotations are text here: they are looked up in the module
    asked: int = 0

    def passes(self, images) -> bool:
        """Whether the box has more than `limit` images to answer, counting from the start of the process."""
        self.asked += len(images)
        limit = HERE / "limit"
        return limit.exists() and self.asked > int(limit.read_text())


METER = Meter()


def logits(images):
    return images.reshape(len(images), -1) @ WEIGHTS


def probabilities(images):
    powers = np.exp(logits(images))
    return powers / powers.sum(1, keepdims=True)


def labels(images):
    return logits(images).argmax(1)


def raises(images):
    if METER.passes(images):
        raise RuntimeError("the\\nendpoint is down")
    return logits(images)


def turns_nan(images):
    return logits(images) * (np.nan if METER.passes(images) else 1)


def turns_wider(images):
    return np.concatenate([logits(images)] * (2 if METER.passes(images) else 1), axis=1)


def interrupted(images):
    if METER.passes(images):
        raise KeyboardInterrupt
    return logits(images)


number = 3


class Model:
    pass
'''


@dataclass(frozen=True)
class Ran:
    """What a command left: its exit status and what it printed."""

    status: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one line of the error; only a progress bar may stand above it."""
        *bars, message = self.err.splitlines()
        assert all(re.match(r"(certifying|training|autoencoder) .*/s ", line) for line in bars), self.err
        return message


def furnish(place: Path) -> None:
    """A box, and images of it, in a folder."""
    (place / "box.py").write_text(BOX)
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (IMAGES, 1, 4, 4), dtype=np.uint8)
    np.savez(place / "images.npz", images=pixels, labels=np.arange(IMAGES) % CLASSES)
    np.savez(place / "unlabelled.npz", images=pixels)
    np.savez(place / "larger.npz", images=rng.integers(0, 256, (IMAGES, 1, 5, 5), dtype=np.uint8))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a box and images; what the command line imports from it is forgotten afterwards."""
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str]):
    """Run one command line in `place`."""

    def go(line: str) -> Ran:
        capsys.readouterr()
        status = main(shlex.split(line))
        printed = capsys.readouterr()
        return Ran(status, printed.out, printed.err)

    return go


@pytest.fixture
def refused(run):
    """Run a command line that must end in one line with all `words` in it, and return that line."""

    def go(line: str, *words: str, status: int = 2) -> str:
        ran = run(line)
        assert ran.status == status
        assert ran.message.startswith(f"certibox {line.split()[0]}: ")
        for word in words:
            assert word in ran.message
        return ran.message

    return go


def certify(box: str = "box.py:logits", out: str = "out", more: str = "", outputs: str = "logits") -> str:
    rule = "" if "--rule" in more else "--rule fixed"  # so that what it spends is known
    settings = f"--outputs {outputs} --data images.npz {rule} --n0 {N0} --n {N} --alpha 0.01 --out {out}"
    sigma = "" if "--defense" in more or "--sigma" in more else f"--sigma {SIGMA}"
    return f"certify --model {box} {settings} {sigma} {more}"


def train(box: str = "box.py:logits", out: str = "run", more: str = "", method: str = "ZO-DS") -> str:
    settings = f"--outputs logits --data images.npz --sigma {SIGMA} --train-batch-size 4 --epochs 1"
    queries = "" if method == "DS" else "--gamma 1 --mu 0.05"
    return f"train --model {box} --method {method} {settings} {queries} --out {out} {more}"


AE = "--d-z 4 --autoencoder-epochs 2"


def timeless(path: Path | str) -> list[CertificateRow]:
    return [replace(row, seconds=0.0) for row in read_rows(path)]


def votes(path: Path | str) -> list[tuple[int, ...]]:
    return [row.counts for row in read_rows(path)]


def totals(path: Path | str) -> tuple[int, int, int]:
    """(answered, attempted, lost) of a ledger that exists."""
    assert Path(path).is_file()
    ledger = Ledger(path)
    try:
        return ledger.totals()
    finally:
        ledger.close()


def contents(folder: Path, *suffixes: str) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("*")) if file.suffix in suffixes}


# --- bad input ------------------------------------------------------------------------------------------------------


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
        ("certify --model box.py:number", ["model is 3"]),
        ("certify --model box.py:Model", ["class Model"]),
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
        ("certify --input-range [0]", ["input_range is [0.0]"]),
        ("certify --levels 1", ["levels is 1"]),
        ("certify --outputs labels", ["num_classes"]),
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
        ("train --lr 0", ["lr 0.0"]),
        ("train --epochs -1", ["-1 epochs"]),
        ("train --train-batch-size 1", ["batch_size is 1"]),
        ("train --validation 0", ["share 0.0"]),
        ("train --validation-votes 0", ["validation_votes is 0"]),
        ("train --patience 0", ["patience is 0; wanted at least 1 validation"]),
        ("train --validate-every 0", ["validate_every is 0; wanted at least 1 epoch"]),
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
        ("certify --input-range 0,255", ["input_range is '0,255'", "[0, 0.25]"]),
        ("report x --radii 0.5", ["radii is '0.5'", "[0, 0.25]"]),
        ("report", ["files not given"]),
        ("certify --config nope.yaml", ["nope.yaml", "not exist"]),
        ("certify --config unknown.yaml", ["unknown.yaml", "'sgima'"]),
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
        ("train --split train", "nope.npz", "another file"),
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
    kinds = {kind for command in COMMANDS.values() for kind in command.options.__mro__}
    named = {name for kind in kinds for row in vars(kind).get("NEEDS", ()) for name in row.names.split()}
    assert named <= {item.name for command in COMMANDS.values() for item in fields(command.options)}
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
    (place / "folder").mkdir()
    (place / "certificates.jsonl").write_text("what an earlier merge left\n")
    refused(line, *words)
    assert (place / "certificates.jsonl").read_text() == "what an earlier merge left\n"
    assert (place / "good.jsonl").read_text() == good
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


# --- a box that misbehaves, an interruption, a spent budget ---------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "words", "paid_for_nothing"),
    [
        ("raises", ["RuntimeError", "the endpoint is down"], 0),
        ("turns_nan", ["finite", "nan"], N),
        ("turns_wider", ["shape (3,)", "(6,)"], N),
    ],
)
def test_certify_keeps_the_rows_before_a_box_fails_and_goes_on_when_it_is_repaired(
    place: Path, run, refused, box: str, words: list[str], paid_for_nothing: int
) -> None:
    assert run(certify(f"box.py:{box}", "undisturbed")).status == 0
    (place / "limit").write_text("100")  # two images of 40, and the selection of the third
    refused(certify(f"box.py:{box}"), *words)
    assert timeless("out/certificates.jsonl") == timeless("undisturbed/certificates.jsonl")[:2]
    assert totals("out/ledger.sqlite")[0] == 90 + paid_for_nothing
    (place / "limit").unlink()
    assert run(certify(f"box.py:{box}")).status == 0
    assert timeless("out/certificates.jsonl") == timeless("undisturbed/certificates.jsonl")
    assert totals("out/ledger.sqlite")[0] == IMAGES * (N0 + N) + paid_for_nothing


def test_certify_stops_at_the_budget_and_goes_on_when_it_is_raised(place: Path, run, refused) -> None:
    assert run(certify(out="undisturbed")).status == 0
    refused(certify(more="--budget 100"), "30 queries wanted, 10 left", "raise the budget", status=3)
    assert timeless("out/certificates.jsonl") == timeless("undisturbed/certificates.jsonl")[:2]
    assert totals("out/ledger.sqlite") == (90, 90, 0)
    refused(certify(more="--budget 100"), "30 queries wanted, 10 left", status=3)
    assert totals("out/ledger.sqlite") == (90, 90, 0)
    assert run(certify(more=f"--budget {IMAGES * (N0 + N)}")).status == 0
    assert timeless("out/certificates.jsonl") == timeless("undisturbed/certificates.jsonl")
    assert totals("out/ledger.sqlite") == (IMAGES * (N0 + N),) * 2 + (0,)


def test_an_interrupted_certify_says_how_to_go_on(place: Path, run, refused) -> None:
    assert run(certify("box.py:interrupted", "undisturbed")).status == 0
    (place / "limit").write_text("100")
    refused(certify("box.py:interrupted"), "interrupted", "run the same command", status=130)
    assert totals("out/ledger.sqlite") == (90, 120, 30)  # the batch in flight may have been paid for
    (place / "limit").unlink()
    assert run(certify("box.py:interrupted")).status == 0
    assert timeless("out/certificates.jsonl") == timeless("undisturbed/certificates.jsonl")
    assert totals("out/ledger.sqlite") == (480, 510, 30)


@pytest.mark.parametrize(
    ("box", "status", "wasted"),  # how the batch that failed counts: answered, attempted, lost
    [("logits", 3, (0, 0, 0)), ("raises", 2, (0, 1, 0)), ("turns_nan", 2, (1, 1, 0)), ("interrupted", 130, (0, 1, 1))],
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
    ours, theirs = (checkpoints.read(Path(out) / "defense/defense.safetensors")[0] for out in ("run", "undisturbed"))
    assert checkpoints.tensors_digest(ours) == checkpoints.tensors_digest(theirs)
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
    refused(then, "another configuration", *words)
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
    assert totals("out/ledger.sqlite")[0] == (IMAGES + 1) * (N0 + N)
    path.write_text(whole.replace('"idx": 1,', '"idx": one,', 1))
    refused(certify(), "out/certificates.jsonl, line 2")
    assert '"idx": one,' in path.read_text()


def timeless_text(text: str, place: Path) -> list[CertificateRow]:
    (place / "earlier.jsonl").write_text(text)
    return timeless(place / "earlier.jsonl")


# --- defenses -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ZO-AE-DS with a fingerprint, trained once."""
    home = tmp_path_factory.mktemp("trained")
    furnish(home)
    with contextlib.chdir(home):
        assert main(shlex.split(train(more=f"{AE} --fingerprint true", method="ZO-AE-DS"))) == 0
    return home / "run"


@pytest.mark.parametrize(
    ("more", "outputs", "words"),
    [
        ("--data larger.npz", "logits", ["(1, 4, 4)", "(1, 5, 5)"]),
        ("--model box.py:probabilities", "probabilities", ["answers logits", "answers probabilities"]),
        ("--model changed.py:logits --check-box true", "logits", ["the box has changed", "8 of 8 canaries"]),
        ("--model changed.py:wider --check-box true", "logits", ["the box has changed", "(8, 6)"]),
    ],
)
def test_a_defense_in_the_wrong_place_is_refused(
    place: Path, refused, trained: Path, more: str, outputs: str, words: list[str]
) -> None:
    (place / "changed.py").write_text(
        "import numpy as np\nimport box\n"
        "def logits(images):\n    return 2 * box.logits(images)\n"
        "def wider(images):\n    return np.concatenate([box.logits(images)] * 2, axis=1)\n"
    )
    refused(certify(more=f"--defense {trained}/defense {more}", outputs=outputs), *words)
    assert not (place / "out" / "certificates.jsonl").exists()
    assert totals("out/ledger.sqlite")[0] == (8 if "--check-box" in more else 0)


def test_canaries_are_not_paid_for_where_certify_must_fail_anyway(place: Path, refused, trained: Path) -> None:
    refused(certify(more=f"--defense {trained}/defense --check-box true --n 2"), "n = 2")
    assert not (place / "out").exists()


def test_a_defense_without_a_fingerprint_cannot_be_checked(place: Path, run, refused) -> None:
    assert run(train(method="DS", more="--denoise-epochs 1 --epochs 0")).status == 0
    assert totals("run/ledger.sqlite") == (0, 0, 0)
    refused(certify(more="--defense run/defense --check-box true"), "--fingerprint true")


def test_checking_the_box_leaves_the_json_lines_of_predict_alone(run, trained: Path) -> None:
    line = "predict --model box.py:logits --outputs logits --data images.npz --n 20 --limit 2"
    ran = run(f"{line} --defense {trained}/defense --check-box true")
    assert ran.status == 0
    assert [json.loads(text)["idx"] for text in ran.out.splitlines()] == [0, 1]
    assert "canaries" in ran.err


def test_another_sigma_than_the_one_trained_at_is_told(run, trained: Path) -> None:
    note = "the defense was trained at sigma = 0.3, and is smoothed at 0.5\n"
    other = run(certify(more=f"--defense {trained}/defense --sigma 0.5"))
    assert (other.status, note in other.err) == (0, True)
    same = run(certify(out="same", more=f"--defense {trained}/defense --sigma 0.3"))
    assert (same.status, "was trained at" in same.err) == (0, False)
    line = "predict --model box.py:logits --outputs logits --data images.npz --n 20 --limit 1 --sigma 0.5"
    made = run(f"{line} --defense {trained}/defense")
    assert (len(made.out.splitlines()), note in made.err) == (1, True)


@pytest.mark.parametrize(
    ("more", "probes"),
    [("--target 1", 1), ("--target 1 --epochs 14", None), ("--target 0", None)],
)
def test_training_tells_why_no_correction_was_bought(run, more: str, probes: int | None) -> None:
    """Three steps an epoch, and a probe at every twentieth."""
    ran = run(train(more=f"--validate-every 99 {more}"))
    (line,) = [line for line in ran.out.splitlines() if line.startswith("cosine")]
    assert re.search(r"on average over the last epoch: -?\d\.\d\d; \d+\.\d corrections an image", line)
    early = f"below 1, but training ended after {probes} of the 3 probes, one every 20 steps"
    assert (early in line) == (probes is not None)
    assert ("training ended" in line) == (probes is not None)
    assert ("; 0.0 corrections" in line) == (probes is not None or "--target 0" in more)


def test_a_damaged_defense_is_named(place: Path, refused, trained: Path) -> None:
    shutil.copytree(trained / "defense", place / "defense")
    saved = place / "defense" / "defense.safetensors"
    saved.write_bytes(saved.read_bytes()[:-10])
    refused(certify(more="--defense defense"), "defense/defense.safetensors", "cut short")


def test_train_certify_merge_and_report(place: Path, run, trained: Path) -> None:
    defended = f"--defense {trained}/defense"
    whole = run(certify(out="whole", more=f"{defended} --check-box true"))
    assert whole.status == 0
    assert "canaries" in whole.err
    assert "queries spent: 488 (fingerprint 8, certify 480)" in whole.out
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
        assert re.search(rf"<td>{name}</td>.*<td>{100 * share:.1f} \[", page)
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
    assert f"queries spent: {sum(row.queries for row in rows):,} " in resumed.out  # as before: nothing more
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
    line = f"certify --model box.py:logits --outputs logits --data images.npz --sigma {SIGMA} --limit 3"
    assert run(f"{line} --out out").status == 0
    rows = read_rows("out/certificates.jsonl")
    kept = {"name": "e-process", "radii": [SIGMA / 2, SIGMA, 2 * SIGMA], "cap": 100_000}
    assert all(row.rule is not None and kept.items() <= row.rule.items() and row.n0 == 25 for row in rows)
    mean = sum(row.n for row in rows) / len(rows)
    assert mean < 100_000
    assert plan(QueryCost(certify_images=3, pilot="out/certificates.jsonl")).certification == round(3 * (25 + mean))

    assert run(f"{line} --rule fixed --out fixed").status == 0
    assert {(row.n0, row.n, row.rule) for row in read_rows("fixed/certificates.jsonl")} == {(100, 10_000, None)}
    assert run(f"{line} --tolerance 0.5 --n 1000 --out full").status == 0
    full = [row.rule or {} for row in read_rows("full/certificates.jsonl")]
    assert [(rule["radii"], rule["tolerance"], rule["cap"]) for rule in full] == [(None, 0.5, 1000)] * 3


def test_radii_that_n_cannot_certify_are_named_before_the_votes(run) -> None:
    line = f"certify --model box.py:logits --outputs logits --data images.npz --sigma {SIGMA} --limit 3 --n 50"
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
    several = "e-process (r = 0.1): 2 rows; e-process (tolerance 0.5): 3 rows; fixed n: 3 rows; n is the cap of a rule"
    assert shown == [[], ["e-process (r = 0.1), with n as its cap"], [several]]


def test_the_second_class_is_a_setting_of_the_file(place: Path, run) -> None:
    assert run(certify(more="--second-class true")).status == 0
    rows = read_rows("out/certificates.jsonl")
    assert {row.second_class for row in rows} == {True}
    assert certification.replay(rows) == rows
    ran = run(certify())
    assert ran.status == 2
    assert "second_class is True there and False here" in ran.err


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


# --- models, data and options ---------------------------------------------------------------------------------------


def test_predict_prints_one_json_line_an_image(place: Path, run) -> None:
    line = f"predict --model box.py:logits --outputs logits --data images.npz --sigma {SIGMA} --n 50 --seed 4 --limit 3"
    ran = run(line)
    assert ran.status == 0
    assert ran.err == ""
    function = load_model("box.py:logits")
    smoothed = SmoothedClassifier(lambda x: torch.from_numpy(function(x.numpy())), CLASSES, SIGMA)
    wanted = []
    for i, x in enumerate(load_images("images.npz", limit=3).floats()):
        made = smoothed.predict(x, n=50, alpha=0.001, seed=4)
        wanted.append({"idx": i, "predict": made.label, "p_value": made.p_value, "counts": list(made.counts)})
    assert [json.loads(text) for text in ran.out.splitlines()] == wanted
    assert sorted(os.listdir(place)) == ["box.py", "images.npz", "larger.npz", "unlabelled.npz"]  # wrote nothing


def test_the_same_weights_give_the_same_votes_by_file_by_package_and_by_onnx(place: Path, run) -> None:
    from onnx import TensorProto, helper, numpy_helper, save

    (place / "a_package_of_this_test").mkdir()
    (place / "a_package_of_this_test" / "inner.py").write_text("from box import logits\n")
    assert str(place) not in sys.path
    assert run(certify("a_package_of_this_test.inner:logits", "package")).status == 0
    weights = load_model("box.py:WEIGHTS")
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


def test_too_few_classes_in_the_labels_name_the_flag(run, refused) -> None:
    refused(certify(more="--limit 2"), "3 scores", "2 classes", "--num-classes 3")
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
    assert totals("a/ledger.sqlite")[0] == totals("c/ledger.sqlite")[0] == plan(cost).total
    a, b, c = (checkpoints.read(Path(out) / "defense/defense.safetensors")[0] for out in "abc")
    assert checkpoints.tensors_digest(a) == checkpoints.tensors_digest(b)
    frozen = next(name for name in a if "decoder" in name)
    assert not torch.equal(a[frozen], c[frozen])  # the autoencoder, too, starts from the seed


@pytest.mark.parametrize("given", ["--q 0", "--q 2", "--estimator cge", "--estimator cge --central true"])
def test_a_step_that_is_not_given_is_measured_as_query_cost_says(run, given: str) -> None:
    ran = run(train(more=f"{AE} --skip-dead false --mu null {given}", method="ZO-AE-DS"))
    assert ran.status == 0
    planned = f"--train-images {IMAGES} --epochs 1 --train-batch-size 4 --d-z 4 {given}"
    cost = plan(parse("query-cost", QueryCost, shlex.split(planned)))
    assert totals("run/ledger.sqlite")[0] == cost.total
    measured = re.search(r"^mu = \S+, measured with (\d+) queries$", ran.out, re.M)
    assert cost.measuring == (int(measured[1]) if measured else 0)
    assert (measured is None) == (given == "--q 0")


def test_a_saved_autoencoder_is_taken_as_pre_trained(place: Path, run) -> None:
    ours = fitting_autoencoder((1, 4, 4), d_z=4)
    save_autoencoder(ours, "ours")
    assert run(train(more="--autoencoder ours --scheme denoiser", method="ZO-AE-DS")).status == 0
    assert not (place / "run" / "training" / "autoencoder").exists()
    tensors, facts = checkpoints.read("run/defense/defense.safetensors")
    assert facts["modules"]["autoencoder"] == ours.spec
    assert checkpoints.tensors_digest(checkpoints.under("autoencoder", tensors)) == checkpoints.module_digest(ours)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--autoencoder ours --d-z 4", ["d_z is 4", "saved in ours"]),
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


# --- help and examples ----------------------------------------------------------------------------------------------


def squeezed(text: str) -> str:
    """Without white space: help breaks lines where it likes."""
    return "".join(text.split())


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_explains_every_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([name, "--help"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    usage, _, body = shown.partition("\n\n")
    for item in fields(COMMANDS[name].options):
        place = {"files": "FILE", "table": "TABLE"}.get(item.name)
        flag = place or f"--{item.name.replace('_', '-')}"
        assert re.search(rf"^  {re.escape(flag)}\b", body, re.MULTILINE), flag
        assert squeezed(item.metadata["help"]) in squeezed(body)
        assert (flag in usage) == (item.default is MISSING)
    assert "Literal" not in shown
    assert "null" not in shown.replace("A null class", "")


def test_help_lists_every_command_with_its_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for arguments in ([], ["-h"], ["--help"]):
        assert main(arguments) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] == shown[2]
    alone = {name: command.purpose for name, command in COMMANDS.items() if " " not in name}
    assert not [line for line in shown[0].splitlines() if line.startswith("  paper") and len(line) > 100]
    for name, purpose in (alone | GROUPS).items():
        assert re.search(rf"^  {name} +{re.escape(purpose)}$", shown[0], re.M)
    assert main(["--version"]) == 0
    assert re.fullmatch(r"certibox \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_help_of_the_group_lists_its_commands_with_their_purposes(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for arguments in (["paper"], ["paper", "-h"], ["paper", "--help"]):
        assert main(arguments) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] == shown[2]
    assert shown[0].startswith("usage: certibox paper COMMAND [OPTIONS]\n")
    assert max(map(len, shown[0].splitlines())) <= 100
    for name in ("paper list", "paper run", "paper report"):
        assert squeezed(name + COMMANDS[name].purpose) in squeezed(shown[0])
        assert name.removeprefix("paper ") in GROUPS["paper"]


@pytest.mark.parametrize("word", ["nonsense", "--scale", "list run"])
def test_a_word_that_the_group_does_not_know_is_one_line_with_those_it_does(
    capsys: pytest.CaptureFixture[str], word: str
) -> None:
    assert main(["paper", word, "more"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    wanted = "wanted one of paper list, paper run, paper report"
    assert printed.err == f"certibox paper {word}: there is no command 'paper {word}'; {wanted}\n"


def test_words_of_a_group_reach_its_command(run) -> None:
    ran = run("paper list --experiments nowhere")
    assert (ran.status, ran.out) == (2, "")
    assert ran.message.startswith("certibox paper list: nowhere holds no setups.yaml")
    ran = run("paper run")
    assert (ran.status, ran.out) == (2, "")
    assert ran.message.startswith("certibox paper run: table not given")


def command_lines(text: str) -> list[list[str]]:
    """The `certibox ...` commands of a text, each as argv without the program."""
    found = re.findall(r"^(?:example: )?certibox (\S.*)$", text.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in found]


def published(page: str) -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    return [argv for block in blocks for argv in command_lines(block)]


def examples() -> list[list[str]]:
    """Every command line that the help and the pages for newcomers show."""
    helped = [argv for command in COMMANDS.values() for argv in command_lines(inspect.getdoc(command.options) or "")]
    return helped + published("README.md") + published("examples/README.md")


@pytest.mark.parametrize("argv", examples(), ids=" ".join)
def test_published_command_lines_are_understood(monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
    monkeypatch.chdir(ROOT)
    words = 2 if argv[0] in GROUPS else 1
    name = " ".join(argv[:words])
    options = COMMANDS[name].options
    made = parse(name, options, argv[words:])
    given = {word[2:].replace("-", "_") for word in argv if word.startswith("--")} - {"config"}
    assert given <= {item.name for item in fields(options)}
    assert all(getattr(made, name) is not None for name in given)
    require_effect(made, given)


def test_the_worked_example_runs(place: Path, run) -> None:
    """The commands of examples/README.md in their order, with less of everything."""
    shutil.copytree(ROOT / "examples", place / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    smaller = {
        "train": "--limit 30 --autoencoder-epochs 1 --denoise-epochs 1 --epochs 1 --train-batch-size 16",
        "certify": "--limit 4 --n0 10 --n 40",
    }
    lines = published("examples/README.md")
    assert [argv[0] for argv in lines] == ["query-cost", "train", "certify", "certify", "report", "query-cost"]
    printed = []
    for argv in lines:
        ran = run(f"{shlex.join(argv)} {smaller.get(argv[0], '')}")
        assert (ran.status, ran.err.count("certibox")) == (0, 0)
        printed.append(ran.out)
    # 1,000 targets; 256 for mu, 80 for each of 3 probes; 900 images, 3 epochs; 100 held out, 4 votes, 4 scores;
    # 100 certificates of 1,025
    assert re.search(r"total .* 108,296 .* 108\.30", printed[0])
    assert "worst case" in printed[0]
    for out in ("bare", "certified"):
        rows = read_rows(f"runs/example/{out}/certificates.jsonl")
        assert [(row.queries <= 50, row.cap) for row in rows] == [(True, 40)] * 4
    assert (place / "runs/example/report/report.html").is_file()
    assert "estimation votes an image (standard error" in printed[-1]


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(place: Path) -> None:
    line = f"predict --model box.py:logits --outputs logits --data images.npz --sigma {SIGMA} --n 20000"
    command = [sys.executable, "-m", "certibox.cli", *shlex.split(line)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=place, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["idx"] == 0
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141

"""What the command line declares of a box is what Python declares; what does not fit is refused before a query."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from certibox.blackbox import as_blackbox
from certibox.commands.arguments import parse
from certibox.commands.certifying import Certify
from command_line import certify, totals

PREDICT = "predict --outputs logits --data images.npz --sigma 1 --n 20"
DECLARED = [
    ("--layout NHWC", {"layout": "NHWC"}),
    ("--layout flat --dtype float64", {"layout": "flat", "dtype": "float64"}),
    ("--dtype uint8", {"dtype": "uint8"}),
    ("--mean [0.5] --std [.25]", {"mean": (0.5,), "std": (0.25,)}),
    ("--image-shape [1,4,4] --concurrency 2", {"image_shape": (1, 4, 4), "concurrency": 2}),
    ("--clip false", {"clip": False}),
    ("--clip true --levels 16", {"clip": True, "levels": 16}),
    ("--output-key scores --max-batch 3 --batch-size 2", {"output_key": "scores", "max_batch": 3, "batch_size": 2}),
    ("--input-range [0,255] --num-classes 3", {"input_range": (0, 255), "num_classes": 3}),
]


@pytest.mark.parametrize(("flags", "python"), DECLARED, ids=lambda value: str(value)[:30])
def test_flags_declare_what_python_declares(place: Path, flags: str, python: dict) -> None:
    words = f"--model box.py:logits --outputs logits --data d --out o --name mine {flags}"
    made = parse("certify", Certify, shlex.split(words)).box()
    wanted = as_blackbox(lambda x: x, outputs="logits", name="mine", identity=made.spec.identity, **python)
    assert made.spec == wanted.spec


def test_one_number_is_the_mean_of_all_channels(place: Path) -> None:
    flags = "--model box.py:logits --outputs logits --data d --out o --mean [.5] --std [.1,.2,.3]"
    spec = parse("certify", Certify, shlex.split(flags)).box(channels=3).spec
    assert (spec.mean, spec.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))


def test_a_box_that_takes_channels_last_gets_them_last(place: Path, run) -> None:
    Path("m.py").write_text("import box\ndef f(x):\n    assert x.shape[1:] == (4, 4, 1)\n    return box.logits(x)\n")
    assert run(f"{PREDICT} --model m.py:f --layout NHWC").out == run(f"{PREDICT} --model box.py:logits").out != ""


def test_a_torch_module_is_said_to_see_pixels_beyond_the_range(place: Path, run) -> None:
    Path("m.py").write_text("import torch\nnet = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))\n")
    line = f"{PREDICT} --model m.py:net --limit 1 --num-classes 3 --split train"
    assert run(line).err.count("the box sees pixels as noise") == 1
    for more in ("--clip true", "--levels 256"):
        assert run(f"{line} {more}").err == ""
    assert run(f"{line} --clip true --device cpu").status == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--layout NWHC", ["layout is 'NWHC'", "did you mean NHWC"]),
        ("--dtype int8", ["dtype is 'int8'", "uint8"]),
        ("--mean [.1,.2]", ["1 channels", "has 2"]),
        ("--std [0]", ["std is (0.0,)"]),
        ("--image-shape [3,4,4]", ["(1, 4, 4)", "(3, 4, 4)"]),
        ("--output-name y", ["output", "files and servers of models"]),
        ("--device warp", ["device is 'warp'", "wanted cpu"]),
        ("--concurrency 0", ["concurrency is 0"]),
        ("--out images.npz", ["images.npz"]),
        ("--out images.npz/deeper", ["images.npz"]),
        ("--limit 1", ["--num-classes K"]),
        ("--seed -1", ["seed is -1; wanted at least 0"]),
        (f"--seed {2**64}", ["seed is 18446744073709551616", "at most"]),
        ("--n 10000000000", ["n is 10000000000; wanted at most"]),
        ("--noise-batch-size 0", ["--noise-batch-size is 0"]),
        ("--sigma inf", ["sigma is 'inf'"]),
        ("--defense .", ["defense.safetensors", "box.py"]),
    ],
)
def test_what_cannot_be_is_refused_without_a_query(place: Path, refused, more: str, words: list[str]) -> None:
    refused(certify(more=more), *words)
    if Path("out/ledger.sqlite").exists():
        assert totals("out/ledger.sqlite") == (0, 0, 0)


def test_the_directory_of_a_run_stands_for_its_defense(place: Path, run, trained: Path) -> None:
    line = "predict --model box.py:logits --outputs logits --data images.npz --n 20 --limit 1"
    assert run(f"{line} --defense {trained}").out == run(f"{line} --defense {trained}/defense").out != ""


def test_a_file_that_defines_a_box_has_declared_it_already(place: Path, run, refused) -> None:
    Path("m.py").write_text("import box, certibox as cb\nmine = cb.as_blackbox(box.logits, 'logits', name='mine')\n")
    assert run(f"{PREDICT} --model m.py:mine").out == run(f"{PREDICT} --model box.py:logits").out != ""
    refused(f"{PREDICT} --model m.py:mine --levels 256", "levels given for box mine")


def test_lines_name_the_file_of_an_image_that_had_one(run, monkeypatch: pytest.MonkeyPatch) -> None:
    from certibox.commands import certifying

    class Named:
        """Images with the names of their files."""

        def __init__(self, images) -> None:
            self._images, self.files = images, tuple(f"{i}.png" for i in range(len(images)))

        def __len__(self) -> int:
            return len(self._images)

        def __getattr__(self, name: str):
            return getattr(self._images, name)

    load = certifying._images
    monkeypatch.setattr(certifying, "_images", lambda options: Named(load(options)))
    lines = [json.loads(line) for line in run(f"{PREDICT} --model box.py:logits").out.splitlines()]
    assert [line["file"] for line in lines] == [f"{i}.png" for i in range(12)]
    assert all(sum(line["counts"]) + 5 == line["queries"] <= 25 for line in lines)

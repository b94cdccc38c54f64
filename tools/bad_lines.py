"""Command lines that are wrong in one place, for `bad_input.py`: bad values of every option, and bad models."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from bad_boxes import HEAD, boxes
from certibox.cli import COMMANDS

LARGE = "9" * 400
BOX = "--model box.py:logits --outputs logits --data images.npz"
CERTIFY = "--sigma 0.3 --rule fixed --n0 10 --n 30 --limit 3 --num-classes 3"
TRAIN = "--sigma 0.3 --gamma 1 --epochs 1 --denoise-epochs 1 --train-batch-size 4"
LINES = {  # a line of each command that is right, to which one wrong option is added
    "train": f"{BOX} {TRAIN} --method ZO-DS --estimator rge --mu 0.1 --out new",
    "certify": f"{BOX} {CERTIFY} --out new",
    "predict": f"{BOX} --sigma 0.3 --n 20 --limit 1 --num-classes 3",
    "report": "done/certificates.jsonl --out new",
    "merge": "done/certificates.jsonl --out new.jsonl",
    "query-cost": "--train-images 99 --epochs 1 --method ZO-DS --estimator rge --d-z 16 --certify-images 5 --sigma 0.3",
    "import-authors": "--encoder images.npz --decoder images.npz --out new",
    "paper list": "",
    "paper run": "table1 --scale cpu --data images",
}
VALUES: dict[Any, tuple[str, ...]] = {
    int: ("x", "1.5", "-1", LARGE, "1e400", "", "nan"),
    float: ("abc", "nan", "inf", "-inf", "-1", "1e999", "5e-324", "1e300", ""),
    bool: ("maybe", "2", ""),
    list[float]: ("[", "[nan]", "[-1]", "x", "{a: 1}", "[[1]]", "[inf]", "[1, 1e308]"),
    list[str]: ("nowhere.jsonl", "[", "images.npz"),
}
PLACES = ("fifo", "link", "notes.txt", "notes.txt/below", "socket", "box.py", "a\x1b[31mb", "[/b]", "x" * 300)
TEXTS: dict[str, tuple[str, ...]] = {
    "model": (
        "nowhere.py:f",
        "box.py",
        "box.py:",
        "box.py:nothing",
        "box.py:number",
        "box.py:text",
        "math:pi",
        "no.such:f",
        "images.npz",
        "empty.onnx",
        "notes.onnx",
        "fifo.onnx",
        "box.py:logits.nothing",
        "box.py:Model",
        "",
        ":",
        "fifo.py:f",
        "weights.pt",
        "weights.pkl",
        "weights.joblib",
        "weights.h5",
        "weights.safetensors",
        "http://host/x",
        "[/b].py:f",
        "box.py:logits()",
        "empty.tflite",
        "images:f",
        "box.PY:logits",
        "~/box.py:f",
    ),
    "data": (
        "nowhere",
        "nowhere.npz",
        "box.py",
        "notes.txt",
        "empty",
        "texts",
        "broken",
        "mixed",
        "fifo",
        "bad.npz",
        "objects.npz",
        "named.npz",
        "nan.npz",
        "splits.npz",
        "keys.npz",
        "loose",
        "none.parquet",
        "large.npz",
        "sixteen.npz",
        "flat.npz",
        "bomb.npy",
        "bad.parquet",
        "text.parquet",
        "outside.parquet",
        "digit",
        "",
        "org/name",
        "socket",
        "loop",
        "[/b]",
        "video.npz",
        "negative.npz",
        "cmyk",
        "two.npz",
        "torn.npz",
        "huge.png",
    ),
    "split": ("nope", "", "train:2", "train:x", "train:-0.5", "train:nan", ":0.5", "test:0", "[/b]"),
    "defense": ("nowhere", "images.npz", "done", "empty", "torn-defense", "", "fifo", "notes.txt"),
    "autoencoder": ("nowhere", "ae-49", "done", "empty", "", "images.npz"),
    "ledger": ("notes.txt", "foreign.sqlite", "zero.sqlite", "fifo", "empty", "link", "images.npz"),
    "out": PLACES,
    "shard": ("0/2", "3/2", "1", "a/b", "1/0", "99/99", "-1/2", "1/2/3", "1/" + LARGE),
    "q": ("x", "-1", "1.5", "0", LARGE, "nan", ""),
    "mu": ("x", "-1", "0", "nan", "inf", ""),
    "title": ("[/b]", "<script>alert(1)</script>", "\x1b[31m", ""),
    "pilot": ("nowhere", "notes.txt", "images.npz", "done", "raised.jsonl", "one.tsv", "empty"),
    "image_column": ("nope", ""),
    "label_column": ("nope", ""),
    "configuration": ("nope", ""),
    "device": ("cuda", "cuda:7", "gpu", "", "mps"),
    "name": ("[/b]", "", "a\x1b[31mb"),
    "input_name": ("nope",),
    "output_name": ("nope",),
    "output_key": ("nope", "7"),
    "files": (
        "nowhere.jsonl",
        "notes.txt",
        "images.npz",
        "empty",
        "fifo",
        "done",
        "raised.jsonl",
        "radius.jsonl",
        "nan.jsonl",
        "index.jsonl",
        "votes.jsonl",
        "rule.jsonl",
        "radii.jsonl",
        "deep.jsonl",
        "digits.jsonl",
        "latin.jsonl",
        "one.tsv",
        "bad.tsv",
        "=",
        "=done/certificates.jsonl",
        "a=",
        "../x=done/certificates.jsonl",
        "[/b]=done/certificates.jsonl",
        "a/b=done/certificates.jsonl",
        "\x1b[31m=done/certificates.jsonl",
        "",
    ),
    "experiments": ("nowhere", "[/b]"),
    "work": (),
    "tables": ("table99", "", "[/b]"),
    "scale": ("nope", ""),
    "encoder": ("nowhere", "notes.txt", "fifo", "box.py"),
    "decoder": ("nowhere", "notes.txt", "fifo"),
}
CONFIGS = (
    "nowhere.yaml",
    "notes.txt",
    "images.npz",
    "empty",
    "fifo",
    "bomb.yaml",
    "tag.yaml",
    "unknown.yaml",
    "typo.yaml",
    "list.yaml",
    "text.yaml",
    "twice.yaml",
    "deep.yaml",
    "wrong.yaml",
    "latin.yaml",
    "self.yaml",
)
WORDS = (  # whole lines that are no command
    "", "nope", "trian --x", "--nope", "certify", "paper", "paper nope", "certify --sigm 0.3", "certify extra words",
    "train --train", "paper run", "merge", "report", "[/b]", "certify --", "certify -x", "predict --config",
    "--version --help",
    "certify --help --nope", "train --print-config nope", "\x1b[31m",
    "demo --images x", "demo --out fifo", "demo --out notes.txt", "demo --out link", "demo --seed x",
    "demo --images -1",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One command line, the value in it that is wrong, and whether it should be taken (None: either is right)."""

    name: str
    arguments: tuple[str, ...]
    value: str = ""
    good: bool | None = None
    source: str = ""


def invocations() -> Iterator[Case]:
    """Lines with one wrong value, from the options of every command."""
    for name, command in COMMANDS.items():
        if name not in LINES:
            continue
        options, _ = command.load()
        hints = get_type_hints(options)
        base = shlex.split(LINES[name])
        for item in fields(options):
            if name == "import-authors" and item.name != "encoder":
                continue  # without a release, the encoder is what is wrong
            for value in _wrong(item.name, hints[item.name]):
                if item.metadata.get("positional"):
                    line = [*name.split(), value, *[word for word in base if not _is_place(word)]]
                else:
                    flag = f"--{item.name.replace('_', '-')}"
                    right = [word for word in base if item.name != "pilot" or word not in ("--sigma", "0.3")]  # its own
                    line = [*name.split(), *right, *([f"{flag}={value}"] if value[:1] == "-" else [flag, value])]
                yield Case(f"{name} {item.name} {_short(value)}", tuple(line), value)
        if name in ("train", "certify", "query-cost"):
            for file in CONFIGS:
                yield Case(f"{name} config {file}", (name, *base, "--config", file), file)
        for item in fields(options):  # without each option that is required
            flag = f"--{item.name.replace('_', '-')}"
            if item.default is MISSING and not item.metadata.get("positional") and flag in base:
                at = base.index(flag)
                yield Case(f"{name} without {flag}", (*name.split(), *base[:at], *base[at + 2 :]), flag)
    for line in WORDS:
        yield Case(f"line {_short(line)}", tuple(shlex.split(line)))


def _is_place(word: str) -> bool:
    """Whether a word of the reports' lines is the file that a wrong one stands in for."""
    return word == "done/certificates.jsonl" or word == "table1"


def _wrong(name: str, hint: Any) -> Sequence[str]:
    """Values that an option cannot have, or hardly."""
    if name in TEXTS:
        return TEXTS[name]
    plain = hint
    if type(None) in get_args(hint):
        plain = next(part for part in get_args(hint) if part is not type(None))
    if get_origin(plain) is Literal:
        known = str(get_args(plain)[0])
        return ("nope", "", known[:-1], known.swapcase() + "x")
    return VALUES.get(plain, ("[/b]",))


def models() -> Iterator[Case]:
    """A command line for each bad model."""
    for number, box in enumerate(boxes()):
        model = f"--model wrong{number}.py:box --outputs {box.outputs} --data images.npz"
        line = f"certify {model} {CERTIFY} --out new {box.more}"
        yield Case(f"box {box.name}", tuple(shlex.split(line)), "", box.good, HEAD + box.source)


def _short(value: str) -> str:
    return repr(value[:30])

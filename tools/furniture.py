"""What `bad_input.py` puts into a folder: images, a good model, a certified run, and files that are broken."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import sqlite3
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BOX = """
import numpy as np

WEIGHTS = np.cos(np.arange(48) * 0.9).reshape(16, 3).astype(np.float32) * 3


def logits(images):
    return images.reshape(len(images), -1) @ WEIGHTS


number = 3
text = "scores"


class Model:
    pass
"""
YAMLS = {
    "bomb.yaml": "a: &a [1,1,1,1,1,1,1,1,1]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)),
    "tag.yaml": "sigma: !!python/object/apply:os.system ['true']\n",
    "unknown.yaml": "colour: red\n",
    "typo.yaml": "sgima: 0.25\n",
    "list.yaml": "- sigma\n- 0.25\n",
    "text.yaml": "just words\n",
    "twice.yaml": "sigma: 0.25\nsigma: 0.5\n",
    "deep.yaml": "sigma: " + "[" * 5000 + "]" * 5000 + "\n",
    "wrong.yaml": "sigma: [a\n",
    "self.yaml": "sigma: &a [*a]\n",
}


def furnish_files(place: Path) -> None:
    """All but what is no regular file.

    Args:
        place: Folder to write into.
    """
    pixels = (np.arange(12 * 16).reshape(12, 1, 4, 4) * 37 % 256).astype(np.uint8)
    labels = np.arange(12) % 3
    (place / "box.py").write_text(BOX, encoding="utf-8")
    (place / "notes.txt").write_text("notes that nobody may replace\n", encoding="utf-8")
    for name in ("empty", "texts", "broken", "mixed", "cmyk", "images", "outside"):
        (place / name).mkdir()
    np.savez(place / "images.npz", images=pixels, labels=labels)
    np.savez(place / "binary.npz", images=pixels, labels=np.arange(12) % 2)
    _arrays(place, pixels, labels)
    _pictures(place, pixels)
    _tables(place)
    for name, text in YAMLS.items():
        (place / name).write_text(text, encoding="utf-8")
    (place / "latin.yaml").write_bytes("sigma: 0.25 # größer\n".encode("latin-1"))
    for suffix in ("onnx", "tflite"):
        (place / f"empty.{suffix}").write_bytes(b"")
    (place / "notes.onnx").write_text("no graph\n", encoding="utf-8")
    for suffix in ("pt", "pkl", "joblib", "h5", "safetensors"):
        (place / f"weights.{suffix}").write_bytes(b"\x80\x04weights")
    (place / "zero.sqlite").write_bytes(b"")
    with contextlib.closing(sqlite3.connect(place / "foreign.sqlite")) as foreign:
        foreign.execute("CREATE TABLE bookmarks (url TEXT)")
        foreign.commit()
    _certify(place)
    _rows(place)
    (place / "torn-defense").mkdir()
    (place / "torn-defense" / "defense.safetensors").write_bytes(b"\x08\x00\x00")


def _arrays(place: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    """Archives of arrays with one thing wrong each."""
    wrong: dict[str, dict[str, Any]] = {
        "named": {"pictures": pixels},
        "nan": {"images": np.full((4, 1, 4, 4), np.nan)},
        "large": {"images": pixels * 4.0},
        "sixteen": {"images": (pixels // 16).astype(np.float64)},
        "flat": {"images": pixels.reshape(12, 16)},
        "video": {"images": pixels[None, ...]},
        "negative": {"images": pixels, "labels": labels - 1},
        "two": {"images": pixels, "labels": labels[:5]},
        "splits": {"x_train": pixels, "y_train": labels},
        "keys": {"images": pixels, "labels": labels.astype(np.uint64) + 2**63},
    }
    for name, arrays in wrong.items():
        np.savez(place / f"{name}.npz", **arrays)
    np.savez(place / "objects.npz", images=np.array([object()], dtype=object), allow_pickle=True)
    (place / "bad.npz").write_bytes(b"PK\x03\x04 and no more")
    (place / "torn.npz").write_bytes((place / "images.npz").read_bytes()[:300])
    with (place / "bomb.npy").open("wb") as file:  # a header that promises a terabyte
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (1 << 20, 1, 1000, 1000)}
        )


def _pictures(place: Path, pixels: np.ndarray) -> None:
    """Folders of images with one thing wrong each."""
    for i, image in enumerate(pixels):
        Image.fromarray(image[0]).save(place / "images" / f"{i}.png")
    for name in ("texts", "broken"):
        (place / name / "a.txt").write_text("no image\n", encoding="utf-8")
    (place / "broken" / "a.png").write_bytes(b"\x89PNG and no more")
    Image.new("L", (4, 4)).save(place / "mixed" / "a.png")
    Image.new("L", (5, 4)).save(place / "mixed" / "b.png")
    Image.new("F", (4, 4)).save(place / "cmyk" / "a.tiff")
    Image.new("1", (40_000, 40_000)).save(place / "huge.png")
    for name in ("a/0.png", "b/1.png", "2.png"):
        (place / "loose" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(place / "loose" / name)
    (place / "loop").mkdir()
    (place / "loop" / "again").symlink_to("..")


def _tables(place: Path) -> None:
    """Parquet files with one thing wrong each."""
    import pyarrow as pa
    from pyarrow import parquet

    (place / "bad.parquet").write_bytes(b"PAR1 and no more")
    parquet.write_table(pa.table({"text": ["a", "b"]}), place / "text.parquet")
    parquet.write_table(pa.table({"image": pa.array([], pa.binary())}), place / "none.parquet")
    cells = [{"bytes": None, "path": str(place / "images" / "0.png")}, {"bytes": None, "path": "../box.py"}]
    parquet.write_table(pa.table({"image": cells}), place / "outside.parquet")


def _certify(place: Path) -> None:
    """One certified run, in `done`."""
    from certibox.cli import main

    box = "--model box.py:logits --outputs logits --num-classes 3 --data images.npz"
    line = f"certify {box} --sigma 0.3 --n 300 --limit 3 --out done"
    here, path = os.getcwd(), list(sys.path)
    os.chdir(place)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert main(shlex.split(line)) == 0
    finally:
        os.chdir(here)
        sys.path[:] = path


def _rows(place: Path) -> None:
    """The rows of that run with one thing changed in each file."""
    lines = (place / "done" / "certificates.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[0])
    rule = row["rule"]
    changes: dict[str, dict[str, Any]] = {
        "raised": {"p_lower": 0.999, "radius": 0.9},
        "radius": {"radius": 99.0, "rule": None, "looks": None},
        "nan": {"seconds": float("nan")},
        "index": {"idx": -7},
        "votes": {"counts": [*row["counts"], 0, 0]},
        "rule": {"rule": {key: value for key, value in rule.items() if key != "name"}},
        "radii": {"rule": rule | {"radii": [0.3, "x", -1]}},
    }
    for name, change in changes.items():
        text = "\n".join([json.dumps(row | change), *lines[1:]]) + "\n"
        (place / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (place / "deep.jsonl").write_text("[" * 100_000 + "\n" + lines[0] + "\n", encoding="utf-8")
    (place / "digits.jsonl").write_text(lines[0].replace('"idx": 0', '"idx": ' + "9" * 5000) + "\n", encoding="utf-8")
    (place / "latin.jsonl").write_bytes("größer\n".encode("latin-1"))
    (place / "one.tsv").write_text(
        "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t0.5\t1\t0:00:01\n", encoding="utf-8"
    )
    (place / "bad.tsv").write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\tx\t1\tnan\t1\n", encoding="utf-8")

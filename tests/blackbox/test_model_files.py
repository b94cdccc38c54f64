"""What the sizes in a file declare, and which paths are opened at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from certibox.blackbox import MODEL_FILES, as_blackbox
from certibox.blackbox.model_files import (
    ELSEWHERE,
    MOST_BYTES,
    ImageInput,
    advice_on,
    agreed_type,
    classes_of,
    fits,
    require_model_file,
    settled,
    shown,
    sizes,
)
from certibox.errors import InvalidInput, UnreadableFile


def test_names_zeros_and_minus_one_are_free_sizes() -> None:
    assert sizes(["n", 3, None, 0, -1, 32]) == (None, 3, None, None, None, 32)
    assert sizes([]) == sizes(None) == ()
    assert shown((None, 3, None, 4)) == "(n, 3, ?, 4)"
    assert (shown((None,)), shown((1, 2)), shown(None)) == ("(n,)", "(1, 2)", "of any shape")


@pytest.mark.parametrize(
    ("shape", "declared", "fixed"),
    [
        ((None, 3, 8, 9), {}, {"layout": "NCHW", "takes": (3, 8, 9), "image_shape": (3, 8, 9)}),
        ((None, 3, None, None), {}, {"layout": "NCHW", "takes": (3, None, None)}),
        ((4, 8, 9, 3), {"layout": "NHWC"}, {"layout": "NHWC", "takes": (8, 9, 3), "image_shape": (3, 8, 9)}),
        ((None, None, None, 3), {"layout": "NHWC"}, {"layout": "NHWC", "takes": (None, None, 3)}),
        ((None, 8, 9, 3), {"image_shape": (8, 9, 3)}, {"layout": "NCHW", "takes": (8, 9, 3), "image_shape": (8, 9, 3)}),
        ((None, 8, 9), {}, {"layout": "NCHW", "takes": (1, 8, 9), "image_shape": (1, 8, 9)}),
        ((1, None, 9), {"layout": "NHWC"}, {"layout": "NCHW", "takes": (1, None, 9)}),
        ((None, 216), {}, {"layout": "flat", "takes": (216,)}),
        ((None, None), {"layout": "flat"}, {"layout": "flat", "takes": (None,)}),
        ((None, 216), {"layout": "NHWC"}, {"layout": "flat-NHWC", "takes": (216,)}),
        ((None, 216), {"layout": "flat-NHWC"}, {"layout": "flat-NHWC", "takes": (216,)}),
        (None, {"layout": "NHWC"}, {}),
    ],
)
def test_sizes_declare_the_layout_and_what_they_fix(
    shape: tuple[int | None, ...] | None, declared: dict[str, Any], fixed: dict[str, Any]
) -> None:
    assert ImageInput("input x of m", shape).fixed(declared) == fixed


@pytest.mark.parametrize(
    ("shape", "declared", "message"),
    [
        (
            (None, 8, 9, 3),
            {},
            r"input x of m is \(n, 8, 9, 3\), .* give layout='NHWC' \(--layout NHWC\)",
        ),
        ((1, 28, 28, 1), {}, r"layout='NHWC' \(--layout NHWC\), or image_shape=\(28, 28, 1\)"),
        ((None, 3, 8, 9), {"layout": "flat"}, r"layout is 'flat', but input x of m is \(n, 3, 8, 9\); give 'NCHW'"),
        ((3, 8, 9), {}, r"input x of m is \(3, 8, 9\); give a model of \(n, channels, height, width\)"),
        ((None,), {}, r"input x of m is \(n,\); give a model"),
        ((1, 3, 2, 8, 9), {}, r"input x of m is \(1, 3, 2, 8, 9\); give a model"),
    ],
)
def test_sizes_that_hold_no_images_or_another_layout_are_refused(
    shape: tuple[int | None, ...], declared: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        ImageInput("input x of m", shape).fixed(declared)


@pytest.mark.parametrize(
    ("outputs", "shape", "batch", "classes"),
    [
        ("logits", (None, 5), None, 5),
        ("probabilities", (None, 1), None, 2),
        ("probabilities", (None,), None, 2),
        ("probabilities", (1,), 1, 2),
        ("logits", (10,), 1, 10),  # (K,) for the one image
        ("logits", (10,), 10, 2),  # a score for each of ten images
        ("logits", (None, None), None, None),
        ("logits", None, None, None),
        ("labels", (None,), None, None),
        ("values", (None, 5), None, None),
    ],
)
def test_the_classes_of_an_output(
    outputs: str, shape: tuple[int | None, ...] | None, batch: int | None, classes: int | None
) -> None:
    assert classes_of(outputs, shape, batch) == classes


def test_which_shapes_fit_which_answers() -> None:
    shapes = [None, (None,), (None, 1), (None, 5), (None, 5, 1, 1)]
    assert [fits("logits", shape) for shape in shapes] == [True, True, True, True, False]
    assert [fits("labels", shape) for shape in shapes] == [True, True, True, False, False]
    assert all(fits("values", shape) for shape in shapes)


def test_what_a_file_fixes_agrees_with_what_was_given() -> None:
    fixed = {"layout": "flat", "num_classes": 5, "image_shape": (1, 2, 2)}
    given = {"layout": "NCHW", "name": "mine", "image_shape": [1, 2, 2]}
    assert settled(given, fixed, "m.onnx") == fixed | {"name": "mine"}
    with pytest.raises(InvalidInput, match=r"num_classes is 4; m.onnx fixes it to 5"):
        settled({"num_classes": 4}, fixed, "m.onnx")
    assert agreed_type({"dtype": "float32", "clip": True}, "float32", "m.onnx") == {"clip": True}
    with pytest.raises(InvalidInput, match=r"dtype is 'uint8', but m.onnx takes float32; leave dtype out"):
        agreed_type({"dtype": "uint8"}, "float32", "m.onnx")


@pytest.mark.parametrize("suffix", MODEL_FILES)
def test_what_is_no_file_is_refused_unopened(suffix: str, tmp_path: Path) -> None:
    empty, folder, pipe, large = (tmp_path / f"{name}{suffix}" for name in ("empty", "folder", "pipe", "large"))
    empty.touch()
    folder.mkdir()
    os.mkfifo(pipe)  # would wait for a writer
    large.touch()
    os.truncate(large, MOST_BYTES)  # of holes
    refused = {
        tmp_path / f"missing{suffix}": "no file .*missing",
        tmp_path / f"{'a' * 300}{suffix}": "no file .*aaa",
        tmp_path / f"a\0{suffix}": "no file",
        empty: "empty.* has 0 bytes",
        folder: "folder.* is a directory",
        pipe: "pipe.* is a pipe",
        large: "large.* has 2.0 GiB; .* less than 2 GiB",
    }
    for path, message in refused.items():
        for given in (path, str(path)):
            with pytest.raises(UnreadableFile, match=message) as error:
                as_blackbox(given, "logits")
            assert "\n" not in str(error.value)
    (tmp_path / "one").write_bytes(b"1")
    require_model_file(tmp_path / "one", "a model")


@pytest.mark.parametrize("suffix", sorted(ELSEWHERE))
def test_other_files_of_models_get_advice_and_are_not_opened(suffix: str) -> None:
    name = f"m{suffix.upper()}"
    with pytest.raises(InvalidInput, match=rf"model is '{name}', .* write a Python file .*--model file.py:function"):
        as_blackbox(name, "logits")


def test_files_that_are_known_or_no_models_get_no_advice() -> None:
    assert [advice_on(name) for name in ("m.onnx", "m.tflite", "notes.txt", "m", "")] == [None] * 5
    with pytest.raises(InvalidInput, match=r"model is 'notes.txt'; give .* a file that ends in .onnx or .tflite"):
        as_blackbox("notes.txt", "logits")

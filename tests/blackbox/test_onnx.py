"""The linear map as ONNX files of every form, and the files that are no such thing."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from certibox.blackbox import BoxSpec, as_blackbox, check_outputs
from certibox.errors import BadOutput, InvalidImages, InvalidInput, UnreadableFile
from file_makers import (
    CLASSES,
    PIXELS,
    SHAPE,
    info,
    linear_map,
    linear_onnx,
    onnx_with_weights_elsewhere,
    write_onnx,
)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(7, *SHAPE, generator=torch.Generator().manual_seed(0))


def logits(flat: Tensor) -> Tensor:
    weight, bias = linear_map()
    return flat @ weight.T + bias


# Sizes and layouts


def test_a_file_declares_what_it_fixes(tmp_path: Path) -> None:
    dynamic = linear_onnx(tmp_path / "dynamic.onnx", shape=(2, "h", None))
    identity = hashlib.sha256(dynamic.read_bytes()).hexdigest()
    wanted = BoxSpec(
        "logits", num_classes=CLASSES, clip=True, name="dynamic.onnx", identity=identity, takes=(2, None, None)
    )
    assert as_blackbox(str(dynamic), "logits").spec == wanted
    fixed = linear_onnx(tmp_path / "fixed.onnx", batch=4)
    spec = as_blackbox(fixed, "logits").spec
    assert (spec.image_shape, spec.num_classes, spec.max_batch, spec.batch_size) == (SHAPE, CLASSES, 4, 4)
    assert as_blackbox(fixed, "logits", max_batch=2).spec.max_batch == 2
    for field, value in {"image_shape": (2, 4, 3), "num_classes": 4}.items():
        with pytest.raises(InvalidInput, match=f"{field} is .*; .*fixed.onnx fixes it to"):
            as_blackbox(fixed, "logits", **{field: value})


def test_what_the_sizes_say_is_no_part_of_what_a_box_is(tmp_path: Path) -> None:
    spec = as_blackbox(linear_onnx(tmp_path / "m.onnx", shape=(2, "h", "w")), "logits").spec
    assert "takes" not in spec.provenance()


@pytest.mark.parametrize("batch", [0, None, "n", ""])
@pytest.mark.parametrize("shape", [SHAPE, (2, 0, 4), ("c", "h", "w"), (None, None, None), (0, 0, 0)])
def test_free_sizes_of_any_spelling_answer_alike(
    batch: int | str | None, shape: tuple[Any, ...], x: Tensor, tmp_path: Path
) -> None:
    box = as_blackbox(linear_onnx(tmp_path / "m.onnx", batch=batch, shape=shape), "logits")
    assert box.spec.max_batch is None
    torch.testing.assert_close(box(x), logits(x.flatten(1)))


def test_sizes_that_are_fixed_in_part_are_checked_before_a_query(x: Tensor, tmp_path: Path) -> None:
    box = as_blackbox(linear_onnx(tmp_path / "m.onnx", shape=(2, "h", 4)), "logits")
    box.spec.check_images(x)
    with pytest.raises(InvalidImages, match=r"shape \(3, 2, 4\); box m.onnx takes \(2, \?, 4\) in layout NCHW"):
        box.spec.check_images(x.transpose(1, 2))


def test_a_fixed_batch_is_padded_up_to_and_refused_beyond_its_size(x: Tensor, tmp_path: Path) -> None:
    box = as_blackbox(linear_onnx(tmp_path / "m.onnx", batch=4), "logits")
    full = box(x[:4])
    for n in (1, 2, 3):
        assert torch.equal(box(x[:n]), full[:n])
    with pytest.raises(InvalidImages, match=r"5 images in one call; box m.onnx takes 4"):
        box(x[:5])


def test_images_with_channels_last_are_arranged_so(x: Tensor, tmp_path: Path) -> None:
    path = linear_onnx(tmp_path / "m.onnx", shape=(4, 2, 3))  # (h, w, c) of images (3, 4, 2)
    images = x.reshape(7, 3, 4, 2)
    with pytest.raises(InvalidInput, match=r"x of .*m.onnx is \(n, 4, 2, 3\), .*; give layout='NHWC'"):
        as_blackbox(path, "logits")
    box = as_blackbox(path, "logits", layout="NHWC")
    assert box.spec.image_shape == (3, 4, 2)
    torch.testing.assert_close(box(images), logits(images.permute(0, 2, 3, 1).flatten(1)))
    insisted = as_blackbox(path, "logits", image_shape=(4, 2, 3))
    torch.testing.assert_close(insisted(x.reshape(7, 4, 2, 3)), logits(x.flatten(1)))


def test_a_layout_that_fits_is_advised_where_only_the_images_show_it(x: Tensor, tmp_path: Path) -> None:
    box = as_blackbox(linear_onnx(tmp_path / "m.onnx", shape=("h", "w", 3)), "logits")
    with pytest.raises(InvalidImages, match=r"takes \(\?, \?, 3\) in layout NCHW; give layout='NHWC'"):
        box.spec.check_images(x.reshape(7, 3, 2, 4))


def test_flat_images_and_grey_ones_without_a_channel_are_taken(x: Tensor, tmp_path: Path) -> None:
    flat = as_blackbox(linear_onnx(tmp_path / "m.onnx", shape=(PIXELS,)), "logits")
    assert (flat.spec.layout, flat.spec.takes) == ("flat", (PIXELS,))
    torch.testing.assert_close(flat(x), logits(x.flatten(1)))
    last = as_blackbox(tmp_path / "m.onnx", "logits", layout="flat-NHWC")
    torch.testing.assert_close(last(x), logits(x.permute(0, 2, 3, 1).flatten(1)))
    grey = as_blackbox(linear_onnx(tmp_path / "grey.onnx", shape=(6, 4)), "logits")
    assert grey.spec.image_shape == (1, 6, 4)
    torch.testing.assert_close(grey(x.reshape(7, 1, 6, 4)), logits(x.flatten(1)))


def test_flat_images_of_another_number_of_pixels_are_refused_before_work(x: Tensor, tmp_path: Path) -> None:
    path = linear_onnx(tmp_path / "m.onnx", shape=(PIXELS,))
    assert as_blackbox(path, "logits", image_shape=SHAPE).spec.image_shape == SHAPE
    with pytest.raises(InvalidInput, match=r"image_shape is \(3, 32, 32\); box m.onnx takes 24 numbers an image"):
        as_blackbox(path, "logits", image_shape=(3, 32, 32))
    with pytest.raises(InvalidImages, match=r"images have shape \(1, 5, 5\); box m.onnx takes 24 numbers an image"):
        as_blackbox(path, "logits").spec.check_images(torch.zeros(1, 1, 5, 5))


# Types


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(TensorProto.DOUBLE, 1e-5), (TensorProto.FLOAT16, 2e-2), (TensorProto.UINT8, 1e-3)]
)
def test_the_input_type_of_a_file_is_honoured(dtype: int, tolerance: float, x: Tensor, tmp_path: Path) -> None:
    levels = 256 if dtype == TensorProto.UINT8 else None
    box = as_blackbox(linear_onnx(tmp_path / "m.onnx", dtype=dtype), "logits", clip=False, levels=levels)
    pixels = (3 * x - 1).clamp(0, 1).mul(255).round() if dtype == TensorProto.UINT8 else 3 * x - 1
    torch.testing.assert_close(box(3 * x - 1), logits(pixels.flatten(1)), atol=tolerance, rtol=tolerance)


def test_a_uint8_input_is_256_levels_on_0_to_255(tmp_path: Path) -> None:
    path = linear_onnx(tmp_path / "m.onnx", dtype=TensorProto.UINT8)
    spec = as_blackbox(path, "logits").spec
    assert (spec.input_range, spec.levels, spec.clip) == ((0, 255), 256, True)
    assert as_blackbox(path, "logits", dtype="uint8").spec == spec
    assert as_blackbox(path, "logits", levels=16).spec.levels == 16
    with pytest.raises(InvalidInput, match=r"input_range is \(-1, 1\); .* fixes it to \(0.0, 255.0\)"):
        as_blackbox(path, "logits", input_range=(-1, 1))
    with pytest.raises(InvalidInput, match=r"mean or std was given, but .* uint8"):
        as_blackbox(path, "logits", mean=(1.0, 1.0))
    with pytest.raises(InvalidInput, match=r"dtype is 'float32', but .*m.onnx takes uint8"):
        as_blackbox(path, "logits", dtype="float32")


@pytest.mark.parametrize("dtype", [TensorProto.INT64, TensorProto.INT8, TensorProto.BOOL, TensorProto.STRING])
def test_an_input_of_another_type_is_named(dtype: int, tmp_path: Path) -> None:
    ends = [info(name, dtype, ["n", *SHAPE]) for name in "xy"]
    path = write_onnx(tmp_path / "m.onnx", [helper.make_node("Identity", ["x"], ["y"])], ends[:1], ends[1:])
    with pytest.raises(InvalidInput, match=r"input x of .* is tensor\(.*\); give .*float.*uint8"):
        as_blackbox(path, "values")


# Inputs and outputs


def test_an_input_with_a_default_is_left_alone_and_a_second_one_without_is_named(x: Tensor, tmp_path: Path) -> None:
    a, b, y = (info(name, TensorProto.FLOAT, ["n", *SHAPE]) for name in "aby")
    nodes, half = [helper.make_node("Add", ["a", "b"], ["y"])], info("b", TensorProto.FLOAT, [1])
    default = helper.make_tensor("b", TensorProto.FLOAT, [1], [0.5])
    path = write_onnx(tmp_path / "m.onnx", nodes, [a, half], [y], [default])
    torch.testing.assert_close(as_blackbox(path, "values", input_name="a")(x), x + 0.5)
    with pytest.raises(InvalidInput, match=r"input_name is 'b'; .*m.onnx has a"):
        as_blackbox(path, "values", input_name="b")
    path = write_onnx(path, nodes, [a, b], [y])
    for name in (None, "a"):
        with pytest.raises(InvalidInput, match=r"m.onnx has the inputs a, b and needs them all"):
            as_blackbox(path, "values", input_name=name)


def test_the_output_that_fits_the_kind_is_chosen_and_doubt_is_refused(x: Tensor, tmp_path: Path) -> None:
    path = linear_onnx(tmp_path / "m.onnx", ("labels", "probabilities"))
    scores = as_blackbox(path, "probabilities")(x)
    assert torch.equal(as_blackbox(path, "labels", num_classes=CLASSES)(x), scores.argmax(1))

    doubtful = linear_onnx(tmp_path / "d.onnx", ("logits", "probabilities"))
    form = r"tensor\(float\) \(n, 5\)"
    with pytest.raises(InvalidInput, match=f"logits {form}, probabilities {form}, 2 of which fit probabilities"):
        as_blackbox(doubtful, "probabilities")
    named = as_blackbox(doubtful, "probabilities", output_name="probabilities")
    assert torch.equal(named(x), scores)
    with pytest.raises(InvalidInput, match=r"output_name is 'y'; .*d.onnx has logits .*, probabilities"):
        as_blackbox(doubtful, "logits", output_name="y")


@pytest.mark.parametrize(
    ("output", "outputs", "came"),
    [
        ("labels", "logits", r"labels tensor\(int64\) \(n,\); give .* floats \(n, K\)"),
        ("labels", "probabilities", r"labels tensor\(int64\) \(n,\)"),
        ("logits", "labels", r"logits tensor\(float\) \(n, 5\); give .* whole numbers \(n,\)"),
    ],
)
def test_an_output_that_cannot_hold_the_kind_is_refused_before_a_query(
    output: str, outputs: str, came: str, tmp_path: Path
) -> None:
    path = linear_onnx(tmp_path / "m.onnx", (output,))
    for name in (None, output):
        with pytest.raises(InvalidInput, match=f"outputs is '{outputs}', but .*m.onnx answers {came}"):
            as_blackbox(path, outputs, num_classes=CLASSES, output_name=name)


def drop_columns(path: Path) -> None:
    """Makes the outputs (n, 1) of a file (n,)."""
    model = onnx.load(path)
    model.graph.initializer.append(helper.make_tensor("axis", TensorProto.INT64, [1], [1]))
    for output in model.graph.output:
        column = f"{output.name}_column"
        for node in model.graph.node:
            node.input[:] = [column if name == output.name else name for name in node.input]
            node.output[:] = [column if name == output.name else name for name in node.output]
        model.graph.node.append(helper.make_node("Squeeze", [column, "axis"], [output.name]))
        del output.type.tensor_type.shape.dim[1]
    onnx.save(model, path)


@pytest.mark.parametrize("squeezed", [False, True])
def test_one_score_an_image_is_that_of_the_second_class(squeezed: bool, x: Tensor, tmp_path: Path) -> None:
    path = linear_onnx(tmp_path / "m.onnx", ("logits", "sigmoid"), classes=1)
    if squeezed:
        drop_columns(path)
    weight, bias = linear_map(1)
    score = (x.flatten(1) @ weight.T + bias)[:, 0]
    box = as_blackbox(path, "probabilities", output_name="sigmoid")
    assert box.spec.num_classes == 2
    for n in (7, 1):
        expected = torch.stack([1 - score.sigmoid(), score.sigmoid()], 1)[:n]
        torch.testing.assert_close(check_outputs(box(x[:n]), n, box.spec), expected)
    scores = as_blackbox(path, "logits", output_name="logits")(x)
    torch.testing.assert_close(scores, torch.stack([torch.zeros(7), score], 1))
    with pytest.raises(InvalidInput, match=r"num_classes is 3; .* fixes it to 2"):
        as_blackbox(path, "logits", output_name="logits", num_classes=3)


@pytest.mark.parametrize("names", [[0, 1, 2], ["a", "b", "c"]])
def test_the_dictionaries_of_skl2onnx_become_columns(names: list[Any], tmp_path: Path) -> None:
    key, field = (TensorProto.INT64, "int64s") if names[0] == 0 else (TensorProto.STRING, "strings")
    nodes = [
        helper.make_node("Softmax", ["x"], ["p"], axis=1),
        helper.make_node("ZipMap", ["p"], ["scores"], domain="ai.onnx.ml"),
    ]
    nodes[1].attribute.append(helper.make_attribute(f"classlabels_{field}", names))
    map_type = helper.make_map_type_proto(key, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    scores = helper.make_value_info("scores", helper.make_sequence_type_proto(map_type))
    images = info("x", TensorProto.FLOAT, ["n", 3])
    path = write_onnx(tmp_path / "m.onnx", nodes, [images], [scores], domains=["ai.onnx.ml"])
    box = as_blackbox(path, "probabilities")
    x = torch.rand(4, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(box(x), x.flatten(1).softmax(1))
    torch.testing.assert_close(box(x[:1]), x[:1].flatten(1).softmax(1))
    with pytest.raises(InvalidInput, match=r"outputs is 'labels', but .* answers scores seq\(map\("):
        as_blackbox(path, "labels", num_classes=3)


def test_as_many_answers_as_images_are_wanted_of_every_call(tmp_path: Path) -> None:
    row = helper.make_tensor("row", TensorProto.INT64, [2], [-1, 2])
    nodes = [helper.make_node("Reshape", ["x", "row"], ["y"])]
    ends = [info("x", TensorProto.FLOAT, ["n", 1, "h", "w"]), info("y", TensorProto.FLOAT, ["m", 2])]
    path = write_onnx(tmp_path / "m.onnx", nodes, ends[:1], ends[1:], [row])
    box = as_blackbox(path, "logits")
    assert box(torch.zeros(3, 1, 1, 2)).shape == (3, 2)
    with pytest.raises(BadOutput, match=r"box m.onnx answered 3 images in shape \(6, 2\)"):
        box(torch.zeros(3, 1, 2, 2))


# Files


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnreadableFile, match=r"no file .*missing.onnx"):
        as_blackbox(tmp_path / "missing.onnx", "logits")
    whole = linear_onnx(tmp_path / "m.onnx").read_bytes()
    spoiled = {
        "cut.onnx": whole[: len(whole) // 2],
        "text.onnx": b"not a model",
        "name.onnx": whole.replace(b"floats", b"fl\xc0ats", 1),  # no text: a fallback of onnxruntime printed it
        "size.onnx": linear_onnx(tmp_path / "m.onnx", batch="batch").read_bytes().replace(b"batch", b"b\xc0tch"),
    }
    for name, content in spoiled.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableFile, match=f"{name} is no ONNX model") as error:
            as_blackbox(tmp_path / name, "logits")
        assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opset": 99}, r"it is of opset 99, onnxruntime knows opsets up to \d+$"),
        ({"ir_version": 99}, r"it is of IR version 99, onnxruntime knows versions up to \d+$"),
        ({"node": "Bogus"}, "it uses the operator Bogus, which onnxruntime does not have in that opset$"),
        (
            {"node": "Bogus", "domain": "org.me"},
            r"it uses the operator org.me:Bogus\S*, which .* does not have$",
        ),
    ],
)
def test_a_file_that_is_beyond_onnxruntime_is_told_from_a_damaged_one(
    changes: dict[str, Any], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = dict(changes)
    node = helper.make_node(changes.pop("node", "Identity"), ["x"], ["y"], domain=changes.pop("domain", ""))
    ends = [info(name, TensorProto.FLOAT, ["n", *SHAPE]) for name in "xy"]
    path = write_onnx(tmp_path / "m.onnx", [node], ends[:1], ends[1:], **changes, domains=["org.me"])
    with pytest.raises(UnreadableFile, match=rf"m.onnx is no ONNX model that onnxruntime can load: {message}"):
        as_blackbox(path, "values")
    assert capfd.readouterr() == ("", "")


def test_weights_in_another_file_are_part_of_the_identity(tmp_path: Path) -> None:
    def box(scale: float) -> Any:
        path = onnx_with_weights_elsewhere(tmp_path / "m.onnx", "w.bin", scale * np.eye(PIXELS, CLASSES))
        return as_blackbox(path, "logits")

    first, x = box(1), torch.rand(2, *SHAPE)
    torch.testing.assert_close(first(x), x.flatten(1)[:, :CLASSES])
    sent = pickle.dumps(first)
    assert pickle.loads(sent).spec == first.spec
    second = box(2)
    assert second.spec.model_id != first.spec.model_id
    with pytest.raises(UnreadableFile, match=r"m.onnx has changed since box m.onnx was made; restore it"):
        pickle.loads(sent)
    os.remove(tmp_path / "w.bin")
    with pytest.raises(UnreadableFile, match=r"wants its weights from 'w.bin'"):
        pickle.loads(sent)


def test_an_identity_that_is_given_is_joined_with_that_of_the_file(tmp_path: Path) -> None:
    path = linear_onnx(tmp_path / "m.onnx")
    given = {as_blackbox(path, "logits", identity=identity).spec.identity for identity in (None, "1", "2")}
    linear_onnx(path, batch=4)
    assert len(given | {as_blackbox(path, "logits", identity="1").spec.identity, "1"}) == 5


def test_without_onnxruntime_the_package_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InvalidInput, match=r"pip install 'certibox\[onnx\]'"):
        as_blackbox(linear_onnx(tmp_path / "m.onnx"), "logits")

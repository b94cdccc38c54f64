"""Products with known matrices as TensorFlow Lite files, in floats and in whole numbers, and pretrained ones."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from certibox.blackbox import as_blackbox, check_outputs
from certibox.blackbox.tflite import Grid
from certibox.errors import InvalidImages, InvalidInput, UnreadableFile
from file_makers import FLOAT, PIXELS, Quantised, linear_map, linear_tflite
from places import SHARED

pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert")

SHAPE = (2, 4, 3)  # (c, h, w)
LAST = (4, 3, 2)
GREY = ("int8", 1.0, -128)  # pixel - 128
PRETRAINED = SHARED / "data" / "boxes"


@pytest.fixture
def x() -> Tensor:
    return torch.rand(7, *SHAPE, generator=torch.Generator().manual_seed(0))


def chosen(*pixels: int) -> np.ndarray:
    """The matrix (K, d) whose answers are these pixels of an image, in the order of the file."""
    return np.eye(PIXELS)[list(pixels)]


def flat(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(1)


# Grids


@pytest.mark.parametrize(
    ("grid", "ends", "usual"),
    [
        (Grid(1, -128, -128, 127), (0, 255), (0, 255)),
        (Grid(1, 0, 0, 255), (0, 255), (0, 255)),
        (Grid(1, 0, -128, 127), (-128, 127), (-128, 127)),
        (Grid(float(np.float32(1 / 255)), -128, -128, 127), (0, 1), (0, 1)),
        (Grid(1 / 256, -128, -128, 127), (0, 255 / 256), (0, 255 / 256)),
        (Grid(1 / 128, 128, 0, 255), (-1, 127 / 128), (-1, 127 / 128)),
        (Grid(2 / 255, -1, -128, 127), (-2 * 127 / 255, 2 * 128 / 255), (-2 * 127 / 255, 2 * 128 / 255)),
        (Grid(0.0187, -14, -128, 127), (-2.1318, 2.6367), None),  # mean and std are inside
        (Grid(1 / 32767, 0, -32768, 32767), (-32768 / 32767, 1), None),  # not a step a grey level
    ],
)
def test_a_grid_with_a_step_a_grey_level_says_the_range_of_pixels(
    grid: Grid, ends: tuple[float, float], usual: tuple[float, float] | None
) -> None:
    assert grid.range == pytest.approx(ends, rel=1e-6)
    assert grid.input_range() == (usual if usual is None else pytest.approx(usual, rel=1e-12, abs=1e-12))


def test_whole_numbers_are_the_nearest_ones_and_stand_for_themselves() -> None:
    grid = Grid(0.5, 3, -8, 7)
    whole = np.arange(-8, 8)
    assert np.array_equal(grid.real(whole), (whole - 3) / 2)
    assert np.array_equal(grid.whole(grid.real(whole)), whole)
    assert np.array_equal(grid.whole(np.array([-99.0, 0.2, 0.3, 99.0])), [-8, 3, 4, 7])
    assert grid.real(whole).dtype == np.float32


def test_levels_are_counted_from_end_to_end_and_none_between_the_steps() -> None:
    grid = Grid(0.25, 0, -128, 127)
    assert (grid.levels(0, 1), grid.levels(-1, 1), grid.levels(0, 1.1), grid.levels(0.1, 1)) == (5, 9, None, None)


# What a file declares


def test_pixels_minus_128_are_declared_and_answers_stand_for_pixels(x: Tensor, tmp_path: Path) -> None:
    path = linear_tflite(tmp_path / "m.tflite", chosen(0, 5, 23), LAST, GREY, GREY)
    box = as_blackbox(path, "logits")
    spec = box.spec
    assert (spec.input_range, spec.levels, spec.clip, spec.layout) == ((0, 255), 256, True, "NHWC")
    assert (spec.image_shape, spec.num_classes, spec.max_batch, spec.name) == (SHAPE, 3, None, "m.tflite")
    assert spec.identity == hashlib.sha256(path.read_bytes()).hexdigest()
    wild = 3 * x - 1  # as noise makes them
    expected = flat(wild.clamp(0, 1) * 255).round()[:, [0, 5, 23]]
    assert torch.equal(box(wild), expected)
    assert torch.equal(box(wild.double()), expected)
    assert torch.equal(as_blackbox(path, "logits", input_range=(0, 255))(wild), expected)


@pytest.mark.parametrize("takes", [("uint8", 1.0, 0), ("int8", 1 / 255, -128), ("int8", 1 / 256, -128)])
def test_every_pixel_becomes_the_whole_number_of_its_level(takes: Quantised, tmp_path: Path) -> None:
    path = linear_tflite(tmp_path / "m.tflite", chosen(0, 1), (PIXELS,), takes, takes)
    levels = torch.arange(256).double().div(255).repeat(PIXELS, 1).T.reshape(256, 1, 4, 6)
    answers = as_blackbox(path, "logits")(levels)
    assert torch.equal((answers[:, 0].double() / takes[1]).round(), torch.arange(256.0).double())


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("signature", [None, (-1, *LAST), (-1, -1, -1, 2)])
def test_a_file_of_floats_answers_whatever_its_sizes(
    batch: int, signature: tuple[int, ...] | None, x: Tensor, tmp_path: Path
) -> None:
    weight = linear_map()[0]
    path = linear_tflite(tmp_path / "m.tflite", weight.numpy(), LAST, FLOAT, FLOAT, batch, signature)
    box = as_blackbox(path, "logits")
    assert box.spec.image_shape == (None if signature == (-1, -1, -1, 2) else SHAPE)
    full = box(x)
    torch.testing.assert_close(full, flat(x) @ weight.T, atol=1e-5, rtol=1e-5)
    assert torch.equal(torch.cat([box(x[:2]), box(x[2:])]), full)
    with pytest.raises(InvalidImages, match=r"takes \(.*, 2\) in layout NHWC"):
        box(torch.zeros(1, 5, 4, 3))
    scaled = as_blackbox(path, "logits", input_range=(0, 255))
    torch.testing.assert_close(scaled(x), 255 * flat(x) @ weight.T, atol=1e-3, rtol=1e-5)


def test_channels_first_and_flat_images_are_known_by_their_sizes(x: Tensor, tmp_path: Path) -> None:
    weight = linear_map()[0]
    first = as_blackbox(linear_tflite(tmp_path / "m.tflite", weight.numpy(), (3, 4, 2)), "logits")
    images = x.reshape(7, 3, 4, 2)
    assert (first.spec.layout, first.spec.image_shape) == ("NCHW", (3, 4, 2))
    torch.testing.assert_close(first(images), images.flatten(1) @ weight.T, atol=1e-5, rtol=1e-5)
    path = linear_tflite(tmp_path / "m.tflite", weight.numpy(), (PIXELS,))
    torch.testing.assert_close(as_blackbox(path, "logits")(x), flat(x) @ weight.T, atol=1e-5, rtol=1e-5)
    with pytest.raises(InvalidInput, match=r"image_shape is \(3, 32, 32\); box m.tflite takes 24 numbers an image"):
        as_blackbox(path, "logits", image_shape=(3, 32, 32))


def test_a_grid_of_normalised_numbers_wants_the_normalisation(x: Tensor, tmp_path: Path) -> None:
    takes = ("int8", 0.0187, -14)
    path = linear_tflite(tmp_path / "m.tflite", chosen(0, 1), LAST, takes, takes)
    with pytest.raises(InvalidInput, match=r"takes the numbers -2.132 to 2.637 in steps of 0.0187, .* mean and std"):
        as_blackbox(path, "logits")
    mean, std = (0.485, 0.406), (0.229, 0.225)
    box = as_blackbox(path, "logits", mean=mean, std=std)
    assert box.spec.levels is None
    normalised = flat((x - torch.tensor(mean).view(2, 1, 1)) / torch.tensor(std).view(2, 1, 1))[:, :2]
    torch.testing.assert_close(box(x), normalised, atol=0.0187 / 2 + 1e-5, rtol=0)
    with pytest.raises(InvalidInput, match=r"make pixels 0 to 255; .*m.tflite takes -2.132 to 2.637"):
        as_blackbox(path, "logits", input_range=(0, 255))


def test_the_type_is_that_of_the_file(tmp_path: Path) -> None:
    path = linear_tflite(tmp_path / "m.tflite", chosen(0, 1), LAST, GREY, GREY)
    with pytest.raises(InvalidInput, match=r"dtype is 'uint8', but .*m.tflite takes int8; leave dtype out"):
        as_blackbox(path, "logits", dtype="uint8")
    path = linear_tflite(path, chosen(0, 1), LAST)
    assert as_blackbox(path, "logits", dtype="float32").spec == as_blackbox(path, "logits").spec


# Answers


def test_probabilities_are_256ths_and_only_a_grid_too_coarse_for_them_is_scaled(tmp_path: Path) -> None:
    grid = ("int8", 1 / 256, -128)
    box = as_blackbox(linear_tflite(tmp_path / "m.tflite", chosen(0, 1), (PIXELS,), grid, grid), "probabilities")
    images = torch.zeros(1, 1, 1, PIXELS)
    images[0, 0, 0, :2] = torch.tensor([200.0, 57.0]) / 255
    assert torch.equal(check_outputs(box(images), 1, box.spec), torch.tensor([[200, 57]]) / 256)

    many = np.tile(chosen(0), (26, 1))  # 26 / 512 is above 0.05
    path = linear_tflite(tmp_path / "many.tflite", many, (PIXELS,), grid, grid)
    box = as_blackbox(path, "probabilities")
    images[0, 0, 0, 0] = 9 / 255  # 26 * 9 / 256 is .914
    torch.testing.assert_close(check_outputs(box(images), 1, box.spec), torch.full((1, 26), 1 / 26))
    assert torch.equal(as_blackbox(path, "logits")(images), torch.full((1, 26), 9 / 256))


def test_one_score_an_image_is_that_of_the_second_class(tmp_path: Path) -> None:
    grid = ("int8", 1 / 256, -128)
    box = as_blackbox(linear_tflite(tmp_path / "m.tflite", chosen(0), (PIXELS,), grid, grid), "probabilities")
    images = torch.zeros(2, 1, 1, PIXELS)
    images[1, 0, 0, 0] = 64 / 255
    assert box.spec.num_classes == 2
    assert torch.equal(check_outputs(box(images), 2, box.spec), torch.tensor([[1, 0], [0.75, 0.25]]))


def test_outputs_and_inputs_are_named_where_they_do_not_fit(tmp_path: Path) -> None:
    path = linear_tflite(tmp_path / "m.tflite", chosen(0, 1), LAST)
    assert as_blackbox(path, "logits", input_name="x", output_name="y").spec.num_classes == 2
    given: dict[str, Any]
    for given, offered in (({"input_name": "z"}, "x"), ({"output_name": "z"}, "y float32")):
        with pytest.raises(InvalidInput, match=rf"put_name is 'z'; .*m.tflite has {offered}"):
            as_blackbox(path, "logits", **given)
    with pytest.raises(InvalidInput, match=r"outputs is 'labels', but .* answers y float32 \(1, 2\); give the kind"):
        as_blackbox(path, "labels", num_classes=2)
    with pytest.raises(InvalidInput, match=r"num_classes is 3; .*m.tflite fixes it to 2"):
        as_blackbox(path, "logits", num_classes=3)


# Files and processes


def test_files_that_hold_no_model_are_named_and_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.tflite"
    whole = linear_tflite(path, chosen(0, 1), LAST).read_bytes()
    as_blackbox(path, "logits")
    for content in (whole[: len(whole) // 2], whole[:9], b"not a model", b"\0" * 64):
        path.write_bytes(content)
        with pytest.raises(UnreadableFile, match=r"m.tflite is no TensorFlow Lite model that LiteRT can load") as error:
            as_blackbox(path, "logits")
        assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_without_litert_the_package_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = linear_tflite(tmp_path / "m.tflite", chosen(0, 1), LAST)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(InvalidInput, match=r"m.tflite needs ai-edge-litert; run pip install 'certibox\[tflite\]'"):
        as_blackbox(path, "logits")


def test_an_identity_that_is_given_is_joined_with_that_of_the_file(tmp_path: Path) -> None:
    path = linear_tflite(tmp_path / "m.tflite", chosen(0, 1), LAST)
    given = {as_blackbox(path, "logits", identity=identity).spec.identity for identity in (None, "1", "2")}
    linear_tflite(path, chosen(0, 2), LAST)
    assert len(given | {as_blackbox(path, "logits", identity="1").spec.identity, "1"}) == 5


def test_a_copy_reads_the_file_again_and_refuses_another(x: Tensor, tmp_path: Path) -> None:
    path = linear_tflite(tmp_path / "m.tflite", chosen(0, 1), LAST)
    box = as_blackbox(path, "logits")
    sent = pickle.dumps(box)
    assert len(sent) < 5_000
    other = pickle.loads(sent)
    assert torch.equal(other(x), box(x))
    assert other.spec == box.spec
    linear_tflite(path, chosen(0, 2), LAST)
    with pytest.raises(UnreadableFile, match=r"m.tflite has changed since box m.tflite was made; restore it"):
        pickle.loads(sent)


def test_whole_numbers_without_a_scale_stand_for_themselves(tmp_path: Path) -> None:
    path = linear_tflite(tmp_path / "m.tflite", np.eye(PIXELS), (PIXELS,), ("uint8", 0.0, 0))
    box = as_blackbox(path, "values")
    assert (box.spec.input_range, box.spec.levels) == ((0, 255), 256)
    levels = torch.arange(256).float().div(255)[: 10 * PIXELS].reshape(10, 1, 4, 6)
    assert torch.equal(box(levels), torch.arange(10.0 * PIXELS).reshape(10, PIXELS))


def test_threads_and_forks_answer_alike(x: Tensor, tmp_path: Path) -> None:
    box = as_blackbox(linear_tflite(tmp_path / "m.tflite", linear_map()[0].numpy(), LAST), "logits", concurrency=4)
    expected, found = box(x), {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: [box(x) for _ in range(20)]})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(answer, expected) for answers in found.values() for answer in answers)
    assert len(found) == 4
    if (child := os.fork()) == 0:
        os._exit(0 if torch.equal(box(x), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


# Real models


@pytest.mark.skipif(not PRETRAINED.exists(), reason="needs the pretrained models of the shared data")
def test_a_pretrained_int8_endpoint_declares_itself_and_agrees_with_its_float_twin() -> None:
    whole = as_blackbox(PRETRAINED / "pretrainedResnet_quant.tflite", "probabilities")
    real = as_blackbox(PRETRAINED / "pretrainedResnet.tflite", "probabilities", input_range=(0, 255))
    assert (whole.spec.input_range, whole.spec.levels, whole.spec.num_classes) == ((0, 255), 256, 10)
    assert (real.spec.levels, real.spec.image_shape) == (None, (3, 32, 32))
    smooth = torch.nn.functional.interpolate(
        torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(0)), size=32, mode="bilinear"
    )
    p, q = (check_outputs(box(smooth), 40, box.spec) for box in (whole, real))
    assert torch.equal((p * 256).round(), p * 256)
    assert (p - q).abs().mean() < 0.03
    assert (p.argmax(1) == q.argmax(1)).float().mean() > 0.6
    person = as_blackbox(PRETRAINED / "vww_96_int8.tflite", "probabilities")
    assert (person.spec.input_range, person.spec.levels, person.spec.num_classes) == ((0, 1), 256, 2)

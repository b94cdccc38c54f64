"""What counts as images is one question with one answer: a client, a defense and a smoothed classifier ask the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import certibox as cb
from certibox.data.pixels import as_images
from certibox.defense.pipeline import RobustPipeline
from certibox.errors import InvalidImages

SHAPE = (1, 2, 3)


def mean_logits(x: Tensor) -> Tensor:
    """(n, 2) logits that grow and fall with an image's mean."""
    mean = x.flatten(1).mean(1, keepdim=True)
    return torch.cat([mean, 0.5 - mean], 1)


def asked() -> dict[str, Callable[[Any], Any]]:
    """Every border that takes images of a stranger."""
    client = cb.QueryClient(cb.as_blackbox(lambda x: mean_logits(torch.from_numpy(x)), "logits"))
    defense = cb.Defense(RobustPipeline(None), client, "DS", 0.25, SHAPE, 2)
    smoothed = defense.smoothed()
    return {
        "client": client,
        "outputs": defense.outputs,
        "robustify": defense.robustify,
        "denoise": defense.denoise,
        "certify": lambda x: smoothed.certify(x, n0=1, n=10, alpha=0.01, seed=0),
        "predict": lambda x: smoothed.predict(x, n=10, alpha=0.01, seed=0),
    }


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, *SHAPE), np.uint8), "images are uint8; wanted floats on [0, 1]: divide 8-bit pixels by 255"),
        (torch.zeros(2, *SHAPE).long(), "images are torch.int64; wanted floats on [0, 1]: divide 8-bit pixels by 255"),
        (torch.zeros(2, *SHAPE) + 0j, "images are torch.complex64; wanted floats on [0, 1], such as float32"),
        (np.full((2, *SHAPE), "a"), "images are <U1; wanted floats on [0, 1], such as float32"),
        ([[0.5]], "images are a list; wanted a float tensor or numpy array on [0, 1]"),
    ],
)
def test_every_border_refuses_the_same_in_the_same_words(images: Any, words: str) -> None:
    said = {}
    for border, ask in asked().items():
        with pytest.raises(InvalidImages) as caught:
            ask(images)
        said[border] = str(caught.value)
    assert set(said.values()) == {words}, said


def test_one_image_is_taken_only_where_it_is_asked_for() -> None:
    x = torch.zeros(SHAPE)
    assert as_images(x, single=True) is x
    with pytest.raises(
        InvalidImages,
        match=r"shape \(1, 2, 3\); wanted a batch .*: x\[None\] for one image$",
    ):
        as_images(x)
    for wrong in (torch.zeros(2, 3), torch.zeros(1, 1, *SHAPE)):
        with pytest.raises(InvalidImages, match=r"wanted one image .*, or a batch of them$"):
            as_images(wrong, single=True)


@pytest.mark.filterwarnings("error")
def test_constant_arrays_are_taken_everywhere_without_a_warning() -> None:
    """torch warns of memory that must not be written; a broadcast array is such memory."""
    constant = np.broadcast_to(np.float32(0.75), (2, *SHAPE))
    for ask in asked().values():
        ask(constant)


def test_arrays_get_the_type_that_is_asked_for() -> None:
    array = np.random.default_rng(0).random((2, *SHAPE))
    assert as_images(array).dtype == torch.float64
    single = as_images(array.astype(">f8"), array_type=np.float32)
    assert torch.equal(single, torch.from_numpy(array.astype(np.float32)))


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="here a long double is a double")
def test_a_type_that_torch_lacks_is_refused_where_it_is_kept() -> None:
    array = np.zeros((1, *SHAPE), np.longdouble)
    assert as_images(array, array_type=np.float32).dtype == torch.float32
    with pytest.raises(InvalidImages, match=rf"images are {array.dtype}; wanted floats .*, such as float32"):
        as_images(array)


def test_masked_pixels_are_refused_at_every_border() -> None:
    x = np.full((1, 1, 2, 2), 0.5, np.float32)
    hidden = np.ma.masked_array(x, mask=x > 1)
    assert torch.equal(as_images(hidden), torch.from_numpy(x))
    hidden[0, 0, 1, 1] = np.ma.masked
    with pytest.raises(InvalidImages, match="images: 1 of 4 entries are masked, and what lies below is no value"):
        as_images(hidden)

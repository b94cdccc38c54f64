"""The edges of a defense: calls, numpy images, its smoothed classifier, its device, and what it says of itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import certibox as cb
from certibox.defense.pipeline import RobustPipeline
from certibox.defense.saved import Defense
from certibox.errors import InvalidImages, InvalidInput
from certibox.queries.client import QueryClient
from training_runs import SHAPE, Own, bottleneck, linear

K = 3


def made(outputs: str = "logits", num_classes: int | None = K) -> Defense:
    pipeline = RobustPipeline(Own(), bottleneck()).eval()
    return Defense(pipeline, QueryClient(linear(outputs)), "ZO-AE-DS", 0.25, SHAPE, num_classes)


def batch(count: int = 5) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(3))


def test_a_call_is_the_outputs() -> None:
    defense, x = made(), batch()
    assert torch.equal(defense(x), defense.outputs(x))
    assert defense.client.queries == 2 * len(x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reversed_", [False, True])
def test_numpy_images_are_taken_as_tensors_are(dtype: type, reversed_: bool) -> None:
    defense, x = made(), batch().flip(-1) if reversed_ else batch()
    array = batch().numpy().astype(dtype)[..., ::-1] if reversed_ else batch().numpy().astype(dtype)
    for method in (defense, defense.outputs, defense.robustify, defense.denoise):
        assert torch.equal(method(array), method(x))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (
            np.zeros((2, *SHAPE), dtype=np.uint8),
            "images are uint8; wanted floats .*: divide 8-bit pixels by 255",
        ),
        (torch.zeros(2, *SHAPE, dtype=torch.uint8), "images are torch.uint8; wanted floats .*divide"),
        (np.zeros((2, *SHAPE), dtype=bool), "images are bool"),
        (np.zeros(SHAPE, dtype=np.float32), r"images have shape \(1, 4, 4\); wanted a batch"),
        (torch.zeros(2, 3, *SHAPE[1:]), r"images have shape \(3, 4, 4\); the defense takes \(1, 4, 4\)"),
        (torch.zeros(2, 1, 5, 5), r"images have shape \(1, 5, 5\); the defense takes \(1, 4, 4\)"),
        ([[0.5]], "images are a list; wanted a float tensor or numpy array"),
    ],
)
def test_other_images_are_refused_in_one_line_and_without_queries(x: Any, words: str) -> None:
    defense = made()
    for method in (defense, defense.outputs, defense.robustify, defense.denoise):
        with pytest.raises(InvalidImages, match=words) as caught:
            method(x)
        assert "\n" not in str(caught.value)
    assert defense.client.attempts == 0


def test_the_smoothed_classifier_knows_its_classes_and_sigma() -> None:
    defense, x = made(), batch()[0]
    smoothed = defense.smoothed()
    assert (smoothed.num_classes, smoothed.sigma, smoothed.model_id) == (K, 0.25, defense.model_id)
    assert defense.client.attempts == 0
    own = cb.SmoothedClassifier(defense.outputs, num_classes=K, sigma=0.25)
    settings: dict[str, Any] = {"n0": 10, "n": 50, "alpha": 0.01, "seed": 0}
    assert smoothed.certify(x, **settings) == own.certify(x, **settings)


def test_the_number_of_classes_may_be_told_but_not_contradicted() -> None:
    unknown = made("labels", num_classes=None)
    with pytest.raises(InvalidInput, match=r"number of classes is not known; wanted it, such as smoothed\(num_classes"):
        unknown.smoothed()
    assert unknown.smoothed(K).num_classes == made().smoothed(K).num_classes == K
    with pytest.raises(InvalidInput, match="num_classes is 4, but the defense has 3 classes"):
        made().smoothed(4)
    with pytest.raises(InvalidInput, match="the box answers with values; wanted logits, probabilities or labels"):
        made("values", num_classes=None).smoothed(3)


def test_it_moves_its_white_part_and_stays_itself() -> None:
    defense, x = made(), batch()
    before = defense.robustify(x)
    assert defense.to("cpu") is defense
    assert torch.equal(defense.robustify(x), before)
    for absent in ("meta", "cuda:77", "gpu"):
        with pytest.raises(InvalidInput, match=f"^device is '{absent}', which does not work here"):
            defense.to(absent)
    assert defense.device == torch.device("cpu")


def test_it_says_what_it_is_on_one_line() -> None:
    assert repr(made()) == "Defense(ZO-AE-DS, sigma=0.25, 3 classes, images (1, 4, 4), box 'linear' (logits))"
    assert "no known number of classes" in repr(replace(made(), num_classes=None))


def test_answers_come_in_evaluation_mode_whatever_mode_the_white_part_was_left_in() -> None:
    defense, x = made(), batch()
    wanted = defense.outputs(x)
    statistics = [buffer.clone() for buffer in defense.pipeline.buffers()]
    defense.pipeline.train()
    assert torch.equal(defense.outputs(x), wanted)
    assert not any(module.training for module in defense.pipeline.modules())
    assert isinstance(defense.pipeline.denoiser, nn.Module)
    assert all(torch.equal(a, b) for a, b in zip(defense.pipeline.buffers(), statistics, strict=True))

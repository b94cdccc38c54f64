"""Losses are checked against values worked out by hand and the closed forms of their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from certibox.errors import InvalidInput
from certibox.training import losses
from certibox.training.losses import LOSSES, PROBABILITY_FLOOR, predictions, targets

LOGITS = torch.tensor([[0.0, math.log(2), math.log(5)], [1.0, 1.0, 1.0]], dtype=torch.float64)
PROBABILITIES = torch.tensor([[1 / 8, 2 / 8, 5 / 8], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)  # their softmax
LABELS = torch.tensor([0, 2])
SOFT = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]], dtype=torch.float64)

# Cross-entropies: −log 1/8 and −log 1/3; (log 8)/2 + (log 4)/4 + (log 8/5)/4 and −log 1/3.
HARD_VALUES = torch.tensor([math.log(8), math.log(3)], dtype=torch.float64)
SOFT_VALUES = torch.tensor([2 * math.log(2) + math.log(8 / 5) / 4, math.log(3)], dtype=torch.float64)
CROSS_ENTROPIES = [("logits", LOGITS), ("probabilities", PROBABILITIES)]


def gradient(kind: str, outputs: Tensor, target: Tensor) -> Tensor:
    outputs = outputs.clone().requires_grad_(True)
    return torch.autograd.grad(LOSSES[kind](outputs, target).sum(), outputs)[0]


@pytest.mark.parametrize(("kind", "outputs"), CROSS_ENTROPIES)
def test_cross_entropy_by_hand(kind: str, outputs: Tensor) -> None:
    torch.testing.assert_close(LOSSES[kind](outputs, LABELS), HARD_VALUES, rtol=1e-14, atol=0)
    torch.testing.assert_close(LOSSES[kind](outputs, SOFT), SOFT_VALUES, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("kind", "outputs"), CROSS_ENTROPIES)
def test_a_label_is_the_same_as_its_one_hot_row(kind: str, outputs: Tensor) -> None:
    one_hot = F.one_hot(LABELS, 3).double()
    assert torch.equal(LOSSES[kind](outputs, LABELS), LOSSES[kind](outputs, one_hot))
    assert torch.equal(gradient(kind, outputs, LABELS), gradient(kind, outputs, one_hot))


def test_gradient_of_cross_entropy_in_logits_is_softmax_minus_target() -> None:
    one_hot = F.one_hot(LABELS, 3)
    torch.testing.assert_close(gradient("logits", LOGITS, LABELS), PROBABILITIES - one_hot, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(gradient("logits", LOGITS, SOFT), PROBABILITIES - SOFT, rtol=1e-14, atol=1e-15)


def test_gradient_of_cross_entropy_in_probabilities_is_minus_target_over_probability() -> None:
    one_hot = F.one_hot(LABELS, 3)
    torch.testing.assert_close(gradient("probabilities", PROBABILITIES, LABELS), -one_hot / PROBABILITIES)
    torch.testing.assert_close(gradient("probabilities", PROBABILITIES, SOFT), -SOFT / PROBABILITIES)


def test_extreme_logits_cost_their_difference() -> None:
    logits = torch.tensor([[1000.0, -1000.0]])
    assert LOSSES["logits"](logits, torch.tensor([1])).tolist() == [2000.0]
    assert LOSSES["logits"](logits, torch.tensor([0])).tolist() == [0.0]


def test_a_probability_of_zero_costs_the_floor_and_has_no_slope() -> None:
    certain, label = torch.tensor([[0.0, 1.0]], dtype=torch.float64), torch.tensor([0])
    floor = torch.tensor([-math.log(PROBABILITY_FLOOR)], dtype=torch.float64)
    for target in (label, torch.tensor([[1.0, 0.0]], dtype=torch.float64)):
        torch.testing.assert_close(LOSSES["probabilities"](certain, target), floor)
        assert torch.equal(gradient("probabilities", certain, target), torch.zeros(1, 2).double())
    below = torch.tensor([[PROBABILITY_FLOOR / 2, 1.0], [-1e-5, 1.0]], dtype=torch.float64)  # a box may round below 0
    torch.testing.assert_close(LOSSES["probabilities"](below, torch.zeros(2, dtype=torch.int64)), floor.expand(2))


def test_an_unwanted_probability_of_zero_costs_nothing() -> None:
    certain = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    assert LOSSES["probabilities"](certain, certain).tolist() == [0.0]


def test_labels_cost_zero_or_one() -> None:
    outputs, target = torch.tensor([3, 1, 0, 2]), torch.tensor([3, 0, 0, 1])
    actual = LOSSES["labels"](outputs, target)
    assert actual.tolist() == [0.0, 1.0, 0.0, 1.0]
    assert actual.dtype == torch.get_default_dtype()


@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3), (1, 4, 4)])
def test_values_cost_their_mean_squared_error(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, target = torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64)
    rows = zip(outputs.reshape(3, -1).tolist(), target.reshape(3, -1).tolist(), strict=True)
    by_hand = [sum((a - b) ** 2 for a, b in zip(*row, strict=True)) / math.prod(shape) for row in rows]
    assert LOSSES["values"](outputs, target).tolist() == pytest.approx(by_hand, rel=1e-13)
    expected = 2 * (outputs - target) / math.prod(shape)
    torch.testing.assert_close(gradient("values", outputs, target), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("kind", "outputs"), CROSS_ENTROPIES)
def test_targets_of_scores(kind: str, outputs: Tensor) -> None:
    assert targets(outputs[:1], kind, hard=True).tolist() == [2]
    torch.testing.assert_close(targets(outputs, kind, hard=False), PROBABILITIES, rtol=1e-14, atol=0)
    assert predictions(outputs[:1], kind).tolist() == [2]


@pytest.mark.parametrize(("kind", "outputs"), CROSS_ENTROPIES)
def test_a_soft_target_is_the_answer_that_costs_least(kind: str, outputs: Tensor) -> None:
    target = targets(outputs, kind, hard=False)
    entropy = -(PROBABILITIES * PROBABILITIES.log()).sum(1)
    torch.testing.assert_close(LOSSES[kind](outputs, target), entropy)
    slope = gradient(kind, outputs, target)  # zero along every change that keeps the sum of probabilities
    torch.testing.assert_close(slope, slope.mean(1, keepdim=True).expand_as(slope))


def test_labels_and_values_are_their_own_targets() -> None:
    labels, values = torch.tensor([2, 0]), torch.tensor([[0.5, -3.0]])
    assert targets(labels, "labels", hard=True) is labels
    assert predictions(labels, "labels") is labels
    assert targets(values, "values", hard=True) is values
    assert targets(values, "values", hard=False) is values
    assert LOSSES["labels"](labels, labels).sum() == 0
    assert LOSSES["values"](values, values).sum() == 0


def test_labels_admit_no_soft_targets() -> None:
    with pytest.raises(InvalidInput, match=r"targets are soft but the box answers with labels; .*hard"):
        losses.targets(torch.tensor([1]), "labels", hard=False)

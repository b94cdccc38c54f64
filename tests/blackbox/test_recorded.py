"""A recording answers what was recorded, to the bit, and says clearly what it does not hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from certibox.blackbox import RecordedBox
from certibox.errors import InvalidInput, NotAnswered, UnreadableFile
from certibox.queries.client import QueryClient


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 1, 3, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def answers() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


@pytest.fixture
def file(tmp_path: Path, images: Tensor, answers: np.ndarray) -> Path:
    np.savez(tmp_path / "recording.npz", images=images.numpy(), answers=answers)
    return tmp_path / "recording.npz"


def test_it_answers_what_was_recorded_in_any_order(file: Path, images: Tensor, answers: np.ndarray) -> None:
    order = [3, 0, 5, 5]
    client = QueryClient(RecordedBox(file, "logits"))
    assert np.array_equal(client(images[order]).numpy(), answers[order])
    assert client.queries == 4
    assert client.spec.num_classes == 4


def test_a_miss_is_named_and_costs_nothing(file: Path, images: Tensor) -> None:
    client = QueryClient(RecordedBox(file, "logits"))
    asked = torch.cat([images[:2], images[:1] + 1e-7])
    with pytest.raises(
        NotAnswered, match=r"recording.npz holds no answer to 1 of 3 images, the first of them number 2"
    ):
        client(asked)
    assert (client.queries, client.lost) == (0, 0)


def test_recordings_are_told_apart_by_what_they_hold(images: Tensor, answers: np.ndarray) -> None:
    same, other = RecordedBox((images, answers), "logits"), answers.copy()
    other[5, 3] += 1
    assert same.spec.identity == RecordedBox((images, torch.from_numpy(answers)), "logits").spec.identity
    assert same.spec.identity != RecordedBox((images, other), "logits").spec.identity


def test_what_is_no_recording_is_refused(tmp_path: Path, images: Tensor, answers: np.ndarray) -> None:
    with pytest.raises(UnreadableFile, match="no recording that can be read"):
        RecordedBox(tmp_path / "none.npz", "logits")
    np.savez(tmp_path / "half.npz", images=images.numpy())
    with pytest.raises(InvalidInput, match=r"half.npz holds images, without answers"):
        RecordedBox(tmp_path / "half.npz", "logits")
    np.savez(tmp_path / "objects.npz", images=images.numpy(), answers=np.array([{}] * 6, dtype=object))
    with pytest.raises(UnreadableFile):
        RecordedBox(tmp_path / "objects.npz", "logits")
    with pytest.raises(InvalidInput, match="6 images and 5 answers"):
        RecordedBox((images, answers[:5]), "logits")
    twice = torch.cat([images, images[:1]])
    with pytest.raises(InvalidInput, match="two answers to image 6"):
        RecordedBox((twice, np.concatenate([answers, answers[:1] + 1])), "logits")
    RecordedBox((twice, np.concatenate([answers, answers[:1]])), "logits")

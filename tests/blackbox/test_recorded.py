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


def test_a_ledger_answers_the_batches_that_it_journalled(tmp_path: Path, images: Tensor, answers: np.ndarray) -> None:
    path = tmp_path / "ledger.sqlite"
    table = RecordedBox((images.numpy(), answers), "logits")
    with QueryClient(table, ledger=path, batch_size=4) as client, client.journal("audit", 0):
        client(images)
    before = path.read_bytes()
    box = RecordedBox(path, "logits")
    assert (box.spec.num_classes, repr(box).endswith("2 batches)")) == (4, True)
    assert np.array_equal(QueryClient(box, batch_size=4)(images).numpy(), answers)
    with pytest.raises(NotAnswered, match=r"ledger\.sqlite holds no answer to this batch of 3"):
        QueryClient(box, batch_size=3)(images)
    assert path.read_bytes() == before


def test_what_is_no_ledger_with_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="it is not there"):
        RecordedBox(tmp_path / "none.sqlite", "logits")
    (tmp_path / "text.sqlite").write_text("hello")
    with pytest.raises(UnreadableFile, match="is no ledger that can be read"):
        RecordedBox(tmp_path / "text.sqlite", "logits")
    QueryClient(RecordedBox((np.zeros((1, 1, 2, 2), np.float32), np.zeros((1, 2))), "logits"), ledger=tmp_path / "a.db")
    with pytest.raises(InvalidInput, match="holds no answers"):
        RecordedBox(tmp_path / "a.db", "logits")


def test_a_name_holds_no_password(images: Tensor, answers: np.ndarray) -> None:
    box = RecordedBox((images.numpy(), answers), "logits", name="https://me:hunter2@host/model?key=abc")
    for text in (box.spec.name, box.spec.model_id, str(box.spec.provenance()), repr(box.spec)):
        assert "hunter2" not in text
        assert "abc" not in text.replace(box.spec.model_id.rpartition(":")[2], "")

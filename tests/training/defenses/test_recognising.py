"""Whose answers a run goes on with: a model that has changed is refused, by its identity or by its answers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from certibox.blackbox import TorchBox, as_blackbox
from certibox.defense.saved import Defense, load_defense
from certibox.errors import BoxChanged, ConfigMismatch
from certibox.queries.client import QueryClient
from certibox.storage.tensors import read_tensors, write_tensors
from certibox.training.defenses import trained_on
from training_runs import K, filled, fit, pictures, smooth_model, weights

Answer = Callable[[np.ndarray], np.ndarray]
MATRIX = np.random.default_rng(0).normal(size=(16, K)).astype(np.float32)


def model(shift: float = 0.0, calls: int | None = None) -> Answer:
    """A bare function, whose answers a change moves; it fails at call number `calls`."""
    asked = [0]

    def answer(x: np.ndarray) -> np.ndarray:
        asked[0] += 1
        if asked[0] - 1 == calls:
            raise ConnectionError("the line is dead")
        return x.reshape(len(x), -1) @ MATRIX + shift * np.arange(K, dtype=np.float32)

    return answer


def client_of(answer: Answer, out: Path, **declared: Any) -> QueryClient:
    return QueryClient(as_blackbox(answer, "logits", **declared), ledger=out / "ledger.sqlite", batch_size=16)


@pytest.mark.parametrize("calls", [7, None], ids=["interrupted", "complete"])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_a_bare_function_is_recognised_by_answers_that_were_paid_for(
    calls: int | None, shift: float, tmp_path: Path
) -> None:
    plain = fit(client_of(model(), tmp_path / "plain"), "ZO-DS", out=tmp_path / "plain")
    out = tmp_path / "out"
    if calls is None:
        fit(client_of(model(), out), "ZO-DS", out=out)
    else:
        with pytest.raises(Exception, match="the line is dead"):
            fit(client_of(model(calls=calls), out), "ZO-DS", out=out)
    client = client_of(model(shift), out)
    before = client.queries
    if shift:
        with pytest.raises(
            BoxChanged, match=r"^the model has changed since this run began: .*canar.*; use another out, or that"
        ) as caught:
            fit(client, "ZO-DS", out=out)
        assert caught.value.exit_status == 5
        assert client.queries == before + 8  # nothing else was asked
    else:
        assert weights(fit(client, "ZO-DS", out=out)) == weights(plain)
        assert (out / "rows.jsonl").read_bytes() == (tmp_path / "plain" / "rows.jsonl").read_bytes()
        assert client.queries == plain.client.queries + 8
    assert client.spent["canaries"] == 8


@pytest.mark.parametrize(
    "change", [{"method": "DS"}, {"name": "mine"}], ids=["a method that asks nothing", "a name that its user gave"]
)
def test_nobody_is_asked_where_nothing_could_differ_or_a_name_answers(change: dict[str, str], tmp_path: Path) -> None:
    named = {"name": change["name"]} if "name" in change else {}
    for _ in range(2):
        client = client_of(model(), tmp_path, **named)
        fit(client, change.get("method", "ZO-DS"), out=tmp_path)
        assert "canaries" not in client.spent
    assert not any("canaries" in name for name in read_tensors(tmp_path / "checkpoint.safetensors")[0])


def test_a_run_from_before_answers_were_kept_goes_on_with_a_warning(tmp_path: Path) -> None:
    first = fit(client_of(model(), tmp_path), "ZO-DS", out=tmp_path)
    tensors, facts = read_tensors(tmp_path / "checkpoint.safetensors")
    del tensors["constants.canaries"]
    write_tensors(tmp_path / "checkpoint.safetensors", tensors, facts)
    client = client_of(model(), tmp_path)
    with pytest.warns(UserWarning, match="nothing tells box answer from another, and this run began before"):
        again = fit(client, "ZO-DS", out=tmp_path)
    assert weights(again) == weights(first)
    assert client.queries == first.client.queries


def pinned(seed: int, out: Path | None = None) -> QueryClient:
    """A module with weights of its own, which its identity pins."""
    return QueryClient(TorchBox(filled(smooth_model(), seed), "logits"), ledger=out and out / "ledger.sqlite")


def test_a_module_with_other_weights_is_refused_in_words(tmp_path: Path) -> None:
    fit(pinned(1), "ZO-DS", out=tmp_path)
    other = pinned(2)
    with pytest.raises(
        ConfigMismatch,
        match=r": the model has changed since this run began: its identity was",
    ):
        fit(other, "ZO-DS", out=tmp_path)
    assert other.attempts == 0
    assert fit(pinned(1), "ZO-DS", out=tmp_path).client.queries == 0


def saved(method: str, client: QueryClient, directory: Path) -> Defense:
    change: dict[str, Any] = {"classifier": smooth_model()} if method == "RS" else {"denoiser": "dncnn"}
    defense = fit(client, method, **change)
    defense.save(directory)
    return defense


def loaded(method: str, client: QueryClient, directory: Path) -> Defense:
    return load_defense(directory, client, **({"classifier": smooth_model()} if method == "RS" else {}))


@pytest.mark.parametrize(("method", "other", "warned"), [("DS", 2, True), ("DS", 1, False), ("RS", 2, False)])
def test_a_defense_in_front_of_another_model_says_so_once(
    method: str, other: int, warned: bool, tmp_path: Path
) -> None:
    """RS answers with the classifier that it saved: the box is not asked."""
    saved(method, pinned(1), tmp_path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loaded(method, pinned(other), tmp_path)
    assert len(said) == warned
    assert all("the model has changed since the defense in" in str(word.message) for word in said)


def test_without_an_identity_on_either_side_there_is_no_word(tmp_path: Path) -> None:
    saved("DS", pinned(1), tmp_path)
    load_defense(tmp_path, QueryClient(as_blackbox(model(), "logits", clip=False)))


def test_a_defense_knows_its_training_and_validation_images(tmp_path: Path) -> None:
    images, validation = pictures(6), pictures(4, seed=1)
    defense = fit(pinned(1), "DS", images=images, validation=validation, denoiser="dncnn")
    known = defense.trained_on
    assert known is not None
    assert known.dtype == torch.int64
    assert torch.equal(known, known.unique())
    assert len(known) == 10
    twice = fit(pinned(1), "DS", images=images, validation=images, denoiser="dncnn").trained_on
    assert twice is not None
    assert set(twice.tolist()) < set(known.tolist())
    defense.save(tmp_path)
    again = load_defense(tmp_path, pinned(1))
    assert again.trained_on is not None
    assert torch.equal(again.trained_on, known)
    assert again.model_id == defense.model_id == replace(defense, trained_on=None).model_id


def test_the_digest_of_a_black_image_is_the_same_everywhere() -> None:
    """The first 8 bytes of SHA-256 over "(1, 2, 2)" and four zeros, little-endian."""
    black = replace(pictures(2, shape=(1, 2, 2)), images=torch.zeros(2, 1, 2, 2, dtype=torch.uint8))
    assert trained_on(black).tolist() == [-1361911821017124787]


def test_a_defense_from_before_does_not_know_its_images(tmp_path: Path) -> None:
    saved("DS", pinned(1), tmp_path)
    tensors, facts = read_tensors(tmp_path / "defense.safetensors")
    del tensors["trained_on"]
    write_tensors(tmp_path / "defense.safetensors", tensors, facts)
    assert load_defense(tmp_path, pinned(1)).trained_on is None

"""Training against closed forms: first order is the oracle of zeroth order, counts are exact, stops change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from certibox.blackbox import TorchBox
from certibox.defense.saved import load_defense
from certibox.errors import (
    InvalidInput,
)
from certibox.networks import dncnn, fitting_autoencoder
from certibox.queries.client import QueryClient
from certibox.training.defenses import METHODS
from training_runs import SHAPE, Own, bottleneck, filled, fit, linear, pictures, smooth_model, weights


@pytest.mark.parametrize("method", list(METHODS))
def test_a_saved_defense_answers_bit_for_bit(method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = fitting_autoencoder(SHAPE, 5, width=2) if METHODS[method].bottleneck else None
    client = QueryClient(TorchBox(smooth_model(), "logits"))
    defense = fit(client, method, denoiser=dncnn(1, 3, 4), autoencoder=own, fingerprint=True)
    defense.save(tmp_path)
    spent = client.queries
    loaded = load_defense(tmp_path, client, classifier=smooth_model() if method == "RS" else None)
    assert client.queries == spent
    x = pictures(30, seed=4).floats()
    assert torch.equal(loaded.outputs(x), defense.outputs(x))
    assert torch.equal(loaded.robustify(x), defense.robustify(x))
    assert torch.equal(loaded.denoise(x), defense.denoise(x))
    assert weights(loaded) == weights(defense)
    for name in ("method", "sigma", "image_shape", "num_classes", "fingerprint", "model_id"):
        assert getattr(loaded, name) == getattr(defense, name)
    assert loaded.fingerprint is not None
    loaded.fingerprint.check(client)


def test_own_modules_are_given_back_to_a_saved_defense(tmp_path: Path) -> None:
    box = linear()
    defense = fit(box, "ZO-AE-DS")
    defense.save(tmp_path)
    client = QueryClient(box)
    with pytest.raises(
        InvalidInput, match=r"has a denoiser of your own; give it: load_defense\(..., denoiser=module\)"
    ):
        load_defense(tmp_path, client, autoencoder=bottleneck())
    with pytest.raises(InvalidInput, match=r"has a autoencoder of your own; give it: .*autoencoder=module"):
        load_defense(tmp_path, client, denoiser=Own())
    with pytest.raises(InvalidInput, match="the saved denoiser does not fit"):
        load_defense(tmp_path, client, denoiser=dncnn(1, 3, 4), autoencoder=bottleneck())
    loaded = load_defense(tmp_path, client, denoiser=filled(Own(), 99), autoencoder=filled(bottleneck(), 98))
    x = pictures(30, seed=4).floats()
    assert torch.equal(loaded.outputs(x), defense.outputs(x))
    with pytest.raises(InvalidInput, match="is for a box that answers logits, this one answers labels"):
        load_defense(tmp_path, QueryClient(linear("labels")), denoiser=Own(), autoencoder=bottleneck())

"""A prediction that ends early has the votes of a certificate, ends where its rule ends it, and says what it took."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from certibox.blackbox import as_blackbox
from certibox.certification.pilot import expected_answer
from certibox.certification.smoothing import SmoothedClassifier
from certibox.certification.stored import row_of
from certibox.confidence import RankVerification
from certibox.errors import InvalidInput
from certibox.queries.client import QueryClient
from doubles import ANYWHERE, LinearBox, alone

SIGMA, RULE = 0.25, RankVerification()


def smoothed(classes: int = 3) -> tuple[SmoothedClassifier, LinearBox]:
    box = LinearBox(torch.randn(classes, 6, generator=torch.Generator().manual_seed(1)))
    return SmoothedClassifier(alone(lambda x: box(x)), classes, SIGMA), box


def pictures(count: int) -> Tensor:
    return torch.rand(count, 1, 2, 3, generator=torch.Generator().manual_seed(0))


def test_votes_are_the_first_of_a_certificate_of_the_same_seed() -> None:
    model, _ = smoothed()
    for x in pictures(8):
        made = model.predict(x, n=400, alpha=0.01, seed=7, rule=RULE, n0=5)
        whole = model.certify(x, n0=5, n=made.n, alpha=0.2, seed=7)
        assert made.counts == whole.counts
        assert made.first.index(max(made.first)) == whole.selected
        assert (sum(made.counts), sum(made.first), made.queries) == (made.n, 5, made.n + 5)


def test_it_ends_at_the_first_look_that_its_rule_ends_at() -> None:
    model, _ = smoothed()
    sizes = RULE.sizes(400, 0.01)
    for x in pictures(8):
        made = model.predict(x, n=400, alpha=0.01, seed=7, rule=RULE)
        for size in sizes:
            counts = model.certify(x, n0=1, n=max(size, 10), alpha=0.5, seed=7).counts if size >= 10 else None
            if counts is None:
                continue
            decision = RULE.decide(counts, (0, 0, 0), 400, 0.01)
            assert decision.stop == (size >= made.n)
            if decision.stop:
                assert (made.n, made.label, made.p_value) == (size, decision.label, decision.p_value)
                break
        assert made.rule == {**RULE.as_dict(), "cap": 400}


def test_a_batch_gives_the_predictions_of_its_images() -> None:
    model, _ = smoothed()
    x = pictures(5)
    together = model.predict(x, n=300, alpha=0.01, seed=0, rule=RULE, batch_size=37)
    assert together == [model.predict(one, n=300, alpha=0.01, seed=0, rule=RULE) for one in x]
    assert together == model.predict(x.numpy(), n=300, alpha=0.01, seed=0, rule=RULE)


@ANYWHERE
def test_far_images_take_few_votes_and_those_on_the_boundary_abstain() -> None:
    """Two classes, told apart by one pixel at 1/2: one image three sigma away from there, the other on the spot."""
    box = as_blackbox(lambda images: (images[:, 0, 0, 0] > 0.5).astype(np.int64), "labels", num_classes=2, name="half")
    client = QueryClient(box)
    model = SmoothedClassifier(client, 2, 0.1)
    far, near = (torch.tensor([value, 0.3]).reshape(1, 1, 2) for value in (0.8, 0.5))
    made = model.predict(far, n=1000, alpha=0.001, seed=0, rule=RULE)
    assert (made.label, made.queries <= 16) == (1, True)
    before = client.spent["query"]
    made = model.predict(near, n=1000, alpha=0.001, seed=0, rule=RULE)
    assert made.label is None
    assert client.spent["query"] - before == made.queries


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rule": None, "n0": 5}, "n0 is 5 without a rule"),
        ({"n0": -1}, "n0 is -1"),
        ({"n": 5}, "the smallest n is"),
        ({"alpha": 0.0}, "alpha"),
    ],
)
def test_what_cannot_be_answered_is_refused(change: dict[str, Any], words: str) -> None:
    model, _ = smoothed()
    with pytest.raises(InvalidInput, match=words):
        model.predict(pictures(1)[0], **{"n": 300, "alpha": 0.01, "seed": 0, "rule": RULE, **change})


def test_a_pilot_expects_what_predictions_take() -> None:
    model, _ = smoothed()
    x = pictures(60)
    certificates = model.certify(x, n0=5, n=2000, alpha=0.001, seed=3)
    rows = [row_of(made, i, None, 0.0, "m", "0") for i, made in enumerate(certificates)]
    expected = expected_answer(rows, RULE, 500, 0.01)
    taken = np.array([made.queries for made in model.predict(x, n=500, alpha=0.01, seed=11, rule=RULE)])
    assert abs(expected - taken.mean()) <= 4 * taken.std() / 60**0.5
    with pytest.raises(InvalidInput, match="no rows"):
        expected_answer([], RULE, 500, 0.01)

"""Modules are certified as they are used, and what depends on the batch is said: two queries, once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import certibox as cb
from certibox.blackbox import as_blackbox
from certibox.certification.alone import DEPENDS, PHASE
from certibox.certification.smoothing import SmoothedClassifier
from certibox.errors import BadOutput, BoxFailed, InvalidInput, NotAnswered
from certibox.queries.client import QueryClient
from doubles import CountingBox, LinearBox

SIGMA = 0.25
VOTES: dict[str, Any] = {"n0": 20, "n": 200, "alpha": 0.01, "seed": 0}
ONCE: dict[str, Any] = {"n": 50, "alpha": 0.01, "seed": 1}
ONE = torch.rand(1, 2, 3, generator=torch.Generator().manual_seed(0))


def linear() -> LinearBox:
    return LinearBox(torch.randn(3, 6, generator=torch.Generator().manual_seed(1)))


class Normed(nn.Module):
    """A linear model behind a batch norm and a dropout, in training as modules are when they are made."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.drop, self.head = nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Linear(6, 3)
        self.norm.running_mean = torch.tensor([0.4])
        self.norm.running_var = torch.tensor([0.3])
        self.seen: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.training)
        return self.head(self.drop(self.norm(x)).flatten(1))


# ------------------------------------------------------------------------------------------------------------ modules


@pytest.mark.parametrize("of", [lambda module: module, lambda module: module.forward], ids=["module", "its method"])
def test_a_module_in_training_is_certified_as_the_same_one_in_evaluation(of: Callable[[nn.Module], Any]) -> None:
    module, wanted = Normed().train(), Normed().eval()
    smoothed = SmoothedClassifier(of(module), 3, SIGMA)
    reference = SmoothedClassifier(lambda x: wanted(x), 3, SIGMA)
    assert smoothed.certify(ONE, **VOTES) == reference.certify(ONE, **VOTES)
    module.train()  # its owner goes on training it
    module.norm.train()
    assert smoothed.predict(ONE, n=50, alpha=0.01, seed=1) == reference.predict(ONE, n=50, alpha=0.01, seed=1)
    module.norm.train()  # a part of it alone
    assert smoothed.predict(ONE, n=50, alpha=0.01, seed=2) == reference.predict(ONE, n=50, alpha=0.01, seed=2)
    assert module.seen
    assert not any(module.seen)
    for name, value in wanted.state_dict().items():
        assert torch.equal(module.state_dict()[name], value)
    assert all(parameter.grad is None for parameter in module.parameters())


class Stubborn(Normed):
    """One whose mode nobody may set: its `train`, and so its `eval`, raises."""

    def train(self, mode: bool = True) -> Any:
        raise RuntimeError("the mode of this module is fixed")


def test_a_module_whose_train_raises_is_certified_in_evaluation_all_the_same() -> None:
    module, wanted = Stubborn(), Normed().eval()
    assert module.training
    smoothed = SmoothedClassifier(module, 3, SIGMA)
    assert smoothed.certify(ONE, **VOTES) == SmoothedClassifier(lambda x: wanted(x), 3, SIGMA).certify(ONE, **VOTES)
    assert not any(module.seen)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_frozen_program_which_has_no_mode_is_certified_as_its_module() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).eval()
    frozen = torch.jit.freeze(torch.jit.trace(module, ONE[None]))
    certified = [SmoothedClassifier(base, 3, SIGMA).certify(ONE, **VOTES) for base in (frozen, module)]
    assert certified[0] == certified[1]


def test_a_module_is_named_by_its_weights() -> None:
    first, same, other = Normed(), Normed(), Normed()
    with torch.no_grad():
        other.head.weight[0, 0] += 1
    names = [SmoothedClassifier(module, 3, SIGMA).model_id for module in (first, same, other)]
    assert names[0] == names[1] != names[2]
    assert names[0].startswith("Normed:")
    assert repr(SmoothedClassifier(first, 3, SIGMA)) == "SmoothedClassifier(Normed, num_classes=3, sigma=0.25)"


def test_a_box_is_certified_and_named_as_its_client() -> None:
    box = as_blackbox(Normed(), "logits", max_batch=7)
    client = QueryClient(box)
    direct, metered = SmoothedClassifier(box, 3, SIGMA), SmoothedClassifier(client, 3, SIGMA)
    assert direct.certify(ONE, **VOTES) == metered.certify(ONE, **VOTES)
    assert direct.model_id == metered.model_id == client.model_id


def test_a_box_is_never_asked_more_than_it_takes() -> None:
    sizes: list[int] = []

    def noting(x: np.ndarray) -> np.ndarray:
        sizes.append(len(x))
        return x.reshape(len(x), -1)[:, :3]

    SmoothedClassifier(as_blackbox(noting, "logits", max_batch=7), 3, SIGMA).certify(ONE, **VOTES)
    assert max(sizes) == 7


def test_a_function_of_arrays_is_told_of_as_blackbox() -> None:
    smoothed = SmoothedClassifier(lambda x: x.flatten(1)[:, :3].numpy(), 3, SIGMA)  # pyright: ignore
    came = r"gave ndarray for 220 images; .*certibox\.as_blackbox\(function, outputs=\.\.\.\)"
    with pytest.raises(BadOutput, match=came):
        smoothed.certify(ONE, **VOTES)


@pytest.mark.parametrize(
    ("base", "classes", "came"),
    [
        ("model.onnx", 3, "the base classifier is a str"),
        (None, 3, "the base classifier is a NoneType"),
        (linear(), "3", "num_classes is '3'"),
        (linear(), 2.5, r"num_classes is 2\.5"),
        (linear(), True, "num_classes is True"),
    ],
)
def test_what_is_no_base_classifier_is_refused(base: Any, classes: Any, came: str) -> None:
    with pytest.raises(InvalidInput, match=came) as error:
        SmoothedClassifier(base, classes, SIGMA)
    assert "\n" not in str(error.value)


def test_numbers_of_numpy_are_numbers() -> None:
    given: dict[str, Any] = {**VOTES, "seed": np.int64(7), "batch_size": np.int64(50)}
    classes: Any = np.int64(3)
    made = SmoothedClassifier(linear(), classes, SIGMA).certify(ONE, **given)
    assert type(made.seed) is int
    assert made == SmoothedClassifier(linear(), 3, SIGMA).certify(ONE, **{**VOTES, "seed": 7})


@pytest.mark.parametrize("seed", [1.5, "1", None])
def test_a_seed_that_is_no_whole_number_is_refused_before_any_query(seed: Any) -> None:
    box = CountingBox(linear())
    smoothed = SmoothedClassifier(box, 3, SIGMA)
    for ask, given in ((smoothed.certify, VOTES), (smoothed.predict, ONCE)):
        with pytest.raises(InvalidInput, match=f"seed is {seed!r}; wanted a whole number"):
            ask(ONE, **{**given, "seed": seed})
    assert box.calls == 0


# ---------------------------------------------------------------------------------------------------- alone or not


def centred(x: Tensor) -> Tensor:
    """Scores of an image that depend on the others: batch norm in training does this."""
    flat = x.flatten(1)
    return (flat - flat.mean(0))[:, :3]


def chance(x: Tensor) -> Tensor:
    return torch.randint(0, 3, (len(x),))


def places(x: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(torch.arange(len(x)) * 3 // len(x), 3).float() + (len(x) > 2)


def trained(x: Tensor) -> Tensor:
    return MODULE(x)


MODULE = Normed().train()


@pytest.mark.parametrize("base", [centred, chance, trained, places], ids=["centred", "chance", "trained", "places"])
def test_an_answer_that_depends_on_the_batch_or_on_chance_is_said_once(base: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(1)
    smoothed = SmoothedClassifier(base, 3, SIGMA)
    with pytest.warns(UserWarning, match="depends on the other images of its batch") as seen:
        smoothed.certify(ONE, **VOTES)
    assert [str(warning.message) for warning in seen] == [DEPENDS]
    smoothed.certify(ONE, **VOTES)  # where a warning is an error


def rounding(x: Tensor) -> Tensor:
    """Scores that the size of the batch rounds, as kernels do."""
    return x.flatten(1)[:, :3] + len(x) * 1e-8


def half(x: Tensor) -> Tensor:
    """Scores in half precision, one unit in the last place apart."""
    scores = x.flatten(1)[:, :3].to(torch.bfloat16)
    return scores * (1 + torch.finfo(torch.bfloat16).eps * (len(x) == 2))


@pytest.mark.parametrize("base", [rounding, half, linear()], ids=["rounding", "half", "linear"])
def test_rounding_is_no_dependence(base: Callable[[Tensor], Tensor]) -> None:
    assert SmoothedClassifier(base, 3, SIGMA).certify(ONE, **VOTES).n == 200  # a warning is an error here


def test_what_works_in_place_is_compared_on_the_same_images() -> None:
    def brighter(x: Tensor) -> Tensor:
        return x.mul_(2).flatten(1)[:, :3]

    assert SmoothedClassifier(brighter, 3, SIGMA).certify(ONE, **VOTES).n == 200


def metered(function: Callable[[np.ndarray], np.ndarray], **settings: Any) -> QueryClient:
    return QueryClient(as_blackbox(function, "logits", batch_size=50), **settings)


def scores(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)[:, :3]


def batch_scores(x: np.ndarray) -> np.ndarray:
    return scores(x - x.mean(0))


def test_behind_a_meter_it_costs_two_queries_once_under_a_name_of_their_own() -> None:
    client = metered(scores)
    smoothed = SmoothedClassifier(client, 3, SIGMA)
    for _ in range(2):
        smoothed.certify(ONE, **VOTES)
    assert client.spent == {"query": 440, PHASE: 2}
    with pytest.warns(UserWarning, match="depends on the other images"):
        SmoothedClassifier(metered(batch_scores), 3, SIGMA).certify(ONE, **VOTES)


def test_certiboxs_own_adapters_and_what_says_so_are_not_asked() -> None:
    client = QueryClient(as_blackbox(Normed(), "logits"))
    SmoothedClassifier(client, 3, SIGMA).certify(ONE, **VOTES)
    box = CountingBox(linear())
    SmoothedClassifier(box, 3, SIGMA).certify(ONE, **VOTES)
    assert client.queries == box.images == 220


@pytest.mark.parametrize(("budget", "asked"), [(220, 0), (221, 0), (222, 2), (None, 2)])
def test_a_budget_that_the_work_needs_is_not_asked_for_more(budget: int | None, asked: int) -> None:
    client = metered(batch_scores, budget=budget)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SmoothedClassifier(client, 3, SIGMA).certify(ONE, **VOTES)
    assert client.queries == 220 + asked


@pytest.mark.parametrize(("budget", "asked"), [(660, 0), (661, 0), (662, 2)])
def test_a_budget_that_is_the_plan_pays_a_whole_data_set(budget: int, asked: int) -> None:
    images = cb.Images(torch.arange(18, dtype=torch.uint8).reshape(3, 1, 2, 3) * 9, None, "steps")
    client = metered(scores, budget=budget)
    rows = cb.certify_dataset(SmoothedClassifier(client, 3, SIGMA), images, **VOTES)
    assert len(rows) == 3
    assert client.queries == 660 + asked


def test_one_image_at_a_time_is_alone() -> None:
    client = metered(batch_scores)
    client.batch_size = 1
    SmoothedClassifier(client, 3, SIGMA).certify(ONE, **VOTES)
    assert client.queries == 220


@pytest.mark.parametrize(
    "error", [RuntimeError("out of order"), NotAnswered("closed on Sundays")], ids=["failed", "refused"]
)
@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_check_that_fails_costs_no_votes_that_were_paid_for(
    tmp_path: Path, error: Exception, concurrency: int
) -> None:
    errors = [error]

    def failing(x: np.ndarray) -> np.ndarray:
        if len(x) == 2 and errors:
            raise errors.pop()
        return scores(x)

    images = cb.Images(torch.arange(18, dtype=torch.uint8).reshape(3, 1, 2, 3) * 9, None, "steps")
    box = as_blackbox(failing, "logits", batch_size=50, concurrency=concurrency, name="steps")
    client = QueryClient(box)
    smoothed = SmoothedClassifier(client, 3, SIGMA)
    if isinstance(error, RuntimeError):
        with pytest.raises(BoxFailed, match=r"out of order"):
            cb.certify_dataset(smoothed, images, **VOTES, out=tmp_path / "rows.jsonl")
    cb.certify_dataset(smoothed, images, **VOTES, out=tmp_path / "rows.jsonl")
    assert client.spent["certify"] == 660
    assert client.lost == (2 if isinstance(error, RuntimeError) else 0)
    assert not errors

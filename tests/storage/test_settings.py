"""Schedules give the rates that were worked out by hand; configurations are compared setting by setting."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certibox.errors import ConfigMismatch, InvalidInput
from certibox.storage.settings import digest, require_same
from certibox.training.schedules import SCHEDULES, Phase, Schedule, one_cycle, paper_finetune, paper_scratch

STEPS = 7  # an epoch


def at_epoch(schedule: Schedule, epoch: int) -> tuple[str, str, float]:
    """(optimizer, objective, rate) of an epoch counted over all phases, the same at its first and its last step."""
    for phase in schedule.phases:
        if epoch < phase.epochs:
            rates = {phase.learning_rate(epoch * STEPS + i, STEPS) for i in range(STEPS)}
            assert len(rates) == 1
            return phase.optimizer, phase.objective, rates.pop()
        epoch -= phase.epochs
    raise IndexError(epoch)


@pytest.mark.parametrize(
    ("epoch", "optimizer", "rate"),
    [
        (0, "adam", 1e-3),
        (199, "adam", 1e-3),
        (200, "sgd", 1e-3),
        (399, "sgd", 1e-3),
        (400, "sgd", 1e-4),
        (599, "sgd", 1e-4),
    ],
)
def test_rates_of_training_from_scratch(epoch: int, optimizer: str, rate: float) -> None:
    assert at_epoch(paper_scratch(), epoch) == (optimizer, "full", pytest.approx(rate, rel=1e-12))
    assert at_epoch(paper_scratch(lr=1e-4), epoch)[2] == pytest.approx(rate / 10, rel=1e-12)


@pytest.mark.parametrize(
    ("epoch", "objective", "rate"),
    [
        (0, "denoise", 1e-3),
        (89, "denoise", 1e-3),
        (90, "full", 1e-5),
        (129, "full", 1e-5),
        (130, "full", 1e-6),
        (169, "full", 1e-6),
        (170, "full", 1e-7),
        (210, "full", 1e-8),
        (250, "full", 1e-9),
        (289, "full", 1e-9),
    ],
)
def test_rates_of_fine_tuning(epoch: int, objective: str, rate: float) -> None:
    assert at_epoch(paper_finetune(), epoch) == ("adam", objective, pytest.approx(rate, rel=1e-12))


def test_lengths_of_the_presets() -> None:
    assert (paper_scratch().epochs, paper_scratch().batch_size) == (600, 256)
    assert paper_finetune().epochs == 290
    assert one_cycle(5, denoise_epochs=3).epochs == 8
    assert len(one_cycle(5).phases) == 1
    assert set(SCHEDULES) == {"paper-scratch", "paper-finetune", "one-cycle"}


def test_one_cycle_of_five_steps_by_hand() -> None:
    (phase,) = one_cycle(1, lr=3.0).phases  # steps stand at 10, 30, 50, 70 and 90 % of the way
    fall = [1.5 * (1 + math.cos(math.pi * angle)) for angle in (0, 2 / 7, 4 / 7, 6 / 7)]
    assert [phase.learning_rate(step, 5) for step in range(5)] == pytest.approx([1.0, *fall], rel=1e-12)
    assert phase.learning_rate(1, 5) == 3.0


@given(epochs=st.integers(1, 30), steps=st.integers(30, 60))
def test_one_cycle_peaks_at_lr_after_30_percent_and_ends_near_0(epochs: int, steps: int) -> None:
    (phase,) = one_cycle(epochs, lr=0.01).phases
    total = epochs * steps
    rates = [phase.learning_rate(step, steps) for step in range(total)]
    peak = rates.index(max(rates))
    assert abs((peak + 0.5) / total - 0.3) <= 1 / total
    assert 0.01 * (1 - 2 / total) <= rates[peak] <= 0.01
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < rates[0] <= 0.01 / (0.6 * total) * (1 + 1e-9)
    assert 0 < rates[-1] < 0.01 * (math.pi / 1.4 / total) ** 2  # 1 - cos t < t²/2


def test_each_cycle_of_a_schedule_is_its_own() -> None:
    warm, main = one_cycle(6, lr=0.1, denoise_epochs=2).phases
    assert (warm.objective, main.objective) == ("denoise", "full")
    slow = [main.learning_rate(3 * step + 1, 5) for step in range(10)]  # three times as long, at the same shares
    assert [warm.learning_rate(step, 5) for step in range(10)] == pytest.approx(slow, rel=1e-12)


@pytest.mark.parametrize(
    ("images", "steps"),
    [(0, 0), (1, 0), (2, 1), (63, 1), (64, 1), (65, 1), (66, 2), (127, 2), (128, 2), (129, 2), (130, 3)],
)
def test_a_last_batch_of_one_joins_no_step(images: int, steps: int) -> None:
    assert one_cycle(1, batch_size=64).steps_per_epoch(images) == steps


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"epochs": -1}, "epochs is -1"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"decay_every": 0}, "decay_every is 0"),
        ({"optimizer": "Adam"}, "optimizer is 'Adam'; wanted one of adam, sgd"),
        ({"objective": "mse"}, "objective is 'mse'; wanted one of full, denoise"),
        ({"shape": "onecycle"}, "shape is 'onecycle'; wanted one of step, one-cycle"),
    ],
)
def test_wrong_phases_are_refused(wrong: dict, named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        Phase(**{"epochs": 1, "lr": 0.1, **wrong})


def test_batches_of_one_are_refused() -> None:
    with pytest.raises(InvalidInput, match="batch_size is 1"):
        Schedule((Phase(1, 0.1),), batch_size=1)


def test_schedules_are_frozen_values() -> None:
    assert paper_scratch() == paper_scratch()
    assert hash(paper_scratch()) == hash(paper_scratch())
    with pytest.raises(FrozenInstanceError):
        paper_scratch().batch_size = 2  # pyright: ignore[reportAttributeAccessIssue]


# --- comparing configurations -----------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(config=st.dictionaries(st.text(), plain, max_size=5))
def test_the_digest_does_not_know_the_order_of_keys(config: dict) -> None:
    def turned(value: object) -> object:
        return {key: turned(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    assert digest(dict(reversed(config.items()))) == digest(config)
    assert digest({key: turned(value) for key, value in config.items()}) == digest(config)
    assert digest(config | {"one more": 1}) != digest(config | {"one more": 2})


def test_the_digest_is_pinned_and_spells_dataclasses_as_their_fields() -> None:
    assert digest({"sigma": 0.25, "method": "ZO-AE-DS", "radii": [0, 0.5]}) == "a89ab1147598a2db"
    schedule = paper_scratch()
    assert digest({"schedule": schedule}) == digest({"schedule": asdict(schedule)})
    assert digest({"schedule": schedule}) != digest({"schedule": paper_finetune()})


def test_equal_configurations_pass() -> None:
    require_same({"a": 1, "b": [1, 2]}, {"b": [1, 2], "a": 1}, "run")


@given(
    there=st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 2)),
    here=st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 2)),
)
def test_differing_settings_are_named_three_at_most(there: dict[str, int], here: dict[str, int]) -> None:
    differing = {key for key in "abcdef" if there.get(key) != here.get(key)}
    try:
        require_same(there, here, "run/7")
    except ConfigMismatch as error:
        changes = [f"{key} is {there.get(key)!r} there and {here.get(key)!r} here" for key in sorted(differing)]
        more = [f"and {len(differing) - 3} more"] if len(differing) > 3 else []
        place, rest = str(error).split(": ", 1)
        assert place.startswith("run/7 ")
        assert rest.split("; ")[:-1] == [*changes[:3], *more] != []
    else:
        assert not differing


def test_a_setting_within_another_is_named_by_its_path_and_nothing_else_is_printed() -> None:
    rule = {"name": "e-process", "radii": [0.1, 0.2], "futility": 0.05}
    there = {"rule": rule, "schedule": asdict(paper_scratch()), "seed": 0}
    here = {"rule": rule | {"radii": [0.1]}, "schedule": asdict(paper_scratch(batch_size=32)), "seed": 0}
    there["schedule"]["phases"] = [dict(phase) for phase in there["schedule"]["phases"]]
    there["schedule"]["phases"][1]["lr"] = 0.5
    with pytest.raises(ConfigMismatch) as caught:
        require_same(there, here, "run")
    assert str(caught.value) == (
        "run holds work of another configuration: rule.radii is [0.1, 0.2] there and [0.1] here; "
        "schedule.batch_size is 256 there and 32 here; "
        "schedule.phases.1.lr is 0.5 there and 0.001 here; use the same settings or another directory"
    )
    with pytest.raises(ConfigMismatch, match=r": rule is e-process there and None here; use"):
        require_same(there, there | {"rule": None}, "run")


def test_a_long_value_is_cut_short() -> None:
    with pytest.raises(ConfigMismatch) as caught:
        require_same({"images": "a" * 500}, {"images": "b"}, "run")
    assert f"images is '{'a' * 78}… there and 'b' here" in str(caught.value)

"""How many images at a time: the fastest size is found, whatever the machine does in between, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import certibox as cb
from certibox.blackbox import TorchBox, pace
from certibox.blackbox.pace import TRIES, Pace
from certibox.commands.certifying import _BareBox


def settled(seconds_an_image: Callable[[int], float], usual: int = 64, most: int = 1024, calls: int = 100) -> int:
    """The size that a pace ends at where an image takes so long in calls of each size."""
    made = Pace(usual, most)
    for _ in range(calls):
        made.note(made.size, seconds_an_image(made.size) * made.size)
    return made.size


def test_it_ends_at_the_size_of_the_least_time() -> None:
    for best in (64, 128, 256, 512, 1024):
        assert settled(lambda n, best=best: 1.0 + abs(n - best) / 100) == best


def test_a_call_that_was_disturbed_does_not_mislead_it() -> None:
    disturbed = iter([50.0, 1.0, 1.0] * 40)
    assert settled(lambda n: next(disturbed) * (1.0 + 64 / n)) == 1024


def test_a_gain_too_small_to_tell_is_no_reason_to_grow() -> None:
    assert settled(lambda n: 1.0 - 1e-4 * n / 64) == 64


@pytest.mark.parametrize(("usual", "most"), [(64, 100), (64, 64), (256, 300), (1, 1)])
def test_the_most_is_never_exceeded(usual: int, most: int) -> None:
    made, seen = Pace(usual, most), []
    for _ in range(50):
        seen.append(made.size)
        made.note(made.size, 1.0)
    assert max(seen) <= most
    assert min(seen) >= 1


def test_calls_of_another_size_tell_nothing() -> None:
    made = Pace(64)
    for _ in range(10 * TRIES):
        made.note(63, 1e-9)
    assert made.size == 64


def test_parts_together_are_the_whole_in_order() -> None:
    made, seen = Pace(4, 16), []

    def work(part: Tensor) -> Tensor:
        seen.append(len(part))
        return part.flatten(1).sum(1)

    images = torch.rand(100, 1, 2, 2)
    for _ in range(5):
        assert torch.equal(made.in_parts(work, images), images.flatten(1).sum(1))
    assert sum(seen) == 500
    assert max(seen) <= 16


class Sized(nn.Module):
    """A linear model that notes how many images it is given at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.sizes = nn.Linear(4, 3), []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.linear(x.flatten(1))


def certified(box: cb.BlackBox, batch_size: int | None = None) -> tuple[cb.QueryClient, cb.Certificate]:
    client = cb.QueryClient(box, batch_size=batch_size)
    smoothed = cb.SmoothedClassifier(client, num_classes=3, sigma=0.25)
    return client, smoothed.certify(torch.full((1, 2, 2), 0.5), n0=10, n=5000, alpha=0.001, seed=0)


def test_a_box_in_this_process_is_booked_a_thousand_at_a_time_and_asked_at_its_pace() -> None:
    module = Sized()
    box = TorchBox(module, "logits")
    client, certificate = certified(box)
    assert client.queries == certificate.queries == sum(module.sizes) == 5010
    assert client._meter.batches == 6  # 10 votes that select, and 5,000 in calls of 1,000
    assert max(module.sizes) <= pace.MOST
    assert module.sizes[1] == 64


def test_the_bare_box_of_the_command_line_is_booked_as_the_client_is() -> None:
    module = Sized()
    client = cb.QueryClient(TorchBox(module, "logits"))
    smoothed = cb.SmoothedClassifier(_BareBox(client, 3), num_classes=3, sigma=0.25)
    smoothed.certify(torch.full((1, 2, 2), 0.5), n0=10, n=5000, alpha=0.001, seed=0)
    assert client.queries == sum(module.sizes) == 5010
    assert client._meter.batches == 7  # one image is asked alone first: it tells the number of classes


@pytest.mark.parametrize("where", ["client", "box"])
def test_a_batch_size_that_was_chosen_is_kept(where: str) -> None:
    module = Sized()
    box = TorchBox(module, "logits", batch_size=50) if where == "box" else TorchBox(module, "logits")
    client, certificate = certified(box, 50 if where == "client" else None)
    assert max(module.sizes) == 50
    assert client.queries == certificate.queries


def test_the_votes_are_those_of_any_batch_size() -> None:
    torch.manual_seed(0)
    module = Sized()
    free, chosen = certified(TorchBox(module, "logits")), certified(TorchBox(module, "logits", batch_size=7))
    assert free[1].counts == chosen[1].counts


def test_training_sends_what_it_always_did() -> None:
    """Answers that a journal holds are found again only by batches of the same images."""
    module = Sized()
    client = cb.QueryClient(TorchBox(module, "logits"))
    client(torch.rand(200, 1, 2, 2))
    assert module.sizes == [64, 64, 64, 8]


def test_the_largest_batch_of_the_box_holds_whatever_is_asked() -> None:
    module = Sized()
    client, certificate = certified(TorchBox(module, "logits", max_batch=30))
    assert max(module.sizes) == 30
    assert client.queries == certificate.queries

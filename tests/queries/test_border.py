"""What is let through to a box, and that neither side can change what the other holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from certibox.blackbox import BlackBox, BoxSpec, as_blackbox
from certibox.errors import InvalidImages
from certibox.queries.client import QueryClient
from doubles import CountingBox, LinearBox

WEIGHT = torch.eye(4)


def images(n: int = 6) -> Tensor:
    return torch.rand((n, 1, 2, 2), generator=torch.Generator().manual_seed(0))


def with_pixel(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    x = images().to(dtype)
    x[3, 0, 1, 0] = value
    return x


# --- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_refused_and_not_paid_for(value: float, dtype: torch.dtype) -> None:
    box = CountingBox(LinearBox(WEIGHT))
    client = QueryClient(box, budget=10, batch_size=2)
    with pytest.raises(InvalidImages) as caught:
        client(with_pixel(value, dtype))
    assert str(caught.value) == (
        f"images hold {value} at (3, 0, 1, 0), 1 such pixels in all; wanted finite pixels on [0, 1]; "
        "a box that takes others is declared with takes_nan=True"
    )
    assert (box.calls, client.attempts, client.left) == (0, 0, 10)


def test_two_infinities_do_not_hide_each_other() -> None:
    x = with_pixel(np.inf)
    x[0, 0, 0, 0] = -np.inf
    with pytest.raises(InvalidImages, match=r"images hold -inf at \(0, 0, 0, 0\), 2 such pixels"):
        QueryClient(LinearBox(WEIGHT))(x)


def test_a_box_that_is_declared_to_take_nan_is_asked() -> None:
    declared = as_blackbox(lambda x: np.isnan(x).sum((1, 2)), "values", takes_nan=True, name="counts")
    answers = QueryClient(declared)(with_pixel(np.nan))
    assert answers.sum(1).tolist() == [0, 0, 0, 1, 0, 0]
    plain = as_blackbox(lambda x: np.isnan(x).sum((1, 2)), "values", name="counts")
    assert declared.spec.provenance() == {**plain.spec.provenance(), "takes_nan": True}
    assert "takes_nan" not in plain.spec.provenance()  # what was measured before there was such a field keeps its name


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 17.0), (0.0, 255.0), (-1.0, 255.0), (100.0, 120.0)], ids=lambda value: f"{value:g}"
)
def test_pixels_in_other_units_are_refused_before_they_are_paid_for(low: float, high: float) -> None:
    client = QueryClient(LinearBox(WEIGHT))
    x = low + (high - low) * images()
    x[0, 0, 0, 0], x[0, 0, 0, 1] = low, high
    with pytest.raises(InvalidImages, match=rf"^pixels go from {low:g} to {high:g}; .*: divide by .*, such as 255$"):
        client(x)
    assert client.attempts == 0


@pytest.mark.parametrize(
    "x",
    [
        images() * 15,
        images() - 7,
        (images() - 0.45) / 0.22,
        images() + 8 * torch.randn((6, 1, 2, 2), generator=torch.Generator().manual_seed(0)),
        torch.full((20, 1, 64, 64), 0.9).half(),  # whose sum no half can hold
        torch.tensor([3e38, 3e38, -3e38, -3e38]).reshape(1, 1, 2, 2),
    ],
    ids=["to 15", "below 0", "normalised", "strong noise", "halves", "a sum that is infinite on its way"],
)
def test_pixels_outside_of_0_and_1_are_let_through(x: Tensor) -> None:
    client = QueryClient(as_blackbox(lambda x: x.reshape(len(x), -1)[:, :2], "values", clip=False))
    assert len(client(x)) == len(x) == client.queries


def test_one_image_is_refused_with_the_way_to_ask_it() -> None:
    client = QueryClient(LinearBox(WEIGHT))
    with pytest.raises(InvalidImages) as caught:
        client(images()[0])
    assert str(caught.value) == (
        "images have shape (1, 2, 2); wanted a batch (n, channels, height, width): x[None] for one image"
    )
    assert len(client(images()[0][None])) == 1


# --- copies -----------------------------------------------------------------------------------------------------------


class Careless:
    """A box that writes into the images it is given and answers with the same memory every time."""

    spec = BoxSpec("values", name="careless")

    def __init__(self) -> None:
        self.memory = torch.zeros(2, 4)

    def __call__(self, x: Tensor) -> Tensor:
        x += 1
        torch.mul(x.flatten(1), 2, out=self.memory[: len(x)])
        return self.memory[: len(x)]


def test_a_careless_box_changes_nothing_that_callers_hold() -> None:
    client, x = QueryClient(Careless(), batch_size=2), images()
    before = x.clone()
    answers = client(x)
    assert torch.equal(x, before)
    assert torch.equal(answers, 2 * (before + 1).flatten(1))
    first = client(x[:2])
    client(x[2:4])
    assert torch.equal(first, answers[:2])
    first.zero_()  # nor do callers change what the box holds
    assert client.box.memory.any()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_careless_box_is_asked_with_arrays_and_gradients_too() -> None:
    client, array = QueryClient(Careless(), batch_size=2), images().numpy()
    before = array.copy()
    client(array)
    assert np.array_equal(array, before)
    x = images().requires_grad_()
    assert not client(x).requires_grad
    assert torch.equal(x, images())


class Same:
    """A box that answers with its images, and says whether it was given the caller's own memory."""

    spec = BoxSpec("values", name="same")

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1)


ADAPTERS: dict[str, BlackBox] = {
    "torch": as_blackbox(nn.Flatten(), "values"),
    "function": as_blackbox(lambda x: x.reshape(len(x), -1), "values"),
    "stranger": Same(),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_answer_shares_no_memory_with_the_images(kind: str) -> None:
    x = images()
    answers = QueryClient(ADAPTERS[kind])(x)
    assert torch.equal(answers, x.flatten(1))
    answers.zero_()
    assert torch.equal(x, images())


def test_a_copy_keeps_the_layout_of_the_images() -> None:
    seen = []

    class Watching(Same):
        def __call__(self, x: Tensor) -> Tensor:
            seen.append(x.stride())
            return super().__call__(x)

    x = torch.rand(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    QueryClient(Watching())(x)
    assert seen == [x.stride()]


def test_a_box_of_another_declaration_has_another_id() -> None:
    spec = BoxSpec("values")
    assert replace(spec, takes_nan=True).model_id != spec.model_id

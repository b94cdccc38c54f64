"""The linear model that all rows hold, its images, and its answers of every kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from certibox import QueryClient
from certibox.blackbox import as_blackbox
from file_makers import CLASSES, PIXELS, linear_map

SHAPE = (3, 2, 4)  # (c, h, w): channels by their number, whatever the layout
ROUNDING = 1e-4  # of single precision, over 24 pixels

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": lambda scores: scores,
    "probabilities": lambda scores: scores.softmax(1),
    "labels": lambda scores: scores.argmax(1),
    "values": lambda scores: scores,
}


def scores(images: Tensor, classes: int = CLASSES) -> Tensor:  # (n, c, h, w) -> (n, K); of one output, (n, 2)
    weight, bias = linear_map(classes)
    found = images.flatten(1).to(weight) @ weight.T + bias
    return found if classes > 1 else torch.cat([torch.zeros_like(found), found], 1)


def some_images() -> Tensor:
    """Six images (n, c, h, w) whose labels hold under the errors of 8 bits."""
    assert math.prod(SHAPE) == PIXELS
    drawn = torch.rand(64, *SHAPE, generator=torch.Generator().manual_seed(0))
    first, second = scores(drawn).topk(2).values.T
    return drawn[first - second > 1][:6]


def asked(model: Any, outputs: str, **declared: Any) -> Tensor:
    """What a model answers through the meter, to all images and to one."""
    client = QueryClient(as_blackbox(model, outputs, **declared))
    images = some_images()
    answer, alone = client(images), client(images[:1])
    torch.testing.assert_close(alone, answer[:1], atol=0.1, rtol=0)
    assert client.queries == len(images) + 1
    return answer


def require_equal(answer: Tensor, outputs: str, classes: int = CLASSES, error: float = ROUNDING) -> None:
    """Hold an answer to all images against the linear model."""
    wanted = scores(some_images(), classes)
    if classes == 1 and outputs == "probabilities":
        wanted = torch.cat([torch.zeros_like(wanted[:, :1]), wanted[:, 1:]], 1)
    torch.testing.assert_close(
        answer.to(wanted) if outputs != "labels" else answer, KINDS[outputs](wanted), atol=error, rtol=0
    )

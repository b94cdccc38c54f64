"""Boxes whose every answer, gradient and radius has a closed form, at images that need not be images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor

import pytest
import torch
from torch import Tensor

from certibox.blackbox import BlackBox, BoxSpec
from certibox.certification.noise import NEWEST, noisy
from certibox.confidence.gaussian import NoiseLaw

# For tests whose closed form holds at every point, also at those where a pixel is not on [0, 1].
ANYWHERE = pytest.mark.filterwarnings("ignore:an image has pixels outside:UserWarning")


def alone(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function, said to answer each image alone: certification then asks nothing but votes."""
    function.answers_alone = True  # pyright: ignore[reportFunctionMemberAccess]
    return function


class LinearBox:
    """Logits W x + b of the flattened image, or their softmax, their argmax, or the same numbers as values.

    weight: (K, d); bias: (K,), zero by default. The gradient of logit k is weight[k], everywhere.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, outputs: str = "logits") -> None:
        self.weight = weight
        self.bias = torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias
        self.spec = BoxSpec(outputs, num_classes=None if outputs == "values" else len(weight), name="linear")

    def __call__(self, x: Tensor) -> Tensor:  # (n, c, h, w) -> outputs
        return self.differentiable(x.detach())

    def differentiable(self, x: Tensor) -> Tensor:
        # No matrix product: on some processors its bits depend on the number of rows, and on where they lie in memory.
        logits = (x.flatten(1).to(self.weight)[:, None] * self.weight).sum(2) + self.bias
        if self.spec.outputs == "probabilities":
            return logits.softmax(1)
        return logits.argmax(1) if self.spec.outputs == "labels" else logits

    def radius(self, x: Tensor) -> Tensor:
        """l2 distance of each image to the nearest decision boundary. (n, c, h, w) -> (n,)

        With K = 2 this is also the exact radius of the smoothed classifier, for every sigma.
        """
        logits = x.flatten(1).to(self.weight) @ self.weight.T + self.bias  # (n, K)
        top = logits.argmax(1, keepdim=True)
        lead = logits.gather(1, top) - logits  # (n, K)
        norms = torch.linalg.vector_norm(self.weight[top] - self.weight, dim=2)  # (n, K)
        return (lead / norms).scatter(1, top, torch.inf).amin(1)


class QuadraticBox:
    """One value an image, x'Ax / 2 + b'x of the flattened image. matrix: (d, d), symmetric; linear: (d,)."""

    spec = BoxSpec("values", name="quadratic")

    def __init__(self, matrix: Tensor, linear: Tensor) -> None:
        self.matrix, self.linear = matrix, linear

    def __call__(self, x: Tensor) -> Tensor:  # (n, c, h, w) -> (n, 1)
        return self.differentiable(x.detach())

    def differentiable(self, x: Tensor) -> Tensor:
        flat = x.flatten(1).to(self.matrix)
        return ((flat @ self.matrix * flat).sum(1) / 2 + flat @ self.linear)[:, None]

    def gradient(self, x: Tensor) -> Tensor:
        """Ax + b. (n, c, h, w) -> (n, c, h, w)"""
        return (x.flatten(1).to(self.matrix) @ self.matrix + self.linear).reshape(x.shape)


class CountingBox:
    """Another box, with a record of what was asked: the number of images in each call, in order.

    It gives no gradients, so that whatever it answers was counted.
    """

    answers_alone = True  # so that only what a test asks is counted

    def __init__(self, box: BlackBox) -> None:
        self.box = box
        self.spec = box.spec
        self.batch_sizes: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:  # (n, c, h, w) -> outputs
        self.batch_sizes.append(len(x))
        return self.box(x)

    @property
    def calls(self) -> int:
        return len(self.batch_sizes)

    @property
    def images(self) -> int:
        return sum(self.batch_sizes)


def noisy_batches(
    x: Tensor,
    law: NoiseLaw,
    start: int,
    stop: int,
    size: int,
    path: tuple[int, *tuple[str, ...]],
    stream: int = NEWEST,
    threads: Executor | None = None,
) -> Iterator[Tensor]:
    """Samples start ... stop - 1 of a stream of noisy copies, in batches that go on from one another."""
    kept: dict[int, Tensor] = {}
    for low in range(start, stop, size):
        out = torch.empty((min(size, stop - low), *x.shape), dtype=x.dtype)
        noisy(x, law, low, path, out, kept, stream, threads)
        yield out

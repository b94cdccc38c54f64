"""The stability loss by queries: what an estimator differentiates, and the precision that its differences need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from certibox.defense.pipeline import RobustPipeline
from certibox.estimators import GradientEstimator
from certibox.networks.autoencoder import evaluating
from certibox.queries.client import QueryClient
from certibox.seeds.switches import Switch
from certibox.training.divergence import require_finite
from certibox.training.losses import Loss

Listener = Callable[[Tensor, Tensor, Tensor, Tensor], None]
SENT = "an image for the box is"  # in the message of an image that is not finite, and so is not sent
_TF32 = Switch()


@dataclass(frozen=True)
class StabilityObjective:
    """ℓ(z) = loss(f(ψ_dec(z)), target) at k variants of b points: what an estimator differentiates by queries.

    Points are decoded and asked in batches of the client's size, so memory does not grow with k.
    """

    pipeline: RobustPipeline
    """White part in front of the box, whose decoder makes images of points."""
    client: QueryClient
    """Client that answers images."""
    loss: Loss
    """Loss of each answer against its target."""
    target: Tensor
    """Targets (b, ...) of the b points."""
    image_shape: tuple[int, ...]
    """Shape (c, h, w) of an image."""
    exact: bool = True
    """Whether TF32 is switched off, where there is a GPU."""

    def __call__(self, points: Tensor, active: Tensor | None = None, listener: Listener | None = None) -> Tensor:
        """Losses (k, b) at points (k, b, d).

        Args:
            points: Variants (k, b, d) of the b points.
            active: Mask (k, b) of the points to ask about, all by default; the others score 0.
            listener: Function that is told of each batch: points (n, d), the images (n,) of 0 to b - 1 that they belong
                to, what the box saw (n, c, h, w) and what it answered.
        """
        k, b, _ = points.shape
        wanted = torch.arange(k * b, device=points.device) if active is None else active.flatten().nonzero().squeeze(1)
        flat, owner = points.flatten(0, 1), wanted % b
        losses = torch.zeros(k * b, dtype=points.dtype, device=points.device)
        with torch.inference_mode(), full_precision() if self.exact else nullcontext():
            for low in range(0, len(wanted), self.client.batch_size):
                chosen = wanted[low : low + self.client.batch_size]
                owners, images = owner[low : low + len(chosen)], self.pipeline.images(flat[chosen], self.image_shape)
                require_finite(images, SENT)
                outputs = self.client(images)
                losses[chosen] = self.loss(outputs, self.target[owners]).to(losses.dtype)
                if listener:
                    listener(flat[chosen], owners, images, outputs)
        return losses.reshape(k, b)


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch TF32 off inside, in convolutions and products: at small steps a difference drowns in their rounding.

    The switches belong to the process. While several threads are inside, the first has switched TF32 off and the last
    restores what was, so that nobody's switch is restored under somebody else. Without a GPU nothing is touched.
    """
    if not torch.cuda.is_available():  # a GPU that nobody has used so far may be used inside
        yield
        return
    with _TF32.changed(_without_tf32):
        yield


def _without_tf32() -> Callable[[], None]:
    """Switches TF32 off; returns what switches back."""
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    places: list[Any] = [getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None), matmul]
    parts = [part for part in places if hasattr(part, "fp32_precision")]  # none before torch 2.9
    before = [part.fp32_precision for part in parts]
    switches = [switch for switch in (cudnn, matmul) if _allows_tf32(switch)]

    def restore() -> None:
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision
        for switch in switches:
            switch.allow_tf32 = True

    try:
        for switch in switches:
            switch.allow_tf32 = False
        for part in parts:  # a global fp32_precision would outweigh the switches above
            part.fp32_precision = "ieee"
    except BaseException:
        restore()
        raise
    return restore


def tf32_is_on(device: torch.device) -> bool:
    """Whether convolutions or products on a device may round to TF32.

    Args:
        device: Device of the computation.
    """
    return device.type == "cuda" and (_allows_tf32(torch.backends.cudnn) or _allows_tf32(torch.backends.cuda.matmul))


def _allows_tf32(switch: Any) -> bool:
    try:
        return bool(switch.allow_tf32)
    except RuntimeError:  # its parts differ, and torch refuses to sum them up
        return False


def surviving_share(
    pipeline: RobustPipeline, x: Tensor, estimator: GradientEstimator, levels: int, generator: torch.Generator
) -> float:
    """Share of an estimator's perturbed inputs that a box with `levels` grey levels can tell from the unperturbed ones.

    An input counts as changed when at least a tenth of its step's energy lies on pixels that land on another grid
    value. Measured on the white part alone, in evaluation mode: no query is spent, and every module keeps its mode.

    Args:
        pipeline: White part in front of the box.
        x: Images (b, c, h, w).
        estimator: Estimator whose steps are tried.
        levels: Number of grey levels of the box.
        generator: Generator of the estimator's directions.

    Returns:
        A share in [0, 1]; 0 where no step survives the rounding of the embedding itself.
    """
    changed: list[Tensor] = []
    with evaluating(pipeline), torch.inference_mode():
        z = pipeline.embed(pipeline.denoise(x))
        base = pipeline.images(z, x.shape[1:])
        grid = (base.clamp(0, 1) * (levels - 1)).round()

        def look(points: Tensor, *_: Tensor) -> Tensor:
            for variant in points:
                if torch.equal(variant, z):
                    continue
                images = pipeline.images(variant, x.shape[1:])
                energy = (images - base).square().flatten(1)
                moved = ((images.clamp(0, 1) * (levels - 1)).round() != grid).flatten(1)
                changed.append((energy * moved).sum(1) >= 0.1 * energy.sum(1).clamp_min(torch.finfo(energy.dtype).tiny))
            return torch.zeros(points.shape[:2], dtype=points.dtype, device=points.device)

        estimator.estimate(look, z, generator)
    return float(torch.stack(changed).float().mean()) if changed else 0.0

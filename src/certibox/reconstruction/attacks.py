"""ℓ2 attacks on a reconstruction, by someone who knows the network and the true image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from certibox.defense.saved import Defense
from certibox.errors import InvalidInput
from certibox.queries.client import QueryClient
from certibox.seeds.switches import settled

THREATS = ("transfer", "adaptive")
Model = Defense | QueryClient  # what is evaluated: a defense, or the bare box ("Standard")
PerSample = Callable[[Tensor], Tensor]  # (b, c, h, w) -> (b,)


@settled()
def l2_pgd(
    loss: PerSample,
    x: Tensor,
    epsilon: float,
    *,
    steps: int = 40,
    generators: Sequence[torch.Generator],
    bounds: tuple[float, float] = (0.0, 1.0),
    step_size: float | None = None,
) -> Tensor:
    """Points (b, c, h, w) near x at which a per-sample loss is large, by projected gradient ascent.

    From a random point of the sphere of radius ε, each step goes `step_size` (by default 2ε / steps) along the
    normalised gradient, or at random where that is zero, and back into ‖δ‖₂ ≤ ε and the bounds. A pixel that is outside
    the bounds may stay as it is but not move further out, so δ = 0 is always allowed and ε = 0 gives x itself.

    Args:
        loss: Function of points (b, c, h, w) -> losses (b,), which autograd can follow.
        x: Points (b, c, h, w) to start from.
        epsilon: Radius ε of the ℓ2 ball, in units of x.
        steps: Number of steps.
        generators: Sources of the random directions on the CPU, one for each sample, so that what happens to a sample
            does not depend on the batch.
        bounds: Least and greatest value of a pixel.
        step_size: Length of a step; by default 2ε / steps.

    Raises:
        InvalidInput: ε is negative, there is no step, or the generators are not as many as the samples.
    """
    if epsilon < 0 or steps < 1 or len(generators) != len(x):
        raise InvalidInput(
            f"PGD got epsilon {epsilon}, {steps} steps, {len(generators)} generators for {len(x)} samples; "
            "wanted epsilon >= 0, at least 1 step and one generator for each sample"
        )
    if epsilon == 0:
        return x.clone()
    low, high = (bounds[0] - x).clamp(max=0), (bounds[1] - x).clamp(min=0)

    def project(delta: Tensor) -> Tensor:
        delta = delta.clamp(low, high)
        return delta * (epsilon / _norms(delta)).clamp(max=1)  # shrinking towards 0 cannot leave the bounds again

    delta = project(epsilon * _random_directions(generators, x))
    size = 2 * epsilon / steps if step_size is None else step_size
    for _ in range(steps):
        with torch.enable_grad():
            point = (x + delta).requires_grad_()
            (gradient,) = torch.autograd.grad(loss(point).sum(), point)
        flat = (_norms(gradient) == 0).flatten().nonzero().flatten()
        if len(flat):
            gradient = gradient.index_copy(0, flat, _random_directions([generators[i] for i in flat.tolist()], x[flat]))
        delta = project(delta + size * gradient / _norms(gradient))
    return x + delta


@dataclass(frozen=True)
class Attack:
    """ℓ2 PGD against a model by someone who knows f and the true image.

    Gradients through f are taken for evaluation alone: white passes, not queries.

    Raises:
        InvalidInput: The threat is unknown, or there is no sample.
    """

    threat: Literal["transfer", "adaptive"]
    """Kind of the attack: `transfer` attacks the bare f, whatever stands in front of it (the released protocol);
    `adaptive` attacks the whole defended model, the error of its mean output over noisy copies."""
    steps: int = 40
    """Number of steps of PGD."""
    samples: int = 10
    """Number of noisy copies behind a gradient of the adaptive attack, drawn anew at each step."""

    def __post_init__(self) -> None:
        if self.threat not in THREATS or self.samples < 1:
            raise InvalidInput(
                f"attack has threat {self.threat!r}, {self.samples} samples; "
                f"wanted one of {', '.join(THREATS)}, and at least 1 sample"
            )

    def __call__(
        self, model: Model, x: Tensor, truth: Tensor, epsilon: float, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Inputs (b, c, h, w) within ε of x at which the output is far from the true images.

        Args:
            model: Defense, or the meter around the bare box.
            x: Inputs (b, c, h, w) to start from.
            truth: True images (b, c, h, w).
            epsilon: Radius ε of the ℓ2 ball, in units of x.
            generators: Sources of the random draws on the CPU, one for each image.
        """
        victim = model if self.threat == "adaptive" else bare_client(model)

        def error(point: Tensor) -> Tensor:
            return (_white_output(victim, point, self.samples, generators) - truth).flatten(1).square().mean(1)

        return l2_pgd(error, x, epsilon, steps=self.steps, generators=generators)


def bare_client(model: Model) -> QueryClient:
    return model.client if isinstance(model, Defense) else model


def _white_output(model: Model, x: Tensor, samples: int, generators: Sequence[torch.Generator]) -> Tensor:
    """`defended_output` under autograd, without queries."""
    if isinstance(model, QueryClient):
        return model.white(x)
    model.pipeline.eval()
    noisy = noisy_copies(x, model.sigma, samples, generators).to(model.device)
    return mean_of_copies(model.client.white(model.pipeline(noisy)), samples).to(x.device)


def noisy_copies(x: Tensor, sigma: float, copies: int, generators: Sequence[torch.Generator]) -> Tensor:
    """x + σ N(0, I), `copies` times: (b, c, h, w) -> (b · copies, c, h, w), those of an image together."""
    noise = _normal(generators, (copies, *x.shape[1:]), x)
    return (x.unsqueeze(1) + sigma * noise).flatten(0, 1)


def mean_of_copies(outputs: Tensor, copies: int) -> Tensor:
    """(b · copies, ...) -> (b, ...)."""
    return outputs.unflatten(0, (-1, copies)).mean(1)


def _random_directions(generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """A random unit vector for each sample, in the shape (b, c, h, w) of `like`."""
    drawn = _normal(generators, tuple(like.shape[1:]), like)
    return drawn / _norms(drawn)


def _normal(generators: Sequence[torch.Generator], shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Standard normal numbers (b, *shape), a generator for each sample."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(like)


def _norms(x: Tensor) -> Tensor:
    """ℓ2 norm of each sample: (b, c, h, w) -> (b, 1, 1, 1)."""
    return torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)

"""Image reconstruction from compressed measurements: the box, the ℓ2 attack on it and the errors of what it answers.

The regression task of Zhang et al., "How to Robustify Black-Box ML Models?", ICLR 2022, section 5.3. ε, σ and the
bounds of the attack are in the units of the network's scaled input. Where the paper is silent, the protocol is that of
its released code.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certibox import seeds
from certibox.blackbox import differentiable
from certibox.config import Schedule
from certibox.data import Images
from certibox.errors import BadOutput, InvalidImages, InvalidInput
from certibox.loop import Progress
from certibox.networks import mnist_reconstructor
from certibox.pipeline import Defense
from certibox.query import QueryClient
from certibox.supervised import fit

# The release's scaling: the ends of the range of AᵀAx over its digits, −2.51 and 3.34, truncated to integers there.
SCALE_LOW, SCALE_HIGH = -2.0, 3.0
WINDOW, WINDOW_SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03  # SSIM as Wang et al. (2004) define it
THREATS = ("transfer", "adaptive")

Model = Defense | QueryClient  # what is evaluated: a defense, or the bare box ("Standard")
PerSample = Callable[[Tensor], Tensor]  # (b, c, h, w) -> (b,)


# ------------------------------------------------------------------------------------------------------ measurements


@dataclass(frozen=True)
class Measurement:
    """y = Ax with a fixed Gaussian A (m, d), entries N(0, 1/m) drawn from `seed`; a view of images.

    Called on images on [0, 1], it gives the network's input: Aᵀy scaled, about [0, 1] but not clipped to it.
    """

    seed: int
    image_shape: tuple[int, int, int] = (1, 28, 28)
    measurements: int = 576

    def __post_init__(self) -> None:
        if self.measurements < 1 or len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise InvalidInput(
                f"a measurement has {self.measurements} rows for images {self.image_shape}; "
                "wanted at least 1 row, and (channels, height, width)"
            )

    @cached_property
    def matrix(self) -> Tensor:
        """A (m, d)."""
        d = math.prod(self.image_shape)
        drawn = torch.randn((self.measurements, d), generator=seeds.generator(self.seed, "measurement"))
        return drawn / self.measurements**0.5

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of A, the image shape and the scaling."""
        sha = hashlib.sha256(repr((self.image_shape, self.measurements, SCALE_LOW, SCALE_HIGH)).encode())
        sha.update(self.matrix.numpy().data)
        return sha.hexdigest()

    def measure(self, x: Tensor) -> Tensor:
        """Ax of each image: (n, c, h, w) -> (n, m). Raises InvalidImages for another image shape."""
        if x.shape[1:] != self.image_shape:
            raise InvalidImages(f"images have shape {tuple(x.shape)}; the measurement takes {self.image_shape} each")
        return x.flatten(1) @ self.matrix.to(x).T

    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀy as an image: (n, m) -> (n, c, h, w)."""
        return (y @ self.matrix.to(y)).reshape(-1, *self.image_shape)

    def __call__(self, x: Tensor) -> Tensor:
        """The network's input: (n, c, h, w) on [0, 1] -> (AᵀAx + 2) / 5, (n, c, h, w)."""
        return (self.adjoint(self.measure(x)) - SCALE_LOW) / (SCALE_HIGH - SCALE_LOW)


def measured(images: Images, measurement: Measurement) -> Images:
    """`images` as the network is shown them: trained on and queried in float precision, labels kept.

    Raises InvalidImages for images of another shape, or that are a view already.
    """
    _require_plain(images, measurement)
    return replace(images, view=measurement, name=f"{images.name}, measured with seed {measurement.seed}")


def _require_plain(images: Images, measurement: Measurement) -> None:
    if images.shape != measurement.image_shape or images.view is not None:
        came = f"images of shape {images.shape}{' with a view' if images.view is not None else ''}"
        raise InvalidImages(f"{images.name}: {came}; wanted plain images of shape {measurement.image_shape}")


def train_reconstructor(
    images: Images,
    measurement: Measurement,
    *,
    schedule: Schedule,
    seed: int,
    validation: Images,
    out: str | Path | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> nn.Module:
    """The network f that undoes `measurement`: trained to map measurement(x) to x by MSE, selected on validation MSE.

    out: a directory to keep and resume the work in. Make it a box with `as_blackbox(network, outputs="values")`.
    """
    for given in (images, validation):
        _require_plain(given, measurement)
    with seeds.initialisation(seed, "reconstructor"):
        network = mnist_reconstructor()

    def error(x: Tensor, _images: Images, _index: Tensor) -> Tensor:
        return (network(measurement(x)) - x).flatten(1).square().sum(1)

    return fit(
        network,
        images,
        loss=error,
        schedule=schedule,
        seed=seed,
        validation=validation,
        facts={"measurement": measurement.digest},
        out=out,
        device=device,
        progress=progress,
    )


# ------------------------------------------------------------------------------------------------------------ errors


def rmse(a: Tensor, b: Tensor) -> Tensor:
    """Root mean squared difference of each pair of images: (n, c, h, w) twice -> (n,)."""
    return (a - b).flatten(1).square().mean(1).sqrt()


def ssim(a: Tensor, b: Tensor, *, padding: int = 0) -> Tensor:
    """Structural similarity of each pair of images: (n, c, h, w) twice -> (n,); for a data range of 1.

    Local means, variances and the covariance are weighted by an 11x11 Gaussian window of σ 1.5, and the similarity is
    averaged over the windows. padding: zeros put around both images first. With 0 every window lies inside the image,
    as in Wang et al. (2004) and scikit-image, which crops the rest away; with 5 there is a window around every
    pixel, as in the code behind the paper's table. Raises InvalidImages for images that no window fits in.
    """
    if a.shape != b.shape or a.ndim != 4 or min(a.shape[2:]) + 2 * padding < WINDOW:
        raise InvalidImages(
            f"SSIM of shapes {tuple(a.shape)} and {tuple(b.shape)} with padding {padding}; "
            f"wanted one shape (n, channels, height, width), padded to at least {WINDOW}x{WINDOW}"
        )
    n, _, h, w = a.shape
    a, b = a.double().reshape(-1, 1, h, w), b.double().reshape(-1, 1, h, w)  # variances below are differences
    offsets = torch.arange(WINDOW, dtype=a.dtype, device=a.device) - WINDOW // 2
    bell = (-0.5 * (offsets / WINDOW_SIGMA).square()).exp()
    window = torch.outer(bell, bell) / bell.sum().square()
    moments = F.conv2d(torch.cat([a, b, a * a, b * b, a * b]), window[None, None], padding=padding)
    mean_a, mean_b, square_a, square_b, product = moments.chunk(5)
    luminance = (2 * mean_a * mean_b + K1**2) / (mean_a**2 + mean_b**2 + K1**2)
    covariance, variances = product - mean_a * mean_b, square_a - mean_a**2 + square_b - mean_b**2
    return (luminance * (2 * covariance + K2**2) / (variances + K2**2)).reshape(n, -1).mean(1)


# ------------------------------------------------------------------------------------------------------------ attack


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
    """Points near x (b, c, h, w) at which a per-sample loss is large, by projected gradient ascent.

    From a random point of the sphere of radius ε, each step goes `step_size` (by default 2ε / steps) along the
    normalised gradient, or at random where that is zero, and back into ‖δ‖₂ ≤ ε and the bounds. A pixel that is outside
    the bounds may stay as it is but not move further out, so δ = 0 is always allowed and ε = 0 gives x itself.
    generators: one for each sample, on the CPU, so that what happens to it does not depend on the batch.
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

    threat: "transfer" attacks the bare f, whatever stands in front of it (the released protocol); "adaptive" attacks
    the whole defended model: the error of its mean output over `samples` noisy copies, drawn anew at each step.
    Gradients through f are taken for evaluation alone: white passes, not queries.
    """

    threat: Literal["transfer", "adaptive"]
    steps: int = 40
    samples: int = 10

    def __post_init__(self) -> None:
        if self.threat not in THREATS or self.samples < 1:
            raise InvalidInput(
                f"attack has threat {self.threat!r}, {self.samples} samples; "
                f"wanted one of {', '.join(THREATS)}, and at least 1 sample"
            )

    def __call__(
        self, model: Model, x: Tensor, truth: Tensor, epsilon: float, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Inputs (b, c, h, w) within ε of x at which the output is far from `truth` (b, c, h, w)."""
        victim = model if self.threat == "adaptive" else _client(model)

        def error(point: Tensor) -> Tensor:
            return (_white_output(victim, point, self.samples, generators) - truth).flatten(1).square().mean(1)

        return l2_pgd(error, x, epsilon, steps=self.steps, generators=generators)


# -------------------------------------------------------------------------------------------------------- evaluation


def defended_output(model: Model, x: Tensor, *, copies: int = 10, generators: Sequence[torch.Generator]) -> Tensor:
    """What a model answers to x (b, c, h, w): the mean of R(f)(x + δ) over `copies` of noise δ, b · copies queries.

    The bare box gets no noise: f(x), b queries. generators: one for each image, on the CPU.
    """
    if isinstance(model, QueryClient):
        return model(x)
    return _mean(model.outputs(_noisy(x, model.sigma, copies, generators)), copies)


@dataclass(frozen=True)
class ReconstructionRow:
    """How well one image was reconstructed under attack; `idx` is its place among those evaluated.

    rmse, ssim: against the true image. ssim_padded: over a window around every pixel, as the paper's table has it.
    queries: answers that the output took.
    """

    idx: int
    epsilon: float
    threat: str
    rmse: float
    ssim: float
    ssim_padded: float
    queries: int
    model: str
    seed: int


def evaluate(
    model: Model,
    images: Images,
    measurement: Measurement,
    *,
    attack: Attack,
    epsilons: Sequence[float] = (0, 1, 2, 3, 4),
    copies: int = 10,
    seed: int,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> list[ReconstructionRow]:
    """Reconstruct plain `images` from their attacked measurements: a row for each image and ε, by ε and image.

    Every image has noise of its own, the same for all ε, threats and models, whatever the batch: comparisons are
    paired. batch_size: images at a time; the adaptive attack holds `attack.samples` times as many. device: where the
    attack works. Errors: `InvalidInput`, `NotDifferentiable`, and those of the client.
    """
    client = _client(model)
    if client.spec.outputs != "values" or min(epsilons, default=-1) < 0 or copies < 1:
        raise InvalidInput(
            f"the box answers {client.spec.outputs}, epsilons are {tuple(epsilons)}, copies {copies}; "
            "wanted a box that answers values, some epsilons >= 0 and at least 1 copy"
        )
    if max(epsilons) > 0:
        differentiable(client.box)  # asked before the first query
    batches = torch.arange(len(images)).split(batch_size)
    rows: list[ReconstructionRow] = []
    with client.phase("reconstruct"):
        for epsilon in epsilons:
            for index in batches:
                places, before = index.tolist(), client.delivered
                output = reconstruct(
                    model, images, measurement, places, attack, epsilon, copies=copies, seed=seed, device=device
                )
                queries = (client.delivered - before) // len(places)
                scores = _scores(output, images.floats(index).to(device))
                rows += [
                    ReconstructionRow(i, epsilon, attack.threat, *score, queries, model.model_id, seed)
                    for i, score in zip(places, scores, strict=True)
                ]
                if progress:
                    progress(len(rows), len(images) * len(epsilons), f"{attack.threat}, epsilon {epsilon:g}")
    return rows


def reconstruct(
    model: Model,
    images: Images,
    measurement: Measurement,
    places: Sequence[int],
    attack: Attack,
    epsilon: float,
    *,
    copies: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """What `model` answers about the images at `places` when their measurements are attacked: (b, c, h, w)."""
    x, truth = measured(images, measurement).floats(places).to(device), images.floats(places).to(device)
    attacked = attack(model, x, truth, epsilon, _streams(seed, "attack", places))
    return defended_output(model, attacked, copies=copies, generators=_streams(seed, "noise", places)).to(device)


def _scores(output: Tensor, truth: Tensor) -> list[tuple[float, float, float]]:
    """RMSE, SSIM and padded SSIM of each image."""
    if output.shape != truth.shape:
        raise BadOutput(
            f"the box answered {tuple(output.shape)}, wanted images {tuple(truth.shape)}; is it a reconstructor?"
        )
    columns = rmse(output, truth), ssim(output, truth), ssim(output, truth, padding=WINDOW // 2)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _client(model: Model) -> QueryClient:
    return model.client if isinstance(model, Defense) else model


def _white_output(model: Model, x: Tensor, samples: int, generators: Sequence[torch.Generator]) -> Tensor:
    """`defended_output` under autograd, without queries."""
    if isinstance(model, QueryClient):
        return model.white(x)
    model.pipeline.eval()
    noisy = _noisy(x, model.sigma, samples, generators).to(model.device)
    return _mean(model.client.white(model.pipeline(noisy)), samples).to(x.device)


def _noisy(x: Tensor, sigma: float, copies: int, generators: Sequence[torch.Generator]) -> Tensor:
    """x + σ N(0, I), `copies` times: (b, c, h, w) -> (b · copies, c, h, w), those of an image together."""
    noise = _normal(generators, (copies, *x.shape[1:]), x)
    return (x.unsqueeze(1) + sigma * noise).flatten(0, 1)


def _mean(outputs: Tensor, copies: int) -> Tensor:
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


def _streams(seed: int, name: str, places: Sequence[int]) -> list[torch.Generator]:
    return [seeds.generator(seed, name, place) for place in places]

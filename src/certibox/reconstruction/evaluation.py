"""How well attacked images are reconstructed, by the bare box or a defense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from certibox import seeds
from certibox.blackbox import differentiable
from certibox.data import Images
from certibox.errors import BadOutput, InvalidInput
from certibox.queries.client import QueryClient
from certibox.reconstruction.attacks import Attack, Model, bare_client, mean_of_copies, noisy_copies
from certibox.reconstruction.measurements import Measurement, measured
from certibox.reconstruction.metrics import WINDOW, rmse, ssim
from certibox.seeds.switches import settled
from certibox.training.steps import Progress


@settled()
def defended_output(model: Model, x: Tensor, *, copies: int = 10, generators: Sequence[torch.Generator]) -> Tensor:
    """What a model answers to x: the mean of R(f)(x + δ) over copies of noise δ, b · copies queries.

    The bare box gets no noise: f(x), b queries.

    Args:
        model: Defense, or the meter around the bare box.
        x: Inputs (b, c, h, w).
        copies: Number of noisy copies of each input.
        generators: Sources of the noise on the CPU, one for each image.
    """
    if isinstance(model, QueryClient):
        return model(x)
    return mean_of_copies(model.outputs(noisy_copies(x, model.sigma, copies, generators)), copies)


@dataclass(frozen=True)
class ReconstructionRow:
    """How well one image was reconstructed under attack."""

    idx: int
    """Place of the image among those that are evaluated."""
    epsilon: float
    """Radius ε of the attack."""
    threat: str
    """Kind of the attack: transfer or adaptive."""
    rmse: float
    """Root mean squared error against the true image."""
    ssim: float
    """Structural similarity with the true image, over the windows inside the image."""
    ssim_padded: float
    """Structural similarity over a window around every pixel, as the paper's table has it."""
    queries: int
    """Number of answers that the output took."""
    model: str
    """Name of the model, its `model_id`."""
    seed: int
    """Seed of the noise and the attack."""


@settled()
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
    """Reconstruct images from their attacked measurements: a row for each image and ε, by ε and image.

    Every image has noise of its own, the same for all ε, threats and models, whatever the batch: comparisons are
    paired.

    Args:
        model: Defense, or the meter around the bare box, whose answers are images.
        images: True images, not measured yet.
        measurement: Measurement of them.
        attack: Attack on the measurements.
        epsilons: Radii ε of the attack, in units of the scaled measurement.
        copies: Number of noisy copies behind a defended output.
        seed: Seed of the noise and the attack.
        batch_size: Number of images at a time; the adaptive attack works on `attack.samples` times as many.
        device: Device on which the attack works.
        progress: Function of (rows done, rows in all, a text), called after every batch.

    Raises:
        InvalidInput: The box does not answer values, or ε or copies are out of their range.
        NotDifferentiable: The box gives no gradients, and some ε is above 0.
    """
    client = bare_client(model)
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
                places = index.tolist()
                with client.counting() as tally:
                    output = reconstruct(
                        model, images, measurement, places, attack, epsilon, copies=copies, seed=seed, device=device
                    )
                queries = tally.delivered // len(places)
                scores = _scores(output, images.floats(index).to(device))
                rows += [
                    ReconstructionRow(i, epsilon, attack.threat, *score, queries, model.model_id, seed)
                    for i, score in zip(places, scores, strict=True)
                ]
                if progress:
                    progress(len(rows), len(images) * len(epsilons), f"{attack.threat}, epsilon {epsilon:g}")
    return rows


@settled()
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
    """What a model answers about images when their measurements are attacked: (b, c, h, w).

    Args:
        model: Defense, or the meter around the bare box.
        images: True images, not measured yet.
        measurement: Measurement of them.
        places: Places of b of the images.
        attack: Attack on the measurements.
        epsilon: Radius ε of the attack.
        copies: Number of noisy copies behind a defended output.
        seed: Seed of the noise and the attack.
        device: Device on which the attack works.
    """
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


def _streams(seed: int, name: str, places: Sequence[int]) -> list[torch.Generator]:
    return [seeds.generator(seed, name, place) for place in places]

"""The two checks that `gpu_queue.py` makes before any table: the precision of estimates, and the time of an epoch.

`precision`: at z = ψ_enc(x + δ) of test images, central and forward CGE over all coordinates, and RGE with as many
directions, against autograd in float64, while decoder and box compute in float32, TF32, bfloat16 or float16. These ask
the box directly. The last column goes the way of training, through `StabilityObjective` and a `QueryClient`, while TF32
is on globally: it equals the first if certibox switches it off.

`epoch`: timed steps of ZO-AE-DS (CGE, ResNet-110, AE-192, DnCNN) after warm-ups, with a ledger that journals every
answer as in a real run; and what the same number of images takes through decoder and box alone. Random weights in the
box and the denoiser; the autoencoder is trained, so that as many coordinates are live as where training begins.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from certibox import networks, seeds
from certibox.blackbox import BlackBox, TorchBox, as_blackbox
from certibox.data import Images
from certibox.defense.pipeline import RobustPipeline
from certibox.estimators import CGE, RGE, Objective
from certibox.networks import Autoencoder
from certibox.paper.gpu import LIVE, RELEASED
from certibox.paper.plans import Network, Plan
from certibox.paper.stages import Workshop
from certibox.queries.client import QueryClient
from certibox.training import losses
from certibox.training.objective import Objective as Training
from certibox.training.schedules import Phase, Schedule
from certibox.training.settings import TrainingSettings
from certibox.training.stability import StabilityObjective, full_precision
from certibox.training.steps import steps

MUS = (0.005, 0.05, 0.1, 0.5)
AT_A_TIME = 1024  # images that the box is asked at a time when it is asked directly
OWN = "certibox, TF32 on"
PRECISIONS: dict[str, tuple[bool, torch.dtype | None]] = {  # TF32, autocast
    "float32": (False, None),
    "TF32": (True, None),
    "bfloat16": (False, torch.bfloat16),
    "float16": (False, torch.float16),
}
ON_A_CPU = ("float32", "bfloat16")  # it has no TF32
WAYS = {RELEASED: (CGE(0.005, central=True), False), LIVE: (CGE(0.05), True)}  # estimator, skip dead coordinates


@dataclass(frozen=True)
class Size:
    """How large a check is. coordinates: of z, the first so many; None for all. raw: batch sizes that are tried."""

    points: int
    coordinates: int | None
    batch: int
    warm_ups: int
    steps: int
    raw: tuple[int, ...]
    box: dict[str, Any]
    denoiser: dict[str, Any]


FULL = Size(
    points=32,
    coordinates=None,
    batch=256,
    warm_ups=3,
    steps=20,
    raw=(256, 1024, 4096),
    box={"name": "cifar-resnet", "arguments": {"depth": 110}},
    denoiser={"name": "dncnn", "arguments": {"channels": 3}},
)
TINY = Size(
    points=2,
    coordinates=12,
    batch=2,
    warm_ups=1,
    steps=2,
    raw=(8,),
    box={"name": "cifar-resnet", "arguments": {"depth": 8}},
    denoiser={"name": "dncnn", "arguments": {"channels": 3, "depth": 3, "width": 4}},
)


# ---------------------------------------------------------------------------------------------------------- precision


@dataclass(frozen=True)
class Point:
    """Where gradients are estimated: z (b, d), the target (b,), and the truth (b, d) on the marked coordinates."""

    autoencoder: Autoencoder
    box: BlackBox
    z: Tensor
    target: Tensor
    truth: Tensor
    marked: Tensor | None


def precision(workshop: Workshop, plan: Plan, size: Size) -> dict[str, Any]:
    """Cosines of estimates with the truth, mean over images: for each estimator and step, in every precision."""
    point, device = point_of(workshop, plan, size), torch.device(workshop.device).type
    names = [*(PRECISIONS if device == "cuda" else ON_A_CPU), OWN]
    dimensions = size.coordinates or point.z.shape[1]
    estimators = [estimator for mu in MUS for estimator in (CGE(mu, central=True), CGE(mu), RGE(dimensions, mu))]
    cosines: list[list[float]] = [[] for _ in estimators]
    with workshop.bar(f"precision at {plan.box.network}") as progress:
        for name in names:
            for number, estimator in enumerate(estimators):
                progress(number, len(estimators), name)
                cosines[number].append(cosine(point, estimator, name, device))
    rows = [
        {
            "estimator": f"{type(estimator).__name__}, {'central' if estimator.central else 'forward'}",
            "mu": estimator.mu,
            "queries": estimator.cost(dimensions),
            "cosines": found,
        }
        for estimator, found in zip(estimators, cosines, strict=True)
    ]
    return {"images": size.points, "coordinates": dimensions, "columns": names, "rows": rows}


def point_of(workshop: Workshop, plan: Plan, size: Size) -> Point:
    """The trained box and autoencoder of a plan, the noisy test images' embeddings, and the gradient there."""
    box = workshop.box(plan)
    autoencoder = workshop.autoencoder(plan, 0).to(workshop.device)
    x = workshop.splits(plan).test.floats(slice(0, size.points))
    noise = plan.defense.sigma * torch.randn(x.shape, generator=seeds.generator(0, "noise"))
    with torch.no_grad(), tensor_float_32(False):
        z = autoencoder.encode((x + noise).to(workshop.device))
        target = box(x.to(workshop.device)).argmax(1).clone()  # no inference tensor: autograd is to save it
    truth, marked = true_gradient(autoencoder, box, z, target), None
    if size.coordinates is not None:
        marked = (torch.arange(z.shape[1], device=z.device) < size.coordinates).expand_as(z)
        truth = truth * marked
    return Point(autoencoder, box, z, target, truth, marked)


def true_gradient(autoencoder: Autoencoder, box: BlackBox, z: Tensor, target: Tensor) -> Tensor:
    """Autograd in float64, (b, d)."""
    exact, white = copy.deepcopy(autoencoder).double(), cast(TorchBox, copy.deepcopy(box))
    white.module.double()
    point = z.double().requires_grad_(True)
    outputs = white.differentiable(exact.decode(point))
    return torch.autograd.grad(losses.logits_loss(outputs, target).sum(), point)[0]


def cosine(point: Point, estimator: CGE | RGE, name: str, device: str) -> float:
    """Mean cosine of an estimate with the truth, while decoder and box compute in the precision of that name."""
    generator = seeds.generator(0, "directions", device=point.z.device)
    tf32, dtype = PRECISIONS.get(name, (True, None))
    objective = through_certibox(point) if name == OWN else direct(point)
    with tensor_float_32(tf32), torch.autocast(device, dtype, enabled=dtype is not None):
        estimate = estimator.estimate(objective, point.z, generator, point.marked)
    estimate = estimate.double().nan_to_num(0.0, 0.0, 0.0)  # what overflowed has no direction
    return round(float(F.cosine_similarity(estimate, point.truth, dim=1).mean()), 4)


def direct(point: Point) -> Objective:
    """The loss (k, b) at points (k, b, d), asked of the box itself."""

    def objective(points: Tensor, active: Tensor | None = None) -> Tensor:
        k, b, _ = points.shape
        with torch.inference_mode():
            batches = zip(points.flatten(0, 1).split(AT_A_TIME), point.target.repeat(k).split(AT_A_TIME), strict=True)
            parts = [losses.logits_loss(point.box(point.autoencoder.decode(z)), target) for z, target in batches]
        return torch.cat(parts).float().reshape(k, b)

    return objective


def through_certibox(point: Point) -> Objective:
    """The same loss, asked as training asks it."""
    client, shape = QueryClient(point.box), point.autoencoder.image_shape
    return StabilityObjective(RobustPipeline(None, point.autoencoder), client, losses.logits_loss, point.target, shape)


@contextmanager
def tensor_float_32(allowed: bool) -> Iterator[None]:
    """TF32 for convolutions and matrix products inside, or for neither."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


# -------------------------------------------------------------------------------------------------------------- epoch


def epoch(workshop: Workshop, plan: Plan, size: Size, way: str) -> dict[str, Any]:
    """Seconds and queries of a training step, and the seconds of as many raw forward passes."""
    autoencoder, device = workshop.autoencoder(plan, 0), workshop.device
    images = workshop.splits(plan).train.select(slice(0, (size.warm_ups + size.steps) * size.batch))
    with seeds.initialisation(0, "epoch"):
        network, denoiser = networks.build(size.box).to(device), networks.build(size.denoiser)
    pipeline = RobustPipeline(denoiser, copy.deepcopy(autoencoder))
    pipeline.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    box = as_blackbox(network, outputs="logits", mean=plan.box.mean, std=plan.box.std)
    with tempfile.TemporaryDirectory() as folder, workshop.bar(f"epoch: {way}") as progress:
        client = QueryClient(box, ledger=Path(folder) / "ledger.sqlite")
        with client.journal("epoch", 0):
            seconds, queries = timed_steps(client, pipeline, images, size, way, progress)
    raw = fastest_raw(box, pipeline, round(queries), size.raw)
    counts = {"batch": size.batch, "warm_ups": size.warm_ups, "steps": size.steps}
    return {**counts, "seconds": seconds, "queries": queries, **raw}


def timed_steps(
    client: QueryClient,
    pipeline: RobustPipeline,
    images: Images,
    size: Size,
    way: str,
    progress: Callable[[int, int, str], None],
) -> tuple[float, float]:
    """Mean seconds and queries of the steps after the warm-ups."""
    # A rate so low that the weights, and the live coordinates with them, stay where they are.
    schedule = Schedule((Phase(1, 1e-6),), size.batch)
    task = Training(settings(schedule, way), client, pipeline, images, images).prepare({})
    optimizer = torch.optim.Adam(task.parameters, lr=1e-6)
    started, before, total = 0.0, 0, size.warm_ups + size.steps
    for step in steps(schedule, len(images), 0, 0):
        if step.number == size.warm_ups:
            started, before = now(pipeline), client.queries
        progress(step.number, total, "")
        optimizer.zero_grad(set_to_none=True)
        task.terms(step)["loss"].backward()
        optimizer.step()
    seconds, queries = now(pipeline) - started, client.queries - before
    return round(seconds / size.steps, 4), round(queries / size.steps, 1)


def settings(schedule: Schedule, way: str) -> TrainingSettings:
    """Both terms of eq. 2; the release's alone would save a few white operations."""
    estimator, skip_dead = WAYS[way]
    return TrainingSettings(
        method="ZO-AE-DS",
        sigma=0.25,
        schedule=schedule,
        seed=0,
        estimator=estimator,
        gamma=1.0,
        augmentation="crop-flip",
        skip_dead=skip_dead,
        validation_votes=1,
    )


def fastest_raw(box: BlackBox, pipeline: RobustPipeline, queries: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Seconds that decoder and box take for `queries` images in float32, at the fastest of some ways to ask."""
    pipeline.eval()
    trial = min(queries, 2 * max(sizes))
    grid = [(layout, size) for layout in ("channels_last", "contiguous") for size in sizes]
    times = {}
    for layout, size in grid:
        raw_seconds(box, pipeline, min(trial, 2 * size), layout, size)  # warm: kernels are chosen by shape
        times[layout, size] = raw_seconds(box, pipeline, trial, layout, size)
    layout, size = min(times, key=lambda key: times[key])
    seconds = raw_seconds(box, pipeline, queries, layout, size)
    return {"raw_seconds": round(seconds, 4), "raw_batch": size, "raw_layout": layout}


def raw_seconds(box: Any, pipeline: RobustPipeline, queries: int, layout: str, size: int) -> float:
    """Decoder and box on `queries` points, nothing else."""
    form = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}[layout]
    decoder, network = pipeline.autoencoder, box.module.to(memory_format=form)
    assert decoder is not None
    decoder.to(memory_format=form)  # pyright: ignore[reportCallIssue]
    z = torch.rand(size, decoder.d_z, device=next(network.parameters()).device)
    started = now(pipeline)
    with torch.inference_mode(), full_precision():
        for low in range(0, queries, size):
            images = box.spec.prepare(decoder.decode(z[: min(size, queries - low)]))
            network(images.contiguous(memory_format=form))
    return now(pipeline) - started


def now(pipeline: RobustPipeline) -> float:
    """Seconds on the clock, once the device has done all that it was given."""
    if next(pipeline.parameters()).is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def described(box: Network) -> str:
    """A box's name, with its depth where that is an argument."""
    return " ".join([box.network, *(f"{value}" for value in box.arguments.values())])

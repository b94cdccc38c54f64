"""One ZO-AE-DS step against the raw forward passes that it cannot avoid.

Setting: CGE (forward differences, live coordinates), AE-192, DnCNN, ResNet-20 at 3x32x32, batch 32, two threads, the
ledger journalling every answer. The unavoidable work is (1) decoder and box on the same number of points, at the
fastest batch size and memory format of a grid, plus (2) forward and backward of the white part. Printed: the ratio of
the step to (1) + (2), median over interleaved repetitions of one run. Goal: at most 1.10. Queries come first: they are
counted, not estimated.

    python benchmarks/training_step.py [--write] [--tiny] [--repetitions 3]

`--write` puts the figures into benchmarks/results/training_step.json.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

import certibox as cb
from certibox import networks
from certibox.blackbox import TorchBox
from certibox.data import Images
from certibox.defense.pipeline import RobustPipeline
from certibox.paper.logbook import destination, hardware, parser, versions
from certibox.storage.files import write_json_atomic
from certibox.training import defenses as training
from certibox.training import objective
from certibox.training.schedules import Schedule
from certibox.training.steps import steps

THREADS = 2
RESULT = Path(__file__).parent / "results" / "training_step.json"


@dataclass(frozen=True)
class Size:
    """How large the benchmark is."""

    batch: int
    """Number of images of a step."""
    depth: int
    """Depth of the box, a residual network."""
    raw: tuple[int, ...]
    """Batch sizes that are tried for the raw forward passes."""


FULL = Size(32, 20, (16, 32, 64, 128, 256))
TINY = Size(2, 8, (128,))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--write", action="store_true", help="write the result")
    options.add_argument("--repetitions", type=int, default=3)
    options = options.parse_args(arguments)
    size = TINY if options.tiny else FULL
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    images = Images(torch.randint(0, 256, (2 * size.batch, 3, 32, 32), dtype=torch.uint8), None, "random")
    autoencoder, box = networks.AUTOENCODERS["ae-192"](), networks.cifar_resnet(size.depth).eval()
    with tempfile.TemporaryDirectory() as folder:
        client = cb.QueryClient(cb.as_blackbox(box, outputs="logits"), ledger=Path(folder) / "ledger.sqlite")
        with client.journal("benchmark", 0):
            row = measure(client, images, autoencoder, size, options.repetitions)
    for name, value in row.items():
        print(f"{name:28} {value}")
    if options.write:
        write_json_atomic(destination(options, RESULT), row)


def measure(
    client: cb.QueryClient, images: Images, autoencoder: cb.Autoencoder, size: Size, repetitions: int
) -> dict[str, Any]:
    """All of the result."""
    schedule = cb.one_cycle(epochs=1, batch_size=size.batch)
    settings = cb.TrainingSettings(
        method="ZO-AE-DS",
        sigma=0.25,
        schedule=schedule,
        seed=0,
        estimator=cb.CGE(mu=0.05),
        gamma=1.0,
        validation_votes=1,
    )
    pipeline = training._pipeline(settings, client, images.shape, "dncnn", autoencoder, None)
    job = objective.Objective(settings, client, pipeline, images, images)
    task = job.prepare({})
    optimizer = torch.optim.Adam(task.parameters, lr=1e-6)
    step = next(iter(steps(Schedule(schedule.phases, size.batch), len(images), 0, 0)))

    def one_step() -> None:
        terms = task.terms(step)
        optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        optimizer.step()

    def white() -> None:
        """Forward and backward of everything in front of the bottleneck, at a given upstream gradient."""
        pipeline.train()
        x = images.floats(step.index)
        denoised = pipeline.denoise(x.contiguous(memory_format=torch.channels_last))
        loss = objective.squared_error(denoised, x) + pipeline.embed(denoised).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    before = client.queries
    one_step()
    queries = client.queries - before
    raw = {
        f"{layout} {count}": partial(raw_forward, client, pipeline, queries, layout, count)
        for layout in ("contiguous", "channels_last")
        for count in size.raw
    }
    times = {name: timed(run) for name, run in raw.items()}
    fastest = min(times, key=lambda name: times[name])
    ratios, seconds = [], []
    for _ in range(repetitions):
        first, whole, alone, again = timed(raw[fastest]), timed(one_step), timed(white), timed(raw[fastest])
        seconds.append(whole)
        ratios.append(whole / ((first + again) / 2 + alone))
    return {
        "queries_per_step": queries,
        "queries_per_image": round(queries / size.batch, 1),
        "ratio_to_raw": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "goal": 1.10,
        "seconds_per_step": round(statistics.median(seconds), 2),
        "fastest_raw": fastest,
        "client_batch_size": client.batch_size,
        "repetitions": repetitions,
        "hardware": hardware(),
        "versions": versions(),
    }


def raw_forward(client: cb.QueryClient, pipeline: RobustPipeline, queries: int, layout: str, size: int) -> None:
    """Decoder and box on `queries` points, nothing else."""
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    decoder, box = pipeline.autoencoder, cast(TorchBox, client.box).module
    assert decoder is not None
    for network in (decoder, box):
        laid_out(network, form)
    pipeline.eval()
    z = torch.rand(size, decoder.d_z)
    with torch.inference_mode():
        for low in range(0, queries, size):
            box(decoder.decode(z[: min(size, queries - low)]).contiguous(memory_format=form))
    for network in (box, pipeline):
        laid_out(network, torch.channels_last)


def laid_out(network: nn.Module, form: torch.memory_format) -> None:
    """Put the weights into a memory format."""
    network.to(memory_format=form)  # pyright: ignore[reportCallIssue]


def timed(run: Callable[[], None]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

"""Seconds at four image sizes: what certibox itself takes for 1,000 votes, and for 1,000 images of training.

    python benchmarks/sizes.py [--write] [--tiny]

At 1x8x8, 1x28x28, 3x32x32 and 3x224x224: 1,000 votes on the bare box (noise and counting alone) and through the default
defense (DnCNN of 17 layers, `suitable_autoencoder`), and one epoch of ZO-AE-DS (Guided, q = 0) over 1,000 images. The
box is a linear map of 8x8 averages, which takes next to nothing: a real model's own time comes on top. The figures are
seconds of one processor, on one torch thread, so that programs beside hardly change them; each is scaled to 1,000 from
as many votes or images as `Size` says. Queries do not depend on the size of an image.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import certibox as cb
from certibox import networks, seeds
from certibox.data import Images
from certibox.defense.pipeline import RobustPipeline
from certibox.paper.logbook import destination, hardware, parser, versions
from certibox.storage.files import write_json_atomic

RESULT = Path(__file__).parent / "results" / "sizes.json"
SIGMA, CLASSES = 0.25, 10


@dataclass(frozen=True)
class Size:
    """One image size, and how much is timed at it."""

    shape: tuple[int, int, int]
    """Shape (c, h, w) of an image."""
    votes: int
    """Number of votes that are timed."""
    images: int
    """Number of training images that are timed."""


FULL = (
    Size((1, 8, 8), 2000, 256),
    Size((1, 28, 28), 1000, 128),
    Size((3, 32, 32), 1000, 64),
    Size((3, 224, 224), 16, 4),
)
TINY = (Size((1, 8, 8), 20, 8),)


class Averages(nn.Module):
    """A linear map of 8x8 averages of the first channel: a box that takes next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        generator = seeds.generator(0, "averages")
        self.register_buffer("weight", torch.randn(64, CLASSES, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(x[:, :1], 8).flatten(1) @ self.get_buffer("weight")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument("--write", action="store_true", help="write the result")
    options = options.parse_args(arguments)
    torch.set_num_threads(1)
    rows = [measure(size) for size in (TINY if options.tiny else FULL)]
    result = {"rows": rows, "sigma": SIGMA, "hardware": hardware(), "versions": versions()}
    print(json.dumps(result, indent=2))
    if options.write:
        write_json_atomic(destination(options, RESULT), result)


def measure(size: Size) -> dict[str, Any]:
    """Seconds of one size, each scaled to 1,000 votes or images."""
    client = cb.QueryClient(cb.as_blackbox(Averages().eval(), outputs="logits", num_classes=CLASSES))
    pixels = torch.randint(0, 256, (size.images, *size.shape), generator=seeds.generator(0, "pixels"))
    images = Images(pixels.to(torch.uint8), None, "random")
    x = images.floats([0])[0]
    with seeds.initialisation(0, "networks"):
        autoencoder = networks.suitable_autoencoder(size.shape)
        pipeline = RobustPipeline(networks.dncnn(size.shape[0]), autoencoder).eval()

    def defended(noisy: torch.Tensor) -> torch.Tensor:
        return client(pipeline(noisy))

    def votes(base: Callable[[torch.Tensor], torch.Tensor]) -> None:
        smoothed = cb.SmoothedClassifier(base, CLASSES, SIGMA)
        with torch.inference_mode():
            smoothed.certify(x, n0=1, n=size.votes, alpha=0.5, seed=0, batch_size=min(size.votes, 100))

    def epoch() -> None:
        schedule = cb.one_cycle(1, batch_size=min(size.images, 64))
        estimator = cb.Guided(q=0, mu=0.1)
        asked = {"method": "ZO-AE-DS", "sigma": SIGMA, "estimator": estimator, "gamma": 1.0, "validation_votes": 1}
        held = images.select(slice(0, 1))
        cb.train(client, images, **asked, schedule=schedule, seed=0, autoencoder=autoencoder, validation=held)

    return {
        "shape": list(size.shape),
        "bare_seconds_per_1000_votes": per_1000(lambda: votes(client), size.votes),
        "defended_seconds_per_1000_votes": per_1000(lambda: votes(defended), size.votes),
        "seconds_per_1000_training_images": per_1000(epoch, size.images),
        "timed_votes": size.votes,
        "timed_images": size.images,
    }


def per_1000(run: Callable[[], None], count: int) -> float:
    """Processor seconds of 1,000 of what `run` does `count` times; the first call is not timed."""
    run()
    started = time.process_time()
    run()
    return float(f"{(time.process_time() - started) * 1000 / count:.3g}")


if __name__ == "__main__":
    main()

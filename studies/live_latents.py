"""Live latents: what does it buy and cost to let no coordinate of the embedding die?

The paper's encoders end in a ReLU, behind which a coordinate at 0 passes no gradient. `latent="leaky"` and `"linear"`
keep all d_z alive, so coordinate-wise estimation pays for each of them. For the three ends, under the same weights at
the start, images, noise and schedule: the error of stage 1 on test images, live coordinates under noise before and
after stage 2, training queries, the validation score and certified accuracy at r = sigma on 200 test images (n0 = 50,
n = 500, alpha = 0.001), for ZO-AE-DS with CGE and for its white-box twin FO-AE-DS, three seeds each. Digits: a
perceptron under the settings of studies/perceptron.py. MNIST: setup `mnist-cpu` of experiments/paper/setups.yaml, with
fewer images and epochs. Both were chosen with the ReLU, none again for another end. Rows are appended to
studies/results/live_latents.jsonl as they are measured; a row that is there is not measured again.

    python studies/live_latents.py [--tiny]               the bundled digits
    python studies/live_latents.py --data DIR             MNIST in DIR
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import certibox as cb
import perceptron
from certibox import networks, report, seeds
from certibox.blackbox import BlackBox
from certibox.data import Images
from certibox.networks import Autoencoder
from certibox.paper.logbook import Rows, destination, hardware, parser, versions
from certibox.paper.stages import spread

RESULTS = Path(__file__).parent / "results" / "live_latents.jsonl"
LATENTS, METHODS = ("relu", "leaky", "linear"), ("CGE", "first order")
VOTES = 10  # noisy votes a validation image


@dataclass(frozen=True)
class Setup:
    """What all rows of one data set share."""

    name: str
    autoencoder: str | None  # a network's name, or None for one that fits the images with d_z = 32
    sigma: float
    gamma: float
    mu: float
    reconstruction_weight: float
    box_images: int
    box_epochs: int
    autoencoder_epochs: int
    images: int
    denoise_epochs: int
    epochs: int
    lr: float
    depth: int
    width: int
    seeds: tuple[int, ...] = (0, 1, 2)
    test: int = 200
    n0: int = 50
    n: int = 500
    alpha: float = 0.001


D = perceptron.SETTINGS
DIGITS = Setup(
    "digits",
    None,
    *(D.sigma, D.gamma, D.mu, D.reconstruction_weight),
    *(1000, 60, D.autoencoder_epochs, 1000, D.denoise_epochs, D.epochs, D.lr, D.depth, D.width),
)
MNIST = Setup("mnist", "ae-mnist", 0.8, 300.0, 0.05, 0.0, 10_000, 4, 20, 2000, 0, 2, 3e-3, 6, 16)
TINY = replace(
    DIGITS,
    **{"box_images": 64, "box_epochs": 1, "autoencoder_epochs": 1, "images": 32, "denoise_epochs": 0, "epochs": 1},
    **{"depth": 3, "width": 4, "seeds": (0,), "test": 4, "n0": 5, "n": 20},
)


@dataclass(frozen=True)
class Work:
    """The images and the box that all rows of a setup share."""

    setup: Setup
    train: Images
    validation: Images
    test: Images
    box: BlackBox


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the rows that are not there yet, and print the table."""
    options = parser(__doc__)
    options.add_argument("--data", default="digits", help="digits, or a folder with MNIST")
    options = options.parse_args(arguments)
    torch.set_num_threads(1)
    rows = Rows(destination(options, RESULTS))
    measure(TINY if options.tiny else DIGITS if options.data == "digits" else MNIST, options.data, rows)
    print(table(rows.path))


def measure(setup: Setup, data: str, rows: Rows) -> None:
    """Append the rows of a setup that are not there yet."""
    missing = [key for key in keys(setup) if not rows.find(key)]
    if not missing:
        return
    work = prepared(setup, data)
    for latent, seed in dict.fromkeys((key["latent"], key["seed"]) for key in missing):
        autoencoder = stage1(work, latent, seed)
        for key in missing:
            if (key["latent"], key["seed"]) == (latent, seed):
                rows.once(key, partial(evaluate, work, key["method"], seed, autoencoder))


def keys(setup: Setup) -> Iterator[dict[str, Any]]:
    """What tells the rows of a setup from each other."""
    for seed in setup.seeds:
        for latent in LATENTS:
            yield from ({"data": setup.name, "latent": latent, "method": method, "seed": seed} for method in METHODS)


def prepared(s: Setup, data: str) -> Work:
    """Images, and a box trained on them: a perceptron for digits, mnist-cnn for MNIST."""
    if data == "digits":
        train, validation, test = (cb.load_images("digits", split) for split in ("train", "validation", "test"))
        with seeds.initialisation(0, "box"):
            fresh = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    else:
        loaded = cb.load_images(data, "train", limit=s.box_images + 400)
        train, validation = loaded.select(slice(0, s.box_images)), loaded.select(slice(s.box_images, None))
        test = cb.load_images(data, "test")
        with seeds.initialisation(0, "box"):
            fresh = networks.mnist_cnn()
    train = train.select(slice(0, s.box_images))
    trained = cb.train_classifier(
        train, fresh, schedule=cb.one_cycle(s.box_epochs, 3e-3), seed=0, validation=validation
    )
    box = cb.as_blackbox(trained, outputs="logits")
    return Work(s, train.select(slice(0, s.images)), validation, spread(test, s.test), box)


def stage1(work: Work, latent: str, seed: int) -> Autoencoder:
    """The autoencoder with that end, trained on clean images."""
    s, shape = work.setup, work.train.shape
    spec = {"name": s.autoencoder, "arguments": {"latent": latent}}
    if s.autoencoder is None:
        spec = {"name": "fitting-autoencoder", "arguments": {"image_shape": shape, "d_z": 32, "latent": latent}}
    with seeds.initialisation(seed, "autoencoder"):
        fresh = networks.build(spec)
    assert isinstance(fresh, Autoencoder)
    schedule = cb.one_cycle(s.autoencoder_epochs, 3e-3)
    return cb.pretrain_autoencoder(work.train, fresh, schedule=schedule, seed=seed, validation=work.validation)


def evaluate(work: Work, method: str, seed: int, autoencoder: Autoencoder) -> dict[str, Any]:
    """Train one defense from its stage 1, certify it, and look at its embedding."""
    started, s, client = time.perf_counter(), work.setup, cb.QueryClient(work.box)
    with seeds.initialisation(seed, "denoiser"):
        denoiser = networks.dncnn(work.train.shape[0], depth=s.depth, width=s.width)
    defense = cb.train(
        client,
        work.train,
        method="ZO-AE-DS" if method == "CGE" else "FO-AE-DS",
        sigma=s.sigma,
        gamma=s.gamma,
        reconstruction_weight=s.reconstruction_weight,
        estimator=cb.CGE(mu=s.mu) if method == "CGE" else None,
        schedule=cb.one_cycle(s.epochs, s.lr, denoise_epochs=s.denoise_epochs),
        seed=seed,
        denoiser=denoiser,
        autoencoder=autoencoder,
        validation=work.validation,
    )
    queries, trained = client.queries, defense.pipeline.autoencoder
    assert trained is not None
    smoothed = cb.SmoothedClassifier(defense.outputs, 10, s.sigma)
    rows = cb.certify_dataset(smoothed, work.test, n0=s.n0, n=s.n, alpha=s.alpha, seed=seed)
    x = work.validation.floats()
    noisy = x + s.sigma * torch.randn(x.shape, generator=seeds.generator(seed, "live"))
    return {
        "d_z": autoencoder.d_z,
        "reconstruction_mse": reconstruction_error(autoencoder, work.test),
        "start": live(autoencoder, noisy),
        "end": live(trained, defense.denoise(noisy)),
        "training_queries": queries,
        "validation": validation_score(work, defense, seed),
        "certified_accuracy_at_sigma": float(cb.certified_accuracy(rows, [s.sigma])[0]),
        "certified_at_sigma": [int(bool(r.correct) and r.radius >= s.sigma) for r in rows],
        "sigma": s.sigma,
        "seconds": round(time.perf_counter() - started, 1),
        "hardware": hardware(),
        "versions": versions(),
    }


def reconstruction_error(autoencoder: Autoencoder, images: Images) -> float:
    """Mean squared error a pixel of clean images."""
    with torch.inference_mode():
        return float((autoencoder(images.floats()) - images.floats()).square().mean())


def live(autoencoder: Autoencoder, x: torch.Tensor) -> dict[str, float]:
    """Coordinates through which a gradient passes: on average, and those that live on some image at least."""
    with torch.inference_mode():
        z = autoencoder.encode(x)
    passes = z > 0 if autoencoder.nonnegative else torch.ones_like(z, dtype=torch.bool)
    return {"live": float(passes.sum(1).float().mean()), "ever_live": int(passes.any(0).sum())}


def validation_score(work: Work, defense: cb.Defense, seed: int) -> float:
    """Share of fresh noisy votes on validation images that keep the box's answer to the clean image."""
    x = work.validation.floats()
    wanted, kept = defense.client(x).argmax(1), 0
    for vote in range(VOTES):
        noise = torch.randn(x.shape, generator=seeds.generator(seed, "votes", vote))
        kept += int((defense.outputs(x + work.setup.sigma * noise).argmax(1) == wanted).sum())
    return kept / (VOTES * len(x))


def table(path: Path = RESULTS) -> str:
    """Markdown: means over seeds, and certified accuracy minus that behind the paper's ReLU with its interval."""
    titles = ["data, trained with: latent", "stage-1 MSE", "live of d_z, start → end", "training queries"]
    lines = [[*titles, "validation", "CA at r = σ", "minus relu (95 % interval)"]]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in Rows(path).read():
        groups.setdefault((row["data"], row["method"], row["latent"]), []).append(row)
    for data, method in sorted({(data, method) for data, method, _ in groups}):
        usual = groups.get((data, method, "relu"), [])
        for latent in LATENTS:
            if rows := groups.get((data, method, latent)):
                lines.append([f"{data}, {method}: {latent}", *cells(rows, usual)])
    return report.markdown(lines)


def cells(rows: list[dict[str, Any]], usual: list[dict[str, Any]]) -> list[str]:
    """One row of the table. Seeds that both have are paired; an image's outcome is its mean over them."""

    def mean(value: Callable[[dict[str, Any]], float]) -> float:
        return float(np.mean([value(row) for row in rows]))

    gap, both = "–", sorted({row["seed"] for row in rows} & {row["seed"] for row in usual})
    if both and rows is not usual:
        ours, theirs = (
            np.mean([row["certified_at_sigma"] for row in side if row["seed"] in both], axis=0)
            for side in (rows, usual)
        )
        gap = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*cb.confidence.paired_bootstrap(ours, theirs))
    start, end = mean(lambda row: row["start"]["live"]), mean(lambda row: row["end"]["live"])
    return [
        f"{mean(lambda row: row['reconstruction_mse']):.4f}",
        f"{start:.0f} → {end:.0f} of {rows[0]['d_z']}",
        f"{mean(lambda row: row['training_queries']):,.0f}" if rows[0]["method"] == "CGE" else "white box",
        f"{mean(lambda row: row['validation']):.3f}",
        f"{mean(lambda row: row['certified_accuracy_at_sigma']):.3f}",
        gap,
    ]


if __name__ == "__main__":
    main()

"""Predictions that end as soon as their class is proven, beside a fixed n: queries an answer and abstentions.

    python studies/early_prediction.py digits RUN [--tiny]
    python studies/early_prediction.py mnist DATA [--tiny]
    python studies/early_prediction.py print

digits: RUN is the folder of a finished `certibox demo`, whose defended model (sigma 0.25) is asked about all held-out
test digits. mnist: DATA is a folder with train.parquet and test.parquet; a perceptron of scikit-learn and a denoiser
(DS, 2 epochs on 10,000 images, sigma 0.25) are trained here, and asked about every 40th test image.

Each image is predicted with n = 1,000 votes, and with `RankVerification`, 5 first votes and at most 1,500 or 4,000
more, alpha 0.001; digits under three seeds. The rule's usual settings, these numbers among them, were chosen on the
validation digits of the demo, nothing on these images. Goal: a twentieth of the queries at no more abstentions.

A line for each way goes to studies/results/early_prediction.jsonl; what is there is not measured again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sklearn.neural_network import MLPClassifier

import certibox as cb
from certibox.blackbox import as_blackbox
from certibox.certification.sampling import EARLY
from certibox.commands import demo
from certibox.confidence import RankVerification
from certibox.data import Images, load_images
from certibox.defense.saved import load_defense
from certibox.networks import dncnn
from certibox.paper.logbook import Rows, destination, hardware, parser, versions
from certibox.report import markdown
from certibox.training.schedules import one_cycle

RESULTS = Path(__file__).parent / "results" / "early_prediction.jsonl"
ALPHA, SIGMA, CLASSES = 0.001, 0.25, 10
SEEDS = {"digits": 3, "mnist": 1}
FIXED, (FIRST, MOST) = 1_000, EARLY


@dataclass(frozen=True)
class Way:
    """How predictions are made."""

    name: str
    n: int
    rule: RankVerification | None
    n0: int = 0


WAYS = (
    Way("fixed n", FIXED, None),
    Way("rank verification", MOST, RankVerification(), FIRST),
    Way("rank verification, larger n", 4_000, RankVerification(), FIRST),
)


def digits(folder: Path, tiny: bool) -> tuple[cb.SmoothedClassifier, Images]:
    """The demo's defended model, and the digits that neither it nor its tuning has seen."""
    shown = load_images("digits", "train").select(slice(0, 200 if tiny else None))
    box = as_blackbox(
        demo.train_box(shown, *([5] if tiny else [])), "probabilities", clip=False, name="sklearn-gradient-boosting"
    )
    defense = load_defense(folder / "defense", cb.QueryClient(box))
    return defense.smoothed(), load_images("digits", "test").select(slice(0, 5 if tiny else None))


def mnist(folder: Path, tiny: bool) -> tuple[cb.SmoothedClassifier, Images]:
    """A perceptron behind a denoiser, trained here, and every 20th test image."""
    shown = load_images(str(folder / "train.parquet")).select(slice(0, 200 if tiny else 10_000))
    pixels = shown.floats(range(len(shown))).flatten(1).numpy()
    assert shown.labels is not None
    model = MLPClassifier((100,), random_state=0, max_iter=2 if tiny else 40, early_stopping=True)
    box = as_blackbox(model.fit(pixels, shown.labels.numpy()), "probabilities", name="perceptron")
    defense = cb.train(
        cb.QueryClient(box),
        shown,
        method="DS",
        sigma=SIGMA,
        denoiser=dncnn(1, depth=3 if tiny else 5, width=4 if tiny else 32),
        schedule=one_cycle(1 if tiny else 2),
        seed=0,
    )
    test = load_images(str(folder / "test.parquet"))
    smoothed = cb.SmoothedClassifier(defense.outputs, num_classes=CLASSES, sigma=SIGMA)
    return smoothed, test.select(slice(0, 5) if tiny else slice(0, None, 40))


def measured(smoothed: cb.SmoothedClassifier, way: Way, images: Images, seeds: int) -> dict[str, Any]:
    """Queries, abstentions and right answers of one way, over all images and seeds."""
    made, labels, x = [], [], images.floats(range(len(images)))
    for seed in range(seeds):
        made += smoothed.predict(x, n=way.n, alpha=ALPHA, seed=seed, rule=way.rule, n0=way.n0)
        labels += [] if images.labels is None else images.labels.tolist()
    return {
        "images": len(images),
        "seeds": seeds,
        "queries_an_answer": sum(one.queries for one in made) / len(made),
        "abstained": sum(one.label is None for one in made) / len(made),
        "right": sum(one.label == label for one, label in zip(made, labels, strict=True)) / len(made),
        "hardware": hardware(),
        "versions": versions(),
    }


def table(path: Path = RESULTS) -> str:
    """The measured rows as a table."""
    rows = Rows(path).read()
    head = ["model", "way", "n at most", "queries an answer", "1,000 ÷ it", "abstained, %", "right, %"]
    lines = [
        [
            row["model"],
            row["way"],
            f"{row['n']:,}",
            f"{row['queries_an_answer']:,.1f}",
            f"{FIXED / row['queries_an_answer']:.1f}",
            f"{100 * row['abstained']:.2f}",
            f"{100 * row['right']:.2f}",
        ]
        for row in rows
    ]
    return markdown([head, *lines], left=(0, 1))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and print the table."""
    options = parser(__doc__)
    options.add_argument("what", choices=["digits", "mnist", "print"])
    options.add_argument("folder", type=Path, nargs="?")
    given = options.parse_args(arguments)
    rows = Rows(destination(given, RESULTS))
    if given.what != "print":
        models = {"digits": digits, "mnist": mnist}
        smoothed, images = models[given.what](given.folder, given.tiny)
        for way in WAYS:
            key = {"model": given.what, "way": way.name, "n": way.n}
            rows.once(key, lambda way=way: measured(smoothed, way, images, SEEDS[given.what] if not given.tiny else 1))
    print(table(rows.path))


if __name__ == "__main__":
    main()

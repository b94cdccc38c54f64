"""Three families of black boxes on the digits: which estimator, which mu, and do queries pay at all?

Boxes: a multilayer perceptron (smooth), logistic regression (linear) and a random forest (a staircase: its
probabilities move in steps of one tree). For each, certified accuracy at r = sigma on held-out test digits (200,
n0 = 100, n = 1,000, alpha = 0.001) of the bare box, the query-free MSE denoiser, and ZO-AE-DS with RGE and CGE at three
values of mu. Everything else is `studies/perceptron.py`, chosen on validation images for the perceptron alone. Rows are
appended to studies/results/families.jsonl as they are measured; a row that is there is not measured again.

    python studies/families.py [--tiny]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

import certibox as cb
import perceptron
from certibox import report
from certibox.commands import demo
from certibox.data import Images
from certibox.estimators import GradientEstimator
from certibox.networks import Autoencoder
from certibox.paper.logbook import Rows, destination, hardware, parser, versions

RESULTS = Path(__file__).parent / "results" / "families.jsonl"
SEED = 0


@dataclass(frozen=True)
class Size:
    """How large the study is."""

    settings: demo.Settings
    """Settings of training and certification."""
    train: int | None
    """Number of training images; None for all."""
    test: int
    """Number of test images."""
    mus: tuple[float, ...]
    """Steps of the differences."""


FULL = Size(perceptron.SETTINGS, None, 200, (0.005, 0.05, 0.5))
TINY = Size(
    replace(FULL.settings, denoise_epochs=1, epochs=1, autoencoder_epochs=1, depth=3, width=4, n0=10, n=50),
    *(64, 4, (0.05,)),
)


@dataclass(frozen=True)
class Work:
    """What all rows share."""

    settings: demo.Settings
    train: Images
    validation: Images
    test: Images
    autoencoder: Autoencoder


def boxes(train: Images, validation: Images) -> dict[str, Callable[[], Any]]:
    """The families by name, each a function that trains it on the training images."""
    assert train.labels is not None
    x, y = train.floats().flatten(1).numpy(), train.labels.numpy()
    return {
        "perceptron": lambda: perceptron.train_box(train, validation)[0],
        "logistic": lambda: LogisticRegression(max_iter=2000).fit(x, y),
        "forest": lambda: RandomForestClassifier(100, random_state=0).fit(x, y),
    }


def estimators(size: Size) -> dict[str, GradientEstimator | None]:
    """The rows of a family by name: `bare` is the box alone, `none` the query-free denoiser."""
    found: dict[str, GradientEstimator | None] = {"bare": None, "none": None}
    found |= {f"CGE mu={mu:g}": cb.CGE(mu=mu) for mu in size.mus}
    return found | {f"RGE mu={mu:g}": cb.RGE(q=size.settings.d_z, mu=mu) for mu in size.mus}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the rows that are not there yet, and print the table."""
    options = parser(__doc__).parse_args(arguments)
    rows, size = Rows(destination(options, RESULTS)), TINY if options.tiny else FULL
    train = cb.load_images("digits", "train").select(slice(0, size.train))
    validation = cb.load_images("digits", "validation")
    test = cb.load_images("digits", "test").select(slice(0, size.test))
    autoencoder: Autoencoder | None = None
    for family, trained in boxes(train, validation).items():
        missing = [name for name in estimators(size) if not rows.find({"family": family, "estimator": name})]
        if not missing:
            continue
        client = cb.QueryClient(cb.as_blackbox(trained(), outputs="probabilities", clip=False))
        autoencoder = autoencoder or demo.train_stage1(size.settings, train, validation, SEED)
        work = Work(size.settings, train, validation, test, autoencoder)
        for name in missing:
            measured = partial(measure, work, client, name, estimators(size)[name])
            rows.once({"family": family, "estimator": name}, measured)
    print(table(rows.path))


def measure(work: Work, client: cb.QueryClient, name: str, estimator: GradientEstimator | None) -> dict[str, Any]:
    """Train one defense and certify it."""
    started, before, s = time.perf_counter(), client.queries, work.settings
    if estimator is not None:
        shared = (work.train, work.validation, estimator, work.autoencoder, SEED)
        base = demo.train_queries(s, client, *shared).outputs
    else:
        base = client if name == "bare" else demo.train_denoiser(s, client, work.train, work.validation, SEED).outputs
    queries = client.queries - before
    smoothed = cb.SmoothedClassifier(base, demo.CLASSES, s.sigma)
    rows = cb.certify_dataset(smoothed, work.test, n0=s.n0, n=s.n, alpha=s.alpha, seed=SEED)
    return {
        "training_queries": queries,
        "certified_accuracy_at_sigma": float(cb.certified_accuracy(rows, [s.sigma])[0]),
        "average_certified_radius": report.average_certified_radius(rows),
        "certified_at_sigma": [int(bool(r.correct) and r.radius >= s.sigma) for r in rows],
        "sigma": s.sigma,
        "seconds": round(time.perf_counter() - started, 1),
        "hardware": hardware(),
        "versions": versions("scikit-learn"),
    }


def table(path: Path = RESULTS) -> str:
    """Markdown: certified accuracy at r = sigma, and the difference to the query-free denoiser with its interval."""
    found = Rows(path).read()
    free = {row["family"]: row["certified_at_sigma"] for row in found if row["estimator"] == "none"}
    lines = [["box", "trained with", "training queries", "CA at r = σ", "minus MSE denoiser (95 % interval)"]]
    for row in found:
        trained = {"bare": "nothing (bare box)", "none": "MSE denoiser"}.get(row["estimator"]) or row["estimator"]
        difference, low, high = cb.confidence.paired_bootstrap(row["certified_at_sigma"], free[row["family"]])
        gap = "–" if row["estimator"] == "none" else f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]"
        accuracy = f"{row['certified_accuracy_at_sigma']:.3f}"
        lines.append([row["family"], trained, f"{row['training_queries']:,}", accuracy, gap])
    return report.markdown(lines, rule="|---|---|---:|---:|---:|")


if __name__ == "__main__":
    main()

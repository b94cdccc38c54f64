"""Sequential certificates on trained defenses, next to fixed n = 10,000: what they certify and what they ask.

    python studies/sequential_pipelines.py digits [--tiny]        digits behind the perceptron of studies/perceptron.py
    python studies/sequential_pipelines.py mnist --data DIR       MNIST, in DIR as for query_efficiency.py
    python studies/sequential_pipelines.py mnist-quarter --data DIR
    python studies/sequential_pipelines.py print

Three defenses, all ZO with guided estimates, trained here unless they are kept: ZO-AE-DS in front of the scikit-learn
perceptron of studies/perceptron.py (sigma 0.25; test images 200 to 499, on which no setting was chosen; under --work);
the row "ZO-DS (Guided)", seed 0, of the study `mnist` of experiments/queries (a convolutional network, sigma 0.8, 200
of its test images at even distances); and that row at sigma 0.25, where 3 sigma is a radius that something reaches
(100 of them; both under --stages, where query_efficiency.py keeps what it trains).

Each image is certified with n = 10,000 and n0 = 100, and with the e-process and α-spending, n0 = 25, at r = sigma,
2 sigma, 3 sigma alone and at sigma/2, sigma and 2 sigma together; alpha 0.001, seed 0. The maximum n is the usual
100,000 or 50,000, but for 3 sigma alone, where most of the samples go to images near the threshold: there it is the
largest of three that a pilot of 60 validation images, n = 10,000, lets expect at most 8,500 samples an image. Every
certificate asks the box and is then replayed from its looks; votes are booked in a ledger. The noise of an image is the
same under all rules, so their differences are paired. Goals, selection votes included: at sigma and 2 sigma a fifth of
10,000 samples at no lower certified accuracy, at 3 sigma at most 8,500 at a higher one. Nothing was tuned on these
images. studies/sequential_certification.py has the exact expectation of the same on published votes, and the chance
of a false certificate.

A line for each pipeline, rule and radii goes to studies/results/sequential_pipelines.jsonl as it is measured, with the
outcome and samples of every image, hardware and versions; its seconds are of a machine that did other work meanwhile.
A killed run goes on, and what is there is not measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import certibox as cb
import perceptron
from certibox import certification
from certibox.blackbox import as_blackbox
from certibox.certification.pilot import expected_samples
from certibox.commands import demo
from certibox.commands.progress import bar
from certibox.confidence.sequential import AlphaSpending, EProcess, Rule
from certibox.data import Images
from certibox.defense.saved import Defense, load_defense
from certibox.paper.logbook import Rows, destination, hardware, parser, versions
from certibox.paper.stages import spread
from certibox.paper.suite import Suite
from certibox.records.certificates import CertificateRow
from certibox.report import markdown
from certibox.storage.settings import require_same
from query_efficiency import FOLDER, STUDIES, Studio

RESULTS = Path(__file__).parent / "results" / "sequential_pipelines.jsonl"
ALPHA, SEED, CLASSES = 0.001, 0, 10
FIXED, N0_FIXED, N0 = "fixed n", 100, 25
RULES: dict[str, Callable[..., Rule]] = {"e-process": EProcess, "α-spending": AlphaSpending}
ASKED = ((1.0,), (2.0,), (3.0,), (0.5, 1.0, 2.0))  # multiples of sigma that are decided together
REPORTED = (0.5, 1.0, 2.0, 3.0)  # those that a fixed n answers at once
STUDY, ROW = "mnist", "ZO-DS (Guided)"
TRAINED = {"mnist": (0.8, 200), "mnist-quarter": (0.25, 100)}  # sigma and test images of pipelines that train this row
GOAL = 8_500  # samples an image at 3 sigma


@dataclass(frozen=True)
class Size:
    """How large the study is."""

    settings: demo.Settings
    """Settings of the digits' defense."""
    n: int
    """Fixed number of samples."""
    caps: Mapping[str, int]
    """Maximum sample size of each rule."""
    far: tuple[int, ...]
    """Maximum sample sizes to choose from where 3 sigma alone is asked, descending."""
    pilot: int
    """Number of validation images of the pilot that chooses."""
    train: int | None
    """Number of training images of the digits; None for all."""
    images: slice
    """Test images of the digits."""


FULL = Size(
    perceptron.SETTINGS,
    n=10_000,
    caps={"e-process": 100_000, "α-spending": 50_000},
    far=(100_000, 50_000, 25_000),
    pilot=60,
    train=None,
    images=slice(200, 500),
)
TINY = Size(
    replace(FULL.settings, denoise_epochs=1, epochs=1, autoencoder_epochs=1, depth=3, width=4),
    n=200,
    caps={"e-process": 1_000, "α-spending": 1_000},
    far=(7_000, 6_000),
    pilot=2,
    train=64,
    images=slice(200, 203),
)


@dataclass(frozen=True)
class Pipeline:
    """A trained defense with a meter of its own, the test images that it is certified on, and others for a pilot."""

    defense: Defense
    images: Images
    validation: Images


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the lines of a pipeline that are not there yet, and print the table."""
    options = parser(__doc__)
    options.add_argument("pipeline", choices=("digits", *TRAINED, "print"))
    options.add_argument("--data", type=Path, help="folder with a folder for each data set, for MNIST")
    options.add_argument("--work", type=Path, default=Path("runs/sequential"), help="certificates, ledgers, the digits")
    options.add_argument("--stages", type=Path, default=Path("runs/queries"), help="--work of query_efficiency.py")
    options.add_argument("--threads", type=int, default=1)
    chosen = options.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    name, folder, size = chosen.pipeline, chosen.work / chosen.pipeline, TINY if chosen.tiny else FULL
    rows = Rows(destination(chosen, RESULTS))
    if name == "digits":
        measure(rows, name, partial(digits, size), folder, size)
    elif name != "print":
        if chosen.data is None:
            options.error("MNIST needs --data")
        measure(rows, name, lambda at: mnist(chosen.data, chosen.stages, at, *TRAINED[name]), folder, size)
    print(table(rows.path))


def digits(size: Size, folder: Path) -> Pipeline:
    """The guided defense of the perceptron, trained with its settings unless `folder` has it."""
    s = size.settings
    train, validation, test = (cb.load_images("digits", split) for split in ("train", "validation", "test"))
    train = train.select(slice(0, size.train))
    model, _ = perceptron.train_box(train, validation)
    client = cb.QueryClient(as_blackbox(model, outputs="probabilities", clip=False), ledger=folder / "ledger.sqlite")
    if not (folder / "defense" / "defense.json").exists():
        autoencoder = demo.train_stage1(s, train, validation, SEED, folder / "autoencoder")
        guided = cb.Guided(mu=s.mu)
        trained = demo.train_queries(s, client, train, validation, guided, autoencoder, SEED, folder / "training")
        trained.save(folder / "defense")
    return Pipeline(load_defense(folder / "defense", client), test.select(size.images), validation)


def mnist(data: Path, stages: Path, folder: Path, sigma: float, count: int) -> Pipeline:
    """The row of the study that query_efficiency.py measures; its own ledger is left as training wrote it."""
    suite = Suite(FOLDER, STUDIES)
    plan, studio = suite.table(STUDY).row(ROW).plans["cpu"], Studio(suite, data, stages, bar)
    plan = replace(plan, defense=replace(plan.defense, sigma=sigma))
    trained, _ = studio.defense(plan, SEED)
    assert isinstance(trained, Defense)  # a method that trains
    # On a processor, 200 images at a time go through the denoiser's caches almost twice as fast as 1,000.
    client = cb.QueryClient(studio.box(plan), ledger=folder / "ledger.sqlite", batch_size=200)
    splits = studio.splits(plan)
    return Pipeline(replace(trained, client=client), spread(splits.test, count), splits.validation)


def measure(rows: Rows, name: str, prepared: Callable[[Path], Pipeline], folder: Path, size: Size) -> None:
    """Append the lines of a pipeline that are not there yet."""
    missing = [key for key in keys(name) if not rows.find(key)]
    if not missing:
        return
    pipeline = prepared(folder)
    for model in {row["model"] for row in rows.read() if row["pipeline"] == name}:
        require_same({"model": model}, {"model": pipeline.defense.model_id}, str(rows.path))  # pairs need one defense
    for key in missing:
        row = rows.once(key, partial(certify, pipeline, key, folder, size))
        print(f"{key}: {row['mean_samples']:,.0f} samples in {row['seconds']:,.0f} s", flush=True)


def keys(name: str) -> Iterator[dict[str, Any]]:
    """What tells the lines of a pipeline from each other: the rule, and the multiples of sigma that it decides."""
    yield {"pipeline": name, "rule": FIXED, "multiples": REPORTED}
    for multiples in ASKED:
        yield from ({"pipeline": name, "rule": rule, "multiples": multiples} for rule in RULES)


def certify(pipeline: Pipeline, key: Mapping[str, Any], folder: Path, size: Size) -> dict[str, Any]:
    """Certify all images under one rule, replay the certificates, and say what came of them."""
    name, rule, multiples, defense = key["pipeline"], key["rule"], key["multiples"], pipeline.defense
    radii, phase = tuple(multiple * defense.sigma for multiple in multiples), f"certify {(name, rule, multiples)}"
    asked = RULES[rule](radii=radii) if rule in RULES else None
    chosen = cap(pipeline, asked, folder, size) if asked and multiples == (3.0,) else None
    n = chosen["cap"] if chosen else size.caps.get(rule, size.n)
    kept = folder / f"{rule} {' '.join(f'{multiple:g}' for multiple in multiples)}.jsonl"
    rows = certified(pipeline, pipeline.images, asked, n, kept, phase)
    certification.replay(rows)  # raises for a certificate that does not follow from its looks
    return {
        "sigma": defense.sigma,
        "settings": rows[0].rule,
        "n": n,
        "n0": rows[0].n0,
        "alpha": ALPHA,
        "seed": SEED,
        "model": defense.model_id,
        "data": pipeline.images.name,
        **({"pilot": chosen["expected"]} if chosen else {}),
        **outcomes(rows, radii),
        "queries_paid": defense.client.spent[phase],
        "seconds": round(sum(row.seconds for row in rows), 1),
        "hardware": hardware(),
        "versions": versions("scipy", "scikit-learn"),
    }


def certified(
    pipeline: Pipeline, images: Images, rule: Rule | None, n: int, kept: Path, phase: str
) -> list[CertificateRow]:
    """The certificates of `images`, under a rule with the maximum n or with a fixed n; what is kept is not asked."""
    defense = pipeline.defense
    with defense.client.phase(phase), bar(phase, defense.client) as progress:
        return cb.certify_dataset(
            cb.SmoothedClassifier(defense.outputs, CLASSES, defense.sigma),
            images,
            n0=N0 if rule else N0_FIXED,
            n=n,
            alpha=ALPHA,
            seed=SEED,
            rule=rule,
            out=kept,
            progress=progress,
        )


def cap(pipeline: Pipeline, rule: Rule, folder: Path, size: Size) -> dict[str, Any]:
    """The largest of `size.far` (else the last) that validation images let expect at most `GOAL` samples an image."""
    images = spread(pipeline.validation, size.pilot)
    rows = certified(pipeline, images, None, size.n, folder / "pilot.jsonl", "pilot")
    expected = {n: round(N0 + expected_samples(rows, rule, n)[0]) for n in size.far}
    fitting = (n for n, samples in expected.items() if samples <= GOAL)
    return {"cap": next(fitting, size.far[-1]), "expected": expected}


def outcomes(rows: Sequence[CertificateRow], radii: Sequence[float]) -> dict[str, Any]:
    """What a line keeps of its certificates: for each radius an outcome an image; samples with the selection's."""
    shares = [[int(bool(row.correct) and row.radius >= radius) for row in rows] for radius in radii]
    return {
        "images": len(rows),
        "certified_accuracy": [float(np.mean(outcome)) for outcome in shares],
        "mean_samples": float(np.mean([row.queries for row in rows])),
        "certified": shares,
        "samples": [row.queries for row in rows],
    }


def table(path: Path = RESULTS) -> str:
    """Markdown: each rule beside fixed n on the same images, the paired differences with 95 % intervals, the goals."""
    rows, titles = Rows(path).read(), ["pipeline", "r decided", "rule, cap", "CA %", "minus fixed n, points"]
    fixed = {row["pipeline"]: row for row in rows if row["rule"] == FIXED}
    lines = [[*titles, "samples an image", "fixed n ÷ it", "goal"]]
    for name, usual in fixed.items():
        cells = [name, _sigmas(usual["multiples"]), f"{FIXED} = {usual['n']:,}", _percent(usual["certified_accuracy"])]
        lines.append([*cells, "–", f"{usual['mean_samples']:,.0f}", "–", "–"])
        ours = sorted((r for r in rows if r["pipeline"] == name and r["rule"] in RULES), key=order)
        lines += [[name, *_cells(row, usual)] for row in ours]
    return markdown(lines)


def order(row: dict[str, Any]) -> tuple[int, int]:
    """Where a line stands among those of its pipeline."""
    return ASKED.index(tuple(row["multiples"])), list(RULES).index(row["rule"])


def _cells(row: dict[str, Any], usual: dict[str, Any]) -> list[str]:
    gaps = differences(row, usual)
    said = [f"{100 * gap:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]" for gap, low, high in gaps]
    goal = reached(row, usual)
    return [
        _sigmas(row["multiples"]),
        f"{row['rule']}, {row['n']:,}",
        _percent(row["certified_accuracy"]),
        " / ".join(said),
        f"{row['mean_samples']:,.0f}",
        f"{usual['mean_samples'] / row['mean_samples']:.1f}",
        "–" if goal is None else "reached" if goal else "missed",
    ]


def differences(row: dict[str, Any], usual: dict[str, Any]) -> list[tuple[float, float, float]]:
    """Certified accuracy of a rule minus that of fixed n at each radius, paired by image: (difference, low, high)."""
    by_radius = dict(zip(usual["multiples"], usual["certified"], strict=True))
    pairs = zip(row["multiples"], row["certified"], strict=True)
    return [cb.confidence.paired_bootstrap(certified, by_radius[multiple]) for multiple, certified in pairs]


def reached(row: dict[str, Any], usual: dict[str, Any]) -> bool | None:
    """Whether a line reaches the goal for its radius; None where there is none, for radii together."""
    if len(row["multiples"]) > 1:
        return None
    gap = differences(row, usual)[0][0]
    if row["multiples"] == [3.0]:
        return row["mean_samples"] <= GOAL and gap > 0
    return row["mean_samples"] <= FULL.n / 5 and gap >= 0


def _sigmas(multiples: Sequence[float]) -> str:
    return ", ".join("σ/2" if multiple == 0.5 else f"{multiple:g}σ".removeprefix("1") for multiple in multiples)


def _percent(shares: Sequence[float]) -> str:
    return " / ".join(f"{100 * share:.1f}" for share in shares)


if __name__ == "__main__":
    main()

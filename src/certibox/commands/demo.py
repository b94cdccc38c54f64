"""The demo: defend a scikit-learn model of handwritten digits through queries alone, certify it, and compare.

Every setting comes from `presets/demo.yaml`, which `tools/tune_demo.py` chose on validation images. A quick run
goes the same way with less of everything: what differs is in `presets/demo-quick.yaml`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn

from certibox import networks, report, seeds
from certibox.blackbox import as_blackbox
from certibox.certification.dataset import certify_dataset
from certibox.certification.smoothing import BaseClassifier, SmoothedClassifier
from certibox.commands.fields import option
from certibox.commands.printing import OUT
from certibox.commands.progress import bar
from certibox.data import Images, load_images
from certibox.defense.saved import Defense
from certibox.errors import InvalidInput
from certibox.estimators import CGE, RGE, GradientEstimator, Guided
from certibox.networks import Autoencoder, fitting_autoencoder
from certibox.queries.client import QueryClient
from certibox.records.tsv import write_tsv
from certibox.storage.files import write_json_atomic
from certibox.training.defenses import train
from certibox.training.schedules import Schedule, one_cycle
from certibox.training.settings import TrainingSettings
from certibox.training.supervised import pretrain_autoencoder

CLASSES = 10
IMAGES, QUICK_IMAGES, QUICK_TRAINING = 200, 20, 200  # digits to certify, and in a quick run to certify and to train on
HIDDEN = ((64,), (128,), (128, 64))  # layers of the perceptrons that the box is chosen from
QUICK_NOTE = "a quick run shows that everything works; it is too small for its numbers to mean anything"


@dataclass(frozen=True)
class Demo:
    """Defend a scikit-learn digits model through queries alone, certify it, and compare: a few minutes."""

    out: str = option("directory for the report, certificates, defense and ledger", "runs/demo")
    images: int | None = option(f"held-out digits to certify; by default {IMAGES}, in a quick run {QUICK_IMAGES}", None)
    quick: bool = option("all steps at a small size, in some ten seconds; its numbers mean nothing", False)
    seed: int = option("seed of every random draw", 0, least=0)


@dataclass(frozen=True)
class Settings:
    """What tuning on validation images fixed: see `presets/demo.yaml`."""

    sigma: float
    gamma: float
    mu: float
    d_z: int
    denoise_epochs: int
    epochs: int
    lr: float
    autoencoder_epochs: int
    depth: int
    width: int
    reconstruction_weight: float
    n0: int
    n: int
    alpha: float


def settings(quick: bool = False) -> Settings:
    """The settings of `presets/demo.yaml`, with those of `presets/demo-quick.yaml` over them for a quick run."""
    presets = ("demo.yaml", "demo-quick.yaml") if quick else ("demo.yaml",)
    texts = [(files("certibox") / "presets" / name).read_text(encoding="utf-8") for name in presets]
    return Settings(**{key: value for text in texts for key, value in yaml.safe_load(text).items()})


def train_box(shown: Images, validation: Images, layers: Sequence[tuple[int, ...]] = HIDDEN):
    """The box, of a small grid of perceptrons the most accurate on clean validation images, and that accuracy."""
    from sklearn.neural_network import MLPClassifier

    x, y = shown.floats().flatten(1).numpy(), shown.labels
    held, labels = validation.floats().flatten(1).numpy(), validation.labels
    assert y is not None
    assert labels is not None
    grid = [(hidden, penalty) for hidden in layers for penalty in (1e-4, 1e-1)]
    models = [
        MLPClassifier(hidden, alpha=penalty, max_iter=1000, random_state=0).fit(x, y.numpy())
        for hidden, penalty in grid
    ]
    scores = [float(model.score(held, labels.numpy())) for model in models]
    best = int(np.argmax(scores))
    return models[best], scores[best]


def train_stage1(s: Settings, shown: Images, validation: Images, seed: int, out: Path | None = None) -> Autoencoder:
    """The autoencoder, pre-trained on clean images without queries."""
    fresh = fitting_autoencoder(shown.shape, s.d_z, seed=seed)
    with bar("autoencoder") as progress:
        schedule = one_cycle(s.autoencoder_epochs, 3e-3, 64)
        return pretrain_autoencoder(
            shown, fresh, schedule=schedule, seed=seed, validation=validation, out=out, progress=progress
        )


def train_denoiser(s: Settings, client: QueryClient, shown: Images, validation: Images, seed: int) -> Defense:
    """Row (b): the query-free MSE denoiser, for as many epochs as the others take in all."""
    schedule = one_cycle(0, s.lr, 64, denoise_epochs=s.denoise_epochs + s.epochs)
    return _train(s, client, shown, validation, "DS", schedule, seed)


def train_queries(
    s: Settings,
    client: QueryClient,
    shown: Images,
    validation: Images,
    estimator: GradientEstimator,
    autoencoder: Autoencoder,
    seed: int,
    out: Path | None = None,
) -> Defense:
    """Rows (c) to (e): ZO-AE-DS, query-free at first, then through queries."""
    schedule = one_cycle(s.epochs, s.lr, 64, denoise_epochs=s.denoise_epochs)
    return _train(s, client, shown, validation, "ZO-AE-DS", schedule, seed, estimator, autoencoder, out)


def _train(
    s: Settings,
    client: QueryClient,
    shown: Images,
    validation: Images,
    method: str,
    schedule: Schedule,
    seed: int,
    estimator: GradientEstimator | None = None,
    autoencoder: Autoencoder | None = None,
    out: Path | None = None,
) -> Defense:
    chosen = TrainingSettings(
        method=method,
        sigma=s.sigma,
        schedule=schedule,
        seed=seed,
        estimator=estimator,
        gamma=s.gamma,
        reconstruction_weight=s.reconstruction_weight,
    )
    name = f"{method} ({type(estimator).__name__})" if estimator else method
    with bar(name, client) as progress:
        return train(
            client,
            shown,
            chosen,
            denoiser=_denoiser(s, seed),
            autoencoder=autoencoder,
            validation=validation,
            out=out,
            progress=progress,
        )


def _denoiser(s: Settings, seed: int) -> nn.Module:
    """An untrained DnCNN of the demo's size."""
    with seeds.initialisation(seed, "denoiser"):
        return networks.dncnn(1, depth=s.depth, width=s.width)


@dataclass(frozen=True)
class Row:
    """A row of the demo's table: a base classifier that is smoothed and certified."""

    name: str
    place: str  # its folder below --out
    base: BaseClassifier
    trained: int = 0  # queries of its training


def run(options: Demo) -> None:
    """`certibox demo`."""
    started, s, out = time.perf_counter(), settings(options.quick), Path(options.out)
    shown, validation, test = _digits(options)
    model, accuracy = train_box(shown, validation, HIDDEN[:1] if options.quick else HIDDEN)
    hidden = "-".join(map(str, model.hidden_layer_sizes))
    right = f"{accuracy:.1%} right on clean validation digits"
    OUT.print(f"the box: a scikit-learn MLP ({hidden}) without gradients, {right}")
    box = as_blackbox(model, outputs="probabilities", clip=False, name=f"sklearn-mlp-{hidden}")
    client = QueryClient(box, ledger=out / "ledger.sqlite")
    defense, rows = _defended(s, client, shown, validation, options.seed, out)
    runs = [_certified(s, client, row, test, options.seed, out) for row in rows]
    facts = {
        "box": f"{box.spec.name}, {right}",
        "images": f"{len(test)} held-out digits",
        **{key: f"{value:g}" for key, value in asdict(s).items()},
        "seed": str(options.seed),
    }
    notes = [QUICK_NOTE] if options.quick else comparisons(s, runs)
    picture = _picture(defense, test, s.sigma, options.seed, out / "digits.png")
    _write(s, runs, {"clean, noisy, denoised and decoded": picture}, facts, notes, out)
    seconds = f"{time.perf_counter() - started:.0f} seconds"
    OUT.print(f"{seconds}, {client.queries:,} queries; the report is {out / 'report.html'}")


def _digits(options: Demo) -> tuple[Images, Images, Images]:
    """The digits to train on, to select on and to certify."""
    images = options.images if options.images is not None else QUICK_IMAGES if options.quick else IMAGES
    if images < 1:
        raise InvalidInput(f"images is {images}; wanted at least 1 held-out digit to certify, up to 500")
    shown = load_images("digits", "train").select(slice(0, QUICK_TRAINING if options.quick else None))
    return shown, load_images("digits", "validation"), load_images("digits", "test").select(slice(0, images))


def _defended(
    s: Settings, client: QueryClient, shown: Images, validation: Images, seed: int, out: Path
) -> tuple[Defense, list[Row]]:
    """The defense by `Guided`, saved, and what the table compares: (a) the bare box and (b) to (e) its defenses."""
    autoencoder = train_stage1(s, shown, validation, seed, out / "autoencoder")
    denoised = train_denoiser(s, client, shown, validation, seed)
    rows = [
        Row("(a) bare model", "baselines/bare", client),
        Row("(b) MSE denoiser", "baselines/mse-denoiser", denoised.outputs),
    ]
    estimators = {"rge": RGE(q=s.d_z, mu=s.mu), "cge": CGE(mu=s.mu), "guided": Guided(mu=s.mu)}
    defense = denoised
    for letter, (place, estimator) in zip("cde", estimators.items(), strict=True):
        folder = out / f"training-{place}"
        defense = train_queries(s, client, shown, validation, estimator, autoencoder, seed, folder)
        name = f"ZO-AE-DS ({type(estimator).__name__})"
        where = "." if place == "guided" else f"baselines/{place}"
        rows.append(Row(f"({letter}) {name}", where, defense.outputs, client.spent.get(f"train {name}", 0)))
    defense.save(out / "defense")
    return defense, rows


def _certified(s: Settings, client: QueryClient, row: Row, test: Images, seed: int, out: Path) -> report.Run:
    """The certificates of a row, as JSON lines and TSV, and what they cost."""
    with client.phase(f"certify {row.name}"), bar(f"certify {row.name}", client) as progress:
        certified = certify_dataset(
            SmoothedClassifier(row.base, CLASSES, s.sigma),
            test,
            n0=s.n0,
            n=s.n,
            alpha=s.alpha,
            seed=seed,
            out=out / row.place / "certificates.jsonl",
            progress=progress,
        )
    write_tsv(certified, out / row.place / "certificates.tsv")
    spent = {"train": row.trained, "certify": sum(certificate.queries for certificate in certified)}
    return report.Run(row.name, certified, spent)


def _write(
    s: Settings, runs: list[report.Run], pictures: dict[str, bytes], facts: dict[str, str], notes: list[str], out: Path
) -> None:
    """The report as a page, as JSON, and on the terminal."""
    report.write_report(out, runs, radii(s), title="certibox demo: digits", pictures=pictures, facts=facts, notes=notes)
    summary = {"rows": report.summary_table(runs, radii(s)), "notes": notes, "facts": facts}
    write_json_atomic(out / "summary.json", summary)
    OUT.print(report.render_table(runs, radii(s)))
    for note in notes:
        OUT.print(note)


def radii(s: Settings) -> list[float]:
    """Radii of the demo's table: 0, σ/2, σ and 3σ/2."""
    return [0.0, s.sigma / 2, s.sigma, 1.5 * s.sigma]


def comparisons(s: Settings, runs: list[report.Run]) -> list[str]:
    """(e) against (a) to (d) at r = σ: paired differences as they are; that to (b) is what the queries bought."""
    last, lines = runs[-1], []
    for other in runs[:-1]:
        difference, low, high = report.paired_difference(last.rows, other.rows, s.sigma)
        better, worse = ("queries help", "queries hurt") if other is runs[1] else ("(e) is better", "(e) is worse")
        verdict = better if low > 0 else worse if high < 0 else "no difference can be told"
        interval = f"95 % interval [{low:+.1%}, {high:+.1%}]"
        lines.append(
            f"{last.name} minus {other.name} at r = sigma = {s.sigma:g}: {difference:+.1%}, {interval}: {verdict}"
        )
    return lines


def _picture(defense: Defense, test: Images, sigma: float, seed: int, path: Path) -> bytes:
    """Clean / noisy / denoised / decoded: what each stage does to six digits."""
    x = test.floats(slice(0, 6))
    noisy = x + sigma * torch.randn(x.shape, generator=seeds.generator(seed, "picture"))
    stages = {"clean": x, "noisy": noisy, "denoised": defense.denoise(noisy), "decoded": defense.robustify(noisy)}
    return report.plot_images({name: images.clamp(0, 1).numpy() for name, images in stages.items()}, path)

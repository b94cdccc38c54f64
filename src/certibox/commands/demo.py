"""The demo: defend a scikit-learn model of handwritten digits through queries alone, certify it, and compare.

Every setting comes from `presets/demo.yaml`, which `tools/tune_demo.py` chose on validation images.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import yaml
from rich.console import Console
from torch import nn

from certibox import networks, report, seeds
from certibox.blackbox import as_blackbox
from certibox.certification.dataset import certify_dataset
from certibox.certification.smoothing import SmoothedClassifier
from certibox.commands.fields import option
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
from certibox.training.supervised import pretrain_autoencoder

CLASSES = 10


@dataclass(frozen=True)
class Demo:
    """Defend a scikit-learn digits model through queries alone, certify it, and compare: a minute or two."""

    out: str = option("directory for the report, certificates, defense and ledger", "runs/demo")
    images: int = option("held-out digits to certify", 200)
    seed: int = option("seed of every random draw", 0)


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


def settings() -> Settings:
    """The settings of `presets/demo.yaml`."""
    return Settings(**yaml.safe_load((files("certibox") / "presets" / "demo.yaml").read_text(encoding="utf-8")))


def train_box(shown: Images, validation: Images):
    """The box, of a small grid of perceptrons the most accurate on clean validation images, and that accuracy."""
    from sklearn.neural_network import MLPClassifier

    x, y = shown.floats().flatten(1).numpy(), shown.labels
    held, labels = validation.floats().flatten(1).numpy(), validation.labels
    assert y is not None
    assert labels is not None
    grid = [(hidden, penalty) for hidden in ((64,), (128,), (128, 64)) for penalty in (1e-4, 1e-1)]
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
    name = f"{method} ({type(estimator).__name__})" if estimator else method
    with bar(name, client) as progress:
        return train(
            client,
            shown,
            method=method,
            sigma=s.sigma,
            schedule=schedule,
            seed=seed,
            estimator=estimator,
            gamma=s.gamma,
            reconstruction_weight=s.reconstruction_weight,
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


def run(options: Demo) -> None:
    """`certibox demo`."""
    started, console, s, out = (
        time.perf_counter(),
        Console(soft_wrap=True, highlight=False),
        settings(),
        Path(options.out),
    )
    if options.images < 1:
        raise InvalidInput(f"images is {options.images}; wanted at least 1 held-out digit to certify, up to 500")
    shown, validation = load_images("digits", "train"), load_images("digits", "validation")
    test = load_images("digits", "test").select(slice(0, options.images))
    model, accuracy = train_box(shown, validation)
    hidden = "-".join(map(str, model.hidden_layer_sizes))
    console.print(
        f"the box: a scikit-learn MLP ({hidden}) without gradients, {accuracy:.1%} right on clean validation digits"
    )

    box = as_blackbox(model, outputs="probabilities", name=f"sklearn-mlp-{hidden}")
    client = QueryClient(box, ledger=out / "ledger.sqlite")
    autoencoder = train_stage1(s, shown, validation, options.seed, out / "autoencoder")
    denoised = train_denoiser(s, client, shown, validation, options.seed)
    defenses = [
        train_queries(s, client, shown, validation, estimator, autoencoder, options.seed, out / name)
        for name, estimator in (
            ("training-rge", RGE(q=s.d_z, mu=s.mu)),
            ("training-cge", CGE(mu=s.mu)),
            ("training-guided", Guided(mu=s.mu)),
        )
    ]
    defenses[-1].save(out / "defense")
    rows = {
        "(a) bare model": ("baselines/bare", client, 0),
        "(b) MSE denoiser": ("baselines/mse-denoiser", denoised.outputs, 0),
        "(c) ZO-AE-DS (RGE)": ("baselines/rge", defenses[0].outputs, client.spent.get("train ZO-AE-DS (RGE)", 0)),
        "(d) ZO-AE-DS (CGE)": ("baselines/cge", defenses[1].outputs, client.spent.get("train ZO-AE-DS (CGE)", 0)),
        "(e) ZO-AE-DS (Guided)": (".", defenses[2].outputs, client.spent.get("train ZO-AE-DS (Guided)", 0)),
    }
    runs = []
    for name, (place, base, spent) in rows.items():
        with client.phase(f"certify {name}"), bar(f"certify {name}", client) as progress:
            certified = certify_dataset(
                SmoothedClassifier(base, CLASSES, s.sigma),
                test,
                n0=s.n0,
                n=s.n,
                alpha=s.alpha,
                seed=options.seed,
                out=out / place / "certificates.jsonl",
                progress=progress,
            )
        write_tsv(certified, out / place / "certificates.tsv")
        runs.append(report.Run(name, certified, {"train": spent, "certify": sum(row.queries for row in certified)}))

    pictures = {
        "clean, noisy, denoised and decoded": _picture(defenses[-1], test, s.sigma, options.seed, out / "digits.png")
    }
    facts = {
        "box": f"{box.spec.name}, {accuracy:.1%} right on clean validation digits",
        "images": f"{len(test)} held-out digits",
        **{key: f"{value:g}" for key, value in asdict(s).items()},
        "seed": str(options.seed),
    }
    notes = comparisons(s, runs)
    report.write_report(out, runs, radii(s), title="certibox demo: digits", pictures=pictures, facts=facts, notes=notes)
    summary = {"rows": report.summary_table(runs, radii(s)), "notes": notes, "facts": facts}
    write_json_atomic(out / "summary.json", summary)
    console.print(report.render_table(runs, radii(s)))
    for note in notes:
        console.print(note)
    console.print(
        f"{time.perf_counter() - started:.0f} seconds, {client.queries:,} queries; the report is {out / 'report.html'}"
    )


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

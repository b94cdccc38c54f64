"""The demo: defend a scikit-learn model of handwritten digits through queries alone, certify it, and compare.

Every setting comes from `presets/demo.yaml`, which `tools/tune_demo.py` chose on validation images. A quick run
goes the same way with less of everything: what differs is in `presets/demo-quick.yaml`.
"""

from __future__ import annotations

import time
import webbrowser
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from certibox import networks, report, seeds
from certibox.blackbox import as_blackbox
from certibox.certification.dataset import certify_dataset
from certibox.certification.smoothing import BaseClassifier, SmoothedClassifier
from certibox.commands.fields import option
from certibox.commands.options import RuleOptions
from certibox.commands.printing import OUT
from certibox.commands.progress import bar
from certibox.data import Images, load_images
from certibox.defense.saved import Defense
from certibox.errors import InvalidInput
from certibox.estimators import GradientEstimator, Guided
from certibox.networks import Autoencoder, fitting_autoencoder
from certibox.queries.client import QueryClient
from certibox.records.tsv import write_tsv
from certibox.report.findings import clean_accuracy, comparisons
from certibox.report.page import PAGE
from certibox.storage.files import write_json_atomic
from certibox.training.defenses import train
from certibox.training.schedules import Schedule, one_cycle
from certibox.training.settings import TrainingSettings
from certibox.training.supervised import pretrain_autoencoder

CLASSES = 10
IMAGES, QUICK_IMAGES, QUICK_TRAINING = 50, 6, 200  # digits to certify, and in a quick run to certify and to train on
STAGES = {"(a)": "bare model", "(b)": "free denoiser", "(c)": "trained by queries"}
LEGEND = (
    "(a) bare model: the box behind Gaussian noise and a vote, with nothing trained",
    "(b) free denoiser: a denoiser in front, trained by squared error on the images alone; no query",
    "(c) trained by queries: denoiser and autoencoder (ZO-AE-DS), trained through the box's answers",
    "r: l2 radius, pixels on [0, 1]; a digit counts at r if its certificate is right and reaches r",
)
ELSEWHERE = (
    "elsewhere: boosting answers in steps and suffers much under noise; in front of a perceptron, a linear model or a "
    "forest the free denoiser takes most of the gain: docs/measurements/families.md"
)
QUICK_ROUNDS = 5  # of boosting in a quick run
QUICK_NOTE = "a quick run shows that everything works; it is too small for its numbers to mean anything"


@dataclass(frozen=True)
class Demo:
    """Defend a scikit-learn digits model through queries alone, certify it, and compare: about a minute."""

    out: str = option("directory for the report, certificates, defense and ledger", "runs/demo")
    images: int | None = option(f"held-out digits to certify; by default {IMAGES}, in a quick run {QUICK_IMAGES}", None)
    quick: bool = option("all steps at a small size, in some ten seconds; its numbers mean nothing", False)
    open: bool = option("open the report in a browser at the end", False)
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
    texts = [(files("certibox.commands") / "presets" / name).read_text(encoding="utf-8") for name in presets]
    return Settings(**{key: value for text in texts for key, value in yaml.safe_load(text).items()})


def train_box(shown: Images, rounds: int = 100):
    """The box: gradient boosting as scikit-learn has it by default, a common model of tables without gradients.

    Args:
        shown: Training images with labels.
        rounds: Number of boosting rounds, by default scikit-learn's.
    """
    from sklearn.ensemble import GradientBoostingClassifier

    assert shown.labels is not None
    x, y = shown.floats().flatten(1).numpy(), shown.labels.numpy()
    return GradientBoostingClassifier(n_estimators=rounds, random_state=0).fit(x, y)


def accuracy_alone(model: Any, images: Images) -> float:
    """The share of clean images that the box alone gets right: what a user has before certibox."""
    assert images.labels is not None
    return float(model.score(images.floats().flatten(1).numpy(), images.labels.numpy()))


def guided(s: Settings) -> Guided:
    """The estimator: a surrogate on the embedding, without corrections, costs one query an image and step."""
    return Guided(q=0, mu=s.mu, surrogate="latent")


def train_stage1(s: Settings, shown: Images, validation: Images, seed: int, out: Path | None = None) -> Autoencoder:
    """The autoencoder, pre-trained on clean images without queries."""
    fresh = fitting_autoencoder(shown.shape, s.d_z, seed=seed)
    with bar("autoencoder") as progress:
        schedule = one_cycle(s.autoencoder_epochs, 3e-3, 64)
        return pretrain_autoencoder(
            shown, fresh, schedule=schedule, seed=seed, validation=validation, out=out, progress=progress
        )


def train_denoiser(s: Settings, client: QueryClient, shown: Images, validation: Images, seed: int) -> Defense:
    """Row (b): the query-free MSE denoiser, for as many epochs as row (c) takes in all."""
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
    """Row (c): ZO-AE-DS, query-free at first, then through queries."""
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
    report.require_report_place(out)
    shown, validation, test = _digits(options)
    OUT.print(f"the box: gradient boosting of scikit-learn, trained on {len(shown):,} digits; it gives no gradients")
    model = train_box(shown, *([QUICK_ROUNDS] if options.quick else []))
    box = as_blackbox(model, outputs="probabilities", clip=False, name="sklearn-gradient-boosting")
    client = QueryClient(box, ledger=out / "ledger.sqlite")
    defense, rows = _defended(s, client, shown, validation, options.seed, out)
    runs = [_certified(s, client, row, test, options.seed, out) for row in rows]
    facts = {
        "box": "gradient boosting (scikit-learn's default)",
        "images": f"{len(test)} held-out digits",
        **{key: f"{value:g}" for key, value in asdict(s).items()},
        "seed": str(options.seed),
    }
    notes = [clean(accuracy_alone(model, test), runs), costs(runs)]
    notes += [QUICK_NOTE] if options.quick else [*verdicts(s, runs), ELSEWHERE]
    picture = _picture(defense, test, s.sigma, options.seed, out / "digits.png")
    _write(s, runs, {"clean, noisy, denoised and decoded": picture}, facts, notes, out)
    page = out / PAGE
    OUT.print(f"{time.perf_counter() - started:.0f} seconds, {client.queries:,} queries; the report is {page}")
    if options.open:
        webbrowser.open(page.resolve().as_uri())


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
    """The defense, saved, and what the table compares: (a) the bare box, (b) and (c) its defenses."""
    autoencoder = train_stage1(s, shown, validation, seed, out / "autoencoder")
    denoised = train_denoiser(s, client, shown, validation, seed)
    defense = train_queries(s, client, shown, validation, guided(s), autoencoder, seed, out / "training")
    defense.save(out / "defense")
    rows = [
        Row(f"(a) {STAGES['(a)']}", "baselines/bare", client),
        Row(f"(b) {STAGES['(b)']}", "baselines/free-denoiser", denoised.outputs),
        Row(f"(c) {STAGES['(c)']}", ".", defense.outputs, client.spent.get("train ZO-AE-DS (Guided)", 0)),
    ]
    return defense, rows


def _certified(s: Settings, client: QueryClient, row: Row, test: Images, seed: int, out: Path) -> report.Run:
    """The certificates of a row, as JSON lines and TSV, and what they cost."""
    rule = RuleOptions(n0=s.n0, n=s.n).build_rule(s.sigma)  # that of `certify` where nothing else is asked
    with client.phase(f"certify {row.name}"), bar(f"certify {row.name}", client) as progress:
        certified = certify_dataset(
            SmoothedClassifier(row.base, CLASSES, s.sigma),
            test,
            n0=s.n0,
            n=s.n,
            alpha=s.alpha,
            seed=seed,
            rule=rule,
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
    title, said = "certibox demo: digits", [*LEGEND, *notes]
    report.write_report(out, runs, radii(s), title=title, pictures=pictures, facts=facts, notes=said)
    summary = {"rows": report.summary_table(runs, radii(s)), "legend": list(LEGEND), "notes": notes, "facts": facts}
    write_json_atomic(out / "summary.json", summary)
    OUT.print(report.render_table(runs, radii(s)))
    for note in [*LEGEND, *notes]:
        OUT.print(note)


def radii(s: Settings) -> list[float]:
    """Radii of the demo's table: those that the rule of `certify` decides by default."""
    return list(RuleOptions().radii_at(s.sigma))


def clean(alone: float, runs: list[report.Run]) -> str:
    """What clean digits lose: the box asked once against the class that most votes of each smoothed row are for.

    Args:
        alone: Share of the digits that the box gets right when it is asked once, without noise.
        runs: Rows of the table, certified on the same digits.
    """
    shares = [share for run in runs if (share := clean_accuracy(run.rows)) is not None]
    votes = ", ".join(f"{letter} {share:.1%}" for letter, share in zip(STAGES, shares, strict=True))
    change = f"(c) changes it by {100 * (shares[-1] - alone):+.1f} points"
    return f"clean accuracy: {alone:.1%} for the box asked once without noise; by most votes {votes}; {change}"


def costs(runs: list[report.Run]) -> str:
    """What (c) costs: queries to train once, and then queries a certified digit.

    Args:
        runs: Rows of the table, (c) the last of them.
    """
    last = runs[-1]
    each = last.queries["certify"] / len(last.rows)
    training = f"{last.queries['train']:,} queries to train, once"
    return f"cost of (c): {training}; then {each:,.0f} a certified digit on average"


def verdicts(s: Settings, runs: list[report.Run]) -> list[str]:
    """(c) against (a) and (b) at r = σ: paired differences as they are; that to (b) is what the queries bought."""
    found, _ = comparisons(runs, [s.sigma])
    return [pair.line for pair in found if pair.a == runs[-1].name]


def _picture(defense: Defense, test: Images, sigma: float, seed: int, path: Path) -> bytes:
    """Clean / noisy / denoised / decoded: what each stage does to six digits."""
    x = test.floats(slice(0, 6))
    noisy = x + sigma * torch.randn(x.shape, generator=seeds.generator(seed, "picture"))
    stages = {"clean": x, "noisy": noisy, "denoised": defense.denoise(noisy), "decoded": defense.robustify(noisy)}
    return report.plot_images({name: images.clamp(0, 1).numpy() for name, images in stages.items()}, path)

"""`certibox train`: a defense in front of a black box."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from certibox.commands.boxes import LEDGER, BoxOptions, require_ledger
from certibox.commands.fields import Needs, option
from certibox.commands.models import is_saved, saved_autoencoder, untrained_autoencoder
from certibox.commands.options import LONGEST_TRAINING, DataOptions, EstimatorOptions, ScheduleOptions, folder
from certibox.commands.printing import OUT, spent
from certibox.commands.progress import bar
from certibox.defense.saved import require_defense_place
from certibox.errors import InvalidInput
from certibox.estimators import GradientEstimator, Guided
from certibox.networks import Autoencoder
from certibox.training.defenses import train
from certibox.training.methods import METHODS
from certibox.training.schedules import AUTOENCODER_EPOCHS, AUTOENCODER_RATE, Schedule, one_cycle
from certibox.training.settings import TrainingSettings
from certibox.training.surrogate import TRIED
from certibox.training.tracking import tracker_named


@dataclass(frozen=True)
class Train(BoxOptions, DataOptions, EstimatorOptions, ScheduleOptions):
    """Train a defense in front of a black box. Interrupted runs resume from --out and pay for nothing twice.

    example: certibox train --model box.py:predict --outputs probabilities --data digits \\
                 --sigma 0.25 --gamma 1 --d-z 32 --budget 2000000 --out runs/mine
    """

    NEEDS: ClassVar = (
        Needs(
            "gamma targets",
            lambda o: METHODS[o.method].order is not None,
            "with --method {method}, which has no stability term",
            "another --method",
        ),
        Needs("targets", lambda o: o.outputs != "values", "with --outputs values, which are the targets", "scores"),
        Needs(
            "reconstruction_weight",
            lambda o: o.method not in ("RS", "DS"),
            "with --method {method}, which has no such term",
            "another --method",
        ),
        Needs(
            "denoiser denoise_weight denoise_epochs",
            lambda o: METHODS[o.method].denoises,
            "with --method {method}, which has no denoiser",
            "another --method",
        ),
        Needs(
            "scheme autoencoder d_z latent autoencoder_epochs skip_dead",
            lambda o: METHODS[o.method].bottleneck,
            "with --method {method}, which has no autoencoder",
            "--method ZO-AE-DS or FO-AE-DS",
        ),
        Needs(
            "autoencoder_epochs",
            lambda o: not is_saved(o.autoencoder),
            "with --autoencoder {autoencoder}, which is taken as pre-trained",
            "the name of a network",
        ),
        Needs(
            "skip_dead",
            lambda o: METHODS[o.method].order == 0,
            "with --method {method}, which spends no query on coordinates",
            "--method ZO-AE-DS",
        ),
        Needs(
            "skip_dead", lambda o: o.latent == "relu", "with --latent {latent}: no coordinate is dead", "--latent relu"
        ),
    )

    out: str = option("directory of the run: checkpoints, rows, ledger and the saved defense")
    method: Literal["RS", "DS", "FO-DS", "FO-AE-DS", "ZO-DS", "ZO-AE-DS"] = option(
        "ZO: trained through queries alone, FO: through gradients, AE: on an embedding; DS: denoiser, no query",
        "ZO-AE-DS",
    )
    sigma: float = option("standard deviation of the noise, in pixels on [0, 1]")
    gamma: float | None = option("weight of the stability term; all methods but DS and RS want it", None)
    denoise_weight: float = option("weight of the denoising term; 0 trains stability alone", 1.0, advanced=True)
    reconstruction_weight: float = option(
        "weight of the free term that keeps decoded images near the clean ones", 0.0, advanced=True
    )
    scheme: Literal["denoiser", "denoiser+encoder", "denoiser+autoencoder"] = option(
        "parts that train", "denoiser+encoder", advanced=True
    )
    denoiser: Literal["dncnn", "dncnn-wide", "unet"] = option("denoising network", "dncnn")
    autoencoder: str = option(
        "suitable, or ae-48, ae-96, ae-192, ae-576, ae-mnist, ae-mnist-96, ae-1152; or the directory of a saved one, "
        "which is taken as pre-trained",
        "suitable",
    )
    d_z: int | None = option("dimension of the embedding; by default the paper's for the size of the images", None)
    latent: Literal["relu", "leaky", "linear"] = option(
        "what ends the encoder: relu leaves dead coordinates, which cost no query and carry nothing",
        "relu",
        advanced=True,
    )
    autoencoder_epochs: int = option(
        "epochs of the autoencoder's query-free pre-training on clean images",
        AUTOENCODER_EPOCHS,
        least=0,
        most=LONGEST_TRAINING,
    )
    targets: Literal["hard", "soft"] = option(
        "compare with the box's label, or with its probabilities", "hard", advanced=True
    )
    augmentation: Literal["none", "flip", "flips", "crop-flip"] = option(
        "augmentation of training images", "none", advanced=True
    )
    validation: float = option("share of the images held out to select the best epoch", 0.1)
    validation_votes: int = option("noisy votes on each held-out image", 4, advanced=True)
    validate_every: int | None = option(
        "epochs between validations, by default each; the end of the schedule is validated in any case",
        None,
        advanced=True,
    )
    skip_dead: bool = option(
        "spend no query on embedding coordinates without an upstream gradient", True, advanced=True
    )
    updates: int = option("guided: optimizer steps of the surrogate a step of training", 4, advanced=True)
    patience: int | None = option("stop after so many validations without a better score", None, advanced=True)
    fingerprint: bool = option("also ask 8 canary images, to recognise the box later", False)
    tracker: Literal["mlflow", "wandb"] | None = option(
        "where training sends its values; by default to TensorBoard's files in --out, where it is installed",
        None,
        advanced=True,
    )
    seed: int = option("seed of every random draw", 0, least=0)

    def build_estimator(self) -> GradientEstimator:
        """The estimator, with what its surrogate does between queries."""
        made = super().build_estimator()
        return replace(made, updates=self.updates) if isinstance(made, Guided) else made

    @property
    def usual_denoise_epochs(self) -> int:
        """Epochs on denoising alone where none are given: none without a denoiser."""
        return super().usual_denoise_epochs if METHODS[self.method].denoises else 0

    def build_settings(self) -> TrainingSettings:
        """The settings of the run."""
        return TrainingSettings(
            method=self.method,
            sigma=self.sigma,
            schedule=self.build_schedule(),
            seed=self.seed,
            estimator=self.build_estimator() if METHODS[self.method].order == 0 else None,
            gamma=self.gamma,
            denoise_weight=self.denoise_weight,
            reconstruction_weight=self.reconstruction_weight,
            scheme=self.scheme,
            targets=self.targets,
            augmentation=self.augmentation,
            skip_dead=self.skip_dead,
            validation_votes=self.validation_votes,
            validate_every=self.validate_every,
            patience=self.patience,
        )

    def build_autoencoder(self, image_shape: tuple[int, int, int]) -> tuple[Autoencoder, Schedule | None]:
        """The autoencoder, and the schedule of its pre-training: None for a saved one."""
        if saved := saved_autoencoder(self.autoencoder, self.d_z):
            if self.latent != "relu":
                text = f"latent is {self.latent}, but a saved autoencoder has its own"
                raise InvalidInput(f"{text}; wanted one without the other")
            return saved, None
        untrained = untrained_autoencoder(self.autoencoder, image_shape, self.d_z, self.seed, self.latent)
        return untrained, one_cycle(self.autoencoder_epochs, AUTOENCODER_RATE, self.train_batch_size)


def run_train(options: Train) -> None:
    """`certibox train`.

    Args:
        options: Options of the command.
    """
    out, settings = folder(options.out), options.build_settings()
    tracker = None if options.tracker is None else tracker_named(options.tracker, out.name)
    require_defense_place(folder(str(out / "defense")))
    images = options.images()
    require_ledger(out / LEDGER, out / "training" / "config.json", options.budget, "restore it, or give another out")
    client = options.client(out / LEDGER, images)
    bottleneck = METHODS[options.method].bottleneck
    autoencoder, stage1 = options.build_autoencoder(images.shape) if bottleneck else (None, None)
    with bar(f"training {options.method}", client) as progress:
        defense = train(
            client,
            images,
            settings,
            denoiser=options.denoiser,
            autoencoder=autoencoder,
            autoencoder_schedule=stage1,
            validation=options.validation,
            fingerprint=options.fingerprint,
            device=options.device or "cpu",
            out=out / "training",
            progress=progress,
            tracker=tracker,
        )
    defense.save(out / "defense")
    for line in _outcome(out / "training" / "rows.jsonl", options.method, settings.estimator):
        OUT.print(line)
    if step := defense.facts.get("step"):
        doubt = "" if step["agreed"] else "; no two steps agreed, so any difference of this box is doubtful"
        OUT.print(f"mu = {step['mu']:.3g}, measured with {step['queries']} queries{doubt}")
    OUT.print(f"saved {Path(options.out) / 'defense'}; queries spent: {spent(client)}")


def _outcome(path: Path, method: str, estimator: GradientEstimator | None) -> list[str]:
    """What the rows of a run tell about how it went: the selected score, and the live coordinates of the last epoch."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    scores, lines = [row["validation"] for row in rows if row["validation"] is not None], []
    if scores:
        said = (
            "minus the squared error of denoising"
            if METHODS[method].order is None
            else "noisy votes that keep the target"
        )
        lines.append(f"validation, best epoch: {max(scores):.3f} ({said})")
    if rows and "cosine" in rows[-1] and isinstance(estimator, Guided):
        lines.append(_agreement(rows, estimator))
    if rows and "live" in rows[-1]:
        lines.append(f"live coordinates of the embedding, on average over the last epoch: {rows[-1]['live']:.1f}")
    return lines


def _agreement(rows: list[dict[str, Any]], guided: Guided) -> str:
    """What the surrogate's gradient was worth, and why no correction was bought where it was worth too little."""
    cosine, bought = rows[-1]["cosine"], f"{rows[-1]['q']:.1f} corrections an image"
    line = f"cosine of the surrogate's gradient with the truth, on average over the last epoch: {cosine:.2f}; {bought}"
    starts = [0, *(row["step"] for row in rows)]
    steps = sum(row["step"] - start for row, start in zip(rows, starts, strict=False) if "cosine" in row)
    probes = -(-steps // guided.probe_every)  # one at the first step, and every so many later
    if max(cosine, 0.0) >= guided.target or probes >= TRIED:
        return line
    early = f"training ended after {probes} of the {TRIED} probes, one every {guided.probe_every} steps, that"
    return f"{line}: it is below {guided.target:g}, but {early} corrections wait for"

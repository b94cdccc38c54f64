"""The command line: argv → options → one call. Exit status: 0 done, 2 bad input, 3 budget spent (work kept)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from torch import Tensor

from certibox import certification, demo, query_cost, report
from certibox.arguments import parse
from certibox.authors import import_authors, reconstruction_mse, save_autoencoder
from certibox.config import Schedule, one_cycle
from certibox.data import Images, load_images
from certibox.errors import CertiboxError, InvalidInput, UnreadableFile
from certibox.networks import Autoencoder
from certibox.objective import METHODS
from certibox.options import (
    BoxOptions,
    DataOptions,
    EstimatorOptions,
    ScheduleOptions,
    option,
    saved_autoencoder,
    untrained_autoencoder,
)
from certibox.paper import commands as paper
from certibox.pipeline import Defense, load_defense
from certibox.progress import bar
from certibox.query import QueryClient
from certibox.records import CertificateRow, read_rows, write_tsv
from certibox.smoothing import SmoothedClassifier, require_certifiable
from certibox.training import train
from certibox.version import VERSION

OUT = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Train(BoxOptions, DataOptions, EstimatorOptions, ScheduleOptions):
    """Train a defense in front of a black box. Interrupted runs resume from --out and pay for nothing twice.

    example: certibox train --model box.py:predict --outputs probabilities --data digits \\
                 --sigma 0.25 --gamma 1 --mu 0.05 --d-z 32 --budget 2000000 --out runs/mine
    """

    out: str = option("directory of the run: checkpoints, rows, ledger and the saved defense")
    method: Literal["RS", "DS", "FO-DS", "FO-AE-DS", "ZO-DS", "ZO-AE-DS"] = option(
        "ZO: trained through queries alone, FO: through gradients, AE: on an embedding; DS: denoiser, no query",
        "ZO-AE-DS",
    )
    sigma: float = option("standard deviation of the noise, in pixels on [0, 1]")
    gamma: float | None = option("weight of the stability term; all methods but DS and RS want it", None)
    denoise_weight: float = option("weight of the denoising term; 0 trains stability alone", 1.0)
    reconstruction_weight: float = option("weight of the free term that keeps decoded images near the clean ones", 0.0)
    scheme: Literal["denoiser", "denoiser+encoder", "denoiser+autoencoder"] = option(
        "parts that train", "denoiser+encoder"
    )
    denoiser: Literal["dncnn", "dncnn-wide", "unet"] = option("denoising network", "dncnn")
    autoencoder: str = option(
        "suitable, or ae-48, ae-96, ae-192, ae-576, ae-mnist, ae-1152; or the directory of a saved one, "
        "which is taken as pre-trained",
        "suitable",
    )
    d_z: int | None = option("dimension of the embedding; by default the paper's for the size of the images", None)
    autoencoder_epochs: int = option("epochs of the autoencoder's query-free pre-training on clean images", 50)
    targets: Literal["hard", "soft"] = option("compare with the box's label, or with its probabilities", "hard")
    augmentation: Literal["none", "flip", "flips", "crop-flip"] = option("augmentation of training images", "none")
    validation: float = option("share of the images held out to select the best epoch", 0.1)
    validation_votes: int = option("noisy votes on each held-out image", 4)
    skip_dead: bool = option("spend no query on embedding coordinates without an upstream gradient", True)
    fingerprint: bool = option("also ask 8 canary images, to recognise the box later", False)
    seed: int = option("seed of every random draw", 0)

    def build_autoencoder(self, image_shape: tuple[int, int, int]) -> tuple[Autoencoder, Schedule | None]:
        """The autoencoder, and the schedule of its pre-training: None for a saved one."""
        if saved := saved_autoencoder(self.autoencoder, self.d_z):
            return saved, None
        untrained = untrained_autoencoder(self.autoencoder, image_shape, self.d_z, self.seed)
        return untrained, one_cycle(self.autoencoder_epochs, 3e-3, self.train_batch_size)


@dataclass(frozen=True)
class Smoothing:
    """Noise, votes and confidence of the smoothed classifier."""

    defense: str | None = option("directory of a saved defense; without it the bare box is smoothed", None)
    sigma: float | None = option("standard deviation of the noise, in pixels on [0, 1]; by default the defense's", None)
    alpha: float = option("probability that one certificate is false", 0.001)
    seed: int = option("seed of the noise", 0)
    noise_batch_size: int = option("noisy copies at a time", 1000)
    check_box: bool = option(
        "first ask the canaries of the defense's fingerprint, and stop if the box has changed", False
    )
    ledger: str | None = option("ledger of queries; by default certify keeps one in --out, predict none", None)


@dataclass(frozen=True)
class Certify(BoxOptions, DataOptions, Smoothing):
    """Certify images: one row each, appended as earned. Interrupted runs resume from --out.

    example: certibox certify --model box.py:predict --outputs probabilities --data digits --limit 100 \\
                 --defense runs/mine/defense --n 1000 --out runs/mine/certified
    """

    split: str = option("which split of the data", "test")
    n0: int = option("votes that pick a class", 100)
    n: int = option("votes that bound its probability", 10_000)
    shard: str = option("this part of the images, as i/k with i from 1 to k; `merge` joins the parts", "1/1")
    out: str = option("directory for certificates.jsonl and certificates.tsv")


@dataclass(frozen=True)
class Predict(BoxOptions, DataOptions, Smoothing):
    """Predict with the smoothed classifier, the one that certificates speak of; prints one JSON line an image.

    A null class is an abstention: the votes cannot tell the top two classes apart.

    example: certibox predict --model box.py:predict --outputs probabilities --data digits --limit 3 \\
                 --defense runs/mine/defense
    """

    split: str = option("which split of the data", "test")
    n: int = option("votes an image", 1000)


@dataclass(frozen=True)
class Merge:
    """Merge the certificate files of shards into one.

    example: certibox merge runs/mine/certified/certificates.*-of-4.jsonl --out runs/mine/certificates.jsonl
    """

    files: list[str] = option("certificate files of the shards", positional=True)
    out: str = option("the merged file", "certificates.jsonl")


@dataclass(frozen=True)
class Report:
    """Compare certified runs: a table, curves of certified accuracy and one self-contained HTML page.

    example: certibox report bare=runs/bare/certificates.jsonl defended=runs/mine/certified/certificates.jsonl \\
                 --radii "[0, 0.25, 0.5]" --out runs/report
    """

    files: list[str] = option("certificate files, each as NAME=FILE or FILE", positional=True)
    radii: list[float] = option("l2 radii of the table, as [0, 0.25, ...]", (0.0, 0.25, 0.5, 0.75))
    alpha: float | None = option("replay the stored votes at another alpha; costs no query", None)
    title: str = option("title of the page", "Certified accuracy")
    out: str = option("directory for report.html, ca_curve.png and the TSV files", "report")


@dataclass(frozen=True)
class ImportAuthors:
    """Import an autoencoder that the paper's authors released, for `train --autoencoder`.

    example: certibox import-authors --encoder cifar10_ae192_encoder.pth.tar --decoder cifar10_ae192_decoder.pth.tar \\
                 --out runs/authors
    """

    encoder: str = option("the authors' .pth.tar file of the encoder; tensors and plain values are read, no code")
    decoder: str = option("the authors' .pth.tar file of the decoder")
    out: str = option("directory for autoencoder.safetensors and autoencoder.json")
    data: str | None = option("images to reconstruct, as in `train`; prints the mean squared error", None)
    split: str = option("which split of the data", "test")
    limit: int | None = option("use only the first N images", None)


def run_train(options: Train) -> None:
    """`certibox train`."""
    out = Path(options.out)
    images = options.images()
    client = options.client(out / "ledger.sqlite")
    method = METHODS[options.method]
    estimator = options.build_estimator() if method.order == 0 else None
    autoencoder, stage1 = options.build_autoencoder(images.shape) if method.bottleneck else (None, None)
    with bar(f"training {options.method}", client) as progress:
        defense = train(
            client,
            images,
            method=options.method,
            sigma=options.sigma,
            schedule=options.build_schedule(),
            seed=options.seed,
            estimator=estimator,
            gamma=options.gamma,
            denoise_weight=options.denoise_weight,
            reconstruction_weight=options.reconstruction_weight,
            scheme=options.scheme,
            denoiser=options.denoiser,
            autoencoder=autoencoder,
            autoencoder_schedule=stage1,
            targets=options.targets,
            augmentation=options.augmentation,
            validation=options.validation,
            validation_votes=options.validation_votes,
            skip_dead=options.skip_dead,
            fingerprint=options.fingerprint,
            out=out / "training",
            progress=progress,
        )
    defense.save(out / "defense")
    for line in _outcome(out / "training" / "rows.jsonl", options.method):
        OUT.print(line)
    OUT.print(f"saved {out / 'defense'}; queries spent: {_spent(client)}")


def run_certify(options: Certify) -> None:
    """`certibox certify`."""
    index, shards = _shard(options.shard)
    require_certifiable(options.n, options.alpha)  # again below, but there the canaries are paid for
    out = Path(options.out)
    name = "certificates.jsonl" if shards == 1 else f"certificates.{index + 1}-of-{shards}.jsonl"
    images = options.images()
    if index >= len(images):
        raise InvalidInput(
            f"shard {options.shard} of {len(images)} images is empty; wanted at most {len(images)} shards"
        )
    client, smoothed, model = _smoothed(options, images, Path(options.ledger or out / "ledger.sqlite"))
    with client.phase("certify"), bar("certifying", client) as progress:
        rows = certification.certify_dataset(
            smoothed,
            images,
            n0=options.n0,
            n=options.n,
            alpha=options.alpha,
            seed=options.seed,
            out=out / name,
            model=model,
            shard=(index, shards),
            batch_size=options.noise_batch_size,
            progress=progress,
        )
    if images.labels is not None:
        write_tsv(rows, (out / name).with_suffix(".tsv"))
    run = report.Run(out.name, rows, client.spent)
    OUT.print(report.render_table([run], [0.0, smoothed.sigma / 2, smoothed.sigma, 2 * smoothed.sigma]))
    OUT.print(f"saved {out / name}; queries spent: {_spent(client)}")


def run_predict(options: Predict) -> None:
    """`certibox predict`."""
    images = options.images()
    ledger = Path(options.ledger) if options.ledger else None
    client, smoothed, _ = _smoothed(options, images, ledger)
    with client.phase("predict"):
        for i in range(len(images)):
            x = images.floats([i])[0]
            made = smoothed.predict(
                x, n=options.n, alpha=options.alpha, seed=options.seed, batch_size=options.noise_batch_size
            )
            print(
                json.dumps({"idx": i, "predict": made.label, "p_value": made.p_value, "counts": made.counts}),
                flush=True,
            )


def run_merge(options: Merge) -> None:
    """`certibox merge`."""
    for file in options.files:
        _rows(file)
    rows = certification.merge(options.files, options.out)
    OUT.print(f"saved {options.out}: {len(rows)} certificates")
    if gaps := rows[-1].idx + 1 - len(rows):
        OUT.print(f"{gaps} image{'s' if gaps > 1 else ''} below {rows[-1].idx} without one: is a shard missing?")


def run_report(options: Report) -> None:
    """`certibox report`."""
    out, runs = Path(options.out), []
    for entry in options.files:
        name, _, file = entry.rpartition("=")
        rows = _rows(file)
        rows = certification.at_alpha(rows, options.alpha) if options.alpha is not None else rows
        runs.append(report.Run(name or Path(file).parent.name or Path(file).stem, rows, {}))
    page = report.write_report(out, runs, list(options.radii), title=options.title, facts=_shared_facts(runs))
    for run in runs:
        if all(row.label is not None for row in run.rows):
            write_tsv(run.rows, out / f"{run.name.replace('/', '_')}.tsv")
    OUT.print(report.render_table(runs, list(options.radii)))
    OUT.print(f"saved {page}")


def run_import_authors(options: ImportAuthors) -> None:
    """`certibox import-authors`."""
    autoencoder, facts = import_authors(options.encoder, options.decoder)
    OUT.print(f"{autoencoder.spec['name']}: images {autoencoder.image_shape}, embedding of {autoencoder.d_z}")
    if options.data is not None:
        images = load_images(options.data, options.split, limit=options.limit)
        error = reconstruction_mse(autoencoder, images)
        OUT.print(f"reconstruction MSE: {error:.6f} a pixel, over {len(images):,} images of {images.name}")
    OUT.print(f"saved {save_autoencoder(autoencoder, options.out, facts)}")


@dataclass(frozen=True)
class Command:
    """A subcommand: its options and what runs them."""

    options: type
    run: Callable[[Any], None]


COMMANDS = {
    "demo": Command(demo.Demo, demo.run),
    "train": Command(Train, run_train),
    "certify": Command(Certify, run_certify),
    "predict": Command(Predict, run_predict),
    "merge": Command(Merge, run_merge),
    "report": Command(Report, run_report),
    "import-authors": Command(ImportAuthors, run_import_authors),
    "query-cost": Command(query_cost.QueryCost, query_cost.run),
    "paper list": Command(paper.PaperList, paper.run_list),
    "paper run": Command(paper.PaperRun, paper.run_run),
    "paper report": Command(paper.PaperReport, paper.run_report),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status. Every deliberate error is one line on standard error."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"certibox {VERSION}")
        return 0
    name, *rest = arguments
    if name == "paper" and rest:
        name, *rest = f"paper {rest[0]}", *rest[1:]
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")  # its errors arrive as ours, in one line
    try:
        if name not in COMMANDS:
            raise InvalidInput(f"there is no command {name!r}; wanted one of {', '.join(COMMANDS)}")
        command = COMMANDS[name]
        command.run(parse(name, command.options, rest))
    except CertiboxError as error:
        print(f"certibox {name}: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:  # the reader of standard output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a place to write to that is no folder, is not ours, or is full
        print(
            f"certibox {name}: {error.filename or 'a file'}: {error.strerror or error}; check the path", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print(f"certibox {name}: interrupted; work so far is kept, run the same command to go on", file=sys.stderr)
        return 130
    return 0


def usage() -> str:
    """What `certibox --help` prints."""
    width = max(map(len, COMMANDS)) + 2
    lines = [
        f"  {name:<{width}}{(command.options.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()
    ]
    return "\n".join(
        [
            "usage: certibox COMMAND [OPTIONS]",
            "",
            "Certified adversarial robustness for models that can only be queried.",
            "Try `certibox demo`; with a model of your own: query-cost, train, certify, report, in this order.",
            "",
            *lines,
            "",
            "certibox COMMAND --help explains a command and its options.",
            "Options may come from a YAML file: --config run.yaml; flags override it.",
            "Exit status: 0 done, 2 bad input, 3 budget spent, 130 interrupted. Work is kept in every case.",
        ]
    )


def _smoothed(
    options: Certify | Predict, images: Images, ledger: Path | None
) -> tuple[QueryClient, SmoothedClassifier, str]:
    """The smoothed classifier of the options: a defense, or the bare box."""
    client = QueryClient(options.box(), budget=options.budget, ledger=ledger)
    if client.spec.outputs == "values":
        raise InvalidInput("outputs is 'values'; wanted a classifier (logits, probabilities or labels) to smooth")
    defense = load_defense(options.defense, client) if options.defense is not None else None
    sigma = options.sigma if options.sigma is not None else defense.sigma if defense else None
    if sigma is None:
        raise InvalidInput(
            "sigma is not given; wanted the noise's standard deviation in pixels on [0, 1], such as --sigma 0.25"
        )
    if defense and defense.image_shape != images.shape:
        raise InvalidInput(
            f"the defense takes images {defense.image_shape}, the data has {images.shape}; wanted the same"
        )
    if options.check_box:
        _check_box(defense, client)
    named = len(images.class_names) if images.class_names else images.num_classes
    classes = client.spec.num_classes or (defense.num_classes if defense else None) or named
    if classes is None:
        raise InvalidInput("the number of classes is unknown; wanted --num-classes K")
    if defense:
        return client, SmoothedClassifier(defense.outputs, classes, sigma), defense.model_id
    return client, SmoothedClassifier(_BareBox(client, classes), classes, sigma), client.model_id


@dataclass(frozen=True)
class _BareBox:
    """The bare box, refused if its scores are not for the number of classes that the data suggests."""

    client: QueryClient
    classes: int

    @property
    def batch_size(self) -> int:
        return self.client.batch_size

    def __call__(self, x: Tensor) -> Tensor:
        outputs, scores = self.client(x), self.client.num_outputs
        if scores not in (None, self.classes):
            came = f"the box answers {scores} scores, but the data has {self.classes} classes"
            raise InvalidInput(f"{came}; wanted --num-classes {scores} if the data shows only some of them")
        return outputs


def _rows(file: str) -> list[CertificateRow]:
    rows = read_rows(file)
    if not rows:
        raise UnreadableFile(f"{file} holds no certificate; wanted a file that certibox certify wrote")
    return rows


def _check_box(defense: Defense | None, client: QueryClient) -> None:
    if defense is None or defense.fingerprint is None:
        raise InvalidInput(
            "there is no fingerprint to check the box by; wanted a defense trained with --fingerprint true"
        )
    defense.fingerprint.check(client)
    # Not on standard output: that of `predict` is JSON lines.
    print("the box answers its canaries as it did when the defense was trained", file=sys.stderr)


def _outcome(path: Path, method: str) -> list[str]:
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
    if rows and "live" in rows[-1]:
        lines.append(f"live coordinates of the embedding, on average over the last epoch: {rows[-1]['live']:.1f}")
    return lines


def _shard(text: str) -> tuple[int, int]:
    index, _, shards = text.partition("/")
    if not (index.isdigit() and shards.isdigit() and 1 <= int(index) <= int(shards)):
        raise InvalidInput(f"shard is {text!r}; wanted i/k with i from 1 to k, such as 1/4")
    return int(index) - 1, int(shards)


def _spent(client: QueryClient) -> str:
    parts = ", ".join(f"{phase} {count:,}" for phase, count in client.spent.items())
    return f"{client.queries:,} ({parts})" if parts else "0"


def _shared_facts(runs: list[report.Run]) -> dict[str, str]:
    """Settings that all rows share, for the head of the page."""
    facts = {}
    for key in ("sigma", "n0", "n", "alpha", "seed"):
        values = {getattr(row, key) for run in runs for row in run.rows}
        facts[key] = ", ".join(str(value) for value in sorted(values))
    return facts


if __name__ == "__main__":
    sys.exit(main())

"""The stages behind a row: images, box, autoencoder, defense. Each is done once a plan and seed, and kept in a folder.

A folder's name carries the digest of all that its stage depends on, so rows and tables share stages without knowing of
each other, and an interrupted stage goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from certibox import networks, seeds
from certibox.blackbox import BlackBox, BoxSpec, as_blackbox
from certibox.data import Images, load_images, load_restricted_imagenet
from certibox.defense.autoencoders import load_autoencoder, save_autoencoder
from certibox.defense.pipeline import RobustPipeline
from certibox.defense.saved import Defense as TrainedDefense
from certibox.defense.saved import load_defense
from certibox.errors import InvalidInput, one_of
from certibox.estimators import GradientEstimator, build_estimator
from certibox.networks import Autoencoder
from certibox.paper.plans import Attack, Data, Defense, Estimator, Plan, stated
from certibox.paper.suite import Suite
from certibox.queries.client import QueryClient
from certibox.reconstruction.measurements import Measurement, measured, train_reconstructor
from certibox.storage.files import read_json, write_json_atomic
from certibox.storage.settings import digest
from certibox.storage.tensors import load_module, read_tensors, write_tensors
from certibox.training.defenses import train
from certibox.training.settings import TrainingSettings
from certibox.training.steps import Progress
from certibox.training.supervised import pretrain_autoencoder, train_classifier

Bar = Callable[[str], AbstractContextManager[Progress]]
READERS: dict[str, Callable[..., Images]] = {"images": load_images, "restricted-imagenet": load_restricted_imagenet}
READERS_TAKE = "reader images without a size, or restricted-imagenet"
CHECKPOINT_EVERY = 50  # steps
GPU_BATCH = 1024  # images that the box answers at a time


@dataclass(frozen=True)
class Splits:
    """The images of one plan."""

    train: Images
    validation: Images
    test: Images


@dataclass
class Workshop:
    """Where stages are done. data: a folder with the data sets. work: where stages are kept. bar: shows progress.

    models: a folder of finished stages from elsewhere, each under the name of its folder in `work`.
    """

    suite: Suite
    data: Path | None
    work: Path
    bar: Bar
    device: str = "cpu"
    models: Path | None = None
    _loaded: dict[tuple[str, str, int | None], Images] = field(default_factory=dict)

    def splits(self, plan: Plan) -> Splits:
        """Images to train on, to select on and to test on; those of a reconstruction are measurements."""
        wanted = plan.data
        everything = self._load(wanted, "train")
        if len(everything) <= wanted.validation:
            raise InvalidInput(
                f"{wanted.name} has {len(everything)} training images, {wanted.validation} of them for validation; "
                "wanted some left to train on"
            )
        rest = everything.select(slice(0, len(everything) - wanted.validation))
        held = everything.select(slice(len(everything) - wanted.validation, None))
        test = self._load(wanted, "test")
        return Splits(rest.select(slice(0, wanted.train)), held, spread(test, wanted.test))

    def source(self, name: str) -> tuple[str | Path, str]:
        """Where a data set is and what to call it: a folder of `data` or, where no `data` is given, on Hugging Face."""
        known = self.suite.datasets
        if name not in known:
            raise InvalidInput(f"there is no data set {name!r}; wanted {one_of(name, known)}")
        if self.data is None:
            return known[name]["hub"]["name"], name
        for folder in known[name]["folders"]:
            if (self.data / folder).exists():
                return self.data / folder, folder
        raise InvalidInput(
            f"{self.data} holds no {name}; wanted a folder {' or '.join(known[name]['folders'])} in --data"
        )

    def _load(self, wanted: Data, split: str) -> Images:
        source, called = self.source(wanted.name)
        key = (wanted.name, split, wanted.size)
        if key not in self._loaded:
            entry = self.suite.datasets[wanted.name]
            place, reader = entry if isinstance(source, Path) else entry["hub"], entry.get("reader", "images")
            options = {name: value for name, value in place.items() if name.endswith("_column")}
            if wanted.size is not None:
                options["size"] = wanted.size
            if reader not in READERS or (reader == "images" and "size" in options):
                raise InvalidInput(f"{wanted.name}: reader is {reader!r}, size {wanted.size}; wanted {READERS_TAKE}")
            images = READERS[reader](source, place.get("splits", {}).get(split, split), **options)
            self._loaded[key] = replace(mixed(images), name=f"{called}:{split}")
        return self._loaded[key]

    def box(self, plan: Plan) -> BlackBox:
        """The black box: a network trained on clean images, held without its weights by all but first-order methods."""
        wanted, seed = plan.box, plan.box.seed or 0
        folder = self.box_folder(plan)
        outputs = "values" if plan.attack else "logits"
        declared: dict[str, Any] = {"mean": wanted.mean, "std": wanted.std, "name": wanted.network}
        if self.device != "cpu":
            declared["batch_size"] = GPU_BATCH
        if not (self._kept(folder) / "network.safetensors").exists():
            network = self._train_box(plan, folder, seed, BoxSpec(outputs, **declared))
            facts = {"spec": network.spec}
            write_tensors(folder / "network.safetensors", network.state_dict(), facts)
        tensors, facts = read_tensors(self._kept(folder) / "network.safetensors")
        network = networks.build(facts["spec"])
        load_module(network, tensors, "box")
        network.to(self.device).eval().requires_grad_(False)
        if wanted.outputs == "labels" and not plan.attack:
            classes = facts["spec"]["arguments"]["num_classes"]
            return as_blackbox(nn.Sequential(network, _Label()), outputs="labels", num_classes=classes, **declared)
        return as_blackbox(network, outputs=outputs, **declared)

    def _train_box(self, plan: Plan, folder: Path, seed: int, spec: BoxSpec) -> nn.Module:
        wanted, splits = plan.box, self.splits(replace(plan, data=replace(plan.data, train=plan.box.images)))
        shared: dict[str, Any] = {"schedule": wanted.schedule, "seed": seed, "validation": splits.validation}
        shared |= {"out": folder / "training", "device": self.device}
        with timed(folder), self.bar(f"box {wanted.network}") as progress:
            if plan.attack:
                return train_reconstructor(splits.train, measurement_of(plan.attack), progress=progress, **shared)
            labels = splits.train.num_classes or 10
            arguments = {"num_classes": labels, "channels": splits.train.shape[0], **wanted.arguments}
            with seeds.initialisation(seed, "box"):
                fresh = networks.build({"name": wanted.network, "arguments": arguments})
            return train_classifier(
                splits.train, fresh, spec=spec, augmentation=wanted.augmentation, progress=progress, **shared
            )

    def autoencoder(self, plan: Plan, seed: int) -> Autoencoder:
        """Stage 1, or the weights that the plan names."""
        wanted = plan.autoencoder
        if wanted.weights is not None:
            return load_autoencoder(wanted.weights)
        folder, seed = self.autoencoder_folder(plan, seed), seed if wanted.seed is None else wanted.seed
        if not (self._kept(folder) / "autoencoder.json").exists():
            splits = self._seen(replace(plan, data=replace(plan.data, train=wanted.images or plan.data.train)))
            with seeds.initialisation(seed, "autoencoder"):
                fresh = networks.build({"name": wanted.network, "arguments": wanted.arguments})
            assert isinstance(fresh, Autoencoder)
            with timed(folder), self.bar(f"autoencoder {wanted.network}") as progress:
                trained = pretrain_autoencoder(
                    splits.train,
                    fresh,
                    schedule=wanted.schedule,
                    seed=seed,
                    augmentation=wanted.augmentation,
                    validation=splits.validation,
                    out=folder / "training",
                    device=self.device,
                    progress=progress,
                )
            save_autoencoder(trained, folder)
        return load_autoencoder(self._kept(folder))

    def defense(self, plan: Plan, seed: int) -> tuple[TrainedDefense | QueryClient, Path]:
        """The defense, or the bare box behind its meter for method `none`; and the folder of its evaluation."""
        folder = self.row_folder(plan, seed)
        wanted = plan.defense
        client = QueryClient(self.box(plan), ledger=folder / "ledger.sqlite")
        if wanted.method == "none":
            return client, folder
        if wanted.method == "identity":
            white = RobustPipeline(nn.Identity()).eval()
            shape = self.splits(plan).test.shape
            return TrainedDefense(white, client, wanted.method, wanted.sigma, shape, None), folder
        if not (self._kept(folder) / "queries.json").exists():
            bottleneck = self.autoencoder(plan, seed) if "AE" in wanted.method else None
            with timed(folder), self.bar(f"{wanted.method}, seed {seed}") as progress:
                trained = self._train(plan, client, bottleneck, folder, seed, progress)
            trained.save(folder)
            write_json_atomic(folder / "queries.json", trained_with(client))  # last: it says that the stage is finished
        return load_defense(self._kept(folder), client).to(self.device), folder

    def _train(
        self,
        plan: Plan,
        client: QueryClient,
        autoencoder: Autoencoder | None,
        folder: Path,
        seed: int,
        progress: Progress,
    ) -> TrainedDefense:
        wanted, splits = plan.defense, self._seen(plan)
        return train(
            client,
            splits.train,
            settings_of(wanted, seed),
            denoiser=self._denoiser(wanted, splits.train.shape[0], seed),
            autoencoder=autoencoder,
            validation=splits.validation,
            device=self.device,
            out=folder / "training",
            checkpoint_every=CHECKPOINT_EVERY,
            progress=progress,
        )

    def _denoiser(self, wanted: Defense, channels: int, seed: int) -> nn.Module:
        arguments = {"channels": channels, **wanted.denoiser.get("arguments", {})}
        with seeds.initialisation(seed, "denoiser"):
            return networks.build({"name": wanted.denoiser["name"], "arguments": arguments})

    def _seen(self, plan: Plan) -> Splits:
        """The images as the box sees them."""
        splits = self.splits(plan)
        if plan.attack is None:
            return splits
        measurement = measurement_of(plan.attack)
        return Splits(measured(splits.train, measurement), measured(splits.validation, measurement), splits.test)

    def training_queries(self, plan: Plan, seed: int) -> int:
        """Answers that the defense took to train, targets and validation included."""
        path = self._kept(self.row_folder(plan, seed)) / "queries.json"
        return int(read_json(path)) if plan.defense.trains else 0

    def _kept(self, folder: Path) -> Path:
        """Where a stage is finished, if it is."""
        elsewhere = self.models / folder.name if self.models else folder
        return elsewhere if elsewhere.exists() else folder

    def box_folder(self, plan: Plan) -> Path:
        """Where the box of a plan is kept. Which images train or test the defense does not matter to it."""
        shown = replace(plan.box, outputs="logits")  # what it shows of its answers does not train it
        return self._folder("box", plan.box.seed or 0, plan, replace(plan.data, train=None, test=None), shown)

    def autoencoder_folder(self, plan: Plan, seed: int) -> Path:
        """Where the autoencoder of a plan and seed is kept."""
        own = seed if plan.autoencoder.seed is None else plan.autoencoder.seed
        return self._folder("autoencoder", own, plan, replace(plan.data, test=None), plan.autoencoder)

    def row_folder(self, plan: Plan, seed: int) -> Path:
        """Where the defense of a plan and seed is kept: evaluation and test images do not matter to it."""
        stages = (replace(plan.data, test=None), plan.box, plan.autoencoder, plan.defense)
        return self._folder("defense", seed, plan, *stages)

    def _folder(self, kind: str, seed: int, plan: Plan, *parts: Any) -> Path:
        """The folder named by all that a stage depends on."""
        config = {"seed": seed, "data": self.source(plan.data.name)[1], "parts": [stated(part) for part in parts]}
        if plan.attack:
            config["measurement"] = measurement_of(plan.attack).digest
        folder = self.work / f"{kind}-{digest(config)}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def seconds(self, plan: Plan, seed: int) -> dict[str, float]:
        """Seconds that each stage of a row took so far."""
        folders = {"box": self.box_folder(plan), "defense": self.row_folder(plan, seed)}
        if "AE" in plan.defense.method and plan.autoencoder.weights is None:
            folders["autoencoder"] = self.autoencoder_folder(plan, seed)
        return {stage: spent(self._kept(folder)) for stage, folder in folders.items()}


class _Label(nn.Module):
    """Scores (n, K) -> the label (n,): all that some endpoints show."""

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.argmax(1)


def trained_with(client: QueryClient) -> int:
    """Answers that the ledger says training took, whichever process asked them."""
    assert client.ledger is not None
    return sum(count for phase, count in client.ledger.by_phase().items() if phase.startswith("train "))


def measurement_of(attack: Attack) -> Measurement:
    """The measurement of a reconstruction."""
    return Measurement(attack.measurement_seed, measurements=attack.measurements)


def settings_of(wanted: Defense, seed: int) -> TrainingSettings:
    """The settings of training that a plan and a seed stand for."""
    return TrainingSettings(
        method=wanted.method,
        sigma=wanted.sigma,
        schedule=wanted.schedule,
        seed=seed,
        estimator=estimator_of(wanted.estimator),
        gamma=wanted.gamma,
        denoise_weight=wanted.denoise_weight,
        reconstruction_weight=wanted.reconstruction_weight,
        scheme=wanted.scheme,
        targets=wanted.targets,
        augmentation=wanted.augmentation,
        skip_dead=wanted.skip_dead,
        validation_votes=wanted.validation_votes,
        validate_every=wanted.validate_every,
    )


def estimator_of(wanted: Estimator | None) -> GradientEstimator | None:
    """The estimator of a plan."""
    if wanted is None:
        return None
    return build_estimator(
        wanted.name, share=wanted.share, q=wanted.q, mu=wanted.mu, central=wanted.central, **wanted.guided
    )


def mixed(images: Images) -> Images:
    """The images in an order that mixes the classes, where they came class by class; as they are otherwise."""
    if images.labels is None or bool((images.labels.diff() < 0).any()):
        return images
    return images.select(torch.randperm(len(images), generator=seeds.generator(0, "mixed")))


def spread(images: Images, count: int | None) -> Images:
    """`count` images at even distances: a test set in any order is sampled fairly. All, for None."""
    if count is None or count >= len(images):
        return images
    return images.select([i * len(images) // count for i in range(count)])


@contextmanager
def timed(folder: Path) -> Iterator[None]:
    """Add the wall-clock seconds inside to those that the stage in `folder` has taken."""
    started = time.perf_counter()
    try:
        yield
    finally:
        write_json_atomic(folder / "seconds.json", round(spent(folder) + time.perf_counter() - started, 1))


def spent(folder: Path) -> float:
    """Seconds that a stage has taken so far."""
    path = folder / "seconds.json"
    return float(read_json(path)) if path.exists() else 0.0

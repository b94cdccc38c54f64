"""From a row of the suite to a measured row, on pictures made here: counts in closed form, nothing done twice."""

from __future__ import annotations

import json
import math
import random
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from certibox.certification.smoothing import SmoothedClassifier
from certibox.cli import main
from certibox.data import Images
from certibox.defense.saved import Defense as TrainedDefense
from certibox.errors import InvalidInput
from certibox.paper import runner
from certibox.paper.measured import Measured, Results
from certibox.paper.plans import Certify, Data, Defense, Estimator, Method, Network, Plan
from certibox.paper.runner import Job, headline, jobs, measure, rounded_down
from certibox.paper.shipped import EXPERIMENTS
from certibox.paper.stages import Workshop, measurement_of, spread
from certibox.paper.suite import NAMES, Row, Suite, Table
from certibox.queries.client import QueryClient
from certibox.reconstruction.measurements import measured as as_measured
from certibox.reconstruction.metrics import rmse
from certibox.training.schedules import Phase
from certibox.training.steps import Progress
from paper_rows import attacked_row, certified_row

# These tiny runs certify a few of the images that they select or train on.
pytestmark = pytest.mark.filterwarnings("ignore:.* images trained this defense:UserWarning")

TRAIN, HELD, TEST, BATCH, EPOCHS, VOTES, D_Z = 11, 4, 5, 5, 2, 2, 192
STEPPED = EPOCHS * 10  # images that steps take in all: a last batch of one joins none
SIGMA, N0, N = 0.8, 4, 20
COPIES, EPSILONS = 2, 2
DATASETS = {
    "faces": {"folders": ["elsewhere", "faces"], "hub": {"name": "nobody/faces"}},
    "restricted-imagenet": {
        "reader": "restricted-imagenet",
        "folders": ["imagenet"],
        "splits": {"test": "val"},
        "hub": {"name": "nobody/imagenet"},
    },
}
PHASES = [{"epochs": EPOCHS, "lr": 0.001}]
SETUP: dict[str, Any] = {
    "seeds": [0, 1],
    "data": {"name": "faces", "train": TRAIN, "validation": HELD, "test": TEST},
    "box": {"network": "mnist-mlp", "batch_size": 4, "phases": [{"epochs": 12, "lr": 0.01}]},
    "autoencoder": {"network": "ae-mnist", "batch_size": 4, "phases": [{"epochs": 30, "lr": 0.003}]},
    "defense": {
        "method": "none",
        "sigma": SIGMA,
        "denoiser": {"name": "dncnn", "arguments": {"depth": 3, "width": 4}},
        "phases": PHASES,
        "batch_size": BATCH,
        "validation_votes": VOTES,
        "skip_dead": False,
    },
    "certify": {"n0": N0, "n": N, "alpha": 0.05, "columns": [0, 1]},
}
ATTACK = {"epsilons": [0, 1], "steps": 2, "copies": COPIES, "samples": 1, "measurements": 300}
SETUPS = {
    "tiny": SETUP,
    "tiny-gpu": {"base": "tiny", "certify": {"n": N + 1}},
    "tiny-reconstruction": {key: value for key, value in SETUP.items() if key != "certify"}
    | {"attack": ATTACK, "box": {"network": "mnist-reconstructor", "batch_size": 4, "phases": PHASES}},
}
CGE_ROW = {"defense": {"method": "ZO-AE-DS", "estimator": {"name": "cge", "mu": 0.05}}}
RGE_ROW = {"defense": {"method": "ZO-DS", "estimator": {"name": "rge", "q": 3, "mu": 0.05, "central": True}}}
TABLES: dict[str, Any] = {
    "table1": {
        "title": "Table 1: faces",
        "scales": {"cpu": "tiny", "gpu": "tiny-gpu"},
        "rows": [
            {"name": "bare", "reported": {"0.00": 70.0, "0.25": 50.0}},
            {"name": "DS", "set": {"defense": {"method": "DS"}}},
            {"name": "RS", "set": {"defense": {"method": "RS"}}},
            {"name": "FO-AE-DS", "set": {"defense": {"method": "FO-AE-DS"}}},
            {"name": "ZO-DS", "set": RGE_ROW},
            {"name": "ZO-AE-DS", "set": CGE_ROW},
            {"name": "here", "only": ["gpu"]},
        ],
        "claims": [{"text": "queries pay", "better": "ZO-AE-DS", "worse": "bare", "at": 1}],
    },
    "table2": {"title": "Table 2", "scales": {"cpu": "tiny"}, "rows": [{"like": "table1 / ZO-AE-DS", "name": "again"}]},
    "table5": {
        "title": "Table 5: reconstruction",
        "scales": {"cpu": "tiny-reconstruction"},
        "rows": [
            {"name": "Standard", "reported": {"0": [0.1, 0.9], "1": [0.3, 0.5]}},
            {"name": "ZO-AE-DS", "set": CGE_ROW},
        ],
    },
}
QUERIES = {  # targets and held-out targets, votes before the first and after each epoch, steps
    "bare": 0,
    "DS": 0,
    "RS": 0,
    "FO-AE-DS": TRAIN + HELD,
    "ZO-DS": TRAIN + HELD + (1 + EPOCHS) * HELD * VOTES + STEPPED * 2 * 3,
    "ZO-AE-DS": TRAIN + HELD + (1 + EPOCHS) * HELD * VOTES + STEPPED * (D_Z + 1),
}


def draw(folder: Path, counts: Sequence[int], side: int, channels: int = 1) -> None:
    """Folders of noisy pictures, a class each: the class says which part is a little brighter."""
    names = ("bear", "crab", "dog") if channels == 3 else ("left", "right")
    pixels = np.random.default_rng(len(folder.parts)).integers(0, 90, (sum(counts), side, side, channels))
    for number, image in enumerate(pixels.astype(np.uint8)):
        label = int(np.searchsorted(np.cumsum(counts), number, side="right"))
        half = side // 2
        image[:, label * half : (label + 1) * half] += 20
        path = folder / names[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(path)


@contextmanager
def quiet(_title: str) -> Iterator[Progress]:
    yield lambda done, total, text: None


@dataclass(frozen=True)
class Place:
    """A suite with data of its own, and where its stages are kept."""

    root: Path

    @property
    def suite(self) -> Suite:
        return Suite(self.root / "experiments")

    @property
    def results(self) -> Results:
        return Results(self.root / "experiments")

    def workshop(self, work: str | Path = "work", **given: Any) -> Workshop:
        return Workshop(self.suite, **({"data": self.root / "data", "work": self.root / work, "bar": quiet} | given))

    def job(self, name: str, table: str = "table1", seed: int = 0) -> Job:
        found = self.suite.table(table)
        return Job(found, found.row(name), "cpu", seed)

    def measure(self, name: str, table: str = "table1", seed: int = 0, **given: Any) -> tuple[Measured, bool]:
        return measure(self.job(name, table, seed), self.workshop(**given), self.results)

    def arguments(self, *words: str) -> list[str]:
        """Of a `paper run`."""
        folders = {"--experiments": "experiments", "--data": "data", "--work": "work"}
        return [*words, *(word for flag, folder in folders.items() for word in (flag, str(self.root / folder)))]


def laid_out(root: Path) -> Place:
    folder = root / "experiments"
    folder.mkdir(parents=True)
    empty = {"title": "None", "scales": {"cpu": "tiny"}, "rows": []}
    files = {"setups": SETUPS, "datasets": DATASETS, **{name: TABLES.get(name, empty) for name in NAMES}}
    for name, values in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    draw(root / "data" / "faces" / "train", (9, 9), 28)
    draw(root / "data" / "faces" / "test", (3, 3), 28)
    return Place(root)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Every row of tables 1 and 5 measured with seed 0."""
    made = laid_out(tmp_path_factory.mktemp("paper"))
    for name in QUERIES:
        assert made.measure(name)[1]
    for name in ("Standard", "ZO-AE-DS"):
        assert made.measure(name, "table5")[1]
    return made


@pytest.fixture
def rows(place: Place) -> dict[str, Measured]:
    return {row.row: row for row in place.results.read("table1") if row.seed == 0 and row.scale == "cpu"}


def same(a: Measured, b: Measured) -> bool:
    """Whether two rows are equal, as they are stored, but for when and in what time they were measured."""
    return json.dumps(asdict(replace(a, seconds={}, date=""))) == json.dumps(asdict(replace(b, seconds={}, date="")))


def history(place: Place, work: Path) -> list[str]:
    """What the training of ZO-AE-DS wrote down after each epoch, losses and all, where its stages are in `work`."""
    job = place.job("ZO-AE-DS")
    folder = place.workshop(work=work).row_folder(job.plan, job.seed)
    return (folder / "training" / "rows.jsonl").read_text().splitlines()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}


# ----------------------------------------------------------------------------------------------------- classification


@pytest.mark.parametrize("name", QUERIES)
def test_queries_are_those_of_the_closed_form(rows: dict[str, Measured], name: str) -> None:
    evaluated = 0 if name == "RS" else TEST * (N0 + N)  # RS answers itself
    assert rows[name].queries["train"] == QUERIES[name]
    assert rows[name].queries["evaluate"] in (evaluated, TEST * (N0 + N))


def test_rows_say_where_they_come_from(place: Place, rows: dict[str, Measured]) -> None:
    for name, row in rows.items():
        job = place.job(name)
        assert (row.table, row.scale, row.seed, row.digest) == ("table1", "cpu", 0, job.plan.digest)
        assert row.settings == {"sigma": SIGMA, "n0": N0, "n": N, "alpha": 0.05, "columns": [0.0, 1.0]}
        assert row.data == "faces"  # the folder that was found
        assert row.epochs == (0 if name == "bare" else EPOCHS)
        assert row.versions["torch"] == torch.__version__
        assert row.hardware.endswith(f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}")
        assert (date.today() - date.fromisoformat(row.date)).days in (0, 1)
        stages = {"box", "defense", "evaluation"} | ({"autoencoder"} if "AE" in name else set())
        assert row.seconds.keys() == stages
        assert row.seconds["box"] == rows["bare"].seconds["box"]
        assert len(row.values["reach"]) == TEST


def test_reach_is_the_certified_radius_where_the_label_is_right(place: Place, rows: dict[str, Measured]) -> None:
    """Certifying again from the kept stages gives the stored radii, rounded down; wrong and abstained ones are null."""
    workshop, right = place.workshop(), 0
    for name in ("bare", "ZO-AE-DS"):
        plan = place.job(name).plan
        model, _ = workshop.defense(plan, 0)
        smoothed = SmoothedClassifier(model if isinstance(model, QueryClient) else model.outputs, 2, SIGMA)
        test = workshop.splits(plan).test
        assert test.labels is not None
        for i, reach in enumerate(rows[name].values["reach"]):
            certificate = smoothed.certify(test.floats([i])[0], n0=N0, n=N, alpha=0.05, seed=0)
            correct = certificate.label == int(test.labels[i])
            assert reach == (rounded_down(certificate.radius) if correct else None)
            right += correct
    assert 0 < right < 2 * TEST


def test_clean_accuracy_is_the_bare_boxs(place: Place, rows: dict[str, Measured]) -> None:
    workshop, plan = place.workshop(), place.job("bare").plan
    test = workshop.splits(plan).test
    assert test.labels is not None
    right = (workshop.box(plan)(test.floats()).argmax(1) == test.labels).float().mean()
    assert {row.clean_accuracy for row in rows.values()} == {float(right)}
    assert right >= 0.8  # the faces can be told apart, and the box has learned it


def test_rows_share_their_stages(place: Place) -> None:
    """One classifier and one reconstructor, an autoencoder each; a folder for each defense."""
    kept = sorted(folder.name.partition("-")[0] for folder in place.root.glob("work/*"))
    assert kept == ["autoencoder"] * 2 + ["box"] * 2 + ["defense"] * (len(QUERIES) + 2)


def test_stages_depend_on_what_they_use_alone(place: Place, tmp_path: Path) -> None:
    """The box is one for all that may stand before it, a defense for all the ways to evaluate it; no more is shared."""
    plan = place.job("ZO-AE-DS").plan
    workshop = place.workshop(work=tmp_path, models=place.root / "work")
    other = replace(plan, data=replace(plan.data, train=3, test=1), defense=replace(plan.defense, sigma=0.1))
    workshop.box(replace(other, autoencoder=replace(plan.autoencoder, network="ae-mnist-96")))
    workshop.autoencoder(replace(plan, data=replace(plan.data, test=1), box=replace(plan.box, network="mnist-cnn")), 0)
    assert not list(tmp_path.rglob("*.safetensors"))  # both were found finished

    folder = workshop.row_folder(plan, 0)
    evaluated = replace(plan, certify=Certify(9, 90, 0.01), data=replace(plan.data, test=None))
    assert workshop.row_folder(evaluated, 0) == folder
    trained = [
        replace(plan, data=replace(plan.data, train=3)),
        replace(plan, box=replace(plan.box, images=3)),
        replace(plan, autoencoder=replace(plan.autoencoder, batch_size=3)),
        replace(plan, defense=replace(plan.defense, gamma=3.0)),
    ]
    folders = {workshop.row_folder(changed, 0) for changed in trained} | {workshop.row_folder(plan, 1)}
    assert len(folders | {folder}) == 6


def test_every_setting_of_a_plan_reaches_training(place: Place, tmp_path: Path) -> None:
    """A plan that differs from every default, trained for an epoch: what training noted is what the plan says."""
    wanted = Defense(
        "ZO-AE-DS",
        0.1,
        (Phase(1, 1e-6, "sgd", decay_every=3),),
        batch_size=3,
        gamma=7.0,
        denoise_weight=0.5,
        reconstruction_weight=0.25,
        denoiser={"name": "dncnn", "arguments": {"depth": 3, "width": 2}},
        estimator=Estimator("orthogonal", 0.02, 5, central=True),
        scheme="denoiser",
        targets="soft",
        augmentation="flip",
        validation_votes=3,
        skip_dead=False,
    )
    plan = place.job("bare").plan
    box = Network("mnist-mlp", (), 3, mean=(0.5,), std=(0.25,))
    plan = replace(plan, box=box, autoencoder=Network("ae-mnist-96", (), 3), defense=wanted)
    defense, _ = place.workshop(work=tmp_path).defense(plan, 4)
    assert isinstance(defense, TrainedDefense)
    noted, named = defense.facts, asdict(wanted)
    for name in (*("method", "sigma", "gamma", "denoise_weight", "reconstruction_weight", "scheme"), "augmentation"):
        assert noted[name] == named[name]
    assert (noted["seed"], noted["validation_votes"], noted["skip_dead"], noted["hard_targets"]) == (4, 3, False, False)
    assert noted["schedule"] == json.loads(json.dumps(asdict(wanted.schedule)))
    assert noted["estimator"] == {"name": "Orthogonal", "q": 5, "mu": 0.02, "central": True}
    assert (noted["box"]["mean"], noted["box"]["std"], noted["box"]["outputs"]) == ([0.5], [0.25], "logits")
    assert defense.pipeline.denoiser.spec["arguments"] == {"channels": 1, "depth": 3, "width": 2}  # pyright: ignore
    assert defense.pipeline.autoencoder.spec["name"] == "ae-mnist-96"  # pyright: ignore[reportOptionalMemberAccess]


def test_the_second_call_measures_nothing(place: Place, rows: dict[str, Measured]) -> None:
    before = contents(place.results.folder)
    for name in QUERIES:
        row, fresh = place.measure(name, data=place.root / "nowhere", work="empty")
        assert (row, fresh) == (rows[name], False)
    assert contents(place.results.folder) == before
    assert not (place.root / "empty").exists()


@pytest.mark.parametrize("work", ["work", "anew"])
def test_a_deleted_row_is_measured_to_the_same_values(
    place: Place, rows: dict[str, Measured], tmp_path: Path, work: str
) -> None:
    """From the stages that are kept as from nothing: no number depends on when or where it is made."""
    results = Results(tmp_path)
    for row in rows.values():
        if row.row != "ZO-AE-DS":
            results.append(row)
    row, fresh = measure(place.job("ZO-AE-DS"), place.workshop(work), results)
    assert fresh
    assert same(row, rows["ZO-AE-DS"])
    assert same(results.read("table1")[-1], row)
    assert len(made := history(place, place.root / work)) == EPOCHS
    assert made == history(place, place.root / "work")


def test_a_row_of_other_settings_is_measured_anew(place: Place, rows: dict[str, Measured], tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.append(replace(rows["bare"], digest="f" * 16, values={"reach": [SIGMA] * TEST}))
    row, fresh = measure(place.job("bare"), place.workshop(), results)
    assert fresh
    assert same(row, rows["bare"])
    assert len(results.read("table1")) == 2


def test_a_row_of_two_tables_is_computed_once(place: Place, rows: dict[str, Measured], tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.append(rows["ZO-AE-DS"])
    nothing = place.workshop("empty", data=place.root / "nowhere")  # nothing to compute it from
    row, fresh = measure(place.job("again", "table2"), nothing, results)
    assert not fresh
    assert row == rows["ZO-AE-DS"]
    assert results.read("table2") == []  # it is stored once, so that it can be deleted and measured again


def test_another_seed_is_another_row(place: Place, rows: dict[str, Measured], tmp_path: Path) -> None:
    workshop = place.workshop(work=tmp_path, models=place.root / "work")
    row, fresh = measure(place.job("bare", seed=1), workshop, place.results)
    assert fresh
    assert row.values != rows["bare"].values  # other noise
    assert row.clean_accuracy == rows["bare"].clean_accuracy  # the same box
    assert row.digest == rows["bare"].digest


@pytest.mark.parametrize(("stage", "after"), [("ZO-AE-DS, seed", 1), ("ZO-AE-DS, seed", 3), ("certify ZO-AE-DS", 3)])
def test_interrupted_work_goes_on_and_pays_nothing_twice(
    place: Place, rows: dict[str, Measured], tmp_path: Path, stage: str, after: int
) -> None:
    class Stopped(Exception):
        pass

    @contextmanager
    def stopping(title: str) -> Iterator[Progress]:
        def report(done: int, total: int, text: str) -> None:
            if title.startswith(stage) and done >= after:
                raise Stopped

        yield report

    stages = [folder for folder in place.root.glob("work/*") if not folder.name.startswith("defense")]
    for folder in stages:  # the autoencoder and the box are finished
        (tmp_path / "work").mkdir(exist_ok=True)
        (tmp_path / "work" / folder.name).symlink_to(folder)
    workshop = place.workshop(work=tmp_path / "work", bar=stopping)
    with pytest.raises(Stopped):
        measure(place.job("ZO-AE-DS"), workshop, Results(tmp_path))
    row, fresh = measure(place.job("ZO-AE-DS"), replace(workshop, bar=quiet), Results(tmp_path))
    assert fresh
    assert same(row, rows["ZO-AE-DS"])
    assert history(place, tmp_path / "work") == history(place, place.root / "work")


def test_stages_finished_elsewhere_are_taken(place: Place, rows: dict[str, Measured], tmp_path: Path) -> None:
    workshop = place.workshop(work=tmp_path / "work", models=place.root / "work")
    row, fresh = measure(place.job("FO-AE-DS"), workshop, Results(tmp_path))
    assert fresh
    assert same(row, rows["FO-AE-DS"])
    assert row.seconds["defense"] == rows["FO-AE-DS"].seconds["defense"]
    assert not list((tmp_path / "work").rglob("*.safetensors"))


def test_a_class_without_test_images_is_a_class_all_the_same(place: Place) -> None:
    """The box knows two classes; a test set that happens to show the first alone is certified against both."""
    job = place.job("bare")
    data = replace(job.plan.data, test=1)
    plan = replace(job.plan, data=data)
    row, _ = measure(
        replace(job, row=Row("one face", {}, {"cpu": plan})), place.workshop(), Results(place.root / "one face")
    )
    assert len(row.values["reach"]) == 1


# ----------------------------------------------------------------------------------------------------- reconstruction


def test_reconstruction_is_counted_and_named(place: Place) -> None:
    standard, defended = place.results.read("table5")
    assert standard.queries == {"train": 0, "evaluate": 2 * EPSILONS * TEST}
    assert defended.queries == {"train": QUERIES["ZO-AE-DS"], "evaluate": 2 * EPSILONS * TEST * COPIES}
    for row in (standard, defended):
        assert row.clean_accuracy is None
        assert row.settings["epsilons"] == [0.0, 1.0]
        names = {
            f"{t} {m} {e}" for t in ("transfer", "adaptive") for m in ("rmse", "ssim", "ssim_padded") for e in "01"
        }
        pictures = {"truth pictures", "transfer pictures", "adaptive pictures"}
        assert row.values.keys() == names | pictures
        assert {len(row.values[name]) for name in names} == {TEST}
        assert {len(row.values[name]) for name in pictures} == {TEST * 28 * 28}  # fewer than there is room for


def test_errors_are_those_of_the_kept_box(place: Place) -> None:
    """Without an attack, Standard's error is that of the box's answers to the measurements: computed again here."""
    standard, _ = place.results.read("table5")
    workshop, plan = place.workshop(), place.job("Standard", "table5").plan
    assert plan.attack is not None
    test = workshop.splits(plan).test
    seen = as_measured(test, measurement_of(plan.attack)).floats()
    expected = rmse(workshop.box(plan)(seen), test.floats())
    assert standard.series("adaptive rmse 0") == pytest.approx(expected.numpy(), abs=1e-4)
    assert standard.series("truth pictures") == pytest.approx(test.floats().flatten().numpy(), abs=0.005 + 1e-6)
    for name in ("rmse 0", "rmse 1"):  # undefended, the two threats are one
        assert standard.values[f"transfer {name}"] == standard.values[f"adaptive {name}"]
    assert np.mean(standard.series("adaptive rmse 1")) > np.mean(standard.series("adaptive rmse 0"))


# --------------------------------------------------------------------------------------------------------- the images


def test_images_to_train_on_to_select_on_and_to_test_on(place: Place) -> None:
    plan = place.job("bare").plan
    splits = place.workshop().splits(plan)
    everything = place.workshop().splits(replace(plan, data=Data("faces", None, 1, None)))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [TRAIN, HELD, TEST]
    assert [len(part) for part in (everything.train, everything.validation, everything.test)] == [17, 1, 6]
    pixels = [{image.numpy().tobytes() for image in part.images} for part in (splits.train, splits.validation)]
    assert not pixels[0] & pixels[1]
    assert splits.test.name == "faces:test"


def test_every_part_has_every_class(place: Place) -> None:
    """Folders come class by class: neither the first images nor the last are a fair sample as they come."""
    splits = place.workshop().splits(place.job("bare").plan)
    for part in (splits.train, splits.validation, splits.test):
        assert part.labels is not None
        assert set(part.labels.tolist()) == {0, 1}


def test_spread_takes_even_distances() -> None:
    images = Images(torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1), torch.arange(10), "ten")
    taken = {count: spread(images, count).images.flatten().tolist() for count in (1, 2, 3, 4, 10, 11)}
    assert taken == {1: [0], 2: [0, 5], 3: [0, 3, 6], 4: [0, 2, 5, 7], 10: [*range(10)], 11: [*range(10)]}
    assert spread(images, None) is images


def test_images_that_are_not_there_are_named(place: Place, tmp_path: Path) -> None:
    workshop = place.workshop(data=tmp_path)
    with pytest.raises(InvalidInput, match=r"holds no faces; wanted a folder elsewhere or faces in --data"):
        workshop.splits(place.job("bare").plan)
    plan = replace(place.job("bare").plan, data=Data("cats", None, 1, None))
    with pytest.raises(InvalidInput, match=r"there is no data set 'cats'; wanted one of faces, restricted-imagenet"):
        workshop.splits(plan)
    plan = replace(plan, data=Data("faces", None, 18, None))
    with pytest.raises(InvalidInput, match=r"faces has 18 training images, 18 of them for validation; wanted some"):
        place.workshop().splits(plan)
    assert place.workshop(data=None).source("faces") == ("nobody/faces", "faces")


def small(network: str, autoencoder: str, data: Data, method: Method) -> Plan:
    """One step on four images, with two random directions; box and autoencoder as they are drawn."""
    estimator = Estimator("rge", 0.05, 2) if method.startswith("ZO") else None
    denoiser = {"name": "dncnn", "arguments": {"depth": 4, "width": 8}}
    defense = Defense(method, 0.25, (Phase(1, 1e-3),), 4, denoiser=denoiser, estimator=estimator, skip_dead=False)
    norm: dict[str, Any] = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    box, bottleneck = Network(network, (), 4, **norm), Network(autoencoder, (), 4)
    return Plan(data, box, bottleneck, defense, certify=Certify(1, 5, 0.05))


@pytest.mark.parametrize("method", ["FO-AE-DS", "ZO-AE-DS"])
@pytest.mark.parametrize(
    ("network", "autoencoder", "data", "side", "d_z"),
    [
        ("resnet18-stl10", "ae-576", Data("faces", 4, 1, 1), 96, 576),
        ("resnet18", "ae-1152", Data("restricted-imagenet", 4, 1, 1, size=224), 224, 1152),
    ],
    ids=["stl10", "imagenet"],
)
def test_large_images_go_the_whole_way(
    tmp_path: Path, network: str, autoencoder: str, data: Data, side: int, d_z: int, method: Method
) -> None:
    place = laid_out(tmp_path)
    folder, test = ("imagenet", "val") if side == 224 else ("elsewhere", "test")
    size = 60 if side == 224 else 96  # Restricted ImageNet's images are brought to one size
    for split, counts in (("train", (2, 3)), (test, (0, 1))):
        draw(place.root / "data" / folder / split, counts, size, channels=3)
    plan = small(network, autoencoder, data, method)
    table = Table("table3", "Table 3", (row := Row(method, {}, {"cpu": plan}),), (), {"cpu": "tiny"}, {"cpu": (0,)}, ())
    workshop = place.workshop()
    measured, _ = measure(Job(table, row, "cpu", 0), workshop, place.results)

    assert measured.queries["train"] == 4 + 1 + (2 * 1 + 4 * (2 + 1) if method == "ZO-AE-DS" else 0)
    assert measured.queries["evaluate"] == 1 + 5
    assert len(measured.values["reach"]) == 1
    assert measured.data == folder
    defense, _ = workshop.defense(plan, 0)
    assert isinstance(defense, TrainedDefense)
    assert defense.image_shape == (3, side, side)
    x = workshop.splits(plan).test.floats()
    z = defense.pipeline.embed(defense.denoise(x))
    assert (x.shape, z.shape) == ((1, 3, side, side), (1, d_z))
    assert defense.pipeline.images(z, x.shape[1:]).shape == x.shape
    start = workshop.autoencoder(plan, 0).encode(x)
    assert not torch.equal(z, start)  # the step has moved denoiser and encoder
    if method == "ZO-AE-DS":
        rows = (workshop.row_folder(plan, 0) / "training" / "rows.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in rows] == [1]


# --------------------------------------------------------------------------------------------------------- small parts


def test_radii_never_grow() -> None:
    """To four decimals, also where a product of the two would round up to the next of them."""
    generator = random.Random(0)
    near = [math.nextafter(k / 1e4, to) for k in range(1, 4000, 7) for to in (0, 9)]
    exact = [k / 1e4 for k in range(4000)]
    for radius in [*near, *exact, *(generator.uniform(0, 4) for _ in range(1000))]:
        stored = rounded_down(radius)
        assert stored <= radius
        assert radius - stored < 1e-4 + 1e-12
        assert stored == round(stored, 4)
    assert [rounded_down(radius) for radius in exact] == exact


def test_jobs_come_seed_by_seed(place: Place) -> None:
    table = place.suite.table("table1")
    names = list(QUERIES)
    assert [(job.seed, job.row.name) for job in jobs(table, "cpu")] == [(s, name) for s in (0, 1) for name in names]
    assert [(job.seed, job.row.name) for job in jobs(table, "gpu", ["here"], [1])] == [(1, "here")]
    with pytest.raises(InvalidInput, match=r"table1 has no row 'FO'; wanted one of bare, DS, RS"):
        list(jobs(table, "cpu", ["FO"]))
    with pytest.raises(InvalidInput, match=r"table1 / here is not measured at scale cpu; wanted one of gpu"):
        list(jobs(table, "cpu", ["here"]))
    with pytest.raises(InvalidInput, match=r"table1 has no seed 7 at scale gpu; wanted one of 0, 1"):
        list(jobs(table, "gpu", ["here"], [0, 7]))


def test_headlines() -> None:
    assert headline(certified_row([None, 0.5, 1.0, 0.1, None, 1.3])) == "certified 66.7 / 50.0 / 33.3 %"
    errors = {"adaptive rmse 0": [0.1, 0.2], "adaptive rmse 1": [0.25, 0.25]}
    assert headline(attacked_row(errors)) == "RMSE 0.150 / 0.250"


# ----------------------------------------------------------------------------------------------------- the command line


def test_list_counts_the_measured_rows(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "list", "--experiments", str(place.root / "experiments")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[::2]] == list(NAMES)
    assert lines[0].split(maxsplit=1)[1] == "Table 1: faces"
    rows = place.results.read("table1")
    done, beyond = (sum(row.scale == scale for row in rows) for scale in ("cpu", "gpu"))
    assert lines[1].split(": ")[1] == f"cpu {done}/{2 * len(QUERIES)}, gpu {beyond}/{2 * len(QUERIES) + 2}"
    assert lines[9].split(": ")[1] == f"cpu {len(place.results.read('table5'))}/4"


def test_list_does_not_count_rows_of_other_settings(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = laid_out(tmp_path / "other")
    for number, row in enumerate(place.results.read("table5")):
        fresh.results.append(replace(row, digest=f"{number:016}"))
    assert main(["paper", "list", "--experiments", str(fresh.root / "experiments")]) == 0
    assert "cpu 0/4" in capsys.readouterr().out.splitlines()[9]


def test_run_measures_once_and_then_tells(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    run = place.arguments("paper", "run", "table5", "--row", "Standard", "--seed", "1")
    told = []
    for _ in range(2):
        assert main(run) == 0
        told.append(capsys.readouterr().out)
    row = place.results.read("table5")[-1]
    assert (row.row, row.seed) == ("Standard", 1)
    said = f"table5 / Standard / cpu / seed 1: {headline(row)}; 0 queries to train; "
    assert told[0].startswith(said)
    assert told[0].endswith(" s\n")
    assert told[1] == said + "measured before\n"


def test_the_command_of_a_row_measures_that_row(
    place: Place, rows: dict[str, Measured], capsys: pytest.CaptureFixture[str]
) -> None:
    for row in (rows["ZO-AE-DS"], rows["bare"]):
        program, *words = shlex.split(row.command)
        assert program == "certibox"
        assert main(place.arguments(*words)) == 0
        assert capsys.readouterr().out.startswith(f"table1 / {row.row} / cpu / seed 0: {headline(row)}")
    odd = replace(place.job("bare"), row=Row("ZO's (RGE, q=3), twice", {}, {}))
    asked = ["--row", "ZO's (RGE, q=3), twice", "--seed", "0", "--data", "DIR"]
    assert shlex.split(runner.command(odd, "cpu")) == ["certibox", "paper", "run", "table1", "--scale", "cpu", *asked]
    assert runner.command(odd, "cuda") == runner.command(odd, "cpu") + " --device cuda"


def test_report_writes_the_page(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    assert main(["paper", "report", "--experiments", str(place.root / "experiments"), "--out", str(page)]) == 0
    folder = tmp_path / "results"
    assert capsys.readouterr().out == f"saved {page}, and {len(NAMES) + 1} pages and plots in {folder}\n"
    assert "(results/table1.md)" in page.read_text(encoding="utf-8")
    text = (folder / "table1.md").read_text(encoding="utf-8")
    assert "[All results](../page.md)" in text
    assert f"| {QUERIES['ZO-AE-DS']:,} |" in text
    assert f"| {QUERIES['FO-AE-DS']:,} + white box |" in text


def test_images_that_the_hub_does_not_give_may_come_from_a_folder(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --data and without the reader of Hugging Face, one line names both ways out."""
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    words = ["--experiments", str(place.root / "experiments"), "--work", str(tmp_path / "work")]
    assert main(["paper", "run", "table1", "--row", "DS", "--seed", "1", *words]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("certibox paper run: nobody/faces (no local path; a Hub name): reading it needs Hugging")
    assert error.endswith("pip install 'certibox[data]'; or give --data DIR with faces in DIR/elsewhere\n")


@pytest.mark.parametrize(
    "words", [["list"], ["report"], ["run", "table2", "--data", "nowhere"]], ids=["list", "report", "run"]
)
def test_an_empty_folder_has_the_settings_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    """Away from a checkout the settings are found, rows are counted here, and what is missing is said in one line."""
    monkeypatch.chdir(tmp_path)
    status = main(["paper", *words])
    out, error = capsys.readouterr()
    if words == ["list"]:
        assert status == 0
        assert [line.split()[0] for line in out.splitlines()[:-1:2]] == list(NAMES)
        assert out.endswith(
            f"No row is measured in {Results(EXPERIMENTS).folder}; those of the published results are "
            "in the repository.\n"
        )
    else:
        assert (status, out, error.count("\n")) == (2, "", 1)
        assert (
            f"{Results(EXPERIMENTS).folder} holds no measured row; run this in a checkout of the repository" in error
            if words == ["report"]
            else "nowhere holds no mnist; wanted a folder mnist in --data; leave --data out to load ylecun/mnist"
            in error
        )
    assert not any(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "table9"], "there is no experiment 'table9'; wanted one of table1, table2"),
        (["run", "table1", "--scale", "paper"], "table1 has no scale 'paper'; wanted one of cpu, gpu"),
        (["run", "table1", "--row", "FO"], "table1 has no row 'FO'; wanted one of bare, DS"),
        (["run", "table1", "--row", "here"], "table1 / here is not measured at scale cpu; wanted one of gpu"),
        (["run", "table1", "--seed", "5"], "table1 has no seed 5 at scale cpu; wanted one of 0, 1"),
        (["run", "table1", "--device", "abacus"], "device is 'abacus', which is not available here; wanted cpu"),
        (["run", "table1", "--device", "cuda:99"], "device is 'cuda:99', which is not available here; wanted cpu"),
        (
            ["run", "table1", "--row", "DS", "--seed", "1", "--data", "{tmp}"],
            "{tmp} holds no faces; wanted a folder elsewhere or faces in --data; leave --data out to load "
            "nobody/faces from Hugging Face (pip install 'certibox[data]')",
        ),
        (["list", "--experiments", "{tmp}"], "{tmp} holds no setups.yaml; wanted the folder of experiments"),
        (["report", "--experiments", "{tmp}"], "{tmp} holds no setups.yaml; wanted the folder of experiments"),
        (["walk"], "there is no command 'paper walk'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    words = [word.format(tmp=tmp_path) for word in words]
    before = contents(place.results.folder)
    usual = place.arguments() if words[0] == "run" else []
    assert main(["paper", words[0], *usual, *words[1:]]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"certibox paper {words[0]}: {said.format(tmp=tmp_path)}")
    assert error.count("\n") == 1
    assert contents(place.results.folder) == before

"""Code may move, work may not: the digests that name measured rows, and what an earlier version was stopped in."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import interrupted_work
from certibox.estimators import CGE, RGE, Guided, Orthogonal, Subset
from certibox.paper.stages import Workshop
from certibox.paper.suite import NAMES, Suite
from certibox.storage.files import read_json
from certibox.storage.settings import digest
from certibox.storage.tensors import read_tensors
from certibox.training.schedules import one_cycle, paper_finetune, paper_scratch
from certibox.training.settings import TrainingSettings
from places import FIXTURES, ROOT

KEPT = read_json(FIXTURES / "digests.json")
EARLIER = FIXTURES / "interrupted"
STUDIES = ("mnist", "mnist-forest", "mnist-labels", "mnist-unet", "cifar10")
SUITES = {
    "paper": (ROOT / "experiments" / "paper", NAMES),
    "queries": (ROOT / "experiments" / "queries", STUDIES),
    "gpu queries": (ROOT / "experiments" / "paper", ("queries",)),
}
SETTINGS: dict[str, Any] = {
    "method": "ZO-AE-DS",
    "sigma": 0.25,
    "schedule": one_cycle(10, denoise_epochs=20),
    "seed": 0,
    "estimator": Guided(),
    "gamma": 1.0,
    "denoise_weight": 1.0,
    "reconstruction_weight": 0.0,
    "scheme": "denoiser+encoder",
    "targets": "hard",
    "augmentation": "none",
    "skip_dead": True,
    "validation_votes": 4,
}
GUIDED = Guided(4, 0.01, True, surrogate="latent", ask=0.5, distill=100, jitter=0.1, votes=2, updates=2, target=0.5)
CHANGES: dict[str, dict[str, Any]] = {
    "guided": {},
    "guided, options": {"estimator": GUIDED},
    "cge": {"estimator": CGE(mu=0.05)},
    "cge, measured step": {"estimator": CGE("auto", central=True)},
    "rge": {"estimator": RGE(q=20, mu=0.005)},
    "orthogonal": {"estimator": Orthogonal(q=20, mu=0.005), "method": "ZO-DS"},
    "subset": {"estimator": Subset(CGE(mu=0.05), 0.125)},
    "ds": {"method": "DS", "estimator": None, "gamma": 0.0},
    "rs": {"method": "RS", "estimator": None, "gamma": 0.0, "schedule": paper_scratch()},
    "fo-ds": {"method": "FO-DS", "estimator": None, "schedule": paper_finetune()},
    "fo-ae-ds": {
        "method": "FO-AE-DS",
        "estimator": None,
        "scheme": "denoiser",
        "targets": "soft",
        "augmentation": "flip",
    },
}


@pytest.mark.parametrize("name", SUITES)
def test_plans_and_the_folders_of_their_stages_are_named_as_before(name: str, tmp_path: Path) -> None:
    suite = Suite(*SUITES[name])
    workshop = Workshop(suite, None, tmp_path, lambda title: nullcontext(lambda *_: None))
    kept = {key: value for key, value in KEPT["plans"].items() if key.startswith(f"{name} /")}
    found = {}
    for table in suite.tables.values():
        for row in table.rows:
            for scale, plan in row.plans.items():
                seed = table.seeds[scale][0]
                folders = [workshop.box_folder(plan), workshop.autoencoder_folder(plan, seed)]
                named = [plan.digest, *(folder.name for folder in (*folders, workshop.row_folder(plan, seed)))]
                place = f"{table.name} / " if name != "gpu queries" else ""
                found[f"{name} / {place}{row.name} / {scale}"] = named if name != "gpu queries" else named[:1]
    assert kept.items() <= found.items()
    assert kept


@pytest.mark.parametrize("name", CHANGES)
def test_settings_of_training_are_named_as_before(name: str) -> None:
    assert digest(TrainingSettings(**SETTINGS | CHANGES[name]).record()) == KEPT["settings"][name]


@pytest.fixture
def left(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of what an earlier version left."""

    def copied(name: str) -> Path:
        return Path(shutil.copytree(EARLIER / name, tmp_path / name))

    return copied


def test_a_training_that_an_earlier_version_was_stopped_in_goes_on(left: Callable[[str], Path]) -> None:
    folder = left("training")
    before = len((folder / "training" / "rows.jsonl").read_text(encoding="utf-8").splitlines())
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as ledger:
        shapes = ledger.execute("select shape from journal").fetchall()
    asked_since_checkpoint = sum(int(shape.split(",")[0]) for (shape,) in shapes)
    assert asked_since_checkpoint == 2
    _, meter = interrupted_work.train(folder)
    rows, whole = (path / "training" / "rows.jsonl" for path in (folder, EARLIER / "reference" / "training"))
    got, wanted = ([json.loads(line) for line in path.read_text("utf-8").splitlines()] for path in (rows, whole))
    assert before < len(wanted) == len(got)
    # Nothing was paid for twice, but where this processor rounds otherwise what was asked since the checkpoint.
    assert meter.queries - wanted[-1]["queries"] in (0, asked_since_checkpoint)
    assert got[-1]["queries"] == wanted[-1]["queries"]
    for mine, reference in zip(got, wanted, strict=True):
        assert mine.keys() == reference.keys()
        for name, value in reference.items():  # other processors round otherwise
            assert mine[name] == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value)
    ends = [read_tensors(path / "training" / "checkpoint.safetensors")[0] for path in (folder, whole.parents[1])]
    assert ends[0].keys() == ends[1].keys()
    for name, tensor in ends[1].items():
        torch.testing.assert_close(ends[0][name], tensor, rtol=1e-3, atol=1e-4)


def test_a_certification_that_an_earlier_version_was_stopped_in_goes_on(left: Callable[[str], Path]) -> None:
    folder = left("certification")
    interrupted_work.certify(folder)
    whole = EARLIER / "reference" / "certification"
    got, wanted = (
        [json.loads(line) for line in (path / "certificates.jsonl").read_text(encoding="utf-8").splitlines()]
        for path in (folder, whole)
    )
    for row in (*got, *wanted):
        assert row.pop("seconds") >= 0
    assert [row.pop("version") for row in wanted] == ["0.1.0"] * 6
    assert [row.pop("version") for row in got][:4] == ["0.1.0"] * 4
    for mine, reference in zip(got, wanted, strict=True):
        for name in ("radius", "p_lower"):  # other versions of SciPy round otherwise
            assert mine.pop(name) == pytest.approx(reference.pop(name), rel=1e-12)
        assert mine == reference

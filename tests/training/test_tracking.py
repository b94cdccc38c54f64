"""Trackers are told what a run is and how it goes: each against its library, or a stand-in with the library's calls."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import certibox as cb
from certibox.errors import InvalidInput
from certibox.training.tracking import (
    MLflowTracker,
    TensorBoardTracker,
    Tracker,
    WandbTracker,
    flat,
    numbers,
    tracker_named,
    tracker_of,
)
from doubles import LinearBox

SETTINGS = {"sigma": 0.25, "schedule": {"batch_size": 4, "phases": [1, 2]}, "name": "x" * 900}
ROWS = [({"loss": 0.5, "queries": 12.0}, 3), ({"loss": 0.25, "queries": 24.0}, 6)]


def tell(tracker: Tracker) -> None:
    tracker.start(SETTINGS)
    for values, step in ROWS:
        tracker.log(values, step)
    tracker.close()


def test_settings_become_one_level_and_rows_their_numbers() -> None:
    assert flat({"a": 1, "b": {"c": 2, "d": {"e": [3]}}}) == {"a": 1, "b.c": 2, "b.d.e": [3]}
    row = {"step": 4, "epoch": 1, "loss": 0.5, "objective": "full", "validation": None, "done": True}
    assert numbers(row) == {"epoch": 1.0, "loss": 0.5}


def test_tensorboard_shows_what_it_was_told(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is optional"
    )
    tell(TensorBoardTracker(tmp_path))
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    for name in ("loss", "queries"):
        assert [(event.value, event.step) for event in events.Scalars(name)] == [(v[name], step) for v, step in ROWS]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What stand-ins for MLflow and wandb are called with."""
    made: list[tuple[Any, ...]] = []

    def call(name: str) -> Any:
        return lambda *args, **more: made.append((name, *args, more))

    mlflow: Any = ModuleType("mlflow")
    for name in ("set_experiment", "start_run", "log_params", "log_metrics", "end_run"):
        setattr(mlflow, name, call(name))
    wandb: Any = ModuleType("wandb")
    wandb.init = lambda **more: made.append(("init", more)) or SimpleNamespace(log=call("log"), finish=call("finish"))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return made


def test_mlflow_has_a_run_with_parameters_and_metrics(calls: list[tuple[Any, ...]]) -> None:
    tell(MLflowTracker("mine", run_name="first"))
    assert [call[0] for call in calls] == ["set_experiment", "start_run", "log_params", *["log_metrics"] * 2, "end_run"]
    assert calls[0][1:] == ("mine", {})
    assert calls[1][1:] == ({"run_name": "first"},)
    wanted = {"sigma": "0.25", "schedule.batch_size": "4", "schedule.phases": "[1, 2]", "name": "x" * 500}
    assert calls[2][1] == wanted
    assert [call[1:] for call in calls[3:5]] == [(values, {"step": step}) for values, step in ROWS]


def test_wandb_has_a_run_with_its_configuration(calls: list[tuple[Any, ...]]) -> None:
    tell(WandbTracker("mine", mode="offline"))
    assert calls[0] == ("init", {"config": SETTINGS, "project": "mine", "mode": "offline"})
    assert [call[1:] for call in calls[1:3]] == [(values, {"step": step}) for values, step in ROWS]
    assert calls[3] == ("finish", {})


@pytest.mark.filterwarnings("ignore")  # of MLflow's own, about its store of files
def test_mlflow_itself_keeps_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow", reason="mlflow is optional")
    mlflow.set_tracking_uri(tmp_path.as_uri())
    tell(MLflowTracker("mine", run_name="first"))
    (run,) = mlflow.search_runs(experiment_names=["mine"], output_format="list")
    assert run.info.run_name == "first"
    assert run.data.metrics == {"loss": 0.25, "queries": 24.0}
    assert run.data.params["schedule.batch_size"] == "4"


@pytest.mark.filterwarnings("ignore")
def test_wandb_itself_keeps_the_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is optional")
    tell(WandbTracker("mine", mode="offline", dir=str(tmp_path)))
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.parametrize(
    ("module", "make"),
    [
        ("mlflow", MLflowTracker),
        ("wandb", lambda: WandbTracker("mine")),
        ("torch.utils.tensorboard", lambda: TensorBoardTracker("x")),
    ],
)
def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, module: str, make: Any) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InvalidInput, match=rf"{module.split('.')[-1]} is not installed; .* pip install 'certibox"):
        make()


def test_trackers_by_name(calls: list[tuple[Any, ...]]) -> None:
    assert isinstance(tracker_named("mlflow", "run"), MLflowTracker)
    assert isinstance(tracker_named("wandb", "run"), WandbTracker)
    with pytest.raises(InvalidInput, match="tracker is 'mlfow'; wanted one of mlflow, wandb; did you mean mlflow"):
        tracker_named("mlfow", "run")


def test_without_a_tracker_tensorboard_is_taken_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch.utils.tensorboard", reason="tensorboard is optional")
    assert isinstance(tracker_of(None, tmp_path), TensorBoardTracker)
    assert not list(tmp_path.iterdir())  # nothing before the start
    assert tracker_of(None, None) is None
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert tracker_of(None, tmp_path) is None
    with pytest.raises(InvalidInput, match="tracker is a list; wanted an object with start, log and close"):
        tracker_of([], tmp_path)  # pyright: ignore[reportArgumentType]


class Heard:
    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.steps: list[int] = []

    def start(self, settings: Any) -> None:
        self.settings = dict(settings)

    def log(self, values: Any, step: int) -> None:
        self.steps.append(step)

    def close(self) -> None:
        self.steps.append(-1)


def test_training_tells_its_tracker_and_does_the_same_with_another(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = cb.images_from_arrays((torch.rand(12, 1, 4, 4, generator=generator) * 255).byte().numpy(), None)
    box = LinearBox(torch.randn(3, 16, generator=generator))
    found = []
    for heard in (Heard(), None):
        out = tmp_path / str(heard is None)
        client = cb.QueryClient(box)
        torch.manual_seed(0)  # of the denoiser
        settings = {
            "method": "DS",
            "sigma": 0.25,
            "schedule": cb.one_cycle(0, batch_size=4, denoise_epochs=2),
            "seed": 0,
        }
        cb.train(client, images, **settings, denoiser=torch.nn.Conv2d(1, 1, 3, padding=1), out=out, tracker=heard)
        found.append((out / "rows.jsonl").read_text(encoding="utf-8"))
        if heard is not None:
            assert (
                heard.settings
                == json.loads(json.dumps(heard.settings))
                == json.loads((out / "config.json").read_text())
            )
            assert heard.steps == [3, 6, -1]
            assert not (out / "tensorboard").exists()
    assert found[0] == found[1]

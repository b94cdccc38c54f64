"""Where the values of training go while it runs: TensorBoard, MLflow, Weights & Biases, or a tracker of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from certibox.errors import InvalidInput, one_of


@runtime_checkable
class Tracker(Protocol):
    """What training tells its values to. It hears nothing of queries' answers, and changes nothing of training."""

    def start(self, settings: Mapping[str, Any]) -> None:
        """Begin a run, or go on with one that was interrupted.

        Args:
            settings: Settings of the run, as `config.json` has them: plain values, some of them nested.
        """
        ...

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take the values of an epoch.

        Args:
            values: Numbers by name, such as "loss", "validation" and "queries".
            step: Number of steps of training so far.
        """
        ...

    def close(self) -> None:
        """End the run."""
        ...


class TensorBoardTracker:
    """Files that TensorBoard shows. Training with an `out` makes one by itself where TensorBoard is installed.

    Args:
        directory: Folder of the files.

    Raises:
        InvalidInput: TensorBoard is not installed.
    """

    def __init__(self, directory: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard", "tensorboard") from error
        self._make: Callable[[], Any] = lambda: SummaryWriter(str(directory))
        self._writer: Any = None

    def start(self, settings: Mapping[str, Any]) -> None:
        """See `Tracker.start`."""
        self._writer = self._make()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker.log`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """See `Tracker.close`."""
        if self._writer is not None:
            self._writer.close()


class MLflowTracker:
    """A run of MLflow, at the tracking server that MLflow is set to.

    Args:
        experiment: Name of the experiment; None for MLflow's own default.
        run_name: Name of the run; None for one that MLflow makes up.
        run_id: Identity of a run to go on with.

    Raises:
        InvalidInput: MLflow is not installed.
    """

    def __init__(self, experiment: str | None = None, run_name: str | None = None, run_id: str | None = None) -> None:
        try:
            import mlflow  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise _missing("mlflow", "mlflow") from error
        self._mlflow, self._experiment = mlflow, experiment
        self._named = {"run_name": run_name, "run_id": run_id}

    def start(self, settings: Mapping[str, Any]) -> None:
        """See `Tracker.start`. Nested settings have names with dots, and values of 500 characters at most."""
        if self._experiment is not None:
            self._mlflow.set_experiment(self._experiment)
        self._mlflow.start_run(**{name: value for name, value in self._named.items() if value is not None})
        self._mlflow.log_params({name: str(value)[:500] for name, value in flat(settings).items()})

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker.log`."""
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        """See `Tracker.close`."""
        self._mlflow.end_run()


class WandbTracker:
    """A run of Weights & Biases.

    Args:
        project: Name of the project.
        more: Other arguments of `wandb.init`, such as name, id, resume or mode="offline".

    Raises:
        InvalidInput: wandb is not installed.
    """

    def __init__(self, project: str, **more: Any) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise _missing("wandb", "wandb") from error
        self._wandb, self._named = wandb, {"project": project, **more}
        self._run: Any = None

    def start(self, settings: Mapping[str, Any]) -> None:
        """See `Tracker.start`."""
        self._run = self._wandb.init(config=dict(settings), **self._named)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker.log`."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """See `Tracker.close`."""
        if self._run is not None:
            self._run.finish()


TRACKERS: dict[str, Callable[[str], Tracker]] = {
    "mlflow": lambda run: MLflowTracker(run_name=run),
    "wandb": lambda run: WandbTracker("certibox", name=run),
}
"""Trackers by the name that the command line has for them: from the name of the run."""


def tracker_named(name: str, run: str) -> Tracker:
    """A tracker of the table.

    Args:
        name: Name of the tracker.
        run: Name of the run.

    Raises:
        InvalidInput: There is no such tracker, or its library is not installed.
    """
    if name not in TRACKERS:
        raise InvalidInput(f"tracker is {name!r}; wanted {one_of(name, TRACKERS)}")
    return TRACKERS[name](run)


def tracker_of(tracker: Tracker | None, out: str | Path | None) -> Tracker | None:
    """The tracker that was given, or TensorBoard's in `out` where it is installed.

    Args:
        tracker: Tracker that was given.
        out: Folder of the run.

    Raises:
        InvalidInput: What was given is no tracker.
    """
    if tracker is not None:
        if not isinstance(tracker, Tracker):
            came = type(tracker).__name__
            raise InvalidInput(f"tracker is a {came}; wanted an object with start, log and close, as certibox.Tracker")
        return tracker
    try:
        return TensorBoardTracker(Path(out) / "tensorboard") if out is not None else None
    except InvalidInput:
        return None


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level: names joined by dots.

    Args:
        settings: Plain values by name, mappings among them.
        prefix: What stands before each name.
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row of training, its step left out.

    Args:
        row: Row of `rows.jsonl`.
    """
    kinds = (int, float)
    return {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, kinds) and not isinstance(value, bool) and name != "step"
    }


def _missing(library: str, extra: str) -> InvalidInput:
    return InvalidInput(f"{library} is not installed; wanted it for this tracker: pip install 'certibox[{extra}]'")

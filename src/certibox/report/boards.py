"""Certified accuracy in the forms of two public boards, filled in as far as certificates know.

- `robustbench`: the JSON of entries of RobustBench's `model_info` (github.com/RobustBench/robustbench), one a radius.
  RobustBench lists models by attacks and takes none with a random forward pass: the field `autoattack_acc` stays empty,
  and `certified_acc` stands beside it.
- `sok`: a YAML list as the leaderboard of "SoK: Certified Robustness for Deep Neural Networks" keeps it
  (github.com/sokcertifiedrobustness, `_data/board.yml`), one setting for each radius.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import yaml
from numpy.typing import ArrayLike

from certibox.errors import InvalidInput, one_of
from certibox.report.findings import clean_accuracy, decided_radii
from certibox.report.numbers import Run, certified_accuracy, checked_radii, mean_samples

UNKNOWN = ""  # what certificates do not know stays empty, for its author to fill in


def export(runs: Sequence[Run], radii: ArrayLike, board: str, dataset: str = UNKNOWN) -> str:
    """The text of a board's file for labelled runs.

    Args:
        runs: Runs, each a model.
        radii: Radii (k,), in pixels on [0, 1].
        board: Name of the board, of `BOARDS`.
        dataset: Name of the data set, as the board has it, such as cifar10 or CIFAR-10.

    Raises:
        InvalidInput: There is no such board, or a row has no label.
    """
    if board not in BOARDS:
        raise InvalidInput(f"export is {board!r}; wanted {one_of(board, BOARDS)}")
    for run in runs:
        if any(row.label is None for row in run.rows):
            raise InvalidInput(f"{run.name} has rows without labels; a board wants certified accuracy")
    return BOARDS[board].text(runs, checked_radii(radii).tolist(), dataset)


def robustbench(runs: Sequence[Run], radii: Sequence[float], dataset: str) -> str:
    """One entry for each run and radius, as JSON.

    Args:
        runs: Runs, each a model.
        radii: Radii, in pixels on [0, 1].
        dataset: Name of the data set.
    """
    entries = []
    for run in runs:
        clean, votes = clean_accuracy(run.rows), mean_samples(run.rows)
        for radius, share in zip(radii, certified_accuracy(run.rows, radii), strict=True):
            entries.append(
                {
                    "link": UNKNOWN,
                    "name": run.name,
                    "authors": UNKNOWN,
                    "additional_data": None,
                    "number_forward_passes": None if votes is None else round(votes),
                    "dataset": dataset,
                    "venue": UNKNOWN,
                    "architecture": UNKNOWN,
                    "eps": f"{radius:g}",
                    "clean_acc": UNKNOWN if clean is None else f"{100 * clean:.2f}",
                    "reported": f"{100 * share:.2f}",
                    "autoattack_acc": UNKNOWN,
                    "certified_acc": f"{100 * share:.2f}",
                    "footnote": _comment(run, radius),
                }
            )
    return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"


def sok(runs: Sequence[Run], radii: Sequence[float], dataset: str) -> str:
    """One setting for each radius with a record for each run, the best first, as YAML.

    Args:
        runs: Runs, each a model.
        radii: Radii, in pixels on [0, 1].
        dataset: Name of the data set.
    """
    settings = []
    for radius in radii:
        shares = {run.name: float(certified_accuracy(run.rows, [radius])[0]) for run in runs}
        records = [
            {
                "score": f"{100 * shares[run.name]:.2f}%",
                "prob": True,
                "title": run.name,
                "link": UNKNOWN,
                "venue": UNKNOWN,
                "comment": _comment(run, radius),
            }
            for run in sorted(runs, key=lambda run: -shares[run.name])
        ]
        name = f"{dataset},&nbsp; \\(\\ell_2\\), &nbsp; \\(\\epsilon={radius:g}\\)"
        settings.append({"setting": name, "records": records})
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=1000)


@final
@dataclass(frozen=True)
class Board:
    """A public board."""

    file: str
    """Name of the file that it takes."""
    text: Callable[[Sequence[Run], Sequence[float], str], str]
    """Function from runs, radii and the name of a data set to the text of the file."""


BOARDS: Mapping[str, Board] = {"robustbench": Board("robustbench.json", robustbench), "sok": Board("sok.yml", sok)}
"""Boards by name."""


def _comment(run: Run, radius: float) -> str:
    """How the certificates were made: images, noise, alpha, and whether the rule decided this radius."""
    first, said = run.rows[0], [f"randomized smoothing, {len(run.rows)} images"]
    for name in ("sigma", "alpha"):
        if (value := getattr(first, name, None)) is not None:
            said.append(f"{name} = {value:g}")
    decided = decided_radii(run.rows)
    if decided is not None and radius not in decided:
        said.append("a lower bound: the votes ended before this radius was decided")
    return ", ".join(said)

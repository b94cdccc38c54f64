"""Measured rows with outcomes as wanted, for what is made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from certibox.paper.measured import Measured

SIGMA = 0.5
CERTIFIED = {"sigma": SIGMA, "n0": 10, "n": 10_000, "alpha": 0.001, "columns": [0.0, 1.0, 2.0]}
FAR = 3 * SIGMA  # beyond every column, and within what n unanimous votes certify: 3.2 sigma
ATTACKED = {"sigma": SIGMA, "epsilons": [0.0, 1.0], "steps": 4, "copies": 2, "samples": 3, "measurements": 300}


def measured_row(**given: Any) -> Measured:
    """A row of six images, certified correctly up to σ, 2σ, ..., two of them not at all; `given` lays over."""
    usual: dict[str, Any] = {
        "table": "table1",
        "row": "a row",
        "scale": "cpu",
        "seed": 0,
        "digest": "0123456789abcdef",
        "values": {"reach": [None, SIGMA, 2 * SIGMA, 0.1, None, 1.3]},
        "queries": {"train": 1200, "evaluate": 60_060},
        "epochs": 3,
        "seconds": {"box": 1.5, "defense": 60.0, "evaluation": 30.0},
        "settings": CERTIFIED,
        "data": "faces",
        "clean_accuracy": 0.75,
        "command": "certibox paper run table1 --scale cpu --row 'a row' --seed 0 --data DIR",
        "hardware": "an abacus, 1 thread",
        "versions": {"certibox": "0.1.0"},
        "date": "2022-04-25",
    }
    return Measured(**(usual | given))


def certified_row(reach: Sequence[float | None], **given: Any) -> Measured:
    """A row of a classification."""
    return measured_row(values={"reach": list(reach)}, **given)


def attacked_row(errors: Mapping[str, Sequence[float]], **given: Any) -> Measured:
    """A row of a reconstruction. errors: series by name, as `adaptive rmse 1`."""
    return measured_row(values=errors, **({"settings": ATTACKED, "clean_accuracy": None} | given))

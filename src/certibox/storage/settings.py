"""The one rule for comparing settings, so that work is only ever resumed under those it began with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from certibox.errors import ConfigMismatch

SHOWN, LONGEST = 3, 80  # settings that a message names, and the characters of a value in it


def digest(config: dict[str, Any]) -> str:
    """A short stable name of a configuration.

    Args:
        config: Settings of plain values, by name.
    """
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=asdict).encode()).hexdigest()[:16]


def require_same(there: dict[str, Any], here: dict[str, Any], place: str) -> None:
    """Refuse to go on unless two configurations are equal.

    The message names `SHOWN` of the settings that differ, one inside another by its path: `schedule.phases.0.lr`.

    Args:
        there: Settings under which the work began.
        here: Settings under which it is to go on.
        place: Name of the directory or file in the message.

    Raises:
        ConfigMismatch: They differ.
    """
    differing = list(_differences(there, here))
    if differing:
        changes = [f"{key} is {_spelt(a)} there and {_spelt(b)} here" for key, a, b in differing[:SHOWN]]
        more = [f"and {len(differing) - SHOWN} more"] if len(differing) > SHOWN else []
        advice = "use the same settings or another directory"
        if any(key == "start" for key, _, _ in differing):
            advice += ". start is the weights that training begins from: draw them from a seed to go on after a stop"
        raise ConfigMismatch(f"{place} holds work of another configuration: {'; '.join([*changes, *more, advice])}")


def _differences(there: Any, here: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, there, here) of each value that differs; what one side lacks is None there."""
    both = (there, here)
    if there == here:
        return
    if all(isinstance(side, dict) for side in both):
        for key in sorted({*there, *here}):
            yield from _differences(there.get(key), here.get(key), f"{path}.{key}" if path else key)
    elif all(isinstance(side, list | tuple) and any(isinstance(part, dict) for part in side) for side in both):
        numbered = [{f"{i}": part for i, part in enumerate(side)} for side in both]
        yield from _differences(*numbered, path=path)
    else:
        yield path, there, here


def _spelt(value: Any) -> str:
    """A value in a message: settings by their name where they have one, and nothing long in full."""
    text = str(value.get("name", "{…}")) if isinstance(value, dict) else repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"

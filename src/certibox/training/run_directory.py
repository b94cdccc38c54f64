"""Where a training run keeps its settings, rows and checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from certibox.errors import ConfigMismatch
from certibox.storage.files import append_text, read_json, require_place, write_json_atomic
from certibox.storage.settings import digest, require_same
from certibox.storage.strict import is_json, is_json_lines

SHOWN = 12  # characters of a model's identity in a message


class RunDirectory:
    """Where a training run keeps `config.json`, `rows.jsonl` and `checkpoint.safetensors`.

    Opening it with another configuration raises `ConfigMismatch`, and over files of others `InvalidInput`; neither
    touches anything.
    """

    def __init__(self, directory: str | Path, config: dict[str, Any]) -> None:
        self.path = Path(directory)
        self.checkpoint, self._rows, self._config = (
            self.path / name for name in ("checkpoint.safetensors", "rows.jsonl", "config.json")
        )
        plain = json.loads(json.dumps(config))
        for place, ours in ((self._config, is_json), (self._rows, is_json_lines), (self.checkpoint, None)):
            require_place(place, ours)
        if self._config.exists():
            there = read_json(self._config)
            _require_same_model(there, plain, self.path)
            require_same(there, plain, str(self.path))
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json_atomic(self._config, plain)
        self.scope = f"train/{digest(read_json(self._config))}"  # as stored: 1 and 1.0 are the same setting

    def rewind(self, offset: int) -> None:
        """Forget rows that were written after the checkpoint: they will be written again."""
        if self._rows.exists():
            with self._rows.open("r+b") as file:
                file.truncate(offset)

    def append(self, row: dict[str, Any]) -> None:
        """Write one row and flush it."""
        append_text(self._rows, json.dumps(row) + "\n")

    @property
    def offset(self) -> int:
        """Bytes of rows so far."""
        return self._rows.stat().st_size if self._rows.exists() else 0


def _require_same_model(there: dict[str, Any], here: dict[str, Any], place: Path) -> None:
    """Refuse, in words, to go on with another model: its digests alone would not say what has happened."""
    identities = [(config.get("box") or {}).get("identity") for config in (there, here)]
    if identities[0] != identities[1]:
        was, now = (str(identity)[:SHOWN] for identity in identities)
        raise ConfigMismatch(
            f"{place}: the model has changed since this run began: its identity was {was} and is {now}; "
            "use another out, or that model"
        )

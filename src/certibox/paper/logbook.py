"""What every measurement notes: the hardware, the versions, and rows that are appended and never measured twice.

The paper's runner notes the first two in its rows. The scripts in `studies/`, `benchmarks/` and `tools/` use all of it,
and the options that each of them has: `--tiny`, a dry run in seconds, and `--out`, the file of the results.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from certibox import __version__
from certibox.storage.files import append_line, whole_lines

DRY = Path("runs/tiny")  # where a dry run writes


def hardware(device: str = "cpu") -> str:
    """What is measured on: the name of the GPU, or the processor with the threads that torch uses.

    Args:
        device: Name of a torch device.
    """
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    threads = torch.get_num_threads()
    return f"{names[0] if names else platform.machine()}, {threads} thread{'s' if threads > 1 else ''}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def versions(*packages: str) -> dict[str, str]:
    """What is measured with: certibox, torch, numpy, Python, and `packages`.

    Args:
        packages: Names of installed distributions, such as `scikit-learn`.
    """
    return {
        "certibox": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
    }


@dataclass(frozen=True)
class Rows:
    """A JSON-lines file of measured rows, found again by some of their fields, so that a killed run goes on."""

    path: Path
    """The file; it need not exist."""

    def read(self) -> list[dict[str, Any]]:
        """The rows in the order in which they were measured; none where there is no file."""
        return [json.loads(line) for line in whole_lines(self.path)] if self.path.exists() else []

    def find(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row whose fields are those of `key`, or None.

        Args:
            key: Values by the names of the fields that tell one row from another; tuples and lists are equal.
        """
        wanted = json.loads(json.dumps(key))
        return next((row for row in self.read() if all(row[name] == value for name, value in wanted.items())), None)

    def once(self, key: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The row of `key`: as it is in the file, or else measured now and appended.

        Args:
            key: Fields that tell the row from others.
            measure: Function that returns the other fields; called only where the file has no such row.
        """
        known = self.find(key)
        if known is not None:
            return known
        row = {**key, **measure()}
        append_line(self.path, row)
        return json.loads(json.dumps(row))


def parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with the options that all scripts have: `--tiny` and `--out`.

    Args:
        description: Docstring of the script.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--tiny", action="store_true", help=f"a dry run in seconds, into {DRY}; its numbers mean nothing")
    made.add_argument("--out", type=Path, help="file of the results, instead of the committed one")
    return made


def destination(options: argparse.Namespace, result: Path) -> Path:
    """Where a script writes.

    Args:
        options: What `parser` found.
        result: File of the committed results, in which a dry run never writes by itself.
    """
    return options.out or (DRY / result.name if options.tiny else result)

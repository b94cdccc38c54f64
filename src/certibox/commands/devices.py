"""Devices that the command line names."""

from __future__ import annotations

import torch

from certibox.errors import InvalidInput


def require_device(device: str) -> None:
    """Refuse a device that torch cannot use here, before any work.

    Args:
        device: Device such as cpu, cuda, cuda:1 or mps.

    Raises:
        InvalidInput: There is no such device here; the text names those that there are.
    """
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch says no in all of these
        raise InvalidInput(f"device is {device!r}, which is not available here; wanted {_available()}") from error


def _available() -> str:
    """The devices that there are, in words."""
    names = ["cpu"]
    if torch.cuda.is_available():
        names += ["cuda", *(f"cuda:{index}" for index in range(1, torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        names.append("mps")
    return " or ".join(names)

"""The device that a caller means, known to be there before any work."""

from __future__ import annotations

import torch

from certibox.errors import InvalidInput
from certibox.storage.values import shown

WANTED = 'wanted a device of this machine, such as "cpu", or "cuda" where torch finds a GPU'


def usable_device(device: torch.device | str) -> torch.device:
    """A device that computes, or one line that says why not.

    Args:
        device: Device such as "cpu", "cuda", "cuda:1" or "mps".

    Returns:
        The device.

    Raises:
        InvalidInput: The name is no device, or this machine has no such device.
    """
    if not isinstance(device, torch.device | str):
        raise InvalidInput(f"device is {shown(device)}; {WANTED}")
    try:
        meant = torch.device(device)
        torch.zeros(1, device=meant).item()
    except Exception as error:  # torch has no one error for a device that is not there
        reason = " ".join(str(error).split())[:100]
        raise InvalidInput(f"device is {shown(str(device))}, which does not work here ({reason}); {WANTED}") from error
    return meant

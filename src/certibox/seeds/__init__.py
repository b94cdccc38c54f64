"""One seed, many independent streams: every random draw names its place, so order and interruption cannot change it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from certibox.seeds.switches import settled


def derive(seed: int, *path: int | str) -> int:
    """A 63-bit seed for one stream: the first bytes of SHA-256 of the seed and the path.

    Args:
        seed: Seed of all streams.
        *path: Names and numbers that lead to the stream, such as ("noise", 3).
    """
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *path: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for one stream.

    Args:
        seed: Seed of all streams.
        *path: Names and numbers that lead to the stream.
        device: Device on which the generator draws.
    """
    return torch.Generator(device=device).manual_seed(derive(seed, *path))


@contextmanager
def initialisation(seed: int, *path: int | str) -> Iterator[None]:
    """Inside, fresh networks draw their weights from one stream; afterwards torch's global generator is restored.

    Args:
        seed: Seed of all streams.
        *path: Names and numbers that lead to the stream.
    """
    with settled(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, *path))
        yield

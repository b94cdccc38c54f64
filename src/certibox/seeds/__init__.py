"""One seed, many independent streams: every random draw names its place, so order and interruption cannot change it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch

from certibox.errors import CertiboxError
from certibox.seeds.switches import settled

_WORDS = slice(24, 24 + 624 * 8)  # bytes of a CPU generator's state: 624 words of 32 bits, each in 64
_BEFORE = (5489, 0, 1, 1, 0, 0)  # the seed in 64 bits; draws left before new words are made; whether seeded; next word


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


def wide_generator(seed: int, *path: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for one stream, whose whole state on the CPU (19,937 bits) comes from the seed and the path.

    `manual_seed` there keeps 32 bits of a seed, so that of a million streams some hundred pairs are expected to be
    equal; with SHAKE-128 of the path in every word of the state no pair is. Other devices keep the 63 bits of `derive`.

    Args:
        seed: Seed of all streams.
        *path: Names and numbers that lead to the stream.
        device: Device on which the generator draws.

    Raises:
        CertiboxError: This torch keeps the state of its generator in another form.
    """
    if torch.device(device).type != "cpu":
        return generator(seed, *path, device=device)
    text = "/".join(str(part) for part in (seed, *path))
    state = _seeded_state().copy()
    state[_WORDS].view(np.uint64)[:] = np.frombuffer(hashlib.shake_128(text.encode()).digest(624 * 4), "<u4")
    made = torch.Generator()
    made.set_state(torch.from_numpy(state))
    return made


@lru_cache(maxsize=1)
def _seeded_state() -> np.ndarray:
    """The state of a CPU generator that was seeded and has drawn nothing, compared with NumPy's of the same seed.

    Checkpoints hold such states, so torch keeps their form; should it change all the same, nothing is drawn.
    """
    state = torch.Generator().manual_seed(_BEFORE[0]).get_state().numpy()
    known = np.random.RandomState(_BEFORE[0]).get_state(legacy=False)["state"]["key"]
    words = state[_WORDS].view(np.uint64)
    same = words.shape == known.shape and (words == known).all()
    if not same or tuple(state[: _WORDS.start].view(np.int32)) != _BEFORE:
        came = f"torch {torch.__version__} keeps the state of its CPU generator in a form that is not known"
        raise CertiboxError(f"{came}; wanted that of torch 2: use another version of torch")
    return state


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

"""The noise of randomized smoothing, which nothing but its law, the seed and its path decides.

It comes in blocks of `BLOCK` samples, each from its own seed, so neither the batch size nor an interruption nor a look
at the votes in between changes which noise an image sees. How a block is filled is the law's (`NoiseLaw.noisy`).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from functools import lru_cache

import torch
from torch import Tensor

from certibox import seeds
from certibox.confidence.gaussian import Gaussian, NoiseLaw
from certibox.records.checks import VERSIONS

BLOCK = 100  # samples in a block of noise; part of what a seed means, so never change it
STREAMS: dict[int, Callable[..., torch.Generator]] = dict(
    zip(VERSIONS, (seeds.generator, seeds.wide_generator), strict=True)
)
"""What makes a block's generator, by the version of the stream: part of what a seed means, so only added to."""
NEWEST = max(STREAMS)
FEW = (4, 8, 16, 32)  # samples of a stream's start that are drawn without the rest, where torch gives the same
SERIAL = 1 << 16  # values of noise up to which starting threads costs more than it saves


def noisy(
    x: Tensor,
    law: NoiseLaw,
    start: int,
    path: tuple[int, *tuple[str, ...]],
    out: Tensor,
    kept: dict[int, Tensor] | None = None,
    stream: int = NEWEST,
    threads: Executor | None = None,
) -> None:
    """Fill `out` with noisy copies of x: samples start, start + 1, ... of the stream at `path`.

    Sample i is row i % BLOCK of block i // BLOCK, wherever it is asked for.

    Args:
        x: Image (c, h, w), pixels on [0, 1].
        law: Law of the noise.
        start: Number of the first sample.
        path: Seed, then the names under it.
        out: Place of the copies, (n, c, h, w), of the type and on the device of x.
        kept: Blocks that earlier calls ended in; give the same dict again to go on with the same stream, or a look
            every few samples would draw that block every time.
        stream: Version of the stream, one of `STREAMS`.
        threads: Pool that draws blocks beside one another; None to draw them one by one.
    """
    generator, stop = STREAMS[stream], start + len(out)
    kept = {} if kept is None else kept

    def copies(block: int, place: Tensor) -> Tensor:
        return law.noisy(x, place, generator(*path, block, device=x.device))

    def fill(block: int) -> None:
        first, last = max(start, block * BLOCK), min(stop, (block + 1) * BLOCK)
        rows = out[first - start : last - start]
        with torch.inference_mode():  # a setting of the thread, and this may be another one than the caller's
            whole = kept.pop(block, None)
            if whole is None and last - first == BLOCK:
                copies(block, rows)
                return
            # A part of a block is cut from the whole draw, or its values would depend on the cut.
            wanted = last - block * BLOCK
            if whole is None or len(whole) < wanted:
                few = _fitting(law, x.dtype, x.device.type, x.numel() % 16) if block == 0 else ()
                count = next((count for count in few if wanted <= count), BLOCK)
                whole = copies(block, torch.empty((count, *x.shape), dtype=x.dtype, device=x.device))
            rows.copy_(whole[first - block * BLOCK : wanted])
            if wanted < BLOCK:
                kept[block] = whole

    blocks = range(start // BLOCK, (stop - 1) // BLOCK + 1)
    for _ in threads.map(fill, blocks) if threads and out.numel() > SERIAL else map(fill, blocks):
        pass


@lru_cache(maxsize=256)
def _fitting(law: NoiseLaw, dtype: torch.dtype, device: str, over: int) -> tuple[int, ...]:
    """Those of `FEW` that are the same where the rest of a block is not drawn; tried, for torch decides it.

    It draws 16 values at a time, so that only the number of pixels above a multiple of 16, `over`, makes a difference.
    """
    if type(law) is not Gaussian or device != "cpu":  # on a GPU they are not
        return ()
    x = torch.zeros((1, 1, 16 + over), dtype=dtype)
    whole, *few = (
        law.noisy(x, torch.empty((count, *x.shape), dtype=dtype), torch.Generator().manual_seed(0))
        for count in (BLOCK, *FEW)
    )
    return tuple(len(part) for part in few if torch.equal(whole[: len(part)], part))


def foreseen(
    x: Tensor,
    law: NoiseLaw,
    start: int,
    stop: int,
    path: tuple[int, *tuple[str, ...]],
    kept: dict[int, Tensor],
    stream: int = NEWEST,
) -> None:
    """Draw the blocks of samples start ... stop - 1 into `kept`, where `noisy` finds them.

    Args:
        x: Image (c, h, w), pixels on [0, 1].
        law: Law of the noise.
        start: Number of the first sample.
        stop: Number after the last sample.
        path: Seed, then the names under it.
        kept: Blocks that are kept.
        stream: Version of the stream, one of `STREAMS`.
    """
    for block in range(start // BLOCK, (stop - 1) // BLOCK + 1):
        if block not in kept or len(kept[block]) < BLOCK:
            place = torch.empty((BLOCK, *x.shape), dtype=x.dtype, device=x.device)
            kept[block] = law.noisy(x, place, STREAMS[stream](*path, block, device=x.device))

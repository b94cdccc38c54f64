"""The noise of randomized smoothing, which nothing but its law, the seed and its path decides.

It comes in blocks of `BLOCK` samples, each from its own seed, so neither the batch size nor an interruption nor a look
at the votes in between changes which noise an image sees. How a block is filled is the law's (`NoiseLaw.noisy`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import torch
from torch import Tensor

from certibox import seeds
from certibox.confidence.gaussian import NoiseLaw
from certibox.records.checks import VERSIONS

BLOCK = 100  # samples in a block of noise; part of what a seed means, so never change it
MANY = 4  # threads from which on noise is drawn by as many at once
STREAMS: dict[int, Callable[..., torch.Generator]] = dict(
    zip(VERSIONS, (seeds.generator, seeds.wide_generator), strict=True)
)
"""What makes a block's generator, by the version of the stream: part of what a seed means, so only added to."""
NEWEST = max(STREAMS)
SERIAL = 1 << 16  # values of noise up to which starting threads costs more than it saves


def noisy_batches(
    x: Tensor,
    law: NoiseLaw,
    start: int,
    stop: int,
    batch_size: int,
    path: tuple[int, *tuple[str, ...]],
    kept: dict[int, Tensor] | None = None,
    stream: int = NEWEST,
) -> Iterator[Tensor]:
    """Noisy copies of x: samples start..stop-1 of the stream at `path`, in batches (b, c, h, w).

    Sample i is row i % BLOCK of block i // BLOCK, whatever the batches are. The Gaussian draw is the
    largest cost above the model: blocks fill in parallel, or ahead of the model, where that is faster.

    Args:
        x: Image (c, h, w), pixels on [0, 1].
        law: Law of the noise.
        start: Number of the first sample.
        stop: Number after the last sample.
        batch_size: Maximum b of a batch.
        path: Seed, then the names under it.
        kept: Blocks that a batch ended in, which wait for the next batch; give the same dict again to go on with the
            same stream, or a look every few samples would draw that block every time.
        stream: Version of the stream, one of `STREAMS`.
    """
    generator = STREAMS[stream]
    kept = {} if kept is None else kept
    threads, drawing = torch.get_num_threads(), list[Callable[[], Tensor]]()
    spare = _processors() - threads
    # On two or three processors, threads that draw noise between two calls leave the network's own where they slow it
    # down: 4 ms for every batch were seen, more than they save.
    alone = spare <= 0 and threads < MANY
    with nullcontext() if alone else ThreadPoolExecutor(max_workers=max(threads, spare)) as pool:

        def take(after: int) -> Tensor:
            """The batch that is being drawn; the next is drawn while it is asked about, if a processor is to spare."""
            noisy = drawing.pop()()
            if spare > 0 and after < stop:
                drawing.append(_begin(pool, x, law, after, min(after + batch_size, stop), path, kept, generator))
            return noisy

        for low in range(start, stop, batch_size):
            # Nothing here refers to a batch after it is handed over, so it dies when its reader drops it.
            if not drawing:
                drawing.append(_begin(pool, x, law, low, min(low + batch_size, stop), path, kept, generator))
            yield take(low + batch_size)


def _processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin(
    pool: ThreadPoolExecutor | None,
    x: Tensor,
    law: NoiseLaw,
    low: int,
    high: int,
    path: tuple[int, *tuple[str, ...]],
    kept: dict[int, Tensor],
    generator: Callable[..., torch.Generator],
) -> Callable[[], Tensor]:
    """Begin to draw samples low..high-1; what it returns waits for them: (high - low, c, h, w)."""
    noisy = torch.empty((high - low, *x.shape), dtype=x.dtype, device=x.device)

    def copies(block: int, out: Tensor) -> Tensor:
        return law.noisy(x, out, generator(*path, block, device=x.device))

    def fill(block: int) -> None:
        first, last = max(low, block * BLOCK), min(high, (block + 1) * BLOCK)
        rows = noisy[first - low : last - low]
        with torch.inference_mode():  # a setting of the thread, and this is another one than the caller's
            if last - first == BLOCK:
                copies(block, rows)
                return
            # A part of a block is cut from the whole draw, or its values would depend on the cut.
            whole = kept.pop(block, None)
            if whole is None:
                whole = copies(block, torch.empty((BLOCK, *x.shape), dtype=x.dtype, device=x.device))
            rows.copy_(whole[first - block * BLOCK : last - block * BLOCK])
            if last < (block + 1) * BLOCK:
                kept[block] = whole

    blocks = range(low // BLOCK, (high - 1) // BLOCK + 1)
    filled = pool.map(fill, blocks) if pool and noisy.numel() > SERIAL else map(fill, blocks)

    def wait() -> Tensor:
        for _ in filled:
            pass
        return noisy

    return wait

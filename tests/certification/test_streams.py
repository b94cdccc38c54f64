"""Streams of noise by their version: old ones mean what they meant, new ones never coincide; rows go on with theirs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from certibox import seeds
from certibox.certification.dataset import certify_dataset
from certibox.certification.noise import BLOCK, NEWEST, STREAMS
from certibox.certification.smoothing import SmoothedClassifier
from certibox.certification.stored import merge, replay
from certibox.confidence.gaussian import Gaussian
from certibox.data import Images
from certibox.errors import CertiboxError, ConfigMismatch, InvalidInput
from certibox.records.certificates import read_rows
from doubles import CountingBox, LinearBox, noisy_batches

SIGMA = 0.25
VOTES: dict[str, Any] = {"n0": 20, "n": 150, "alpha": 0.01, "seed": 4, "model": "linear"}
TWINS = (13815, 17684)  # blocks of (0, "collision") whose seeds have equal 32 bits
PATH = (7, "image", "stream", 3)
KNOWN = {  # the first draws at PATH: the low bits of words, and normal numbers, which processors round otherwise
    1: ([55957, 61174, 62438, 26407], [-1.2279773, -0.1812381, 0.3300893, 0.7999805]),
    2: ([62475, 13279, 46075, 32646], [-0.0082217, -0.0007701, -1.1788847, -0.0927492]),
}


def drawn(generator: torch.Generator, count: int = BLOCK) -> Tensor:
    return torch.empty(count).normal_(0.0, 1.0, generator=generator)


# ------------------------------------------------------------------------------------------------------- generators


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_is_what_it_was(stream: int) -> None:
    whole, normal = KNOWN[stream]
    assert torch.randint(0, 2**16, (4,), generator=STREAMS[stream](*PATH)).tolist() == whole
    assert drawn(STREAMS[stream](*PATH))[:4].tolist() == pytest.approx(normal, abs=1e-5)


def test_streams_whose_seeds_share_32_bits_were_one_and_are_two() -> None:
    low, high = (seeds.derive(0, "collision", block) for block in TWINS)
    assert low != high
    assert low % 2**32 == high % 2**32
    first, second = (drawn(seeds.generator(0, "collision", block)) for block in TWINS)
    assert torch.equal(first, second)  # what the newer stream is for
    first, second = (drawn(seeds.wide_generator(0, "collision", block), 10_000) for block in TWINS)
    assert not (first == second).any()
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1].item()) <= 5 / math.sqrt(10_000)


def test_the_words_of_a_state_are_drawn_as_numpy_draws_them() -> None:
    """The state that is set is the Mersenne Twister's: NumPy's, given the same words, gives the same numbers."""
    made = seeds.wide_generator(*PATH)
    words = made.get_state().numpy()[24 : 24 + 624 * 8].view(np.uint64).astype(np.uint32)
    twister = np.random.MT19937()
    state: Any = twister.state
    state["state"] = {"key": words, "pos": 624}
    twister.state = state
    ours = torch.randint(0, 2**16, (2000,), generator=made)  # the low bits of a word each
    assert ours.tolist() == (twister.random_raw(2000) % 2**16).tolist()
    assert len({int(word) for word in words}) > 620


def test_noise_of_many_blocks_is_gaussian_and_uncorrelated() -> None:
    x = torch.zeros(1, 4, 4, dtype=torch.float64)
    noise = torch.cat(list(noisy_batches(x, Gaussian(1.0), 0, 20_000, 5_000, (3, "moments"), stream=2)))
    flat, n = noise.flatten(), noise.numel()
    assert abs(flat.mean().item()) <= 4 / math.sqrt(n)
    assert abs(flat.var().item() - 1) <= 4 * math.sqrt(2 / n)
    assert kstest(flat.numpy(), "norm").pvalue > 1e-4
    first = noise[::BLOCK].flatten(1)  # the first draws of every block, where badly seeded generators are alike
    pairs = torch.stack([first[1:].flatten(), first[:-1].flatten()])
    assert abs(torch.corrcoef(pairs)[0, 1].item()) <= 5 / math.sqrt(pairs.shape[1])
    assert abs(first.mean().item()) <= 4 / math.sqrt(first.numel())


def test_a_torch_with_another_state_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds, "_BEFORE", (5489, 0, 2, 1, 0, 0))
    seeds._seeded_state.cache_clear()
    try:
        with pytest.raises(CertiboxError, match="keeps the state of its CPU generator in a form that is not known"):
            seeds.wide_generator(*PATH)
    finally:
        seeds._seeded_state.cache_clear()


# ------------------------------------------------------------------------------------------------- certificates, rows


def base() -> CountingBox:
    return CountingBox(LinearBox(torch.randn(3, 6, generator=torch.Generator().manual_seed(1))))


def pictures(count: int = 3) -> Images:
    pixels = torch.randint(0, 256, (count, 1, 2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Images(pixels, None, "random")


def certify(out: Path | None, count: int = 3, inner: Any = None, **change: Any) -> list[Any]:
    return certify_dataset(SmoothedClassifier(inner or base(), 3, SIGMA), pictures(count), out=out, **VOTES | change)


def timeless(rows: list[Any]) -> list[Any]:
    return [replace(row, seconds=0.0) for row in rows]


def test_certificates_and_predictions_state_their_stream() -> None:
    smoothed, x = SmoothedClassifier(base(), 3, SIGMA), pictures().floats()[0]
    asked: dict[str, Any] = {"n0": 20, "n": 300, "alpha": 0.01, "seed": 0}
    newest, first = smoothed.certify(x, **asked), smoothed.certify(x, **asked, stream=1)
    assert (newest.stream, first.stream) == (NEWEST, 1) == (2, 1)
    assert newest.counts != first.counts
    assert newest.replay() == newest
    changes: tuple[dict[str, Any], ...] = ({}, {"stream": 2}, {"stream": 1})
    told = [smoothed.predict(x, n=300, alpha=0.01, seed=0, **change) for change in changes]
    assert told[0] == told[1] != told[2]
    assert [prediction.stream for prediction in told] == [2, 2, 1]


@pytest.mark.parametrize("stream", [0, 3, True, "2", None])
def test_a_stream_that_is_not_there_is_refused_before_any_query(stream: Any) -> None:
    inner = base()
    smoothed, x = SmoothedClassifier(inner, 3, SIGMA), pictures().floats()[0]
    asks: list[Callable[[], Any]] = [
        lambda: smoothed.certify(x, n0=20, n=150, alpha=0.01, seed=0, stream=stream),
        lambda: smoothed.predict(x, n=150, alpha=0.01, seed=0, stream=stream),
    ]
    if stream is not None:  # which is the rows' own there
        asks.append(lambda: certify(None, inner=inner, stream=stream))
    for ask in asks:
        with pytest.raises(InvalidInput, match=f"stream is {stream!r}; wanted 1 or 2"):
            ask()
    assert inner.calls == 0


def test_rows_of_the_first_stream_are_written_as_ever_and_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    first = certify(out, 1, stream=1)
    assert "stream" not in json.loads(out.read_text(encoding="utf-8"))
    assert first[0].stream == read_rows(out)[0].stream == 1
    rows = certify(out)
    assert {row.stream for row in rows} == {1}
    assert timeless(rows) == timeless(certify(None, stream=1))
    assert replay(rows) == rows


def test_rows_of_the_newest_stream_say_so_and_are_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    certify(out, 1)
    assert json.loads(out.read_text(encoding="utf-8"))["stream"] == 2
    assert timeless(certify(out)) == timeless(certify(None)) == timeless(certify(None, stream=2))
    kept = out.read_bytes()
    with pytest.raises(ConfigMismatch, match="stream is 2 there and 1 here"):
        certify(out, 4, stream=1)
    assert out.read_bytes() == kept


def test_votes_of_an_earlier_version_are_gone_on_with(tmp_path: Path) -> None:
    """A run of the first stream that was stopped in its first image has votes, and no row that says which stream."""
    out, plain = tmp_path / "rows.jsonl", base()
    whole = certify(None, 1, plain, stream=1, batch_size=50)
    inner, left = base(), iter(range(3))

    class Dying:
        answers_alone = True

        def __call__(self, x: Tensor) -> Tensor:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return inner(x)

    with pytest.raises(KeyboardInterrupt):
        certify(out, 1, Dying(), stream=1, batch_size=50)
    votes = out.with_name(out.name + ".votes").read_text(encoding="utf-8")
    assert '"stream": 1' not in votes  # as that version wrote them
    assert timeless(certify(out, 1, inner, batch_size=50)) == timeless(whole)
    assert inner.images == plain.images


def test_shards_of_two_streams_do_not_merge(tmp_path: Path) -> None:
    parts = [tmp_path / "0.jsonl", tmp_path / "1.jsonl"]
    for index, part in enumerate(parts):
        certify(part, shard=(index, 2), stream=1 + index)
    with pytest.raises(ConfigMismatch, match="stream is 2 there and 1 here"):
        merge(parts, tmp_path / "rows.jsonl")

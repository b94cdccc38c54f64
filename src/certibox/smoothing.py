"""Randomized smoothing of any classifier that is a callable (Cohen, Rosenfeld & Kolter, ICML 2019).

g(x) = argmax_c P[f(x + δ) = c], δ ~ N(0, σ² I). Nothing here knows what f is. Noise comes in blocks of `BLOCK` samples,
each from its own seed, so neither the batch size nor an interruption changes which noise an image sees.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from certibox import confidence, seeds
from certibox.errors import BadOutput, InvalidImages, InvalidInput

BLOCK = 100  # samples in a block of noise; part of what a seed means, so never change it
SERIAL = 1 << 16  # values of noise up to which starting threads costs more than it saves
BaseClassifier = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Certificate:
    """What n0 + n answers prove about g at one image; integer counts, so that another alpha costs nothing.

    label: the certified class, or None for an abstention. radius: l2, in pixels on [0, 1]; g is constant within it
    unless the bound failed (probability at most alpha over the seed). selected: the class that the n0 selection votes
    picked. counts: the n estimation votes per class, without n0. queries: n0 + n. image: SHA-256 of the float image.
    """

    label: int | None
    radius: float
    p_lower: float
    selected: int
    counts: tuple[int, ...]
    n0: int
    n: int
    alpha: float
    sigma: float
    seed: int
    queries: int
    image: str

    def at_alpha(self, alpha: float) -> Certificate:
        """The certificate that the same votes give at another alpha; no query is spent."""
        require_certifiable(self.n, alpha)
        p_lower = confidence.lower_confidence_bound(self.counts[self.selected], self.n, alpha)
        radius = confidence.radius(p_lower, self.sigma)
        label = self.selected if radius > 0 else None
        return replace(self, label=label, radius=radius, p_lower=p_lower, alpha=alpha)

    def as_dict(self) -> dict[str, object]:
        """The fields as plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Prediction:
    """g's class at one image, or None (abstain) where the top two classes cannot be told apart at level alpha."""

    label: int | None
    counts: tuple[int, ...]
    p_value: float
    n: int
    alpha: float
    sigma: float
    seed: int
    queries: int


class VoteJournal(Protocol):
    """Where votes are kept as they are paid for, so that an interrupted certificate goes on where it stopped."""

    def recall(self, stream: str) -> tuple[int, np.ndarray | None]:
        """How many samples of `stream` are done, and their votes per class (None when there are none)."""
        ...

    def note(self, stream: str, done: int, votes: np.ndarray) -> None:
        """Keep the running total `votes` (K,) after `done` samples of `stream`."""
        ...


def require_certifiable(n: int, alpha: float) -> None:
    """Raise `InvalidInput`, naming the smallest n, if even n unanimous votes could only abstain at alpha."""
    smallest = confidence.smallest_n(alpha)
    if n < smallest:
        raise InvalidInput(
            f"n = {n} can only abstain at alpha = {alpha}, even with unanimous votes; the smallest n is {smallest}"
        )


class SmoothedClassifier:
    """The smoothed version of `base_classifier`, with `certify` and `predict` of Cohen et al. 2019.

    base_classifier: (b, c, h, w) float32 -> (b, K) scores, or (b,) integer labels. num_classes: K. sigma: standard
    deviation of the noise, in pixels on [0, 1].
    """

    def __init__(self, base_classifier: BaseClassifier, num_classes: int, sigma: float) -> None:
        if not sigma > 0 or not np.isfinite(sigma):
            raise InvalidInput(f"sigma is {sigma}; wanted a positive standard deviation in pixels, such as 0.25")
        if num_classes < 2:
            raise InvalidInput(f"num_classes is {num_classes}; wanted at least 2")
        self.base_classifier, self.num_classes, self.sigma = base_classifier, num_classes, float(sigma)
        owner = getattr(base_classifier, "__self__", base_classifier)
        self.model_id: str = getattr(owner, "model_id", "base classifier")  # a bare function says nothing of itself
        size = getattr(owner, "batch_size", None)
        self._asked_at_a_time = size if isinstance(size, int) and size > 0 else None

    def certify(
        self,
        x: Tensor,
        *,
        n0: int,
        n: int,
        alpha: float,
        seed: int,
        batch_size: int = 1000,
        journal: VoteJournal | None = None,
    ) -> Certificate:
        """Certify g at one image: n0 votes pick a class, n fresh votes bound its probability from below.

        x: (c, h, w), pixels on [0, 1]. Memory is one batch, whatever n. Errors: `InvalidInput` if n0 < 1, alpha is
        outside (0, 1) or n cannot certify anything at alpha. Source: Cohen et al. 2019, `Certify` and Proposition 2.
        """
        check_image(x)
        if n0 < 1:
            raise InvalidInput(f"n0 is {n0}; wanted at least 1 selection vote, usually 100")
        require_certifiable(n, alpha)
        image = image_digest(x)
        selection = self._count(x, n0, seed, image, "select", batch_size, journal)
        counts = self._count(x, n, seed, image, "estimate", batch_size, journal)
        unproven = Certificate(
            label=None,
            radius=0.0,
            p_lower=0.0,
            selected=int(selection.argmax()),
            counts=tuple(int(count) for count in counts),
            n0=n0,
            n=n,
            alpha=alpha,
            sigma=self.sigma,
            seed=seed,
            queries=n0 + n,
            image=image,
        )
        return unproven.at_alpha(alpha)

    def predict(self, x: Tensor, *, n: int, alpha: float, seed: int, batch_size: int = 1000) -> Prediction:
        """g's class at one image from n votes; wrong with probability at most alpha, else None.

        x: (c, h, w), pixels on [0, 1]. Source: Cohen et al. 2019, `Predict` and Proposition 1.
        """
        check_image(x)
        confidence.check_alpha(alpha)
        smallest = math.ceil(1 - math.log2(alpha))  # unanimous votes have a p-value of 2 / 2^n
        if n < smallest:
            raise InvalidInput(f"n is {n}, which can only abstain at alpha = {alpha}; the smallest n is {smallest}")
        counts = self._count(x, n, seed, image_digest(x), "predict", batch_size, None)
        second, first = np.argsort(counts, kind="stable")[-2:]
        p_value = confidence.two_sided_p_value(int(counts[first]), int(counts[second]))
        label = int(first) if p_value <= alpha else None
        votes = tuple(int(count) for count in counts)
        return Prediction(label, votes, p_value, n, alpha, self.sigma, seed, queries=n)

    def _count(
        self, x: Tensor, n: int, seed: int, image: str, stream: str, batch_size: int, journal: VoteJournal | None
    ) -> np.ndarray:
        """Votes per class (K,) of the first n samples of `stream`, going on from what the journal holds."""
        if batch_size < 1:
            raise InvalidInput(f"batch_size is {batch_size}; wanted at least 1")
        done, votes = journal.recall(stream) if journal else (0, None)
        total = np.zeros(self.num_classes, dtype=np.int64) if votes is None else votes.copy()
        with torch.inference_mode():
            for noisy in noisy_batches(x, self.sigma, done, n, batch_size, (seed, image, stream)):
                # Votes are kept as they are paid for: no more than the box is asked at a time is ever lost.
                for asked in noisy.split(self._asked_at_a_time or len(noisy)):
                    total += self._votes(self.base_classifier(asked), len(asked))
                    done += len(asked)
                    if journal:
                        journal.note(stream, done, total)
                    del asked
                del noisy  # before the next is drawn: memory is one batch
        return total

    def _votes(self, outputs: Tensor, n: int) -> np.ndarray:
        """Votes per class of one batch of scores (n, K) or integer labels (n,)."""
        if not isinstance(outputs, Tensor):
            raise BadOutput(f"the base classifier gave {type(outputs).__name__} for {n} images; wanted a tensor")
        if outputs.shape == (n, self.num_classes) and not outputs.is_complex():
            if not (finite := outputs.isfinite()).all():
                came = outputs[~finite][0].item()
                raise BadOutput(f"the base classifier gave the score {came} in a batch of {n}; wanted finite scores")
            labels = outputs.argmax(dim=1)
        elif outputs.shape == (n,) and not (outputs.is_floating_point() or outputs.is_complex()):
            labels = outputs
        else:
            raise BadOutput(
                f"the base classifier gave {outputs.dtype} of shape {tuple(outputs.shape)} for {n} images; "
                f"wanted scores ({n}, {self.num_classes}) or integer labels ({n},)"
            )
        low, high = (int(label) for label in labels.aminmax())
        if low < 0 or high >= self.num_classes:
            came = low if low < 0 else high
            raise BadOutput(f"the base classifier gave label {came}; wanted 0 to {self.num_classes - 1}")
        return np.bincount(labels.cpu().numpy(), minlength=self.num_classes)


def check_image(x: Tensor) -> None:
    """Raise `InvalidImages` unless x is one finite float image (c, h, w)."""
    if not isinstance(x, Tensor) or x.ndim != 3 or not x.is_floating_point():
        came = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InvalidImages(f"the image is {came}; wanted one float tensor (channels, height, width) on [0, 1]")
    if not torch.isfinite(x).all():
        raise InvalidImages("the image holds NaN or infinite pixels; wanted finite pixels on [0, 1]")
    low, high = (float(pixel) for pixel in x.aminmax())
    if high > 16 or low < -16:
        raise InvalidImages(f"pixels go from {low:g} to {high:g}; wanted [0, 1], the units of sigma: divide by 255")
    if high > 1.001 or low < -0.001:
        text = "an image has pixels outside [0, 1]: sigma and radius are in the units of its own pixels"
        warnings.warn(text, stacklevel=3)  # the same text every time, so that it is shown once


def image_digest(x: Tensor) -> str:
    """SHA-256 (hex) of an image's shape and float32 pixels."""
    pixels = x.detach().to("cpu", torch.float32).contiguous().numpy()
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def noisy_batches(
    x: Tensor, sigma: float, start: int, stop: int, batch_size: int, path: tuple[int, *tuple[str, ...]]
) -> Iterator[Tensor]:
    """x + δ for samples start..stop-1 of the stream at `path`, in batches (b, c, h, w); b <= batch_size.

    path: the seed, then the names under it. Sample i is row i % BLOCK of block i // BLOCK, whatever the batches are.
    Blocks fill in parallel: the Gaussian draw is the largest cost above the model, and it is serial within a block.
    """
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
        for low in range(start, stop, batch_size):
            # Nothing here refers to the batch after it is handed over, so it dies when its reader drops it.
            yield _draw(pool, x, sigma, low, min(low + batch_size, stop), path)


def _draw(
    pool: ThreadPoolExecutor, x: Tensor, sigma: float, low: int, high: int, path: tuple[int, *tuple[str, ...]]
) -> Tensor:
    """Samples low..high-1: (high - low, c, h, w)."""
    noisy = torch.empty((high - low, *x.shape), dtype=x.dtype, device=x.device)

    def fill(block: int) -> None:
        first, last = max(low, block * BLOCK), min(high, (block + 1) * BLOCK)
        rows = noisy[first - low : last - low]
        generator = seeds.generator(*path, block, device=x.device)
        with torch.inference_mode():  # a setting of the thread, and this is another one than the caller's
            if last - first == BLOCK:
                rows.normal_(0.0, sigma, generator=generator).add_(x)
            else:  # a part of a block is cut from the whole draw, or its values would depend on the cut
                whole = torch.empty((BLOCK, *x.shape), dtype=x.dtype, device=x.device)
                whole.normal_(0.0, sigma, generator=generator)
                torch.add(whole[first - block * BLOCK : last - block * BLOCK], x, out=rows)

    run = pool.map if noisy.numel() > SERIAL else map
    list(run(fill, range(low // BLOCK, (high - 1) // BLOCK + 1)))
    return noisy

"""Randomized smoothing of any classifier that is a callable (Cohen, Rosenfeld & Kolter, ICML 2019).

g(x) = argmax_c P[f(x + δ) = c], δ ~ N(0, σ² I). Nothing here knows what f is. The noise that an image sees depends on
the seed and its pixels alone (`noise`): not on batches, stopping rules or interruptions.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from certibox import confidence
from certibox.certification.certificate import Certificate, Prediction, fixed_bounds, reach
from certibox.certification.noise import noisy_batches
from certibox.certification.sampling import Sampling, sampling_of
from certibox.confidence.gaussian import Gaussian, NoiseLaw
from certibox.confidence.stopping import Decision, StoppingRule, asked, decided
from certibox.data.pixels import as_images
from certibox.errors import BadOutput, InvalidImages, InvalidInput

BaseClassifier = Callable[[Tensor], Tensor]
PIXELS = 1 << 20  # of the images in a call whose size is chosen here: a MiB of 8-bit pixels, 4 MiB of floats


class VoteJournal(Protocol):
    """Where votes are kept as they are paid for, so that an interrupted certificate goes on where it stopped."""

    def recall(self, stream: str) -> tuple[int, np.ndarray | None]:
        """How many samples of a stream are done, and their votes per class (None when there are none).

        Args:
            stream: Name of the votes: of the selection, or of a look at the estimation.
        """
        ...

    def note(self, stream: str, done: int, votes: np.ndarray) -> None:
        """Keep the running total of a stream.

        Args:
            stream: Name of the votes.
            done: Number of samples so far.
            votes: Votes per class (K,) of these samples.
        """
        ...


@runtime_checkable
class Batching(Protocol):
    """A base classifier, or its owner, that lets its caller choose how many images it is asked at a time."""

    @property
    def batch_size(self) -> int:
        """Number of images at a time, where nobody chooses."""
        ...

    @property
    def free_batch_size(self) -> bool:
        """Whether a caller may choose: not where its user did, nor where a call that is lost costs money."""
        ...

    def asking(self, n: int) -> AbstractContextManager[None]:
        """Take up to n images at a time inside the block.

        Args:
            n: Number of images.
        """
        ...


class SmoothedClassifier:
    """The smoothed version of a base classifier, with `certify` and `predict` of Cohen et al. 2019.

    Args:
        base_classifier: Function (b, c, h, w) float32 -> (b, K) scores, or (b,) integer labels.
        num_classes: Number of classes K.
        sigma: Standard deviation of the Gaussian noise, in pixels on [0, 1].

    Raises:
        InvalidInput: if sigma is not positive and finite, or there are fewer than two classes.
    """

    def __init__(self, base_classifier: BaseClassifier, num_classes: int, sigma: float) -> None:
        if num_classes < 2:
            raise InvalidInput(f"num_classes is {num_classes}; wanted at least 2")
        self.base_classifier, self.num_classes = base_classifier, num_classes
        self.law: NoiseLaw = Gaussian(sigma)
        self.owner: object = getattr(base_classifier, "__self__", base_classifier)  # of a method, or the base itself
        self.model_id: str = getattr(self.owner, "model_id", "base classifier")  # a bare function tells nothing
        size = getattr(self.owner, "batch_size", None)
        self._given = size if isinstance(size, int) and size > 0 else None

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise, in pixels on [0, 1]."""
        return self.law.sigma

    def __repr__(self) -> str:
        base = getattr(self.owner, "model_id", None) or getattr(self.base_classifier, "__qualname__", None)
        base = base or type(self.base_classifier).__name__
        return f"SmoothedClassifier({base}, num_classes={self.num_classes}, sigma={self.sigma})"

    def certify(
        self,
        x: Tensor | np.ndarray,
        *,
        n0: int | None = None,
        n: int | None = None,
        alpha: float | None = None,
        seed: int,
        rule: StoppingRule | None = None,
        second_class: bool = False,
        sampling: Sampling | None = None,
        batch_size: int = 1000,
        journal: VoteJournal | None = None,
    ) -> Any:
        """Certify g at an image: n0 votes pick a class, up to n fresh votes bound its probability from below.

        A sequential certificate's votes are the first of the fixed one's with this seed. Memory is two batches,
        whatever n. A batch of images is certified one by one; `certify_dataset` also keeps what was done when a query
        fails. Source: Cohen et al. 2019, `Certify` and Proposition 2; the rules' own in `confidence.sequential`.

        Args:
            x: Image (c, h, w) or images (m, c, h, w), float pixels on [0, 1]; a tensor or a NumPy array.
            n0: Number of votes that pick the class. They bound nothing, so a wrong class costs an abstention, never a
                false certificate.
            n: Number of votes that bound the class's probability; with a rule, the maximum of them.
            alpha: Failure probability of a certificate, in (0, 1).
            seed: Seed of the noise; an image's noise depends on its pixels and the seed alone.
            rule: Stopping rule that looks at the votes as they come and ends the sampling; None draws all n votes.
            second_class: Whether the other classes are bounded from above too, with alpha split; for a fixed n only.
            sampling: Sampling in place of n0, n, alpha, rule and second_class.
            batch_size: Number of noisy copies at a time.
            journal: Place that keeps votes as they are paid for; for one image only.

        Returns:
            A `Certificate`; for images (m, c, h, w) a list of m.

        Raises:
            InvalidInput: for what `Sampling` refuses, or where n cannot certify anything at alpha.
            InvalidImages: for anything but finite float pixels on about [0, 1].
        """
        wanted, images = sampling_of(sampling, n0, n, alpha, rule, second_class), certifiable(x)
        sizes = wanted.sizes(self.law, self.num_classes)
        certify = partial(self._certify, sampling=wanted, sizes=sizes, seed=seed, batch_size=batch_size)
        if images.ndim == 3:
            return certify(images, journal=journal)
        if journal is not None:
            raise InvalidInput("a journal keeps the votes of one image; wanted one image (c, h, w), or no journal")
        return [certify(image, journal=None) for image in images]

    def predict(self, x: Tensor | np.ndarray, *, n: int, alpha: float, seed: int, batch_size: int = 1000) -> Any:
        """g's class at an image from n votes; wrong with probability at most alpha, else an abstention.

        Source: Cohen et al. 2019, `Predict` and Proposition 1.

        Args:
            x: Image (c, h, w) or images (m, c, h, w), float pixels on [0, 1]; a tensor or a NumPy array.
            n: Number of votes.
            alpha: Probability of a wrong class that is accepted, in (0, 1).
            seed: Seed of the noise.
            batch_size: Number of noisy copies at a time.

        Returns:
            A `Prediction`; for images (m, c, h, w) a list of m.

        Raises:
            InvalidInput: if alpha is outside (0, 1) or n can only abstain.
            InvalidImages: for anything but finite float pixels on about [0, 1].
        """
        images = certifiable(x)
        confidence.check_alpha(alpha)
        smallest = math.ceil(1 - math.log2(alpha))  # unanimous votes have a p-value of 2 / 2^n
        if n < smallest:
            raise InvalidInput(f"n is {n}, which can only abstain at alpha = {alpha}; the smallest n is {smallest}")
        predict = partial(self._predict, n=n, alpha=alpha, seed=seed, batch_size=batch_size)
        return predict(images) if images.ndim == 3 else [predict(image) for image in images]

    def _certify(
        self,
        x: Tensor,
        *,
        sampling: Sampling,
        sizes: tuple[int, ...],
        seed: int,
        batch_size: int,
        journal: VoteJournal | None,
    ) -> Certificate:
        """The certificate of one checked image (c, h, w) that looks at its votes at `sizes`."""
        image, rule = image_digest(x), sampling.rule
        count = partial(self._count, x, batch_size=batch_size, journal=journal)
        selected = int(count(sampling.n0, (seed, image, "select")).argmax())
        votes, looks, decision = self._estimate(count, (seed, image, "estimate"), sizes, selected, sampling)
        if rule is None or decision is None:
            p_lower, radius = fixed_bounds(self.law, votes, selected, sampling.alpha, sampling.second_class)
        else:
            p_lower, radius = decision.p_lower, reach(self.law, rule, decision.p_lower)
        return Certificate(
            label=selected if radius > 0 else None,
            radius=radius,
            p_lower=p_lower,
            selected=selected,
            counts=votes,
            n0=sampling.n0,
            n=looks[-1][0],
            alpha=sampling.alpha,
            sigma=self.sigma,
            seed=seed,
            queries=sampling.n0 + looks[-1][0],
            image=image,
            second_class=sampling.second_class,
            rule=sampling.record(),
            looks=tuple(looks) if rule is not None else None,
        )

    def _estimate(
        self,
        count: Callable[..., np.ndarray],
        path: tuple[int, str, str],
        sizes: tuple[int, ...],
        selected: int,
        sampling: Sampling,
    ) -> tuple[tuple[int, ...], list[tuple[int, int]], Decision | None]:
        """Votes per class (K,) of the stream at `path`, the looks at them, and what the rule said at the last one."""
        rule, looks, decision = sampling.rule, [], None
        thresholds = asked(rule, self.law) if rule is not None else ()
        counts, kept = np.zeros(self.num_classes, dtype=np.int64), {}
        for size in sizes:
            # Each look has its own entry in the journal, so that an interrupted run still knows all of them.
            entry = path[-1] if rule is None else f"{path[-1]} to {size}"
            counts = count(size, path, entry=entry, before=counts, kept=kept)
            looks.append((size, int(counts[selected])))
            if rule is not None:
                decision = decided(rule, looks, sampling.n, sampling.alpha, thresholds)
                if decision.stop:
                    break
        return tuple(int(count) for count in counts), looks, decision

    def _predict(self, x: Tensor, *, n: int, alpha: float, seed: int, batch_size: int) -> Prediction:
        """The prediction at one checked image (c, h, w)."""
        counts = self._count(x, n, (seed, image_digest(x), "predict"), batch_size=batch_size)
        second, first = np.argsort(counts, kind="stable")[-2:]
        p_value = confidence.two_sided_p_value(int(counts[first]), int(counts[second]))
        label = int(first) if p_value <= alpha else None
        votes = tuple(int(count) for count in counts)
        return Prediction(label, votes, p_value, n, alpha, self.sigma, seed, queries=n)

    def _count(
        self,
        x: Tensor,
        n: int,
        path: tuple[int, str, str],
        *,
        batch_size: int,
        journal: VoteJournal | None = None,
        entry: str | None = None,
        before: np.ndarray | None = None,
        kept: dict[int, Tensor] | None = None,
    ) -> np.ndarray:
        """Votes per class (K,) of the first n samples of the stream at `path`: seed, image and name.

        They go on from `before`, the votes of its first samples, or further from what the journal holds under `entry`
        (by default the stream's name). kept: as in `noisy_batches`.
        """
        if batch_size < 1:
            raise InvalidInput(f"batch_size is {batch_size}; wanted at least 1")
        entry = entry or path[-1]
        _, votes = journal.recall(entry) if journal else (0, None)
        held = before if votes is None else votes
        total = np.zeros(self.num_classes, dtype=np.int64) if held is None else held.copy()
        done = int(total.sum())
        with torch.inference_mode():
            for noisy in noisy_batches(x, self.law, done, n, batch_size, path, kept):
                # Votes are kept as they are paid for: no more than the box is asked at a time is ever lost.
                for asked in noisy.split(self._at_a_time(x.numel()) or len(noisy)):
                    total += self._votes(self._ask(asked), len(asked))
                    done += len(asked)
                    if journal:
                        journal.note(entry, done, total)
                    del asked
                del noisy  # before the one after the next is drawn: memory is two batches
        return total

    def _at_a_time(self, pixels: int) -> int | None:
        """Noisy copies that the base classifier is asked about at a time; None for all that are ready.

        Where the choice is free these are as many as memory allows, for each call has a price of its own.
        """
        free = self._free_owner
        return self._given if free is None else max(free.batch_size, PIXELS // pixels)

    def _ask(self, noisy: Tensor) -> Tensor:
        """The base classifier's answers, all from one call where the choice is free."""
        free = self._free_owner
        with nullcontext() if free is None else free.asking(len(noisy)):
            return self.base_classifier(noisy)

    @property
    def _free_owner(self) -> Batching | None:
        """The owner of the base classifier, where it lets its caller choose how many images it is asked at a time."""
        return self.owner if isinstance(self.owner, Batching) and self.owner.free_batch_size else None

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


def certifiable(x: Tensor | np.ndarray) -> Tensor:
    """One image (c, h, w) or images (m, c, h, w) as a float tensor, with pixels that sigma can be compared with.

    Args:
        x: Float pixels on [0, 1]; those of a NumPy array become float32.

    Raises:
        InvalidImages: for what `as_images` refuses, for pixels that are not finite, or far from [0, 1].
    """
    images = as_images(x, array_type=np.float32, single=True)
    if not images.numel():
        raise InvalidImages(f"images have shape {tuple(x.shape)}; wanted at least one pixel")
    low, high = (float(pixel) for pixel in images.aminmax())  # NaN where there is one
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InvalidImages("images hold NaN or infinite pixels; wanted finite pixels on [0, 1]")
    if high > 16 or low < -16:
        raise InvalidImages(f"pixels go from {low:g} to {high:g}; wanted [0, 1], the units of sigma: divide by 255")
    if high > 1.001 or low < -0.001:
        text = "an image has pixels outside [0, 1]: sigma and radius are in the units of its own pixels"
        warnings.warn(text, stacklevel=3)  # the same text every time, so that it is shown once
    return images


def image_digest(x: Tensor) -> str:
    """SHA-256 (hex) of an image's shape and float32 pixels.

    Args:
        x: Image (c, h, w).
    """
    pixels = x.detach().to("cpu", torch.float32).contiguous().numpy()
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()

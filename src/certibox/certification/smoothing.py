"""Randomized smoothing of any classifier that is a callable (Cohen, Rosenfeld & Kolter, ICML 2019).

g(x) = argmax_c P[f(x + δ) = c], δ ~ N(0, σ² I). Nothing here knows what f is. The noise that an image sees depends on
the seed and its pixels alone (`noise`): not on batches, stopping rules or interruptions.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from certibox import confidence
from certibox.certification.certificate import Certificate, Prediction, require_certifiable, rule_record, top_share
from certibox.certification.noise import noisy_batches
from certibox.confidence import sequential
from certibox.confidence.sequential import StoppingRule
from certibox.errors import BadOutput, InvalidImages, InvalidInput

BaseClassifier = Callable[[Tensor], Tensor]


class VoteJournal(Protocol):
    """Where votes are kept as they are paid for, so that an interrupted certificate goes on where it stopped."""

    def recall(self, stream: str) -> tuple[int, np.ndarray | None]:
        """How many samples of `stream` are done, and their votes per class (None when there are none)."""
        ...

    def note(self, stream: str, done: int, votes: np.ndarray) -> None:
        """Keep the running total `votes` (K,) after `done` samples of `stream`."""
        ...


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
        rule: StoppingRule | None = None,
        second_class: bool = False,
        batch_size: int = 1000,
        journal: VoteJournal | None = None,
    ) -> Certificate:
        """Certify g at one image: n0 votes pick a class, up to n fresh votes bound its probability from below.

        x: (c, h, w), pixels on [0, 1]. rule: looks at the votes as they come and ends the sampling, at n at the latest;
        without one all n are drawn. A sequential certificate's votes are the first of the fixed one's with this seed.
        The votes of the selection never bound anything, so n0 may be as small as 1: a wrong class costs an abstention,
        never a false certificate. second_class: bound the runner-up from above too, for a fixed n; alpha is split.
        Memory is one batch, whatever n. Errors: `InvalidInput` if n0 < 1, alpha is outside (0, 1) or n cannot certify
        anything at alpha. Source: Cohen et al. 2019, `Certify` and Proposition 2; the rules' own in `sequential`.
        """
        check_image(x)
        if n0 < 1:
            raise InvalidInput(f"n0 is {n0}; wanted at least 1 vote that picks a class")
        n0, n, alpha, second_class = int(n0), int(n), float(alpha), bool(second_class)  # as JSON has them
        sizes = self.sizes(n, alpha, rule, second_class)
        image = image_digest(x)
        count = partial(self._count, x, batch_size=batch_size, journal=journal)
        selected = int(count(n0, (seed, image, "select")).argmax())
        looks: list[tuple[int, int]] = []
        counts, kept = np.zeros(self.num_classes, dtype=np.int64), {}
        for size in sizes:
            # Each look has its own entry in the journal, so that an interrupted run still knows all of them.
            entry = f"estimate to {size}" if rule else "estimate"
            counts = count(size, (seed, image, "estimate"), entry=entry, before=counts, kept=kept)
            looks.append((size, int(counts[selected])))
            if rule and rule.decide(looks, n, alpha, self.sigma).stop:
                break
        drawn = looks[-1][0]
        unproven = Certificate(
            label=None,
            radius=0.0,
            p_lower=0.0,
            selected=selected,
            counts=tuple(int(count) for count in counts),
            n0=n0,
            n=drawn,
            alpha=alpha,
            sigma=self.sigma,
            seed=seed,
            queries=n0 + drawn,
            image=image,
            second_class=second_class,
            rule=rule_record(rule, n, alpha) if rule else None,
            looks=tuple(looks) if rule else None,
        )
        return unproven.at_alpha(alpha)

    def sizes(
        self, n: int, alpha: float, rule: StoppingRule | None = None, second_class: bool = False
    ) -> tuple[int, ...]:
        """The numbers of samples at which `certify` looks at the votes: those of the rule, or n alone.

        Errors: `InvalidInput` if even unanimous votes could only abstain, for a rule with a second class, and for one
        that `sequential.replay` would not know again.
        """
        if rule is None:
            require_certifiable(n, top_share(alpha, self.num_classes, second_class))
            return (n,)
        if second_class:
            raise InvalidInput(
                "second_class is for a fixed n, and a rule bounds the top class alone; wanted one of them"
            )
        sequential.rule_from_dict(rule_record(rule, n, alpha))
        return rule.sizes(n, alpha, self.sigma)

    def predict(self, x: Tensor, *, n: int, alpha: float, seed: int, batch_size: int = 1000) -> Prediction:
        """g's class at one image from n votes; wrong with probability at most alpha, else None.

        x: (c, h, w), pixels on [0, 1]. Source: Cohen et al. 2019, `Predict` and Proposition 1.
        """
        check_image(x)
        confidence.check_alpha(alpha)
        smallest = math.ceil(1 - math.log2(alpha))  # unanimous votes have a p-value of 2 / 2^n
        if n < smallest:
            raise InvalidInput(f"n is {n}, which can only abstain at alpha = {alpha}; the smallest n is {smallest}")
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
            for noisy in noisy_batches(x, self.sigma, done, n, batch_size, path, kept):
                # Votes are kept as they are paid for: no more than the box is asked at a time is ever lost.
                for asked in noisy.split(self._asked_at_a_time or len(noisy)):
                    total += self._votes(self.base_classifier(asked), len(asked))
                    done += len(asked)
                    if journal:
                        journal.note(entry, done, total)
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

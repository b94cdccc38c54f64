"""Randomized smoothing of any classifier that is a callable (Cohen, Rosenfeld & Kolter, ICML 2019).

g(x) = argmax_c P[f(x + δ) = c], δ ~ N(0, σ² I). Nothing here knows what f is. The noise that an image sees depends on
the seed and its pixels alone (`noise`): not on batches, stopping rules or interruptions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from certibox import confidence
from certibox.certification.alone import BatchCheck
from certibox.certification.asking import BaseClassifier, Voter
from certibox.certification.certificate import Certificate, Prediction, fixed_bounds, reach
from certibox.certification.images import certifiable, check_units, image_digest, largest_distance, warn_of_radius
from certibox.certification.noise import NEWEST, noisy_batches
from certibox.certification.sampling import Sampling, sampling_of, whole
from certibox.confidence.gaussian import Gaussian, NoiseLaw
from certibox.confidence.stopping import Decision, StoppingRule, asked, decided
from certibox.errors import InvalidInput
from certibox.records.checks import check_stream
from certibox.seeds.switches import settled


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
class Witness(Protocol):
    """A journal that is shown the answers too, before their votes are kept."""

    def see(self, stream: str, first: int, outputs: Tensor) -> None:
        """Look at one batch of answers.

        Args:
            stream: Name of the stream of noise: "select", "estimate" or "predict".
            first: Number of the first of these samples in the stream.
            outputs: Answers (n, ...), checked.
        """
        ...


class SmoothedClassifier:
    """The smoothed version of a base classifier, with `certify` and `predict` of Cohen et al. 2019.

    A torch module is asked in evaluation mode. With the first batch the base classifier is asked twice about two
    images, alone and among the others, and a warning says so where the answers differ. Behind a meter that costs two
    queries, phase "batch check"; they are left out for certibox's own adapters, and where a budget has no room.

    Args:
        base_classifier: Function (b, c, h, w) float32 -> (b, K) scores, or (b,) integer labels: a function on tensors,
            a torch module, a black box, a `QueryClient`, or `Defense.outputs`.
        num_classes: Number of classes K.
        sigma: Standard deviation of the Gaussian noise, in pixels on [0, 1].

    Raises:
        InvalidInput: if the base classifier cannot be called, sigma is not a number that noise in float32 can have, or
            there are fewer than two classes.
    """

    def __init__(self, base_classifier: BaseClassifier, num_classes: int, sigma: float) -> None:
        self._voter = Voter(base_classifier, num_classes)
        self.law: NoiseLaw = Gaussian(sigma)

    @property
    def base_classifier(self) -> BaseClassifier:
        """Base classifier that votes."""
        return self._voter.base_classifier

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self._voter.num_classes

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise, in pixels on [0, 1]."""
        return self.law.sigma

    @property
    def owner(self) -> object:
        """What the base classifier is a method of, or the base classifier itself."""
        return self._voter.owner

    @property
    def model_id(self) -> str:
        """Name of the base classifier in records; of a torch module it changes with its weights."""
        return self._voter.model_id

    @property
    def batch_check(self) -> BatchCheck:
        """Check that the base classifier answers each image alone, made with the first batch."""
        return self._voter.batch_check

    def __repr__(self) -> str:
        return f"SmoothedClassifier({self._voter.called}, num_classes={self.num_classes}, sigma={self.sigma})"

    @settled()
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
        stream: int = NEWEST,
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
            stream: Version of the streams of noise; 1 gives the votes of certificates that state it.

        Returns:
            A `Certificate`; for images (m, c, h, w) a list of m.

        Raises:
            InvalidInput: for what `Sampling` refuses, where n cannot certify anything at alpha, or for a sigma or a
                radius asked that is larger than any two images are apart.
            InvalidImages: for anything but finite float pixels on about [0, 1].
        """
        wanted, images = sampling_of(sampling, n0, n, alpha, rule, second_class), certifiable(x)
        limit = largest_distance(images)
        check_units(self.law, wanted.rule, limit)
        sizes = wanted.sizes(self.law, self.num_classes)
        drawn = _Drawn(whole("seed", seed), check_stream(stream), whole("batch_size", batch_size, least=1))
        certify = partial(self._certify, sampling=wanted, sizes=sizes, drawn=drawn, limit=limit)
        if images.ndim == 4 and journal is not None:
            raise InvalidInput("a journal keeps the votes of one image; wanted one image (c, h, w), or no journal")
        with self.batch_check.reserving(wanted.reserve(1 if images.ndim == 3 else len(images))):
            if images.ndim == 3:
                return certify(images, journal=journal)
            return [certify(image, journal=None) for image in images]

    @settled()
    def predict(
        self,
        x: Tensor | np.ndarray,
        *,
        n: int,
        alpha: float,
        seed: int,
        batch_size: int = 1000,
        stream: int = NEWEST,
    ) -> Any:
        """g's class at an image from n votes; wrong with probability at most alpha, else an abstention.

        Source: Cohen et al. 2019, `Predict` and Proposition 1.

        Args:
            x: Image (c, h, w) or images (m, c, h, w), float pixels on [0, 1]; a tensor or a NumPy array.
            n: Number of votes.
            alpha: Probability of a wrong class that is accepted, in (0, 1).
            seed: Seed of the noise.
            batch_size: Number of noisy copies at a time.
            stream: Version of the streams of noise.

        Returns:
            A `Prediction`; for images (m, c, h, w) a list of m.

        Raises:
            InvalidInput: if alpha is outside (0, 1), n can only abstain, or sigma is larger than any two images are
                apart.
            InvalidImages: for anything but finite float pixels on about [0, 1].
        """
        images = certifiable(x)
        confidence.check_alpha(alpha)
        smallest = math.ceil(1 - math.log2(alpha))  # unanimous votes have a p-value of 2 / 2^n
        if n < smallest:
            raise InvalidInput(f"n is {n}, which can only abstain at alpha = {alpha}; the smallest n is {smallest}")
        check_units(self.law, None, largest_distance(images))
        drawn = _Drawn(whole("seed", seed), check_stream(stream), whole("batch_size", batch_size, least=1))
        predict = partial(self._predict, n=n, alpha=alpha, drawn=drawn)
        with self.batch_check.reserving(n * (1 if images.ndim == 3 else len(images))):
            return predict(images) if images.ndim == 3 else [predict(image) for image in images]

    def answers(self, x: Tensor, *, n: int, seed: int, name: str, stream: int = NEWEST) -> Tensor:
        """The base classifier's answers to the first n noisy copies of a stream of an image, as they are; n queries.

        Args:
            x: Image (c, h, w), float pixels on [0, 1].
            n: Number of copies.
            seed: Seed of the noise.
            name: Name of the stream, such as "estimate".
            stream: Version of the streams of noise.
        """
        path = (seed, image_digest(x), name)
        with torch.inference_mode():
            (noisy,) = noisy_batches(x, self.law, 0, n, n, path, stream=check_stream(stream))
            parts = noisy.split(self._voter.at_a_time(x.numel()) or n)
            return torch.cat([self._voter.checked(part) for part in parts])

    def _certify(
        self,
        x: Tensor,
        *,
        sampling: Sampling,
        sizes: tuple[int, ...],
        drawn: _Drawn,
        limit: float,
        journal: VoteJournal | None,
    ) -> Certificate:
        """The certificate of one checked image (c, h, w) that looks at its votes at `sizes`."""
        image, rule = image_digest(x), sampling.rule
        count = partial(self._count, x, drawn=drawn, journal=journal)
        selected = int(count(sampling.n0, (drawn.seed, image, "select")).argmax())
        votes, looks, decision = self._estimate(count, (drawn.seed, image, "estimate"), sizes, selected, sampling)
        if rule is None or decision is None:
            p_lower, radius = fixed_bounds(self.law, votes, selected, sampling.alpha, sampling.second_class)
        else:
            p_lower, radius = decision.p_lower, reach(self.law, rule, decision.p_lower)
        warn_of_radius(radius, limit)
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
            seed=drawn.seed,
            queries=sampling.n0 + looks[-1][0],
            image=image,
            second_class=sampling.second_class,
            rule=sampling.record(),
            looks=tuple(looks) if rule is not None else None,
            stream=drawn.stream,
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

    def _predict(self, x: Tensor, *, n: int, alpha: float, drawn: _Drawn) -> Prediction:
        """The prediction at one checked image (c, h, w)."""
        counts = self._count(x, n, (drawn.seed, image_digest(x), "predict"), drawn=drawn)
        second, first = np.argsort(counts, kind="stable")[-2:]
        p_value = confidence.two_sided_p_value(int(counts[first]), int(counts[second]))
        label = int(first) if p_value <= alpha else None
        votes = tuple(int(count) for count in counts)
        return Prediction(label, votes, p_value, n, alpha, self.sigma, drawn.seed, n, drawn.stream)

    def _count(
        self,
        x: Tensor,
        n: int,
        path: tuple[int, str, str],
        *,
        drawn: _Drawn,
        journal: VoteJournal | None = None,
        entry: str | None = None,
        before: np.ndarray | None = None,
        kept: dict[int, Tensor] | None = None,
    ) -> np.ndarray:
        """Votes per class (K,) of the first n samples of the stream at `path`: seed, image and name.

        They go on from `before`, the votes of its first samples, or further from what the journal holds under `entry`
        (by default the stream's name). kept: as in `noisy_batches`.
        """
        entry = entry or path[-1]
        _, votes = journal.recall(entry) if journal else (0, None)
        held = before if votes is None else votes
        total = np.zeros(self.num_classes, dtype=np.int64) if held is None else held.copy()
        done, witness = int(total.sum()), journal if isinstance(journal, Witness) else None
        with torch.inference_mode():
            for noisy in noisy_batches(x, self.law, done, n, drawn.batch_size, path, kept, drawn.stream):
                # Votes are kept as they are paid for: no more than the box is asked at a time is ever lost.
                for asked in noisy.split(self._voter.at_a_time(x.numel()) or len(noisy)):
                    again, outputs = self.batch_check.sample(asked), self._voter.ask(asked)
                    total += self._voter.votes(outputs, len(asked))
                    if witness:
                        witness.see(path[-1], done, outputs)
                    done += len(asked)
                    if journal:
                        journal.note(entry, done, total)
                    if again is not None:
                        self.batch_check.compare(again, outputs, self._voter.checked)
                    del asked
                del noisy  # before the one after the next is drawn: memory is two batches
        return total


class _Drawn(NamedTuple):
    """How noise is drawn."""

    seed: int
    stream: int
    batch_size: int

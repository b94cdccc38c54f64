"""Randomized smoothing of any classifier that is a callable (Cohen, Rosenfeld & Kolter, ICML 2019).

g(x) = argmax_c P[f(x + δ) = c], δ ~ N(0, σ² I). Nothing here knows what f is. The noise that an image sees depends on
the seed and its pixels alone (`noise`): not on batches, stopping rules or interruptions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certibox import confidence
from certibox.certification.alone import BatchCheck
from certibox.certification.asking import BaseClassifier, Voter
from certibox.certification.batches import Batches
from certibox.certification.images import certifiable, check_units, image_digest, largest_distance
from certibox.certification.interleaving import Interleaving, Order
from certibox.certification.noise import NEWEST, noisy
from certibox.certification.pieces import PREDICT, Certifying, Drawn, Piece, Poll, VoteJournal
from certibox.certification.predicting import Predicting, predicted
from certibox.certification.sampling import Sampling, sampling_of, whole
from certibox.confidence.gaussian import Gaussian, NoiseLaw
from certibox.confidence.ranks import RankVerification
from certibox.confidence.stopping import StoppingRule
from certibox.errors import InvalidInput
from certibox.records.checks import check_stream
from certibox.seeds.switches import settled


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
        drawn, at_once = Drawn(self.law, whole("seed", seed), check_stream(stream)), whole("batch_size", batch_size, 1)
        if images.ndim == 4 and journal is not None:
            raise InvalidInput("a journal keeps the votes of one image; wanted one image (c, h, w), or no journal")
        begun = [
            Certifying(image, drawn, self.num_classes, wanted, sizes, limit, journal)
            for image in ([images] if images.ndim == 3 else images)
        ]
        self._ask(begun, at_once, wanted.reserve(len(begun)))
        made = [one.certificate() for one in begun]
        return made[0] if images.ndim == 3 else made

    @settled()
    def predict(
        self,
        x: Tensor | np.ndarray,
        *,
        n: int,
        alpha: float,
        seed: int,
        rule: RankVerification | None = None,
        n0: int = 0,
        batch_size: int = 1000,
        stream: int = NEWEST,
    ) -> Any:
        """g's class at an image from n votes; wrong with probability at most alpha, else an abstention.

        With a rule, votes end as soon as they prove a class to be the likeliest, at n at the latest: some tens of votes
        where n alone would take a thousand. The proof stands in `RankVerification`.

        Source: Cohen et al. 2019, `Predict` and Proposition 1.

        Args:
            x: Image (c, h, w) or images (m, c, h, w), float pixels on [0, 1]; a tensor or a NumPy array.
            n: Number of votes; with a rule, the maximum of them.
            alpha: Probability of a wrong class that is accepted, in (0, 1).
            seed: Seed of the noise.
            rule: Rule that ends the votes; None draws all n.
            n0: Number of first votes that weigh the classes, for a rule only: 0 weighs them alike, which is good for
                some tens of classes.
            batch_size: Number of noisy copies at a time.
            stream: Version of the streams of noise.

        Returns:
            A `Prediction`; for images (m, c, h, w) a list of m.

        Raises:
            InvalidInput: if alpha is outside (0, 1), n can only abstain, sigma is larger than any two images are
                apart, or n0 is given without a rule.
            InvalidImages: for anything but finite float pixels on about [0, 1].
        """
        images = certifiable(x)
        confidence.check_alpha(alpha)
        if n0 and rule is None:
            raise InvalidInput(
                f"n0 is {n0} without a rule; wanted rule=RankVerification(), which weighs classes by them"
            )
        smallest = math.ceil(1 - math.log2(alpha)) if rule is None else 1  # unanimous votes have a p-value of 2 / 2^n
        if n < smallest:
            raise InvalidInput(f"n is {n}, which can only abstain at alpha = {alpha}; the smallest n is {smallest}")
        check_units(self.law, None, largest_distance(images))
        drawn, at_once = Drawn(self.law, whole("seed", seed), check_stream(stream)), whole("batch_size", batch_size, 1)
        each = [images] if images.ndim == 3 else list(images)
        if rule is not None:
            early = [self.begin_prediction(image, n0, n, alpha, rule, drawn) for image in each]
            self._ask(early, at_once, n0 + n)
            made = [poll.prediction() for poll in early]
            return made[0] if images.ndim == 3 else made
        polls = [Poll(image, drawn, self.num_classes) for image in each]
        for poll in polls:
            poll.want(PREDICT, 0, n)
        self._ask(polls, at_once, n * len(polls))
        made = [predicted(poll, n, alpha) for poll in polls]
        return made[0] if images.ndim == 3 else made

    def _ask(self, polls: Sequence[Poll], batch_size: int, reserve: int) -> None:
        """Ask until every poll is finished; `reserve`: queries that they may take."""
        with self.batch_check.reserving(reserve):
            for _ in Interleaving(self._voter, polls, batch_size).finished():
                pass

    def begin(self, x: Tensor, sampling: Sampling, drawn: Drawn, journal: VoteJournal | None = None) -> Certifying:
        """The certificate of an image, of which nothing is asked yet; `interleaved` asks.

        Args:
            x: Image (c, h, w), float pixels on [0, 1].
            sampling: Numbers of votes, alpha and rule.
            drawn: How the noise is drawn.
            journal: Place that keeps votes as they are paid for.

        Raises:
            InvalidInput: as `certify` does.
            InvalidImages: as `certify` does.
        """
        image = certifiable(x)
        limit = largest_distance(image)
        check_units(self.law, sampling.rule, limit)
        sizes = sampling.sizes(self.law, self.num_classes)
        return Certifying(image, drawn, self.num_classes, sampling, sizes, limit, journal)

    def begin_prediction(
        self, x: Tensor, n0: int, n: int, alpha: float, rule: RankVerification, drawn: Drawn
    ) -> Predicting:
        """The prediction of an image that ends early, of which nothing is asked yet.

        Args:
            x: Image (c, h, w), float pixels on [0, 1].
            n0: Number of first votes, which weigh the classes.
            n: Maximum number of votes that prove one.
            alpha: Probability of a wrong class that is accepted, in (0, 1).
            rule: Rule that ends the votes.
            drawn: How the noise is drawn.

        Raises:
            InvalidInput: as `predict` does.
            InvalidImages: as `predict` does.
        """
        image = certifiable(x)
        check_units(self.law, None, largest_distance(image))
        first = whole("n0", n0, 0, " of votes")
        return Predicting(image, drawn, self.num_classes, first, n, confidence.check_alpha(alpha), rule)

    def batches(self, batch_size: int) -> Batches:
        """What asks the base classifier about samples of images that the caller chooses, batch by batch.

        Args:
            batch_size: Most noisy copies at a time.
        """
        return Batches(self._voter, batch_size)

    def interleaved(
        self,
        begun: Iterable[Certifying],
        batch_size: int,
        order: Order[Certifying],
        saw: Callable[[Certifying, Piece, Tensor], None] | None = None,
        together: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Generator[Certifying]:
        """Certificates as they are finished, whose votes come from shared batches; see `Interleaving`.

        Args:
            begun: Certificates of `begin`, made as they are needed.
            batch_size: Number of noisy copies at a time.
            order: Whose samples go into the next batch.
            saw: Function that is shown each part of an answer.
            together: What is entered while a batch is counted.
        """
        yield from Interleaving(self._voter, begun, batch_size, order, saw, together).finished()

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
            copies = torch.empty((n, *x.shape), dtype=x.dtype, device=x.device)
            noisy(x, self.law, 0, path, copies, stream=check_stream(stream))
            parts = copies.split(self._voter.at_a_time(x.numel()) or n)
            return torch.cat([self._voter.checked(part) for part in parts])

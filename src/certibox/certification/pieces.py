"""One image's votes as pieces of work: which samples it wants next, and what they come to.

A piece is a range of samples of one stream. Pieces may be asked in any batches, together with those of other images,
and come back in any order: the noise of a sample depends on the image and the seed alone, and votes are sums.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from certibox.certification.certificate import Certificate, fixed_bounds, reach
from certibox.certification.images import image_digest, warn_of_radius
from certibox.certification.noise import foreseen, noisy
from certibox.certification.sampling import Sampling
from certibox.confidence.gaussian import NoiseLaw
from certibox.confidence.stopping import Decision, asked, decided, watched

SELECT, ESTIMATE, PREDICT = "select", "estimate", "predict"  # names of the streams, part of what a seed means


class Piece(NamedTuple):
    """Samples start ... stop - 1 of a stream of an image's noise."""

    name: str
    start: int
    stop: int


class VoteJournal(Protocol):
    """Where votes are kept as they are paid for, so that an interrupted certificate goes on where it stopped."""

    def recall(self, stream: str) -> Sequence[tuple[int, int, np.ndarray]]:
        """The ranges of samples (start, stop) of a stream that were counted, and the votes per class (K,) of each.

        Args:
            stream: Name of the stream of noise: "select" or "estimate".
        """
        ...

    def note(self, stream: str, start: int, stop: int, votes: np.ndarray) -> None:
        """Keep the votes of a range of samples.

        Args:
            stream: Name of the stream.
            start: Number of the first sample.
            stop: Number after the last sample.
            votes: Votes per class (K,) of these samples.
        """
        ...


class Drawn(NamedTuple):
    """How noise is drawn."""

    law: NoiseLaw
    seed: int
    stream: int


class Poll:
    """Votes of one image: so many samples of some streams, in whatever batches.

    Args:
        x: Image (c, h, w), checked.
        drawn: How its noise is drawn.
        num_classes: Number of classes K.
        journal: Place that keeps votes as they are paid for.
    """

    def __init__(self, x: Tensor, drawn: Drawn, num_classes: int, journal: VoteJournal | None = None) -> None:
        self.x, self.image, self.drawn, self.journal = x, image_digest(x), drawn, journal
        self.wanted: deque[Piece] = deque()
        """Pieces that nobody has begun yet, in order."""
        self.votes: dict[str, np.ndarray] = {}
        """Votes per class (K,) of each stream."""
        self.seconds = 0.0
        """Seconds of the run that went into this image."""
        self._num_classes = num_classes
        self._missing: dict[str, int] = {}  # samples that were wanted and have not come back
        self._kept: dict[str, dict[int, Tensor]] = {}
        self._held: dict[str, list[tuple[int, int, np.ndarray]]] = {}  # what the journal knew, by stream
        self._ended = False  # before its votes were in

    @property
    def finished(self) -> bool:
        """Whether nothing more is wanted."""
        return not self._missing

    @property
    def missing(self) -> int:
        """Number of samples that are wanted and have not come back."""
        return sum(self._missing.values())

    @property
    def blocks(self) -> int:
        """Number of values of noise that are kept for pieces to come."""
        return sum(block.numel() for kept in self._kept.values() for block in kept.values())

    def let_go(self) -> None:
        """Drop the noise that is kept for pieces to come; it is drawn again where it is wanted."""
        self._kept = {}  # and not cleared: another thread may be drawing from it

    def want(self, name: str, start: int, stop: int) -> None:
        """Ask for samples of a stream, those that the journal has left out.

        Args:
            name: Name of the stream.
            start: Number of the first sample.
            stop: Number after the last sample.
        """
        if name not in self._held:
            self._held[name] = sorted(self.journal.recall(name), key=lambda part: part[:2]) if self.journal else []
            self.votes[name] = np.zeros(self._num_classes, dtype=np.int64)
        at = start
        for first, last, votes in self._held[name]:
            if first >= at and last <= stop:  # two images that are the same may have left the same range twice
                self._add(name, at, first)
                self.votes[name] += votes
                at = max(at, last)
        self._add(name, at, stop)

    def _add(self, name: str, start: int, stop: int) -> None:
        if start < stop:
            self.wanted.append(Piece(name, start, stop))
            self._missing[name] = self._missing.get(name, 0) + stop - start

    def begin(self, most: int) -> Piece:
        """The next piece, of at most so many samples.

        Args:
            most: Number of samples.
        """
        piece = self.wanted.popleft()
        if piece.stop - piece.start > most:
            middle = piece.start + most
            self.wanted.appendleft(piece._replace(start=middle))
            piece = piece._replace(stop=middle)
        return piece

    def give_back(self, piece: Piece) -> None:
        """Put a piece that was begun, or its end, back to the front.

        Args:
            piece: Piece of this image.
        """
        if self.wanted and self.wanted[0].name == piece.name and self.wanted[0].start == piece.stop:
            piece = piece._replace(stop=self.wanted.popleft().stop)
        self.wanted.appendleft(piece)

    def draw(self, piece: Piece, out: Tensor, threads: Any = None) -> None:
        """Fill a part of a batch with the noisy copies of a piece.

        Args:
            piece: Piece of this image.
            out: Place of them, (n, c, h, w).
            threads: Pool that draws blocks beside one another; None to draw them one by one.
        """
        path = (self.drawn.seed, self.image, piece.name)
        kept = self._kept.setdefault(piece.name, {})
        noisy(self.x, self.drawn.law, piece.start, path, out, kept, self.drawn.stream, threads)

    def foresee(self, most: int) -> int:
        """Draw noise that may be wanted after what is under way, while a processor has nothing else to do.

        Args:
            most: Number of samples.

        Returns:
            The number of samples that were drawn; 0 for a simple poll, which wants nothing more.
        """
        return 0

    def take(self, piece: Piece, votes: np.ndarray) -> None:
        """Count a piece that came back; not one that comes after the end.

        Args:
            piece: Piece of this image.
            votes: Votes per class (K,) of it.
        """
        if self.journal:
            self.journal.note(*piece, votes)
        if self._ended:
            return
        self.votes[piece.name] += votes
        self._missing[piece.name] -= piece.stop - piece.start
        if not self._missing[piece.name]:
            del self._missing[piece.name]
        if not self._missing:
            self.go_on()

    def go_on(self) -> None:
        """Decide what is wanted next, now that all that was wanted is there; nothing for a simple poll."""

    def leave_out(self, seen: np.ndarray) -> None:
        """End the votes where they were at the last look; what is under way is left out.

        Args:
            seen: Votes per class (K,) at the last look.
        """
        self.votes[ESTIMATE] = seen
        self.wanted.clear()
        self._missing.clear()
        self._kept = {}  # another thread may be drawing from what it was
        self._ended = True


class Certifying(Poll):
    """The certificate of one image under way.

    The votes that pick the class and those of the first look are wanted together, for neither depends on the other;
    each look after it is wanted once the one before has said to go on.

    Args:
        x: Image (c, h, w), checked.
        drawn: How its noise is drawn.
        num_classes: Number of classes K.
        sampling: Numbers of votes, alpha and rule.
        sizes: Sizes of the looks, ascending.
        limit: Distance of the farthest images from x.
        journal: Place that keeps votes as they are paid for.
    """

    def __init__(
        self,
        x: Tensor,
        drawn: Drawn,
        num_classes: int,
        sampling: Sampling,
        sizes: tuple[int, ...],
        limit: float,
        journal: VoteJournal | None = None,
    ) -> None:
        super().__init__(x, drawn, num_classes, journal)
        self.sampling, self._sizes, self._limit = sampling, sizes, limit
        self._seen = np.zeros(0, dtype=np.int64)  # votes at the last look
        self.looks: list[tuple[int, int]] = []
        """Pairs (samples so far, votes for the class so far), one a look."""
        self.decision: Decision | None = None
        """What the rule said at the last look."""
        rule = sampling.rule
        self._thresholds = asked(rule, drawn.law) if rule is not None else ()
        self._goes_on = None if rule is None else watched(rule, sampling.n, sampling.alpha, self._thresholds)
        self.want(SELECT, 0, sampling.n0)
        self.want(ESTIMATE, 0, sizes[0])
        if not self._missing:
            self.go_on()

    @property
    def most_left(self) -> int:
        """Most queries that it may still take."""
        most = self.sampling.n0 + self.sampling.n
        return 0 if self.finished else most - sum(int(votes.sum()) for votes in self.votes.values())

    def foresee(self, most: int) -> int:
        """Draw noise of the next look."""
        at = len(self.looks)
        if at + 1 >= len(self._sizes):
            return 0
        start, stop = self._sizes[at], min(self._sizes[at + 1], self._sizes[at] + most)
        path = (self.drawn.seed, self.image, ESTIMATE)
        kept = self._kept.setdefault(ESTIMATE, {})
        foreseen(self.x, self.drawn.law, start, stop, path, kept, self.drawn.stream)
        return stop - start

    def go_on(self) -> None:
        """Look at the votes, and want the next look's where the rule says so."""
        while not self._missing:
            size, votes = self._sizes[len(self.looks)], int(self.votes[ESTIMATE][self.selected])
            self.looks.append((size, votes))
            self._seen = self.votes[ESTIMATE].copy()
            if self._ends(size, votes):
                self._kept.clear()
                return
            self.want(ESTIMATE, size, self._sizes[len(self.looks)])

    def end(self) -> None:
        """End the votes at the last look, which the rule did not; what came after it is left out."""
        rule, sampling = self.sampling.rule, self.sampling
        assert rule is not None
        self.leave_out(self._seen)
        self.decision = decided(rule, self.looks, sampling.n, sampling.alpha, self._thresholds)

    def _ends(self, size: int, votes: int) -> bool:
        rule, sampling = self.sampling.rule, self.sampling
        if rule is None:
            return True
        if self._goes_on is not None and size < sampling.n and self._goes_on(size, votes):
            return False
        self.decision = decided(rule, self.looks, sampling.n, sampling.alpha, self._thresholds)
        return self.decision.stop

    @property
    def selected(self) -> int:
        """The class that the selection votes picked."""
        return int(self.votes[SELECT].argmax())

    def certificate(self) -> Certificate:
        """What the votes prove, once it is finished."""
        sampling, law, votes = self.sampling, self.drawn.law, tuple(int(count) for count in self.votes[ESTIMATE])
        if sampling.rule is None or self.decision is None:
            p_lower, radius = fixed_bounds(law, votes, self.selected, sampling.alpha, sampling.second_class)
        else:
            p_lower, radius = self.decision.p_lower, reach(law, sampling.rule, self.decision.p_lower)
        warn_of_radius(radius, self._limit)
        return Certificate(
            label=self.selected if radius > 0 else None,
            radius=radius,
            p_lower=p_lower,
            selected=self.selected,
            counts=votes,
            n0=sampling.n0,
            n=self.looks[-1][0],
            alpha=sampling.alpha,
            sigma=law.sigma,
            seed=self.drawn.seed,
            queries=sampling.n0 + self.looks[-1][0],
            image=self.image,
            second_class=sampling.second_class,
            rule=sampling.record(),
            looks=tuple(self.looks) if sampling.rule is not None else None,
            stream=self.drawn.stream,
        )

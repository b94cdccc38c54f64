"""One image's prediction as pieces of work: no radius, so that far fewer votes end it."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from certibox import confidence
from certibox.certification.certificate import Prediction
from certibox.certification.pieces import ESTIMATE, PREDICT, SELECT, Drawn, Poll
from certibox.confidence.ranks import RankDecision, RankVerification


class Predicting(Poll):
    """The prediction of one image under way, which ends as soon as the votes prove a class.

    Its votes are those of a certificate of the same image and seed.

    Args:
        x: Image (c, h, w), checked.
        drawn: How its noise is drawn.
        num_classes: Number of classes K.
        n0: Number of votes that come first, and weigh the classes.
        n: Maximum number of votes that prove one.
        alpha: Probability of a wrong class that is accepted.
        rule: Rule that ends the votes.
    """

    def __init__(
        self, x: Tensor, drawn: Drawn, num_classes: int, n0: int, n: int, alpha: float, rule: RankVerification
    ) -> None:
        super().__init__(x, drawn, num_classes)
        self._n0, self._n, self._alpha, self._rule = n0, n, alpha, rule
        self._sizes = rule.sizes(n, alpha)
        self.looks = 0
        """Number of looks at the votes so far."""
        self._seen = np.zeros(num_classes, dtype=np.int64)  # votes at the last look
        self._decision: RankDecision | None = None
        self.want(SELECT, 0, n0)
        self.want(ESTIMATE, 0, self._sizes[0])

    def go_on(self) -> None:
        """Look at the votes, and want the next look's where the rule says so."""
        self._decision = self._rule.decide(self.votes[ESTIMATE].tolist(), self.first, self._n, self._alpha)
        self._seen = self.votes[ESTIMATE].copy()
        self.looks += 1
        if self._decision.stop:
            self._kept.clear()
        else:
            self.want(ESTIMATE, self._sizes[self.looks - 1], self._sizes[self.looks])

    def end(self) -> None:
        """End the votes at the last look, which proved no class: an abstention. What came after it is left out."""
        self.leave_out(self._seen)

    @property
    def most_left(self) -> int:
        """Most queries that it may still take."""
        return 0 if self.finished else self._n0 + self._n - sum(int(votes.sum()) for votes in self.votes.values())

    @property
    def first(self) -> tuple[int, ...]:
        """First votes per class (K,)."""
        return tuple(int(count) for count in self.votes[SELECT])

    def prediction(self) -> Prediction:
        """What the votes prove, once it is finished."""
        assert self._decision is not None
        n, drawn = self._sizes[self.looks - 1], self.drawn
        return Prediction(
            label=self._decision.label,
            counts=tuple(int(count) for count in self.votes[ESTIMATE]),
            p_value=self._decision.p_value,
            n=n,
            alpha=self._alpha,
            sigma=drawn.law.sigma,
            seed=drawn.seed,
            queries=self._n0 + n,
            stream=drawn.stream,
            first=self.first,
            rule={**self._rule.as_dict(), "cap": self._n},
        )


def predicted(poll: Poll, n: int, alpha: float) -> Prediction:
    """The prediction of a finished poll of the stream "predict".

    Args:
        poll: Poll of n samples.
        n: Number of votes.
        alpha: Probability of a wrong class that is accepted.
    """
    counts = poll.votes[PREDICT]
    second, first = np.argsort(counts, kind="stable")[-2:]
    p_value = confidence.two_sided_p_value(int(counts[first]), int(counts[second]))
    votes = tuple(int(count) for count in counts)
    label = int(first) if p_value <= alpha else None
    return Prediction(label, votes, p_value, n, alpha, poll.drawn.law.sigma, poll.drawn.seed, n, poll.drawn.stream)

"""What a pilot says of the next certificates: mean votes an image, and the share of images it may have missed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import beta

from certibox.confidence.forecast import answer, forecast
from certibox.confidence.gaussian import Gaussian
from certibox.confidence.ranks import RankVerification
from certibox.confidence.recorded import record
from certibox.confidence.sequential import Rule
from certibox.confidence.stopping import asked
from certibox.errors import InvalidInput
from certibox.records.certificates import CertificateRow, require_votes

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of what a pilot leaves open about an image: the middles of five equal parts


def expected_samples(rows: Sequence[CertificateRow], rule: Rule, n: int) -> tuple[float, float]:
    """Mean estimation votes an image under a stopping rule, and the standard error of that mean, from a pilot.

    Where the rows ran under this very rule and maximum n, their own n are averaged. Else each image's votes leave
    Beta(s + 1/2, f + 1/2) of its probability (Jeffreys' prior; the share of successes alone would take unanimous votes
    for certainty), and `forecast` gives the exact expectation at its `QUANTILES`. The error is over images.

    Args:
        rows: Certificates of some images of the kind to come, by any rule or n, of one sigma and alpha.
        rule: Stopping rule of the certificates to come.
        n: Maximum number of estimation votes an image.

    Returns:
        The mean and its standard error.

    Raises:
        InvalidInput: There are fewer than two rows, or several sigmas or alphas.
    """
    require_votes(rows)
    if len(rows) < 2 or len({(row.sigma, row.alpha) for row in rows}) > 1:
        raise InvalidInput(f"the pilot has {len(rows)} rows; wanted at least 2, of one sigma and one alpha")
    sigma, alpha = rows[0].sigma, rows[0].alpha
    if all(row.rule == record(rule, n, alpha) for row in rows):
        drawn = [float(row.n) for row in rows]
    else:
        votes, thresholds = [(row.counts[row.selected], row.n) for row in rows], asked(rule, Gaussian(sigma))
        expected = {
            (s, trials): np.mean(
                [forecast(rule, float(p), n, alpha, thresholds).samples for p in _posterior(s, trials)]
            )
            for s, trials in set(votes)
        }
        drawn = [float(expected[seen]) for seen in votes]
    return float(np.mean(drawn)), float(np.std(drawn, ddof=1) / math.sqrt(len(drawn)))


def expected_answer(rows: Sequence[CertificateRow], rule: RankVerification, n: int, alpha: float) -> float:
    """Mean votes of a prediction under a rule that ends early, from a pilot.

    Of each image the votes for its two likeliest classes leave Beta(s + 1/2, f + 1/2) of the first one's share, whose
    `QUANTILES` are averaged over; all other votes come on top. Classes have equal weights, as without first votes.

    Args:
        rows: Certificates of some images of the kind to come.
        rule: Rule that ends the votes.
        n: Maximum number of votes of a prediction.
        alpha: Probability of a wrong class that is accepted.

    Raises:
        InvalidInput: There are no rows.
    """
    require_votes(rows)
    if not rows:
        raise InvalidInput("the pilot has no rows; wanted certificates of some images")
    expected = []
    for row in rows:
        f, s = sorted(row.counts)[-2:]
        share = (s + f) / row.n
        most = max(round(n * share), rule.sizes(n, alpha)[0])
        quantiles = np.maximum(_posterior(s, s + f), 0.5)
        votes = [answer(rule, float(p), most, alpha / len(row.counts))[0] for p in quantiles]
        expected.append(min(float(n), float(np.mean(votes)) / share))
    return float(np.mean(expected))


def unseen(piloted: int, mean: float, n: int) -> tuple[float, float]:
    """The largest share of images that a pilot may have missed altogether, and the mean votes an image in that case.

    If a share s of all images takes n votes each, none of them is among the m images of the pilot with probability
    (1 − s)^m. This probability is 5 % at s = 1 − 0.05^(1/m), the share that is returned. The mean then counts n votes
    for that share of the images, and the pilot's mean for all others.

    Args:
        piloted: Number m of images of the pilot.
        mean: Mean estimation votes an image that the pilot expects.
        n: Maximum number of estimation votes an image.
    """
    share = 1.0 - 0.05 ** (1.0 / piloted)
    return share, (1.0 - share) * mean + share * n


def _posterior(successes: int, trials: int) -> np.ndarray:
    """(5,) quantiles of the probability that the votes of an image leave."""
    return beta.ppf(QUANTILES, successes + 0.5, trials - successes + 0.5)

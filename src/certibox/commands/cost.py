"""What a plan would spend, before it is spent: training, certification, and every answer of the smoothed model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import beta

from certibox.certification.certificate import out_of_reach, require_certifiable
from certibox.commands.fields import Needs, option
from certibox.commands.options import ALPHA, EstimatorOptions, RuleOptions
from certibox.confidence.forecast import forecast
from certibox.confidence.gaussian import Gaussian
from certibox.confidence.recorded import record
from certibox.confidence.sequential import Rule
from certibox.confidence.stopping import asked
from certibox.errors import InvalidInput
from certibox.estimators import RGE, GradientEstimator, Guided
from certibox.estimators.step_size import DIRECTIONS, STEPS
from certibox.records.certificates import CertificateRow, read_rows
from certibox.training.methods import METHODS
from certibox.training.surrogate import PROBE_DIRECTIONS, PROBED

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of what a pilot leaves open about an image: the middles of five equal parts


@dataclass(frozen=True)
class QueryCost(EstimatorOptions, RuleOptions):
    """Print what a plan would spend, in queries and money, before a single query is sent.

    The defaults are those of `train` and `certify`. A sequential rule spends what the images ask for, n votes at most:
    certify a few of them first, with any n or rule, and give the file as --pilot; sigma and alpha are the pilot's. What
    `certify` would refuse, such as an n too small for the radii, is refused here.

    example: certibox query-cost --train-images 1000 --epochs 3 --d-z 32 --certify-images 100 --n 1000 --price 1.0
    """

    NEEDS: ClassVar = (
        Needs(
            "method outputs estimator q mu central surrogate ask distill jitter votes target epochs train_batch_size "
            "validation validation_votes validate_every d_z live",
            lambda o: o.train_images > 0,
            "without --train-images",
            "--train-images",
        ),
        Needs(
            "rule n0 n radii tolerance futility alpha sigma pilot",
            lambda o: o.certify_images > 0,
            "without --certify-images",
            "--certify-images",
        ),
        Needs("alpha sigma", lambda o: o.pilot is None, "with --pilot, which has its own", "no --pilot"),
        Needs(
            "live",
            lambda o: o.estimator == "cge" and METHODS[o.method].order == 0,
            "but with --estimator cge and a ZO --method",
            "both",
        ),
    )

    method: Literal["RS", "DS", "FO-DS", "FO-AE-DS", "ZO-DS", "ZO-AE-DS"] = option(
        "method to train, as in `train`", "ZO-AE-DS"
    )
    outputs: Literal["logits", "probabilities", "labels", "values"] = option(
        "what the box answers with, as in `train`: labels have no slope, so guided neither measures nor corrects",
        "logits",
    )
    train_images: int = option("unlabelled images to train on, validation included", 0)
    epochs: int = option("epochs on the full objective", 20)
    train_batch_size: int = option("images a step; a last step of one image is dropped", 64)
    validation: float = option("share of them held out for selection", 0.1)
    validation_votes: int = option("noisy votes on each held-out image and validation", 4)
    validate_every: int | None = option("epochs between validations, by default each", None)
    d_z: int | None = option(
        "dimension that the estimator works on: the embedding's, or all pixels for ZO-DS; guided needs it only where q "
        "is given",
        None,
    )
    live: float = option(
        "share of the coordinates that are live, for cge in front of a ReLU encoder; measure it, 1 is the worst case",
        1.0,
    )
    certify_images: int = option("images to certify", 0)
    sigma: float | None = option("standard deviation of the noise, as in `certify`; wanted with radii", None)
    alpha: float = option("probability that one certificate is false, as in `certify`", ALPHA)
    pilot: str | None = option("certificates.jsonl of a few images, to expect the votes of a sequential rule", None)
    serve_answers: int = option("answers of the smoothed model to serve", 0)
    serve_n: int = option("votes an answer", 1000)
    price: float = option("price of a thousand queries", 0.0)


@dataclass(frozen=True)
class Cost:
    """Queries of a plan, by what they are for.

    measuring: of the step mu at the start, and of the surrogate's gradient on the way. training: all other queries of
    an estimator, those of distillation included. samples: the estimation votes an image that a pilot lets a sequential
    rule expect, and their standard error. piloted: the images of that pilot. beyond: a line on the radii that n cannot
    certify, where there are some.
    """

    targets: int
    measuring: int
    training: int
    validation: int
    certification: int
    serving: int
    samples: tuple[float, float] | None = None
    piloted: int = 0
    beyond: str | None = None

    @property
    def total(self) -> int:
        """All of them."""
        training = self.targets + self.measuring + self.training + self.validation
        return training + self.certification + self.serving


def plan(options: QueryCost) -> Cost:
    """Queries of a plan: `train` and `certify_dataset` spend these to the query where every coordinate is live.

    Corrections that guided buys of its own accord (q not given) are not included: it buys none while its surrogate is
    good. A sequential rule's votes are expected from a pilot; without one its cap is counted. First-order passes
    through a white box are not queries. A fingerprint, 8 queries each time, and the check of TF32 on a GPU are not
    included.
    Errors: `InvalidInput` for shares outside [0, 1], counts below their least value, a pilot without a rule and an n
    that cannot certify.
    """
    _check(options)
    n0, n = options.sample_sizes()
    pilot = None if options.pilot is None else read_rows(options.pilot)
    rule = _rule(options, n, pilot)
    if pilot is not None and rule is None:
        raise InvalidInput("a pilot tells when a sequential rule stops, and rule is fixed; wanted --rule e-process")
    samples = None if pilot is None or rule is None else expected_samples(pilot, rule, n)
    held = round(options.train_images * options.validation)
    measuring, training = _estimates(options, options.train_images - held) if _asks(options) else (0, 0)
    return Cost(
        targets=options.train_images if METHODS[options.method].order is not None else 0,
        measuring=measuring,
        training=training,
        validation=held * options.validation_votes * _validations(options) if _asks(options) else 0,
        certification=round(options.certify_images * (n0 + (samples[0] if samples else n))),
        serving=options.serve_answers * options.serve_n,
        samples=samples,
        piloted=len(pilot or ()),
        beyond=_beyond(options, rule, n, pilot) if options.certify_images else None,
    )


def _rule(options: QueryCost, n: int, pilot: Sequence[CertificateRow] | None) -> Rule | None:
    """The stopping rule, None for a fixed n; what is to be certified is refused as `certify` does."""
    sigma, alpha = _noise(options, pilot)
    if sigma is None and pilot is None and options.radii is not None:
        raise InvalidInput(f"radii are {options.radii}, but sigma is not given; wanted it, such as --sigma 0.25")
    rule = options.build_rule(1.0 if sigma is None else sigma)  # the usual radii are in units of it
    if options.certify_images:
        require_certifiable(n, alpha)
    if options.certify_images and rule is not None:
        try:
            rule.sizes(n, alpha, asked(rule, Gaussian(1.0 if sigma is None else sigma)))
        except InvalidInput as error:
            raise InvalidInput(f"{error}{' (r in units of sigma)' if sigma is None else ''}") from error
    return rule


def _noise(options: QueryCost, pilot: Sequence[CertificateRow] | None) -> tuple[float | None, float]:
    """Sigma, None where it is not known, and alpha: the pilot's where there is one."""
    return (pilot[0].sigma, pilot[0].alpha) if pilot else (options.sigma, options.alpha)


def expected_samples(rows: Sequence[CertificateRow], rule: Rule, n: int) -> tuple[float, float]:
    """Mean estimation votes an image under `rule` with the cap n, and the standard error of that mean, from a pilot.

    rows: certificates of some images of the kind to come, by any rule or n, of one sigma and alpha. Where they ran
    under this very rule and cap, their own n are averaged. Else each image's votes leave Beta(s + 1/2, f + 1/2) of its
    probability (Jeffreys' prior; the share of successes alone would take unanimous votes for certainty), and `forecast`
    gives the exact expectation at its `QUANTILES`. The error is over images.
    Errors: `InvalidInput` for fewer than two rows, or several sigmas or alphas.
    """
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


def unseen(piloted: int, mean: float, n: int) -> tuple[float, float]:
    """What a pilot of so many images cannot exclude: the share of images of a kind that it lacks, and the mean then.

    A kind of share s is missing from m images with probability (1 − s)^m, below 5 % only for s > 1 − 0.05^(1/m). The
    mean is that of the pilot, `mean`, on the rest, with all n votes on each image of that kind.
    """
    share = 1.0 - 0.05 ** (1.0 / piloted)
    return share, (1.0 - share) * mean + share * n


def _posterior(successes: int, trials: int) -> np.ndarray:
    """(5,) quantiles of the probability that the votes of an image leave."""
    return beta.ppf(QUANTILES, successes + 0.5, trials - successes + 0.5)


def _check(options: QueryCost) -> None:
    for name in ("validation", "live"):
        if not 0 <= getattr(options, name) <= 1:
            raise InvalidInput(f"{name} is {getattr(options, name)}; wanted a share from 0 to 1")
    least = {"train_batch_size": 2, "d_z": 1, "validate_every": 1}
    counts = ("train_images", "epochs", "validation_votes", "certify_images", "n", "serve_answers", "serve_n")
    for name in (*counts, "price", *least):
        value, low = getattr(options, name), least.get(name, 0)
        if value is not None and not value >= low:
            raise InvalidInput(f"{name} is {value}; wanted at least {low}")


def run(options: QueryCost) -> None:
    """`certibox query-cost`."""
    cost = plan(options)
    table = Table("what for", "queries", "price", title="What this plan would spend")
    for name in ("targets", "measuring", "training", "validation", "certification", "serving", "total"):
        queries = getattr(cost, name)
        table.add_row(name, f"{queries:,}", f"{queries / 1000 * options.price:,.2f}" if options.price else "–")
    for column in table.columns[1:]:
        column.justify = "right"
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    for line in _notes(options, cost):
        console.print(line)


def _notes(options: QueryCost, cost: Cost) -> list[str]:
    """What the table cannot say: what is only the least, or only the most, that will be spent."""
    lines, (_, n) = [], options.sample_sizes()
    if options.certify_images or options.serve_answers:
        each = f"serving costs {options.serve_n:,} queries an answer"
        lines.append(f"{each}: certificates speak of the smoothed model, not of the box")
    if cost.samples:
        mean, error = cost.samples
        share, worst = unseen(cost.piloted, mean, n)
        lines.append(
            f"certification expects {mean:,.0f} estimation votes an image (standard error {error:,.0f}, over the "
            f"pilot's images), {n:,} at most"
        )
        lines.append(
            f"{cost.piloted} images cannot exclude, at 95 % confidence, that up to {100 * share:.1f} % are of a kind "
            f"that the pilot lacks; at {n:,} votes each, the mean would be {worst:,.0f}"
        )
    elif options.rule != "fixed" and options.certify_images:
        lines.append(
            f"certification is counted at the cap of {n:,} votes an image, the worst case: most stop long before; give "
            "--pilot, the certificates of a few images, for what the rule is expected to draw"
        )
    estimator = _estimator(options)
    if _asks(options) and isinstance(estimator, Guided) and estimator.q == "auto":
        most = f", at most {_corrections(estimator, options.d_z)} an image and step" if options.d_z else ""
        lines.append(
            f"corrections come on top as long as the surrogate's measured cosine is below {estimator.target}{most}"
        )
    if _asks(options) and METHODS[options.method].bottleneck and options.live == 1 and _skips_dead(estimator):
        lines.append(
            "training is counted with all coordinates of the embedding live; those that a ReLU holds at 0 cost nothing"
        )
    return [*lines, cost.beyond] if cost.beyond else lines


def _skips_dead(estimator: GradientEstimator) -> bool:
    """Whether fewer live coordinates mean fewer queries: RGE asks q of them all the same."""
    return not isinstance(estimator, RGE) and not (isinstance(estimator, Guided) and estimator.q == 0)


def _beyond(options: QueryCost, rule: Rule | None, n: int, pilot: Sequence[CertificateRow] | None) -> str | None:
    """A note on the radii that n cannot certify, as `certify` gives it."""
    sigma, alpha = _noise(options, pilot)
    line = out_of_reach(rule, n, alpha, Gaussian(1.0 if sigma is None else sigma)) if rule else None
    return f"{line} (r in units of sigma)" if line and sigma is None else line


def _validations(options: QueryCost) -> int:
    """How often the held-out images are asked about: at the start, every so many epochs, and at the end."""
    return 1 + math.ceil(options.epochs / (options.validate_every or 1))


def _asks(options: QueryCost) -> bool:
    """Whether training estimates gradients by queries."""
    return METHODS[options.method].order == 0 and options.train_images > 0 and options.epochs > 0


def _estimator(options: QueryCost) -> GradientEstimator:
    """The estimator as training uses it: labels have no slope, so nothing is corrected."""
    made = options.build_estimator()
    return replace(made, q=0) if isinstance(made, Guided) and options.outputs == "labels" else made


def _estimates(options: QueryCost, shown: int) -> tuple[int, int]:
    """Queries of measuring, and all others of the estimator, on `shown` images."""
    estimator, (full, rest) = _estimator(options), divmod(shown, options.train_batch_size)
    batches = [options.train_batch_size] * full + [rest] * (rest > 1)  # as `Schedule.steps_per_epoch`
    if not batches:
        return 0, 0
    stepped = not isinstance(estimator, Guided) or estimator.q != 0
    measuring = _choosing(options.central, batches[0]) if options.mu in (None, "auto") and stepped else 0
    if not isinstance(estimator, Guided):
        return measuring, sum(batches) * options.epochs * _per_image(options)
    answers = sum(estimator.asked_of(b) for b in batches) * estimator.votes
    if estimator.q == "auto":
        return measuring + _probes(estimator, batches, options), estimator.distill + options.epochs * answers
    corrected = sum(batches) * _corrections(estimator, _dimension(options)) if estimator.q else 0
    return measuring, estimator.distill + options.epochs * (answers + corrected)


def _choosing(central: bool, points: int) -> int:
    """Queries of `choose_step` at so many points."""
    return STEPS * DIRECTIONS * (2 if central else 1) + (0 if central else min(DIRECTIONS, points))


def _probes(guided: Guided, batches: Sequence[int], options: QueryCost) -> int:
    """Queries of probing the surrogate at every `probe_every`-th step, the first included."""
    across = PROBE_DIRECTIONS if options.d_z is None else min(PROBE_DIRECTIONS, options.d_z - 1)
    each = 2 * (across + 1) if guided.central else across + 2
    steps = range(0, options.epochs * len(batches), guided.probe_every)
    return each * sum(min(PROBED, batches[step % len(batches)]) for step in steps)


def _corrections(guided: Guided, d: int) -> int:
    """Queries of corrections an image and step; the most of them where their number is measured."""
    return guided.cost(d) - replace(guided, q=0).cost(d)


def _dimension(options: QueryCost) -> int:
    if options.d_z is None:
        raise InvalidInput("d_z is not given; wanted the dimension that the estimator works on, such as --d-z 192")
    return options.d_z


def _per_image(options: QueryCost) -> int:
    """Queries an image and step, without a surrogate."""
    d = _dimension(options)
    if options.estimator == "cge":
        return round(d * options.live) * (2 if options.central else 1) + (0 if options.central else 1)
    return options.build_estimator().cost(d)

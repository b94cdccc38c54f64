"""`certibox query-cost`: what a plan would spend, before it is spent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rich.table import Table

from certibox.certification.pilot import expected_answer, unseen
from certibox.certification.sampling import ALPHA, SEQUENTIAL
from certibox.certification.stored import read
from certibox.commands.fields import Needs, option, require_range
from certibox.commands.options import LONGEST_TRAINING, MOST_IMAGES, EstimatorOptions, RuleOptions
from certibox.commands.printing import OUT
from certibox.confidence.ranks import RankVerification
from certibox.errors import InvalidInput
from certibox.estimators import GradientEstimator, Guided
from certibox.planning import Cost, most_corrections, plan, skips_dead, stepped, wants_dimension
from certibox.records.certificates import CertificateRows
from certibox.records.places import rows_in
from certibox.training.methods import METHODS
from certibox.training.schedules import EPOCHS, one_cycle

TYPICAL = {"e-process": 2274.3, "alpha-spending": 2715.9}
"""Votes an image, n0 included, of a rule that decides `certify`'s radii at its n and alpha: the larger of the means of
studies/results/sequential_certification.json over the published certificates at sigma = 0.25 and at 0.5."""


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
    outputs: Literal["logits", "probabilities", "labels", "values", "top-k"] = option(
        "what the box answers with, as in `train`: labels have no slope, so guided neither measures nor corrects",
        "logits",
    )
    train_images: int = option("unlabelled images to train on, validation included", 0, least=0)
    epochs: int = option("epochs on the full objective", EPOCHS, least=0, most=LONGEST_TRAINING)
    train_batch_size: int = option("images a step; a last step of one image is dropped", 64, least=2, most=MOST_IMAGES)
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
    certify_images: int = option("images to certify", 0, least=0)
    sigma: float | None = option("standard deviation of the noise, as in `certify`; wanted with radii", None)
    alpha: float = option("probability that one certificate is false, as in `certify`", ALPHA)
    pilot: str | None = option("certificates.jsonl of a few images, to expect the votes of a sequential rule", None)
    serve_answers: int = option("answers of the smoothed model to serve", 0, least=0)
    serve_n: int = option("most votes an answer", 1000)
    price: float = option("price of a thousand queries", 0.0, least=0)


def _pilot(options: QueryCost) -> CertificateRows | None:
    """The rows of the pilot; None without one."""
    _check(options)
    return None if options.pilot is None else read(rows_in(options.pilot))


def cost_of(options: QueryCost, pilot: CertificateRows | None = None) -> Cost:
    """The cost of what the options describe; see `certibox.plan`, which is given their values and objects.

    pilot: rows of the options' pilot, where they were read before.

    Errors: `InvalidInput` for what `plan` refuses, in the words of the flags.
    """
    pilot = _pilot(options) if pilot is None else pilot
    n0, n = options.sample_sizes()
    sigma = pilot[0].sigma if pilot else options.sigma
    return plan(
        method=options.method,
        estimator=options.build_estimator(),
        schedule=one_cycle(options.epochs, batch_size=options.train_batch_size),
        validation_votes=options.validation_votes,
        validate_every=options.validate_every,
        train_images=options.train_images,
        validation=options.validation,
        outputs=options.outputs,
        d_z=options.d_z,
        live=options.live,
        certify_images=options.certify_images,
        n0=n0,
        n=n,
        alpha=None if pilot else options.alpha,
        sigma=sigma,
        rule=options.build_rule(1.0 if sigma is None else sigma),  # the usual radii are in units of it
        pilot=pilot,
        serve_answers=options.serve_answers,
        serve_n=options.serve_n,
    )


def _check(options: QueryCost) -> None:
    """Refuse what only the flags can name: the rest is `plan`'s to refuse."""
    require_range(options)
    if options.pilot is not None and options.rule == "fixed":
        raise InvalidInput("a pilot tells when a sequential rule stops, and rule is fixed; wanted --rule e-process")
    if options.radii is not None and options.sigma is None and options.pilot is None:
        raise InvalidInput(f"radii are {options.radii}, but sigma is not given; wanted it, such as --sigma 0.25")
    if _asks(options) and options.d_z is None and wants_dimension(_estimator(options)):
        raise InvalidInput("d_z is not given; wanted the dimension that the estimator works on, such as --d-z 192")


def run(options: QueryCost) -> None:
    """`certibox query-cost`."""
    pilot = _pilot(options)
    cost = cost_of(options, pilot)
    typical = _typical(options)
    priced = f", at {options.price:g} per 1,000 queries" if options.price else ""
    table = Table("what for", "queries", "price", title=f"What this plan would spend{priced}")
    if typical is not None:
        table.add_column("typically")
    for name in ("targets", "measuring", "training", "validation", "certification", "serving", "total"):
        queries = getattr(cost, name)
        less = cost.certification - typical if typical is not None and name in ("certification", "total") else 0
        usual = [] if typical is None else [f"{queries - less:,}"]
        table.add_row(name, f"{queries:,}", f"{queries / 1000 * options.price:,.2f}" if options.price else "–", *usual)
    for column in table.columns[1:]:
        column.justify = "right"
    OUT.print(table)
    for line in (*_of_certification(options, cost, pilot), *_of_training(options), *filter(None, [cost.beyond])):
        OUT.print(line)


def _of_certification(options: QueryCost, cost: Cost, pilot: CertificateRows | None) -> list[str]:
    """What the table cannot say of certificates: what is only expected, or only the most that will be spent."""
    lines, (_, n) = [], options.sample_sizes()
    if options.certify_images or options.serve_answers:
        each = f"serving costs {options.serve_n:,} queries an answer"
        lines.append(f"{each} at most: certificates speak of the smoothed model, not of the box")
    if options.serve_answers and pilot is not None:
        votes = expected_answer(pilot, RankVerification(), options.serve_n, options.alpha)
        lines.append(
            f"answers that end as soon as their class is proven, as `predict` gives them, are expected to take "
            f"{votes:,.0f} queries each: {options.serve_answers * votes:,.0f} in all"
        )
    if cost.samples:
        mean, error = cost.samples
        share, worst = unseen(cost.piloted, mean, n)
        lines.append(
            f"certification expects {mean:,.0f} estimation votes an image (standard error {error:,.0f}, over the "
            f"pilot's images), {n:,} at most"
        )
        lines.append(
            f"a pilot of {cost.piloted} images may, at 95 % confidence, have missed up to {100 * share:.1f} % of all "
            f"images; if each of them took {n:,} votes, the mean would be {worst:,.0f}"
        )
    elif options.rule != "fixed" and options.certify_images:
        lines.append(
            f"certification is counted at the maximum n of {n:,} votes an image, the worst case: {_usual(options)}"
        )
    return lines


def _typical(options: QueryCost) -> int | None:
    """Queries that certification typically takes; None where that was not measured."""
    asked = (options.sample_sizes(), options.alpha, options.radii, options.tolerance)
    if options.pilot is not None or not options.certify_images or asked != (SEQUENTIAL, ALPHA, None, None):
        return None
    each = TYPICAL.get(options.rule)
    return None if each is None else round(options.certify_images * each)


def _usual(options: QueryCost) -> str:
    """What images take that are not the worst case, and where that was measured."""
    advice = "give --pilot, the certificates of a few images, for what the rule is expected to draw"
    if _typical(options) is None:
        return f"most stop long before; {advice}"
    each = f"about {TYPICAL[options.rule]:,.0f} votes an image are typical"
    return f"{each}, the mean over 500 published CIFAR-10 certificates (docs/guarantees.md); {advice} from yours"


def _of_training(options: QueryCost) -> list[str]:
    """What the table cannot say of training: what may come on top, and what may cost less."""
    if not _asks(options):
        return []
    lines, estimator = [], _estimator(options)
    if isinstance(estimator, Guided) and estimator.q == "auto":
        most = f", at most {most_corrections(estimator, options.d_z)} an image and step" if options.d_z else ""
        lines.append(
            f"corrections come on top as long as the surrogate's measured cosine is below {estimator.target}{most}"
        )
    if METHODS[options.method].bottleneck and options.live == 1 and skips_dead(estimator):
        lines.append(
            "training is counted with all coordinates of the embedding live; those that a ReLU holds at 0 cost nothing"
        )
    return lines


def _asks(options: QueryCost) -> bool:
    """Whether training estimates gradients by queries."""
    return METHODS[options.method].order == 0 and options.train_images > 0 and options.epochs > 0


def _estimator(options: QueryCost) -> GradientEstimator:
    """The estimator as training uses it."""
    return stepped(options.build_estimator(), options.outputs)

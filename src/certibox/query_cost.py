"""What a plan would spend, before it is spent: training, certification, and every answer of the smoothed model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table

from certibox.errors import InvalidInput
from certibox.objective import METHODS
from certibox.options import EstimatorOptions, option


@dataclass(frozen=True)
class QueryCost(EstimatorOptions):
    """Print what a plan would spend, in queries and money, before a single query is sent.

    example: certibox query-cost --train-images 1000 --epochs 3 --d-z 32 --certify-images 100 --n 1000 --price 1.0
    """

    method: Literal["RS", "DS", "FO-DS", "FO-AE-DS", "ZO-DS", "ZO-AE-DS"] = option(
        "method to train, as in `train`", "ZO-AE-DS"
    )
    train_images: int = option("unlabelled images to train on, validation included", 0)
    epochs: int = option("epochs on the full objective", 20)
    train_batch_size: int = option("images a step; a last step of one image is dropped", 64)
    validation: float = option("share of them held out for selection", 0.1)
    validation_votes: int = option("noisy votes on each held-out image and epoch", 4)
    d_z: int | None = option("dimension that the estimator works on: the embedding's, or all pixels for ZO-DS", None)
    live: float = option(
        "share of the coordinates that are live, for cge in front of a ReLU encoder; measure it, 1 is the worst case",
        1.0,
    )
    certify_images: int = option("images to certify", 0)
    n0: int = option("selection votes an image", 100)
    n: int = option("estimation votes an image", 10_000)
    serve_answers: int = option("answers of the smoothed model to serve", 0)
    serve_n: int = option("votes an answer", 1000)
    price: float = option("price of a thousand queries", 0.0)


@dataclass(frozen=True)
class Cost:
    """Queries of a plan, by what they are for."""

    targets: int
    training: int
    validation: int
    certification: int
    serving: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.targets + self.training + self.validation + self.certification + self.serving


def plan(options: QueryCost) -> Cost:
    """Queries of a plan: `train` and `certify_dataset` spend these to the query where every coordinate is live.

    First-order passes through a white box are not queries. A fingerprint, 8 queries each time, is not included.
    Errors: `InvalidInput` for shares outside [0, 1] and counts below their least value.
    """
    _check(options)
    method = METHODS[options.method]
    held = round(options.train_images * options.validation)
    shown = options.train_images - held
    shown -= shown % options.train_batch_size == 1  # as `Schedule.steps_per_epoch`
    asks = method.order == 0 and options.train_images > 0 and options.epochs > 0
    return Cost(
        targets=options.train_images if method.order is not None else 0,
        training=shown * options.epochs * _per_image(options) if asks else 0,
        validation=held * options.validation_votes * (options.epochs + 1) if asks else 0,  # the start is scored too
        certification=options.certify_images * (options.n0 + options.n),
        serving=options.serve_answers * options.serve_n,
    )


def _check(options: QueryCost) -> None:
    for name in ("validation", "live"):
        if not 0 <= getattr(options, name) <= 1:
            raise InvalidInput(f"{name} is {getattr(options, name)}; wanted a share from 0 to 1")
    least = {"train_batch_size": 2, "d_z": 1}
    counts = ("train_images", "epochs", "validation_votes", "certify_images", "n0", "n", "serve_answers", "serve_n")
    for name in (*counts, "price", *least):
        value, low = getattr(options, name), least.get(name, 0)
        if value is not None and not value >= low:
            raise InvalidInput(f"{name} is {value}; wanted at least {low}")


def run(options: QueryCost) -> None:
    """`certibox query-cost`."""
    cost = plan(options)
    table = Table("what for", "queries", "price", title="What this plan would spend")
    rows = vars(cost) | {"total": cost.total}
    for name, queries in rows.items():
        table.add_row(name, f"{queries:,}", f"{queries / 1000 * options.price:,.2f}" if options.price else "–")
    for column in table.columns[1:]:
        column.justify = "right"
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print(
        f"serving costs {options.serve_n:,} queries an answer: certificates speak of the smoothed model, not of the box"
    )


def _per_image(options: QueryCost) -> int:
    """Queries an image and step."""
    if options.d_z is None:
        raise InvalidInput("d_z is not given; wanted the dimension that the estimator works on, such as --d-z 192")
    mu = options.mu if options.mu is not None else 1.0  # the cost does not depend on it
    estimator = EstimatorOptions(
        estimator=options.estimator, q=options.q, mu=mu, central=options.central
    ).build_estimator()
    if options.estimator == "cge":
        return round(options.d_z * options.live) * (2 if options.central else 1) + (0 if options.central else 1)
    return estimator.cost(options.d_z)

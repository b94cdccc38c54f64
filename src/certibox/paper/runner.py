"""From rows of the suite to measured rows: every stage that is missing, then the evaluation, then one line on disk."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any

import torch

from certibox.certification.dataset import certify_dataset
from certibox.certification.sampling import Sampling
from certibox.certification.smoothing import SmoothedClassifier
from certibox.data import Images
from certibox.errors import InvalidInput
from certibox.paper.claims import certified
from certibox.paper.logbook import hardware, versions
from certibox.paper.measured import DECIMALS, Measured, Results
from certibox.paper.plans import Plan
from certibox.paper.stages import Workshop, measurement_of, spent, timed
from certibox.paper.suite import Row, Table
from certibox.queries.client import QueryClient
from certibox.reconstruction.attacks import THREATS, Attack, Model
from certibox.reconstruction.evaluation import evaluate, reconstruct
from certibox.storage.settings import digest
from certibox.training.losses import predictions

CERTIFY_BATCH = 500
PICTURES = 6  # images that a row of a reconstruction keeps for figure 5


@dataclass(frozen=True)
class Job:
    """One row to measure at one scale with one seed."""

    table: Table
    """Table of the row."""
    row: Row
    """Row to measure."""
    scale: str
    """Name of a scale at which the row has a plan."""
    seed: int
    """Seed of the training and of the noise."""

    @property
    def plan(self) -> Plan:
        """Plan of the row at this scale."""
        return self.row.plans[self.scale]

    @property
    def name(self) -> str:
        """Table, row, scale and seed, for messages."""
        return f"{self.table.name} / {self.row.name} / {self.scale} / seed {self.seed}"


def jobs(table: Table, scale: str, rows: Sequence[str] = (), seeds: Sequence[int] = ()) -> Iterator[Job]:
    """The rows of a table at a scale, seed by seed, so that every row has its first seed early.

    Args:
        table: Table or figure of the suite.
        scale: Name of a scale of the table.
        rows: Names of the rows to measure; all if empty.
        seeds: Seeds to measure; all if empty.

    Raises:
        InvalidInput: For a row or seed that the table lacks, or has at other scales only.
    """
    for name in rows:
        if scale not in table.row(name).plans:
            known = ", ".join(table.row(name).plans)
            raise InvalidInput(f"{table.name} / {name} is not measured at scale {scale}; wanted one of {known}")
    for seed in seeds:
        if seed not in table.seeds[scale]:
            known = ", ".join(str(known) for known in table.seeds[scale])
            raise InvalidInput(f"{table.name} has no seed {seed} at scale {scale}; wanted one of {known}")
    for seed in seeds or table.seeds[scale]:
        for row in table.rows:
            if scale in row.plans and (row.name in rows or not rows):
                yield Job(table, row, scale, seed)


def measure(job: Job, workshop: Workshop, results: Results) -> tuple[Measured, bool]:
    """Measure one row, unless this table or another with an equal row has measured it before.

    Args:
        job: Row to measure.
        workshop: Place where stages are done and kept.
        results: Measured rows; a new one is added.

    Returns:
        The measured row, and whether it was measured just now.

    Raises:
        InvalidInput: For images that are not at hand; it says where to get them.
    """
    known = results.by_plan().get((job.plan.digest, job.seed))  # by this table, or by another with a row like it
    if known is not None:
        return known, False
    row = _measured(job, workshop)
    results.append(row)
    return row, True


def command(job: Job, device: str) -> str:
    """The command that measures a row again.

    Args:
        job: Row to measure.
        device: Device, `cpu` or `cuda`.
    """
    asked = f"--scale {job.scale} --row {shlex.quote(job.row.name)} --seed {job.seed} --data DIR"
    return f"certibox paper run {job.table.name} {asked}" + (f" --device {device}" if device != "cpu" else "")


def headline(row: Measured) -> str:
    """A row in a few words: certified accuracy at its columns, or the errors under the adaptive attack.

    Args:
        row: Measured row.
    """
    if "reach" in row.values:
        shares = [certified(row, multiple).mean() for multiple in row.settings["columns"]]
        return "certified " + " / ".join(f"{100 * share:.1f}" for share in shares) + " %"
    errors = [row.series(f"adaptive rmse {epsilon:g}").mean() for epsilon in row.settings["epsilons"]]
    return "RMSE " + " / ".join(f"{error:.3f}" for error in errors)


def _measured(job: Job, workshop: Workshop) -> Measured:
    plan, seed = job.plan, job.seed
    require_images(plan, workshop)
    model, folder = workshop.defense(plan, seed)
    client = model if isinstance(model, QueryClient) else model.client
    test = workshop.splits(plan).test
    clean = _clean_accuracy(client, test) if plan.certify else None  # first: it shows how many classes the box knows
    with timed(folder / "evaluation"):
        if plan.certify:
            values, queries = _certified(job, workshop, model, folder / "evaluation", test)
        else:
            values, queries = _reconstructed(job, workshop, model, folder / "evaluation", test)
    seconds = workshop.seconds(plan, seed) | {"evaluation": spent(folder / "evaluation")}
    return Measured(
        table=job.table.name,
        row=job.row.name,
        scale=job.scale,
        seed=seed,
        digest=plan.digest,
        values=values,
        queries={"train": workshop.training_queries(plan, seed), "evaluate": queries},
        epochs=plan.epochs,
        seconds=seconds,
        settings={"sigma": plan.defense.sigma, **asdict(plan.certify or plan.attack)},  # pyright: ignore
        data=workshop.source(plan.data.name)[1],
        clean_accuracy=clean,
        command=command(job, workshop.device),
        hardware=hardware(workshop.device),
        versions=versions(),
        date=datetime.now(UTC).date().isoformat(),
    )


def require_images(plan: Plan, workshop: Workshop) -> None:
    """Make sure, before any work, that the images of a plan are at hand.

    Args:
        plan: Plan of a row.
        workshop: Place that knows the folder of the data sets, or that there is none.

    Raises:
        InvalidInput: For images that are not at hand; it says where to get them.
    """
    name = plan.data.name
    try:
        if workshop.data is None:
            workshop.splits(plan)  # what it loads is kept
        else:
            workshop.source(name)
    except InvalidInput as error:
        if name not in workshop.suite.datasets:
            raise
        entry = workshop.suite.datasets[name]
        loaded = f"leave --data out to load {entry['hub']['name']} from Hugging Face (pip install 'certibox[data]')"
        own = f"or give --data DIR with {name} in DIR/{entry['folders'][0]}"
        raise InvalidInput(f"{error}; {own if workshop.data is None else loaded}") from error


def _certified(
    job: Job, workshop: Workshop, model: Model, folder: Path, test: Images
) -> tuple[dict[str, list[float | None]], int]:
    """The reach of every test image, and the queries that it took."""
    wanted, sigma = job.plan.certify, job.plan.defense.sigma
    assert wanted is not None
    client = model if isinstance(model, QueryClient) else model.client
    base = model if isinstance(model, QueryClient) else model.outputs
    classes = client.num_outputs or client.spec.num_classes  # not the labels': some class may have no test image
    assert classes is not None
    sampling = Sampling(wanted.n0, wanted.n, wanted.alpha)
    asked = {"n0": sampling.n0, "n": sampling.n, "alpha": sampling.alpha}
    name = f"certificates-{digest({**asked, 'images': test.digest})}.jsonl"
    with client.phase("certify"), workshop.bar(f"certify {job.row.name}") as progress:
        rows = certify_dataset(
            SmoothedClassifier(base, classes, sigma),
            test,
            seed=job.seed,
            out=folder / name,
            batch_size=CERTIFY_BATCH,
            progress=progress,
            sampling=sampling,
        )
    return {"reach": [rounded_down(row.radius) if row.correct else None for row in rows]}, sum(r.queries for r in rows)


def _reconstructed(
    job: Job, workshop: Workshop, model: Model, folder: Path, test: Images
) -> tuple[dict[str, list[float | None]], int]:
    """Errors of every test image under both threats and all norms, and the queries of the outputs.

    The first seed keeps some pictures too.
    """
    wanted = job.plan.attack
    assert wanted is not None
    measurement, values, queries = measurement_of(wanted), {}, 0
    shared: dict[str, Any] = {"copies": wanted.copies, "seed": job.seed, "device": workshop.device}
    shown, first = range(min(PICTURES, len(test))), job.seed == job.table.seeds[job.scale][0]
    for threat in THREATS:
        attack = Attack(threat, wanted.steps, wanted.samples)  # pyright: ignore[reportArgumentType]
        with workshop.bar(f"{threat} {job.row.name}") as progress:
            rows = evaluate(
                model,
                test,
                measurement,
                attack=attack,
                epsilons=wanted.epsilons,
                progress=progress,
                **shared,
            )
        for epsilon in wanted.epsilons:
            here = [row for row in rows if row.epsilon == epsilon]
            for measure in ("rmse", "ssim", "ssim_padded"):
                values[f"{threat} {measure} {epsilon:g}"] = [round(getattr(row, measure), DECIMALS) for row in here]
        queries += sum(row.queries for row in rows)
        if first:
            pictures = reconstruct(model, test, measurement, shown, attack, 1.0, **shared)
            values[f"{threat} pictures"] = [round(value, 2) for value in pictures.flatten().tolist()]
    if first:
        values["truth pictures"] = [round(value, 2) for value in test.floats(shown).flatten().tolist()]
    return values, queries


def rounded_down(radius: float) -> float:
    """A radius with `DECIMALS` decimals that is not above it.

    Args:
        radius: Radius to round, at least 0.
    """
    # Decimal: the product of a radius just below a step and 10 ** DECIMALS can round up to it.
    return float(Decimal(repr(float(radius))).quantize(Decimal(10) ** -DECIMALS, ROUND_FLOOR))


def _clean_accuracy(client: QueryClient, test: Images) -> float:
    """Share of the clean test images that the bare box gets right."""
    assert test.labels is not None
    with client.phase("clean accuracy"):
        right = [
            predictions(client(test.floats(index)), client.spec.outputs).cpu() == test.labels[index]
            for index in torch.arange(len(test)).split(client.batch_size)
        ]
    return float(torch.cat(right).float().mean())

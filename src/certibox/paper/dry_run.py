"""The same plans with networks and counts so small that a CPU follows them in a second; their numbers mean nothing."""

from __future__ import annotations

from dataclasses import replace

from certibox.paper.plans import Estimator, Plan
from certibox.paper.suite import Table
from certibox.training.schedules import Phase

FEW = 16  # images that boxes and autoencoders are trained on


def tiny_table(table: Table) -> Table:
    """The table with every plan of its rows tiny.

    Args:
        table: Table of any suite.
    """
    rows = (replace(row, plans={scale: tiny(plan) for scale, plan in row.plans.items()}) for row in table.rows)
    return replace(table, rows=tuple(rows))


def tiny(plan: Plan) -> Plan:
    """The plan of the same row, tiny.

    Args:
        plan: Plan of a row at any scale.
    """
    box, defense = plan.box, plan.defense
    network = (box.network, box.arguments)
    if plan.attack is None and box.phases:  # a classifier, of which so few training images need not show every class
        network = ("cifar-resnet", {"depth": 8, "num_classes": 10})
    return replace(
        plan,
        data=replace(plan.data, train=12, validation=8, test=2),
        box=replace(box, network=network[0], arguments=network[1], images=FEW, batch_size=8, phases=once(box.phases)),
        autoencoder=replace(plan.autoencoder, images=FEW, batch_size=8, phases=once(plan.autoencoder.phases)),
        defense=replace(
            defense,
            batch_size=4,
            phases=once(defense.phases),
            denoiser={"name": "dncnn", "arguments": {"depth": 3, "width": 4}},
            estimator=defense.estimator and few(defense.estimator),
        ),
        certify=plan.certify and replace(plan.certify, n0=5, n=20),
        attack=plan.attack and replace(plan.attack, steps=1, copies=1, samples=1, epsilons=(0.0, 1.0)),
    )


def once(phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    """The same phases, of one epoch each.

    Args:
        phases: Phases of a schedule.
    """
    return tuple(replace(phase, epochs=1) for phase in phases)


def few(estimator: Estimator) -> Estimator:
    """The same estimator with at most 4 random directions.

    Args:
        estimator: Estimator of a plan.
    """
    return replace(estimator, q=min(estimator.q, 4) if isinstance(estimator.q, int) else estimator.q)

"""The suite as data: what the paper reports and how it was run, rows that differ in nothing but what they compare."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from certibox import networks
from certibox.errors import InvalidInput, UnreadableFile
from certibox.estimators import CGE, RGE
from certibox.networks import Autoencoder
from certibox.paper.plans import Attack, Certify, Data, Defense, Estimator, Network, Plan, parse, stated
from certibox.paper.stages import estimator_of, settings_of
from certibox.paper.suite import NAMES, Row, Suite, Table, merged
from certibox.training.methods import METHODS
from certibox.training.schedules import Phase, paper_finetune, paper_scratch
from places import ROOT

REPORTED = ROOT.parent / "shared" / "paper" / "reported.json"
TABLES = [name for name in NAMES if name.startswith("table")]
CGE_ROW = "ZO-AE-DS (CGE, q=192)"
OWN_SCHEDULE = {"ZO-AE-DS (RGE, q=20), queries as CGE", "pre-training + fine-tuning"}  # that is what they are about


@pytest.fixture(scope="module")
def suite() -> Suite:
    return Suite(ROOT / "experiments" / "paper")


@pytest.fixture(scope="module")
def reported() -> dict[str, Any]:
    if not REPORTED.exists():
        pytest.skip("the paper's numbers as transcribed (shared/paper/reported.json) are not beside this checkout")
    return json.loads(REPORTED.read_text(encoding="utf-8"))


def plans(table: Table, scale: str) -> list[tuple[Row, Plan]]:
    return [(row, row.plans[scale]) for row in table.rows if scale in row.plans]


def everything(suite: Suite) -> list[tuple[str, Row, str, Plan]]:
    return [
        (table.name, row, scale, plan)
        for table in suite.tables.values()
        for row in table.rows
        for scale, plan in row.plans.items()
    ]


# ------------------------------------------------------------------------------------------------ the committed suite


@pytest.mark.parametrize("name", TABLES)
def test_tables_report_exactly_what_the_paper_reports(suite: Suite, reported: dict[str, Any], name: str) -> None:
    said = {row.name: dict(row.reported) for row in suite.table(name).rows if row.reported}
    assert said == reported[name]["rows"]


def test_every_reported_table_is_there(suite: Suite, reported: dict[str, Any]) -> None:
    assert {name for name in reported if name.startswith("table")} == set(TABLES)


def test_figures_report_what_their_tables_report(suite: Suite) -> None:
    for figure, source in (("figure4", "table2"), ("figure5", "table5")):
        for row in suite.table(figure).rows:
            assert row.reported == suite.table(source).row(row.name).reported


def test_reported_rows_can_be_run_at_every_kind_of_scale(suite: Suite) -> None:
    for table in suite.tables.values():
        assert next(iter(table.scales)) == "paper"
        for row in table.rows:
            if row.reported:
                assert row.plans.keys() == table.scales.keys() >= {"paper", "gpu", "cpu"}, (table.name, row.name)


def test_names_of_rows_are_unique(suite: Suite) -> None:
    for table in suite.tables.values():
        assert len({row.name for row in table.rows}) == len(table.rows) > 0


def test_claims_are_of_rows_and_columns_that_are_measured(suite: Suite) -> None:
    for table in suite.tables.values():
        for claim in table.claims:
            assert claim.better != claim.worse
            for name in (claim.better, claim.worse):
                assert table.row(name).plans.keys() & {"paper", "gpu", "cpu"}
                for plan in table.row(name).plans.values():
                    columns = plan.certify.columns if plan.certify else plan.attack.epsilons  # pyright: ignore
                    assert claim.at in columns


def test_rows_of_a_table_share_all_that_they_do_not_compare(suite: Suite) -> None:
    """At a scale, rows have the same images, box, evaluation, noise and loss; one exception, said in its row."""
    for table in suite.tables.values():
        for scale in table.scales:
            shared = {
                repr((p.data, p.box, p.certify, p.attack, p.defense.sigma, p.defense.gamma, p.defense.targets))
                for _, p in plans(table, scale)
            }
            assert len(shared) == 1, (table.name, scale)


def compared(plan: Plan) -> dict[str, Any]:
    """A plan without the method and, where zeroth order has a rate of its own, with that of first order."""
    plain = asdict(plan)
    del plain["defense"]["method"], plain["defense"]["estimator"]
    return plain


def at_a_tenth(plan: Plan) -> Plan:
    slower = tuple(replace(phase, lr=phase.lr / 10) for phase in plan.defense.phases)
    return replace(plan, defense=replace(plan.defense, phases=slower))


def test_zeroth_order_is_compared_with_first_order_under_the_same_settings(suite: Suite) -> None:
    """Every ZO row has just one FO twin: the same plan but for the estimator, and the paper's lower rate for ZO-DS."""
    found = 0
    for table in suite.tables.values():
        for scale in table.scales:
            rows = plans(table, scale)
            firsts = [plan for _, plan in rows if plan.defense.method.startswith("FO-")]
            for row, plan in rows:
                if not plan.defense.method.startswith("ZO-") or row.name in OWN_SCHEDULE or table.name == "table4":
                    continue
                method = plan.defense.method.replace("ZO-", "FO-")
                likes = [first for first in firsts if first.defense.method == method]
                if method == "FO-DS" and scale.startswith("paper"):
                    likes = [at_a_tenth(first) for first in likes]
                twins = [first for first in likes if compared(first) == compared(plan)]
                assert len(twins) == 1, (table.name, scale, row.name)
                found += 1
    assert found > 80


def test_training_from_scratch_in_table_4_is_the_row_of_table_2(suite: Suite) -> None:
    scratch, cge = suite.table("table4").row("training from scratch"), suite.table("table2").row(CGE_ROW)
    assert {scale: plan.digest for scale, plan in scratch.plans.items()} == {
        scale: cge.plans[scale].digest for scale in scratch.plans
    }
    for scale, plan in suite.table("table4").row("pre-training + fine-tuning").plans.items():
        warm, tuned = plan.defense.phases
        assert (warm.objective, tuned.objective) == ("denoise", "full")
        assert tuned.lr < cge.plans[scale].defense.phases[0].lr


@cache
def embedding(network: str) -> int:
    with torch.device("meta"):
        autoencoder = networks.build({"name": network, "arguments": {}})
    assert isinstance(autoencoder, Autoencoder)
    return autoencoder.d_z


def test_names_say_the_estimator(suite: Suite) -> None:
    """`(RGE, q=...)` is the q of the plan at every scale, `(CGE, q=...)` the embedding's size at every scale."""
    for _, row, _, plan in everything(suite):
        estimator = plan.defense.estimator
        assert (estimator is None) == (METHODS.get(plan.defense.method, METHODS["DS"]).order != 0)
        if estimator is None or "(" not in row.name:
            continue
        kind, _, q = row.name.partition("(")[2].partition(")")[0].partition(", q=")
        assert estimator.name == kind.lower()
        if estimator.name == "guided":
            continue
        assert int(q) == (embedding(plan.autoencoder.network) if estimator.name == "cge" else estimator.q)


def test_networks_of_the_suite_can_be_built(suite: Suite) -> None:
    wanted: dict[str, tuple[str, dict[str, Any]]] = {}
    for _, _, _, plan in everything(suite):
        channels = {"channels": 1 if plan.data.name == "mnist" else 3}
        head = {"num_classes": 10, **channels} if plan.certify else {}
        for name, arguments in (
            (plan.box.network, head | plan.box.arguments),
            (plan.autoencoder.network, plan.autoencoder.arguments),
            (plan.defense.denoiser["name"], channels | plan.defense.denoiser["arguments"]),
        ):
            wanted[repr((name, arguments))] = name, arguments
    assert {name for name, _ in wanted.values()} >= {"resnet110", "vgg16", "ae-1152", "dncnn", "mnist-reconstructor"}
    for name, arguments in wanted.values():
        with torch.device("meta"):
            networks.build({"name": name, "arguments": arguments})


def test_plans_are_such_as_training_takes(suite: Suite) -> None:
    for _, _, _, plan in everything(suite):
        assert plan.data.name in suite.datasets
        d = plan.defense
        if not d.trains:
            continue
        settings_of(d, seed=0)
        assert d.denoise_weight > 0 or METHODS[d.method].order is not None  # something is minimised


def test_seeds(suite: Suite) -> None:
    for table in suite.tables.values():
        assert table.seeds.keys() == table.scales.keys()
        assert table.seeds["cpu"] == (0, 1, 2)


# -------------------------------------------------------------------------------------------- the scale of the paper


def defended(suite: Suite) -> list[tuple[str, Row, Plan]]:
    return [
        (table, row, plan)
        for table, row, scale, plan in everything(suite)
        if scale == "paper" and plan.defense.trains and plan.defense.method != "RS"
    ]


def test_paper_trains_from_scratch_for_600_epochs(suite: Suite) -> None:
    """Adam for 200 epochs, SGD for 400, the rate falling tenfold every 200 of these; ZO-DS from a tenth of the rate."""
    adam, sgd = paper_scratch().phases
    assert (adam.epochs, adam.optimizer, adam.learning_rate(199, 1)) == (200, "adam", 1e-3)
    assert (sgd.epochs, sgd.optimizer) == (400, "sgd")
    assert [sgd.learning_rate(epoch, 1) for epoch in (0, 199, 200, 399)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])
    for table, row, plan in defended(suite):
        if row.name not in OWN_SCHEDULE:
            lr = 1e-4 if plan.defense.method == "ZO-DS" else 1e-3
            assert plan.defense.phases == paper_scratch(lr).phases, (table, row.name)
            assert plan.epochs == 600


def test_paper_fine_tunes_for_200_epochs_after_90(suite: Suite) -> None:
    plan = suite.table("table4").row("pre-training + fine-tuning").plans["paper"]
    warm, tuned = plan.defense.phases
    assert plan.defense.phases == paper_finetune().phases
    assert (warm.epochs, warm.optimizer, warm.objective, warm.learning_rate(89, 1)) == (90, "adam", "denoise", 1e-3)
    assert (tuned.epochs, tuned.optimizer) == (200, "adam")
    assert [tuned.learning_rate(epoch, 1) for epoch in (0, 39, 40, 199)] == pytest.approx([1e-5, 1e-5, 1e-6, 1e-9])
    assert plan.defense.denoise_weight == 0


def test_paper_estimates_with_its_step(suite: Suite) -> None:
    made = {estimator_of(plan.defense.estimator) for _, _, plan in defended(suite)} - {None}
    assert made == {RGE(q, 0.005) for q in (20, 100, 192, 576, 1152)} | {CGE(0.005, central=True)}


def test_paper_certifies_and_attacks_as_stated(suite: Suite) -> None:
    for table, row, scale, plan in everything(suite):
        if scale.startswith("paper"):
            assert plan.defense.sigma == 0.25
            assert (plan.data.train, plan.data.test) == (None, None)
            if plan.certify:
                assert plan.certify == Certify(100, 10_000, 0.001, (0, 1, 2, 3)), (table, row.name)
            else:
                attack = plan.attack
                assert attack is not None
                assert (attack.epsilons, attack.steps, attack.copies) == ((0, 1, 2, 3, 4), 40, 10)
                assert (attack.measurements, plan.box.network) == (576, "mnist-reconstructor")


def test_paper_uses_the_networks_and_the_loss_of_the_release(suite: Suite) -> None:
    boxes = {"table1": "resnet110", "table2": "resnet110", "table4": "resnet110", "tableA1": "vgg16"}
    boxes |= {"table3": "resnet18-stl10", "tableA4": "resnet18", "figure4": "resnet110"}
    embeddings = {"cifar10": "ae-192", "stl10": "ae-576", "restricted-imagenet": "ae-1152", "mnist": "ae-mnist"}
    for table, row, scale, plan in everything(suite):
        if not scale.startswith("paper"):
            continue
        assert plan.box.network == boxes.get(table, plan.box.network)
        assert plan.autoencoder.network == ("ae-96" if row.name == "AE-96" else embeddings[plan.data.name])
        width = plan.defense.denoiser["arguments"].get("width", 64)
        assert (plan.defense.denoiser["name"], width) == ("dncnn", 128 if row.name.startswith("wide") else 64)
        assert "depth" not in plan.defense.denoiser["arguments"]
        stability = METHODS.get(plan.defense.method, METHODS["DS"]).order is not None and plan.defense.method != "RS"
        if scale == "paper" and stability:
            assert (plan.defense.denoise_weight, plan.defense.targets, plan.defense.skip_dead) == (0, "hard", False)


# ------------------------------------------------------------------------------------------------------ small suites

SETUPS: dict[str, Any] = {
    "small": {
        "seeds": [0, 4],
        "data": {"name": "faces", "train": 5, "validation": 2, "test": None},
        "box": {"network": "mnist-mlp", "phases": [{"epochs": 1, "lr": 1}, {"epochs": 2, "lr": 0.1}]},
        "autoencoder": {"network": "ae-mnist"},
        "defense": {"method": "none", "sigma": 0.5, "denoiser": {"name": "dncnn", "arguments": {"depth": 4}}},
        "certify": {"n0": 10, "n": 100, "alpha": 0.001},
    },
    "large": {"base": "small", "data": {"train": None}, "box": {"phases": [{"epochs": 9, "lr": 0.1}]}, "seeds": [0]},
}
TABLE_1: dict[str, Any] = {
    "title": "Table 1",
    "scales": {"paper": "large", "cpu": "small"},
    "rows": [
        {"name": "bare"},
        {"name": "DS", "reported": {"0.00": 70.0, "0.25": 50.0}, "note": "free", "set": {"defense": {"method": "DS"}}},
        {
            "name": "ZO-DS",
            "set": {"defense": {"method": "ZO-DS", "estimator": {"name": "rge", "q": 5, "mu": 0.05}}},
            "paper": {"defense": {"estimator": {"mu": 0.005}}},
        },
        {"name": "here", "only": ["cpu"], "cpu": {"defense": {"sigma": 0.75}}},
    ],
    "claims": [{"text": "it helps", "better": "DS", "worse": "bare", "at": 1}],
    "notes": ["a note"],
}
TABLE_2: dict[str, Any] = {
    "title": "Table 2",
    "scales": {"cpu": "small"},
    "rows": [
        {"like": "table1 / DS"},
        {"like": "table1 / DS", "name": "wide", "reported": {"0.50": 1.0}, "set": {"defense": {"gamma": 3}}},
        {"like": "table2 / wide", "name": "wider", "cpu": {"defense": {"denoiser": {"arguments": {"width": 8}}}}},
    ],
}


def written(folder: Path, change: Callable[[dict[str, Any]], object] = lambda files: None) -> Suite:
    """A small suite in a folder, after `change` of its files."""
    files: dict[str, Any] = json.loads(json.dumps({"setups": SETUPS, "table1": TABLE_1, "table2": TABLE_2}))
    change(files)
    for name, values in files.items():
        text = values if isinstance(values, str) else yaml.safe_dump(values, sort_keys=False)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return Suite(folder)


def test_merging_is_key_by_key_and_replaces_all_else() -> None:
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 3}
    assert merged(base, {"a": {"y": [9], "z": 0}}) == {"a": {"x": 1, "y": [9], "z": 0}, "b": 3}
    assert merged(base, {"a": 5, "b": {"c": 1}}) == {"a": 5, "b": {"c": 1}}
    assert merged(base, {}) == base
    network = {"name": "dncnn", "arguments": {"depth": 6, "width": 16}}
    assert merged(network, {"arguments": {"width": 8}}) == {"name": "dncnn", "arguments": {"depth": 6, "width": 8}}
    assert merged(network, {"name": "dncnn", "arguments": {"width": 8}})["arguments"] == {"depth": 6, "width": 8}
    other = {"name": "unet", "arguments": {"width": 8}}  # a depth means nothing to it
    assert merged({"denoiser": network}, {"denoiser": other}) == {"denoiser": other}
    assert base == {"a": {"x": 1, "y": [1, 2]}, "b": 3}


def test_setups_build_on_each_other(tmp_path: Path) -> None:
    table = written(tmp_path).table("table1")
    small, large = (table.row("bare").plans[scale] for scale in ("cpu", "paper"))
    assert small.box.phases == (Phase(1, 1.0), Phase(2, 0.1))
    assert large == replace(
        small, data=replace(small.data, train=None), box=replace(small.box, phases=(Phase(9, 0.1),))
    )  # mappings merged, the list of phases replaced
    assert table.seeds == {"paper": (0,), "cpu": (0, 4)}


def test_a_row_is_its_setup_then_set_then_its_scale(tmp_path: Path) -> None:
    table = written(tmp_path).table("table1")
    zo = table.row("ZO-DS").plans
    assert zo["cpu"].defense.estimator == Estimator("rge", 0.05, 5)
    assert zo["paper"].defense.estimator == Estimator("rge", 0.005, 5)
    bare = table.row("bare").plans["cpu"]
    assert zo["cpu"] == replace(
        bare, defense=replace(bare.defense, method="ZO-DS", estimator=Estimator("rge", 0.05, 5))
    )
    assert table.row("here").plans.keys() == {"cpu"}
    assert table.row("here").plans["cpu"].defense.sigma == 0.75
    assert (table.title, table.notes, table.claims[0].margin, table.picture) == ("Table 1", ("a note",), 0.0, None)


def test_like_takes_the_row_of_another_table(tmp_path: Path) -> None:
    suite = written(tmp_path)
    source = suite.table("table1").row("DS")
    same, wide, wider = suite.table("table2").rows
    assert (same.name, same.note, same.reported) == ("DS", "free", source.reported)
    assert same.plans["cpu"].digest == source.plans["cpu"].digest
    assert same.plans.keys() == {"cpu"}  # the scales are its own table's
    assert wide.reported == {"0.50": 1.0}  # and not also what the other row reports
    ds = source.plans["cpu"]
    assert wide.plans["cpu"] == replace(ds, defense=replace(ds.defense, gamma=3.0))
    denoiser = {"name": "dncnn", "arguments": {"depth": 4, "width": 8}}
    assert wider.plans["cpu"] == replace(ds, defense=replace(ds.defense, gamma=3.0, denoiser=denoiser))
    assert wider.reported == wide.reported


def row(number: int, **changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda files: files["table1"]["rows"][number].update(changes)


def small(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda files: files["setups"]["small"].update(changes)


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown key of a plan": (
        row(1, set={"defence": {"method": "DS"}}),
        "table1 / DS / paper has 'defence'; wanted one of data, box, autoencoder, defense, certify, attack",
    ),
    "unknown key deeper": (row(1, cpu={"box": {"depth": 3}}), "table1 / DS / cpu.box has 'depth'; wanted one of net"),
    "unknown key of a row": (row(1, colour="red"), "table1 / DS has 'colour'; wanted cpu, like, name, note, only"),
    "a scale that the table lacks": (row(1, gpu={}), "table1 / DS has 'gpu'; wanted cpu"),
    "only at a scale that there is not": (row(1, only=["cppu"]), "table1 / DS: only has scale 'cppu'; wanted one of"),
    "a row without a name": (lambda files: files["table1"]["rows"][0].clear(), "table1 / a row has no 'name'; wanted"),
    "a row like one of no table": (
        row(0, like="table9 / DS"),
        "table1: there is no table of 'table9 / DS'; wanted 'table / name' of a row",
    ),
    "a row like none": (row(0, like="table2 / nothing"), "table1: there is no row 'table2 / nothing'; wanted 'table /"),
    "a setup that there is not": (
        lambda files: files["table1"]["scales"].update(cpu="smal"),
        "table1: there is no setup 'smal'; wanted one of small, large",
    ),
    "a base that there is not": (
        lambda files: files["setups"]["large"].update(base="smal"),
        "setups: 'smal' is no mapping of settings; wanted one, or as base one of small, large",
    ),
    "a base that is itself": (
        lambda files: files["setups"]["small"].update(base="small"),
        "setups: 'small' builds on itself, by way of small; give one another base",
    ),
    "a base that comes back": (
        lambda files: files["setups"]["small"].update(base="large"),
        "setups: 'small' builds on itself, by way of small, large; give one another base",
    ),
    "a setup of no seeds": (small(seeds=[]), "setups / small has no seeds; wanted at least one, such as [0]"),
    "two rows of one name": (row(1, name="bare"), "table1 has two rows of one name among bare, bare, ZO-DS, here"),
    "a report that is text": (
        row(1, reported={"0.00": "70"}),
        "table1 / DS: reported 0.00 is '70'; wanted a number or",
    ),
    "a report of three": (row(1, reported={"1": [1, 2, 3]}), "table1 / DS: reported 1 is [1, 2, 3]; wanted a number"),
    "a report that is a truth": (row(1, reported={"1": True}), "table1 / DS: reported 1 is True; wanted a number or"),
    "a setup without seeds": (lambda f: f["setups"]["small"].pop("seeds"), "setups / small has no 'seeds'; wanted"),
    "unknown key of a setup": (small(defence={}), "setups / large has 'defence'; wanted attack, autoencoder, box"),
    "a table without scales": (lambda files: files["table1"].pop("scales"), "table1 has no 'scales'; wanted claims"),
    "unknown key of a table": (lambda files: files["table1"].update(claim=[]), "table1 has 'claim'; wanted claims"),
    "an unknown word": (
        row(1, set={"defense": {"targets": "firm"}}),
        "table1 / DS / paper.defense.targets is 'firm'; wanted one of hard, soft",
    ),
    "text for a number": (
        small(certify={"n0": 1, "n": "1e4", "alpha": 0.1}),
        "table1 / bare / paper.certify.n is '1e4'",
    ),
    "truth for a number": (
        row(0, set={"data": {"train": True}}),
        "table1 / bare / paper.data.train is True; wanted int",
    ),
    "one phase for a list": (
        row(0, set={"box": {"phases": {}}}),
        "table1 / bare / paper.box.phases is {}; wanted a list",
    ),
    "a missing key": (small(certify={"n0": 1}), "table1 / bare / paper.certify: Certify.__init__() missing 2 required"),
    "a phase out of order": (
        row(1, set={"defense": {"phases": [{"epochs": 1, "lr": 0}]}}),
        "table1 / DS / paper.defense.phases[0]: lr is 0.0; wanted a learning rate above 0",
    ),
    "neither certified nor attacked": (
        lambda files: files["setups"]["small"].pop("certify"),
        "table1 / bare / paper: a plan has both or none of certify and attack",
    ),
    "a claim with an unknown key": (
        lambda files: files["table1"]["claims"][0].update(worst="DS"),
        "table1: claim has 'worst'; wanted one of text, better, worse, at, margin, threat",
    ),
}


@pytest.mark.parametrize(("change", "text"), FAULTS.values(), ids=FAULTS)
def test_faults_name_file_row_and_key(tmp_path: Path, change: Callable[[dict[str, Any]], object], text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        written(tmp_path, change).table("table1")
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


BROKEN_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "no training images": (
        {"data": {"train": 0}},
        ".data: train, validation, test, size are (0, 2, None, None); w",
    ),
    "nothing to select on": (
        {"data": {"validation": 0}},
        ".data: train, validation, test, size are (5, 0, None, None)",
    ),
    "a negative number of test images": ({"data": {"test": -1}}, ".data: train, validation, test, size are (5, 2, -1"),
    "images of no size": ({"data": {"size": 0}}, ".data: train, validation, test, size are (5, 2, None, 0); wanted"),
    "a method that there is not": (
        {"defense": {"method": "ZOO"}},
        ".defense.method is 'ZOO'; wanted one of none, identity, RS, DS, FO-DS, FO-AE-DS, ZO-DS, ZO-AE-DS",
    ),
    "no noise": ({"defense": {"sigma": 0}}, ".defense: sigma is 0.0; wanted a positive standard deviation"),
    "zeroth order without an estimator": (
        {"defense": {"method": "ZO-DS"}},
        ".defense: ZO-DS has estimator None; wanted one for ZO",
    ),
    "first order with an estimator": (
        {"defense": {"method": "FO-DS", "estimator": {"name": "cge", "mu": 0.1}}},
        ".defense: FO-DS has estimator Estimator(name='cge', mu=0.1, q=None, central=False, share=1.0, guided={}); "
        "wanted one for ZO",
    ),
    "no step": (
        {"defense": {"estimator": {"name": "cge", "mu": 0}}},
        ".defense.estimator: mu is 0.0; wanted a positive step in units of the embedding",
    ),
    "directions of coordinates": (
        {"defense": {"estimator": {"name": "cge", "mu": 0.1, "q": 3}}},
        ".defense.estimator: cge has q = 3; wanted q for rge, orthogonal and guided",
    ),
    "no number of directions": (
        {"defense": {"estimator": {"name": "rge", "mu": 0.1}}},
        ".defense.estimator: rge has q = None; wanted q for rge, orthogonal and guided",
    ),
    "no directions": (
        {"defense": {"estimator": {"name": "orthogonal", "mu": 0.1, "q": 0}}},
        ".defense.estimator: q is 0; wanted at least 1 direction",
    ),
    "no votes to pick a class": ({"certify": {"n0": 0}}, ".certify: n0 is 0; wanted at least 1 vote to pick a class"),
    "votes that can only abstain": (
        {"certify": {"n": 9}},
        ".certify: n = 9 can only abstain at alpha = 0.001; the smallest n is 10",
    ),
    "a failure that is certain": ({"certify": {"alpha": 1}}, ".certify: alpha is 1.0; wanted a failure probability"),
    "a column below 0": ({"certify": {"columns": [0, -1]}}, ".certify: columns are (0.0, -1.0); wanted radii >= 0"),
}


@pytest.mark.parametrize(("settings", "said"), BROKEN_SETTINGS.values(), ids=BROKEN_SETTINGS)
def test_broken_settings_are_named_with_their_place(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        written(tmp_path, row(1, set={}, cpu=settings, only=["cpu"])).table("table1")
    assert str(caught.value).startswith(f"table1 / DS / cpu{said}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [{"epsilons": []}, {"epsilons": [0, -1]}, {"steps": 0}, {"copies": 0}, {"samples": 0}, {"measurements": 0}],
    ids=lambda given: ", ".join(f"{name} {value}" for name, value in given.items()),
)
def test_a_broken_attack_is_named_with_its_place(given: dict[str, Any]) -> None:
    spelled = {"epsilons": [0, 1], "steps": 4, "copies": 2, "samples": 2}
    with pytest.raises(InvalidInput, match=r"^here: an attack has epsilons \(.*\), . steps, .*; wanted some epsilons"):
        parse(Attack, spelled | given, "here")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"folders": ["faces"]}, "datasets / faces has no 'hub'; wanted folders, hub, image_column, label_column"),
        ({"hub": {"name": "nobody/faces"}}, "datasets / faces has no 'folders'; wanted folders, hub"),
        ({"folders": [], "hub": {}, "split": {}}, "datasets / faces has 'split'; wanted folders, hub"),
    ],
)
def test_broken_data_sets_are_named(tmp_path: Path, entry: dict[str, Any], said: str) -> None:
    suite = written(tmp_path, lambda files: files.update(datasets={"faces": entry}))
    with pytest.raises(InvalidInput) as caught:
        _ = suite.datasets
    assert str(caught.value).startswith(said)


def test_suites_beside_each_other_share_the_data_sets_above_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "paper"
    folder.mkdir()
    (tmp_path / "datasets.yaml").write_text("shared: {folders: [shared], hub: {name: shared}}", encoding="utf-8")
    assert list(written(folder).datasets) == ["shared"]
    monkeypatch.chdir(folder)
    assert list(Suite(".").datasets) == ["shared"]
    own = {"own": {"folders": ["own"], "hub": {"name": "own"}}}
    assert list(written(folder, lambda files: files.update(datasets=own)).datasets) == ["own"]  # a suite's own stand


def test_data_sets_that_are_nowhere_are_wanted_in_the_suite(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match=rf"{re.escape(str(tmp_path / 'datasets.yaml'))}: No such file"):
        _ = written(tmp_path).datasets


def test_unknown_tables_and_rows_name_those_there_are(tmp_path: Path) -> None:
    suite = written(tmp_path)
    with pytest.raises(InvalidInput, match=r"no experiment 'table9'; wanted one of table1, table2, .*figure5"):
        suite.table("table9")
    with pytest.raises(InvalidInput, match=r"table1 has no row 'FO-DS'; wanted one of bare, DS, ZO-DS, here"):
        suite.table("table1").row("FO-DS")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match=r"holds no setups.yaml; wanted the folder of experiments: --experiments"):
        Suite(tmp_path)
    with pytest.raises(UnreadableFile, match=r"table1.yaml is no YAML: .* line 1.*; mend it") as caught:
        written(tmp_path, lambda files: files.update(table1="title: [")).table("table1")
    assert "\n" not in str(caught.value)
    with pytest.raises(UnreadableFile, match=r"table1.yaml holds list; wanted a mapping"):
        written(tmp_path, lambda files: files.update(table1="- a")).table("table1")
    with pytest.raises(UnreadableFile, match=r"table3.yaml: No such file"):
        Suite(tmp_path).table("table3")


# ------------------------------------------------------------------------------------------------------------ digests


@dataclass(frozen=True)
class Before:
    name: str
    parts: tuple[Data, ...] = ()


@dataclass(frozen=True)
class After:
    name: str
    parts: tuple[Data, ...] = ()
    added: int = 3
    extra: dict[str, Any] = field(default_factory=lambda: {"x": 1})


PLAN = Plan(
    data=Data("faces", 5, 2, None),
    box=Network("mnist-mlp", (Phase(2, 0.1),)),
    autoencoder=Network("ae-mnist", arguments={"d_z": 4}),
    defense=Defense("ZO-DS", 0.5, (Phase(3, 0.1),), estimator=Estimator("rge", 0.05, 5)),
    certify=Certify(10, 100, 0.001),
)
RECONSTRUCTION = replace(PLAN, certify=None, attack=Attack((0.0, 1.0), 4, 2, 2))


def test_a_new_setting_at_its_default_keeps_digests() -> None:
    part = Data("faces", None, 2, None)
    assert stated(Before("a", (part,))) == stated(After("a", (part,)))
    assert stated(After("a", added=4)) == {"name": "a", "added": 4}
    assert stated(After("a", extra={})) == {"name": "a", "extra": {}}


def test_digests_do_not_change_from_release_to_release() -> None:
    """They name stages and measured rows on disk: another digest would have all of them measured anew."""
    assert (PLAN.digest, RECONSTRUCTION.digest) == ("aab2f026dd6c4b94", "c943181efbbb9a12")


def other(value: Any) -> Any:
    """A value of the same kind that is another."""
    if value is None or isinstance(value, bool):
        return 7 if value is None else not value
    if isinstance(value, float):
        return value / 2 or 0.5
    if isinstance(value, int):
        return value + 1
    if isinstance(value, dict):
        return {**value, "other": 1}
    if isinstance(value, tuple):
        return (*value, 9.0)
    words = {"adam": "sgd", "full": "denoise", "step": "one-cycle", "ZO-DS": "ZO-AE-DS", "rge": "orthogonal"}
    return words.get(value, f"{value}!")


def changes(plan: Any) -> list[tuple[str, Any]]:
    """Every plan that differs from this one in one value, at whatever depth."""
    found = []
    for item in fields(plan):
        value = getattr(plan, item.name)
        if is_dataclass(value):
            found += [(f"{item.name}.{name}", replace(plan, **{item.name: new})) for name, new in changes(value)]
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            inner = [(name, (new, *value[1:])) for name, new in changes(value[0])]
            found += [(f"{item.name}.{name}", replace(plan, **{item.name: new})) for name, new in inner]
            found.append((item.name, replace(plan, **{item.name: ()})))
        elif item.name not in ("certify", "attack"):
            found.append((item.name, replace(plan, **{item.name: other(value)})))
    return found


@pytest.mark.parametrize("plan", [PLAN, RECONSTRUCTION], ids=["classification", "reconstruction"])
def test_every_value_changes_the_digest(plan: Plan) -> None:
    changed = changes(plan)
    assert {"data.size", "box.phases.decay", "defense.estimator.central", "defense.validation_votes"} <= {
        name for name, _ in changed
    }
    digests = [new.digest for _, new in changed]
    assert len({plan.digest, *digests}) == 1 + len(digests)


def test_values_of_equal_meaning_are_equal() -> None:
    """YAML's 1 is a float where one is wanted, and a list a tuple: the spelling of a number changes no digest."""
    spelled = {"epsilons": [0, 1], "steps": 4, "copies": 2, "samples": 2}
    assert parse(Attack, spelled, "here") == RECONSTRUCTION.attack
    assert stated(parse(Attack, spelled, "here")) == stated(RECONSTRUCTION.attack)
    assert all(isinstance(value, float) for value in parse(Attack, spelled, "here").epsilons)


def test_what_a_plan_tells_of_itself() -> None:
    assert PLAN.epochs == 3

    def by(method: str) -> Plan:
        estimator = PLAN.defense.estimator if method.startswith("ZO-") else None
        changed: dict[str, Any] = {"method": method, "estimator": estimator}
        return replace(PLAN, defense=replace(PLAN.defense, **changed))

    assert by("none").epochs == 0
    asked = {m: by(m).queries_answered_by_box for m in METHODS}
    assert {m for m, by_box in asked.items() if not by_box} == {"RS", "FO-DS", "FO-AE-DS"}

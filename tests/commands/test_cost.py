"""The price of a plan: closed forms, and to the query what training and certification then spend."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from certibox import networks
from certibox.certification.dataset import certify_dataset
from certibox.certification.pilot import expected_samples, unseen
from certibox.certification.sampling import Sampling
from certibox.certification.smoothing import SmoothedClassifier
from certibox.commands.cost import TYPICAL, QueryCost, cost_of, run
from certibox.commands.options import GRID, SEQUENTIAL, EstimatorOptions, RuleOptions
from certibox.confidence.forecast import forecast
from certibox.confidence.gaussian import Gaussian
from certibox.confidence.sequential import AlphaSpending, EProcess, Rule
from certibox.confidence.stopping import asked
from certibox.data import Images
from certibox.errors import InvalidInput
from certibox.planning import Cost
from certibox.queries.client import QueryClient
from certibox.records.certificates import CertificateRow
from certibox.training.defenses import METHODS, train
from certibox.training.schedules import one_cycle
from doubles import CountingBox, LinearBox
from places import ROOT

ZERO = Cost(targets=0, measuring=0, training=0, validation=0, certification=0, serving=0)


def box(outputs: str = "logits") -> LinearBox:
    return LinearBox(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), outputs=outputs)


def pictures(count: int) -> Images:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return Images(pixels, None, "random")


@pytest.mark.parametrize(
    ("given", "queries"),
    [
        ({"estimator": "cge"}, 193),
        ({"estimator": "cge", "central": True}, 384),
        ({"estimator": "cge", "live": 1 / 3}, 65),
        ({"estimator": "cge", "live": 1 / 3, "central": True}, 128),
        ({"estimator": "rge", "q": 20}, 21),
        ({"estimator": "rge", "q": 192, "central": True}, 384),
        ({"estimator": "orthogonal", "q": 192}, 193),
        ({"estimator": "orthogonal", "q": 4, "central": True}, 8),
    ],
)
def test_training_is_images_by_epochs_by_the_estimate(given: dict[str, Any], queries: int) -> None:
    cost = cost_of(QueryCost(train_images=1000, epochs=7, d_z=192, mu=0.1, validation=0.2, validation_votes=3, **given))
    assert cost.targets == 1000
    assert cost.training == 800 * 7 * queries
    assert cost.validation == 200 * 3 * 8  # the start is scored, then every epoch
    assert cost.measuring == 0
    assert cost.total == cost.targets + cost.training + cost.validation


def test_the_papers_training_costs_what_the_method_notes_say() -> None:
    """600 epochs of CIFAR-10: 387 queries an image and step as released, of which central CGE at d_z = 192 is 384."""
    options = QueryCost(
        estimator="cge", central=True, train_images=50_000, epochs=600, validation=0, d_z=192, train_batch_size=256
    )
    cost = cost_of(options)
    assert cost.training == 384 * 50_000 * 600
    assert cost.validation == 0


def test_certification_and_serving_are_images_by_votes() -> None:
    cost = cost_of(QueryCost(certify_images=500, n0=100, n=10_000, serve_answers=7, serve_n=1000))
    assert cost == Cost(targets=0, measuring=0, training=0, validation=0, certification=5_050_000, serving=7000)
    assert cost_of(QueryCost()) == ZERO


@pytest.mark.parametrize("method", ["RS", "DS", "FO-DS", "FO-AE-DS"])
def test_gradients_of_a_white_box_are_no_queries(method: str) -> None:
    """Only the targets are asked; DS asks for nothing at all, and no dimension is needed."""
    cost = cost_of(QueryCost(method=method, train_images=300))  # pyright: ignore[reportArgumentType]
    assert cost.total == (0 if method == "DS" else 300)


def train_and_plan(
    method: str,
    options: dict[str, Any],
    *,
    count: int,
    batch: int,
    epochs: int,
    denoise_epochs: int = 0,
    out: Path | None = None,
    outputs: str = "logits",
) -> tuple[CountingBox | LinearBox, QueryClient, Cost]:
    """What a small run asked, its meter, and what was planned for it."""
    bottleneck, zeroth = METHODS[method].bottleneck, METHODS[method].order == 0
    asked = CountingBox(box(outputs)) if zeroth or method == "DS" else box(outputs)
    client = QueryClient(asked)
    train(
        client,
        pictures(count),
        method=method,
        sigma=0.3,
        schedule=one_cycle(epochs, batch_size=batch, denoise_epochs=denoise_epochs),
        seed=0,
        estimator=EstimatorOptions(**options).build_estimator() if zeroth else None,
        gamma=1.0,
        denoiser=networks.dncnn(1, depth=3, width=4),
        autoencoder=networks.fitting_autoencoder((1, 4, 4), 4, width=4) if bottleneck else None,
        validation=0.1,
        validation_votes=3,
        skip_dead=False,
        out=out,
    )
    planned: dict[str, Any] = {"d_z": 4 if bottleneck else 16, **options}
    cost = cost_of(
        QueryCost(
            method=method,  # pyright: ignore[reportArgumentType]
            outputs=outputs,  # pyright: ignore[reportArgumentType]
            train_images=count,
            epochs=epochs,
            train_batch_size=batch,
            validation=0.1,
            validation_votes=3,
            **planned,
        )
    )
    return asked, client, cost


@pytest.mark.parametrize(
    ("method", "options", "count", "batch"),
    [
        ("ZO-AE-DS", {"estimator": "cge", "mu": 0.1}, 20, 6),
        ("ZO-AE-DS", {"estimator": "cge", "mu": 0.1, "central": True}, 20, 6),
        ("ZO-AE-DS", {"estimator": "rge", "q": 3, "mu": 0.1}, 20, 6),
        ("ZO-AE-DS", {"estimator": "orthogonal", "q": 2, "mu": 0.1, "central": True}, 20, 6),
        ("ZO-DS", {"estimator": "cge"}, 20, 6),  # mu is measured, at 6 points
        ("ZO-DS", {"estimator": "cge", "central": True}, 20, 6),
        ("ZO-AE-DS", {"estimator": "rge", "q": 3}, 60, 40),  # at 32 of 40
        ("ZO-DS", {"estimator": "rge", "q": 3, "mu": 0.1}, 21, 6),  # 19 to train on: the last step would hold one
        ("ZO-DS", {"estimator": "rge", "q": 3, "mu": 0.1}, 21, 64),
        ("ZO-AE-DS", {"q": 0}, 20, 6),
        ("ZO-DS", {"q": 0, "ask": 0.3, "votes": 2}, 21, 5),  # 2 of 5, three times, and 1 of 4
        ("ZO-AE-DS", {"q": 0, "distill": 7, "surrogate": "latent"}, 20, 6),
        ("ZO-AE-DS", {"q": 2, "mu": 0.1}, 20, 6),
        ("ZO-AE-DS", {"q": 9, "mu": 0.1, "central": True}, 20, 6),  # no more than 4 dimensions have
        ("ZO-DS", {"q": 2, "ask": 0.5}, 20, 6),  # the base is asked apart
        ("ZO-DS", {"q": 2, "mu": 0.1, "jitter": 0.1, "votes": 3}, 20, 6),
        ("FO-DS", {}, 20, 6),
        ("DS", {}, 20, 6),
    ],
)
@pytest.mark.parametrize("epochs", [0, 2])
def test_train_spends_the_plan(method: str, options: dict[str, Any], count: int, batch: int, epochs: int) -> None:
    asked, client, cost = train_and_plan(method, options, count=count, batch=batch, epochs=epochs, denoise_epochs=1)
    assert client.queries == cost.total
    if isinstance(asked, CountingBox):
        assert asked.images == cost.total
    assert (cost.training > 0) == (epochs > 0 and METHODS[method].order == 0)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ZO-AE-DS", {}),
        ("ZO-AE-DS", {"jitter": 0.1, "votes": 3, "ask": 0.5}),
        ("ZO-DS", {"q": 2, "mu": 0.1, "distill": 7}),  # which no box of labels can be corrected with
        ("ZO-AE-DS", {"estimator": "cge"}),
    ],
)
def test_labels_cost_answers_and_no_differences_where_a_surrogate_learns_them(
    method: str, options: dict[str, Any]
) -> None:
    asked, _, cost = train_and_plan(method, options, count=20, batch=6, epochs=2, outputs="labels")
    assert isinstance(asked, CountingBox)
    assert asked.images == cost.total
    guided = "estimator" not in options
    assert (cost.measuring == 0) == guided
    per_epoch = 18 if "ask" not in options else 9 * 3
    assert not guided or cost.training == options.get("distill", 0) + 2 * per_epoch


@pytest.mark.parametrize(
    ("method", "options", "count", "batch", "probes"),
    [  # the probe at step 20 falls on the last of three batches, or on the first of two
        ("ZO-AE-DS", {}, 21, 8, (8 + 3) * 5),
        ("ZO-DS", {"central": True}, 21, 10, (8 + 8) * 18),
        ("ZO-DS", {"mu": 0.05}, 21, 8, (8 + 3) * 10),
    ],
)
def test_a_good_surrogate_spends_answers_and_probes(
    tmp_path: Path, method: str, options: dict[str, Any], count: int, batch: int, probes: int
) -> None:
    """With q measured, as many queries as planned where no correction was bought, and d_z only bounds the probes."""
    options = {"distill": 2000, **options}
    _, client, cost = train_and_plan(method, options, count=count, batch=batch, epochs=11, out=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["q"] for row in rows] == [0] * 11
    assert client.queries == cost.total == rows[-1]["queries"]
    chosen = 0 if "mu" in options else 448 if options.get("central") else 7 * 32 + batch
    assert cost.measuring == chosen + probes
    assert cost.training == 2000 + 11 * 19


def test_without_a_dimension_probes_take_all_their_directions() -> None:
    options = QueryCost(train_images=1000, epochs=3)  # 45 steps of 900 images: three probes
    assert cost_of(options) == cost_of(replace(options, d_z=192))
    assert cost_of(options).measuring == 256 + 3 * 8 * 10
    assert cost_of(options).training == 2700


def test_skipping_dead_coordinates_spends_the_plan_at_the_measured_share() -> None:
    """An encoder with one live coordinate of four, whatever the image: a quarter of the worst case, and the base."""
    autoencoder = networks.fitting_autoencoder((1, 4, 4), 4, width=4)
    last = [layer for layer in autoencoder.encoder.modules() if isinstance(layer, nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight.zero_()
        assert last.bias is not None
        last.bias.copy_(torch.tensor([1.0, -1.0, -1.0, -1.0]))
    client = QueryClient(CountingBox(box()))
    train(
        client,
        pictures(20),
        method="ZO-AE-DS",
        sigma=0.3,
        schedule=one_cycle(1, batch_size=6),
        seed=0,
        estimator=EstimatorOptions(estimator="cge", mu=0.1).build_estimator(),
        gamma=1.0,
        denoiser=networks.dncnn(1, depth=3, width=4),
        autoencoder=autoencoder,
        scheme="denoiser",
    )
    options = QueryCost(estimator="cge", mu=0.1, train_images=20, epochs=1, train_batch_size=6, d_z=4, live=0.25)
    assert cost_of(options).training == 18 * 2
    assert client.queries == cost_of(options).total


def test_certify_spends_the_plan() -> None:
    client = QueryClient(box())
    certify_dataset(SmoothedClassifier(client, 3, 0.3), pictures(5), n0=7, n=23, alpha=0.01, seed=0)
    options = QueryCost(certify_images=5, n0=7, n=23, rule="fixed", alpha=0.01)
    assert client.spent == {"certify": cost_of(options).certification, "batch check": 2}
    assert cost_of(options).certification == 150


@pytest.mark.parametrize(
    ("given", "n"),
    [
        ({"rule": "fixed"}, 9),
        ({}, 20),
        ({"radii": [0.3]}, 30),
        ({"rule": "alpha-spending", "radii": [0.15, 0.6]}, 18),
        ({"tolerance": 0.1}, 10),
        ({"n0": 0}, 1000),
    ],
)
def test_what_certify_refuses_is_not_priced(given: dict[str, Any], n: int) -> None:
    """In the same words; and the smallest n that the message names is priced."""
    options = QueryCost(certify_images=5, n=n, sigma=SIGMA, **given)

    def certify() -> None:
        n0, _ = options.sample_sizes()
        Sampling(n0, n, 0.001, options.build_rule(SIGMA)).sizes(Gaussian(SIGMA), 3)

    with pytest.raises(InvalidInput) as refused:
        certify()
    with pytest.raises(InvalidInput, match=re.escape(str(refused.value))):
        cost_of(options)
    if smallest := re.search(r"smallest n is (\d+)$", str(refused.value)):
        n0, least = options.sample_sizes()[0], int(smallest[1])
        assert cost_of(replace(options, n=least)).certification == 5 * (n0 + least)
    assert cost_of(replace(options, certify_images=0, n0=None)).certification == 0


def test_radii_need_a_sigma_and_the_usual_ones_are_in_units_of_it() -> None:
    with pytest.raises(InvalidInput, match=r"radii are \[0\.1\], but sigma is not given"):
        cost_of(QueryCost(certify_images=5, radii=[0.1]))
    with pytest.raises(InvalidInput, match=r"cannot certify r = 0\.5 at .* \(r in units of sigma\)$"):
        cost_of(QueryCost(certify_images=5, n=20))
    for sigma in (None, 0.1, 3.0):
        assert cost_of(QueryCost(certify_images=5, n=21, sigma=sigma)).certification == 5 * (25 + 21)


SIGMA, ALPHA, CAP = 0.3, 0.01, 1000
RULES: list[Rule] = [EProcess(radii=(0.15,)), AlphaSpending(radii=(0.15, 0.3)), EProcess(tolerance=0.2, growth=1.5)]


def certified(images: Images, n: int, rule: Rule | None = None, out: Path | None = None) -> list[CertificateRow]:
    smoothed = SmoothedClassifier(box(), 3, SIGMA)
    return certify_dataset(smoothed, images, n0=20, n=n, alpha=ALPHA, seed=0, rule=rule, out=out, model="linear")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("pilot", [200, EProcess(radii=(0.3,))])
def test_a_pilot_expects_what_other_images_then_spend(rule: Rule, pilot: Any) -> None:
    first, later = pictures(160).select(slice(40)), pictures(160).select(slice(40, 160))
    rows = certified(first, pilot) if isinstance(pilot, int) else certified(first, CAP, pilot)
    mean, error = expected_samples(rows, rule, CAP)
    realised = np.array([row.n for row in certified(later, CAP, rule)])
    spread = realised.std(ddof=1)
    assert 0 < error < spread  # an error of a mean of 40 images
    assert abs(realised.mean() - mean) <= 4 * math.hypot(error, spread / math.sqrt(len(realised)))


def test_unlimited_pilots_expect_the_exact_mean() -> None:
    """With 10^7 votes the probabilities are known, and what is expected is the mean of the exact recursions."""
    ps, votes, rule = (0.6, 0.8, 0.95), 10_000_000, RULES[0]
    known = [
        CertificateRow(
            idx=i, label=None, predict=None, radius=0.0, correct=None, seconds=0.0, selected=0, p_lower=0.0,
            counts=(round(p * votes), votes - round(p * votes)), n0=1, n=votes, alpha=ALPHA, sigma=SIGMA, seed=0,
            queries=votes + 1, image=f"{i:064x}", model="known", version="0",
        )
        for i, p in enumerate(ps)
    ]  # fmt: skip
    exact = np.array([forecast(rule, p, CAP, ALPHA, asked(rule, Gaussian(SIGMA))).samples for p in ps])
    mean, error = expected_samples(known, rule, CAP)
    assert mean == pytest.approx(exact.mean(), rel=1e-3)
    assert error == pytest.approx(exact.std(ddof=1) / math.sqrt(3), rel=1e-3)


def test_a_pilot_of_the_same_rule_is_averaged(tmp_path: Path) -> None:
    rule, out = RULES[1], tmp_path / "pilot.jsonl"
    drawn = [row.n for row in certified(pictures(12), CAP, rule, out)]
    options = QueryCost(certify_images=500, n0=7, n=CAP, rule="alpha-spending", radii=[0.15, 0.3], pilot=str(out))
    cost = cost_of(options)
    assert cost.samples is not None
    assert cost.samples == pytest.approx((np.mean(drawn), np.std(drawn, ddof=1) / math.sqrt(12)))
    assert cost.certification == round(500 * (7 + np.mean(drawn)))


def test_without_a_pilot_a_rule_is_counted_at_its_cap(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = QueryCost(certify_images=5, n0=7, n=CAP, rule="e-process", radii=[0.15], sigma=SIGMA)
    assert cost_of(options).certification == 5 * (7 + CAP)
    run(options)
    assert "counted at the maximum n of 1,000 votes an image, the worst case" in capsys.readouterr().out
    certified(pictures(12), 100, out=tmp_path / "pilot.jsonl")
    run(QueryCost(certify_images=5, n=CAP, rule="e-process", radii=[0.15], pilot=str(tmp_path / "pilot.jsonl")))
    text = capsys.readouterr().out
    shown = re.search(r"expects ([\d,]+) estimation votes an image \(standard error ([\d,]+), over", text)
    mean, error = expected_samples(certified(pictures(12), 100), EProcess(radii=(0.15,)), CAP)
    assert shown is not None
    assert shown.groups() == (f"{mean:,.0f}", f"{error:,.0f}")
    share, worst = unseen(12, mean, CAP)
    assert f"a pilot of 12 images may, at 95 % confidence, have missed up to {100 * share:.1f} % of all images" in text
    assert f"if each of them took 1,000 votes, the mean would be {worst:,.0f}\n" in text


@pytest.mark.parametrize("piloted", [2, 20, 300])
def test_a_kind_that_a_pilot_lacks_may_be_as_common_as_it_is_missed_one_time_in_twenty(piloted: int) -> None:
    share, worst = unseen(piloted, 161.0, 10_000)
    assert (1 - share) ** piloted == pytest.approx(0.05)
    assert worst == pytest.approx(161.0 + share * (10_000 - 161.0))
    assert unseen(20, 161.0, 10_000) == pytest.approx((0.139108, 1529.69), rel=1e-5)


def test_radii_that_the_cap_cannot_certify_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    run(QueryCost(certify_images=5, n=50, sigma=SIGMA))
    assert "n = 50 cannot certify r = 0.6 (the smallest n is 325): 0 % there" in capsys.readouterr().out
    run(QueryCost(certify_images=5, n=50))
    assert "cannot certify r = 2 (the smallest n is 325): 0 % there says nothing of the model (r in" in (
        capsys.readouterr().out
    )
    run(QueryCost(certify_images=5, n=325, sigma=SIGMA))
    run(QueryCost(certify_images=5, n=50, rule="fixed"))
    run(QueryCost(serve_answers=5))
    assert "cannot certify" not in capsys.readouterr().out
    with pytest.raises(InvalidInput, match="ask for less"):
        run(QueryCost(certify_images=5, radii=[0.1, 99.0], sigma=SIGMA))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rule": "fixed"}, "wanted --rule e-process"),
        ({"radii": [0.1], "tolerance": 0.1}, "exactly one"),
        ({"rule": "e-process", "radii": [0.1], "images": 1}, "the pilot has 1 rows; wanted at least 2"),
        ({"rule": "e-process", "radii": [0.9], "n": 100}, "n = 100 cannot certify r = 0.9"),
    ],
)
def test_a_pilot_that_tells_nothing_is_refused(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    out = tmp_path / "pilot.jsonl"
    certified(pictures(given.pop("images", 3)), 100, out=out)
    with pytest.raises(InvalidInput, match=re.escape(words)):
        cost_of(QueryCost(certify_images=5, pilot=str(out), **given))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"validation": 1.5}, "validation is 1.5"),
        ({"live": -0.1}, "live is -0.1"),
        ({"live": float("nan")}, "live is nan"),
        ({"train_images": -1}, "train_images is -1"),
        ({"epochs": -1}, "epochs is -1"),
        ({"n": -1}, "n is -1"),
        ({"price": -2.0}, "price is -2.0"),
        ({"d_z": 0}, "d_z is 0"),
        ({"train_batch_size": 1}, "train_batch_size is 1"),
        ({"d_z": None, "estimator": "cge"}, "--d-z 192"),
        ({"d_z": None, "q": 2}, "--d-z 192"),
        ({"estimator": "orthogonal", "q": 33}, "q = 33"),
        ({"estimator": "rge", "q": 0}, "q is 0"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(words)):
        cost_of(QueryCost(**{"train_images": 100, "d_z": 32, **given}))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({}, "measured cosine is below 0.3"),
        ({"d_z": 32}, "below 0.3, at most 4 an image and step"),  # 1 + ceil(31 * 0.09)
        ({"d_z": 32, "central": True}, "at most 8 an"),
        ({"d_z": 32, "ask": 0.5}, "at most 5 an"),  # with a base of their own
        ({"q": 0}, None),
        ({"estimator": "cge", "d_z": 32}, None),
        ({"method": "DS"}, None),
    ],
)
def test_corrections_that_may_come_on_top_are_told(
    capsys: pytest.CaptureFixture[str], given: dict[str, Any], line: str | None
) -> None:
    run(QueryCost(train_images=100, **given))
    shown = capsys.readouterr().out
    assert line is None or line in shown
    assert ("corrections come on top" in shown) == (line is not None)
    assert "worst case" not in shown  # nothing is certified


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"estimator": "cge", "mu": 0.05}, True),
        ({"estimator": "orthogonal", "mu": 0.05, "q": 4}, True),
        ({"estimator": "guided", "mu": 0.05, "q": 2}, True),
        ({"estimator": "cge", "mu": 0.05, "live": 0.5}, False),
        ({"estimator": "rge", "mu": 0.05, "q": 4}, False),
        ({"estimator": "guided", "q": 0}, False),
        ({"estimator": "cge", "mu": 0.05, "method": "ZO-DS"}, False),
    ],
)
def test_dead_coordinates_that_may_cost_less_are_told(
    given: dict[str, Any], told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run(QueryCost(train_images=40, epochs=1, d_z=8, **given))
    assert ("those that a ReLU holds at 0 cost nothing" in capsys.readouterr().out) == told


@pytest.mark.parametrize(("every", "times"), [(None, 8), (1, 8), (2, 5), (3, 4), (7, 2), (20, 2)])
def test_validations_are_the_start_every_so_many_epochs_and_the_end(every: int | None, times: int) -> None:
    """As `loop.run` scores seven epochs, and the start."""
    cost = cost_of(QueryCost(train_images=100, epochs=7, validation=0.2, validation_votes=3, validate_every=every))
    assert cost.validation == 20 * 3 * times


def test_certify_and_query_cost_have_the_same_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert cost_of(QueryCost(certify_images=3)).certification == 3 * (25 + 100_000)
    assert cost_of(QueryCost(certify_images=3, rule="fixed")).certification == 3 * (100 + 10_000)
    assert cost_of(QueryCost(certify_images=3, rule="alpha-spending", n=500)).certification == 3 * (25 + 500)
    run(QueryCost(certify_images=3))
    assert "at the maximum n of 100,000 votes an image, the worst case" in capsys.readouterr().out
    run(QueryCost(certify_images=3, rule="fixed"))
    assert "cap" not in capsys.readouterr().out
    assert RuleOptions().build_rule(0.25) == EProcess(radii=(0.125, 0.25, 0.5))
    assert RuleOptions(tolerance=0.1).build_rule(0.25) == EProcess(tolerance=0.1)
    with pytest.raises(InvalidInput, match=r"futility is 2; wanted a rate .* or 0 for never"):
        RuleOptions(futility=2).build_rule(0.25)
    for rule, usual in (("fixed", 100), ("e-process", 25), ("alpha-spending", 25)):
        with pytest.raises(InvalidInput, match=f"n0 is 0; wanted at least 1 vote .* by default {usual} here"):
            RuleOptions(rule=rule, n0=0).sample_sizes()  # pyright: ignore[reportArgumentType]
    assert RuleOptions(radii=[0.1], futility=0).build_rule(0.25) == EProcess(radii=(0.1,), futility=None)


def test_the_table_multiplies_queries_by_the_price_of_a_thousand(capsys: pytest.CaptureFixture[str]) -> None:
    options = QueryCost(
        estimator="cge",
        train_images=1000,
        epochs=3,
        d_z=32,
        certify_images=100,
        n=1000,
        serve_answers=5,
        price=2.0,
    )
    run(options)
    shown = dict(re.findall(r"│ (\w+) +│ +([\d,]+ │ +[\d,.]+) │", capsys.readouterr().out))
    lines = {name: tuple(text.replace(",", "").replace(" ", "").split("│")) for name, text in shown.items()}
    queries = {"targets": 1000, "measuring": 256, "training": 89_100, "validation": 1600}
    queries |= {"certification": 102_500, "serving": 5000}
    queries["total"] = sum(queries.values())
    assert lines == {name: (str(count), f"{2 * count / 1000:.2f}") for name, count in queries.items()}
    run(QueryCost(serve_answers=1))
    assert "serving costs" in capsys.readouterr().out
    run(QueryCost(train_images=100))
    assert "serving costs" not in capsys.readouterr().out  # nothing was asked about it
    run(QueryCost(certify_images=1))
    free = capsys.readouterr().out
    assert re.search(r"total +│ +100,025 │ +– │", free)
    assert "serving costs 1,000 queries an answer" in free


def test_what_is_typical_is_what_the_study_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """The larger of the means over the published certificates at the two sigmas, for what `certify` does by default."""
    rows = json.loads((ROOT / "studies" / "results" / "sequential_certification.json").read_text())["rows"]
    names = {"e-process": "e-process", "α-spending": "alpha-spending"}
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["rule"] in names and row["radii"] == [ratio * row["sigma"] for ratio in GRID] and row["asked"] == "grid":
            assert (row["n0"], row["cap"]) == SEQUENTIAL
            found.setdefault(names[row["rule"]], []).append(row["mean_samples"])
    assert {rule: max(means) for rule, means in found.items()} == TYPICAL
    assert {len(means) for means in found.values()} == {2}
    run(QueryCost(certify_images=200, price=1.0))
    printed = capsys.readouterr().out
    assert re.search(r"total .* 20,005,000 .* 20,005\.00 .* 454,860 ", printed)
    assert "about 2,274 votes an image are typical" in printed
    run(QueryCost(certify_images=200, n=500))
    assert "typical" not in capsys.readouterr().out

"""As many certificates as possible for so many queries, none of them false more often than any other."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from certibox.blackbox import as_blackbox
from certibox.certification import spending
from certibox.certification.dataset import certify_dataset
from certibox.certification.smoothing import SmoothedClassifier
from certibox.certification.stored import is_decided, read, replay
from certibox.confidence.sequential import AlphaSpending, EProcess, Rule
from certibox.data import Images
from certibox.errors import ConfigMismatch, InvalidInput, UnreadableFile
from certibox.queries.client import QueryClient
from certibox.records.certificates import CertificateRow, read_rows

SIGMA, RADIUS = 0.25, 0.125
EASY, NEAR, HOPELESS = 0.45, 0.135, 0.02  # distances from the boundary: exact radii of the smoothed classifier
RULE = EProcess(radii=(RADIUS,))


def pictures(*distances: float) -> Images:
    """Images whose first pixel is so far from the boundary at grey 1/2; the others give each a noise of its own."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (len(distances), 1, 2, 2), generator=generator, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = (255 * (0.5 + torch.tensor(distances))).round().to(torch.uint8)
    return Images(pixels, torch.zeros(len(distances), dtype=torch.int64), "pixels")


class Boundary:
    """Class 0 above grey 1/2; counts what it is asked, and may raise at a call."""

    answers_alone = True

    def __init__(self, fails_at: int | None = None) -> None:
        self.asked = self.calls = 0
        self.fails_at = fails_at

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.fails_at:
            raise Interrupted
        self.asked += len(x)
        return (x.flatten(1)[:, 0] <= 0.5).long()


class Interrupted(Exception):
    pass


def spend(queries: int | None, images: Images, box: Any = None, out: Path | None = None, **change: Any):
    settings = {"n0": 10, "n": 20_000, "alpha": 0.001, "seed": 3, "rule": RULE, "batch_size": 100, "model": "b"}
    smoothed = SmoothedClassifier(box or Boundary(), 2, SIGMA)
    return certify_dataset(smoothed, images, out=out, spend=queries, **{**settings, **change})


def bare(row: CertificateRow) -> CertificateRow:
    """The row without its seconds, and without the note that queries were spent."""
    assert row.rule is not None
    return replace(row, seconds=0.0, rule={key: value for key, value in row.rule.items() if key != "spent"})


def certified(rows: list[CertificateRow]) -> set[int]:
    return {row.idx for row in rows if row.predict is not None and row.radius >= RADIUS}


SMALL = pictures(*([NEAR, HOPELESS, EASY, NEAR] * 5))
MIXED = pictures(*([NEAR, HOPELESS, EASY, NEAR] * 30))


@pytest.mark.parametrize("rule", [RULE, AlphaSpending(radii=(RADIUS,))], ids=["e-process", "alpha-spending"])
def test_easy_images_are_certified_first(rule: Rule) -> None:
    """30 easy images take 1,500 queries or so; the first images in their order would take all of 6,000."""
    box = Boundary()
    rows = spend(6_000, MIXED, box, rule=rule)
    easy = {i for i in range(120) if i % 4 == 2}
    assert certified(rows) >= easy
    assert box.asked <= 6_000
    in_order, spent = 0, 0
    for row in spend(None, MIXED, rule=rule):
        spent += row.queries
        in_order += spent <= 6_000 and row.radius >= RADIUS
    assert in_order <= len(easy) / 4


@pytest.mark.parametrize("queries", [31, 32, 100, 999, 5_000])
def test_what_is_spent_is_what_was_allowed_at_most(queries: int) -> None:
    box = Boundary()
    rows = spend(queries, MIXED, box)
    assert box.asked <= queries
    assert sum(row.queries for row in rows) == box.asked
    sizes = RULE.sizes(20_000, 0.001, (float(torch.special.ndtr(torch.tensor(0.5))),))
    begun = {row.idx for row in rows}
    assert begun == set(range(len(begun)))  # the first images, in their order
    if len(begun) < 120:
        assert queries - box.asked < max(10 + sizes[0], 20_000)
    assert all(row.n >= sizes[0] for row in rows)


def test_with_enough_to_spend_the_rows_are_those_of_the_rule_alone() -> None:
    assert [bare(row) for row in spend(10**7, SMALL)] == [bare(row) for row in spend(None, SMALL)]


def test_every_row_replays_and_one_that_ended_early_says_so(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    rows = spend(6_000, MIXED, out=out)
    assert replay(rows) == rows
    assert read(out) == rows
    early = [row for row in rows if not is_decided(row)]
    assert early
    assert all(row.rule is not None and row.rule["spent"] is True for row in rows)
    with pytest.raises(InvalidInput, match="where the rule goes on"):
        replay([bare(early[0])])
    proven = next(row for row in early if row.radius > 0)
    out.write_text(out.read_text().replace(f'"p_lower": {proven.p_lower}', f'"p_lower": {proven.p_lower + 0.01}'))
    with pytest.raises(UnreadableFile):
        read(out)


def test_more_to_spend_goes_on_with_the_same_votes(tmp_path: Path) -> None:
    """No vote is asked for twice, and what the rule ends is what it ends without a limit."""
    out, whole = tmp_path / "rows.jsonl", {row.idx: row for row in spend(None, MIXED)}
    box, before = Boundary(), set[int]()
    for queries in (500, 2_000, 2_000, 9_000, 10**7):
        rows = spend(queries, MIXED, box, out)
        assert box.asked <= queries
        assert sum(row.queries for row in rows) == box.asked
        assert [row.idx for row in rows] == sorted({row.idx for row in rows})
        assert read_rows(out) == rows
        for row in rows:
            if is_decided(row):
                assert bare(row) == bare(whole[row.idx])
        assert before <= certified(rows)
        before = certified(rows)
    assert len(rows) == 120
    assert not (tmp_path / "rows.jsonl.votes").exists()


@pytest.mark.parametrize("call", [1, 2, 5, 40, 100, 150])
def test_an_interrupted_run_spends_no_more(tmp_path: Path, call: int) -> None:
    out, box = tmp_path / "rows.jsonl", Boundary(call)
    with pytest.raises(Interrupted):
        spend(3_000, MIXED, box, out)
    rows = spend(3_000, MIXED, box, out)
    assert box.asked <= 3_000
    assert sum(row.queries for row in rows) <= box.asked
    assert read(out) == rows
    assert sum(row.queries for row in rows) >= 3_000 - 20_000 // 50  # what is left pays no further look
    assert len(certified(rows)) >= len(certified(spend(3_000, MIXED))) - 1 >= 17


def test_the_same_is_bought_where_little_noise_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [bare(row) for row in spend(3_000, MIXED)]
    monkeypatch.setattr(spending, "MOST_KEPT", 1)
    assert [bare(row) for row in spend(3_000, MIXED)] == wanted


class Own:
    """A rule of somebody else: that of certibox under another name."""

    radii = (RADIUS,)

    def sizes(self, n, alpha, thresholds):
        return RULE.sizes(n, alpha, thresholds)

    def decide(self, looks, n, alpha, thresholds):
        return RULE.decide(looks, n, alpha, thresholds)

    def as_dict(self):
        return {"name": "own", "radii": [RADIUS]}


def test_a_rule_of_your_own_is_spent_on_and_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    spend(1_000, MIXED, out=out, rule=Own())
    own, ours = spend(3_000, MIXED, out=out, rule=Own()), spend(3_000, MIXED)
    assert len(certified(own)) >= len(certified(ours)) - 1
    assert sum(row.queries for row in own) <= 3_000


def test_several_calls_at_once_spend_no_more() -> None:
    def answer(x):
        return (x.reshape(len(x), -1)[:, 0] <= 0.5).astype("int64")

    box = as_blackbox(answer, "labels", num_classes=2, concurrency=4, name="boundary", batch_size=20)
    client = QueryClient(box)
    rows = certify_dataset(
        SmoothedClassifier(client, 2, SIGMA),
        MIXED,
        n0=10,
        n=20_000,
        alpha=0.001,
        seed=3,
        rule=RULE,
        batch_size=80,
        spend=6_000,
    )
    assert client.spent["certify"] <= 6_000
    assert len(certified(rows)) >= 28


def test_a_smaller_budget_bounds_what_is_spent() -> None:
    def answer(x):
        return (x.reshape(len(x), -1)[:, 0] <= 0.5).astype("int64")

    client = QueryClient(as_blackbox(answer, "labels", num_classes=2, name="boundary"), budget=700)
    smoothed = SmoothedClassifier(client, 2, SIGMA)
    rows = certify_dataset(smoothed, MIXED, n0=10, n=20_000, alpha=0.001, seed=3, rule=RULE, spend=6_000)
    assert 0 < sum(row.queries for row in rows) <= 700


def test_certificates_are_false_no_more_often_than_alpha() -> None:
    """Images whose exact radius is just below the one that is asked, under one purse that picks the most promising.

    Of the certificates of this radius all are false. Each has probability at most alpha, and the images' noise is
    independent, so that their number is at most binomial; it exceeds the bound below with probability 1e-6.
    """
    alpha, count = 0.05, 400
    images = pictures(*([RADIUS] * count))
    exact = float(images.floats([0])[0, 0, 0, 0]) - 0.5
    rule = EProcess(radii=(exact + 1e-7,), futility=None)
    rows = spend(400_000, images, rule=rule, alpha=alpha, n=100_000, batch_size=5000)
    false = sum(row.predict == 0 and row.radius > exact for row in rows)
    assert 0 < false <= binom.ppf(1 - 1e-6, count, alpha)


def test_votes_before_a_first_look_are_kept_where_it_is_not_paid_for(tmp_path: Path) -> None:
    """Killed before the first look of the only image, with a smaller number to spend now; then with enough."""
    out, box = tmp_path / "rows.jsonl", Boundary(2)
    with pytest.raises(Interrupted):
        spend(1_000, pictures(EASY), box, out, batch_size=16)
    assert box.asked == 16
    assert spend(31, pictures(EASY), box, out)[0].queries == 31
    assert box.asked == 31


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rule": None}, "queries are spent on one radius"),
        ({"rule": EProcess(radii=(0.1, 0.2))}, "queries are spent on one radius"),
        ({"rule": EProcess(tolerance=0.05)}, "queries are spent on one radius"),
        ({"queries": 30}, r"spend is 30; wanted at least 31"),
        ({"queries": 3.5}, "enough for the first look"),
    ],
)
def test_what_cannot_be_spent_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        spend(change.pop("queries", 1000), MIXED, **change)


def test_rows_of_a_run_without_a_limit_are_not_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    spend(None, pictures(EASY, EASY), out=out)
    with pytest.raises(ConfigMismatch, match="rule"):
        spend(1_000, pictures(EASY, EASY), out=out)


def test_an_exact_radius_is_a_probability() -> None:
    """The images above are what they are said to be."""
    noise = torch.randn(10**6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * SIGMA
    assert abs(float((noise + NEAR > 0).double().mean()) - 0.5 * (1 + math.erf(NEAR / SIGMA / 2**0.5))) < 0.002

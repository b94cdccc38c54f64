"""A stranger's stopping rule does all that ours do: certify, resume, replay, merge; and a record is not believed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binom
from torch import Tensor

import certibox as cb
from certibox.certification.certificate import Certificate
from certibox.certification.dataset import certify_dataset
from certibox.certification.smoothing import SmoothedClassifier
from certibox.certification.stored import at_alpha, merge, replay
from certibox.commands.reporting import Merge, Report, run_merge, run_report
from certibox.confidence import AnyLevelRule, Decision, Gaussian, StoppingRule, lower_confidence_bound
from certibox.confidence.sequential import AlphaSpending, EProcess
from certibox.confidence.stopping import Looks, asked
from certibox.data import Images
from certibox.errors import ConfigMismatch, InvalidInput
from certibox.records.certificates import CertificateRow, append_row, read_rows
from doubles import CountingBox, LinearBox, alone
from places import ROOT

SIGMA, N0, N, ALPHA = 0.25, 5, 400, 0.01
LAW = Gaussian(SIGMA)


@dataclass(frozen=True)
class FixedLooks:
    """Clopper–Pearson bounds at listed looks, each with an equal part of alpha."""

    at: Sequence[int]
    radii: Sequence[float] | None = (0.05, 0.125)

    def sizes(self, n: int, alpha: float, thresholds: Sequence[float]) -> tuple[int, ...]:
        return (*(size for size in self.at if size < n), n)

    def decide(self, looks: Looks, n: int, alpha: float, thresholds: Sequence[float]) -> Decision:
        p_lower = self.bound(looks, alpha / len(self.sizes(n, alpha, thresholds)))
        proven = p_lower >= thresholds[-1]
        return Decision(proven, p_lower, "certified" if proven else "")

    def as_dict(self) -> dict[str, Any]:
        return {"name": "fixed-looks", "at": self.at, "radii": self.radii}

    @staticmethod
    def bound(looks: Looks, level: float) -> float:
        return max(lower_confidence_bound(successes, samples, level) for samples, successes in looks)


@dataclass(frozen=True)
class AnyLevel(FixedLooks):
    """The same, which also knows its bound at other levels."""

    def as_dict(self) -> dict[str, Any]:
        return super().as_dict() | {"name": "any-level"}

    def p_lower_at(self, looks: Looks, n: int, alpha: float, thresholds: Sequence[float], at: float) -> float:
        return self.bound(looks, at / len(self.sizes(n, alpha, thresholds)))


RULE = FixedLooks((30, 60, 150))
TABLE = {"fixed-looks": FixedLooks, "any-level": AnyLevel}


def box() -> CountingBox:
    return CountingBox(LinearBox(torch.randn(3, 6, generator=torch.Generator().manual_seed(1))))


def pictures(count: int = 6) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, 2, 3), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 3, "random")


def certified(base: Callable[[Tensor], Tensor], rule: StoppingRule = RULE, **change: Any) -> list[CertificateRow]:
    settings: dict[str, Any] = {"n0": N0, "n": N, "alpha": ALPHA, "seed": 3, "model": "linear", "batch_size": 50}
    return certify_dataset(SmoothedClassifier(base, 3, SIGMA), pictures(), rule=rule, **settings | change)


def timeless(rows: list[CertificateRow]) -> list[CertificateRow]:
    return [replace(row, seconds=0.0) for row in rows]


def test_the_protocols_know_ours_and_a_strangers() -> None:
    for rule in (RULE, EProcess(radii=(0.1,)), AlphaSpending(tolerance=0.1)):
        assert isinstance(rule, StoppingRule)
    assert not isinstance(RULE, AnyLevelRule)
    for rule in (AnyLevel((30,)), EProcess(radii=(0.1,)), AlphaSpending(tolerance=0.1)):
        assert isinstance(rule, AnyLevelRule)


def test_votes_end_where_the_rule_says_and_the_radius_is_that_of_its_bound(tmp_path: Path) -> None:
    inner, out = box(), tmp_path / "rows.jsonl"
    rows = certified(inner, out=out)
    assert inner.images == sum(row.queries for row in rows)
    assert len({row.n for row in rows}) > 1
    needs = asked(RULE, LAW)
    for row in rows:
        looks = row.looks
        assert looks is not None
        assert [n for n, _ in looks] == [30, 60, 150, N][: len(looks)]
        told = [RULE.decide(looks[: k + 1], N, ALPHA, needs) for k in range(len(looks))]
        assert [decision.stop for decision in told[:-1]] == [False] * (len(looks) - 1)
        assert told[-1].stop or row.n == N
        assert row.p_lower == told[-1].p_lower
        assert row.radius == LAW.radius(row.p_lower)
        assert row.rule == {"name": "fixed-looks", "at": [30, 60, 150], "radii": [0.05, 0.125], "cap": N, "alpha": 0.01}
        assert (row.cap, row.decided) == (N, (0.05, 0.125))
    assert read_rows(out) == rows
    assert replay(rows, TABLE) == rows
    assert replay(read_rows(out), {"fixed-looks": FixedLooks}) == rows


def interruptions(inner: CountingBox, after: int) -> Callable[[Tensor], Tensor]:
    left: Iterator[int] = iter(range(after))

    def answer(x: Tensor) -> Tensor:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return inner(x)

    return alone(answer)


def test_an_interrupted_run_resumes_to_the_batch(tmp_path: Path) -> None:
    plain = box()
    undisturbed = timeless(certified(plain))
    for after in range(0, plain.calls, 5):
        out, inner = tmp_path / f"{after}.jsonl", box()
        with pytest.raises(KeyboardInterrupt):
            certified(interruptions(inner, after), out=out)
        assert timeless(certified(inner, out=out)) == undisturbed
        assert inner.batch_sizes == plain.batch_sizes
    with pytest.raises(ConfigMismatch, match=r"rule\.at is \[30, 60, 150\] there and \[30\] here"):
        certified(box(), FixedLooks((30,)), out=tmp_path / "0.jsonl")


def test_shards_merge_and_the_report_reads_them(tmp_path: Path) -> None:
    rule = FixedLooks((30, 60), radii=None)  # decides no radius in particular
    parts = [tmp_path / f"{index}.jsonl" for index in range(2)]
    for index, part in enumerate(parts):
        certified(box(), rule, out=part, shard=(index, 2))
    assert timeless(merge(parts, tmp_path / "rows.jsonl")) == timeless(certified(box(), rule))
    run_merge(Merge(files=[str(part) for part in parts], out=str(tmp_path / "merged.jsonl")))
    run_report(Report(files=[str(tmp_path / "merged.jsonl")], out=str(tmp_path / "report")))
    assert "fixed-looks" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    with pytest.raises(InvalidInput, match="the stopping rule is 'fixed-looks'"):
        run_report(Report(files=[str(tmp_path / "merged.jsonl")], alpha=0.05, out=str(tmp_path / "report")))


def test_without_its_builder_a_record_is_refused_in_one_line() -> None:
    rows = certified(box())
    for refused in (lambda: replay(rows), lambda: at_alpha(rows, ALPHA), lambda: replay(rows, {"another": FixedLooks})):
        with pytest.raises(InvalidInput, match=r"'fixed-looks'.*rules=\{'fixed-looks': builder\}") as error:
            refused()
        assert "\n" not in str(error.value)


def test_another_alpha_is_for_rules_that_know_their_bound_there() -> None:
    rows = certified(box())
    assert at_alpha(rows, ALPHA, TABLE) == rows
    with pytest.raises(InvalidInput, match=r"fixed-looks ran at alpha = 0.01 and gives no bound at 0.05"):
        at_alpha(rows, 0.05, TABLE)
    rows = certified(box(), AnyLevel((30, 60, 150)))
    looser = at_alpha(rows, 0.05, TABLE)
    assert replay(looser, TABLE) == looser
    assert at_alpha(looser, ALPHA, TABLE) == rows
    for row, other in zip(rows, looser, strict=True):
        assert other.p_lower == FixedLooks.bound(row.looks or (), 0.05 / 4)
        assert other.p_lower > row.p_lower


def tampered(certificate: Certificate) -> dict[str, Certificate]:
    looks, rule = certificate.looks, certificate.rule
    assert looks is not None
    assert rule is not None
    ((before, won), (n, successes)) = looks[-2:]
    short = [0, 0, 0]
    short[certificate.selected], short[certificate.selected - 1] = won, before - won
    return {
        "a radius beyond the bound": replace(certificate, radius=certificate.radius * 1.001),
        "a bound beyond the votes": replace(certificate, p_lower=certificate.p_lower + 1e-6),
        "an end before the rule's": replace(
            certificate, looks=looks[:-1], n=before, counts=tuple(short), queries=N0 + before
        ),
        "a look left out": replace(certificate, looks=looks[1:]),
        "a look that was not due": replace(certificate, looks=(*looks[:-2], (before + 1, won), looks[-1])),
        "votes that vanish": replace(certificate, looks=(*looks[:-2], (before, successes + 1), looks[-1])),
        "another maximum": replace(certificate, rule=rule | {"cap": n}),
        "another alpha": replace(certificate, rule=rule | {"alpha": 0.5}),
        "other radii": replace(certificate, rule=rule | {"radii": [0.01]}),
        "other looks": replace(certificate, rule=rule | {"at": [30]}),
        "a setting too many": replace(certificate, rule=rule | {"speed": 2}),
        "a setting too few": replace(certificate, rule={key: value for key, value in rule.items() if key != "at"}),
        "no radii": replace(certificate, rule={key: value for key, value in rule.items() if key != "radii"}),
        "a rule of ours": replace(
            certificate, rule=EProcess(radii=(0.05, 0.125)).as_dict() | {"cap": N, "alpha": ALPHA}
        ),
    }


def test_a_certificate_that_the_rule_did_not_make_is_refused() -> None:
    smoothed = SmoothedClassifier(box(), 3, SIGMA)
    asked_for: dict[str, Any] = {"n0": N0, "n": N, "alpha": ALPHA, "rule": RULE}
    made = (smoothed.certify(x, seed=seed, **asked_for) for x in pictures(60).floats() for seed in range(2))
    certificate = next(c for c in made if c.label is not None and c.n < N and len(c.looks) > 1)
    assert certificate.replay(TABLE) == certificate
    for change, other in tampered(certificate).items():
        with pytest.raises(InvalidInput) as error:
            print("replayed although there is", change, other.replay(TABLE))
        assert "\n" not in str(error.value)


def test_a_builder_that_builds_another_rule_is_refused() -> None:
    rows = certified(box())
    with pytest.raises(InvalidInput, match=r"has at = \[30, 60, 150\] in the record, and \[30, 60\] when it is built"):
        replay(rows, {"fixed-looks": lambda **settings: FixedLooks(settings["at"][:2], settings["radii"])})
    with pytest.raises(InvalidInput, match="rule is a int; wanted a stopping rule"):
        replay(rows, {"fixed-looks": lambda **settings: 3})  # pyright: ignore[reportArgumentType]


class Changed(FixedLooks):
    """A rule with other answers."""

    def __init__(self, **answers: Any) -> None:
        super().__init__((30, 60))
        for name, answer in answers.items():
            object.__setattr__(self, name, answer if callable(answer) else lambda *_, answer=answer: answer)


@pytest.mark.parametrize(
    ("rule", "came"),
    [
        (object(), "rule is a object; wanted a stopping rule"),
        (Changed(as_dict={"at": [30], "radii": [0.05, 0.125]}), "has the name None"),
        (Changed(as_dict={"name": "e-process", "radii": [0.05, 0.125]}), "'e-process', which is certibox's"),
        (Changed(as_dict={"name": "mine", "radii": [0.05, 0.125], "cap": 3}), "has 'cap'"),
        (Changed(as_dict={"name": "mine"}), r"has the radii None; wanted \[0.05, 0.125\]"),
        (Changed(as_dict={"name": "mine", "radii": (0.05,)}), r"has the radii \[0.05\]; wanted \[0.05, 0.125\]"),
        (Changed(as_dict={"name": "mine", "radii": [0.05, 0.125], "of": {1, 2}}), "gives no values of JSON"),
        (FixedLooks((30,), radii=(0.2, 0.1)), "wanted ascending radii"),
        (FixedLooks((30,), radii=()), "wanted ascending radii"),
        (Changed(sizes=()), r"looks at \[\] samples; wanted ascending sizes that end at n = 400"),
        (Changed(sizes=(30, 60)), r"looks at \[30, 60\]"),
        (Changed(sizes=(60, 30, 400)), r"looks at \[60, 30, 400\]"),
        (Changed(sizes=(0, 400)), r"looks at \[0, 400\]"),
    ],
)
def test_what_no_certificate_could_keep_is_refused_before_a_query(rule: Any, came: str) -> None:
    inner = box()
    with pytest.raises(InvalidInput, match=came) as error:
        certified(inner, rule)
    assert "\n" not in str(error.value)
    assert inner.calls == 0


@pytest.mark.parametrize(
    "answer", [None, 0.7, Decision(True, 1.0, ""), Decision(True, -0.1, ""), Decision(True, float("nan"), "")]
)
def test_an_answer_that_is_no_decision_is_named(answer: Any) -> None:
    with pytest.raises(InvalidInput, match=r"the stopping rule Changed decided .* after 30 votes; wanted a Decision"):
        certified(box(), Changed(decide=answer))


def test_a_rule_that_never_stops_ends_at_its_maximum() -> None:
    rule = Changed(decide=Decision(False, 0.25, ""))
    rows = certified(box(), rule)
    assert {row.n for row in rows} == {N}
    assert replay(rows, {"fixed-looks": lambda **_: rule}) == rows


def test_certificates_of_an_own_rule_are_false_as_seldom_as_its_bound() -> None:
    """A half-space just short of the radius asked: a certificate of it is false."""
    rule, alpha, trials = FixedLooks((40, 80), radii=(SIGMA / 4,)), 0.2, 300
    smoothed = SmoothedClassifier(lambda x: (x[:, 0, 0, 0] < 0).long(), 2, SIGMA)
    x = torch.tensor([0.99 * SIGMA / 4, 0.0]).view(1, 1, 2)
    made = [smoothed.certify(x, n0=1, n=200, alpha=alpha, seed=seed, rule=rule) for seed in range(trials)]
    false = sum(certificate.radius > 0.99 * SIGMA / 4 or certificate.label == 1 for certificate in made)
    assert false > 0
    assert binom.sf(false - 1, trials, alpha) >= 1e-4


def test_a_row_of_an_own_rule_survives_the_disk(tmp_path: Path) -> None:
    rows = certified(box())
    with (tmp_path / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            append_row(file, row)
    assert read_rows(tmp_path / "rows.jsonl") == rows
    assert json.loads(json.dumps(rows[0].rule)) == rows[0].rule


def test_the_rule_of_the_guide_works() -> None:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    section = text.split("## A stopping rule")[1]
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert block is not None
    names: dict[str, Any] = {"__name__": "guide"}
    exec(compile(block[1], "docs/extending.md", "exec", dont_inherit=True), names)
    assert isinstance(names["rule"], cb.StoppingRule)
    assert names["certificate"].radius >= 0.25 / 2

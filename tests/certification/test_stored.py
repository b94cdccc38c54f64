"""Rows are never believed: whatever reads a file checks that each of them follows from its votes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from certibox.certification.certificate import Certificate, fixed_bounds, reach
from certibox.certification.stored import believed, merge, read, replay
from certibox.confidence.gaussian import Gaussian
from certibox.confidence.recorded import record
from certibox.confidence.sequential import AlphaSpending, EProcess, Rule
from certibox.confidence.stopping import StoppingRule, asked, decided, due
from certibox.errors import InvalidInput, UnreadableFile
from certibox.records.certificates import CertificateRow, append_row

N0, N, ALPHA, SIGMA = 20, 400, 0.001, 0.25
RULES: dict[str, Rule | None] = {
    "fixed": None,
    "e-process": EProcess(radii=(0.1, 0.25)),
    "alpha-spending": AlphaSpending(radii=(0.1, 0.25)),
    "tolerance": EProcess(tolerance=0.1),
}


def looks_of(rule: StoppingRule, votes: np.ndarray, n: int) -> tuple[tuple[tuple[int, int], ...], float]:
    """Where a rule looks at votes until it stops, and its bound there."""
    thresholds = asked(rule, Gaussian(SIGMA))
    looks: list[tuple[int, int]] = []
    for size in due(rule, n, ALPHA, thresholds):
        looks.append((size, int(votes[:size].sum())))
        if (decision := decided(rule, looks, n, ALPHA, thresholds)).stop:
            return tuple(looks), decision.p_lower
    raise AssertionError("a rule stops at n")


def row(idx: int, rule: StoppingRule | None = None, second_class: bool = False, n: int = N) -> CertificateRow:
    """The row of an image whose answers are drawn here: half of the images are easy."""
    rng, law = np.random.default_rng(idx), Gaussian(SIGMA)
    votes = rng.random(n) < (0.99 if idx % 2 else 0.9)
    if rule is None:
        counts = (int(votes.sum()), n - int(votes.sum()), 0)
        p_lower, radius = fixed_bounds(law, counts, 0, ALPHA, second_class)
        kept: dict[str, Any] = {"n": n, "second_class": second_class}
    else:
        looks, p_lower = looks_of(rule, votes, n)
        (drawn, successes), radius = looks[-1], reach(law, rule, p_lower)
        counts = (successes, drawn - successes, 0)
        kept = {"n": drawn, "rule": record(rule, n, ALPHA), "looks": looks}
    image, predict = f"{idx:064x}", 0 if radius > 0 else None
    bounds = {"radius": radius, "p_lower": p_lower, "counts": counts, "predict": predict, "correct": predict == 0}
    settings = {"n0": N0, "alpha": ALPHA, "sigma": SIGMA, "seed": 3, "queries": N0 + kept["n"], "selected": 0}
    told = {"label": 0, "seconds": 0.5, "model": "m", "version": "0.2.0", "image": image}
    return CertificateRow(idx=idx, **told, **bounds, **settings, **kept)


def rows_of(name: str, count: int = 4) -> list[CertificateRow]:
    return [row(idx, RULES[name]) for idx in range(count)]


def write(path: Path, rows: Sequence[CertificateRow]) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for each in rows:
            append_row(file, each)
    return path


def altered(path: Path, line: int, **change: Any) -> None:
    """Write other values into one line, whatever a row would say of them."""
    lines = path.read_text().splitlines()
    lines[line - 1] = json.dumps(json.loads(lines[line - 1]) | change)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("name", RULES)
def test_rows_that_follow_from_their_votes_are_read_as_they_are(tmp_path: Path, name: str) -> None:
    rows = rows_of(name)
    assert {each.predict for each in rows} == {0}
    assert read(write(tmp_path / "rows.jsonl", rows)) == rows == replay(rows)


def test_rows_with_a_second_bound_and_at_another_alpha_are_read(tmp_path: Path) -> None:
    two = [row(idx, second_class=True) for idx in range(4)]
    assert read(write(tmp_path / "two.jsonl", two)) == two
    looser = [_at(each, 0.05) for each in rows_of("e-process")]
    assert read(write(tmp_path / "looser.jsonl", looser)) == looser


def _at(each: CertificateRow, alpha: float) -> CertificateRow:
    held = {key: value for key, value in vars(each).items() if key in Certificate.__dataclass_fields__}
    again = Certificate(**{**held, "label": each.predict}).at_alpha(alpha)
    return replace(each, alpha=alpha, p_lower=again.p_lower, radius=again.radius)


def raised(each: CertificateRow) -> dict[str, Any]:
    """A bound and a radius that fit each other, and no votes."""
    p_lower = 1 - (1 - each.p_lower) / 2
    return {"p_lower": p_lower, "radius": Gaussian(SIGMA).radius(p_lower)}


CHANGES: dict[str, Callable[[CertificateRow], dict[str, Any]]] = {
    "radius 99": lambda each: {"radius": 99.0},
    "raised": raised,
    "abstention": lambda each: {"predict": None, "radius": 0.0, "correct": False},
    "a class more": lambda each: {"counts": [*each.counts, 0]},
    "a class less": lambda each: {"counts": list(each.counts[:2])},
    "seed": lambda each: {"seed": 4},
    "model": lambda each: {"model": "another"},
    "sigma": lambda each: {"sigma": 0.5},
    "selection": lambda each: {"n0": N0 + 1, "queries": each.queries + 1},
    "alpha": lambda each: {"alpha": 0.01},
    "idx": lambda each: {"idx": -7},
    "seconds": lambda each: {"seconds": -1.0},
    "label": lambda each: {"label": 3, "correct": False},
    "queries": lambda each: {"queries": each.queries + 1},
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_row_that_does_not_hold_is_named_by_file_and_line(tmp_path: Path, name: str, change: str) -> None:
    rows = rows_of(name)
    path = write(tmp_path / "rows.jsonl", rows)
    altered(path, 3, **CHANGES[change](rows[2]))
    with pytest.raises(UnreadableFile, match=r"rows\.jsonl, line 3: ") as error:
        read(path)
    assert "\n" not in str(error.value)
    with pytest.raises(UnreadableFile, match=r"rows\.jsonl, line 3: "):
        merge([path], tmp_path / "merged.jsonl")
    assert not (tmp_path / "merged.jsonl").exists()


RULE_CHANGES: dict[str, dict[str, Any]] = {
    "growth is": {"growth": 2.0},
    "radii": {"radii": [0.1, 0.2]},
    "no setting 'speed'": {"speed": 3},
    "radii or tolerance": {"radii": None},
    "futility": {"futility": 7.0},
    "all_in is": {"all_in": "much"},
}


@pytest.mark.parametrize("change", RULE_CHANGES)
def test_a_rule_that_did_not_make_the_looks_is_refused(tmp_path: Path, change: str) -> None:
    rows = rows_of("e-process", count=3)
    path = write(tmp_path / "rows.jsonl", rows)
    for line, each in enumerate(rows, 1):
        altered(path, line, rule={**(each.rule or {}), **RULE_CHANGES[change]})
    with pytest.raises(UnreadableFile, match=r"rows\.jsonl, line 1: ") as error:
        read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["e-process", "alpha-spending", "tolerance"])
def test_looks_beyond_the_end_of_the_rule_are_refused(tmp_path: Path, name: str) -> None:
    rule = RULES[name]
    assert rule is not None
    law = Gaussian(SIGMA)
    sizes = due(rule, N, ALPHA, asked(rule, law))
    ended = next(each for each in rows_of(name) if each.n < N)
    assert ended.looks is not None
    more = next(size for size in sizes if size > ended.n)
    looks = (*ended.looks, (more, ended.looks[-1][1] + more - ended.n))
    p_lower = decided(rule, looks, N, ALPHA, asked(rule, law)).p_lower
    changed = {"n": more, "looks": looks, "counts": (looks[-1][1], more - looks[-1][1], 0), "queries": N0 + more}
    longer = replace(ended, **changed, p_lower=p_lower, radius=reach(law, rule, p_lower))
    with pytest.raises(UnreadableFile, match=f"line 1: .*the rule stops at look {len(ended.looks)}"):
        read(write(tmp_path / "rows.jsonl", [longer]))


@pytest.mark.parametrize("name", RULES)
def test_a_certificate_whose_radius_does_not_follow_is_no_dictionary_of_one(name: str) -> None:
    (each,) = rows_of(name, count=1)
    values = {key: value for key, value in asdict(each).items() if key in Certificate.__dataclass_fields__}
    values["label"] = each.predict
    assert Certificate.from_dict(values).radius == each.radius
    with pytest.raises(InvalidInput, match=r"not the|follows from the votes"):
        Certificate.from_dict(values | {"radius": each.radius * 1.01})
    with pytest.raises(InvalidInput, match="follows from the votes"):
        Certificate.from_dict(values | raised(each))


def test_the_bound_of_a_strangers_rule_is_taken_as_stated_and_named_until_its_builder_is_given(tmp_path: Path) -> None:
    rows = [replace(each, rule={**(each.rule or {}), "name": "mine"}, **raised(each)) for each in rows_of("e-process")]
    path = write(tmp_path / "rows.jsonl", rows)
    assert read(path) == rows
    assert believed(rows) == ["mine"]
    assert believed(rows_of("e-process") + rows_of("fixed")) == []
    with pytest.raises(UnreadableFile, match="line 1: "):
        read(path, {"mine": EProcess})
    altered(path, 2, radius=99.0)  # what can be known of it is checked
    with pytest.raises(UnreadableFile, match=r"line 2: .* of p_lower"):
        read(path)


def test_thousands_of_rows_are_read_at_a_few_thousand_a_second(tmp_path: Path) -> None:
    rule = EProcess(radii=(0.125, 0.25, 0.5))
    few = [row(idx, rule, n=10_000) for idx in range(20)]
    rows = [replace(few[idx % 20], idx=idx, image=f"{idx:064x}") for idx in range(500)]
    path = write(tmp_path / "rows.jsonl", rows)
    started = time.process_time()
    assert len(read(path)) == 500
    assert time.process_time() - started < 2.5  # about 0.3 s on an idle core

"""Rows are those of `certify` one by one, whatever interrupts, shards or repeats the work; nothing is paid twice."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from certibox.blackbox import as_blackbox
from certibox.certification.dataset import certify_dataset
from certibox.certification.sampling import Sampling
from certibox.certification.sigma import choose_sigma, envelope
from certibox.certification.smoothing import SmoothedClassifier
from certibox.certification.stored import at_alpha, merge, replay
from certibox.confidence.sequential import AlphaSpending, EProcess, Rule
from certibox.data import Images, load_images
from certibox.errors import BudgetExceeded, ConfigMismatch, InvalidInput, UnreadableFile
from certibox.queries.client import QueryClient
from certibox.records.certificates import CertificateRow, append_row, read_rows
from certibox.report import certified_accuracy
from doubles import CountingBox, LinearBox, alone
from processes import started, status

N0, N, BATCH = 30, 250, 50
SETTINGS: dict[str, Any] = {"n0": N0, "n": N, "alpha": 0.01, "seed": 4, "model": "linear", "batch_size": BATCH}
QUERIES = N0 + N
SIGMA = 0.25


def pictures(count: int = 6, seed: int = 0, labelled: bool = True) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, 2, 3), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 3 if labelled else None, "random")


def box() -> CountingBox:
    generator = torch.Generator().manual_seed(1)
    return CountingBox(LinearBox(torch.randn(3, 6, generator=generator)))


def certify(
    base_classifier: Callable[[Tensor], Tensor], out: Path | None = None, images: Images | None = None, **change: Any
) -> list[CertificateRow]:
    """`certify_dataset` with the settings of this file, up to `change`."""
    settings = {"sigma": SIGMA, **SETTINGS, **change}
    smoothed = SmoothedClassifier(base_classifier, 3, settings.pop("sigma"))
    return certify_dataset(smoothed, images or pictures(), out=out, **settings)


def timeless(rows: list[CertificateRow]) -> list[CertificateRow]:
    return [replace(row, seconds=0.0) for row in rows]


class Interrupted(Exception):
    pass


def failing(inner: CountingBox, after: int) -> Callable[[Tensor], Tensor]:
    """`inner`, which answers `after` calls and raises at the next one; that call is counted, as a sent query is."""
    left = iter(range(after))

    def answer(x: Tensor) -> Tensor:
        outputs = inner(x)
        if next(left, None) is None:
            raise Interrupted
        return outputs

    return alone(answer)


def interrupted(inner: CountingBox, out: Path, after: int, **change: Any) -> None:
    with pytest.raises(Interrupted):
        certify(failing(inner, after), out, **change)


CALLS = -(-N0 // BATCH) + -(-N // BATCH)  # of one image: 1 to select and 5 to estimate


@cache
def plain() -> list[CertificateRow]:
    """What every run must give."""
    return timeless(certify(box()))


def votes_of(out: Path) -> Path:
    return out.with_name(out.name + ".votes")


# -------------------------------------------------------------------------------------------------------------- rows


def test_rows_are_the_certificates_of_the_images_one_by_one(tmp_path: Path) -> None:
    images, out, inner = pictures(), tmp_path / "new" / "rows.jsonl", box()
    smoothed = SmoothedClassifier(inner.box, 3, SIGMA)
    rows = certify(inner, out)
    assert inner.images == len(images) * QUERIES
    assert [row.idx for row in rows] == list(range(len(images)))
    for row in rows:
        certificate = smoothed.certify(images.floats([row.idx])[0], n0=N0, n=N, alpha=0.01, seed=4)
        facts = certificate.as_dict()
        assert row.predict == facts.pop("label")
        assert {key: getattr(row, key) for key in facts} == facts
        assert row.label == row.idx % 3
        assert row.correct == (certificate.label == row.label)
        assert row.model == "linear"
    assert {row.predict is None for row in rows} == {True, False}
    assert read_rows(out) == rows
    assert not votes_of(out).exists()


def test_a_finished_file_costs_no_query(tmp_path: Path) -> None:
    out, inner = tmp_path / "rows.jsonl", box()
    first = certify(inner, out)
    content, asked = out.read_bytes(), inner.images
    assert certify(inner, out) == first
    assert (out.read_bytes(), inner.images) == (content, asked)


def test_more_images_are_added_to_the_file(tmp_path: Path) -> None:
    out, inner = tmp_path / "rows.jsonl", box()
    certify(inner, out, images=pictures().select(slice(4)))
    assert timeless(certify(inner, out)) == plain()
    assert inner.images == 6 * QUERIES


def test_equal_images_have_equal_certificates(tmp_path: Path) -> None:
    twins, whole = pictures().select([2, 2, 0, 2]), box()
    certify(whole, images=twins)
    for after in range(whole.calls):
        out = tmp_path / f"{after}.jsonl"
        interrupted(box(), out, after, images=twins)
        rows = certify(box(), out, images=twins)
        assert [row.counts for row in rows] == [plain()[i].counts for i in (2, 2, 0, 2)]


def test_without_labels_correct_is_unknown() -> None:
    rows = certify(box(), images=pictures(labelled=False))
    assert [(row.label, row.correct) for row in rows] == [(None, None)] * 6
    assert [row.counts for row in rows] == [row.counts for row in plain()]


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int, text: str) -> None:
        seen.append((done, total))

    out = tmp_path / "rows.jsonl"
    interrupted(box(), out, 2 * CALLS + 1, progress=progress)
    assert seen == [(0, 6), (1, 6), (2, 6)]
    seen.clear()
    certify(box(), out, progress=progress)
    assert seen == [(2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]


@pytest.mark.parametrize(
    ("change", "came"),
    [
        ({"shard": (3, 3)}, "shard is 3 of 3"),
        ({"shard": (-1, 3)}, "shard is -1 of 3"),
        ({"n": 6}, "n = 6 .* smallest n is 7"),
        ({"images": Images(pictures().images, torch.arange(6), "six classes")}, "labels go up to 5 .* 3 classes"),
    ],
)
def test_bad_settings_are_refused_before_any_query(tmp_path: Path, change: dict[str, Any], came: str) -> None:
    inner = box()
    with pytest.raises(InvalidInput, match=came):
        certify(inner, tmp_path / "rows.jsonl", **change)
    assert inner.calls == 0
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize("seed", range(8))
def test_an_interrupted_run_pays_again_for_one_batch_only(tmp_path: Path, seed: int) -> None:
    out, inner, crashes = tmp_path / "rows.jsonl", box(), random.Random(seed)
    after = crashes.randrange(6 * CALLS)
    interrupted(inner, out, after)
    assert timeless(certify(inner, out)) == plain()
    assert timeless(read_rows(out)) == plain()
    assert 0 < inner.images - 6 * QUERIES <= BATCH
    assert not votes_of(out).exists()


def test_many_interruptions_pay_again_for_one_batch_each(tmp_path: Path) -> None:
    out, inner, crashes = tmp_path / "rows.jsonl", box(), random.Random(0)
    for _ in range(8):
        interrupted(inner, out, crashes.randrange(4))
    assert timeless(certify(inner, out)) == plain()
    assert inner.images - 6 * QUERIES <= 8 * BATCH


def test_votes_are_kept_at_another_batch_size(tmp_path: Path) -> None:
    out, inner = tmp_path / "rows.jsonl", box()
    interrupted(inner, out, CALLS + 3)  # two estimation batches of image 1 are in the votes file
    assert timeless(certify(inner, out, batch_size=77)) == plain()
    assert inner.images == 6 * QUERIES + BATCH


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_a_torn_row_is_certified_again(tmp_path: Path, cut: int) -> None:
    out, inner = tmp_path / "rows.jsonl", box()
    certify(inner, out)
    *whole, last = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(whole) + last[: cut if cut > 0 else len(last) // 2])
    assert timeless(certify(inner, out)) == plain()
    assert timeless(read_rows(out)) == plain()
    assert inner.images == 7 * QUERIES


def test_a_row_that_lacks_only_its_newline_is_kept(tmp_path: Path) -> None:
    out, inner = tmp_path / "rows.jsonl", box()
    certify(inner, out, images=pictures().select(slice(3)))
    out.write_bytes(out.read_bytes()[:-1])
    certify(inner, out)
    assert timeless(read_rows(out)) == plain()
    assert inner.images == 6 * QUERIES


@pytest.mark.parametrize("cut", [1, 20, -2])
def test_a_torn_line_of_votes_costs_its_batch(tmp_path: Path, cut: int) -> None:
    out, inner = tmp_path / "rows.jsonl", box()
    interrupted(inner, out, CALLS + 4)
    *whole, last = votes_of(out).read_bytes().splitlines(keepends=True)
    votes_of(out).write_bytes(b"".join(whole) + last[:cut])
    asked = inner.images
    assert timeless(certify(inner, out)) == plain()
    paid = asked - BATCH - BATCH  # without the batch of the interruption and the torn one
    assert inner.images - asked == 6 * QUERIES - paid


def test_a_file_that_is_not_votes_is_named(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    votes_of(out).write_text('{"image": "ab"}\n', encoding="utf-8")
    with pytest.raises(UnreadableFile, match=r"rows.jsonl.votes: .* no line of votes"):
        certify(box(), out)


CHANGES: dict[str, Any] = {
    "sigma": 0.5,
    "n0": 31,
    "n": 251,
    "alpha": 0.02,
    "seed": 5,
    "model": "another",
    "second_class": True,
    "rule": EProcess(radii=(0.1,)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_votes_of_another_configuration_are_ignored(tmp_path: Path, name: str) -> None:
    out, inner = tmp_path / "rows.jsonl", box()
    interrupted(box(), out, 2, **{name: CHANGES[name]})  # in the first image: there is no row yet
    assert votes_of(out).stat().st_size
    assert timeless(certify(inner, out)) == plain()
    assert inner.images == 6 * QUERIES


@pytest.mark.parametrize("name", CHANGES)
def test_rows_of_another_configuration_are_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    out, inner = tmp_path / "rows.jsonl", box()
    interrupted(box(), out, CALLS + 3)
    out.write_bytes(out.read_bytes() + b'{"torn')
    before = out.read_bytes(), votes_of(out).read_bytes()
    with pytest.raises(ConfigMismatch, match=rf"rows.jsonl .*: {name} is .* there and .* here;") as error:
        certify(inner, out, **{name: CHANGES[name]})
    assert not [other for other in CHANGES if other != name and f" {other} is" in str(error.value)]
    assert (out.read_bytes(), votes_of(out).read_bytes()) == before
    assert inner.calls == 0


@pytest.mark.parametrize("images", [pictures(seed=1), pictures().select(slice(1))])
def test_rows_of_other_images_are_refused_and_left_alone(tmp_path: Path, images: Images) -> None:
    out, inner = tmp_path / "rows.jsonl", box()
    interrupted(box(), out, 2 * CALLS + 3)
    before = out.read_bytes(), votes_of(out).read_bytes()
    with pytest.raises(InvalidInput, match=r"certificate of (another image 0|image 1, but)"):
        certify(inner, out, images=images)
    assert (out.read_bytes(), votes_of(out).read_bytes()) == before
    assert inner.calls == 0


# --------------------------------------------------------------------------------------------------- shards and merge


def shards(folder: Path, count: int = 3, **change: Any) -> list[Path]:
    parts = [folder / f"{index}.jsonl" for index in range(count)]
    for index, part in enumerate(parts):
        certify(box(), part, shard=(index, count), **change)
    return parts


def write(path: Path, rows: list[CertificateRow]) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            append_row(file, row)
    return path


def test_merged_shards_are_the_whole(tmp_path: Path) -> None:
    parts = shards(tmp_path)
    assert [[row.idx for row in read_rows(part)] for part in parts] == [[0, 3], [1, 4], [2, 5]]
    rows = merge(parts[::-1], tmp_path / "new" / "rows.jsonl")
    assert timeless(rows) == plain()
    assert read_rows(tmp_path / "new" / "rows.jsonl") == rows


def test_merged_shards_resume_as_the_whole(tmp_path: Path) -> None:
    parts, inner = shards(tmp_path), box()
    merge(parts[:2], tmp_path / "rows.jsonl")
    assert timeless(certify(inner, tmp_path / "rows.jsonl")) == plain()
    assert inner.images == 2 * QUERIES


@pytest.mark.parametrize("name", CHANGES)
def test_shards_of_different_configurations_do_not_merge(tmp_path: Path, name: str) -> None:
    (tmp_path / "other").mkdir()
    first, second = shards(tmp_path, 2)[0], shards(tmp_path / "other", 2, **{name: CHANGES[name]})[1]
    with pytest.raises(ConfigMismatch, match=rf"other/1.jsonl .*: {name} is "):
        merge([first, second], tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_row_in_two_files_is_kept_once(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", plain()[:4])
    second = write(tmp_path / "b.jsonl", [replace(row, seconds=9.0) for row in plain()[2:]])
    assert merge([first, second], tmp_path / "rows.jsonl") == plain()[:4] + [
        replace(row, seconds=9.0) for row in plain()[4:]
    ]


def test_rows_that_disagree_do_not_merge(tmp_path: Path) -> None:
    row = plain()[2]
    swapped = {kind: row.counts[(-kind - row.selected) % 3] for kind in range(3) if kind != row.selected}
    other = replace(row, counts=tuple(swapped.get(kind, row.counts[row.selected]) for kind in range(3)))
    assert other != row  # two other classes have each other's votes: it follows from them as well
    parts = [write(tmp_path / "a.jsonl", plain()), write(tmp_path / "b.jsonl", [other])]
    with pytest.raises(InvalidInput, match=r"b.jsonl disagrees .* image 2"):
        merge(parts, tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()


def test_nothing_does_not_merge(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="nothing to merge"):
        merge([], tmp_path / "rows.jsonl")


# ---------------------------------------------------------------------------------------------------------- at_alpha


@pytest.mark.parametrize("labelled", [True, False])
def test_at_alpha_is_certifying_at_that_alpha(labelled: bool) -> None:
    images = pictures(20, labelled=labelled)
    rows = certify(box(), images=images)
    outcomes = set()
    for alpha in (0.5, 0.1, 0.001, 1e-9):
        afresh = certify(box(), images=images, alpha=alpha)
        assert timeless(at_alpha(rows, alpha)) == timeless(afresh)
        outcomes |= {tuple(row.predict is None for row in afresh)}
    assert len(outcomes) > 1  # alpha decided who abstains
    assert at_alpha(at_alpha(rows, 0.5), 0.01) == rows


def test_at_alpha_refuses_what_the_votes_cannot_show() -> None:
    with pytest.raises(InvalidInput, match=r"n = 250 .* smallest n is 333"):
        at_alpha(plain(), 1e-100)


# --------------------------------------------------------------------------------------------------- stopping rules

RULES: list[Rule] = [EProcess(radii=(0.05, 0.2), growth=1.3), AlphaSpending(tolerance=0.3)]


@pytest.mark.parametrize("rule", RULES)
def test_sequential_rows_are_the_certificates_and_read_back_and_replay(tmp_path: Path, rule: Rule) -> None:
    inner, out = box(), tmp_path / "rows.jsonl"
    rows = certify(inner, out, rule=rule)
    smoothed = SmoothedClassifier(box(), 3, SIGMA)
    for row, x in zip(rows, pictures().floats(), strict=True):
        certificate = smoothed.certify(x, n0=N0, n=N, alpha=0.01, seed=4, rule=rule)
        facts = certificate.as_dict()
        assert row.predict == facts.pop("label")
        assert {key: getattr(row, key) for key in facts} == facts
        assert row.cap == N
    assert inner.images == sum(row.queries for row in rows) < 6 * QUERIES
    assert read_rows(out) == rows
    assert replay(rows) == rows
    assert replay(at_alpha(rows, 0.2)) == at_alpha(rows, 0.2)
    assert at_alpha(at_alpha(rows, 0.2), 0.01) == rows
    assert len({row.n for row in rows}) > 1


@pytest.mark.parametrize("rule", RULES)
def test_a_run_killed_at_any_look_gives_the_same_rows_and_pays_for_no_vote_twice(tmp_path: Path, rule: Rule) -> None:
    plain = box()
    asked: dict[str, Any] = {"images": pictures(3), "rule": rule}
    undisturbed = timeless(certify(plain, **asked))
    assert max(len(row.looks or ()) for row in undisturbed) > 3
    for after in range(plain.calls):
        out, inner = tmp_path / f"{after}.jsonl", box()
        interrupted(inner, out, after, **asked)
        assert timeless(certify(inner, out, **asked)) == undisturbed
        lost = plain.batch_sizes[after]
        assert inner.images == plain.images + lost
        assert timeless(read_rows(out)) == undisturbed
        assert not votes_of(out).exists()


def test_another_rule_is_another_configuration(tmp_path: Path) -> None:
    out, rule = tmp_path / "rows.jsonl", RULES[0]
    certify(box(), out, pictures(2), rule=rule)
    kept = out.read_bytes()
    for other in (None, RULES[1], EProcess(radii=(0.05, 0.2), growth=1.3, futility=0.1), EProcess(radii=(0.05,))):
        with pytest.raises(ConfigMismatch, match=r"rule(\.\w+)? is .* there and .* here"):
            certify(box(), out, rule=other)
    for name in ("n", "alpha"):
        with pytest.raises(ConfigMismatch, match=rf"{name} is .* there and .* here"):
            certify(box(), out, rule=rule, **{name: CHANGES[name]})
    assert out.read_bytes() == kept
    certify(box(), out, rule=rule)
    write(out, at_alpha(read_rows(out), 0.02))  # looked at under another alpha than rows to come would be
    with pytest.raises(ConfigMismatch, match=r"rule\.alpha is 0\.01 there and 0\.02 here"):
        certify(box(), out, images=pictures(7), rule=rule, alpha=0.02)


@pytest.mark.parametrize("rule", RULES)
def test_sequential_shards_merge_to_the_whole(tmp_path: Path, rule: Rule) -> None:
    rows = merge(shards(tmp_path, rule=rule), tmp_path / "rows.jsonl")
    assert timeless(rows) == timeless(certify(box(), rule=rule))
    assert timeless(certify(box(), tmp_path / "rows.jsonl", rule=rule)) == timeless(rows)


def test_a_row_that_does_not_replay_is_named() -> None:
    rows = certify(box(), rule=RULES[0])
    i = next(i for i, row in enumerate(rows) if len(row.looks or ()) > 2)
    looks = rows[i].looks
    assert looks is not None
    n, votes = looks[-2]
    moved = replace(rows[i], looks=(*looks[:-2], (n + 1, votes), looks[-1]))  # a row that contradicts itself nowhere
    with pytest.raises(InvalidInput, match=rf"row of image {i} does not replay: the looks were at .* due were"):
        replay([*rows[:i], moved])


@pytest.mark.parametrize("second_class", [False, True])
def test_fixed_rows_replay_and_a_radius_that_grew_does_not(second_class: bool) -> None:
    rows = certify(box(), second_class=second_class)
    assert replay(rows) == rows
    i = next(i for i, row in enumerate(rows) if row.predict is not None)
    with pytest.raises(InvalidInput, match=rf"row of image {i} does not replay: .* follows from the votes"):
        replay([replace(rows[i], radius=rows[i].radius * 1.01)])


@pytest.mark.parametrize("rule", [None, *RULES])
@pytest.mark.parametrize("changed", [{"queries": 1}, {"n0": N0 + 1}, {"n0": 0}, {"n0": 0, "queries": "n"}])
def test_queries_that_are_not_those_of_the_votes_do_not_replay(rule: Rule | None, changed: dict[str, Any]) -> None:
    rows = certify(box(), rule=rule)
    stated = {key: rows[2].n if value == "n" else value for key, value in changed.items()}
    with pytest.raises(InvalidInput, match=r"row of image 2.*: \d+ queries are stated, with n0 = "):
        replay([*rows[:2], replace(rows[2], **stated)])


# ------------------------------------------------------------------------------------------------- a sigma per radius

SIGMAS = (0.125, 0.25, 0.5)
RADII = [0.0, 0.05, 0.1, 0.3, 0.6]


def by_sigma(seed: int, count: int = 60) -> dict[float, list[CertificateRow]]:
    images = pictures(count, seed)
    images = replace(images, labels=box()(images.floats()).argmax(1))
    return {sigma: certify(box(), images=images, sigma=sigma) for sigma in SIGMAS}


def test_the_envelope_is_chosen_on_validation_images_and_read_on_test_images() -> None:
    validation, test = by_sigma(seed=5), by_sigma(seed=6)
    choice = choose_sigma(validation, RADII)
    scores = {sigma: certified_accuracy(rows, RADII) for sigma, rows in validation.items()}
    for i, radius in enumerate(RADII):
        best = max(scores[sigma][i] for sigma in SIGMAS)
        assert choice.sigmas[radius] == min(sigma for sigma in SIGMAS if scores[sigma][i] == best)
    assert len(set(choice.sigmas.values())) > 1
    read = envelope(choice, test)
    assert read == {r: certified_accuracy(test[choice.sigmas[r]], [r])[0] for r in RADII}
    # Other test rows change what is read and never what was chosen; the test's own best may well be better.
    own = choose_sigma(test, RADII)
    assert all(certified_accuracy(test[own.sigmas[r]], [r])[0] >= read[r] for r in RADII)


def test_ties_go_to_the_smaller_sigma() -> None:
    rows = certify(box(), images=pictures(5), sigma=0.25)
    tied = {sigma: [replace(row, sigma=sigma) for row in rows] for sigma in (0.5, 0.125, 0.25)}
    assert choose_sigma(tied, [0.0, 0.1, 9.0]).sigmas == dict.fromkeys([0.0, 0.1, 9.0], 0.125)


def test_an_image_that_chose_sigma_is_not_tested_under_it() -> None:
    validation = {0.25: certify(box(), images=pictures(5, seed=5))}
    choice = choose_sigma(validation, [0.1])
    test = {0.25: [*certify(box(), images=pictures(5, seed=6)), validation[0.25][3]]}
    with pytest.raises(InvalidInput, match=f"1 of the test images .* such as {validation[0.25][3].image[:12]}"):
        envelope(choice, test)


def test_rows_of_other_sigmas_and_images_choose_nothing() -> None:
    rows = certify(box(), images=pictures(5, seed=5))
    with pytest.raises(InvalidInput, match=r"rows given for sigma = 0.5 are of sigma = 0.25"):
        choose_sigma({0.25: rows, 0.5: rows}, [0.1])
    with pytest.raises(InvalidInput, match="same images under every sigma"):
        choose_sigma({0.25: rows, 0.5: certify(box(), images=pictures(5), sigma=0.5)}, [0.1])
    with pytest.raises(InvalidInput, match="same images under every sigma"):
        choose_sigma({}, [0.1])
    with pytest.raises(InvalidInput, match=r"rows given for sigma = 0.25 are none"):
        envelope(choose_sigma({0.25: rows}, [0.1]), {})


# -------------------------------------------------------------------------------------------------------------- kill

DIGITS, KILL_BATCH, KILLS = 6, 100, 4


def nearest_mean() -> LinearBox:
    """The linear classifier of digits that picks the nearest class mean m: m·x − |m|²/2."""
    train = load_images("digits", "train")
    assert train.labels is not None
    pixels = train.floats().flatten(1)
    means = torch.stack([pixels[train.labels == label].mean(0) for label in range(10)])
    return LinearBox(means, -means.square().sum(1) / 2)


def certify_digits(out: str, calls: str, pause: float) -> list[CertificateRow]:
    """Certify digits, noting how many images each call asks before it is answered."""
    classifier = nearest_mean()

    def noting(x: Tensor) -> Tensor:
        with open(calls, "a", encoding="utf-8") as file:
            file.write(f"{len(x)}\n")
        time.sleep(pause)
        return classifier(x)

    smoothed, images = SmoothedClassifier(alone(noting), 10, SIGMA), load_images("digits", "test", limit=DIGITS)
    sampling = Sampling(50, 1000, 0.001)
    return certify_dataset(smoothed, images, sampling=sampling, seed=0, out=out, model="means", batch_size=KILL_BATCH)


def asked(calls: Path) -> list[int]:
    return [int(line) for line in calls.read_text(encoding="utf-8").split()] if calls.exists() else []


def start(out: Path, calls: Path) -> ForkServerProcess:
    return started(certify_digits, str(out), str(calls), 0.01)


@pytest.mark.kill
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill as a crash does")
def test_a_killed_process_loses_one_batch_and_changes_no_row(tmp_path: Path) -> None:
    out, calls, moments = tmp_path / "rows.jsonl", tmp_path / "calls", random.Random(0)
    undisturbed = certify_digits(str(tmp_path / "plain.jsonl"), str(tmp_path / "plain-calls"), 0.0)
    for _ in range(KILLS):
        goal = len(asked(calls)) + moments.randint(1, 14)  # 4 × 14 calls of 66: it cannot finish before
        process = start(out, calls)
        try:
            while len(asked(calls)) < goal and process.is_alive():
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.02))
        finally:
            process.kill()
        assert status(process) == -signal.SIGKILL
    assert status(start(out, calls)) == 0
    assert timeless(read_rows(out)) == timeless(undisturbed)
    extra = sum(asked(calls)) - sum(asked(tmp_path / "plain-calls"))
    assert 0 <= extra <= KILLS * KILL_BATCH
    assert not votes_of(out).exists()


def linear_client(seed: int = 1, budget: int | None = None, ledger: Path | None = None, **declared: Any) -> QueryClient:
    """A metered linear box that is asked 10 images at a time."""
    layer = torch.nn.Linear(6, 3)
    module = torch.nn.Sequential(torch.nn.Flatten(), layer)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(3, 6, generator=torch.Generator().manual_seed(seed)))
        layer.bias.zero_()
    return QueryClient(as_blackbox(module, "logits", max_batch=10, **declared), budget=budget, ledger=ledger)


def test_a_budget_raised_again_and_again_pays_every_vote_once(tmp_path: Path) -> None:
    """Votes are kept as the box answers, not as noise is drawn: 50 noisy copies are asked in five batches of ten."""
    whole = certify(linear_client(), model=None)
    out, ledger = tmp_path / "rows.jsonl", tmp_path / "ledger.sqlite"
    for budget in range(95, len(whole) * QUERIES, 95):
        with pytest.raises(BudgetExceeded):
            certify(linear_client(budget=budget, ledger=ledger), out, model=None)
    client = linear_client(budget=len(whole) * QUERIES, ledger=ledger)
    assert timeless(certify(client, out, model=None)) == timeless(whole)
    assert client.queries == len(whole) * QUERIES


@pytest.mark.parametrize("change", [{"seed": 2}, {"levels": 4}, {"input_range": (0, 255)}])
def test_certificates_of_another_box_are_not_gone_on_with(tmp_path: Path, change: dict[str, Any]) -> None:
    out = tmp_path / "rows.jsonl"
    certify(linear_client(), out, pictures(2), model=None)
    kept = out.read_bytes()
    with pytest.raises(ConfigMismatch, match="model is"):
        certify(linear_client(**change), out, model=None)
    assert out.read_bytes() == kept


def test_certificates_of_another_number_of_classes_are_not_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    certify(box(), out, pictures(2))
    four = CountingBox(LinearBox(torch.randn(4, 6)))
    with pytest.raises(ConfigMismatch, match="num_classes is 3 there and 4 here"):
        certify_dataset(SmoothedClassifier(four, 4, SIGMA), pictures(), out=out, **SETTINGS)


def test_a_file_has_one_writer_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"

    def second_writer(x: Tensor) -> Tensor:
        with pytest.raises(InvalidInput, match=r"another process is writing .*rows\.jsonl"):
            certify(box(), out)
        return box()(x)

    assert timeless(certify(second_writer, out, pictures(1))) == timeless(certify(box(), None, pictures(1)))
    certify(box(), out)  # the lock ended with its holder

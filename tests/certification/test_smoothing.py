"""Certificates against the closed form of linear classifiers; noise and votes that nothing but the seed decides."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from itertools import accumulate, combinations
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom, kstest, norm
from torch import Tensor

from certibox import confidence, seeds
from certibox.certification import noise
from certibox.certification.certificate import Certificate, out_of_reach
from certibox.certification.noise import BLOCK
from certibox.certification.sampling import Sampling
from certibox.certification.smoothing import BaseClassifier, SmoothedClassifier, image_digest
from certibox.confidence import recorded
from certibox.confidence.gaussian import Gaussian
from certibox.confidence.sequential import AlphaSpending, EProcess, Rule
from certibox.confidence.stopping import asked
from certibox.errors import BadOutput, InvalidImages, InvalidInput
from doubles import ANYWHERE, CountingBox, LinearBox, alone, noisy_batches

PATH = (7, "image", "stream")
SIGMA = 0.25
LAW = Gaussian(SIGMA)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def picture(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def linear_box(num_classes: int = 3, d: int = 12, outputs: str = "logits") -> LinearBox:
    return LinearBox(drawn(num_classes, d, seed=1), drawn(num_classes, seed=2) / 4, outputs)


def half_space(w: Tensor, b: float) -> BaseClassifier:
    """Class 0 where w·x + b >= 0; sums, since a matrix product wakes threads for each of thousands of tiny batches."""
    return lambda x: (x.flatten(1).mul(w).sum(1) + b < 0).long()


def alternating(x: Tensor) -> Tensor:  # p_A is 1/2, exactly
    return torch.arange(len(x)) % 2


def certified(smoothed: SmoothedClassifier, x: Tensor, seed: int = 0, batch_size: int = 1000) -> Certificate:
    return smoothed.certify(x, n0=20, n=300, alpha=0.01, seed=seed, batch_size=batch_size)


# ------------------------------------------------------------------------------------------------ certificates hold


@pytest.mark.parametrize("num_classes", [2, 5])
def test_no_certificate_of_a_linear_classifier_reaches_beyond_its_boundary(num_classes: int) -> None:
    box = linear_box(num_classes, d=4)
    smoothed = SmoothedClassifier(box, num_classes, SIGMA)
    for seed in range(20):
        x = picture(1, 2, 2, seed=seed)
        certificate = smoothed.certify(x, n0=100, n=2000, alpha=1e-6, seed=seed)
        if certificate.label is not None:
            assert certificate.label == int(box(x[None]).argmax())
            assert certificate.radius <= box.radius(x[None]).item()


@ANYWHERE
def test_the_radius_approaches_the_distance_to_the_boundary() -> None:
    w, b, n = drawn(4, seed=3), 0.1, 200_000
    smoothed = SmoothedClassifier(LinearBox(torch.stack([w, -w]) / 2, torch.tensor([b, -b]) / 2), 2, SIGMA)
    x = 0.1 * w.view(1, 2, 2) / w.norm()
    distance = abs((w @ x.flatten()).item() + b) / w.norm().item()
    certificate = smoothed.certify(x, n0=100, n=n, alpha=0.001, seed=0, batch_size=20_000)
    p = norm.cdf(distance / SIGMA)
    slope = SIGMA / norm.pdf(norm.ppf(p))  # of the radius in p
    assert certificate.label == 0
    assert distance - 8 * slope * math.sqrt(p * (1 - p) / n) <= certificate.radius <= distance


def false_share(distance: float, n0: int, n: int, alpha: float) -> float:
    """Exact probability of a false certificate at `distance` (in sigmas) from the boundary of two classes; n0 odd."""
    p = norm.cdf(distance)
    radii = np.array([confidence.radius(confidence.lower_confidence_bound(k, n, alpha), 1.0) for k in range(n + 1)])
    votes = binom.pmf(np.arange(n + 1), n, p)  # for the right class
    selected = binom.sf(n0 // 2, n0, p)
    return float(selected * votes[radii > distance].sum() + (1 - selected) * votes[::-1][radii > 0].sum())


@ANYWHERE
def test_certificates_near_the_boundary_are_false_as_often_as_alpha_allows() -> None:
    w, b, n0, n, alpha, trials = drawn(4, seed=4), 0.3, 21, 200, 0.05, 2000
    w = w / w.norm()
    smoothed = SmoothedClassifier(half_space(w, b), 2, SIGMA)
    distances = np.tile(np.array([0.1, 0.25, 0.5, 0.75, 1.0]), trials // 5)
    false = 0
    for seed, distance in enumerate(distances):
        x = ((distance * SIGMA - b) * w).view(1, 2, 2)
        certificate = smoothed.certify(x, n0=n0, n=n, alpha=alpha, seed=seed)
        false += certificate.radius > distance * SIGMA or certificate.label == 1
    assert binom.sf(false - 1, trials, alpha) >= 1e-4
    exact = np.array(
        [false_share(distance, n0, n, alpha) for distance in distances[:5]]
    )  # below alpha: votes are whole
    assert (exact <= alpha).all()
    assert abs(false - trials * exact.mean()) <= 4 * math.sqrt(trials * (exact * (1 - exact)).mean())


def test_certify_abstains_where_the_top_class_has_half_the_votes() -> None:
    certificate = certified(SmoothedClassifier(alternating, 2, SIGMA), picture(1, 2, 2))
    assert (certificate.label, certificate.radius, certificate.counts) == (None, 0.0, (150, 150))
    assert certificate.p_lower < 0.5


# ------------------------------------------------------------------------------------------------------------- noise


def batches(x: Tensor, start: int, stop: int, batch_size: int, path: tuple[int, str, str] = PATH) -> Tensor:
    return torch.cat(list(noisy_batches(x, LAW, start, stop, batch_size, path)))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 5), (3, 7, 7)])  # the last fills its blocks in threads
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_do_not_depend_on_the_batches(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = picture(*shape, dtype=dtype)
    whole = batches(x, 0, 1050, 1050)
    assert whole.dtype == dtype
    for batch_size in (1, 7, 100, 333, 1000):
        assert torch.equal(batches(x, 0, 1050, batch_size), whole)
        assert torch.equal(batches(x, 0, 640, batch_size), whole[:640])
        for start in (BLOCK - 1, BLOCK, 350, 1049):
            assert torch.equal(batches(x, start, 1050, batch_size), whole[start:])


def test_batches_have_the_size_asked_for() -> None:
    sizes = [len(batch) for batch in noisy_batches(picture(1, 2, 2), LAW, 30, 1000, 333, PATH)]
    assert sizes == [333, 333, 304]
    assert list(noisy_batches(picture(1, 2, 2), LAW, 1000, 1000, 333, PATH)) == []


def test_noise_is_gaussian_with_the_given_sigma() -> None:
    x = picture(1, 3, 4, dtype=torch.float64)
    noise = (batches(x, 0, 20_000, 1000) - x).flatten()
    n = len(noise)
    assert abs(noise.mean().item()) <= 4 * SIGMA / math.sqrt(n)
    assert abs(noise.var().item() - SIGMA**2) <= 4 * SIGMA**2 * math.sqrt(2 / n)
    assert kstest(noise.numpy() / SIGMA, "norm").pvalue > 1e-4


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_noise_does_not_depend_on_the_number_of_threads() -> None:
    x, samples = picture(3, 8, 8), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        samples.append(batches(x, 50, 1000, 470))
    assert torch.equal(samples[0], samples[1])
    assert torch.equal(samples[0], samples[2])


def test_images_seeds_streams_and_blocks_have_independent_noise() -> None:
    seen: list[Tensor] = []

    def watching(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return torch.zeros(len(x), dtype=torch.int64)

    smoothed = SmoothedClassifier(alone(watching), 2, SIGMA)
    noises = []
    for value, seed in ((0.5, 0), (0.25, 0), (0.5, 1)):  # dyadic, so that x + δ − x loses little
        x = torch.full((1, 10, 10), value)
        smoothed.certify(x, n0=BLOCK, n=2 * BLOCK, alpha=0.01, seed=seed, batch_size=BLOCK)
        smoothed.predict(x, n=BLOCK, alpha=0.01, seed=seed)
        noises += [(noisy - x).flatten() for noisy in seen]
        seen.clear()
    assert len(noises) == 12  # three runs of one selection block, two estimation blocks and one prediction block
    for a, b in combinations(noises, 2):
        correlation = torch.corrcoef(torch.stack([a, b]))[0, 1].item()
        assert abs(correlation) <= 5 / math.sqrt(len(a))


# ------------------------------------------------------------------------------------------------------------- votes


def test_counts_are_the_estimation_votes_without_the_selection_votes() -> None:
    x, box = picture(1, 3, 4), CountingBox(linear_box())
    certificate = certified(SmoothedClassifier(box, 3, SIGMA), x, seed=5)
    votes = {
        stream: box.box(batches(x, 0, n, n, (5, image_digest(x), stream))).argmax(1).bincount(minlength=3).tolist()
        for stream, n in (("select", 20), ("estimate", 300))
    }
    assert certificate.counts == tuple(votes["estimate"])
    assert certificate.selected == int(np.argmax(votes["select"]))
    assert sum(certificate.counts) == certificate.n == 300
    assert certificate.queries == box.images == 320
    assert certificate.image == image_digest(x)


def test_only_the_selection_votes_select() -> None:
    given = 0

    def fickle(x: Tensor) -> Tensor:
        nonlocal given
        given += len(x)
        return (torch.arange(given - len(x), given) >= 20).long()  # class 0 for all n0 votes, class 1 for all n votes

    certificate = certified(SmoothedClassifier(alone(fickle), 2, SIGMA), picture(1, 2, 2))
    assert (certificate.selected, certificate.counts) == (0, (0, 300))
    assert (certificate.label, certificate.radius, certificate.p_lower) == (None, 0.0, 0.0)


def test_certificates_do_not_depend_on_the_batch_size() -> None:
    smoothed = SmoothedClassifier(linear_box(), 3, SIGMA)
    certificates = {certified(smoothed, picture(1, 3, 4), batch_size=size) for size in (1, 7, 100, 333, 1000)}
    assert len(certificates) == 1


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_labels_and_scores_give_the_same_certificate(dtype: torch.dtype) -> None:
    scores, labels = linear_box(), linear_box(outputs="labels")
    by_labels = SmoothedClassifier(lambda x: labels(x).to(dtype), 3, SIGMA)
    x = picture(1, 3, 4)
    assert certified(by_labels, x) == certified(SmoothedClassifier(scores, 3, SIGMA), x)
    assert sorted(certified(by_labels, x).counts)[1] > 0  # the votes are split


@pytest.mark.parametrize(
    ("answer", "came"),
    [
        (lambda n: torch.full((n, 3), math.nan), "the score nan"),
        (lambda n: torch.full((n, 3), math.inf), "the score inf"),
        (lambda n: torch.zeros(n, 4), r"torch.float32 of shape \(320, 4\).*\(320, 3\)"),
        (lambda n: torch.zeros(n + 1, 3), r"shape \(321, 3\)"),
        (lambda n: torch.zeros(n), r"torch.float32 of shape \(320,\)"),
        (lambda n: torch.zeros(n, 3, dtype=torch.complex64), "torch.complex64"),
        (lambda n: torch.zeros(n - 1, dtype=torch.int64), r"shape \(319,\)"),
        (lambda n: torch.arange(n) % 4, "label 3; wanted 0 to 2"),
        (lambda n: torch.arange(n) % 4 - 1, "label -1; wanted 0 to 2"),
        (lambda n: np.zeros((n, 3), dtype=np.float32), "ndarray"),
    ],
)
def test_bad_outputs_are_named(answer, came: str) -> None:
    smoothed = SmoothedClassifier(lambda x: answer(len(x)), 3, SIGMA)
    if came == "label 3; wanted 0 to 2":
        assert answer(20).max() == 3
    with pytest.raises(BadOutput, match=came) as error:
        certified(smoothed, picture(1, 2, 2))
    assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------------------------------- bad inputs


@pytest.mark.parametrize("sigma", [0.0, -0.25, math.nan, math.inf])
def test_sigma_must_be_positive(sigma: float) -> None:
    with pytest.raises(InvalidInput, match="sigma is"):
        SmoothedClassifier(linear_box(), 3, sigma)


def test_one_class_is_refused() -> None:
    with pytest.raises(InvalidInput, match="num_classes is 1"):
        SmoothedClassifier(linear_box(), 1, SIGMA)


@pytest.mark.parametrize(
    ("change", "came"),
    [
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": 1.0}, "alpha is 1.0"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"n0": 0}, "n0 is 0"),
        ({"n": 9}, "n = 9 .* smallest n is 10"),
        ({"n": 0}, "n = 0 .* smallest n is 10"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_settings_of_certify_are_refused_before_any_query(change: dict, came: str) -> None:
    box = CountingBox(linear_box())
    settings = {"n0": 10, "n": 10, "alpha": 0.001, "seed": 0, **change}
    with pytest.raises(InvalidInput, match=came):
        SmoothedClassifier(box, 3, SIGMA).certify(picture(1, 3, 4), **settings)
    assert box.calls == 0


@pytest.mark.parametrize(("change", "came"), [({"alpha": 1.0}, "alpha is 1.0"), ({"n": 0}, "n is 0")])
def test_bad_settings_of_predict_are_refused_before_any_query(change: dict, came: str) -> None:
    box = CountingBox(linear_box())
    with pytest.raises(InvalidInput, match=came):
        SmoothedClassifier(box, 3, SIGMA).predict(picture(1, 3, 4), **{"n": 10, "alpha": 0.001, "seed": 0, **change})
    assert box.calls == 0


@pytest.mark.parametrize(
    ("image", "came"),
    [
        (torch.full((1, 3, 4), math.nan), "NaN"),
        (torch.full((1, 3, 4), -math.inf), "infinite"),
        (torch.zeros(3, 4), r"shape \(3, 4\)"),
        (torch.zeros(2, 1, 1, 3, 4), r"shape \(2, 1, 1, 3, 4\)"),
        (torch.zeros(0, 1, 3, 4), r"shape \(0, 1, 3, 4\); wanted at least one pixel"),
        (torch.zeros(1, 3, 4, dtype=torch.uint8), "torch.uint8; .* divide 8-bit pixels by 255"),
        (torch.zeros(1, 3, 4, dtype=torch.int64), "torch.int64"),
        (np.zeros((1, 3, 4), dtype=np.uint8), "images are uint8; .* divide 8-bit pixels by 255"),
        (np.zeros((5, 1, 3, 4), dtype=np.uint8), "images are uint8; .* divide 8-bit pixels by 255"),
        (np.full((1, 3, 4), np.nan, dtype=np.float32), "NaN"),
        ([[[0.5]]], "a list; wanted a float tensor or numpy array"),
    ],
)
def test_what_is_no_image_is_refused(image, came: str) -> None:
    smoothed = SmoothedClassifier(linear_box(), 3, SIGMA)
    with pytest.raises(InvalidImages, match=came):
        certified(smoothed, image)
    with pytest.raises(InvalidImages, match=came):
        smoothed.predict(image, n=10, alpha=0.01, seed=0)


# ------------------------------------------------------------------------------------------------------ other alphas


def test_at_alpha_is_certifying_at_that_alpha_without_a_query() -> None:
    box, alphas = CountingBox(linear_box()), (0.3, 0.05, 0.01, 0.001, 1e-6)
    smoothed = SmoothedClassifier(box, 3, SIGMA)
    labels = set()
    for seed in range(10):
        x = picture(1, 3, 4, seed=seed)
        afresh = [smoothed.certify(x, n0=20, n=300, alpha=alpha, seed=seed) for alpha in alphas]
        calls = box.calls
        for certificate in afresh:
            replayed = [certificate.at_alpha(alpha) for alpha in alphas]
            assert replayed == afresh
            assert sorted((c.radius for c in replayed), reverse=True) == [c.radius for c in replayed]
            assert sorted((c.p_lower for c in replayed), reverse=True) == [c.p_lower for c in replayed]
        assert box.calls == calls
        labels |= {certificate.label is None for certificate in afresh}
    assert labels == {True, False}  # both certificates and abstentions were replayed


def test_at_alpha_refuses_what_the_votes_cannot_show() -> None:
    certificate = SmoothedClassifier(linear_box(), 3, SIGMA).certify(picture(1, 3, 4), n0=1, n=10, alpha=0.001, seed=0)
    with pytest.raises(InvalidInput, match=r"n = 10 .* alpha = 1e-06.* smallest n is 20"):
        certificate.at_alpha(1e-6)


# --------------------------------------------------------------------------------------------------- stopping rules

RULES: list[Rule] = [
    EProcess(radii=(SIGMA / 2,)),
    EProcess(radii=(0.0, SIGMA / 4, SIGMA), futility=None),
    EProcess(tolerance=0.2, futility=0.01),
    AlphaSpending(radii=(SIGMA / 2, SIGMA)),
    AlphaSpending(tolerance=0.2),
]
CAP = 400


def in_sequence(smoothed: SmoothedClassifier, rule: Rule, seed: int = 0, **change: Any) -> Certificate:
    settings: dict[str, Any] = {"n0": 5, "n": CAP, "alpha": 0.01, "batch_size": 64, **change}
    return smoothed.certify(picture(1, 3, 4, seed=seed), seed=seed, rule=rule, **settings)


@pytest.mark.parametrize("rule", RULES)
def test_sequential_votes_are_the_first_of_the_fixed_ones_and_end_where_the_rule_says(rule: Rule) -> None:
    box, ends = CountingBox(linear_box()), set()
    smoothed = SmoothedClassifier(box, 3, SIGMA)
    sizes = rule.sizes(CAP, 0.01, asked(rule, LAW))
    for seed in range(12):
        box.batch_sizes.clear()
        certificate = in_sequence(smoothed, rule, seed)
        assert certificate.queries == box.images == 5 + certificate.n
        looks = certificate.looks
        assert looks is not None
        # The votes that select come with those of the first look, and no batch goes beyond a look.
        assert {5 + size for size in sizes[: len(looks)]} <= set(accumulate(box.batch_sizes))
        x = picture(1, 3, 4, seed=seed)
        fixed = [smoothed.certify(x, n0=5, n=n, alpha=0.4, seed=seed).counts for n, _ in looks]
        assert [votes for _, votes in looks] == [counts[certificate.selected] for counts in fixed]
        assert certificate.counts == fixed[-1]
        told = [rule.decide(looks[: k + 1], CAP, 0.01, asked(rule, LAW)) for k in range(len(looks))]
        assert [decision.stop for decision in told] == [False] * (len(looks) - 1) + [True]
        assert certificate.p_lower == told[-1].p_lower
        assert certificate.radius == confidence.radius(certificate.p_lower, SIGMA)
        assert certificate.label == (certificate.selected if certificate.radius > 0 else None)
        ends.add(told[-1].why)
    assert len(ends) > 1  # images of more than one kind


@pytest.mark.parametrize("rule", RULES)
def test_sequential_certificates_do_not_depend_on_the_batch_size(rule: Rule) -> None:
    smoothed = SmoothedClassifier(linear_box(), 3, SIGMA)
    first, *others = [in_sequence(smoothed, rule, batch_size=size) for size in (1, 7, 100, 1000)]
    assert others == [first] * 3


def test_every_block_of_noise_is_drawn_once_however_many_looks_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, int]] = []

    def generator(seed: int, *path: int | str, device: torch.device) -> torch.Generator:
        drawn.append((str(path[-2]), int(path[-1])))
        return seeds_generator(seed, *path, device=device)

    seeds_generator = seeds.wide_generator
    monkeypatch.setitem(noise.STREAMS, noise.NEWEST, generator)
    certificate = in_sequence(SmoothedClassifier(alone(alternating), 2, SIGMA), EProcess(radii=(SIGMA,), futility=None))
    assert certificate.looks is not None
    assert certificate.n == CAP
    assert len(certificate.looks) > CAP // BLOCK + 1
    assert list(dict.fromkeys(drawn)) == [("select", 0), *(("estimate", block) for block in range(CAP // BLOCK))]
    again = {block for block in drawn if drawn.count(block) > 1}  # the first few samples alone, and then all
    assert again == {("estimate", 0)}
    assert drawn.count(("estimate", 0)) <= len(noise.FEW) + 1


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 4), (1, 5, 6), (1, 5, 7), (3, 8, 8)])
def test_a_few_samples_of_a_block_are_those_of_the_whole_block(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, path = torch.rand(shape), (3, "image", "estimate")

    def cuts() -> list[Tensor]:
        """The first 110 samples, in ever larger pieces, and pieces from the middle of a block."""
        kept: dict[int, Tensor] = {}
        pieces = [(0, 1), (1, 5), (5, 16), (16, 17), (17, 31), (31, 33), (33, 90), (90, 110)]
        parts = []
        for start, stop in pieces:
            noise.noisy(x, LAW, start, path, out := torch.empty((stop - start, *shape)), kept)
            parts.append(out)
        noise.noisy(x, LAW, 20, path, out := torch.empty((5, *shape)))
        return [torch.cat(parts), out]

    fitting = noise._fitting(LAW, torch.float32, "cpu", x.numel() % 16)
    assert fitting[-2:] == (16, 32)
    assert all(count * x.numel() % 16 == 0 for count in fitting)  # as torch draws them
    few = cuts()
    monkeypatch.setattr(noise, "_fitting", lambda *_: ())
    whole = cuts()
    assert all(map(torch.equal, few, whole))
    noise.noisy(x, LAW, 0, path, out := torch.empty((110, *shape)))
    assert torch.equal(out, few[0])
    assert torch.equal(out[20:25], few[1])


class Journal:
    """Votes in memory, as a file of votes keeps them."""

    def __init__(self) -> None:
        self.held: dict[str, list[tuple[int, int, np.ndarray]]] = {}

    def recall(self, stream: str) -> list[tuple[int, int, np.ndarray]]:
        return list(self.held.get(stream, []))

    def note(self, stream: str, start: int, stop: int, votes: np.ndarray) -> None:
        self.held.setdefault(stream, []).append((start, stop, votes.copy()))


@pytest.mark.parametrize("rule", RULES)
def test_an_interrupted_sequential_certificate_knows_every_look_and_pays_for_no_vote_twice(rule: Rule) -> None:
    plain = SmoothedClassifier(linear_box(), 3, SIGMA)
    seed = max(range(8), key=lambda seed: in_sequence(plain, rule, seed).n)
    box = CountingBox(linear_box())
    undisturbed = in_sequence(SmoothedClassifier(box, 3, SIGMA), rule, seed)
    calls = box.batch_sizes
    assert len(calls) > 4
    for kept in range(len(calls)):
        journal, answers, box = Journal(), iter(range(kept)), CountingBox(linear_box())

        def dying(x: Tensor, answers: Iterator[int] = answers, box: CountingBox = box) -> Tensor:
            if next(answers, None) is None:
                raise KeyboardInterrupt
            return box(x)

        with pytest.raises(KeyboardInterrupt):
            in_sequence(SmoothedClassifier(alone(dying), 3, SIGMA), rule, seed, journal=journal)
        assert in_sequence(SmoothedClassifier(box, 3, SIGMA), rule, seed, journal=journal) == undisturbed
        assert box.batch_sizes == calls


@pytest.mark.parametrize("rule", RULES)
def test_a_sequential_certificate_replays_and_another_alpha_reads_the_same_looks(rule: Rule) -> None:
    smoothed = SmoothedClassifier(linear_box(), 3, SIGMA)
    labels = set()
    for seed in range(10):
        certificate = in_sequence(smoothed, rule, seed)
        assert certificate.replay() == certificate
        looser, tighter = certificate.at_alpha(0.3), certificate.at_alpha(1e-9)
        assert looser.p_lower >= certificate.p_lower >= tighter.p_lower
        for other in (looser, tighter):
            assert other.at_alpha(0.01) == certificate
            assert other.replay() == other
            assert other.looks is not None
            told = recorded.p_lower_at(recorded.record(rule, CAP, 0.01), other.looks, LAW, at=other.alpha)
            assert other.p_lower == told
        labels |= {certificate.label, tighter.label}
    assert None in labels
    assert len(labels) > 1


def tampered(certificate: Certificate) -> dict[str, Certificate]:
    """What was certified, changed in one place after another; counts and n always fit the last look."""
    looks, rule = certificate.looks, certificate.rule
    assert looks is not None
    assert rule is not None
    (n, successes), (before, won) = looks[-1], looks[-2]

    def ending(new: tuple[tuple[int, int], ...]) -> Certificate:
        counts = [0] * 3
        counts[certificate.selected] = new[-1][1]
        counts[certificate.selected - 1] = new[-1][0] - new[-1][1]
        return replace(certificate, looks=new, n=new[-1][0], counts=tuple(counts)).at_alpha(certificate.alpha)

    return {
        "a radius beyond the bound": replace(certificate, radius=certificate.radius * 1.001),
        "a bound beyond the votes": replace(certificate, p_lower=certificate.p_lower + 1e-6),
        "no label": replace(certificate, label=None),
        "an end before the rule's": ending(looks[:-1]),
        "a look left out": replace(certificate, looks=(looks[0], *looks[2:])),
        "a look too many": replace(certificate, looks=(*looks, (n + 30, successes + 30))),
        "a look that was not due": replace(certificate, looks=(*looks[:-2], (before + 1, won), looks[-1])),
        "votes that vanish": replace(certificate, looks=(*looks[:-2], (before, successes + 1), looks[-1])),
        "another cap": replace(certificate, rule=rule | {"cap": 2 * CAP}),
        "another alpha": replace(certificate, rule=rule | {"alpha": 0.02}),
        "other radii": replace(certificate, rule=rule | {"radii": [SIGMA / 8]}),
        "an unknown rule": replace(certificate, rule=rule | {"name": "hunch"}),
        "no looks": replace(certificate, looks=None),
        "fewer samples": replace(certificate, n=n - 1, queries=certificate.queries - 1),
        "no votes": replace(certificate, counts=(0, 0, 0)),
        "votes of another class": replace(certificate, counts=(*certificate.counts[1:], certificate.counts[0])),
        "a bound of the second class": replace(certificate, second_class=True),
        "no alpha": replace(certificate, rule={key: value for key, value in rule.items() if key != "alpha"}),
        "sigma that is no number": replace(certificate, sigma=math.nan),
        "a negative sigma": replace(certificate, sigma=-1.0),
    }


@pytest.mark.parametrize("kind", [EProcess, AlphaSpending])
def test_a_certificate_that_its_rule_did_not_make_is_refused(kind: Callable[..., Rule]) -> None:
    smoothed = SmoothedClassifier(linear_box(), 3, SIGMA)
    made = (in_sequence(smoothed, kind(radii=(SIGMA / 2,)), seed) for seed in range(40))
    certificate = next(c for c in made if c.label is not None and len(c.looks or ()) > 3)
    for change, other in tampered(certificate).items():
        with pytest.raises(InvalidInput) as error:
            print("replayed although there is", change, other.replay())
        assert "\n" not in str(error.value)


def test_a_fixed_certificate_replays_too() -> None:
    certificate = certified(SmoothedClassifier(linear_box(), 3, SIGMA), picture(1, 3, 4))
    assert certificate.replay() == certificate
    for change in ({"radius": certificate.radius + 1e-6}, {"counts": (300, 0, 0)}, {"alpha": 0.02}):
        with pytest.raises(InvalidInput, match="follows from the votes"):
            replace(certificate, **change).replay()
    with pytest.raises(InvalidInput, match="are stated, with the votes"):
        replace(certificate, counts=(301, 0, 0)).replay()


@pytest.mark.parametrize("kind", [EProcess, AlphaSpending])
def test_numbers_of_numpy_are_certified_with_and_kept_as_pythons(kind: Callable[..., Rule]) -> None:
    plain = kind(radii=(SIGMA / 4,), futility=0.1, growth=2)
    rule = kind(radii=np.array([SIGMA / 4]), futility=np.float64(0.1), growth=np.int64(2))
    assert (rule, json.dumps(rule.as_dict())) == (plain, json.dumps(plain.as_dict()))
    smoothed = SmoothedClassifier(linear_box(), 3, SIGMA)
    given: dict[str, Any] = {"n0": np.int64(5), "n": np.int64(200), "alpha": np.float64(0.05)}
    made = smoothed.certify(picture(1, 3, 4), **given, seed=0, rule=rule)
    assert made == smoothed.certify(picture(1, 3, 4), n0=5, n=200, alpha=0.05, seed=0, rule=plain)
    assert made.replay() == made
    json.dumps(made.as_dict())


@pytest.mark.parametrize("rule", [EProcess(radii=(SIGMA / 4,)), AlphaSpending(radii=(SIGMA / 4,))])
def test_a_single_selection_vote_makes_no_certificate_false_too_often(rule: Rule) -> None:
    w, alpha, trials = torch.tensor([1.0, 0.0]), 0.2, 200
    smoothed = SmoothedClassifier(half_space(w, 0.0), 2, SIGMA)
    x = torch.tensor([0.99 * SIGMA / 4, 0.0]).view(1, 1, 2)  # the radius asked lies just beyond the boundary
    false = 0
    for seed in range(trials):
        certificate = smoothed.certify(x, n0=1, n=300, alpha=alpha, seed=seed, rule=rule)
        false += certificate.radius > 0.99 * SIGMA / 4 or certificate.label == 1
    assert false > 0
    assert binom.sf(false - 1, trials, alpha) >= 1e-4


@pytest.mark.parametrize(
    ("change", "came"),
    [
        ({"n": 60}, r"n = 60 cannot certify r = 0.5"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"second_class": True}, "second_class is for a fixed n"),
        ({"n0": 0}, "n0 is 0"),
    ],
)
def test_bad_settings_of_a_sequential_certificate_are_refused_before_any_query(change: dict, came: str) -> None:
    box = CountingBox(linear_box())
    with pytest.raises(InvalidInput, match=came):
        in_sequence(SmoothedClassifier(box, 3, SIGMA), EProcess(radii=(2 * SIGMA,)), **change)
    assert box.calls == 0


# ------------------------------------------------------------------------------------------------- the second class


def test_the_bound_of_the_second_class_is_kept_and_replayed() -> None:
    smoothed, better = SmoothedClassifier(linear_box(5), 5, SIGMA), 0
    for seed in range(20):
        asked: dict[str, Any] = {"n0": 20, "n": 300, "alpha": 0.01, "seed": seed}
        x = picture(1, 3, 4, seed=seed)
        one, two = smoothed.certify(x, **asked), smoothed.certify(x, **asked, second_class=True)
        assert (two.counts, two.selected) == (one.counts, one.selected)
        assert two.radius == confidence.second_class_radius(two.counts, two.selected, 0.01, SIGMA)
        assert two.p_lower == one.at_alpha(0.005).p_lower
        assert two.replay() == two
        asked["alpha"] = 0.3
        assert two.at_alpha(0.3) == smoothed.certify(x, **asked, second_class=True)
        better += two.radius > one.radius
        if two.radius != one.radius:
            with pytest.raises(InvalidInput, match="follows from the votes"):
                replace(two, second_class=False).replay()
    assert better > 0


def test_of_two_classes_the_second_is_the_complement_of_the_first() -> None:
    smoothed, x = SmoothedClassifier(linear_box(2), 2, SIGMA), picture(1, 3, 4)
    one, two = (smoothed.certify(x, n0=5, n=100, alpha=0.01, seed=0, second_class=second) for second in (False, True))
    assert replace(two, second_class=False) == one


def test_the_second_class_takes_its_half_of_alpha_from_the_smallest_n() -> None:
    assert Sampling(1, 10, 0.001, second_class=True).sizes(LAW, 2) == (10,)
    with pytest.raises(InvalidInput, match="smallest n is 11"):
        Sampling(1, 10, 0.001, second_class=True).sizes(LAW, 3)
    assert Sampling(1, 11, 0.001, second_class=True).sizes(LAW, 3) == (11,)


# ----------------------------------------------------------------------------------------------------------- predict


def p_value(a: int, b: int) -> float:
    """Two-sided, from integers: twice the tail of a fair coin."""
    tail = sum(math.comb(a + b, k) for k in range(max(a, b), a + b + 1))
    return min(1.0, 2 * tail / 2 ** (a + b))


def test_predict_is_the_exact_binomial_test_of_the_top_two() -> None:
    box, alpha = CountingBox(linear_box()), 0.05
    smoothed = SmoothedClassifier(box, 3, SIGMA)
    abstained = 0
    for seed in range(30):
        prediction = smoothed.predict(picture(1, 3, 4, seed=seed), n=60, alpha=alpha, seed=seed, batch_size=25)
        first, second = sorted(prediction.counts, reverse=True)[:2]
        assert sum(prediction.counts) == prediction.queries == 60
        assert prediction.p_value == pytest.approx(p_value(first, second), rel=1e-9)
        assert (prediction.label is None) == (p_value(first, second) > alpha)
        assert prediction.label in (None, int(np.argmax(prediction.counts)))
        abstained += prediction.label is None
    assert 0 < abstained < 30
    assert box.images == 30 * 60
    assert max(box.batch_sizes) == 25


def test_predict_abstains_on_a_tie() -> None:
    prediction = SmoothedClassifier(alternating, 2, SIGMA).predict(picture(1, 2, 2), n=200, alpha=0.999, seed=0)
    assert (prediction.label, prediction.p_value, prediction.counts) == (None, 1.0, (100, 100))


def test_predict_is_wrong_no_more_often_than_alpha() -> None:
    w, alpha, trials = torch.tensor([1.0, 0.0]), 0.1, 1000
    smoothed = SmoothedClassifier(half_space(w, 0.0), 2, SIGMA)
    x = torch.tensor([0.01 * SIGMA, 0.0]).view(1, 1, 2)  # hardly on the side of class 0
    wrong = sum(smoothed.predict(x, n=100, alpha=alpha, seed=seed).label == 1 for seed in range(trials))
    assert wrong > 0
    assert binom.sf(wrong - 1, trials, alpha) >= 1e-4


# ------------------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("start", [0, 30, 100])
@pytest.mark.parametrize("size", [64, 100, 250, 1000])
def test_who_draws_the_noise_changes_no_value(
    monkeypatch: pytest.MonkeyPatch, threads: int, start: int, size: int
) -> None:
    """Alone or in several threads; and a batch that ends inside a block shares it with the next."""
    x, reference = picture(1, 2, 2), []
    for block in range(9):
        reference.append(LAW.noisy(x, torch.empty(BLOCK, *x.shape), seeds.wide_generator(*PATH, block)))
    monkeypatch.setattr(noise, "SERIAL", 0)
    with ThreadPoolExecutor(threads) if threads else nullcontext() as pool:
        drawn = list(noisy_batches(x, LAW, start, 870, size, PATH, threads=pool))
        assert [len(batch) for batch in drawn[:-1]] == [size] * (len(drawn) - 1)
        assert torch.equal(torch.cat(drawn), torch.cat(reference)[start:870])


def test_certify_holds_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    box, given, alive = CountingBox(linear_box()), [], []

    def watching(x: Tensor) -> Tensor:
        given.append(weakref.ref(x))
        return box(x)

    def generator(seed: int, *path: int | str, device: torch.device) -> torch.Generator:
        alive.append(sum(batch() is not None for batch in given))  # batches that live while the next is drawn
        return seeds_generator(seed, *path, device=device)

    seeds_generator = seeds.wide_generator
    monkeypatch.setitem(noise.STREAMS, noise.NEWEST, generator)
    certified(SmoothedClassifier(alone(watching), 3, SIGMA), picture(1, 3, 4), batch_size=64)
    assert max(box.batch_sizes) == 64
    assert len(given) == 5  # of 64 votes each, those that select among them
    assert set(alive) <= {0, 1}  # the one that is asked about may live while the next is drawn


def test_pixels_of_another_scale_are_named_before_a_query() -> None:
    asked = []
    smoothed = SmoothedClassifier(lambda x: asked.append(x) or x.flatten(1)[:, :2], 2, 0.25)
    for image in (torch.full((1, 2, 2), 255.0), torch.full((1, 2, 2), -17.0)):
        with pytest.raises(InvalidImages, match="divide by 255"):
            smoothed.certify(image, n0=10, n=10, alpha=0.01, seed=0)
        with pytest.raises(InvalidImages, match="divide by 255"):
            smoothed.predict(image, n=10, alpha=0.01, seed=0)
    assert not asked
    with pytest.warns(UserWarning, match=r"outside \[0, 1\]"):
        smoothed.certify(torch.full((1, 2, 2), 1.5), n0=10, n=10, alpha=0.01, seed=0)


def test_a_prediction_that_can_only_abstain_names_the_smallest_n() -> None:
    smoothed = SmoothedClassifier(lambda x: torch.ones(len(x), dtype=torch.int64), 2, 0.25)
    x = torch.full((1, 2, 2), 0.5)
    with pytest.raises(InvalidInput, match="smallest n is 11"):
        smoothed.predict(x, n=10, alpha=0.001, seed=0)
    assert smoothed.predict(x, n=11, alpha=0.001, seed=0).label == 1


@pytest.mark.parametrize("kind", [EProcess, AlphaSpending])
@pytest.mark.parametrize("n", [12, 20, 45, 200])
def test_radii_out_of_reach_are_those_that_unanimous_votes_do_not_prove(kind: type[Rule], n: int) -> None:
    """By trying every n: the smallest with which all votes for one class, at all looks, prove the radius."""
    radii, alpha = (0.05, 0.2, 0.35), 0.01
    rule = kind(radii=radii)

    def proves(size: int) -> float:
        looks = [(votes, votes) for votes in rule.sizes(size, alpha, asked(rule, LAW))]
        return confidence.radius(rule.decide(looks, size, alpha, asked(rule, LAW)).p_lower, SIGMA)

    smallest = {radius: next(size for size in range(n, 400) if proves(size) >= radius) for radius in radii}
    told = out_of_reach(rule, n, alpha, LAW)
    beyond = [f"r = {radius:g} (the smallest n is {size})" for radius, size in smallest.items() if size > n]
    assert (told is None) == (not beyond) == (n == 200)
    assert told is None or told.startswith(f"n = {n} cannot certify {', '.join(beyond)}: 0 % there")
    assert out_of_reach(kind(tolerance=0.1), n, alpha, LAW) is None

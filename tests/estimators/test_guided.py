"""Guided estimates against projections of known errors, and the measure of a guess against exact inner products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from certibox.errors import InvalidInput
from certibox.estimators import (
    CGE,
    Alignment,
    Guided,
    Orthogonal,
    Subset,
    alignment,
    corrections,
    differences,
    estimated_loss,
    guessed_gradient,
)

Function = Callable[[Tensor], Tensor]  # (..., b, d) -> (..., b)
B, D, MU = 4, 7, 0.5


class Taught:
    """A loss and a guess at it; remembers what was asked, and answers what was not wanted with a large wrong number."""

    def __init__(self, loss: Function, guess: Function) -> None:
        self.loss, self._guess = loss, guess
        self.points: list[Tensor] = []
        self.wanted: list[Tensor] = []
        self.learned: list[int] = []  # how many calls had been answered each time it learned

    def __call__(self, points: Tensor, active: Tensor | None = None) -> Tensor:  # (k, b, d) -> (k, b)
        mask = torch.ones(points.shape[:2], dtype=torch.bool) if active is None else active
        self.points.append(points)
        self.wanted.append(mask)
        return torch.where(mask, self.loss(points), 1e9)

    def guess(self, points: Tensor) -> Tensor:
        return self._guess(points)

    def learn(self) -> None:
        self.learned.append(len(self.points))

    @property
    def asked(self) -> Tensor:
        """Wanted points of each of the b samples."""
        return torch.cat(self.wanted).sum(0)

    def directions(self, z: Tensor, mu: float) -> Tensor:
        """Of forward differences, what was asked after the first call; (b, q, d)."""
        return ((torch.cat(self.points[1:]) - z) / mu).transpose(0, 1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def linear(slope: Tensor) -> Function:
    return lambda points: (points * slope).sum(-1)


def plus(*functions: Function) -> Function:
    return lambda points: torch.stack([function(points) for function in functions]).sum(0)


def stairs(points: Tensor) -> Tensor:
    """Jumps of 3 that autograd does not see."""
    return 3 * (2 * points).floor().sum(-1)


def bends(points: Tensor) -> Tensor:
    return (2 * points).sin().sum(-1) + points.square().sum(-1)


def nothing(points: Tensor) -> Tensor:
    return 0 * points.sum(-1)


def assert_mean(samples: Tensor, expected: Tensor | float, sigmas: float = 5.0) -> None:
    """The mean over the first axis is `expected`, within `sigmas` standard errors (and rounding)."""
    error = (samples.mean(0) - expected).abs()
    standard_error = samples.std(0) / math.sqrt(len(samples))
    assert (error <= sigmas * standard_error + 1e-9).all(), (error / standard_error).max()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


TRUTH, PRIOR, Z = normal(B, D, seed=2), normal(B, D, seed=3), normal(B, D)
LIVE = torch.tensor([[1, 0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0], [1] * 7], dtype=torch.bool)


# --- how much of the guess is trusted ---------------------------------------------------------------------------------


@pytest.mark.parametrize("live", [None, LIVE])
@pytest.mark.parametrize("q", [2, 4])
def test_without_trust_the_estimate_is_unbiased_whatever_the_guess(q: int, live: Tensor | None) -> None:
    matter = torch.ones_like(TRUTH) if live is None else live.double()
    objective = Taught(linear(TRUTH), linear(PRIOR))
    drawn = [Guided(q, MU, trust=0.0).estimate(objective, Z, generator(seed), live) for seed in range(3000)]
    assert_mean(torch.stack(drawn), TRUTH * matter)


@pytest.mark.parametrize("trust", [0.0, 0.3, 1.0])
def test_all_directions_are_exact_at_any_trust(trust: float) -> None:
    close(Guided(D, MU, trust=trust).estimate(Taught(linear(TRUTH), linear(PRIOR)), Z, generator()), TRUTH)


def test_along_the_guess_the_truth_is_measured_at_any_trust() -> None:
    aim = PRIOR / PRIOR.norm(dim=1, keepdim=True)
    for trust in (0.0, 0.5, 1.0):
        made = Guided(3, MU, trust=trust).estimate(Taught(linear(TRUTH), linear(PRIOR)), Z, generator())
        close((made * aim).sum(1), (TRUTH * aim).sum(1))


def test_what_the_truth_confirms_of_a_guess() -> None:
    assert Alignment(product=1.0, guess=4.0, truth=9.0).true_length == 0.25
    assert Alignment(product=8.0, guess=4.0, truth=16.0).true_length == 1.0
    assert Alignment(product=-1.0, guess=4.0, truth=9.0).true_length == 0.0
    assert Alignment(product=0.0, guess=0.0, truth=9.0).true_length == 0.0


# --- a projection of the guess's error --------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [1, 2, 4, D - 1, D])
def test_the_error_is_the_part_of_the_guesss_error_that_no_direction_sees(q: int) -> None:
    objective = Taught(linear(TRUTH), linear(PRIOR))
    estimate = Guided(q, MU).estimate(objective, Z, generator())
    rows, missed = objective.directions(Z, MU), TRUTH - PRIOR
    unseen = missed - torch.einsum("bqd,bqe,be->bd", rows, rows, missed)
    close(TRUTH - estimate, unseen)
    assert ((TRUTH - estimate).norm(dim=1) <= missed.norm(dim=1) + 1e-9).all()
    assert (float((TRUTH - estimate).norm()) < 1e-9) is (q == D)


def test_without_corrections_the_guess_is_the_estimate() -> None:
    assert torch.equal(Guided(0).estimate(Taught(bends, linear(PRIOR)), Z, generator()), PRIOR)


@pytest.mark.parametrize("central", [False, True])
def test_all_directions_are_exact_where_the_guess_knows_the_stairs_and_the_curvature(central: bool) -> None:
    objective = Taught(plus(linear(TRUTH), bends, stairs), plus(linear(PRIOR), bends, stairs))
    exact = TRUTH + 2 * (2 * Z).cos() + 2 * Z
    close(Guided(D, MU, central).estimate(objective, Z, generator()), exact)
    unguided = Orthogonal(D, MU, central).estimate(objective, Z, generator())
    assert (unguided - exact).norm() > 0.5 * exact.norm()


@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize("q", [1, 3, D])
@pytest.mark.parametrize("mu", [1e-3, 0.5, 10.0])
def test_a_perfect_guess_is_left_alone_at_any_step(mu: float, q: int, central: bool) -> None:
    function = plus(linear(TRUTH), stairs)
    close(Guided(q, mu, central).estimate(Taught(function, function), Z, generator()), TRUTH)


def test_central_corrections_are_exact_on_a_quadratic() -> None:
    objective = Taught(plus(linear(TRUTH), lambda points: points.square().sum(-1)), linear(PRIOR))
    close(Guided(D, MU, central=True).estimate(objective, Z, generator()), TRUTH + 2 * Z)
    forward = Guided(D, MU).estimate(objective, Z, generator())  # off by μ/2 · 2 along each of d orthonormal rows
    close((forward - TRUTH - 2 * Z).norm(dim=1), torch.full((B,), MU * math.sqrt(D), dtype=torch.float64))


@pytest.mark.parametrize("guess", [linear(PRIOR), nothing], ids=["guess", "none"])
@pytest.mark.parametrize("q", [1, 3, D])
def test_directions_are_orthonormal_and_the_first_lies_along_the_guess(q: int, guess: Function) -> None:
    objective = Taught(linear(TRUTH), guess)
    Guided(q, MU).estimate(objective, Z, generator())
    rows = objective.directions(Z, MU)
    close(rows @ rows.mT, torch.eye(q, dtype=torch.float64).expand(B, q, q))
    if guess is not nothing:
        close(rows[:, 0], PRIOR / PRIOR.norm(dim=1, keepdim=True))


def test_without_a_guess_the_estimate_is_the_gradients_projection() -> None:
    objective = Taught(linear(TRUTH), nothing)
    estimate = Guided(3, MU).estimate(objective, Z, generator())
    rows = objective.directions(Z, MU)
    close(estimate, torch.einsum("bqd,bqe,be->bd", rows, rows, TRUTH))


@pytest.mark.parametrize("q", [1, 4, D])
def test_dead_coordinates_are_never_moved_and_live_ones_projected(q: int) -> None:
    objective = Taught(linear(TRUTH), linear(PRIOR))
    estimate = Guided(q, MU).estimate(objective, Z, generator(), LIVE)
    used = LIVE.sum(1).clamp(max=q)
    assert torch.equal(objective.asked, 1 + used)
    assert torch.equal(estimate * ~LIVE, torch.zeros_like(estimate))
    close(estimate[used == LIVE.sum(1)], (TRUTH * LIVE)[used == LIVE.sum(1)])
    for i, rows in enumerate(objective.directions(Z, MU)):
        rows = rows[: int(used[i])]
        assert (rows[:, ~LIVE[i]] == 0).all()
        close(rows @ rows.mT, torch.eye(len(rows), dtype=torch.float64))
        missed = ((TRUTH - PRIOR) * LIVE)[i]
        close((TRUTH * LIVE - estimate)[i], missed - rows.mT @ (rows @ missed))


def test_more_corrections_than_dimensions_are_all_dimensions() -> None:
    objective = Taught(linear(TRUTH), linear(PRIOR))
    close(Guided(50, MU).estimate(objective, Z, generator()), TRUTH)
    assert torch.equal(objective.asked, torch.full((B,), D + 1))
    assert Guided(50, MU).cost(D) == D + 1


def test_chunks_do_not_change_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reflection of the first block serves all."""
    whole, parts = Taught(bends, linear(PRIOR)), Taught(bends, linear(PRIOR))
    expected = Guided(6, MU).estimate(whole, Z, generator())
    monkeypatch.setattr(differences, "CHUNK_ELEMENTS", 2 * Z.numel())
    close(Guided(6, MU).estimate(parts, Z, generator()), expected)
    assert len(parts.points) > len(whole.points)


# --- what it costs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guided", "price"),
    [
        (Guided(0), 1),
        (Guided(0, votes=3), 3),
        (Guided(0, ask=0.0, distill=1), 0),
        (Guided(3, MU), 1 + 3),  # ℓ(z) is asked once, to learn from and to subtract
        (Guided(3, MU, central=True), 1 + 6),
        (Guided(3, MU, votes=2), 2 + 3),
        (Guided(3, MU, jitter=0.1), 1 + 1 + 3),  # what is learned from is not at z
        (Guided(3, MU, jitter=0.1, votes=4), 4 + 1 + 3),
        (Guided(3, MU, True, jitter=0.1), 1 + 6),
        (Guided(3, MU, ask=0.5, votes=2), 1 + 1 + 3),
        (Guided(3, MU, ask=0.0, distill=1), 1 + 3),
    ],
)
def test_an_estimate_asks_what_it_costs(guided: Guided, price: int) -> None:
    objective = Taught(linear(TRUTH), linear(PRIOR))
    guided.estimate(objective, Z, generator())
    assert guided.cost(D) == price
    assert int(objective.asked.sum()) == B * price


def test_the_price_of_a_share_is_rounded_up() -> None:
    objective = Taught(linear(TRUTH), linear(PRIOR))
    Guided(0, ask=0.25).estimate(objective, Z, generator())
    assert (int(objective.asked.sum()), Guided(0, ask=0.25).cost(D)) == (1, 1)
    assert [Guided(0, ask=ask, votes=4).cost(D) for ask in (0.25, 0.3, 0.5, 1)] == [1, 2, 2, 4]
    objective = Taught(nothing, nothing)
    Guided(0, ask=0.01).estimate(objective, Z, generator())
    assert int(objective.asked.sum()) == 1  # of 4 images: a surrogate that is told nothing would learn nothing
    assert [Guided(0, ask=ask, distill=1).asked_of(64) for ask in (0, 0.001, 0.05, 0.5, 1)] == [0, 1, 3, 32, 64]


def test_each_image_has_its_share_of_being_asked() -> None:
    asked = []
    for seed in range(300):
        objective = Taught(linear(TRUTH), linear(PRIOR))
        Guided(0, ask=0.5).estimate(objective, Z, generator(seed))
        asked.append(objective.asked.double())
    assert_mean(torch.stack(asked), 0.5)


def test_jittered_answers_are_asked_around_z() -> None:
    objective, z = Taught(nothing, nothing), torch.ones(200, D, dtype=torch.float64)
    Guided(0, jitter=0.3, votes=10).estimate(objective, z, generator())
    (points,) = objective.points
    steps = points - 1
    assert points.shape == (10, 200, D)
    assert_mean(steps.flatten(), 0.0)
    assert_mean(steps.flatten().square(), 0.09)
    assert len(set(steps[:, :, 0].flatten().tolist())) == 2_000


def test_auto_costs_at_most_what_a_worthless_guess_would() -> None:
    assert Guided("auto", target=0.3).cost(101) == 1 + corrections(0.0, 0.3, 101)
    assert Guided("auto", MU, True, target=1.0).cost(9) == 1 + 2 * 9
    assert Guided("auto", target=0.0).cost(9) == 1


def test_the_surrogate_learns_before_it_guesses_and_from_the_answers_of_this_step() -> None:
    known = {"slope": PRIOR}
    objective = Taught(linear(TRUTH), lambda points: (points * known["slope"]).sum(-1))
    objective.learn = lambda: known.update(slope=TRUTH * len(objective.points))  # pyright: ignore
    assert torch.equal(Guided(0).estimate(objective, Z, generator()), TRUTH)


def test_the_bridge_shows_the_objectives_surrogate() -> None:
    z, objective = Z.clone().requires_grad_(True), Taught(bends, linear(PRIOR))
    losses = estimated_loss(objective, z, Guided(3, MU), generator(5))
    expected = Guided(3, MU).estimate(Taught(bends, linear(PRIOR)), Z, generator(5))
    (gradient,) = torch.autograd.grad(losses.sum(), z)
    assert torch.equal(gradient, expected)
    close(losses.detach(), torch.stack([objective.loss(points).sum(0) for points in objective.points]).sum(0) / 4)
    assert objective.learned == [1]


def test_a_batch_has_the_mean_loss_of_what_was_asked() -> None:
    """Points that were not asked stand at that mean: the loss that a run logs does not shrink with what it saves."""
    own = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    for estimator in (Guided(0, ask=0.5), Subset(CGE(MU), 0.5)):
        objective = Taught(lambda points: own + nothing(points), linear(PRIOR))
        losses = estimated_loss(objective, Z, estimator, generator())
        asked = objective.asked > 0
        assert asked.sum() == 2
        close(losses.double(), torch.where(asked, own, own[asked].mean()))


def test_where_nothing_was_asked_the_loss_is_zero() -> None:
    objective = Taught(lambda points: 5 + nothing(points), nothing)
    losses = estimated_loss(objective, Z, CGE(MU, central=True), generator(), torch.zeros_like(LIVE))
    assert torch.equal(losses, torch.zeros_like(losses))


def test_a_guesss_gradient_is_that_of_autograd() -> None:
    objective = Taught(nothing, bends)
    with torch.no_grad():
        close(guessed_gradient(objective, Z), 2 * (2 * Z).cos() + 2 * Z)
        close(guessed_gradient(objective, Z, LIVE), (2 * (2 * Z).cos() + 2 * Z) * LIVE)
    assert not objective.points


# --- what is refused --------------------------------------------------------------------------------------------------


def test_an_objective_without_a_surrogate_is_refused_unasked() -> None:
    asked: list[Tensor] = []
    for objective in (lambda points, *active: asked.append(points), Subset(CGE(MU), 1.0)):
        with pytest.raises(InvalidInput, match="Guided got an objective without a surrogate"):
            Guided(0).estimate(objective, Z, generator())  # pyright: ignore[reportArgumentType]
        with pytest.raises(InvalidInput, match="Guided got an objective without a surrogate"):
            estimated_loss(objective, Z, Guided(0), generator())  # pyright: ignore[reportArgumentType]
    assert not asked


def test_auto_is_for_training_to_resolve() -> None:
    objective = Taught(bends, linear(PRIOR))
    with pytest.raises(InvalidInput, match="q is 'auto', which training alone resolves"):
        Guided("auto", MU).estimate(objective, Z, generator())
    assert not objective.points
    with pytest.raises(InvalidInput, match="mu is 'auto', which training alone resolves"):
        Guided(3, "auto").estimate(objective, Z, generator())
    with pytest.raises(InvalidInput, match="mu is 'auto', which training alone resolves"):
        alignment(objective, Z, generator(), directions=2, mu="auto")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"q": -1}, "q is -1"),
        ({"q": "all"}, "q is 'all'"),
        ({"mu": 0.0}, "mu is 0.0"),
        ({"mu": math.nan}, "mu is nan"),
        ({"mu": "small"}, "mu is 'small'"),
        ({"surrogate": "tree"}, "surrogate is 'tree'; wanted one of image, latent"),
        ({"ask": 1.5}, "ask is 1.5"),
        ({"ask": math.nan}, "ask is nan"),
        ({"target": -0.1}, "target is -0.1"),
        ({"jitter": -1.0}, "jitter is -1.0"),
        ({"jitter": math.inf}, "jitter is inf"),
        ({"distill": -1}, "distill is -1"),
        ({"distill": math.inf}, "distill is inf"),
        ({"distill": 100.0}, r"distill is 100.0; wanted a whole number"),
        ({"votes": 0}, "votes is 0"),
        ({"updates": 0}, "updates is 0"),
        ({"probe_every": 0}, "probe_every is 0"),
    ],
)
def test_bad_values_are_refused_in_one_line(change: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput, match=told) as caught:
        Guided(**change)
    assert "\n" not in str(caught.value)


# --- how good a guess is ----------------------------------------------------------------------------------------------


def sums(guess: Tensor, truth: Tensor) -> Tensor:
    """<g_s, g>, ‖g_s‖² and ‖g‖² over a batch."""
    return torch.stack([(guess * truth).sum(), guess.square().sum(), truth.square().sum()])


def measured(directions: int, seed: int, live: Tensor | None = None, prior: Tensor = PRIOR) -> Tensor:
    found = alignment(Taught(linear(TRUTH), linear(prior)), Z, generator(seed), directions=directions, mu=MU, live=live)
    return torch.tensor([found.product, found.guess, found.truth], dtype=torch.float64)


@pytest.mark.parametrize("prior", [PRIOR, torch.zeros_like(PRIOR)], ids=["guess", "none"])
@pytest.mark.parametrize("live", [None, LIVE], ids=["all", "live"])
@pytest.mark.parametrize("directions", [1, 2, 4])
def test_an_alignment_is_unbiased(directions: int, live: Tensor | None, prior: Tensor) -> None:
    marked = torch.ones_like(LIVE) if live is None else live
    samples = torch.stack([measured(directions, seed, live, prior) for seed in range(200)])
    assert_mean(samples, sums(prior * marked, TRUTH * marked))


@pytest.mark.parametrize("live", [None, LIVE], ids=["all", "live"])
@pytest.mark.parametrize("directions", [D - 1, D, 50])
def test_an_alignment_over_all_directions_is_exact(directions: int, live: Tensor | None) -> None:
    marked = torch.ones_like(LIVE) if live is None else live
    close(measured(directions, 3, live), sums(PRIOR * marked, TRUTH * marked))


@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize("directions", [1, 3, 50])
def test_an_alignment_costs_its_directions_and_two(directions: int, central: bool) -> None:
    objective, across = Taught(linear(TRUTH), linear(PRIOR)), min(directions, D - 1)
    alignment(objective, Z, generator(), directions=directions, mu=MU, central=central)
    assert torch.equal(objective.asked, torch.full((B,), 2 * (across + 1) if central else across + 2))
    assert not objective.learned


def test_one_dimension_has_nothing_across() -> None:
    found = alignment(Taught(linear(TRUTH[:, :1]), linear(PRIOR[:, :1])), Z[:, :1], generator(), directions=4, mu=MU)
    close(torch.tensor(list(vars(found).values()), dtype=torch.float64), sums(PRIOR[:, :1], TRUTH[:, :1]))


def test_a_cosine_is_that_of_the_stacked_gradients() -> None:
    found = alignment(Taught(linear(TRUTH), linear(PRIOR)), Z, generator(), directions=D - 1, mu=MU)
    exact = torch.cosine_similarity(TRUTH.flatten(), PRIOR.flatten(), dim=0)
    assert found.cosine == pytest.approx(float(exact))
    assert Alignment(3.0, 1.0, 4.0).cosine == 1.0  # an estimate may overshoot
    assert Alignment(-3.0, 1.0, 4.0).cosine == -1.0
    assert Alignment(0.5, 1.0, 4.0).cosine == 0.25
    for nothing_there in (Alignment(0.0, 0.0, 1.0), Alignment(0.0, 1.0, 0.0), Alignment(1.0, 1.0, -1.0)):
        assert nothing_there.cosine == 0.0


def test_blending_is_an_exponential_average() -> None:
    assert Alignment(1.0, 2.0, 4.0).blended(Alignment(5.0, 0.0, 8.0), 0.75) == Alignment(2.0, 1.5, 5.0)


# --- how much correction to buy ---------------------------------------------------------------------------------------


def expected_square(cosine: float, q: int, d: int) -> float:
    return cosine**2 + (1 - cosine**2) * (q - 1) / (d - 1)


@pytest.mark.parametrize("d", [2, 9, 100])
@pytest.mark.parametrize("cosine", [0.0, 0.1, 0.29, 0.6])
@pytest.mark.parametrize("target", [0.3, 0.7, 0.99])
def test_corrections_are_the_fewest_that_reach_the_target(cosine: float, target: float, d: int) -> None:
    q = corrections(cosine, target, d)
    if cosine >= target:
        assert q == 0
        return
    assert 2 <= q <= d
    assert expected_square(cosine, q, d) >= target**2 - 1e-12
    assert expected_square(cosine, q - 1, d) < target**2


def test_corrections_at_the_ends() -> None:
    assert corrections(0.3, 0.3, 50) == corrections(1.0, 1.0, 50) == corrections(0.0, 0.0, 50) == 0
    assert corrections(0.5, 1.0, 50) == corrections(0.0, 1.0, 50) == 50
    assert corrections(-0.9, 0.4, 50) == corrections(0.0, 0.4, 50)  # a guess that points away is worth nothing
    assert corrections(0.0, 0.5, 1) == 1
    wanted = [corrections(c / 20, 0.8, 200) for c in range(-20, 21)]
    assert wanted == sorted(wanted, reverse=True)
    assert corrections(0.1, 0.5, 200) < corrections(0.1, 0.6, 200)


@pytest.mark.parametrize(("d", "q"), [(9, 2), (9, 5), (20, 4)])
@pytest.mark.parametrize("cosine", [0.0, 0.4])
def test_the_expected_cosine_after_corrections(cosine: float, q: int, d: int) -> None:
    truth, across = torch.zeros(4_000, d, dtype=torch.float64), normal(4_000, d)
    truth[:, 0], across[:, 0] = 1.0, 0.0
    prior = cosine * truth + math.sqrt(1 - cosine**2) * across / across.norm(dim=1, keepdim=True)
    estimate = Guided(q, 1.0).estimate(Taught(linear(truth), linear(prior)), torch.zeros_like(truth), generator())
    squares = torch.cosine_similarity(estimate, truth, dim=1).square()
    assert_mean(squares, expected_square(cosine, q, d))


# --- a share of the batch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("live", [None, LIVE], ids=["all", "live"])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_subset_is_unbiased(share: float, live: Tensor | None) -> None:
    marked = torch.ones_like(LIVE) if live is None else live
    estimator = Subset(CGE(MU), share)
    samples = [estimator.estimate(Taught(linear(TRUTH), nothing), Z, generator(seed), live) for seed in range(300)]
    assert_mean(torch.stack(samples), TRUTH * marked)


@pytest.mark.parametrize(("share", "images"), [(0.01, 1), (0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)])
@pytest.mark.parametrize("central", [False, True])
def test_a_subset_asks_about_its_share_alone(share: float, images: int, central: bool) -> None:
    inner, objective = CGE(MU, central), Taught(linear(TRUTH), nothing)
    estimate = Subset(inner, share).estimate(objective, Z, generator())
    paid = objective.asked > 0
    assert int(paid.sum()) == images
    assert torch.equal(objective.asked, paid * inner.cost(D))
    close(estimate, paid.unsqueeze(1) * TRUTH * (B / images))
    assert Subset(inner, share).cost(D) == math.ceil(share * inner.cost(D))


def test_a_subset_of_everything_is_the_estimator_itself() -> None:
    whole, share = Taught(bends, nothing), Taught(bends, nothing)
    expected = CGE(MU).estimate(whole, Z, generator())
    assert torch.equal(Subset(CGE(MU), 1.0).estimate(share, Z, generator()), expected)
    assert torch.equal(share.asked, whole.asked)


def test_a_subset_pays_for_live_coordinates_alone() -> None:
    seen = set()
    for seed in range(20):
        objective = Taught(linear(TRUTH), nothing)
        estimate = Subset(CGE(MU), 0.5).estimate(objective, Z, generator(seed), LIVE)
        paid = objective.asked > 0
        assert torch.equal(objective.asked, paid * (LIVE.sum(1) + 1))
        close(estimate, 2 * TRUTH * LIVE * paid.unsqueeze(1))
        seen.add(tuple(paid.tolist()))
    assert len(seen) > 3


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, math.nan])
def test_a_share_is_above_0_and_up_to_1(share: float) -> None:
    with pytest.raises(InvalidInput, match=f"share is {share}"):
        Subset(CGE(MU), share)

"""The chosen step against closed forms: the classical optimum, the height of a stair, the grid of an endpoint."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from certibox.errors import InvalidInput
from certibox.estimators import CGE, Orthogonal
from certibox.estimators.step_size import RATIO, STEPS, StepChoice, choose_step, precision_is_safe

Function = Callable[[Tensor], Tensor]  # (..., d) -> (...)


class Asked:
    """An objective that remembers its points, and answers those that were not wanted with a large wrong number."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.points: list[Tensor] = []
        self.wanted: list[Tensor] = []

    def __call__(self, points: Tensor, wanted: Tensor) -> Tensor:  # (k, b, d), (k, b) -> (k, b)
        self.points.append(points)
        self.wanted.append(wanted)
        return torch.where(wanted, self.function(points), 1e9)

    @property
    def queries(self) -> int:
        return sum(int(wanted.sum()) for wanted in self.wanted)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def choose(function: Function, z: Tensor, coordinates: bool = True, central: bool = True, **options) -> StepChoice:
    return choose_step(Asked(function), z, generator(), coordinates=coordinates, central=central, **options)


def rounded(function: Function, grid: float) -> Function:
    """Answers on a grid: an error of at most ε = grid/2."""
    return lambda points: (function(points) / grid).round() * grid


def exponential(points: Tensor) -> Tensor:
    return points.exp().sum(-1)


def cubic(points: Tensor) -> Tensor:
    return points.pow(3).sum(-1)


def quadratic(points: Tensor) -> Tensor:
    return (points.square() / 2 + points).sum(-1)


def error(function: Function, slope: Tensor, z: Tensor, mu: float, central: bool = True) -> float:
    """Relative error of the coordinate-wise estimate over mu."""
    estimate = CGE(mu, central).estimate(function, z, generator())
    return float((estimate - slope).norm() / slope.norm())


def grid_of(choice: StepChoice) -> list[float]:
    return [row.mu for row in choice.evidence]


# The bound ε/μ + |f‴| μ²/6 of a central difference is least at (3 ε / |f‴|)^(1/3), that of a forward one, 2 ε/μ +
# |f″| μ/2, at 2 (ε / |f″|)^(1/2). The steps tried are a factor of 4 apart, here from 1 down. A mean error is below its
# bound, and curvature shows 15 times over at four times the step, so the choice leans to the smaller side.
@pytest.mark.parametrize("grid", [2e-2, 1e-3, 1e-4])
@pytest.mark.parametrize(("function", "second", "third"), [(exponential, 1.0, 1.0), (cubic, 6.0, 6.0)])
@pytest.mark.parametrize("central", [False, True])
def test_the_step_balances_rounding_and_curvature(
    function: Function, second: float, third: float, grid: float, central: bool
) -> None:
    z = 0.1 * normal(64, 8) + (1.0 if function is cubic else 0.0)
    epsilon = grid / 2
    optimum = (3 * epsilon / third) ** (1 / 3) if central else 2 * (epsilon / second) ** 0.5
    choice = choose(rounded(function, grid), z, central=central, largest=1.0)
    assert choice.agreed
    assert optimum / 5 <= choice.mu <= 2 * optimum


@pytest.mark.parametrize("coordinates", [True, False])
def test_bfloat16_answers_want_a_larger_step_than_exact_ones(coordinates: bool) -> None:
    z = normal(64, 16)
    weight = normal(16, seed=2) / 4

    def smooth(points: Tensor) -> Tensor:
        return (points @ weight).tanh() + 3

    def coarse(points: Tensor) -> Tensor:
        return smooth(points).bfloat16().double()

    slope = weight / (z @ weight).cosh().square().unsqueeze(1)
    exact, low = choose(smooth, z, coordinates), choose(coarse, z, coordinates)
    assert low.mu > exact.mu
    family = (lambda mu: CGE(mu, True)) if coordinates else (lambda mu: Orthogonal(16, mu, True))
    errors = {mu: float((family(mu).estimate(coarse, z, generator()) - slope).norm()) for mu in grid_of(low)}
    assert errors[low.mu] < 1.5 * min(errors.values())
    assert errors[low.mu] < errors[exact.mu] / 2


def test_a_quadratic_has_no_curvature_error_so_rounding_alone_decides() -> None:
    z = normal(64, 8)
    choice = choose(rounded(quadratic, 0.1), z)
    assert choice.mu >= 1  # ε = 0.05, so a step of 1 errs by 5 %
    assert error(rounded(quadratic, 0.1), z + 1, z, choice.mu) < 0.05


@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize("coordinates", [True, False])
def test_on_a_linear_box_every_step_agrees_and_the_chosen_one_is_exact(coordinates: bool, central: bool) -> None:
    z, slope = normal(64, 8), normal(8, seed=2)
    choice = choose(lambda points: points @ slope, z, coordinates, central)
    assert choice.agreed
    assert all(row.disagreement < 1e-9 for row in choice.evidence[1:-1])
    assert [row.disagreement for row in (choice.evidence[0], choice.evidence[-1])] == pytest.approx([0.5, 0.5])
    assert error(lambda points: points @ slope, slope.expand(64, 8), z, choice.mu, central) < 1e-9


def test_of_steps_that_agree_alike_the_geometric_middle_is_taken() -> None:
    z = normal(64, 8).mul(4).round()
    choice = choose(lambda points: points.sum(-1), z, largest=64.0)  # dyadic numbers: every difference is exact
    assert [row.disagreement for row in choice.evidence] == [0.5, 0, 0, 0, 0, 0, 0.5]
    assert choice.mu == 64 / RATIO**3


@pytest.mark.parametrize("height", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("central", [False, True])
def test_steps_cross_the_stairs_of_a_staircase(height: float, central: bool) -> None:
    z = normal(64, 8)
    choice = choose(lambda points: (points / height).floor().sum(-1) * height, z, central=central)
    assert choice.agreed
    assert choice.mu >= height
    small = choice.evidence[0]
    assert small.mu < height / 10
    assert small.zeros > 0.8
    assert small.disagreement > 0.9


@pytest.mark.parametrize("coordinates", [True, False])
def test_steps_cross_the_grid_of_an_8_bit_endpoint(coordinates: bool) -> None:
    z = torch.rand(64, 16, generator=generator(3), dtype=torch.float64)
    weight = normal(16, seed=2)

    def endpoint(points: Tensor) -> Tensor:
        return ((points.clamp(0, 1) * 255).round() / 255 @ weight).sin()

    choice = choose(endpoint, z, coordinates)
    moved = choice.mu if coordinates else choice.mu / 4  # a direction on the sphere shares its step among 16 pixels
    assert choice.agreed
    assert 1 / 255 < moved < 0.5


def test_answers_that_never_change_agree_on_nothing() -> None:
    z = normal(64, 8)
    choice = choose(lambda points: torch.zeros(points.shape[:-1], dtype=points.dtype), z)
    assert not choice.agreed
    assert choice.mu == choice.evidence[-1].mu == max(grid_of(choice))
    assert all(row.zeros == row.disagreement == 1 for row in choice.evidence)


def test_noise_agrees_on_nothing() -> None:
    noise = generator(9)
    choice = choose(lambda points: torch.randn(points.shape[:-1], generator=noise).double(), normal(200, 8),
                    directions=200)  # fmt: skip
    assert not choice.agreed
    assert choice.mu == max(grid_of(choice))


def test_answers_that_are_not_finite_agree_on_nothing() -> None:
    z = normal(64, 8)
    choice = choose(lambda points: torch.where(points.abs().amax(-1) > 6, torch.inf, quadratic(points)), z)
    assert choice.agreed
    assert choice.evidence[-1].disagreement > choice.evidence[-2].disagreement > choice.evidence[-3].disagreement
    assert choice.mu < 4


def test_the_grid_hangs_on_the_scale_of_z() -> None:
    z = normal(64, 9)
    rms = float(z.square().mean().sqrt())
    for scale in (1e-3, 1.0, 1e3):
        for coordinates, top in ((True, 4 * rms), (False, 3 * rms)):
            steps = grid_of(choose(quadratic, scale * z, coordinates))
            assert steps == pytest.approx([scale * top / RATIO**power for power in reversed(range(STEPS))])
    assert grid_of(choose(quadratic, z, largest=0.5))[-1] == 0.5


@pytest.mark.parametrize(
    ("b", "directions", "central", "expected"),
    [
        (64, 32, True, 7 * 2 * 32),
        (64, 32, False, 7 * 32 + 32),
        (5, 32, True, 7 * 2 * 32),
        (5, 32, False, 7 * 32 + 5),
        (1, 10, False, 7 * 10 + 1),
    ],
)
@pytest.mark.parametrize("coordinates", [True, False])
def test_the_price_is_exact(b: int, directions: int, central: bool, expected: int, coordinates: bool) -> None:
    spy = Asked(exponential)
    choice = choose_step(
        spy, normal(b, 3), generator(), coordinates=coordinates, central=central, directions=directions
    )
    assert spy.queries == choice.queries == expected
    spread = torch.stack(
        [wanted.sum(0) for wanted in spy.wanted if len(wanted) == -(-directions // min(b, directions))]
    )
    assert int(spread.max() - spread.clamp(min=directions // b).min()) <= 1  # evenly over the points


def test_axes_are_distinct_while_there_are_any() -> None:
    spy = Asked(exponential)
    z = normal(1, 40)
    choose_step(spy, z, generator(), coordinates=True, central=True, directions=32)
    moved = spy.points[0] != z  # (32, 1, 40)
    assert moved.sum(-1).eq(1).all()
    assert len(set(moved.squeeze(1).nonzero()[:, 1].tolist())) == 32


@pytest.mark.parametrize("coordinates", [True, False])
@pytest.mark.parametrize("central", [True, False])
def test_dead_coordinates_are_not_moved_and_dead_points_not_asked(coordinates: bool, central: bool) -> None:
    z = normal(12, 6)
    live = torch.rand(12, 6, generator=generator(4)) < 0.4
    live[3], live[7] = False, False
    z[~live] = 1e6  # what is dead has no say in the scale of the steps either
    spy = Asked(lambda points: (points * live).exp().sum(-1))
    choice = choose_step(spy, z, generator(), coordinates=coordinates, central=central, live=live)
    for points, wanted in zip(spy.points, spy.wanted, strict=True):
        assert not wanted[:, ~live.any(1)].any()
        assert torch.equal(points[:, ~live], z[~live].expand(len(points), -1))
    assert spy.queries == choice.queries == (448 if central else 224 + int(live.any(1).sum()))
    rms = float(z[live].square().mean().sqrt())
    mean_live = float(live.sum() / live.any(1).sum())
    assert choice.evidence[-1].mu == pytest.approx(4 * rms if coordinates else rms * mean_live**0.5)


def test_directions_on_the_sphere_have_length_mu() -> None:
    spy, z = Asked(exponential), normal(32, 6)
    choice = choose_step(spy, z, generator(), coordinates=False, central=False)
    lengths = torch.stack([(points - z).norm(dim=-1).mean() for points in spy.points])
    assert lengths.tolist() == pytest.approx([0.0, *grid_of(choice)])


def test_a_seed_fixes_the_choice() -> None:
    z = normal(64, 8)
    spies = [Asked(exponential) for _ in range(3)]
    first, again, other = (
        choose_step(spy, z, generator(seed), coordinates=False, central=True)
        for spy, seed in zip(spies, (0, 0, 1), strict=True)
    )
    assert first == again
    assert all(torch.equal(a, b) for a, b in zip(spies[0].points, spies[1].points, strict=True))
    assert first.evidence != other.evidence


def test_what_is_logged_is_plain_values() -> None:
    choice = choose(exponential, normal(64, 8))
    logged = json.loads(json.dumps(choice.as_dict()))
    assert logged["mu"] == choice.mu
    assert [row["disagreement"] for row in logged["evidence"]] == [row.disagreement for row in choice.evidence]


@pytest.mark.parametrize(
    ("z", "options", "told"),
    [
        (torch.zeros(3, 2), {}, "a root mean square of 0.0, .* wanted a finite z other than zero, or a number for mu"),
        (torch.ones(3, 2), {"live": torch.zeros(3, 2, dtype=torch.bool)}, "live"),
        (torch.ones(3, 2), {"largest": 0.0}, "largest is 0.0"),
        (torch.ones(3, 2), {"directions": 1}, "at least 2"),
    ],
)
def test_what_cannot_work_is_refused_before_a_query(z: Tensor, options: dict, told: str) -> None:
    spy = Asked(exponential)
    with pytest.raises(InvalidInput, match=told):
        choose_step(spy, z, generator(), coordinates=True, central=True, **options)
    assert not spy.points


# Rounded to a grid of 1e-3, a difference errs by at most 1e-3 over a step of 1, and by its size over one of 1e-3.
@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize(("mu", "safe"), [(1e-3, False), (1.0, True)])
def test_a_faster_arithmetic_is_safe_where_its_rounding_is_small_against_the_step(
    mu: float, safe: bool, central: bool
) -> None:
    full, fast = Asked(quadratic), Asked(rounded(quadratic, 1e-3))
    z = normal(64, 8)
    check = precision_is_safe(full, fast, z, mu, generator(), coordinates=True, central=central)
    assert bool(check) is check.safe is safe
    assert full.queries == fast.queries == 64
    assert check.queries == 128
    assert json.loads(json.dumps(check.as_dict()))["mu"] == mu


def test_the_error_of_a_faster_arithmetic_is_relative() -> None:
    z, slope = normal(64, 8), normal(8, seed=2)
    for share, safe in ((0.02, True), (0.1, False)):
        check = precision_is_safe(
            Asked(lambda points: points @ slope),
            Asked(lambda points, share=share: (1 - share) * (points @ slope)),
            z, 0.1, generator(), coordinates=False, central=True,
        )  # fmt: skip
        assert check.error == pytest.approx(share)
        assert check.safe is safe


def test_differences_of_zero_are_not_safe() -> None:
    flat = Asked(lambda points: torch.zeros(points.shape[:-1], dtype=points.dtype))
    check = precision_is_safe(flat, flat, normal(4, 3), 0.1, generator(), coordinates=True, central=False)
    assert not check
    assert check.error == 1
    assert check.queries == flat.queries == 2 * (32 + 4)


def test_a_step_must_be_positive() -> None:
    spy = Asked(quadratic)
    with pytest.raises(InvalidInput, match="mu is -1"):
        precision_is_safe(spy, spy, normal(4, 3), -1, generator(), coordinates=True, central=True)
    assert not spy.points

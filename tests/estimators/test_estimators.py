"""Estimates are checked against autograd, closed forms and the identity E Σ w u uᵀ = I."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certibox.errors import InvalidInput
from certibox.estimators import CGE, RGE, GradientEstimator, Orthogonal, differences, estimated_loss

Function = Callable[[Tensor], Tensor]  # (..., b, d) -> (..., b)

EVERY = [
    pytest.param(lambda mu, central: RGE(5, mu, central), id="RGE"),
    pytest.param(lambda mu, central: CGE(mu, central), id="CGE"),
    pytest.param(lambda mu, central: Orthogonal(5, mu, central), id="Orthogonal"),
]
Make = Callable[[float, bool], RGE | CGE | Orthogonal]


class Spy:
    """An objective that remembers which points were wanted, and answers the others with a large wrong number."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.points: list[Tensor] = []
        self.wanted: list[Tensor] = []

    def __call__(self, points: Tensor, active: Tensor | None = None) -> Tensor:  # (k, b, d) -> (k, b)
        mask = torch.ones(points.shape[:2], dtype=torch.bool) if active is None else active
        self.points.append(points)
        self.wanted.append(mask)
        return torch.where(mask, self.function(points), 1e9)

    @property
    def asked(self) -> Tensor:
        """Wanted points of each of the b samples."""
        return torch.cat(self.wanted).sum(0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def waves(points: Tensor) -> Tensor:
    """Smooth, with every derivative away from zero; each value depends on its own point alone, to the last bit."""
    phase = torch.arange(points.shape[-1], dtype=points.dtype)
    return (points + phase).sin().sum(-1) + (0.3 * points.sum(-1)).exp()


def cross_entropy_of_decoded(b: int, d_z: int = 6, classes: int = 4) -> Function:
    """Softmax cross-entropy of a linear classifier behind a small convolutional decoder, a label for each sample."""
    decoder = nn.Sequential(nn.ConvTranspose2d(d_z, 5, 4), nn.Tanh(), nn.ConvTranspose2d(5, 2, 3), nn.Sigmoid())
    for index, parameter in enumerate(decoder.double().parameters()):
        parameter.data = 0.5 * normal(*parameter.shape, seed=index)
    weight, labels = normal(classes, 2 * 6 * 6, seed=99), torch.arange(b) % classes

    def loss(points: Tensor) -> Tensor:
        logits = decoder(points.reshape(-1, d_z, 1, 1)).flatten(1) @ weight.T
        target = labels.expand(points.shape[:-1]).flatten()
        return F.cross_entropy(logits, target, reduction="none").reshape(points.shape[:-1])

    return loss


def autograd(function: Function, z: Tensor) -> Tensor:
    z = z.clone().requires_grad_(True)
    return torch.autograd.grad(function(z).sum(), z)[0]


def relative_error(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


def tableau(estimator: GradientEstimator, z: Tensor, live: Tensor | None = None, seed: int = 3) -> Tensor:
    """Σ w u uᵀ of each sample (b, d, d): column j is the estimate for the linear function x_j, same draws each time."""

    def coordinate(j: int) -> Function:
        return lambda points: points[..., j]

    columns = [estimator.estimate(Spy(coordinate(j)), z, generator(seed), live) for j in range(z.shape[1])]
    return torch.stack(columns, dim=2)


def assert_mean(samples: Tensor, expected: Tensor | float, sigmas: float = 5.0) -> None:
    """The mean over the first axis is `expected`, within `sigmas` standard errors (and rounding)."""
    error = (samples.mean(0) - expected).abs()
    standard_error = samples.std(0) / math.sqrt(len(samples))
    assert (error <= sigmas * standard_error + 1e-12).all(), (error / standard_error).max()


# Truncation and rounding of a float64 difference balance at these steps: below 1e-6 either way.
@pytest.mark.parametrize(("mu", "central"), [(1e-8, False), (1e-5, True)])
@pytest.mark.parametrize("function", [waves, cross_entropy_of_decoded(3)], ids=["waves", "decoder"])
def test_cge_equals_autograd(function: Function, mu: float, central: bool) -> None:
    z = normal(3, 6)
    estimate = CGE(mu, central).estimate(Spy(function), z, generator())
    assert relative_error(estimate, autograd(function, z)) < 1e-6


@pytest.mark.parametrize("mu", [0.01, 1.0])
def test_central_differences_are_exact_on_a_quadratic(mu: float) -> None:
    root, z = normal(6, 6, seed=5), normal(3, 6)
    matrix = root + root.T

    def quadratic(points: Tensor) -> Tensor:
        return (points @ matrix * points).sum(-1) / 2

    assert relative_error(CGE(mu, central=True).estimate(quadratic, z, generator()), z @ matrix) < 1e-12
    forward = CGE(mu).estimate(quadratic, z, generator())  # off by exactly μ/2 times the curvature of each coordinate
    torch.testing.assert_close(forward - z @ matrix, (mu / 2 * matrix.diagonal()).expand(3, 6), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize("estimator", [RGE, Orthogonal])
@pytest.mark.parametrize(("d", "q"), [(1, 1), (5, 1), (5, 3), (8, 8), (9, 4)])
def test_the_tableau_is_the_identity_in_expectation(
    estimator: type[RGE | Orthogonal], d: int, q: int, central: bool
) -> None:
    samples = tableau(estimator(q, 0.1, central), torch.zeros(5_000, d, dtype=torch.float64))
    assert_mean(samples, torch.eye(d, dtype=torch.float64))
    trace = samples.diagonal(dim1=1, dim2=2).sum(1)  # Σ w |u|² = d in every single draw
    torch.testing.assert_close(trace, torch.full_like(trace, d), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("d", "q"), [(4, 1), (6, 3), (10, 7)])
def test_relative_squared_error_on_linear_functions(d: int, q: int) -> None:
    slope, z = normal(d), torch.zeros(20_000, d, dtype=torch.float64)
    expected = {RGE(q, 1.0): (d - 1) / q, Orthogonal(q, 1.0): (d - q) / q}
    for estimator, error in expected.items():
        estimate = estimator.estimate(lambda points: points @ slope, z, generator(7))
        assert_mean((estimate - slope).square().sum(1) / slope.square().sum(), error)


@pytest.mark.parametrize("estimator", [RGE(3, 1.0), Orthogonal(3, 1.0)])
def test_directions_have_unit_length_and_no_favoured_sign(estimator: RGE | Orthogonal) -> None:
    spy = Spy(waves)
    estimator.estimate(spy, torch.zeros(5_000, 4, dtype=torch.float64), generator())
    directions = torch.cat(spy.points[1:])  # (q, b, d): at z = 0 and μ = 1 points are directions
    torch.testing.assert_close(directions.norm(dim=2), torch.ones(3, 5_000, dtype=torch.float64), rtol=1e-12, atol=0)
    for direction in directions:
        assert_mean(direction, 0.0)


@pytest.mark.parametrize(("d", "q"), [(1, 1), (7, 3), (7, 7), (64, 20), (193, 193)])
def test_orthogonal_directions_are_orthonormal(d: int, q: int) -> None:
    spy = Spy(waves)
    Orthogonal(q, 1.0).estimate(spy, torch.zeros(3, d, dtype=torch.float64), generator())
    rows = torch.cat(spy.points[1:]).transpose(0, 1)  # (b, q, d)
    assert (rows @ rows.mT - torch.eye(q, dtype=torch.float64)).abs().max() < 1e-12
    if d > 1:
        assert not torch.equal(rows[0], rows[1]), "samples draw their own rows"


def test_orthogonal_is_exact_on_linear_functions_when_q_is_d() -> None:
    slope, z = normal(12), normal(5, 12, seed=2)
    estimate = Orthogonal(12, 0.5).estimate(lambda points: points @ slope, z, generator())
    torch.testing.assert_close(estimate, slope.expand(5, 12), rtol=1e-12, atol=1e-12)


def test_orthogonal_rows_keep_their_digits_in_float32() -> None:
    spy, d = Spy(waves), 4096
    Orthogonal(8, 1.0).estimate(spy, torch.zeros(1, d), generator())
    rows = torch.cat(spy.points[1:])[:, 0].double()
    assert (rows @ rows.T - torch.eye(8, dtype=torch.float64)).abs().max() < 1e-6


@pytest.mark.parametrize(("central", "order"), [(False, 1), (True, 2)])
@pytest.mark.parametrize("make", EVERY)
def test_the_error_falls_with_its_order_in_mu(make: Make, central: bool, order: int) -> None:
    z = normal(3, 7)
    gradient, steps = autograd(waves, z), torch.logspace(-4, -2, 9, dtype=torch.float64)
    errors = []
    for mu in steps.tolist():
        # The same draws with exact slopes: what is left is the error of the differences alone.
        exact = make(mu, central).estimate(lambda points: (points * gradient).sum(-1), z, generator())
        errors.append((make(mu, central).estimate(waves, z, generator()) - exact).norm())
    x, y = steps.log(), torch.stack(errors).log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert float(slope) == pytest.approx(order, abs=0.1)


LIVE = torch.tensor([[1, 0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0], [1] * 7], dtype=torch.bool)


@pytest.mark.parametrize("central", [False, True])
def test_cge_of_live_coordinates_is_the_same_for_fewer_queries(central: bool) -> None:
    z, everywhere, spy = normal(4, 7), Spy(waves), Spy(waves)
    full = CGE(0.01, central).estimate(everywhere, z, generator())
    live = CGE(0.01, central).estimate(spy, z, generator(), LIVE)
    assert torch.equal(live, full * LIVE)
    per_sample = 2 * LIVE.sum(1) if central else LIVE.sum(1) + 1
    assert torch.equal(spy.asked, per_sample)
    assert torch.equal(everywhere.asked, torch.full((4,), CGE(0.01, central).cost(7)))


@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize("make", EVERY)
def test_a_sample_without_live_coordinates_asks_no_direction_and_has_zero_gradient(make: Make, central: bool) -> None:
    spy = Spy(waves)
    estimate = make(0.01, central).estimate(spy, normal(4, 7), generator(), LIVE)
    assert estimate.isfinite().all()
    assert torch.equal(estimate != 0, LIVE)
    assert spy.asked[1] == (0 if central else 1)


@pytest.mark.parametrize("make", EVERY)
def test_a_batch_without_live_coordinates_asks_no_direction(make: Make) -> None:
    spy, dead = Spy(waves), torch.zeros(3, 7, dtype=torch.bool)
    assert torch.equal(make(0.01, True).estimate(spy, normal(3, 7), generator(), dead), torch.zeros(3, 7).double())
    assert sum(int(wanted.sum()) for wanted in spy.wanted) == 0


@pytest.mark.parametrize("estimator", [RGE(3, 0.1), Orthogonal(3, 0.1), Orthogonal(7, 0.1)])
def test_the_live_tableau_is_the_live_identity_in_expectation(estimator: RGE | Orthogonal) -> None:
    n = 2_000
    z, live = torch.zeros(4 * n, 7, dtype=torch.float64), LIVE.repeat(n, 1)
    samples = tableau(estimator, z, live).reshape(n, 4, 7, 7)
    assert_mean(samples, torch.diag_embed(LIVE.double()))


def test_orthogonal_is_exact_on_live_coordinates_that_q_covers() -> None:
    slope, z, spy = normal(7), normal(4, 7, seed=2), Spy(lambda points: points @ slope)
    estimate = Orthogonal(5, 0.5).estimate(spy, z, generator(), LIVE)
    covered = LIVE.sum(1) <= 5
    torch.testing.assert_close(estimate[covered], (slope * LIVE)[covered], rtol=1e-12, atol=1e-12)
    assert torch.equal(spy.asked, LIVE.sum(1).clamp(max=5) + 1)


@pytest.mark.parametrize("live", [None, LIVE], ids=["all", "live"])
@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize("make", [EVERY[1], EVERY[2]])
def test_chunks_do_not_change_the_estimate(
    make: Make, central: bool, live: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, whole, parts = normal(4, 7), Spy(waves), Spy(waves)
    expected = make(0.01, central).estimate(whole, z, generator(), live)
    monkeypatch.setattr(differences, "CHUNK_ELEMENTS", 2 * z.numel())
    estimate = make(0.01, central).estimate(parts, z, generator(), live)
    assert len(parts.points) > len(whole.points)
    torch.testing.assert_close(estimate, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(parts.asked, whole.asked)


def test_chunked_sphere_directions_are_reproducible_and_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many normals are drawn at a time changes them, so the draws depend on the shape of z, and on nothing else."""
    z = torch.zeros(5_000, 4, dtype=torch.float64)
    monkeypatch.setattr(differences, "CHUNK_ELEMENTS", 2 * z.numel())
    samples = tableau(RGE(5, 0.1), z)
    assert torch.equal(samples, tableau(RGE(5, 0.1), z))
    assert_mean(samples, torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("elements", [1, 28, 60, 1 << 22])
def test_blocks_stay_within_the_chunk(make: Make, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    z, spy = normal(4, 7), Spy(waves)
    monkeypatch.setattr(differences, "CHUNK_ELEMENTS", elements)
    estimator = make(0.01, False)
    estimator.estimate(spy, z, generator())
    assert max(points.numel() for points in spy.points) <= max(elements, z.numel())
    assert sum(len(points) for points in spy.points) == estimator.cost(7)


@pytest.mark.parametrize("make", EVERY)
def test_one_seed_gives_one_estimate_and_another_seed_another(make: Make) -> None:
    z, estimator = normal(3, 7), make(0.01, False)
    first, again, other = (estimator.estimate(waves, z, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == isinstance(estimator, CGE)


@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize("d", [1, 3, 8])
def test_cost_is_what_an_estimate_asks(d: int, central: bool) -> None:
    for estimator in (RGE(1, 0.1, central), RGE(9, 0.1, central), CGE(0.1, central), Orthogonal(d, 0.1, central)):
        spy = Spy(waves)
        estimator.estimate(spy, normal(2, d), generator())
        assert torch.equal(spy.asked, torch.full((2,), estimator.cost(d)))


def test_orthogonal_refuses_more_directions_than_dimensions() -> None:
    spy = Spy(waves)
    with pytest.raises(InvalidInput, match=r"q = 9 .*in 7 dimensions"):
        Orthogonal(9, 0.1).cost(7)
    with pytest.raises(InvalidInput, match=r"q = 9 .*in 7 dimensions"):
        Orthogonal(9, 0.1).estimate(spy, normal(2, 7), generator())
    assert not spy.points


@pytest.mark.parametrize("mu", [0.0, -0.1, math.nan, math.inf])
@pytest.mark.parametrize("make", EVERY)
def test_a_step_must_be_positive(make: Make, mu: float) -> None:
    with pytest.raises(InvalidInput, match=f"mu is {mu}"):
        make(mu, False)


@pytest.mark.parametrize("estimator", [RGE, Orthogonal])
def test_there_must_be_a_direction(estimator: type[RGE | Orthogonal]) -> None:
    with pytest.raises(InvalidInput, match="q is 0"):
        estimator(0, 0.1)
    with pytest.raises(InvalidInput, match=r"q is 2\.0; wanted a whole number"):
        estimator(2.0, 0.1)  # pyright: ignore[reportArgumentType]


def relu_encoder() -> nn.Module:
    layers = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 6), nn.ReLU()).double()
    for index, parameter in enumerate(layers.parameters()):
        parameter.data = normal(*parameter.shape, seed=20 + index)
    return layers


def parameter_gradients(encoder: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(encoder.parameters())))


@pytest.mark.parametrize(("mu", "central"), [(1e-8, False), (1e-5, True)])
def test_the_bridge_gives_encoder_parameters_the_gradient_of_autograd(mu: float, central: bool) -> None:
    encoder, x, function = relu_encoder(), normal(8, 5), cross_entropy_of_decoded(8)
    weights = torch.linspace(-1, 3, 8, dtype=torch.float64)  # upstream gradients: γ, a mean, other terms
    spy, z = Spy(function), encoder(x)
    losses = estimated_loss(spy, z, CGE(mu, central), generator())
    actual = parameter_gradients(encoder, (weights * losses).sum())
    expected = parameter_gradients(encoder, (weights * function(encoder(x))).sum())
    for a, b in zip(actual, expected, strict=True):
        assert relative_error(a, b) < 1e-6
    torch.testing.assert_close(losses, function(z), rtol=0, atol=10 * mu)
    assert torch.equal(spy.asked, torch.full((8,), CGE(mu, central).cost(6))), "the value costs nothing of its own"


@pytest.mark.parametrize("central", [False, True])
def test_live_coordinates_give_the_same_update_through_a_relu_for_fewer_queries(central: bool) -> None:
    encoder, x = relu_encoder(), normal(8, 5)
    spies, updates = (Spy(waves), Spy(waves)), []
    for spy, skip in zip(spies, (False, True), strict=True):
        z = encoder(x)
        losses = estimated_loss(spy, z, CGE(0.05, central), generator(), z > 0 if skip else None)
        updates.append(parameter_gradients(encoder, losses.sum()))
    for with_all, with_live in zip(*updates, strict=True):
        assert with_all.abs().max() > 0
        assert torch.equal(with_live, with_all)
    live = encoder(x) > 0
    assert 0 < live.sum() < live.numel()
    assert torch.equal(spies[1].asked, 2 * live.sum(1) if central else live.sum(1) + 1)
    assert spies[1].asked.sum() < spies[0].asked.sum()


def test_the_bridge_value_on_a_linear_function() -> None:
    """The mean of ℓ and ℓ + μ gᵢ over i is ℓ + μ Σ gᵢ / (d + 1); over ±μ it is ℓ itself."""
    slope, z, mu = normal(6), normal(3, 6, seed=2), 0.1
    loss = z @ slope
    for live, expected in (
        (None, loss + mu * slope.sum() / 7),
        (z > 0, loss + mu * ((z > 0) * slope).sum(1) / ((z > 0).sum(1) + 1)),
    ):
        value = estimated_loss(Spy(lambda points: points @ slope), z, CGE(mu), generator(), live)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    value = estimated_loss(Spy(lambda points: points @ slope), z, CGE(mu, central=True), generator())
    torch.testing.assert_close(value, loss, rtol=1e-12, atol=1e-12)


class Simultaneous:
    """A stranger's estimator, sharing no code with this package: one random ±1 direction, both ways."""

    def estimate(
        self,
        objective: Callable[..., Tensor],
        z: Tensor,
        generator: torch.Generator,
        live: Tensor | None = None,
    ) -> Tensor:
        signs = torch.randint(0, 2, z.shape, generator=generator).to(z.dtype) * 2 - 1
        up, down = objective(torch.stack([z + 0.1 * signs, z - 0.1 * signs]))
        return ((up - down) / 0.2).unsqueeze(1) * signs

    def cost(self, d: int) -> int:
        return 2


def test_a_strangers_estimator_fits_the_protocol_and_the_bridge() -> None:
    stranger: GradientEstimator = Simultaneous()
    assert isinstance(stranger, GradientEstimator)
    assert not isinstance(nn.Identity(), GradientEstimator)
    slope, spy = normal(4), Spy(lambda points: points @ slope)
    z = torch.zeros(20_000, 4, dtype=torch.float64, requires_grad=True)
    estimated_loss(spy, z, stranger, generator()).sum().backward()
    assert z.grad is not None
    assert_mean(z.grad, slope)
    assert torch.equal(spy.asked, torch.full((20_000,), stranger.cost(4)))

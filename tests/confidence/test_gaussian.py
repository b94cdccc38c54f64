"""The law of the noise is a value: Φ stands in one module, and rules and noise work under another law as they are."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import laplace, norm
from torch import Tensor

from certibox import confidence, seeds
from certibox.certification.certificate import reach
from certibox.certification.noise import BLOCK
from certibox.confidence import AlphaSpending, EProcess, Gaussian, NoiseLaw, Rule
from certibox.confidence.binomial import top_two_bounds
from certibox.confidence.forecast import forecast
from certibox.confidence.stopping import asked
from certibox.errors import InvalidInput
from doubles import noisy_batches
from places import ROOT

LAW = Gaussian(0.25)


def test_the_normal_distribution_stands_in_one_module() -> None:
    names = re.compile(r"\bnorm\.(ppf|cdf|sf|isf|logcdf)\b|\b(log_)?ndtri?(_exp)?\b|NormalDist|\berfc?inv\b")
    users = {path for path in (ROOT / "src").rglob("*.py") if names.search(path.read_text(encoding="utf-8"))}
    assert users == {ROOT / "src" / "certibox" / "confidence" / "gaussian.py"}


@given(st.floats(0.0, 1.0), st.floats(0.01, 10.0))
def test_the_radius_is_the_quantile_in_units_of_sigma(p: float, sigma: float) -> None:
    law = Gaussian(sigma)
    expected = sigma * norm.ppf(p) if p > 0.5 else 0.0
    assert law.radius(p) == expected == confidence.radius(p, sigma)
    assert law.second_class_radius(p, 1.0 - p) == pytest.approx(expected, rel=1e-9)


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_two_bounds_give_half_the_difference_of_their_quantiles(p_a: float, p_b: float) -> None:
    expected = 0.125 * (norm.ppf(p_a) - norm.ppf(p_b)) if p_a > p_b else 0.0
    assert LAW.second_class_radius(p_a, p_b) == expected


@given(st.floats(0.0, 1.5))
def test_the_needed_probability_is_the_smallest_that_gives_the_radius(radius: float) -> None:
    p = LAW.needed_p(radius)
    assert p == confidence.threshold(radius, 0.25)
    assert LAW.radius(p) >= radius
    below = LAW.radius(p - 1e-12 * (1 - p) - 2e-16)
    assert below < max(radius, 1e-300) + 1e-9


def test_the_functions_are_those_of_the_law() -> None:
    for alpha, r in ((0.001, 0.0), (0.25, 0.0), (0.01, 0.3), (1e-6, 0.6)):
        assert confidence.smallest_n(alpha, r, 0.25) == LAW.smallest_n(alpha, r)
    counts = (900, 60, 40)
    bounds = top_two_bounds(counts, 0, 0.01)
    assert confidence.second_class_radius(counts, 0, 0.01, 0.25) == LAW.second_class_radius(*bounds)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf])
def test_a_deviation_that_is_none_is_refused(sigma: float) -> None:
    with pytest.raises(InvalidInput, match="sigma is"):
        Gaussian(sigma)


def test_the_law_is_a_value() -> None:
    assert Gaussian(np.float64(0.25)) == LAW
    assert hash(Gaussian(0.25)) == hash(LAW)
    assert type(Gaussian(cast(float, np.float32(0.25))).sigma) is float


@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 16, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("stream", "made"), [(1, seeds.generator), (2, seeds.wide_generator)])
def test_noise_is_the_draw_of_its_block_added_to_the_image(
    shape: tuple[int, ...], dtype: torch.dtype, stream: int, made: Callable[..., torch.Generator]
) -> None:
    x, path = torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype), (5, "image", "stream")
    drawn = torch.cat(list(noisy_batches(x, LAW, 0, 3 * BLOCK, 70, path, stream=stream)))
    for block in range(3):
        generator = made(*path, block)
        noise = torch.empty((BLOCK, *shape), dtype=dtype).normal_(0.0, 0.25, generator=generator)
        assert torch.equal(drawn[block * BLOCK : (block + 1) * BLOCK], noise + x)


@dataclass(frozen=True)
class Laplacian:
    """A law that is none of ours: its quantiles are Laplace's, its noise Gaussian steps on a grid."""

    sigma: float

    def radius(self, p: float) -> float:
        return self.sigma * float(laplace.ppf(p)) if p > 0.5 else 0.0

    def needed_p(self, radius: float) -> float:
        return max(float(np.nextafter(0.5, 1.0)), float(laplace.cdf(radius / self.sigma)) + 1e-12)

    def second_class_radius(self, p_a: float, p_b: float) -> float:
        raise NotImplementedError

    def noisy(self, x: Tensor, out: Tensor, generator: torch.Generator) -> Tensor:
        steps = torch.randint(-3, 4, out.shape, generator=generator)
        return out.copy_(x + steps / 256)


def test_noise_of_another_law_comes_in_the_same_blocks() -> None:
    law: NoiseLaw = Laplacian(0.25)
    x = torch.randint(0, 257, (1, 2, 3), generator=torch.Generator().manual_seed(0)) / 256
    whole = torch.cat(list(noisy_batches(x, law, 0, 350, 350, (5, "image"))))
    assert torch.equal((whole - x) * 256, ((whole - x) * 256).round())
    assert {-3, 3} <= set(((whole - x) * 256).flatten().tolist())
    for size in (1, 70, 333):
        assert torch.equal(torch.cat(list(noisy_batches(x, law, 20, 350, size, (5, "image")))), whole[20:])


@pytest.mark.parametrize("kind", [EProcess, AlphaSpending])
def test_rules_decide_the_radii_of_another_law(kind: type[Rule]) -> None:
    law, rule, n = Laplacian(0.25), kind(radii=(0.125, 0.5)), 2000
    needs = asked(rule, law)
    assert needs == pytest.approx([laplace.cdf(0.5), laplace.cdf(2.0)])
    sizes = rule.sizes(n, 0.001, needs)
    seen = ([(size, size) for size in sizes[: count + 1]] for count in range(len(sizes)))
    looks, decision = next((looks, made) for looks in seen if (made := rule.decide(looks, n, 0.001, needs)).stop)
    assert decision.why == "certified"
    assert decision.p_lower >= needs[-1]
    assert reach(law, rule, decision.p_lower) >= 0.5
    assert looks[-1][0] < n
    found = forecast(rule, needs[0], n, 0.05, needs, proven=needs[:1])
    assert 0 < found.proven[0] <= 0.05


def test_a_radius_whose_threshold_is_reached_is_certified_however_the_law_rounds() -> None:
    class Rounded(Laplacian):
        def radius(self, p: float) -> float:
            return 0.999999 * super().radius(p)

    law, rule = Rounded(0.25), EProcess(radii=(0.125, 0.5))
    needs = asked(rule, law)
    assert reach(law, rule, needs[1]) == 0.5
    assert reach(law, rule, float(np.nextafter(needs[1], 0.0))) == law.radius(float(np.nextafter(needs[1], 0.0))) < 0.5
    assert reach(law, rule, 0.3) == 0.0


def test_a_tolerance_asks_for_any_positive_radius() -> None:
    rules: Sequence[Rule] = (EProcess(tolerance=0.1), AlphaSpending(tolerance=0.1), EProcess(radii=(0.0,)))
    assert {asked(rule, LAW) for rule in rules} == {(float(np.nextafter(0.5, 1.0)),)}

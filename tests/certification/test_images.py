"""What is certified, and in which units: a sigma or a radius that no two images are apart is refused before a query."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from certibox.certification.dataset import certify_dataset
from certibox.certification.images import farthest
from certibox.certification.smoothing import SmoothedClassifier
from certibox.certification.stored import at_alpha, replay
from certibox.confidence.gaussian import SMALLEST_SIGMA, Gaussian
from certibox.confidence.sequential import AlphaSpending, EProcess
from certibox.data import Images
from certibox.errors import InvalidInput
from certibox.records.certificates import read_rows
from doubles import CountingBox, LinearBox

VOTES: dict[str, Any] = {"n0": 10, "n": 100, "alpha": 0.01, "seed": 0}
LIMIT = math.sqrt(64)  # of 8x8 images


def base(d: int = 64) -> CountingBox:
    return CountingBox(LinearBox(torch.randn(3, d, generator=torch.Generator().manual_seed(1))))


def digits(count: int = 2) -> Images:
    pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Images(pixels, None, "random")


def test_the_farthest_images_are_the_black_and_the_white_one() -> None:
    black, white = torch.zeros(3, 5, 7), torch.ones(3, 5, 7)
    assert farthest(black.numel()) == pytest.approx(float((white - black).norm()), rel=1e-6)


@pytest.mark.parametrize(
    ("sigma", "rule", "came"),
    [
        (64.0, None, "sigma is 64,"),
        (math.nextafter(LIMIT, 9), None, "sigma is 8,"),
        (2.0, EProcess(radii=(0.5, 16.0)), "radius is 16,"),
        (2.0, AlphaSpending(radii=(8.5,)), r"radius is 8\.5,"),
    ],
)
def test_what_no_two_images_are_apart_is_refused_before_any_query(
    sigma: float, rule: Any, came: str, tmp_path: Path
) -> None:
    inner, out = base(), tmp_path / "rows.jsonl"
    smoothed = SmoothedClassifier(inner, 3, sigma)
    wanted = rf"{came} but no two images of this size are farther apart than 8; .*divide by 255"
    asked = VOTES | {"n": 100_000, "rule": rule}
    for x in (digits().floats()[0], digits().floats()):
        with pytest.raises(InvalidInput, match=wanted) as error:
            smoothed.certify(x, **asked)
        assert "\n" not in str(error.value)
    with pytest.raises(InvalidInput, match=wanted):
        certify_dataset(smoothed, digits(), out=out, **asked)
    if rule is None:
        with pytest.raises(InvalidInput, match=wanted):
            smoothed.predict(digits().floats()[0], n=100, alpha=0.01, seed=0)
    assert inner.calls == 0
    assert list(tmp_path.iterdir()) == []


def test_the_largest_sigma_and_radius_are_taken() -> None:
    smoothed = SmoothedClassifier(base(), 3, LIMIT / 3)
    x = digits().floats()[0]
    asked: dict[str, Any] = VOTES | {"rule": EProcess(radii=(1.0, LIMIT)), "n": 20_000}
    assert smoothed.certify(x, **asked).n > 0
    assert SmoothedClassifier(base(), 3, LIMIT).predict(x, n=100, alpha=0.01, seed=0).n == 100


def test_a_radius_beyond_every_image_is_said() -> None:
    constant = CountingBox(LinearBox(torch.zeros(3, 64), torch.tensor([1.0, 0.0, 0.0])))
    with pytest.warns(UserWarning, match="radii are certified beyond 8, the largest distance"):
        certificate = SmoothedClassifier(constant, 3, LIMIT / 2).certify(digits().floats()[0], **{**VOTES, "n": 5000})
    assert certificate.radius > LIMIT
    assert certificate.replay() == certificate


@pytest.mark.filterwarnings("ignore:an image has pixels outside:UserWarning")
def test_images_beyond_the_unit_range_have_their_own_units() -> None:
    x = digits().floats()[0] * 4  # eight pixels of 0 to 4: twice four times as far
    assert SmoothedClassifier(base(), 3, 3 * LIMIT).predict(x, n=100, alpha=0.01, seed=0).n == 100
    with pytest.raises(InvalidInput, match="sigma is 40,"):
        SmoothedClassifier(base(), 3, 5 * LIMIT).predict(x, n=100, alpha=0.01, seed=0)


@pytest.mark.parametrize(
    "sigma", [5e-324, 1e-300, 1e-9, 9.99e-7, 0.0, -1.0, math.inf, math.nan, "0.25", None, True, [1]]
)
def test_a_sigma_whose_noise_is_lost_in_rounding_is_refused(sigma: Any) -> None:
    with pytest.raises(InvalidInput, match="sigma is") as error:
        Gaussian(sigma)
    assert "\n" not in str(error.value)
    with pytest.raises(InvalidInput, match="sigma is"):
        SmoothedClassifier(base(), 3, sigma)


def test_the_smallest_sigma_changes_pixels_and_less_does_not() -> None:
    x = torch.full((1, 8, 8), 0.9)
    noise = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert Gaussian(SMALLEST_SIGMA).sigma == SMALLEST_SIGMA
    assert not torch.equal(x + SMALLEST_SIGMA * noise, x)
    assert torch.equal(x + SMALLEST_SIGMA / 1000 * noise, x)


# ----------------------------------------------------------------------------------- images that trained; their files


class Trained:
    """A base classifier that knows the digests of the images that trained it, as a defense does."""

    answers_alone = True

    def __init__(self, trained_on: torch.Tensor | None) -> None:
        self.trained_on = trained_on

    def outputs(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :3]


class Known:
    """Images with digests and files, as `Images` has them."""

    def __init__(self, count: int) -> None:
        self.digests, self.files = torch.arange(count) * 7 - 3, tuple(f"a/{i}.png" for i in range(count))
        self._images = digits(count)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._images, name)

    def __len__(self) -> int:
        return len(self._images)


@pytest.mark.parametrize(("shard", "known", "of"), [((0, 1), 2, 4), ((0, 2), 2, 2), ((1, 2), 0, 2)])
def test_images_that_trained_the_defense_are_counted(shard: tuple[int, int], known: int, of: int) -> None:
    images: Any = Known(4)
    trained = Trained(torch.tensor([-99, int(images.digests[0]), int(images.digests[2]), 10**9]).sort().values)
    smoothed = SmoothedClassifier(trained.outputs, 3, 0.25)
    if known == 0:
        assert len(certify_dataset(smoothed, images, **VOTES, shard=shard)) == of
        return
    with pytest.warns(UserWarning, match=f"^{known} of {of} images trained this defense: ") as said:
        rows = certify_dataset(smoothed, images, **VOTES, shard=shard)
    assert len(said) == 1
    unknown = SmoothedClassifier(Trained(None).outputs, 3, 0.25)
    again = certify_dataset(unknown, images, **VOTES, shard=shard)
    assert [row.counts for row in rows] == [row.counts for row in again]


def test_rows_have_the_names_of_the_files(tmp_path: Path) -> None:
    images: Any = Known(3)
    out = tmp_path / "rows.jsonl"
    rows = certify_dataset(SmoothedClassifier(base(), 3, 0.25), images, **VOTES, out=out, model="linear")
    assert [row.file for row in rows] == ["a/0.png", "a/1.png", "a/2.png"]
    assert read_rows(out) == rows == replay(rows)
    assert [row.file for row in at_alpha(rows, 0.1)] == ["a/0.png", "a/1.png", "a/2.png"]
    nameless = certify_dataset(SmoothedClassifier(base(), 3, 0.25), digits(), **VOTES)
    assert [row.file for row in nameless] == [None, None]

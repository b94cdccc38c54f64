"""Which sigma to certify a radius with, chosen on validation images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from certibox.errors import InvalidInput
from certibox.records.certificates import CertificateRow, require_votes
from certibox.report import certified_accuracy


@final
@dataclass(frozen=True)
class SigmaChoice:
    """The sigma with which to certify each radius, and the images that it was chosen on."""

    sigmas: dict[float, float]
    """Standard deviation of the noise for each radius, both in pixels on [0, 1]."""
    images: frozenset[str]
    """SHA-256 (hex) of the validation images, none of which may be certified under the choice."""


def choose_sigma(rows_by_sigma: Mapping[float, Sequence[CertificateRow]], radii: Sequence[float]) -> SigmaChoice:
    """For each radius the sigma with the most certified accuracy on validation images; ties go to the smaller sigma.

    The radius asked decides which sigma a test image is certified with, and never the image: Theorem 1 holds for one g,
    so a sigma that depends on the input has no certificate.

    Args:
        rows_by_sigma: Rows of the same validation images under each sigma.
        radii: Radii asked, in pixels on [0, 1].

    Raises:
        InvalidInput: for rows of another sigma, or without labels, or of different images, or whose rule did not decide
            one of the radii.
    """
    images = [_images(rows_by_sigma, sigma) for sigma in sorted(rows_by_sigma)]
    if not images or any(seen != images[0] for seen in images):
        raise InvalidInput("the validation rows are not of the same images under every sigma; wanted them all alike")
    for sigma, rows in rows_by_sigma.items():
        _require_decided(rows, sigma, radii)
    accuracies = {sigma: certified_accuracy(rows_by_sigma[sigma], list(radii)) for sigma in sorted(rows_by_sigma)}
    best = {radius: max(accuracies, key=lambda sigma: accuracies[sigma][i]) for i, radius in enumerate(radii)}
    return SigmaChoice(best, images[0])


def envelope(choice: SigmaChoice, rows_by_sigma: Mapping[float, Sequence[CertificateRow]]) -> dict[float, float]:
    """Certified accuracy on test images at each radius, under the sigma that validation images chose for it.

    Args:
        choice: Sigma of each radius, from `choose_sigma`.
        rows_by_sigma: Rows of test images under each sigma.

    Raises:
        InvalidInput: if an image was chosen on, or a chosen sigma has no rows.
    """
    for sigma in sorted(set(choice.sigmas.values())):
        if shared := _images(rows_by_sigma, sigma) & choice.images:
            text = f"{len(shared)} of the test images at sigma = {sigma} are validation images"
            raise InvalidInput(f"{text}, such as {min(shared)[:12]}; wanted images that chose nothing")
        _require_decided(rows_by_sigma[sigma], sigma, [r for r, chosen in choice.sigmas.items() if chosen == sigma])
    return {
        radius: float(certified_accuracy(rows_by_sigma[sigma], [radius])[0]) for radius, sigma in choice.sigmas.items()
    }


def undecided(rows: Sequence[CertificateRow], radii: Sequence[float]) -> list[float]:
    """Those of `radii` that the stopping rule of some row was not asked about: it stopped before it knew.

    Args:
        rows: Rows of any certification.
        radii: Radii asked, in pixels on [0, 1].
    """
    require_votes(rows)
    return [r for r in radii if any(row.decided is not None and r not in row.decided for row in rows)]


def _require_decided(rows: Sequence[CertificateRow], sigma: float, radii: Sequence[float]) -> None:
    """Raise `InvalidInput` for a radius that a rule was not asked about: accuracies there are not comparable."""
    if open_ := undecided(rows, radii):
        came = f"the rule of the rows at sigma = {sigma} did not decide r = {open_[0]:g}"
        raise InvalidInput(f"{came}; certify again with it")


def _images(rows_by_sigma: Mapping[float, Sequence[CertificateRow]], sigma: float) -> frozenset[str]:
    """Which images the rows under `sigma` are of, after checking that this is their sigma."""
    rows = rows_by_sigma.get(sigma, ())
    require_votes(rows)
    if not rows or any(row.sigma != sigma for row in rows):
        came = (
            f"of sigma = {', '.join(f'{other}' for other in sorted({row.sigma for row in rows}))}" if rows else "none"
        )
        raise InvalidInput(f"the rows given for sigma = {sigma} are {came}; wanted rows certified with that noise")
    return frozenset(row.image for row in rows)

"""What the words of the result pages mean, written once: every page explains those that it uses. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Kind = Literal["certificates", "reconstructions"]

PAPER = 'Zhang et al., "How to Robustify Black-Box ML Models? A Zeroth-Order Optimization Perspective", ICLR 2022'
SCALES = {  # scale -> what it is in a few words, and what else there is to say
    "paper": (
        "the paper's own settings",
        "its data, networks, schedules and sample counts, trained as its released code trains: on the stability term "
        "of equation 2 alone, with hard labels",
    ),
    "paper-eq2": ("the paper's settings, trained on both terms of its equation 2", "with a stated γ, as it names none"),
    "gpu": ("the paper's networks, fewer images and epochs", "minutes a stage on one GPU"),
    "cpu": ("small networks and few images", "minutes a stage on two cores, with MNIST in place of CIFAR-10"),
    "cpu-cifar10": ("small networks and few images of CIFAR-10", "minutes a stage on two cores"),
}

_METHODS = (
    (
        "Black box",
        "the network to be defended. It is trained on clean images and from then on only answers queries.",
    ),
    (
        "Query",
        "one answer of the black box to one image. *Queries to train* are all answers that training took, those for "
        "its targets and for validation included.",
    ),
    (
        "White box",
        "the row also differentiates the black box, which nobody can who may only query it. Such rows show what "
        "queries are measured against.",
    ),
    (
        "MSE denoiser",
        "a denoiser in front of the black box, trained to remove noise from images. It asks no query.",
    ),
    (
        "FO-DS, ZO-DS",
        "a denoiser trained so that the black box answers noisy images as it answers clean ones (*stability*). FO, "
        "first order, differentiates the black box; ZO, zeroth order, estimates the gradient from queries.",
    ),
    (
        "FO-AE-DS, ZO-AE-DS",
        "the same with an autoencoder between denoiser and black box. Its decoder counts as part of the black box, so "
        "that gradients are estimated in the few coordinates of the embedding instead of in all pixels.",
    ),
    (
        "RGE, CGE, guided",
        "estimators of a gradient from differences of answers: RGE along q random directions, CGE along every "
        "coordinate; guided corrects the gradient of a small network that learns from every answer.",
    ),
    (
        "Eq. 2, γ",
        "the training loss of the paper: the error of denoising plus γ times the loss of stability.",
    ),
    ("σ (sigma)", "the standard deviation of the Gaussian noise, on inputs between 0 and 1."),
)
_CERTIFICATES = (
    (
        "Bare model, RS",
        "two rows without a denoiser: the black box as it is, and randomized smoothing, which trains the black box "
        "itself on noisy images with labels (white box).",
    ),
    (
        "Certified accuracy at r",
        "the percentage of test images that are classified correctly and certified: no change of l2 norm up to r can "
        "alter the answer. An image whose certification abstains counts as wrong. Radii are multiples of σ, since "
        "scales differ in σ.",
    ),
    (
        "n0, n, α",
        "how an image is certified: n0 noisy copies choose the class, n further copies bound its probability, and the "
        "certificate is wrong with a probability of at most α. A larger radius takes a larger n.",
    ),
    (
        "Reported accuracy",
        "what the paper reports, in %, at σ = 0.25 with n0 = 100, n = 10,000 and α = 0.001 (sample counts of the "
        "released code).",
    ),
)
_RECONSTRUCTIONS = (
    (
        "Standard",
        "the undefended network, which reconstructs a digit from a compressed measurement; *Standard, smoothed* is its "
        "mean answer to noisy copies.",
    ),
    (
        "RMSE, SSIM",
        "error of a reconstruction (0 is perfect) and its structural similarity to the true image (1 is perfect).",
    ),
    ("‖δ‖", "the l2 norm of the change that the attacker may make to the measurement."),
    (
        "Transfer, adaptive",
        "two attackers. Transfer attacks the undefended network and hopes that the attack works on the defense too; "
        "adaptive attacks the whole defended pipeline.",
    ),
    ("Reported RMSE, SSIM", "what the paper reports; its attack is the transferred one."),
)
_NUMBERS = (
    (
        "Images",
        "named by the folder that holds them; `cifar10-jpeg` holds copies of CIFAR-10 in JPEG.",
    ),
    (
        "Measured difference",
        "the better row of a claim minus the worse, image by image: in points of certified accuracy, or in RMSE saved.",
    ),
    (
        "Seed",
        "one repetition of the training with other random numbers. Measured numbers are means over seeds.",
    ),
    (
        "[low, high]",
        "a 95 % interval, by bootstrap over the test images. It speaks of other images; the differences by seed, on "
        "the pages of the tables, speak of other trainings.",
    ),
    (
        "Claim, verdict",
        "a claim says that one row is better than another, by more than a margin where it names one. It *holds* if the "
        "interval of the measured difference, paired by image, lies above the margin; it *does not hold* if the "
        "interval lies below; otherwise it *cannot be told*.",
    ),
)


def words(kinds: Sequence[Kind], scales: Sequence[str]) -> str:
    """The section of a page that explains its words.

    Args:
        kinds: Measurements that the page shows: `certificates`, `reconstructions` or both.
        scales: Names of the scales that the page mentions.
    """
    entries = [*_METHODS]
    entries += _CERTIFICATES if "certificates" in kinds else ()
    entries += _RECONSTRUCTIONS if "reconstructions" in kinds else ()
    lines = [f"- **{term}**: {meaning}" for term, meaning in (*entries, *_NUMBERS)]
    lines.append("- **Scale**: how large a measurement is. Below the scale of the paper, compare the *order* of rows")
    lines[-1] += " with the paper's, not their levels."
    lines += [f"  - `{scale}`: {'; '.join(SCALES[scale])}." for scale in scales if scale in SCALES]
    return "## Words\n\n" + "\n".join(lines) + "\n"

"""The six methods of the paper, and the settings of one training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from certibox.data import AUGMENTATIONS
from certibox.errors import InvalidInput
from certibox.estimators import GradientEstimator
from certibox.training.schedules import Schedule

Scheme = Literal["denoiser", "denoiser+encoder", "denoiser+autoencoder"]
SCHEMES = ("denoiser", "denoiser+encoder", "denoiser+autoencoder")


@dataclass(frozen=True)
class Method:
    """A defense of the paper. order: of the stability gradient, None where there is no stability term."""

    order: Literal[0, 1] | None
    bottleneck: bool = False
    denoises: bool = True


METHODS = {
    "RS": Method(order=1, denoises=False),
    "DS": Method(order=None),
    "FO-DS": Method(order=1),
    "FO-AE-DS": Method(order=1, bottleneck=True),
    "ZO-DS": Method(order=0),
    "ZO-AE-DS": Method(order=0, bottleneck=True),
}


@dataclass(frozen=True)
class Settings:
    """The plain values of one training run: what may not change between an interruption and its resumption.

    gamma: weight γ of the stability term. denoise_weight: w, 1 for eq. 2, 0 for the released code's stability alone.
    reconstruction_weight: λ. skip_dead: spend no query on embedding coordinates whose upstream gradient is zero.
    """

    method: str
    sigma: float
    schedule: Schedule
    seed: int
    estimator: GradientEstimator | None
    gamma: float
    denoise_weight: float
    reconstruction_weight: float
    scheme: Scheme
    hard_targets: bool
    augmentation: str
    skip_dead: bool
    validation_votes: int

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InvalidInput(f"method is {self.method!r}; wanted one of {', '.join(METHODS)}")
        if not 0 < self.sigma < float("inf"):
            raise InvalidInput(
                f"sigma is {self.sigma}; wanted a positive standard deviation in pixels on [0, 1], such as 0.25"
            )
        if self.scheme not in SCHEMES:
            raise InvalidInput(f"scheme is {self.scheme!r}; wanted one of {', '.join(SCHEMES)}")
        if self.scheme == "denoiser+autoencoder" and METHODS[self.method].order == 0:
            raise InvalidInput(
                f"{self.method} cannot train the decoder: it is part of the black box; wanted scheme denoiser+encoder"
            )
        if METHODS[self.method].order == 0 and self.estimator is None:
            raise InvalidInput(f"{self.method} got no estimator; wanted one such as certibox.CGE(mu=0.05)")
        weights = (self.gamma, self.denoise_weight, self.reconstruction_weight)
        if not all(0 <= weight < float("inf") for weight in weights):
            raise InvalidInput(
                f"gamma, denoise_weight and reconstruction_weight are {weights}; wanted finite weights >= 0"
            )
        if self.method == "RS" and any(phase.objective == "denoise" for phase in self.schedule.phases):
            raise InvalidInput(
                "RS has no denoiser, but the schedule has a phase with objective 'denoise'; wanted only 'full'"
            )
        if self.augmentation not in AUGMENTATIONS:
            raise InvalidInput(f"augmentation is {self.augmentation!r}; wanted one of {', '.join(AUGMENTATIONS)}")
        if self.validation_votes < 1:
            raise InvalidInput(f"validation_votes is {self.validation_votes}; wanted at least 1 vote an image")

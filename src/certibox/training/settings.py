"""The settings of one training run as one frozen value, checked once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, TypedDict

from certibox.data import AUGMENTATIONS
from certibox.errors import InvalidInput, did_you_mean
from certibox.estimators import GradientEstimator, estimator_record, require_estimator
from certibox.storage import values
from certibox.training.methods import METHODS, SCHEMES, Scheme
from certibox.training.schedules import Schedule

TARGETS = ("hard", "soft")
NAMES = {"method": METHODS, "scheme": SCHEMES, "targets": TARGETS, "augmentation": AUGMENTATIONS}
COUNTS = {"validation_votes": "vote an image", "patience": "validation", "validate_every": "epoch"}
LEAST_SIGMA = 1e-6  # noise below it is lost when it is added to pixels in float32


class SettingsKeywords(TypedDict, total=False):
    """The fields of `TrainingSettings` as keywords of `train`; method, sigma, schedule and seed are required there."""

    method: str
    sigma: float
    schedule: Schedule
    seed: int
    estimator: GradientEstimator | None
    gamma: float | None
    denoise_weight: float
    reconstruction_weight: float
    scheme: Scheme
    targets: Literal["hard", "soft"]
    augmentation: str
    skip_dead: bool
    validation_votes: int
    validate_every: int | None
    patience: int | None


@dataclass(frozen=True)
class TrainingSettings:
    """The plain values of one training run: what may not change between an interruption and its resumption.

    `certibox.train` takes one, or its fields as keywords; `dataclasses.replace` changes a field.

    Raises:
        InvalidInput: A value is out of its range, or does not go with the method.
    """

    method: str
    """Name of the method: RS, DS, FO-DS, FO-AE-DS, ZO-DS or ZO-AE-DS, see `METHODS`."""
    sigma: float
    """Standard deviation of the noise, in pixels on [0, 1]."""
    schedule: Schedule
    """Phases of training and images a step, such as `certibox.one_cycle(epochs=10)`."""
    seed: int
    """Seed of every random draw."""
    estimator: GradientEstimator | None = None
    """Estimator of ∇_z ℓ from queries; ZO methods want one, the other methods ignore it."""
    gamma: float | None = None
    """Weight γ of the stability term; wanted by all methods with such a term but RS, whose weight is 1 by default."""
    denoise_weight: float = 1.0
    """Weight w of the denoising term: 1 for eq. 2, 0 for the stability term alone, as in the released code."""
    reconstruction_weight: float = 0.0
    """Weight λ of the term that keeps decoded images near the clean ones; it costs no query."""
    scheme: Scheme = "denoiser+encoder"
    """Parts that train: denoiser, denoiser+encoder or denoiser+autoencoder."""
    targets: Literal["hard", "soft"] = "hard"
    """Targets of the stability term: the box's label (hard) or its class probabilities (soft)."""
    augmentation: str = "none"
    """Policy of augmentation for training images, a name of `certibox.data.AUGMENTATIONS`."""
    skip_dead: bool = True
    """Whether embedding coordinates whose upstream gradient is zero are left out of the estimate, at no query."""
    validation_votes: int = 4
    """Number of noisy votes on each validation image, each time the score is measured."""
    validate_every: int | None = None
    """Number of epochs between validations, by default 1; the end of a phase is validated in any case."""
    patience: int | None = None
    """Number of validations in a row without a better score after which training stops; by default it never does."""

    def __post_init__(self) -> None:
        for name, table in NAMES.items():
            values.known(name, getattr(self, name), table)
        if not isinstance(self.schedule, Schedule):
            raise InvalidInput(
                f"schedule is {values.shown(self.schedule)}; wanted a Schedule such as certibox.one_cycle(epochs=10)"
            )
        self._check_numbers()
        self._check_method()

    def _check_numbers(self) -> None:
        wanted = f"a standard deviation in pixels on [0, 1], at least {LEAST_SIGMA:g}, such as 0.25"
        settled: dict[str, Any] = {"sigma": values.number("sigma", self.sigma, wanted, low=LEAST_SIGMA)}
        settled["seed"] = values.seed(self.seed)
        for name in ("gamma", "denoise_weight", "reconstruction_weight"):
            if (weight := getattr(self, name)) is not None:
                settled[name] = values.number(name, weight, "a finite weight, at least 0", low=0)
        for name, unit in COUNTS.items():
            if (given := getattr(self, name)) is not None:
                settled[name] = values.whole(name, given, 1, wanted=f"a whole number, at least 1 {unit}")
        values.yes_or_no("skip_dead", self.skip_dead)
        values.settle(self, **settled)

    def _check_method(self) -> None:
        """What a method wants, and what it cannot have."""
        method = METHODS[self.method]
        if self.scheme == "denoiser+autoencoder" and method.order == 0:
            raise InvalidInput(
                f"{self.method} cannot train the decoder: it is part of the black box; wanted scheme denoiser+encoder"
            )
        if method.order == 0 and self.estimator is None:
            raise InvalidInput(f"{self.method} got no estimator; wanted one such as certibox.CGE(mu=0.05)")
        if self.estimator is not None:
            require_estimator(self.estimator)
        if self.gamma is None and method.order is not None and method.denoises:
            raise InvalidInput(f"{self.method} got no gamma; wanted the weight of the stability term, such as 1.0")
        if self.method == "RS" and any(phase.objective == "denoise" for phase in self.schedule.phases):
            raise InvalidInput(
                "RS has no denoiser, but the schedule has a phase with objective 'denoise'; wanted only 'full'"
            )

    @property
    def stability_weight(self) -> float:
        """The weight γ that training uses: 0 for a method without a stability term, 1 where RS got none."""
        if METHODS[self.method].order is None:
            return 0.0
        return 1.0 if self.gamma is None else self.gamma

    def record(self) -> dict[str, Any]:
        """The settings of the objective as the plain values that a run keeps; its digest names work, so keep its keys.

        `validate_every` and `patience`, which change no step, are kept beside it.
        """
        return {
            "method": self.method,
            "sigma": self.sigma,
            "schedule": asdict(self.schedule),
            "seed": self.seed,
            "estimator": None if self.estimator is None else estimator_record(self.estimator),
            "gamma": self.stability_weight,
            "denoise_weight": self.denoise_weight,
            "reconstruction_weight": self.reconstruction_weight,
            "scheme": self.scheme,
            "hard_targets": self.targets == "hard",
            "augmentation": self.augmentation,
            "skip_dead": self.skip_dead,
            "validation_votes": self.validation_votes,
        }


def require_keywords(keywords: Mapping[str, Any], others: Iterable[str]) -> None:
    """Refuse a keyword of `train` that is no field of `TrainingSettings`, with the one that it may mean.

    Args:
        keywords: Keywords that came beside those of `train` itself.
        others: Names of the keywords of `train` itself.

    Raises:
        InvalidInput: A keyword is misspelt.
    """
    known = [item.name for item in fields(TrainingSettings)]
    for name in keywords:
        if name not in known:
            meant = did_you_mean(name, [*known, *others])
            raise InvalidInput(f"train has no keyword {name!r}; wanted a field of TrainingSettings or its own{meant}")


def settings_from(keywords: Mapping[str, Any], others: Iterable[str] = ()) -> TrainingSettings:
    """The settings that keywords of `train` spell.

    Args:
        keywords: Fields of `TrainingSettings` by name.
        others: Names of the other keywords of `train`, one of which a misspelt keyword may mean.

    Raises:
        InvalidInput: A keyword is misspelt or missing, or the settings refuse a value.
    """
    known = {item.name: item for item in fields(TrainingSettings)}
    require_keywords(keywords, others)
    missing = [name for name, item in known.items() if item.default is MISSING and name not in keywords]
    if missing:
        raise InvalidInput(f"train got no {', '.join(missing)}; wanted them as keywords, or one TrainingSettings")
    return TrainingSettings(**keywords)

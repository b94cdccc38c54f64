"""What one row of a table is made of: frozen plans, one a stage, that a YAML mapping spells.

A plan holds every setting that can change a number, so its digest names the work: rows of different tables that share
a plan, or its first stages, share the computation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from certibox.confidence.gaussian import smallest_n
from certibox.errors import InvalidInput, one_of
from certibox.storage.settings import digest
from certibox.training.schedules import Phase, Schedule

_T = TypeVar("_T")
Method = Literal["none", "identity", "RS", "DS", "FO-DS", "FO-AE-DS", "ZO-DS", "ZO-AE-DS"]


def _require(holds: bool, said: str) -> None:
    if not holds:
        raise InvalidInput(said)


@dataclass(frozen=True)
class Data:
    """Which images. Raises `InvalidInput` for a count or size below 1."""

    name: str
    """Entry of `datasets.yaml`."""
    train: int | None
    """Number of training images of the defense, the first of the training split; None for all."""
    validation: int
    """Number of validation images, the last of the training split; they select and never train."""
    test: int | None
    """Number of test images, at even distances in the test split; None for all."""
    size: int | None = None
    """Side of the square that images are resized to, in pixels (Restricted ImageNet); None to leave them."""

    def __post_init__(self) -> None:
        counts = (self.train, self.validation, self.test, self.size)
        _require(
            all(count is None or count >= 1 for count in counts),
            f"train, validation, test, size are {counts}; wanted at least 1 each, or null where all are meant",
        )


@dataclass(frozen=True)
class Network:
    """A network trained by itself: the black box, or the autoencoder of stage 1."""

    network: str
    """Name of the network in `certibox.networks`."""
    phases: tuple[Phase, ...] = ()
    """Phases of the training."""
    batch_size: int = 256
    """Number of images a step."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments of the network by name."""
    images: int | None = None
    """Number of training images, the first of the training split; None for all that a black box can have, and for
    those of the defense for an autoencoder."""
    augmentation: str = "none"
    """Augmentation of the training images, a key of `AUGMENTATIONS`."""
    mean: tuple[float, ...] | None = None
    """Mean that the black box subtracts from pixels on [0, 1], one number a channel; None for no normalisation."""
    std: tuple[float, ...] | None = None
    """Divisor after that, one number a channel."""
    seed: int | None = None
    """Seed of the training; None for 0 with a black box, and for the seed of the row with an autoencoder."""
    weights: str | None = None
    """Folder of a saved autoencoder to load instead of training one."""
    outputs: Literal["logits", "labels"] = "logits"
    """Kind of the answers of a black box: scores of all classes, or the label alone."""

    @property
    def schedule(self) -> Schedule:
        """How it is trained."""
        return Schedule(self.phases, self.batch_size)


@dataclass(frozen=True)
class Estimator:
    """A zeroth-order estimator of gradients. Raises `InvalidInput` for settings that do not go together."""

    name: Literal["cge", "rge", "orthogonal", "guided"]
    """Name of the estimator."""
    mu: float | Literal["auto"] = "auto"
    """Step of the differences, in units of the embedding or of pixels on [0, 1]; `auto` to measure it."""
    q: int | Literal["auto"] | None = None
    """Number of directions an image; None for cge, which takes every coordinate."""
    central: bool = False
    """Whether differences are central, with two queries a direction, instead of forward."""
    share: float = 1.0
    """Share of the images of a batch that get an estimate."""
    guided: dict[str, Any] = field(default_factory=dict)
    """Settings of `estimators.Guided` beside q, mu and central, by name."""

    def __post_init__(self) -> None:
        positive = isinstance(self.mu, str) or self.mu > 0
        _require(positive, f"mu is {self.mu}; wanted a positive step in units of the embedding")
        wanted = "wanted q for rge, orthogonal and guided"
        _require((self.name == "cge") == (self.q is None), f"{self.name} has q = {self.q}; {wanted}")
        if self.name != "guided":
            _require(
                self.q is None or (self.q != "auto" and self.q >= 1), f"q is {self.q}; wanted at least 1 direction"
            )


@dataclass(frozen=True)
class Defense:
    """How a defense is trained; the names are those of `certibox.train`.

    Raises `InvalidInput` for a sigma that is not positive, and for an estimator without a zeroth-order method or the
    other way round.
    """

    method: Method
    """Method of the paper. `none` is the bare model; certification smooths it. `identity` is the bare model that
    reconstructs images: its answer is the mean of its answers to noisy copies."""
    sigma: float
    """Standard deviation of the noise, in pixels on [0, 1] or in the units of a measurement."""
    phases: tuple[Phase, ...] = ()
    """Phases of the training."""
    batch_size: int = 256
    """Number of images a step."""
    gamma: float = 1.0
    """Weight γ of the stability term."""
    denoise_weight: float = 1.0
    """Weight of the denoising term: 1 for equation 2, 0 for the stability alone of the released code."""
    reconstruction_weight: float = 0.0
    """Weight of the autoencoder's own reconstruction error."""
    denoiser: dict[str, Any] = field(default_factory=lambda: {"name": "dncnn", "arguments": {}})
    """Network of the denoiser: its name, and its arguments by name."""
    estimator: Estimator | None = None
    """Estimator of gradients; for zeroth-order methods, and for them alone."""
    scheme: Literal["denoiser", "denoiser+encoder", "denoiser+autoencoder"] = "denoiser+encoder"
    """Parts that train."""
    targets: Literal["hard", "soft"] = "hard"
    """Targets of the stability term: the black box's label of a clean image, or its scores."""
    augmentation: str = "none"
    """Augmentation of the training images, a key of `AUGMENTATIONS`."""
    validation_votes: int = 1
    """Number of noisy copies of every validation image in one validation."""
    validate_every: int | None = None
    """Number of epochs between validations; None to validate after every epoch."""
    skip_dead: bool = True
    """Whether coordinates of the embedding whose gradient is zero anyway cost no query."""

    def __post_init__(self) -> None:
        _require(self.sigma > 0, f"sigma is {self.sigma}; wanted a positive standard deviation")
        zeroth = self.method.startswith("ZO-")
        _require(
            zeroth == (self.estimator is not None), f"{self.method} has estimator {self.estimator}; wanted one for ZO"
        )

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return self.method not in ("none", "identity")

    @property
    def schedule(self) -> Schedule:
        """How it is trained."""
        return Schedule(self.phases, self.batch_size)


@dataclass(frozen=True)
class Certify:
    """How images are certified. Raises `InvalidInput` for counts that can certify nothing."""

    n0: int
    """Number of noisy copies that choose the class."""
    n: int
    """Number of further noisy copies that bound its probability."""
    alpha: float
    """Probability, at most, that a certificate is wrong."""
    columns: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0)
    """Radii of the table, as multiples of sigma, in the order of the paper's columns."""

    def __post_init__(self) -> None:
        _require(self.n0 >= 1, f"n0 is {self.n0}; wanted at least 1 vote to pick a class")
        least = smallest_n(self.alpha)
        _require(self.n >= least, f"n = {self.n} can only abstain at alpha = {self.alpha}; the smallest n is {least}")
        _require(all(multiple >= 0 for multiple in self.columns), f"columns are {self.columns}; wanted radii >= 0")


@dataclass(frozen=True)
class Attack:
    """How a reconstruction is attacked. Raises `InvalidInput` for negative norms and for counts below 1."""

    epsilons: tuple[float, ...]
    """l2 norms of the attack, in the scaled units of the measurement."""
    steps: int
    """Number of gradient steps of an attack."""
    copies: int
    """Number of noisy copies behind one defended output."""
    samples: int
    """Number of noise samples in a gradient of the adaptive attack."""
    measurements: int = 576
    """Number of linear measurements of an image."""
    measurement_seed: int = 0
    """Seed of the random measurement matrix."""

    def __post_init__(self) -> None:
        _require(
            min(self.epsilons, default=-1.0) >= 0
            and min(self.steps, self.copies, self.samples, self.measurements) >= 1,
            f"an attack has epsilons {self.epsilons}, {self.steps} steps, {self.copies} copies, {self.samples} "
            f"samples, {self.measurements} measurements; wanted some epsilons >= 0 and at least 1 of all else",
        )


@dataclass(frozen=True)
class Plan:
    """One row at one scale, seeds apart. Raises `InvalidInput` unless it has one of certify and attack."""

    data: Data
    """Images."""
    box: Network
    """Black box: a classifier or, for reconstruction, the reconstruction network."""
    autoencoder: Network
    """Autoencoder of stage 1; methods without one ignore it."""
    defense: Defense
    """Training of the defense."""
    certify: Certify | None = None
    """Certification, for classifiers."""
    attack: Attack | None = None
    """Attack, for reconstructions."""

    def __post_init__(self) -> None:
        if (self.certify is None) == (self.attack is None):
            raise InvalidInput("a plan has both or none of certify and attack; wanted one: classify or reconstruct")

    @property
    def digest(self) -> str:
        """Names the work: equal for plans that do the same."""
        return digest(stated(self))

    @property
    def queries_answered_by_box(self) -> bool:
        """False for white-box rows, whose training gradients need no query."""
        return not (self.defense.method == "RS" or self.defense.method.startswith("FO-"))

    @property
    def epochs(self) -> int:
        """Epochs of the defense."""
        return self.defense.schedule.epochs if self.defense.trains else 0


def stated(plan: Any) -> Any:
    """A plan as plain values without those that are at their defaults: a setting added later keeps earlier digests.

    Args:
        plan: Plan, a part of one, or a value in it.
    """
    if isinstance(plan, tuple):
        return [stated(item) for item in plan]
    if not is_dataclass(plan):
        return plan
    values = {item.name: (getattr(plan, item.name), item) for item in fields(plan)}
    return {name: stated(value) for name, (value, item) in values.items() if not _default(item, value)}


def _default(item: Field[Any], value: Any) -> bool:
    return value == (item.default_factory() if item.default_factory is not MISSING else item.default)


def parse(kind: type[_T], values: Any, place: str) -> _T:
    """Values of a YAML file as a dataclass, with every value in the type of its field.

    Args:
        kind: Dataclass to make.
        values: Mapping with the names of its fields.
        place: Name of the place in the file, for messages.

    Raises:
        InvalidInput: For a key or value that does not fit; it names the place, the key and what was wanted.
    """
    if not isinstance(values, Mapping):
        raise InvalidInput(f"{place} is {values!r}; wanted a mapping of {', '.join(_names(kind))}")
    hints = get_type_hints(kind)
    unknown = [key for key in values if key not in hints]
    if unknown:
        raise InvalidInput(f"{place} has {unknown[0]!r}; wanted {one_of(unknown[0], _names(kind))}")
    settled = {key: _typed(hints[key], value, f"{place}.{key}") for key, value in values.items()}
    try:
        return kind(**settled)
    except TypeError as error:  # a required key is missing
        raise InvalidInput(f"{place}: {' '.join(str(error).split())}; give the missing keys") from error
    except InvalidInput as error:  # values that do not go together
        raise InvalidInput(f"{place}: {error}") from error


def _names(kind: type) -> list[str]:
    return [item.name for item in fields(kind)]  # pyright: ignore[reportArgumentType]


def _typed(hint: Any, value: Any, place: str) -> Any:
    """One value of a YAML file in the type of its field."""
    options = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options[1:]:  # a word instead of a number, such as "auto"
        if get_origin(option) is Literal and value in get_args(option):
            return value
    hint = next(option for option in options if option is not type(None))
    if is_dataclass(hint):
        return parse(hint, value, place)  # pyright: ignore[reportArgumentType]
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise InvalidInput(f"{place} is {value!r}; wanted a list")
        return tuple(_typed(get_args(hint)[0], item, f"{place}[{i}]") for i, item in enumerate(value))
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise InvalidInput(f"{place} is {value!r}; wanted {one_of(value, get_args(hint))}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = get_origin(hint) or hint
    if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
        raise InvalidInput(f"{place} is {value!r}; wanted {plain.__name__}")
    return value

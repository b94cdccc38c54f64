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
    """Which images. name: an entry of `datasets.yaml`. Counts of None mean all.

    train: the first so many of the training split train the defense; validation: the last so many of it select. test:
    so many of the test split, evenly spaced. size: resize to size x size (Restricted ImageNet).
    """

    name: str
    train: int | None
    validation: int
    test: int | None
    size: int | None = None

    def __post_init__(self) -> None:
        counts = (self.train, self.validation, self.test, self.size)
        _require(
            all(count is None or count >= 1 for count in counts),
            f"train, validation, test, size are {counts}; wanted at least 1 each, or null where all are meant",
        )


@dataclass(frozen=True)
class Network:
    """A network trained by itself: the black box, or the autoencoder of stage 1.

    images: the first so many of the training split, by default all for a box, and those of the defense for an
    autoencoder. weights: a folder of a saved autoencoder to load instead. outputs: all that a box shows of its answers.
    mean, std: the box's own normalisation, per channel.
    """

    network: str
    phases: tuple[Phase, ...] = ()
    batch_size: int = 256
    arguments: dict[str, Any] = field(default_factory=dict)
    images: int | None = None
    augmentation: str = "none"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    seed: int | None = None
    weights: str | None = None
    outputs: Literal["logits", "labels"] = "logits"

    @property
    def schedule(self) -> Schedule:
        """How it is trained."""
        return Schedule(self.phases, self.batch_size)


@dataclass(frozen=True)
class Estimator:
    """A zeroth-order estimator by name: cge, rge, orthogonal or guided.

    share: of each batch that gets an estimate. guided: the settings of `estimators.Guided` beside q, mu and central.
    """

    name: Literal["cge", "rge", "orthogonal", "guided"]
    mu: float | Literal["auto"] = "auto"
    q: int | Literal["auto"] | None = None
    central: bool = False
    share: float = 1.0
    guided: dict[str, Any] = field(default_factory=dict)

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

    method: `none` for the bare model (certification smooths it), `identity` for one that answers noisy copies, as a
    defense that changes nothing: the bare model of a reconstruction, smoothed.
    """

    method: Method
    sigma: float
    phases: tuple[Phase, ...] = ()
    batch_size: int = 256
    gamma: float = 1.0
    denoise_weight: float = 1.0
    reconstruction_weight: float = 0.0
    denoiser: dict[str, Any] = field(default_factory=lambda: {"name": "dncnn", "arguments": {}})
    estimator: Estimator | None = None
    scheme: Literal["denoiser", "denoiser+encoder", "denoiser+autoencoder"] = "denoiser+encoder"
    targets: Literal["hard", "soft"] = "hard"
    augmentation: str = "none"
    validation_votes: int = 1
    validate_every: int | None = None
    skip_dead: bool = True

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
    """How it is certified. columns: radii of the table, as multiples of sigma, in the order of the paper's columns."""

    n0: int
    n: int
    alpha: float
    columns: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0)

    def __post_init__(self) -> None:
        _require(self.n0 >= 1, f"n0 is {self.n0}; wanted at least 1 vote to pick a class")
        least = smallest_n(self.alpha)
        _require(self.n >= least, f"n = {self.n} can only abstain at alpha = {self.alpha}; the smallest n is {least}")
        _require(all(multiple >= 0 for multiple in self.columns), f"columns are {self.columns}; wanted radii >= 0")


@dataclass(frozen=True)
class Attack:
    """How a reconstruction is attacked. epsilons: l2 norms in the scaled units of the measurement.

    copies: noisy copies behind one defended output. samples: noise samples in the gradient of the adaptive attack.
    """

    epsilons: tuple[float, ...]
    steps: int
    copies: int
    samples: int
    measurements: int = 576
    measurement_seed: int = 0

    def __post_init__(self) -> None:
        _require(
            min(self.epsilons, default=-1.0) >= 0
            and min(self.steps, self.copies, self.samples, self.measurements) >= 1,
            f"an attack has epsilons {self.epsilons}, {self.steps} steps, {self.copies} copies, {self.samples} "
            f"samples, {self.measurements} measurements; wanted some epsilons >= 0 and at least 1 of all else",
        )


@dataclass(frozen=True)
class Plan:
    """One row at one scale, seeds apart. box: the classifier or, for reconstruction, the reconstruction network."""

    data: Data
    box: Network
    autoencoder: Network
    defense: Defense
    certify: Certify | None = None
    attack: Attack | None = None

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
    """A plan as plain values without those that are at their defaults: a setting added later keeps earlier digests."""
    if isinstance(plan, tuple):
        return [stated(item) for item in plan]
    if not is_dataclass(plan):
        return plan
    values = {item.name: (getattr(plan, item.name), item) for item in fields(plan)}
    return {name: stated(value) for name, (value, item) in values.items() if not _default(item, value)}


def _default(item: Field[Any], value: Any) -> bool:
    return value == (item.default_factory() if item.default_factory is not MISSING else item.default)


def parse(kind: type[_T], values: Any, place: str) -> _T:
    """`values` of a YAML file as a `kind`; `InvalidInput` names the place and the key that is wrong."""
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

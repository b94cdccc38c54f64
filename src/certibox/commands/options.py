"""What the command line understands: frozen dataclasses of options, and the objects that they describe.

One field is one flag and one key of a YAML file. Options stop here: everything below takes plain objects. Beside its
fields a class may have a table `NEEDS`: which of them are read only together with others, see `require_effect`.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from certibox.certification.sampling import FIXED, GRID, SEQUENTIAL
from certibox.commands.fields import Needs, option
from certibox.confidence.sequential import RULES, Rule
from certibox.data import Images, load_images
from certibox.errors import InvalidInput
from certibox.estimators import GradientEstimator, build_estimator
from certibox.training.methods import METHODS
from certibox.training.schedules import (
    DENOISE_EPOCHS,
    EPOCHS,
    Schedule,
    one_cycle,
    paper_finetune,
    paper_scratch,
)

ARRAYS = (".npz", ".npy")  # data without columns
LONGEST_TRAINING = 1_000_000  # epochs
MOST_IMAGES = 10**6  # at a time
MOST_VOTES = 10**9  # of an image: at a million a second, a quarter of an hour


def folder(text: str, name: str = "out") -> Path:
    """A folder to write to, which need not be there yet: absolute, for a box may change the working directory.

    Args:
        text: Its path.
        name: Name of the option that gives it.

    Raises:
        InvalidInput: It cannot be one: a file stands there, or nothing may be written.
    """
    path = Path(text).absolute()
    stands = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if not text or not stands.is_dir():
        raise InvalidInput(f"{name} is {text!r}, and {str(stands)!r} is no directory; wanted a directory to write to")
    if not os.access(stands, os.W_OK | os.X_OK):
        raise InvalidInput(f"{name} is {text!r}, and {str(stands)!r} may not be written to; wanted another directory")
    return path


@dataclass(frozen=True)
class DataOptions:
    """The images."""

    NEEDS: ClassVar = (
        Needs(
            "image_column label_column configuration",
            lambda o: o.data != "digits" and not o.data.endswith(ARRAYS),
            "on {data}, which has no columns",
            "a table",
        ),
    )

    data: str = option(
        "digits, a Hugging Face name or folder, an image folder, or one .npz, .npy, .parquet or .arrow file"
    )
    split: str = option(
        "which split of the data; NAME:SHARE, as train:0.8 and test:0.2, divides data without splits", "train"
    )
    limit: int | None = option(
        "use only the first N images; of class folders, the first of each class, then the second", None
    )
    image_column: str | None = option("column of the images in a table, by default image", None)
    label_column: str | None = option("column of the labels in a table or in metadata.csv, by default label", None)
    configuration: str | None = option("configuration of a Hugging Face data set that has several; or --subset", None)
    channels: int | None = option("bring all images to 1 channel, grey, or to 3, RGB", None)
    skip_unreadable: bool = option("leave out images that cannot be read, and count them", False)

    def images(self) -> Images:
        """The images, checked; which label is which class is said on standard error where folders or columns say so."""
        images = load_images(
            self.data,
            self.split,
            limit=self.limit,
            image_column=self.image_column,
            label_column=self.label_column,
            configuration=self.configuration,
            channels=self.channels,
            skip_unreadable=self.skip_unreadable,
        )
        if images.files is not None and images.legend is not None:
            print(images.legend, file=sys.stderr)
        return images


_LABELS = "with --outputs labels and --estimator guided: labels have no slope to measure or to correct"
_NEARBY = "--jitter instead, to learn from the labels nearby"


@dataclass(frozen=True)
class EstimatorOptions:
    """How a gradient is estimated from queries."""

    NEEDS: ClassVar = (
        Needs(
            "estimator q mu central surrogate ask distill jitter votes updates target",
            lambda o: METHODS[o.method].order == 0,
            "with --method {method}, which estimates no gradient from queries",
            "--method ZO-AE-DS or ZO-DS",
        ),
        Needs(
            "surrogate ask distill jitter votes updates target",
            lambda o: o.estimator == "guided",
            "with --estimator {estimator}, which has no surrogate",
            "--estimator guided",
        ),
        Needs("q", lambda o: o.estimator != "cge", "with --estimator cge, which takes them all", "--estimator rge"),
        Needs("q", lambda o: o.q in (0, "auto") or not _learns_labels(o), _LABELS, _NEARBY),
        Needs("mu central target", lambda o: not _learns_labels(o), _LABELS, _NEARBY),
        Needs("mu central target", lambda o: o.estimator != "guided" or o.q != 0, "with --q 0", "another --q"),
        Needs("target", lambda o: o.q in (None, "auto"), "with --q {q}, a number of your own", "--q auto"),
        Needs("jitter votes", lambda o: o.ask > 0, "with --ask 0, which asks no answers on the way", "another --ask"),
    )

    estimator: Literal["guided", "cge", "rge", "orthogonal"] = option(
        "of the gradient, for ZO methods; guided learns a surrogate of the box from its answers", "guided"
    )
    q: int | str | None = option(
        "directions of rge and orthogonal, by default 20; corrections of guided, by default auto: as many as its "
        "measured cosine with the truth asks for",
        None,
    )
    mu: float | str | None = option(
        "step of the differences, in units of the embedding; by default auto: measured at the start, for 256 to 448 "
        "queries",
        None,
    )
    central: bool = option(
        "central differences: two queries a direction, error of order mu squared", False, advanced=True
    )
    surrogate: Literal["image", "latent"] = option(
        "guided: learn on the images the box sees, or on the embedding", "image", advanced=True
    )
    ask: float = option(
        "guided: share of each batch that is asked for answers to learn from", 1.0, advanced=True, least=0, most=1
    )
    distill: int = option(
        "guided: queries on noisy and denoised images before the first step", 0, advanced=True, least=0
    )
    jitter: float = option(
        "guided: deviation of Gaussian steps at which answers are asked, for labels and stairs",
        0.0,
        advanced=True,
        least=0,
    )
    votes: int = option(
        "guided: answers an image and step; more than 1 with a jitter, or for a box that answers at random",
        1,
        advanced=True,
        least=1,
    )
    target: float = option(
        "guided: cosine with the truth below which corrections are bought, where q is auto; it is measured every 20 "
        "steps, and heeded from the third time on",
        0.3,
        advanced=True,
    )

    def __post_init__(self) -> None:
        for name, kind in (("q", "a whole number"), ("mu", "a number")):
            value = getattr(self, name)
            if isinstance(value, str) and value != "auto":
                raise InvalidInput(f"{name} is {value!r}; wanted {kind} or auto")

    def build_estimator(self) -> GradientEstimator:
        """The estimator; what is not given is measured when training starts."""
        if self.estimator == "guided":
            surrogate = {
                name: getattr(self, name) for name in ("surrogate", "ask", "distill", "jitter", "votes", "target")
            }
            return build_estimator("guided", q=self.q, mu=self.mu, central=self.central, **surrogate)
        if self.q == "auto":
            raise InvalidInput(f"q is {self.q}, which guided alone measures; wanted a number for {self.estimator}")
        q: dict[str, Any] = {} if self.estimator == "cge" else {"q": 20 if self.q is None else self.q}
        return build_estimator(self.estimator, mu="auto" if self.mu is None else self.mu, central=self.central, **q)


def _learns_labels(options: Any) -> bool:
    """Whether labels are all that a surrogate learns from: they have no slope, so nothing is ever stepped."""
    return options.estimator == "guided" and options.outputs == "labels"


@dataclass(frozen=True)
class ScheduleOptions:
    """How long and how fast to train."""

    NEEDS: ClassVar = (
        Needs(
            "epochs denoise_epochs",
            lambda o: o.schedule == "one-cycle",
            "with --schedule {schedule}, which has the paper's epochs",
            "--schedule one-cycle",
        ),
    )

    schedule: Literal["one-cycle", "paper-scratch", "paper-finetune"] = option(
        "one-cycle, or a schedule of the paper", "one-cycle"
    )
    epochs: int = option("epochs of one-cycle on the full objective", EPOCHS, least=0, most=LONGEST_TRAINING)
    denoise_epochs: int | None = option(
        f"epochs of one-cycle on denoising alone, before those; they cost no query, so by default {DENOISE_EPOCHS} "
        "where the method has a denoiser",
        None,
        least=0,
        most=LONGEST_TRAINING,
    )
    lr: float | None = option("peak learning rate; each schedule has its own default", None, advanced=True)
    train_batch_size: int = option("images a step", 64, least=2, most=MOST_IMAGES)

    @property
    def usual_denoise_epochs(self) -> int:
        """Epochs on denoising alone where none are given."""
        return DENOISE_EPOCHS

    def build_schedule(self) -> Schedule:
        """The schedule of the defense."""
        if self.schedule == "one-cycle":
            first = self.usual_denoise_epochs if self.denoise_epochs is None else self.denoise_epochs
            return one_cycle(self.epochs, 1e-3 if self.lr is None else self.lr, self.train_batch_size, first)
        if self.schedule == "paper-scratch":
            return paper_scratch(1e-3 if self.lr is None else self.lr, self.train_batch_size)
        return paper_finetune(1e-5 if self.lr is None else self.lr, self.train_batch_size)


@dataclass(frozen=True)
class RuleOptions:
    """When an image has votes enough."""

    NEEDS: ClassVar = (
        Needs(
            "radii tolerance futility",
            lambda o: o.rule != "fixed",
            "with --rule fixed, which decides nothing as it goes",
            "--rule e-process or alpha-spending",
        ),
    )

    rule: Literal["fixed", "e-process", "alpha-spending"] = option(
        "e-process and alpha-spending look at the votes as they come and stop when the question is answered, at n at "
        "the latest; fixed always draws n",
        "e-process",
    )
    n0: int | None = option("votes that pick a class; by default 25, for a fixed n 100", None, most=MOST_VOTES)
    n: int | None = option(
        "votes that bound its probability, and the most of them under a sequential rule; by default 100000, for a "
        "fixed n 10000",
        None,
        least=1,
        most=MOST_VOTES,
    )
    radii: list[float] | None = option(
        "l2 radii for a sequential rule to decide, as [0.25, 0.5]; by default sigma/2, sigma and 2 sigma", None
    )
    tolerance: float | None = option(
        "instead of radii: stop where the radius is within this share of what n votes would give, such as 0.05",
        None,
        advanced=True,
    )
    futility: float = option(
        "give an image up where its next radius lies beyond a bound that is wrong at this rate; 0 never gives up",
        0.05,
        advanced=True,
    )

    def sample_sizes(self) -> tuple[int, int]:
        """n0 and n; what is not given is what suits the rule. Errors: `InvalidInput` for an n0 that selects nothing."""
        n0, n = FIXED if self.rule == "fixed" else SEQUENTIAL
        if self.n0 is not None and self.n0 < 1:
            raise InvalidInput(f"n0 is {self.n0}; wanted at least 1 vote that picks a class, by default {n0} here")
        return n0 if self.n0 is None else self.n0, n if self.n is None else self.n

    def radii_at(self, sigma: float) -> tuple[float, ...]:
        """The radii asked: those given, else `GRID`."""
        return tuple(self.radii) if self.radii is not None else tuple(ratio * sigma for ratio in GRID)

    def build_rule(self, sigma: float) -> Rule | None:
        """The stopping rule for noise of deviation sigma; None for a fixed number of votes."""
        if self.rule == "fixed":
            return None
        if not 0 <= self.futility < 1:
            raise InvalidInput(
                f"futility is {self.futility}; wanted a rate above 0 and below 1, such as 0.05, or 0 for never"
            )
        full = self.tolerance is not None and self.radii is None
        radii = None if full else self.radii_at(sigma)
        return RULES[self.rule](radii=radii, tolerance=self.tolerance, futility=self.futility or None)

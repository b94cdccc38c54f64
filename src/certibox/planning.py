"""What a plan would spend, before a query is sent: training, certification, and answers of the smoothed model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from certibox.certification.certificate import out_of_reach
from certibox.certification.pilot import expected_samples
from certibox.certification.sampling import Sampling
from certibox.confidence.gaussian import Gaussian
from certibox.confidence.sequential import Rule
from certibox.errors import InvalidInput
from certibox.estimators import CGE, RGE, GradientEstimator, Guided, Subset, require_estimator
from certibox.estimators.step_size import DIRECTIONS, STEPS
from certibox.records.certificates import CertificateRow
from certibox.storage import values
from certibox.training.methods import METHODS
from certibox.training.schedules import Schedule
from certibox.training.settings import TrainingSettings
from certibox.training.surrogate import PROBE_DIRECTIONS, PROBED


@dataclass(frozen=True)
class Cost:
    """Queries of a plan, by what they are for."""

    targets: int
    """Queries for the box's answers to the clean training and validation images."""
    measuring: int
    """Queries that measure the step mu at the start, and the surrogate's gradient on the way."""
    training: int
    """Queries of the estimator for all else, distillation included."""
    validation: int
    """Queries about noisy validation images."""
    certification: int
    """Queries of certificates."""
    serving: int
    """Queries of answers of the smoothed model."""
    samples: tuple[float, float] | None = None
    """Estimation votes an image that a pilot lets a stopping rule expect, and their standard error."""
    piloted: int = 0
    """Number of images of that pilot."""
    beyond: str | None = None
    """Line that names the radii which n votes cannot certify, where there are some."""
    at_most: str | None = None
    """Line that says why training may take fewer queries, where it may."""

    @property
    def all_training(self) -> int:
        """All queries of training: targets, measuring, estimates and validation."""
        return self.targets + self.measuring + self.training + self.validation

    @property
    def total(self) -> int:
        """All queries of the plan."""
        return self.all_training + self.certification + self.serving


def plan(
    settings: TrainingSettings | None = None,
    *,
    method: str | None = None,
    estimator: GradientEstimator | None = None,
    schedule: Schedule | None = None,
    validation_votes: int = 4,
    validate_every: int | None = None,
    train_images: int | None = None,
    validation: float = 0.1,
    outputs: str = "logits",
    d_z: int | None = None,
    live: float = 1.0,
    certify_images: int = 0,
    n0: int | None = None,
    n: int | None = None,
    alpha: float | None = None,
    sigma: float | None = None,
    rule: Rule | None = None,
    pilot: Sequence[CertificateRow] | None = None,
    serve_answers: int = 0,
    serve_n: int | None = None,
) -> Cost:
    """Queries of a plan: what `train` and `certify_dataset` then spend, to the query where every coordinate is live.

    Three things are not included: corrections that `Guided` buys of its own accord (q is "auto"), for it buys none
    while its surrogate is good; a fingerprint, 8 queries each time; and the check of TF32 on a GPU. A stopping rule's
    votes are expected from a pilot; without one its maximum n is counted. First-order passes through a white box are
    no queries.

    Args:
        settings: Settings of the training; they stand for method, estimator, schedule, validation_votes,
            validate_every and, where it is not given, sigma.
        method: Name of the method to train, see `TrainingSettings.method`.
        estimator: Estimator of the gradient, for ZO methods.
        schedule: Schedule of the training; phases on denoising alone cost no query.
        validation_votes: Number of noisy votes on each validation image and validation.
        validate_every: Number of epochs between validations, by default 1.
        train_images: Number of images to train on, validation images included; 0 for no training; wanted
            beside settings or a method.
        validation: Share of these images that is held out for validation.
        outputs: Kind of the box's answers: logits, probabilities, labels or values. Labels have no slope, so `Guided`
            neither measures nor corrects them.
        d_z: Dimension that the estimator works on: the embedding's, or that of all pixels for ZO-DS. `Guided` wants it
            only where q is a number above 0.
        live: Share of the embedding's coordinates that are live, for `CGE` in front of a ReLU; 1 is the most.
        certify_images: Number of images to certify; 0 for no certification.
        n0: Number of votes that pick a class.
        n: Number of votes that bound the class's probability; the maximum under a rule.
        alpha: Probability that a certificate is false; with a pilot, the pilot's own.
        sigma: Standard deviation of the noise, in pixels on [0, 1]; with a pilot, the pilot's own. Without one the
            radii of the rule are in units of sigma.
        rule: Stopping rule, such as `certibox.EProcess(radii=(0.25,))`; by default n votes are drawn at every image.
        pilot: Certificates of a few images of the kind to come, by any rule or n, of one sigma and alpha.
        serve_answers: Number of answers of the smoothed model to serve.
        serve_n: Number of votes an answer.

    Returns:
        The cost, by what the queries are for.

    Raises:
        InvalidInput: A share is outside [0, 1], a count is below its least value or missing, a pilot came without a
            rule, or n cannot certify anything.
    """
    if settings is not None:
        _refuse_both(method=method, estimator=estimator, schedule=schedule)
        method, estimator, schedule = settings.method, settings.estimator, settings.schedule
        validation_votes, validate_every = settings.validation_votes, settings.validate_every
        sigma = settings.sigma if sigma is None and pilot is None else sigma
    if train_images is None and (settings is not None or method is not None):
        raise InvalidInput("train_images is not given; wanted the number of images to train on, or 0 for no training")
    images = train_images or 0
    trained = _Training(
        method, estimator, schedule, validation_votes, validate_every, images, validation, outputs, d_z, live
    )
    trained.check()
    _check_counts(serve_answers=serve_answers, serve_n=serve_n)
    if serve_answers and serve_n is None:
        raise InvalidInput("serve_n is not given; wanted the number of votes an answer, such as 1000")
    certification, samples, beyond = _certification(certify_images, n0, n, alpha, sigma, rule, pilot)
    measuring, training = trained.estimates()
    return Cost(
        targets=trained.targets,
        measuring=measuring,
        training=training,
        validation=trained.validations,
        certification=certification,
        serving=serve_answers * (serve_n or 0),
        samples=samples,
        piloted=len(pilot or ()),
        beyond=beyond,
        at_most=trained.at_most(settings is None or settings.skip_dead),
    )


@dataclass(frozen=True)
class _Training:
    """The training of a plan; the names are those of `plan`."""

    method: str | None
    estimator: GradientEstimator | None
    schedule: Schedule | None
    votes: int
    every: int | None
    images: int
    validation: float
    outputs: str
    d_z: int | None
    live: float

    def check(self) -> None:
        """Raise `InvalidInput` for values that no training has."""
        for name, share in (("validation", self.validation), ("live", self.live)):
            values.number(name, share, "a share from 0 to 1", low=0, high=1)
        _check_counts(train_images=self.images, validation_votes=self.votes)
        _check_counts(1, d_z=self.d_z, validate_every=self.every)
        if self.images or self.method:
            values.known("method", self.method, METHODS)
        if not self.images or self.order != 0:
            return
        if self.schedule is None:
            raise InvalidInput("schedule is not given; wanted one such as certibox.one_cycle(epochs=10)")
        if self.estimator is None:
            raise InvalidInput(f"{self.method} got no estimator; wanted one such as certibox.CGE(mu=0.05)")
        require_estimator(self.estimator)

    @property
    def order(self) -> int | None:
        """Order of the stability term's gradient, see `Method`; None where nothing trains."""
        return METHODS[self.method].order if self.method else None

    @property
    def targets(self) -> int:
        """Queries for the answers to clean images."""
        return self.images if self.order is not None else 0

    @property
    def validations(self) -> int:
        """Queries about the validation images: at the start, every so many epochs, and at the end of each phase."""
        if not self.full_epochs:
            return 0
        times = 1 + sum(math.ceil(epochs / (self.every or 1)) for epochs in self.full_epochs)
        return self.held * self.votes * times

    def estimates(self) -> tuple[int, int]:
        """Queries of measuring, and all other queries of the estimator."""
        batches, epochs = self.batches, sum(self.full_epochs)
        if not batches or not epochs or self.estimator is None:
            return 0, 0
        estimator = stepped(self.estimator, self.outputs)
        inner = _inner(estimator)
        moves = not isinstance(inner, Guided) or inner.q != 0
        central = bool(getattr(inner, "central", False))
        measuring = _choosing(central, batches[0]) if getattr(inner, "mu", None) == "auto" and moves else 0
        if not isinstance(inner, Guided):
            return measuring, epochs * sum(_asked(estimator, b) for b in batches) * self._per_image(inner)
        answers = sum(inner.asked_of(b) for b in batches) * inner.votes
        if inner.q == "auto":
            return measuring + self._probes(inner, epochs), inner.distill + epochs * answers
        corrected = sum(batches) * most_corrections(inner, self._dimension) if inner.q else 0
        return measuring, inner.distill + epochs * (answers + corrected)

    def at_most(self, skip_dead: bool) -> str | None:
        """Why the estimator may ask less than is counted: it leaves out coordinates that a ReLU has set to zero."""
        if self.estimator is None or not self.full_epochs or not METHODS[str(self.method)].bottleneck:
            return None
        if self.live < 1 or not skip_dead or not isinstance(_inner(self.estimator), CGE):
            return None
        return "training is at most this: behind an encoder that ends in a ReLU, CGE asks about live coordinates alone"

    @property
    def held(self) -> int:
        """Number of validation images."""
        return round(self.images * self.validation)

    @property
    def full_epochs(self) -> list[int]:
        """Epochs of each phase that asks the box for gradients: none for a method that has them, or no images."""
        if self.schedule is None or not self.images or self.order != 0:
            return []
        return [phase.epochs for phase in self.schedule.phases if phase.objective == "full" and phase.epochs]

    @property
    def batches(self) -> list[int]:
        """Images of each step of an epoch, as `Schedule.steps_per_epoch` counts the steps."""
        if self.schedule is None:
            return []
        full, rest = divmod(self.images - self.held, self.schedule.batch_size)
        return [self.schedule.batch_size] * full + [rest] * (rest > 1)

    def _probes(self, guided: Guided, epochs: int) -> int:
        """Queries of probing the surrogate at every `probe_every`-th step, the first included."""
        batches = self.batches
        across = PROBE_DIRECTIONS if self.d_z is None else min(PROBE_DIRECTIONS, self.d_z - 1)
        each = 2 * (across + 1) if guided.central else across + 2
        steps = range(0, epochs * len(batches), guided.probe_every)
        return each * sum(min(PROBED, batches[step % len(batches)]) for step in steps)

    def _per_image(self, estimator: GradientEstimator) -> int:
        """Queries an image and step, without a surrogate."""
        d = self._dimension
        if not isinstance(estimator, CGE):
            return estimator.cost(d)
        return round(d * self.live) * (2 if estimator.central else 1) + (0 if estimator.central else 1)

    @property
    def _dimension(self) -> int:
        if self.d_z is None:
            raise InvalidInput("d_z is not given; wanted the dimension that the estimator works on, such as 192")
        return self.d_z


def _certification(
    images: int,
    n0: int | None,
    n: int | None,
    alpha: float | None,
    sigma: float | None,
    rule: Rule | None,
    pilot: Sequence[CertificateRow] | None,
) -> tuple[int, tuple[float, float] | None, str | None]:
    """Queries of the certificates, what the pilot expects, and a line on radii out of reach; arguments as of `plan`."""
    _check_counts(certify_images=images, n=n)
    if pilot is not None and rule is None:
        raise InvalidInput("a pilot tells when a stopping rule ends, and there is none; wanted one such as EProcess")
    if pilot:
        for name, mine, its in (("sigma", sigma, pilot[0].sigma), ("alpha", alpha, pilot[0].alpha)):
            if mine not in (None, its):
                raise InvalidInput(f"{name} is {mine}, the pilot's is {its}; wanted the same, or the pilot's alone")
        sigma, alpha = pilot[0].sigma, pilot[0].alpha
    if n is None:
        if images or pilot is not None:
            raise InvalidInput("n is not given; wanted the number of votes that bound a class, or their maximum")
        return 0, None, None
    beyond = None
    if images:
        if n0 is None or alpha is None:
            raise InvalidInput(f"n0 is {n0} and alpha is {alpha}; wanted at least 1 vote that picks a class, and alpha")
        beyond = _refused_or_beyond(Sampling(n0, n, alpha, rule), sigma)
    samples = expected_samples(pilot, rule, n) if pilot is not None and rule is not None else None
    return round(images * ((n0 or 0) + (samples[0] if samples else n))), samples, beyond


def _refused_or_beyond(sampling: Sampling, sigma: float | None) -> str | None:
    """Refuse what `certify` would, in its words; a line on the radii that n cannot certify, where it can others."""
    if sampling.rule is None:
        return None
    law, note = (Gaussian(1.0), " (r in units of sigma)") if sigma is None else (Gaussian(sigma), "")
    try:
        sampling.sizes(law, num_classes=2)  # a rule looks at one class, whatever their number
    except InvalidInput as error:
        raise InvalidInput(f"{error}{note}") from error
    line = out_of_reach(sampling.rule, sampling.n, sampling.alpha, law)
    return line and f"{line}{note}"


def stepped(estimator: GradientEstimator, outputs: str) -> GradientEstimator:
    """The estimator as training uses it: labels have no slope, so `Guided` corrects nothing there.

    Args:
        estimator: Estimator that is asked for.
        outputs: Kind of the box's answers.
    """
    return replace(estimator, q=0) if isinstance(estimator, Guided) and outputs == "labels" else estimator


def most_corrections(guided: Guided, d: int) -> int:
    """Queries of corrections an image and step; the most of them where their number is measured.

    Args:
        guided: Surrogate-guided estimator.
        d: Dimension that it works on.
    """
    return guided.cost(d) - replace(guided, q=0).cost(d)


def wants_dimension(estimator: GradientEstimator) -> bool:
    """Whether the cost of an estimate depends on the dimension: that of a surrogate's guess does not.

    Args:
        estimator: Estimator of the gradient.
    """
    return not isinstance(estimator, Guided) or estimator.q not in (0, "auto")


def skips_dead(estimator: GradientEstimator) -> bool:
    """Whether fewer live coordinates mean fewer queries: `RGE` asks along q directions all the same.

    Args:
        estimator: Estimator of the gradient.
    """
    return not isinstance(_inner(estimator), RGE) and not (isinstance(estimator, Guided) and estimator.q == 0)


def _refuse_both(**given: Any) -> None:
    """Raise `InvalidInput` for what came as a keyword beside the settings that hold it."""
    if came := [name for name, value in given.items() if value is not None]:
        raise InvalidInput(f"plan got settings and {', '.join(came)} beside them; wanted one of the two")


def _check_counts(least: float = 0, **counts: Any) -> None:
    """Raise `InvalidInput` for a count below its least value; None is none."""
    for name, value in counts.items():
        if value is not None:
            values.whole(name, value, int(least), wanted=f"at least {least:g}, a whole number")


def _choosing(central: bool, points: int) -> int:
    """Queries of `choose_step` at so many points."""
    return STEPS * DIRECTIONS * (2 if central else 1) + (0 if central else min(DIRECTIONS, points))


def _inner(estimator: GradientEstimator) -> GradientEstimator:
    """The estimator inside a `Subset`, else the estimator itself."""
    return estimator.estimator if isinstance(estimator, Subset) else estimator


def _asked(estimator: GradientEstimator, batch: int) -> int:
    """How many images of a batch get an estimate, as `Subset` chooses them."""
    return max(1, round(estimator.share * batch)) if isinstance(estimator, Subset) else batch

"""The face of certibox for scikit-learn: a classifier that is fitted in front of a fitted estimator, and certifies."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from certibox import __version__
from certibox.blackbox import as_blackbox
from certibox.certification.sampling import ALPHA, EARLY, GRID, SEQUENTIAL
from certibox.certification.stored import row_of
from certibox.confidence import EProcess, RankVerification
from certibox.data import Images, images_from_arrays
from certibox.defense.saved import Defense
from certibox.errors import InvalidImages, InvalidInput, Notice
from certibox.estimators import Guided
from certibox.networks import suitable_autoencoder
from certibox.queries.client import QueryClient
from certibox.records.certificates import CertificateRows
from certibox.seeds.switches import settled
from certibox.training.defenses import train
from certibox.training.methods import METHODS
from certibox.training.schedules import AUTOENCODER_EPOCHS, AUTOENCODER_RATE, DENOISE_EPOCHS, EPOCHS, one_cycle
from certibox.training.settings import TrainingSettings


class CertifiedClassifier(ClassifierMixin, BaseEstimator):
    """A certified classifier in front of a fitted scikit-learn classifier, which is queried and never changed.

    X holds images with pixels on [0, 1]: (m, c, h, w), or (m, c * h * w) with `image_shape`. `fit` trains a denoiser
    and an encoder through queries, without labels; `predict` and `certify` speak of the smoothed classifier. Whatever
    is not given is the default of `certibox train` and `certibox certify`; sigma has none, and gamma is 1 here.

    `clone` keeps the fitted estimator itself, as `sklearn.frozen.FrozenEstimator` does.

    Args:
        estimator: Fitted classifier, of flat pixels (m, c * h * w) or of what `certibox.as_blackbox` takes.
        sigma: Standard deviation of the noise, in pixels on [0, 1].
        budget: Number of queries that `fit`, `predict` and `certify` may spend in all; None for no bound.
        image_shape: Shape (c, h, w) of an image, wanted where X is flat.
        method: Name of the method: ZO-AE-DS, ZO-DS, or DS, which spends no query.
        gamma: Weight of the stability term.
        epochs: Number of epochs with queries.
        denoise_epochs: Number of epochs on denoising alone before, without queries.
        autoencoder_epochs: Number of epochs of the autoencoder's pre-training, without queries.
        d_z: Dimension of the embedding; None for the paper's at this size of images.
        denoiser: Denoiser: a name of `certibox.networks.DENOISERS`, or a torch module to start from.
        lr: Learning rate.
        radii: Radii that votes decide, in pixels on [0, 1]; None for sigma / 2, sigma and 2 sigma.
        n0: Number of votes that pick the class of a certificate.
        n: Number of votes of a certificate at most.
        alpha: Probability with which an answer may be wrong about the smoothed classifier.
        n_predict: Number of votes of `predict`; by default they end as soon as they prove a class, at 1,500 at the
            latest, see `RankVerification`.
        abstain_label: Label that `predict` gives where the votes decide for no class; None for -1, or "abstain" where
            classes are words.
        random_state: Seed of training and noise.
        out: Folder of checkpoints and of the ledger, with which an interrupted `fit` goes on; None for none.
    """

    def __init__(
        self,
        estimator: Any,
        *,
        sigma: float,
        budget: int | None = None,
        image_shape: tuple[int, int, int] | None = None,
        method: str = "ZO-AE-DS",
        gamma: float = 1.0,
        epochs: int = EPOCHS,
        denoise_epochs: int = DENOISE_EPOCHS,
        autoencoder_epochs: int = AUTOENCODER_EPOCHS,
        d_z: int | None = None,
        denoiser: Any = "dncnn",
        lr: float = 1e-3,
        radii: Sequence[float] | None = None,
        n0: int = SEQUENTIAL[0],
        n: int = SEQUENTIAL[1],
        alpha: float = ALPHA,
        n_predict: int | None = None,
        abstain_label: Any = None,
        random_state: int = 0,
        out: str | Path | None = None,
    ) -> None:
        self.estimator = estimator
        self.sigma = sigma
        self.budget = budget
        self.image_shape = image_shape
        self.method = method
        self.gamma = gamma
        self.epochs = epochs
        self.denoise_epochs = denoise_epochs
        self.autoencoder_epochs = autoencoder_epochs
        self.d_z = d_z
        self.denoiser = denoiser
        self.lr = lr
        self.radii = radii
        self.n0 = n0
        self.n = n
        self.alpha = alpha
        self.n_predict = n_predict
        self.abstain_label = abstain_label
        self.random_state = random_state
        self.out = out

    def __sklearn_clone__(self) -> Self:
        """An unfitted copy in front of the same estimator: a clone of that would have to be fitted again."""
        parameters = self.get_params(deep=False)
        kept = {name: value if name == "estimator" else copy.deepcopy(value) for name, value in parameters.items()}
        return type(self)(**kept)

    @settled()
    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Train the defense on images; pixels are rounded to 8 bits for it.

        Args:
            X: Images (m, c, h, w) or (m, c * h * w), pixels on [0, 1].
            y: Labels of the images, which are checked and not used: classes are those of the estimator.

        Raises:
            NotFittedError: The estimator is not fitted.
            InvalidImages: X holds no images, or pixels beyond [0, 1].
            InvalidInput: A parameter is out of order.
            BudgetExceeded: The budget does not suffice.
        """
        check_is_fitted(self.estimator)
        if getattr(self.estimator, "classes_", None) is None:
            came = type(self.estimator).__name__
            raise InvalidInput(f"the estimator is a {came} without classes_; wanted a fitted classifier")
        x = self._images(X, reset=True)
        if y is not None:
            check_consistent_length(x, y := column_or_1d(y, warn=True))
            assert_all_finite(y, input_name="y")
            check_classification_targets(y)
        images = images_from_arrays((x * 255).round().astype(np.uint8), None, name="X")
        self.classes_ = np.asarray(self.estimator.classes_)
        self._require_abstain_label()
        outputs = "probabilities" if hasattr(self.estimator, "predict_proba") else "labels"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)  # of classes that are words: here labels are words again
            box = as_blackbox(self.estimator, outputs=outputs, num_classes=len(self.classes_))
        ledger = None if self.out is None else Path(self.out) / "ledger.sqlite"
        self.client_ = QueryClient(box, budget=self.budget, ledger=ledger)
        self.defense_ = self._trained(images)
        self._smoothed = self.defense_.smoothed()
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Labels (m,) of the smoothed classifier, or `abstain_label`; n_predict queries an image at most.

        An abstention is no class, so `score` counts it as wrong.

        Args:
            X: Images (m, c, h, w) or (m, c * h * w), pixels on [0, 1].

        Raises:
            NotFittedError: `fit` was not called.
            InvalidImages: X holds no images of the size that was fitted, or pixels beyond [0, 1].
            BudgetExceeded: The budget does not suffice; `certify` and `predict` keep nothing of a call that fails.
        """
        check_is_fitted(self, "defense_")
        x = torch.from_numpy(self._images(X))
        with self.client_.default_phase("predict"):
            rule, (n0, n) = (RankVerification(), EARLY) if self.n_predict is None else (None, (0, self.n_predict))
            found = self._smoothed.predict(x, n=n, alpha=self.alpha, seed=self.random_state, rule=rule, n0=n0)
        abstain = self._abstain
        labels = [abstain if one.label is None else self.classes_[one.label] for one in found]
        return np.array(labels, dtype=np.result_type(self.classes_.dtype, np.array([abstain]).dtype))

    def certify(self, X: ArrayLike, y: ArrayLike | None = None) -> CertificateRows:
        """Certificates, one row an image, classes by their position in `classes_`; n + n0 queries an image at most.

        Args:
            X: Images (m, c, h, w) or (m, c * h * w), pixels on [0, 1], taken as they are.
            y: Labels (m,), values of `classes_`; None where they are not known.

        Raises:
            NotFittedError: `fit` was not called.
            InvalidInput: A label is no class.
            InvalidImages: X holds no images of the size that was fitted, or pixels beyond [0, 1].
            BudgetExceeded: The budget does not suffice.
        """
        check_is_fitted(self, "defense_")
        x, labels = torch.from_numpy(self._images(X)), self._labels(y)
        if labels is not None and len(labels) != len(x):
            raise InvalidInput(f"y has {len(labels)} labels for {len(x)} images; wanted one for each")
        radii = tuple(ratio * self.sigma for ratio in GRID) if self.radii is None else tuple(self.radii)
        rows, rule, model = CertificateRows(), EProcess(radii=radii), self._smoothed.model_id
        with self.client_.default_phase("certify"):
            for i, image in enumerate(x):
                started = time.perf_counter()
                found = self._smoothed.certify(
                    image, n0=self.n0, n=self.n, alpha=self.alpha, seed=self.random_state, rule=rule
                )
                label, seconds = None if labels is None else labels[i], time.perf_counter() - started
                rows.append(row_of(found, i, label, seconds, model, __version__))
        return rows

    @property
    def queries_(self) -> dict[str, int]:
        """Queries so far by phase."""
        check_is_fitted(self, "defense_")
        return dict(self.client_.spent)

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn may expect: images of two or four dimensions, of pixels that are not negative."""
        tags = super().__sklearn_tags__()  # pyright: ignore[reportAttributeAccessIssue]
        tags.input_tags.positive_only = True
        tags.target_tags.required = False
        tags.non_deterministic = False
        return tags

    def _trained(self, images: Images) -> Defense:
        settings = TrainingSettings(
            method=self.method,
            sigma=self.sigma,
            schedule=one_cycle(self.epochs, self.lr, denoise_epochs=self.denoise_epochs),
            seed=self.random_state,
            estimator=Guided(),
            gamma=self.gamma,
        )
        autoencoder = stage1 = None
        if METHODS[self.method].bottleneck:
            autoencoder = suitable_autoencoder(images.shape, d_z=self.d_z, seed=self.random_state)
            stage1 = one_cycle(self.autoencoder_epochs, AUTOENCODER_RATE, settings.schedule.batch_size)
        return train(
            self.client_,
            images,
            settings,
            denoiser=self.denoiser,
            autoencoder=autoencoder,
            autoencoder_schedule=stage1,
            out=None if self.out is None else Path(self.out) / "training",
        )

    def _images(self, X: ArrayLike, reset: bool = False) -> np.ndarray:
        """X as images (m, c, h, w), float32 on [0, 1]."""
        least = 2 if reset else 1
        x: Any = validate_data(self, X=X, reset=reset, allow_nd=True, dtype=np.float32, ensure_min_samples=least)  # pyright: ignore[reportArgumentType]
        return self._as_images(x)

    def _as_images(self, x: np.ndarray) -> np.ndarray:
        if x.ndim == 2:
            if self.image_shape is None:
                raise InvalidImages(f"X has shape {x.shape}; wanted image_shape=(c, h, w), into which a row is cut")
            if int(np.prod(self.image_shape)) != x.shape[1]:
                raise InvalidImages(f"X has {x.shape[1]} features, which are no image of shape {self.image_shape}")
            x = x.reshape(len(x), *self.image_shape)
        elif x.ndim != 4:
            raise InvalidImages(f"X has shape {x.shape}; wanted (m, c, h, w), or (m, c * h * w) with image_shape")
        low, high = float(x.min()), float(x.max())
        if low < 0 or high > 1:
            wanted = "wanted pixels on [0, 1]"
            raise InvalidImages(f"Negative values in data passed to X, or above 1: {low:g} to {high:g}; {wanted}")
        return x

    def _labels(self, y: ArrayLike | None) -> list[int] | None:
        """The positions of labels in `classes_`."""
        if y is None:
            return None
        places = {value: place for place, value in enumerate(self.classes_.tolist())}
        labels = np.asarray(y).tolist()
        if unknown := [label for label in labels if label not in places]:
            raise InvalidInput(f"label {unknown[0]!r} is none of the classes {self.classes_.tolist()[:20]}")
        return [places[label] for label in labels]

    @property
    def _abstain(self) -> Any:
        if self.abstain_label is not None:
            return self.abstain_label
        return "abstain" if self.classes_.dtype.kind in "OUS" else -1

    def _require_abstain_label(self) -> None:
        if self._abstain in self.classes_.tolist():
            raise InvalidInput(f"abstain_label is {self._abstain!r}, which is a class; wanted another value")

"""A fitted scikit-learn estimator as a black box."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from certibox.blackbox.base import BoxSpec
from certibox.blackbox.identity import digest_of, joined
from certibox.blackbox.outputs import to_outputs
from certibox.errors import InvalidInput, Notice
from certibox.seeds.switches import Switch

_METHODS = {"logits": "decision_function", "probabilities": "predict_proba", "labels": "predict", "values": "predict"}
_BLAS_THREADS = Switch()


class SklearnBox:
    """A fitted estimator on flattened images (n, c * h * w), float64 or the declared `dtype`.

    With `layout="NHWC"` or `"flat-NHWC"` they are flattened from (h, w, c), for an estimator that was fitted so. One
    that was fitted on a table gets a table with the names of its columns. Pixels are clipped to [0, 1] by default.

    Logits come from `decision_function` (a binary score s becomes the columns 0, s), probabilities from
    `predict_proba`, labels (as positions in `classes_`) and the values of a regressor from `predict`.

    Args:
        estimator: Fitted classifier or regressor, or any object with one of these methods.
        outputs: Kind of the answers, as in `BoxSpec`.
        declared: Other fields of `BoxSpec`; `num_classes` is read from the estimator, and `identity` is a digest of
            what was fitted, joined with one that is given.

    Raises:
        InvalidInput: The estimator is not fitted, lacks the method or votes one against one.
    """

    answers_alone = True
    """Whether an image is answered alone, whatever else is in the batch."""

    def __init__(self, estimator: Any, outputs: str, **declared: Any) -> None:
        name = type(estimator).__name__
        self._classes = _classes(estimator)
        offered = _offered(estimator, self._classes)
        if outputs not in offered:
            kinds = ", ".join(offered) or "none (is it fitted?)"
            raise InvalidInput(f"outputs is {outputs!r}; this {name} offers {kinds}")
        if self._classes is not None:
            num_classes = len(self._classes)
            if declared.get("num_classes") not in (None, num_classes):
                raise InvalidInput(
                    f"num_classes is {declared['num_classes']}; {name} was fitted to {num_classes} classes"
                )
            declared["num_classes"] = num_classes
            if not np.array_equal(self._classes, np.arange(num_classes)):
                some = ", ".join(map(str, self._classes[:5]))
                warnings.warn(
                    f"column k of {name} is class classes_[k] ({some}, ...); labels count columns", Notice, stacklevel=3
                )
            if outputs == "logits" and num_classes > 2 and _votes_one_vs_one(estimator):
                raise InvalidInput(f"{name} has decision_function_shape='ovo', a score a pair; make it 'ovr'")
        declared.setdefault("clip", True)
        self.free_batch_size = "batch_size" not in declared  # what is fastest may be measured
        declared.setdefault("name", name)
        declared["identity"] = joined(declared.get("identity"), digest_of(estimator))
        features = getattr(estimator, "n_features_in_", None)
        declared["takes"] = None if features is None else (int(features),)
        self.spec = BoxSpec(outputs, **declared)
        self._columns = _columns(estimator)
        self.estimator = estimator
        self._threads = _blas()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec.summary})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_threads"}  # libraries of this process

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _threads=_blas())

    def __call__(self, x: Tensor) -> Tensor:  # (n, c, h, w) -> outputs
        """See `BlackBox.__call__`."""
        images = self.spec.prepare(x.detach())
        flat = self._table(self.spec.arrange(images.cpu().resolve_neg()).flatten(1))
        # NumPy's threads wait busily for work, as torch's do: taking turns on the same cores cost a factor of four.
        with _BLAS_THREADS.changed(self._one_thread):
            answer = getattr(self.estimator, _METHODS[self.spec.outputs])(flat)
        return to_outputs(self._in_columns(answer), self.spec, x.device, len(x))

    def _table(self, flat: Tensor) -> Any:
        """A row an image (n, features) of its own, in the estimator's type and with the names of its columns."""
        rows = flat.to(torch.float64).round() if self.spec.dtype == "uint8" else flat.to(torch.float64)
        array = np.array(rows.numpy(), dtype=self.spec.dtype or np.float64, order="C")
        if self._columns is None:
            return array
        names, table = self._columns
        return table(array, columns=names)

    def _one_thread(self) -> Callable[[], None]:
        """Limits BLAS to one thread; returns what lifts the limit, from whichever thread is the last to go."""
        limiter = self._threads.limit(limits=1)
        self._give_up_control()

        def lift() -> None:
            limiter.restore_original_limits()
            self._give_up_control()

        return lift

    def _give_up_control(self) -> None:
        """Since version 3.8 threadpoolctl heeds the first thread to set a limit alone, until it ends a limit."""
        with self._threads.limit(limits=None):  # sets none
            pass

    def _in_columns(self, answer: Any) -> Any:
        """The estimator's answer in terms of columns 0 ... K - 1 of `classes_`."""
        if self.spec.outputs == "labels" and self._classes is not None:
            labels = answer.toarray() if hasattr(answer, "toarray") else np.asarray(answer)
            labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
            if labels.ndim != 1:
                return labels
            found = labels[:, None] == self._classes  # (n, K)
            return np.where(found.any(axis=1), found.argmax(axis=1), -1)  # -1 breaks the range of labels
        return answer


def _blas() -> ThreadpoolController:
    """The libraries of linear algebra that are loaded; the number of their threads belongs to the process."""
    return ThreadpoolController().select(user_api="blas")


def _classes(estimator: Any) -> np.ndarray | None:
    """The class of each column, None for a regressor or an estimator that is not fitted."""
    classes = getattr(estimator, "classes_", None)
    if getattr(estimator, "multilabel_", False):
        raise InvalidInput(f"{type(estimator).__name__} predicts several labels an image; give one of one label")
    if isinstance(classes, list):
        raise InvalidInput(f"{type(estimator).__name__} predicts {len(classes)} labels an image; give one of one label")
    return None if classes is None else np.asarray(classes)


def _offered(estimator: Any, classes: np.ndarray | None) -> list[str]:
    """The kinds of outputs that the estimator can give: values for a regressor, the others for a classifier."""
    classifies = classes is not None or hasattr(estimator, "predict_proba") or hasattr(estimator, "decision_function")
    kinds = ("logits", "probabilities", "labels") if classifies else ("values",)
    # Of scikit-learn's own, `n_features_in_` or `classes_` tells that it was fitted.
    fitted = hasattr(estimator, "n_features_in_") or classes is not None or not hasattr(estimator, "get_params")
    return [kind for kind in kinds if fitted and hasattr(estimator, _METHODS[kind])]


def _columns(estimator: Any) -> tuple[list[str], Callable[..., Any]] | None:
    """Names of the columns that the estimator was fitted on, and what makes a table; None for one without names."""
    names = getattr(estimator, "feature_names_in_", None)
    if names is None:
        return None
    try:
        from pandas import DataFrame
    except ImportError as error:
        raise InvalidInput(
            f"{type(estimator).__name__} was fitted on a table with named columns; run pip install pandas"
        ) from error
    return list(names), DataFrame


def _votes_one_vs_one(estimator: Any) -> bool:
    """Whether the decision function has a column a pair of classes, here or in the last step of a pipeline."""
    while True:
        if hasattr(estimator, "steps"):
            estimator = estimator.steps[-1][1]
        elif hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        else:
            return getattr(estimator, "decision_function_shape", None) == "ovo"

"""Estimators as they were fitted: on tables, in another order or type of numbers, by another library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from certibox.blackbox import as_blackbox, check_outputs
from certibox.errors import BadOutput, InvalidInput

SHAPE = (3, 4, 5)
IMAGES = torch.rand(60, *SHAPE, generator=torch.Generator().manual_seed(0))
TARGETS = np.arange(60) % 3


def flat(layout: str) -> np.ndarray:
    images = IMAGES.permute(0, 2, 3, 1) if layout.endswith("NHWC") else IMAGES
    return images.flatten(1).double().numpy()


@pytest.mark.parametrize("fitted_on", ["NCHW", "NHWC"])
def test_an_estimator_keeps_its_accuracy_in_the_order_that_it_was_fitted_on(fitted_on: str) -> None:
    model = KNeighborsClassifier(1).fit(flat(fitted_on), TARGETS)
    accuracy = {
        layout: (as_blackbox(model, "labels", layout=layout)(IMAGES).numpy() == TARGETS).mean()
        for layout in ("NCHW", "flat", "NHWC", "flat-NHWC")
    }
    right = {"NCHW": ("NCHW", "flat"), "NHWC": ("NHWC", "flat-NHWC")}[fitted_on]
    assert all((accuracy[layout] == 1) == (layout in right) for layout in accuracy)


def test_an_estimator_of_named_columns_gets_them_and_says_nothing() -> None:
    names = [f"pixel {i}" for i in range(60)]
    frame = pd.DataFrame(flat("NCHW"), columns=names)
    some = ColumnTransformer([("scaled", StandardScaler(), names[10:30])])  # asks for columns by name
    for model in (LogisticRegression(), make_pipeline(some, LogisticRegression())):
        model.fit(frame, TARGETS)
        box = as_blackbox(model, "probabilities")
        np.testing.assert_allclose(box(IMAGES).numpy(), model.predict_proba(frame))


class Picky:
    """As of another library: no `get_params`, single precision alone, sparse answers."""

    classes_ = np.array([0, 1, 2])

    def __init__(self, dtype: str = "float32") -> None:
        self.dtype = dtype

    def predict_proba(self, rows: np.ndarray) -> Any:
        assert rows.dtype == self.dtype
        assert rows.flags.writeable
        rows *= 0
        return sparse.csr_matrix(np.eye(3)[np.arange(len(rows)) % 3])

    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.predict_proba(rows).toarray().argmax(1)[:, None]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8"])
def test_any_object_with_the_methods_of_an_estimator_is_asked_in_its_type(dtype: str) -> None:
    before = IMAGES.clone()
    model = Picky(dtype)
    assert as_blackbox(model, "probabilities", dtype=dtype)(IMAGES).argmax(1).tolist() == TARGETS.tolist()
    assert as_blackbox(model, "labels", dtype=dtype)(IMAGES).tolist() == TARGETS.tolist()
    assert torch.equal(IMAGES, before)


def test_a_class_that_says_nothing_of_its_classes_is_taken_at_its_word() -> None:
    class Bare:
        def predict_proba(self, rows: np.ndarray) -> np.ndarray:
            return np.full((len(rows), 2), 0.5)

        def predict(self, rows: np.ndarray) -> np.ndarray:
            return np.ones(len(rows))

    assert as_blackbox(Bare(), "probabilities")(IMAGES[:2]).tolist() == [[0.5, 0.5]] * 2
    assert as_blackbox(Bare(), "labels", num_classes=2)(IMAGES[:2]).tolist() == [1, 1]
    with pytest.raises(InvalidInput, match="this Bare offers probabilities, labels"):
        as_blackbox(Bare(), "logits")


class OnlyPredict:
    def predict(self, x: Any, verbose: int = 1) -> Any:
        return x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            OnlyPredict(),
            r"model is a OnlyPredict, whose predict .*; give a function such as lambda images: model.predict",
        ),
        (make_pipeline(StandardScaler(), LogisticRegression()), r"Pipeline offers none \(is it fitted\?\)"),
        (
            MultiOutputClassifier(LogisticRegression()).fit(flat("flat"), np.stack([TARGETS, TARGETS], 1)),
            "MultiOutputClassifier predicts 2 labels an image",
        ),
        (
            OneVsRestClassifier(LogisticRegression()).fit(flat("flat"), np.eye(3, dtype=int)[TARGETS]),
            "OneVsRestClassifier predicts several labels an image",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_with_what_to_do(model: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        as_blackbox(model, "probabilities")


def test_several_labels_an_image_are_no_probabilities_of_one() -> None:
    class Tags(Picky):
        def predict_proba(self, rows: np.ndarray) -> np.ndarray:
            return np.full((len(rows), 3), 0.7)

    box = as_blackbox(Tags(), "probabilities")
    with pytest.raises(BadOutput, match=r"must sum to 1, got 2.1; these look like independent sigmoids"):
        check_outputs(box(IMAGES), 60, box.spec)


def test_images_of_any_precision_are_answered() -> None:
    box = as_blackbox(LogisticRegression().fit(flat("flat"), TARGETS), "logits")
    for images in (
        IMAGES.double(),
        IMAGES.bfloat16(),
        IMAGES.clone().requires_grad_(),
        torch.complex(IMAGES, -IMAGES).conj().imag,
    ):
        torch.testing.assert_close(box(images), box(IMAGES), atol=0.2, rtol=0)

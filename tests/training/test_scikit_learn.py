"""The scikit-learn face: the library's own contract, and the same certificates as the functions below it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

import certibox as cb
from certibox.commands.certifying import Certify, Predict
from certibox.commands.options import RuleOptions, ScheduleOptions
from certibox.commands.training import Train
from certibox.errors import BudgetExceeded, InvalidImages, InvalidInput

SHAPE = (1, 4, 4)


def pictures(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Flat images (count, 16) on [0, 1] whose class is where they are bright: the upper or the lower half."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count)
    x = rng.uniform(0, 0.3, (count, 2, 8))
    x[np.arange(count), y] += 0.7
    return x.reshape(count, 16), y


def fitted_model(classes: Any = (0, 1)) -> LogisticRegression:
    x, y = pictures(60)
    return LogisticRegression().fit(x, np.array(classes)[y])


def denoiser() -> torch.nn.Module:
    """The same small one each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Conv2d(1, 1, 3, padding=1)


def tiny(model: Any = None, **change: Any) -> cb.CertifiedClassifier:
    small: dict[str, Any] = {"image_shape": SHAPE, "epochs": 1, "denoise_epochs": 1, "autoencoder_epochs": 1, "d_z": 4}
    small |= {"n": 400, "n_predict": 100, "radii": (0.25,), "denoiser": denoiser()}
    return cb.CertifiedClassifier(model or fitted_model(), sigma=0.25, **small | change)


class AnyData(cb.CertifiedClassifier):
    """Any table as images of 16 pixels on [0, 1], for the checks of scikit-learn, whose data are no images."""

    def _as_images(self, x: np.ndarray) -> np.ndarray:
        pixels = 1 / (1 + np.exp(-x.reshape(len(x), -1).astype(np.float64)))
        return super()._as_images(np.tile(pixels, 16)[:, :16].astype(np.float32))


CLASSES = "classes are those of the fitted estimator, and the labels of this check are others"
FAILED = {
    "check_classifiers_classes": CLASSES,
    "check_classifiers_one_label": CLASSES,
    "check_classifiers_train": CLASSES,
    "check_estimators_overwrite_params": "joblib's hash of a fitted model is another than that of its copy",
    "check_positive_only_tag_during_fit": "negative numbers are refused by the class itself, see below",
}


def for_checks() -> AnyData:
    parameters = tiny(method="DS", denoise_epochs=0, denoiser="dncnn").get_params(deep=False)
    return AnyData(**parameters)


@parametrize_with_checks([for_checks()], expected_failed_checks=lambda _: FAILED)
def test_the_contract_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


def test_fitting_changes_nothing_of_the_estimator() -> None:
    model = fitted_model()
    before = {name: np.copy(value) for name, value in vars(model).items()}
    tiny(model).fit(pictures(20)[0])
    assert before.keys() == vars(model).keys()
    assert all(np.array_equal(value, vars(model)[name]) for name, value in before.items())


def test_defaults_are_those_of_the_commands() -> None:
    ours = cb.CertifiedClassifier(fitted_model(), sigma=0.25).get_params(deep=False)
    theirs = {field.name: field.default for command in (Certify, Train) for field in fields(command)}
    for name in ("method", "epochs", "autoencoder_epochs", "d_z", "denoiser", "alpha", "radii"):
        assert ours[name] == theirs[name], name
    n0, n = RuleOptions().sample_sizes()
    usual = {"n0": n0, "n": n, "denoise_epochs": ScheduleOptions().usual_denoise_epochs}
    usual |= {"lr": ScheduleOptions().build_schedule().phases[-1].lr}
    usual |= {"n_predict": next(field.default for field in fields(Predict) if field.name == "n")}
    assert {name: ours[name] for name in usual} == usual


def test_what_is_fitted_certifies_as_the_functions_do() -> None:
    x, y = pictures(40, seed=1)
    model = tiny(method="DS").fit(x[:30])
    rows = model.certify(x[30:], y[30:])
    smoothed, rule = model.defense_.smoothed(), cb.EProcess(radii=(0.25,))
    for row, image in zip(rows, x[30:].reshape(-1, *SHAPE), strict=True):
        tensor = torch.from_numpy(image.astype(np.float32))
        found = smoothed.certify(tensor, n0=25, n=400, alpha=0.001, seed=0, rule=rule)
        assert (row.predict, row.radius, row.counts) == (found.label, found.radius, found.counts)
    assert [row.label for row in rows] == y[30:].tolist()
    assert cb.certified_accuracy(rows, [0.25]) == np.mean([row.correct is True and row.radius >= 0.25 for row in rows])


def test_queries_are_counted_by_phase_and_bounded_in_all() -> None:
    x, y = pictures(30, seed=1)
    model = tiny().fit(x)
    trained = sum(model.queries_.values())
    assert trained > 0
    rows = model.certify(x[:3], y[:3])
    assert model.queries_["certify"] == sum(row.queries for row in rows)
    model.predict(x[:2])
    assert model.queries_["predict"] == 200
    with pytest.raises(BudgetExceeded):
        tiny(budget=trained - 1).fit(x)
    short = tiny(budget=trained + 150).fit(x)
    with pytest.raises(BudgetExceeded):
        short.predict(x[:2])


def test_an_abstention_is_a_label_of_its_own_and_counts_as_wrong() -> None:
    class Halves(LogisticRegression):
        """One that cannot decide: every answer is 1/2 and 1/2, moved by the first pixel's noise."""

        def predict_proba(self, X: Any) -> np.ndarray:
            first = (np.asarray(X)[:, 0] > 0.5).astype(float)
            return np.stack([first, 1 - first], axis=1)

    x, y = pictures(20)
    x[:, 0] = 0.5  # the noise decides
    for classes, wanted in (((0, 1), -1), (("cat", "dog"), "abstain")):
        named = np.array(classes)[y]
        model = tiny(Halves().fit(x, named), method="DS", denoise_epochs=0, n_predict=20).fit(x)
        model._smoothed = cb.SmoothedClassifier(model.client_, 2, 0.25)  # the bare box
        found = model.predict(x[:8])
        assert set(found.tolist()) <= {*classes, wanted}
        assert wanted in found.tolist()
        assert model.score(x[:8], named[:8]) == np.mean(found == named[:8])
    with pytest.raises(InvalidInput, match="abstain_label is 1, which is a class"):
        tiny(abstain_label=1).fit(x)


def test_words_are_classes() -> None:
    x, y = pictures(30, seed=2)
    names = np.array(["lower", "upper"])[y]
    model = tiny(fitted_model(("lower", "upper")), method="DS", denoise_epochs=0).fit(x)
    assert model.classes_.tolist() == ["lower", "upper"]
    assert [row.label for row in model.certify(x[:4], names[:4])] == y[:4].tolist()
    with pytest.raises(InvalidInput, match="label 'side' is none of the classes"):
        model.certify(x[:1], ["side"])
    with pytest.raises(InvalidInput, match="y has 2 labels for 1 images"):
        model.certify(x[:1], names[:2])


def test_clones_keep_the_fitted_estimator_and_nothing_of_the_defense() -> None:
    model = tiny(method="DS").fit(pictures(20)[0])
    copied: Any = clone(model)
    assert copied.estimator is model.estimator
    assert not hasattr(copied, "defense_")
    assert copied.get_params(deep=False).keys() == model.get_params(deep=False).keys()
    with pytest.raises(NotFittedError):
        copied.predict(pictures(2)[0])
    with pytest.raises(NotFittedError):
        tiny(LogisticRegression()).fit(pictures(20)[0])


def test_a_search_and_a_pipeline_take_it() -> None:
    x, y = pictures(24, seed=3)
    search = GridSearchCV(tiny(method="DS", denoise_epochs=0), {"sigma": [0.1, 0.25]}, cv=2).fit(x, y)
    assert set(search.cv_results_["param_sigma"].tolist()) == {0.1, 0.25}
    whole = make_pipeline(FunctionTransformer(lambda x: x / 255), tiny(method="DS", denoise_epochs=0))
    assert whole.fit(255 * x).predict(255 * x[:2]).shape == (2,)


@pytest.mark.parametrize(
    ("change", "x", "words"),
    [
        ({"image_shape": None}, np.zeros((4, 16)), r"wanted image_shape=\(c, h, w\)"),
        ({}, np.zeros((4, 15)), "15 features, which are no image of shape"),
        ({}, np.full((4, 16), 255.0), r"above 1: 255 to 255; wanted pixels on \[0, 1\]"),
        ({}, np.full((4, 16), -0.1), r"Negative values in data passed to X.*wanted pixels on"),
        ({}, np.zeros((4, 4, 4)), r"wanted \(m, c, h, w\)"),
    ],
)
def test_what_is_no_image_is_refused(change: dict[str, Any], x: np.ndarray, words: str) -> None:
    with pytest.raises(InvalidImages, match=words):
        tiny(**change).fit(x)


def test_images_need_no_shape_and_give_the_same() -> None:
    x, _ = pictures(20)
    flat = tiny(method="DS").fit(x).predict(x[:3])
    whole = tiny(method="DS", image_shape=None).fit(x.reshape(-1, *SHAPE))
    assert whole.predict(x[:3].reshape(-1, *SHAPE)).tolist() == flat.tolist()


def test_an_interrupted_fit_goes_on_where_it_has_a_folder(tmp_path: Any) -> None:
    x, _ = pictures(20)
    first = tiny(out=tmp_path).fit(x)
    again = tiny(out=tmp_path).fit(x)
    assert again.queries_ == first.queries_
    assert torch.equal(
        *(
            m.defense_.robustify(torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0)))
            for m in (first, again)
        )
    )


def test_predictions_end_as_soon_as_they_are_proven_unless_their_number_is_given() -> None:
    x, y = pictures(40, seed=1)
    model = tiny(method="DS", n_predict=None).fit(x[:30], y[:30])
    smoothed = model.defense_.smoothed()
    early = [
        smoothed.predict(
            torch.from_numpy(image.astype(np.float32)), n=1500, alpha=0.001, seed=0, rule=cb.RankVerification(), n0=5
        )
        for image in x[30:].reshape(-1, *SHAPE)
    ]
    before = model.client_.queries
    labels = model.predict(x[30:])
    assert model.client_.queries - before == sum(one.queries for one in early)
    assert [one.label is None for one in early] == [label == -1 for label in labels]

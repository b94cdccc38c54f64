"""Two models have one identity exactly if nothing that decides an answer differs, in this process and in the next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler
from sklearn.svm import SVC
from torch import Tensor, nn

from certibox.blackbox import as_blackbox, is_told_apart
from certibox.blackbox.identity import digest_of, joined
from places import ROOT

SCALE = 2.0


def scaled(x: Any) -> Any:
    return SCALE * x


class Net(nn.Module):
    """Linear, with a setting, a buffer that is never saved, a helper of its module, and a counter."""

    def __init__(self, power: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.linear.load_state_dict({"weight": torch.arange(18.0).reshape(3, 6), "bias": torch.zeros(3)})
        self.register_buffer("shift", torch.ones(3), persistent=False)
        self.power, self.calls = power, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return scaled(self.inner(x.flatten(1))) ** self.power + self.shift

    def inner(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Other(Net):
    def inner(self, x: Tensor) -> Tensor:
        return -self.linear(x)


def in_text(body: str) -> type[nn.Module]:
    """A class whose code stands elsewhere: other lines, another file, the same or another meaning."""
    scope: dict[str, Any] = {"nn": nn, "F": nn.functional}
    exec(body, scope)
    return scope["Text"]


TEXT = """
class Text(nn.Module):
    def forward(self, x):
        return F.relu(x.flatten(1)) * (2 if x.ndim in {3, 4} else 1)
"""


def changed(change: Callable[[Any], object], of: Callable[[], Any] = Net) -> Any:
    model = of()
    change(model)
    return model


DIFFERENT: dict[str, Callable[[], Any]] = {
    "another setting": partial(Net, 2),
    "another forward's helper": Other,
    "another weight": lambda: changed(lambda net: net.linear.bias.data.add_(1)),
    "another unsaved buffer": lambda: changed(lambda net: net.shift.add_(1)),
    "a hook": lambda: changed(lambda net: net.linear.register_forward_hook(lambda module, given, came: -came)),
    "a hook before": lambda: changed(lambda net: net.register_forward_pre_hook(lambda module, given: None)),
    "another forward set on it": lambda: changed(lambda net: setattr(net, "forward", net.inner)),
    "another precision": lambda: Net().double(),
}
SAME: dict[str, Callable[[], Any]] = {
    "built again": Net,
    "in training": lambda: Net().train(),
    "asked before": lambda: changed(lambda net: net(torch.zeros(1, 6))),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_changes_an_answer_changes_the_identity(name: str) -> None:
    assert digest_of(DIFFERENT[name]()) != digest_of(Net())


@pytest.mark.parametrize("name", SAME)
def test_what_changes_no_answer_keeps_the_identity(name: str) -> None:
    assert digest_of(SAME[name]()) == digest_of(Net())


def test_a_constant_that_forward_reads_is_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest_of(Net())
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert digest_of(Net()) != before


def test_code_counts_and_lines_comments_and_documentation_do_not() -> None:
    first = digest_of(in_text(TEXT)())
    moved = TEXT.replace("        return", '        """Says more."""\n\n        # and more\n        return')
    assert digest_of(in_text("\n\n" + moved)()) == first
    for old, new in {"relu": "elu", "{3, 4}": "{3, 5}", "else 1": "else 0", "flatten(1)": "flatten(2)"}.items():
        assert digest_of(in_text(TEXT.replace(old, new))()) != first


@pytest.mark.parametrize(
    ("one", "another"),
    [
        (nn.Conv2d(1, 1, 3, stride=1, bias=False), nn.Conv2d(1, 1, 3, stride=2, bias=False)),
        (nn.Dropout(0.1), nn.Dropout(0.2)),
        (nn.ReLU(), nn.GELU()),
        (nn.Sequential(nn.ReLU(), nn.Tanh()), nn.Sequential(nn.Tanh(), nn.ReLU())),
        (nn.AvgPool2d(2), nn.AvgPool2d(3)),
    ],
    ids=["stride", "p", "class", "order", "kernel"],
)
def test_settings_of_modules_of_torch_count(one: nn.Module, another: nn.Module) -> None:
    another.load_state_dict(one.state_dict())
    assert digest_of(one) != digest_of(another)


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm])
def test_weights_that_are_computed_from_others_do_not_count_by_themselves(norm: Callable[..., nn.Module]) -> None:
    one, another = norm(nn.Linear(6, 3)), norm(nn.Linear(6, 3))
    assert digest_of(one) != digest_of(another)
    another.load_state_dict(one.state_dict())
    assert digest_of(one) == digest_of(another)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_programs_are_told_by_their_program() -> None:
    x = torch.zeros(2, 1, 2, 3)
    for make in (
        lambda net: torch.jit.trace(net, x),
        lambda net: torch.jit.freeze(torch.jit.trace(net.eval(), x)),
        lambda net: torch.export.export(net, (x,)).module(),
    ):
        plain = [make(nn.Sequential(nn.Flatten(), Net().linear)) for _ in range(2)]
        other = make(nn.Sequential(nn.Flatten(), Net().linear, nn.ReLU()))
        assert digest_of(plain[0]) == digest_of(plain[1]) != digest_of(other)


@pytest.mark.parametrize("name", ["test", "profile", "mine", "__main__"])
def test_a_file_of_ones_own_counts_by_its_code_whatever_it_is_called(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(body: str) -> nn.Module:
        module = ModuleType(name)
        module.__file__ = str(tmp_path / f"{name}.py")
        monkeypatch.setitem(sys.modules, name, module)
        vars(module).update(nn=nn, F=nn.functional)
        exec(body, vars(module))
        return module.Text()

    first = digest_of(loaded(TEXT))
    assert digest_of(loaded(TEXT)) == first == digest_of(in_text(TEXT)())
    assert digest_of(loaded(TEXT.replace("relu", "elu"))) != first


# Estimators


def rooted(pixels: Any) -> Any:
    return np.sqrt(pixels) * SCALE


def squared(pixels: Any) -> Any:
    return np.sqrt(pixels) ** SCALE


ESTIMATORS: dict[str, Any] = {
    "forest": RandomForestClassifier(3, random_state=0),
    "boosted": HistGradientBoostingClassifier(max_iter=2, random_state=0),
    "neighbours": KNeighborsClassifier(algorithm="kd_tree"),
    "function": make_pipeline(FunctionTransformer(rooted), StandardScaler(), SVC()),
    "search": GridSearchCV(make_pipeline(StandardScaler(), SVC()), {"svc__C": [1, 2]}, cv=2),
    "votes": VotingClassifier([("a", LogisticRegression()), ("b", GaussianNB())]),
    "columns": make_pipeline(ColumnTransformer([("a", MinMaxScaler(), [0, 2])]), GaussianNB()),
}
PIXELS = np.random.default_rng(0).random((40, 6))
LABELS = np.arange(40) % 2


def fitted(name: str, pixels: np.ndarray = PIXELS) -> Any:
    estimator: Any = clone(ESTIMATORS[name])
    return estimator.fit(pixels, LABELS)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_is_what_it_learned(name: str) -> None:
    model = fitted(name)
    before = digest_of(model)
    model.predict(PIXELS)
    assert digest_of(model) == before == digest_of(fitted(name))
    assert digest_of(fitted(name, PIXELS**2)) != before


def test_settings_of_an_estimator_count_and_the_number_of_its_threads_does_not() -> None:
    model = fitted("neighbours")
    before = digest_of(model)
    assert digest_of(model.set_params(n_jobs=2)) == before
    assert digest_of(model.set_params(n_neighbors=3)) != before
    other = fitted("function").set_params(functiontransformer__func=squared)
    assert digest_of(other) != digest_of(fitted("function"))


def test_random_state_objects_do_not_count_but_what_they_made_does() -> None:
    first, again, other = (
        RandomForestClassifier(3, random_state=np.random.RandomState(seed)).fit(PIXELS, LABELS) for seed in (0, 0, 1)
    )
    first.random_state.random_sample(9)
    assert digest_of(first) == digest_of(again) != digest_of(other)


def all_identities() -> dict[str, str]:
    """The identity of every model above, as another process finds it too."""
    models = {name: fitted(name) for name in ESTIMATORS} | {"net": Net(), "text": in_text(TEXT)()}
    return {name: as_blackbox(model, "labels", num_classes=2).spec.identity or "" for name, model in models.items()}


def test_another_process_finds_the_same_identities() -> None:
    code = "import json; from blackbox.test_identity import all_identities as found; print(json.dumps(found()))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path]), "PYTHONHASHSEED": "7"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(ran.stdout) == all_identities()


# Any value


def test_values_are_told_apart_by_type_and_order_but_not_by_what_lies_between_fields() -> None:
    kinds = [1, 1.0, True, "1", b"1", None, (1,), (1, 2), (2, 1), {1: 2}, {2: 1}, {1, 2}, np.int8(1), np.ones(1)]
    assert len({digest_of(value) for value in kinds}) == len(kinds)
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    padded = np.dtype({"names": ["a"], "formats": ["i4"], "itemsize": 16})
    records = [np.full(48, fill, "u1").view(padded) for fill in (1, 2)]
    for record in records:
        record["a"] = 5
    assert digest_of(records[0]) == digest_of(records[1])
    masked = [np.ma.array([1.0, hidden], mask=[False, True]) for hidden in (2.0, 3.0)]
    assert digest_of(masked[0]) == digest_of(masked[1]) != digest_of(np.ma.array([1.0, 2.0]))


def test_circles_depth_and_what_cannot_be_saved_have_an_identity() -> None:
    def circle(number: int) -> list[Any]:
        found: list[Any] = [number]
        found.append(found)
        return found

    def nested(depth: int) -> list[Any]:
        return [nested(depth - 1)] if depth else []

    assert digest_of(circle(1)) == digest_of(circle(1)) != digest_of(circle(2))
    assert digest_of(nested(400)) == digest_of(nested(400))
    with open(__file__) as one, open(__file__) as another:
        assert digest_of([one]) == digest_of([another])


@pytest.mark.filterwarnings("ignore:.*quantize")
def test_sparse_quantised_and_strided_tensors_count_by_their_numbers() -> None:
    dense = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    assert digest_of(dense.to_sparse()) == digest_of(dense) == digest_of(dense.T.contiguous().T)
    quantised = [torch.quantize_per_tensor(dense, scale, 0, torch.qint8) for scale in (0.5, 0.5, 0.25)]
    assert digest_of(quantised[0]) == digest_of(quantised[1]) != digest_of(quantised[2])


# Boxes


def test_a_given_identity_is_joined_with_what_the_adapter_sees() -> None:
    own = as_blackbox(Net(), "logits").spec.identity
    one, two = (as_blackbox(Net(), "logits", identity=version).spec.identity for version in ("1", "2"))
    assert len({own, one, two, as_blackbox(Other(), "logits", identity="1").spec.identity}) == 4
    assert one == joined("1", own)
    assert (joined(None, None), joined("1", None), joined(None, "2")) == (None, "1", "2")


def test_a_function_has_the_identity_that_was_given_and_no_other() -> None:
    class Asked:
        def method(self, images: np.ndarray) -> np.ndarray:
            return images

        __call__ = method

    for function in (rooted, partial(rooted), Asked().method, Asked()):
        box, named = as_blackbox(function, "logits"), as_blackbox(function, "logits", name="mine")
        assert (box.spec.identity, is_told_apart(box), is_told_apart(named)) == (None, False, True)
        assert as_blackbox(function, "logits", identity="3").spec.identity == "3"
    assert as_blackbox(partial(rooted), "logits").spec.name == "rooted"


def test_what_compiling_leaves_on_a_module_is_no_setting() -> None:
    first, net = digest_of(Net()), Net()
    net._is_torch_compile = True  # pyright: ignore[reportArgumentType]  # as torch.compile does
    assert digest_of(net) == first

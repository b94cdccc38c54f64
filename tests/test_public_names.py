"""The names of `import certibox as cb`: adding one or taking one away is a decision, made in `NAMES`."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

import pytest

import certibox
from places import ROOT

MODULES = {"certification", "confidence", "errors", "networks", "reconstruction", "report", "serving"}
NAMES = {
    "box": {
        "BlackBox",
        "BoxSpec",
        "Connection",
        "Endpoint",
        "Fingerprint",
        "QueryClient",
        "RankVerification",
        "RecordedBox",
        "as_blackbox",
    },
    "images": {"Images", "images_from_arrays", "load_images", "load_restricted_imagenet"},
    "estimators": {"CGE", "ESTIMATORS", "RGE", "GradientEstimator", "Guided", "Orthogonal", "Subset"},
    "autoencoders": {
        "Autoencoder",
        "fitting_autoencoder",
        "import_authors",
        "load_autoencoder",
        "pretrain_autoencoder",
        "save_autoencoder",
    },
    "training": {
        "CertifiedClassifier",
        "Defense",
        "MLflowTracker",
        "Phase",
        "SCHEDULES",
        "Schedule",
        "TensorBoardTracker",
        "Tracker",
        "TrainingSettings",
        "WandbTracker",
        "load_defense",
        "one_cycle",
        "paper_finetune",
        "paper_scratch",
        "train",
        "train_classifier",
    },
    "certificates": {
        "AlphaSpending",
        "Certificate",
        "CertificateRow",
        "CertificateRows",
        "EProcess",
        "Gaussian",
        "Prediction",
        "Rule",
        "Sampling",
        "SmoothedClassifier",
        "StoppingRule",
        "at_alpha",
        "certified_accuracy",
        "certified_accuracy_interval",
        "certify_dataset",
        "merge",
    },
    "planning": {"Cost", "plan"},
    "facts": {"__version__"},
}
DATA = {"ESTIMATORS", "Rule", "SCHEDULES"}  # values, not things to call: a docstring would be that of their type
PUBLIC = MODULES.union(*NAMES.values())


def stub_names() -> set[str]:
    """The names that `__init__.pyi` declares, which type checkers and the lazy loader read."""
    tree = ast.parse((ROOT / "src" / "certibox" / "__init__.pyi").read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    declared = {
        node.target.id for node in tree.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return imported | declared


def test_the_names_are_those_decided_on() -> None:
    assert stub_names() == PUBLIC
    assert set(vars(certibox)["__all__"]) == set(dir(certibox)) == PUBLIC - {"__version__"}


def test_no_name_is_listed_twice() -> None:
    groups = [MODULES, *NAMES.values()]
    assert sum(map(len, groups)) == len(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_name_loads_and_explains_itself(name: str) -> None:
    value = getattr(certibox, name)
    if name in DATA | NAMES["facts"]:
        assert value
        return
    own = value.__doc__  # None where only a base has one
    assert own
    assert len(own.split()) >= 3
    if inspect.isclass(value):  # the one that `dataclass` writes is the signature
        assert not own.startswith(f"{value.__name__}(")
    assert isinstance(value, ModuleType) == (name in MODULES)


def test_another_name_is_refused_as_python_refuses_it() -> None:
    with pytest.raises(AttributeError, match="trian"):
        certibox.trian  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]

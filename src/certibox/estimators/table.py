"""The estimators by name: built from plain settings, and written down as plain values, in one place."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from certibox.errors import InvalidInput, did_you_mean, one_of
from certibox.estimators.differences import GradientEstimator
from certibox.estimators.guided import Guided
from certibox.estimators.linear import CGE, RGE, Orthogonal, Subset

ESTIMATORS: dict[str, type[Guided | CGE | RGE | Orthogonal]] = {
    "guided": Guided,
    "cge": CGE,
    "rge": RGE,
    "orthogonal": Orthogonal,
}


def build_estimator(name: str, *, share: float = 1.0, **settings: Any) -> GradientEstimator:
    """An estimator of the table `ESTIMATORS` from plain settings, as a YAML file or a command line gives them.

    Args:
        name: Name of the estimator: guided, cge, rge or orthogonal.
        share: Share of each batch that gets an estimate; below 1 the estimator is wrapped in `Subset`.
        settings: Fields of the estimator, such as q, mu and central; a value of None leaves the field at its default.

    Returns:
        The estimator.

    Raises:
        InvalidInput: The name is unknown, a setting is unknown, missing or out of its range.
    """
    if name not in ESTIMATORS:
        raise InvalidInput(f"estimator is {name!r}; wanted {one_of(name, ESTIMATORS)}")
    known = {item.name: item for item in fields(ESTIMATORS[name])}
    given = {key: value for key, value in settings.items() if value is not None}
    for key in given:
        if key not in known:
            meant = did_you_mean(key, known)
            raise InvalidInput(f"{name} has no setting {key!r}; wanted some of {', '.join(known)}{meant}")
    missing = [key for key, item in known.items() if item.default is MISSING and key not in given]
    if missing:
        raise InvalidInput(f"{name} got no {' and no '.join(missing)}; wanted {', '.join(missing)} for {name}")
    made = ESTIMATORS[name](**given)
    return made if share == 1 else Subset(made, share)


def require_estimator(value: object) -> None:
    """Refuse what estimates no gradient, such as the name of an estimator.

    Args:
        value: An object that is to have `estimate` and `cost`; None is refused too.

    Raises:
        InvalidInput: It has not.
    """
    if not (hasattr(value, "estimate") and hasattr(value, "cost")) or isinstance(value, type):
        names = {kind.__name__: kind for kind in ESTIMATORS.values()}
        meant = did_you_mean(value, names) if isinstance(value, str) else ""
        raise InvalidInput(f"estimator is {value!r}; wanted an estimator such as certibox.Guided(){meant}")


def estimator_record(estimator: GradientEstimator) -> dict[str, Any]:
    """An estimator as the plain values that a run keeps: the name of its type, and its fields.

    Args:
        estimator: An estimator of the table, or one of your own, whose attributes are its fields.

    Returns:
        `name` and the fields; a value that is no number or text is written as `repr` does. It names work on disk, so
        neither its keys nor its spelling may change.
    """
    values = getattr(estimator, "__dict__", {})
    plain = {key: value if isinstance(value, int | float | str) else repr(value) for key, value in values.items()}
    return {"name": type(estimator).__name__, **plain}

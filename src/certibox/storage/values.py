"""What counts as a whole number, a number or a yes or no in a setting, and one wording for what does not."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real

from certibox.errors import InvalidInput, one_of

MOST = 10**9  # of anything that is counted: it tells a slip of the keyboard from a long run
SEEDS = 2**63  # seeds lie below it, and above minus it
LONGEST = 60  # characters of a value in a message


def whole(name: str, value: object, least: int, most: int = MOST, wanted: str = "") -> int:
    """A whole number within bounds, as Python's own int.

    Args:
        name: Name of the setting in the message.
        value: Value that was given.
        least: Smallest number that makes sense.
        most: Largest number that makes sense.
        wanted: Words for what the setting takes; by default a whole number, at least `least`.

    Raises:
        InvalidInput: The value is no whole number, or out of its bounds.
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        count = int(value)
        if least <= count <= most:
            return count
        if count > most:
            wanted = f"at most {most:,}"
    raise InvalidInput(f"{name} is {shown(value)}; wanted {wanted or f'a whole number, at least {least}'}")


def number(
    name: str, value: object, wanted: str, *, low: float = -math.inf, high: float = math.inf, above: bool = False
) -> float:
    """A finite number within bounds: an int or a float as it came, anything else that is real as a float.

    Args:
        name: Name of the setting in the message.
        value: Value that was given.
        wanted: Words for what the setting takes.
        low: Smallest number that makes sense.
        high: Largest number that makes sense.
        above: Whether `low` itself is refused.

    Raises:
        InvalidInput: The value is no finite number, or out of its bounds.
    """
    try:
        real = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        real = math.inf
    if not (math.isfinite(real) and low <= real <= high) or (above and real == low):
        raise InvalidInput(f"{name} is {shown(value)}; wanted {wanted}")
    return value if isinstance(value, int | float) else real


def known(name: str, value: object, names: Iterable[str]) -> str:
    """A name of a table.

    Args:
        name: Name of the setting in the message.
        value: Value that was given.
        names: Names of the table, in its order.

    Raises:
        InvalidInput: The value is no such name.
    """
    table = list(names)
    if not isinstance(value, str) or value not in table:
        raise InvalidInput(f"{name} is {shown(value)}; wanted {one_of(value, table)}")
    return value


def settle(frozen: object, **values: object) -> None:
    """Give fields of a frozen dataclass the values that were checked, while it is being made.

    Args:
        frozen: Instance of a frozen dataclass.
        values: Values of its fields, by name.
    """
    for name, value in values.items():
        object.__setattr__(frozen, name, value)


def yes_or_no(name: str, value: object) -> bool:
    """True or false, and nothing that merely counts as one of them.

    Args:
        name: Name of the setting in the message.
        value: Value that was given.

    Raises:
        InvalidInput: The value is neither.
    """
    if not isinstance(value, bool):
        raise InvalidInput(f"{name} is {shown(value)}; wanted True or False")
    return value


def seed(value: object, name: str = "seed") -> int:
    """A seed of random draws.

    Args:
        value: Value that was given.
        name: Name of the setting in the message.

    Raises:
        InvalidInput: The value is no whole number, or needs more than 64 bits.
    """
    return whole(name, value, 1 - SEEDS, SEEDS - 1, f"a whole number below {SEEDS:,}, such as 0")


def shown(value: object) -> str:
    """A value in a message: on one line, and nothing long in full.

    Args:
        value: Value of any kind, which may not even have a text.
    """
    if isinstance(value, int) and abs(value) >= 10**LONGEST:
        return "a number of too many digits"
    if isinstance(value, Real) and not isinstance(value, int):
        value = float(value)
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a stranger's object
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"

"""Times as options have them: a number with its unit."""

from __future__ import annotations

import re

from certibox.errors import InvalidInput
from certibox.queries.flow import SECONDS

_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|d)")


def seconds_of(name: str, text: str) -> float:
    """The seconds of a time such as 30s, 10min, 1h or 1d.

    Args:
        name: Name of the option.
        text: Its value.

    Raises:
        InvalidInput: It is no such time.
    """
    found = _TIME.fullmatch(text.strip())
    if found is None or float(found[1]) <= 0:
        raise InvalidInput(f"{name} is {text!r}; wanted a time such as 30s, 10min, 1h or 1d")
    return float(found[1]) * SECONDS[found[2]]

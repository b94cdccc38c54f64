"""Fields of a command's options: one is one flag and one key of a YAML file. No torch.

Beside its fields a class of options may have a table `NEEDS`: which of them are read only together with others, see
`require_effect`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from certibox.errors import InvalidInput

LARGEST = 2**63 - 1  # of whole numbers: what files, generators and SQLite can hold


def option(
    text: str,
    default: Any = MISSING,
    *,
    positional: bool = False,
    advanced: bool = False,
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """A field with its help text; without a default it is required.

    Args:
        text: What the help says of it.
        default: Its value where none is given.
        positional: Whether it is given without a flag.
        advanced: Whether the help shows it among what few need.
        least: Least number that it takes.
        most: Largest number that it takes.
    """
    facts = {"help": text, "positional": positional, "advanced": advanced, "least": least, "most": most}
    return field(default=default, metadata=facts, kw_only=True)


def require_range(options: Any) -> None:
    """Raise `InvalidInput` for a number beyond its option's range, or a text that no file or record can hold.

    Args:
        options: Options of a command.
    """
    for item in fields(options):
        values = getattr(options, item.name)
        for value in values if isinstance(values, list) else [values]:
            if wanted := _wanted(value, item.metadata.get("least"), item.metadata.get("most")):
                raise InvalidInput(
                    f"{item.name} {'holds' if values is not value else 'is'} {_shown(value)}; wanted {wanted}"
                )


def _wanted(value: Any, least: float | None, most: float | None) -> str | None:
    """What a value should be; None for one that is so."""
    if isinstance(value, str):
        return None if _is_text(value) else "text in UTF-8, without control characters"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if least is not None and value < least:
        return f"at least {least:,}"
    if most is not None and value > most:
        return f"at most {most:,}"
    return f"at most {LARGEST:,} on either side of 0" if isinstance(value, int) and abs(value) > LARGEST else None


def _is_text(value: str) -> bool:
    return not any((letter < " " and letter not in "\n\t") or "\ud800" <= letter <= "\udfff" for letter in value)


def _shown(value: Any) -> str:
    """A value in a message; of a very long one its beginning."""
    try:
        text = repr(value)
    except ValueError:  # Python spells out no whole number of thousands of digits
        text = f"a number of {value.bit_length():,} bits"
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text):,} characters)"


@dataclass(frozen=True)
class Needs:
    """Options that are read only where `met`, which sees all options of the command.

    names: of the options, with spaces between; a command may lack some. otherwise: where they have no effect, with the
    values of other options in braces. instead: what to give for them to be read.
    """

    names: str
    met: Callable[[Any], bool]
    otherwise: str
    instead: str


def require_effect(options: Any, typed: Collection[str]) -> None:
    """Raise `InvalidInput` for an option of `typed` that nothing reads beside the others.

    typed: names of the options that came as flags. A file may hold settings of several methods, so that a flag can
    choose among them; its idle ones are no mistake, nor is a flag that says that something is off which is off anyway.
    """
    for row in (row for kind in type(options).__mro__ for row in vars(kind).get("NEEDS", ())):
        for name in row.names.split():
            value, usual = (getattr(holder, name, None) for holder in (options, type(options)))
            if name in typed and (value or value != usual) and not row.met(options):
                said = str(value).lower() if isinstance(value, bool) else value
                why = row.otherwise.format(**vars(options))
                came = f"--{name.replace('_', '-')} {said} has no effect {why}"
                raise InvalidInput(f"{came}; leave it out, or give {row.instead}")

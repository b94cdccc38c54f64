"""Fields of a command's options: one is one flag and one key of a YAML file. No torch.

Beside its fields a class of options may have a table `NEEDS`: which of them are read only together with others, see
`require_effect`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass, field
from typing import Any

from certibox.errors import InvalidInput


def option(text: str, default: Any = MISSING, *, positional: bool = False) -> Any:
    """A field with its help text; without a default it is required. positional: given without a flag."""
    return field(default=default, metadata={"help": text, "positional": positional}, kw_only=True)


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

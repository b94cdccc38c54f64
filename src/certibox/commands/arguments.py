"""From argv to options: one flag a field, a YAML file under the flags, help and errors in words."""

from __future__ import annotations

import inspect
import re
from argparse import SUPPRESS, Action, ArgumentError, RawDescriptionHelpFormatter
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from certibox.errors import InvalidInput, did_you_mean, one_of

_METAVARS = {int: "N", float: "X", list[float]: "[X, ...]", list[str]: "[FILE, ...]"}
_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list[float]: "a list of numbers in brackets, such as [0, 0.25]",
    list[str]: "a list in brackets, such as [a.jsonl, b.jsonl]",
}


def parse(name: str, options: type, arguments: list[str]) -> Any:
    """Options of one command from a YAML file and flags over it; `InvalidInput` names what is wrong."""
    try:
        parsed = _parser(name, options).parse_args(arguments)
    except (ArgumentError, UnicodeDecodeError) as error:
        places = {item.name for item in fields(options) if _positional(item)}
        text = _explained(" ".join(str(error).split()), get_type_hints(options), arguments, places)
        end = " see" if text.endswith("?") else "; see"
        raise InvalidInput(f"{text}{end} certibox {name} --help") from error
    values = {key: value for key, value in parsed.as_dict().items() if key not in ("config", "print_config")}
    return options(**values)


def typed(arguments: list[str]) -> set[str]:
    """The names of the options that `arguments` give as flags."""
    return {word[2:].partition("=")[0].replace("-", "_") for word in arguments if word.startswith("--")}


def _parser(name: str, options: type) -> ArgumentParser:
    """One flag a field, in groups by the class that declares them; the docstring of `options` describes the command."""
    groups = {kind: _declared(kind, options) for kind in options.__mro__[:-1]}
    required = [item for items in groups.values() for item in items if item.default is MISSING]
    shown = [_usage(item) for item in sorted(required, key=lambda item: not _positional(item))]
    parser = ArgumentParser(
        prog=f"certibox {name}",
        usage=" ".join([f"certibox {name}", *shown, "[OPTIONS]"]),
        description=inspect.getdoc(options),
        formatter_class=_Help,
        exit_on_error=False,
        print_config="--print-config",
    )
    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file of options; flags override it")
    hints = get_type_hints(options)
    for kind, items in groups.items():
        title = (kind.__doc__ or "").splitlines()[0].rstrip(".").lower()
        group = parser if kind is options else parser.add_argument_group(title)
        for item in items:
            _add(group, item, hints[item.name])
    return parser


def _declared(kind: type, options: type) -> list[Any]:
    """The fields of `options` that `kind` declares first: `split` belongs to the images, whatever its default."""
    of = {
        item.name: [base for base in options.__mro__ if item.name in inspect.get_annotations(base)]
        for item in fields(options)
    }
    return [item for item in fields(options) if of[item.name][-1] is kind]


def _add(group: Any, item: Any, hint: Any) -> None:
    """The flag of one field, or its place."""
    if _positional(item):
        many = {"nargs": "+"} if get_origin(hint) is list else {}
        metavar = _placeholder(item)
        group.add_argument(item.name, type=str, metavar=metavar, help=item.metadata["help"], **many)
        return
    settings: dict[str, Any] = {"type": hint, "help": item.metadata["help"]}
    if item.default is MISSING:
        settings["required"] = True
    else:
        settings["default"] = list(item.default) if isinstance(item.default, tuple) else item.default
    if _plain(hint) in _METAVARS:
        settings["metavar"] = _METAVARS[_plain(hint)]
    action = group.add_argument(_flag(item.name), **settings)
    action.option_strings = [_flag(item.name)]  # show no --radii+ beside --radii


def _positional(item: Any) -> bool:
    return item.metadata.get("positional", False)


def _placeholder(item: Any) -> str:
    """What a positional field is called in the help: FILE for files."""
    return item.name.removesuffix("s").upper()


def _usage(item: Any) -> str:
    """A required field in the line of usage."""
    if not _positional(item):
        return f"{_flag(item.name)} {item.name.upper()}"
    name = _placeholder(item)
    return f"{name} [{name} ...]" if item.name.endswith("s") else name


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _plain(hint: Any) -> Any:
    """A type without its `| None`."""
    if get_origin(hint) is not UnionType:
        return hint
    return next(part for part in get_args(hint) if part is not type(None))


class _Help(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Help in words: required or the default, no Python types."""

    def _get_help_string(self, action: Action) -> str:
        if action.dest == "print_config":
            return "print all options as YAML, ready for --config, and exit"
        text = action.help or ""
        if action.required:
            return f"{text} (required)"
        if action.default in (None, SUPPRESS):
            return text
        default = str(action.default).lower() if isinstance(action.default, bool) else action.default
        return f"{text} (default: {default})"


def _explained(text: str, hints: dict[str, Any], arguments: list[str], places: set[str]) -> str:
    """A message of the parser in our words: what came and what was wanted."""
    wrong = re.match(r'Parser key "(\w+)".* (?:Got|Given) value: (.*)', text)
    if wrong and wrong[1] in hints:
        return f"{wrong[1]} is {wrong[2]!r}; wanted {_kind(hints[wrong[1]], wrong[2])}"
    missing = re.match(r"the following arguments are required: (.*)", text)
    if missing:
        names = [name if name in places else _flag(name) for name in missing[1].split(", ")]
        return f"{', '.join(names)} not given, but required"
    valueless = re.match(r"argument --([\w-]+): expected one argument", text)
    if valueless and valueless[1].replace("-", "_") in hints:
        return f"--{valueless[1]} has no value; wanted {_kind(hints[valueless[1].replace('-', '_')])}"
    unknown = re.match(r"unrecognized arguments: (?:.* )?(--[\w-]+)|Option '(\w+)' is not accepted", text)
    names = [name for name in hints if name not in places]
    flags = [_flag(name) for name in names]
    meant = (did_you_mean(unknown[1], flags) if unknown[1] else did_you_mean(unknown[2], names)) if unknown else ""
    if text.startswith(("Option ", "Problems parsing config", "Unexpected config", "'utf-8' codec")):
        parts = " ".join(arguments).replace("=", " ").split()
        file = parts[parts.index("--config") + 1] if "--config" in parts[:-1] else "the file of options"
        return f"{file}: {text}; wanted lines such as 'sigma: 0.25', with the flags' names and _ for -{meant}"
    return text.removeprefix('Parser key "config": ') + meant


def _kind(hint: Any, came: str = "") -> str:
    """A type in words, with the nearest of its names to what came."""
    plain = _plain(hint)
    if get_origin(plain) is Literal:
        return one_of(came, get_args(plain))
    return _KINDS.get(plain, str(plain))

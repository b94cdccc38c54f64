"""From argv to options: one flag a field, a YAML file under the flags, help and errors in words."""

from __future__ import annotations

import inspect
import re
from argparse import SUPPRESS, Action, ArgumentError, RawDescriptionHelpFormatter
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from certibox.commands.fields import require_range
from certibox.commands.settings_files import LONGEST, check_file, check_text
from certibox.errors import InvalidInput, did_you_mean, one_of

ALSO = {"--subset": "--configuration"}  # flags that others know by another name -> ours

_METAVARS = {int: "N", float: "X", list[float]: "[X, ...]", list[int]: "[N, ...]", list[str]: "[FILE, ...]"}
_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list[float]: "a list of numbers in brackets, such as [0, 0.25]",
    list[int]: "a list of whole numbers in brackets, such as [3, 32, 32]",
    list[str]: "a list in brackets, such as [a.jsonl, b.jsonl]",
}


def parse(name: str, options: type, arguments: list[str]) -> Any:
    """Options of one command from a YAML file and flags over it.

    Args:
        name: Name of the command.
        options: Class of its options.
        arguments: Words after the command's name.

    Raises:
        InvalidInput: A word, a file or a value is not understood, or is out of its range; the text names it.
    """
    _check_words(arguments)
    try:
        parsed = _parser(name, options).parse_args(arguments)
    except (ArgumentError, UnicodeDecodeError) as error:
        places = {item.name for item in fields(options) if _positional(item)}
        text = _explained(" ".join(str(error).split()), get_type_hints(options), arguments, places)
        end = " see" if text.endswith("?") else "; see"
        raise InvalidInput(f"{text}{end} certibox {name} --help") from error
    except ValueError as error:  # a number that Python does not read, of thousands of digits
        raise InvalidInput(f"a value is not understood: {error}; see certibox {name} --help") from error
    values = {key: value for key, value in parsed.as_dict().items() if key not in ("config", "print_config")}
    made = options(**values)
    require_range(made)
    return made


def _check_words(arguments: list[str]) -> None:
    """Refuse what the parser must not see: words without end, and YAML that grows, in a flag or in a file."""
    for position, word in enumerate(arguments):
        if len(word) > LONGEST:
            raise InvalidInput(f"{word[:40]}... has {len(word):,} characters; wanted {LONGEST:,} at most")
        flag, _, value = word.partition("=") if word.startswith("--") else ("", "", word)
        before = arguments[position - 1] if position else ""
        named = flag or (before if before.startswith("--") else "")  # else it is the name of a file
        if named and value[:1] in ("[", "{", "&", "*", "!"):
            check_text(value, named)
        if flag == "--config":
            for file in [value] if value else arguments[position + 1 : position + 2]:
                check_file(file)


def in_flags(text: str, options: type) -> str:
    """A message with the parameters that are flags of a command named as such: num_classes becomes --num-classes.

    Args:
        text: Message, which may name parameters as Python does.
        options: Class of the command's options.
    """
    names = "|".join(item.name for item in fields(options) if "_" in item.name and not _positional(item))
    if not names:
        return text
    # Not within a path, a longer name or quotes; a message that gives the flag too, in brackets, gives it once.
    named = rf"(?<![\w/.'\"-])({names})(?: \(--[\w-]+\))?(?![\w/'\"]|\.\w)"
    text = re.sub(named, lambda found: _flag(found[1]), text)
    return re.sub(r"(--[a-z-]+)=\(([^()]*)\)", r"\1 [\2]", text)  # a tuple is a list there


def ours(arguments: list[str]) -> list[str]:
    """The words of a command line, with flags by the names that the help has."""
    parts = [word.partition("=") for word in arguments]
    return [f"{ALSO.get(flag, flag)}{equals}{value}" for flag, equals, value in parts]


def typed(arguments: list[str]) -> set[str]:
    """The names of the options that `arguments` give as flags."""
    return {word[2:].partition("=")[0].replace("-", "_") for word in arguments if word.startswith("--")}


def _parser(name: str, options: type) -> ArgumentParser:
    """One flag a field: what is required, then groups by the class that declares them, then what few need.

    The docstring of `options` describes the command.
    """
    own, *shared = options.__mro__[:-1]
    required = [item for kind in (*shared, own) for item in _declared(kind, options) if item.default is MISSING]
    shown = [_usage(item) for item in sorted(required, key=lambda item: not _positional(item))]
    parser = ArgumentParser(
        prog=f"certibox {name}",
        usage=" ".join([f"certibox {name}", *shown, "[OPTIONS]"]),
        description=inspect.getdoc(options),
        formatter_class=_Help,
        exit_on_error=False,
        allow_abbrev=False,
        print_config="--print-config",
    )
    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file of options; flags override it")
    hints = get_type_hints(options)
    for title, items in _groups(options, required):
        group = parser.add_argument_group(title)
        for item in items:
            _add(group, item, hints[item.name])
    groups: Any = parser._action_groups
    first, usual, *others = groups  # "positional arguments" and "options", which has --help
    groups[:] = [first, *others, usual]
    return parser


def _groups(options: type, required: list[Any]) -> list[tuple[str, list[Any]]]:
    """The fields as the help shows them: titles, and what stands below each."""
    basic, advanced = [], []
    for kind in options.__mro__[:-1]:
        optional = [item for item in _declared(kind, options) if item not in required]
        title = (kind.__doc__ or "").splitlines()[0].rstrip(".").lower()
        few = [item for item in optional if item.metadata["advanced"]]
        basic.append(("this command" if kind is options else title, [item for item in optional if item not in few]))
        advanced += few
    groups = [("required", required), *basic, ("advanced", advanced)]
    return [(title, items) for title, items in groups if items]


def _declared(kind: type, options: type) -> list[Any]:
    """The fields of `options` that the class `kind` was the first to declare.

    A command that gives `split` another default declares the field again: help still lists `split` under the images.
    """
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
    elif _plain(hint) is bool or get_origin(_plain(hint)) is Literal:  # without null
        settings["metavar"] = f"{{{','.join(get_args(_plain(hint)) or ('true', 'false'))}}}"
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
    if get_origin(hint) not in (UnionType, Union):  # the latter for a Literal
        return hint
    return next(part for part in get_args(hint) if part is not type(None))


class _Help(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Help in words: the default, no Python types. What is required stands under its own heading."""

    def _get_help_string(self, action: Action) -> str:
        if action.dest == "print_config":
            return "print all options as YAML, ready for --config, and exit"
        text = action.help or ""
        if action.required or action.default in (None, SUPPRESS):
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

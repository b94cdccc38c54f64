"""Files of options, looked at before they are parsed: plain, small, and without what YAML can do beyond values."""

from __future__ import annotations

from pathlib import Path

import yaml

from certibox.errors import InvalidInput, UnreadableFile
from certibox.storage.places import kind_of

LARGEST = 64 * 1024  # bytes; a file that sets every option has some 3,000
DEEPEST, MOST = 8, 5000  # lists in lists, and values
LONGEST = 4096  # characters of a value, in a file or of a flag: of a path, and more than any list needs
_WANTED = "wanted lines such as 'sigma: 0.25', with the flags' names and _ for -"


def check_file(path: str) -> None:
    """Refuse a file of options that is no small text of plain values.

    Args:
        path: File that --config names.

    Raises:
        UnreadableFile: The file is missing, is none, or is too large.
        InvalidInput: What it holds is no set of plain values by name.
    """
    try:
        mode, size = Path(path).stat().st_mode, Path(path).stat().st_size
    except (OSError, ValueError) as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise UnreadableFile(f"the file of options {path!r} {why}; wanted a YAML file") from error
    if special := kind_of(mode):
        raise UnreadableFile(f"{path} is {special}; wanted a YAML file of options")
    if size > LARGEST:
        raise UnreadableFile(f"{path} has {size:,} bytes; wanted a YAML file of options, of {LARGEST:,} at most")
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableFile(f"{path} is no text in UTF-8 (byte {error.start}); {_WANTED}") from error
    check_text(text, path)


def check_text(text: str, place: str) -> None:
    """Refuse YAML that names, repeats or builds: aliases grow without bounds, and tags can run code.

    Args:
        text: YAML, of a file or of a flag.
        place: What it is called in the message.

    Raises:
        InvalidInput: It holds an anchor, an alias, a tag, a key twice, or lists too deep or too many; or is no YAML.
    """
    keys: list[set[str] | None] = []  # of the mappings that are open, None for a list
    waiting: list[bool] = []  # whether the next scalar in each is a key
    try:
        for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
            _check_event(event, count, len(keys), place)
            _follow(event, keys, waiting, place)
    except yaml.YAMLError as error:
        raise InvalidInput(f"{place}: {' '.join(str(error).split())}; {_WANTED}") from error


def _check_event(event: yaml.Event, count: int, depth: int, place: str) -> None:
    """Refuse what no set of options holds."""
    line = event.start_mark.line + 1 if event.start_mark else 0
    if (anchor := getattr(event, "anchor", None)) is not None:
        came = f"{'*' if isinstance(event, yaml.AliasEvent) else '&'}{anchor}"
        raise InvalidInput(f"{place}, line {line}: {came}; wanted the value itself, in place of an anchor or alias")
    if (tag := getattr(event, "tag", None)) is not None:
        raise InvalidInput(f"{place}, line {line}: the tag {tag}; wanted a plain value")
    if len(value := getattr(event, "value", "")) > LONGEST:
        came = f"{value[:40]}... has {len(value):,} characters"
        raise InvalidInput(f"{place}, line {line}: {came}; wanted {LONGEST:,} at most")
    if depth > DEEPEST or count > MOST:
        raise InvalidInput(f"{place}, line {line}: more than {DEEPEST} levels or {MOST} values; {_WANTED}")


def _follow(event: yaml.Event, keys: list[set[str] | None], waiting: list[bool], place: str) -> None:
    """Keep account of open lists and mappings; refuse a key that comes twice."""
    if isinstance(event, yaml.CollectionEndEvent):
        keys.pop()
        waiting.pop()
    elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and keys and keys[-1] is not None:
        if waiting[-1] and isinstance(event, yaml.ScalarEvent):
            if event.value in keys[-1]:
                line = event.start_mark.line + 1 if event.start_mark else 0
                raise InvalidInput(f"{place}, line {line}: {event.value} is given twice; wanted it once")
            keys[-1].add(event.value)
        waiting[-1] = not waiting[-1]
    if isinstance(event, yaml.CollectionStartEvent):
        keys.append(set() if isinstance(event, yaml.MappingStartEvent) else None)
        waiting.append(True)

"""Folders of images: what is in them, which folder is a split and which a class, what is left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import TypeVar

import torch
from PIL import Image

from certibox.data.asked import SPLIT_NAMES, Asked, aloud, pick
from certibox.data.decoding import Pile, pixels_of, read_image
from certibox.data.images import Images
from certibox.data.labels import number_classes
from certibox.data.metadata import METADATA_FILES, read_metadata
from certibox.errors import InvalidInput, UnreadableFile

DATASET_SUFFIXES = frozenset({".parquet", ".arrow"})
_DATASET_FILES = frozenset({"dataset_info.json", "dataset_dict.json"})
_SYSTEM = frozenset({"__macosx", "@eadir", "__pycache__", "lost+found", "$recycle.bin", "system volume information"})
_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
_NO_IMAGES = frozenset({"EPS", "PDF", "WMF", "EMF", "MPEG", "BUFR", "GRIB", "HDF5"})  # pages, films, measurements
_MOST_OTHERS = 200_000  # entries that are no images, before a folder is no folder of images
_DEEPEST = 32
_KINDS = 6  # kinds of files that a message counts one by one
Item = TypeVar("Item")
Found = PurePosixPath  # a file, relative to the source


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of the files that Pillow opens as pictures."""
    kinds = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in kinds.items() if kind in Image.OPEN and kind not in _NO_IMAGES)


@dataclass(frozen=True)
class Tree:
    """The files below a folder, hidden ones and those of operating systems left out."""

    root: Path
    """Folder that was searched."""

    files: tuple[Found, ...]
    """Regular files, relative to `root`, by folder and then by name."""

    odd: tuple[Found, ...] = ()
    """What is neither a file nor a folder: links to nothing, pipes, devices. They are never opened."""

    @property
    def images(self) -> list[Found]:
        """The files that Pillow opens as pictures, by their names."""
        return [file for file in self.files if file.suffix.lower() in image_suffixes()]

    @property
    def is_dataset(self) -> bool:
        """Whether there are files of tables."""
        return any(file.suffix.lower() in DATASET_SUFFIXES or file.name in _DATASET_FILES for file in self.files)


def scan(root: Path) -> Tree:
    """All files below a folder; links to folders are followed once. A whole file system is refused, not searched."""
    found: tuple[list[str], list[str]] = [], []  # regular files, and what is none; text, as there may be millions
    seen: set[tuple[int, int]] = set()
    waiting, others, suffixes = [(str(root), "", 0)], 0, image_suffixes()
    while waiting:
        folder, inside, depth = waiting.pop()
        for entry in _entries(folder, seen):
            name, (is_folder, is_file) = entry.name.casefold(), _kind(entry)
            if is_folder and name not in _SYSTEM and depth < _DEEPEST:
                waiting.append((entry.path, f"{inside}{entry.name}/", depth + 1))
            elif not is_folder and name not in _SYSTEM_FILES:
                found[not is_file].append(inside + entry.name)
            others += os.path.splitext(name)[1] not in suffixes
        if others > _MOST_OTHERS:
            raise InvalidInput(
                f"{root}: more than {_MOST_OTHERS:,} files and folders that are no images; name the folder that holds "
                f"the images"
            )
    files, odd = (sorted(map(PurePosixPath, names), key=lambda file: (file.parts[:-1], file.name)) for names in found)
    return Tree(root, tuple(files), tuple(odd))


def _kind(entry: os.DirEntry[str]) -> tuple[bool, bool]:
    """Whether it is a folder, whether a regular file; neither for a link that leads to itself."""
    try:
        return entry.is_dir(), entry.is_file()
    except OSError:
        return False, False


def _entries(folder: str, seen: set[tuple[int, int]]) -> list[os.DirEntry[str]]:
    """What lies in a folder that was not seen before, by whatever path; hidden entries left out."""
    try:
        facts = os.stat(folder)
        if (facts.st_dev, facts.st_ino) in seen:
            return []
        seen.add((facts.st_dev, facts.st_ino))
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UnreadableFile(f"{folder} cannot be read: {error.strerror}; check its permissions") from error


# -------------------------------------------------------------------------------------------------- splits, classes


def read_folder(tree: Tree, name: str, asked: Asked) -> Images:
    """The images of a folder: split/class/*, class/*, or unlabelled split/*, *; or as `metadata.csv` says."""
    asked.refuse(str(tree.root), "image_column", "configuration")
    base, has_splits = _split_folder(tree, asked)
    images = [file for file in tree.images if file.is_relative_to(base)]
    if not images:
        raise InvalidInput(f"{tree.root / base}: holds no images and no .parquet or .arrow files{_others(tree, base)}")
    files, labels, names = _labelled(tree, base, images, asked, has_splits)
    _tell_left_out(tree, base, sorted(set(images).difference(files)))
    if not has_splits:
        asked.whole(str(tree.root), len(files))
    chosen = _chosen(list(range(len(files))), labels, asked, str(tree.root))
    return _read(tree.root, [(files[i], labels[i] if labels else None) for i in chosen], name, names, asked)


def _labelled(
    tree: Tree, base: Found, images: list[Found], asked: Asked, has_splits: bool
) -> tuple[list[Found], list[int] | None, tuple[str, ...] | None]:
    """Images of the split, their labels and the names of the classes: by metadata, else by the names of folders."""
    classes = {file.parts[: len(base.parts) + 1] for file in images if len(file.parts) > len(base.parts) + 1}
    instead = "class folders are the labels" if len(classes) > 1 else "images are taken as unlabelled"
    listed = read_metadata(tree.root, base, tree.files, asked, instead)
    if listed and (listed.labels is not None or len(classes) < 2):
        return listed.files, listed.labels, listed.class_names
    if not listed:
        asked.refuse(str(tree.root), "label_column")
    files = listed.files if listed else images
    labels, names = _class_labels(tree, base, files, has_splits)
    if labels is None:
        return files, None, None
    order = sorted(range(len(files)), key=labels.__getitem__)  # classes in their order, files in theirs
    return [files[i] for i in order], [labels[i] for i in order], names


def _split_folder(tree: Tree, asked: Asked) -> tuple[Found, bool]:
    """The folder of the split that is asked for, and whether there are several to choose from."""
    tops = {file.parts[0] for file in tree.images if len(file.parts) > 1}
    deep = {file.parts[0] for file in tree.images if len(file.parts) > 2}
    direct = {file.parts[0] for file in tree.images if len(file.parts) == 2}
    known = {top for top in tops if top.casefold() in SPLIT_NAMES}
    beside = [file for file in tree.images if len(file.parts) == 1]
    if not tops or not (tops == known or (deep and (known or not direct))):
        return PurePosixPath(), False
    if beside:
        raise _loose(tree.root, beside, "split")
    splits = {top: PurePosixPath(top) for top in sorted(tops)}
    return pick(splits, asked.split, str(tree.root)), asked.share is None


def _class_labels(
    tree: Tree, base: Found, files: Sequence[Found], has_splits: bool
) -> tuple[list[int] | None, tuple[str, ...] | None]:
    """The label of each file by its class folder, numbered over all splits; None where there are no such folders."""
    level = len(base.parts)
    inside = [file for file in files if len(file.parts) > level + 1]
    if not inside:
        return None, None
    if len(inside) < len(files):
        raise _loose(tree.root, [file for file in files if len(file.parts) == level + 1], "class")
    others = [file for file in tree.images if len(file.parts) > level + 1] if has_splits else []
    numbers, names = number_classes((file.parts[level] for file in [*files, *others]), str(tree.root))
    if len(names) == 1:
        aloud(f"{tree.root / base}: there is one class folder alone, {names[0]!r}, so that every label is 0")
    return [numbers[file.parts[level]] for file in files], names


def _loose(root: Path, files: Sequence[Found], kind: str) -> InvalidInput:
    """What to say of images that lie in no folder, beside folders that are splits or classes."""
    which = f"{root / files[0]}{_more(len(files) - 1, 'image')}"
    return InvalidInput(f"{which}: beside the {kind} folders and in none of them; move what is loose into one, or away")


def _tell_left_out(tree: Tree, base: Found, unlisted: list[Found]) -> None:
    """Count aloud what lies among the images and is not read."""
    here = [file for file in tree.files if file.is_relative_to(base) and file.name not in METADATA_FILES]
    others = [file for file in here if file.suffix.lower() not in image_suffixes()]
    kinds = Counter(file.suffix.lower() or "without a suffix" for file in others)
    odd = [file for file in tree.odd if file.is_relative_to(base)]
    if odd:
        kinds["links to nothing, pipes or devices"] = len(odd)
    if unlisted:
        kinds["images that the metadata does not name"] = len(unlisted)
    if kinds:
        count, first = f"{kinds.total()} of {len(here) + len(odd)} files", [*unlisted, *others, *odd][0]
        aloud(f"{tree.root}: {count} were left out: {_counted(kinds)}; the first is {first}")


def tell_of_pictures(tree: Tree, read: Iterable[str], what: str) -> None:
    """Say that pictures lie beside a data set in other files, unless they are what was read."""
    if tree.images and not set(map(str, tree.images)) & set(read):
        aloud(f"{tree.root}: {what} alone are read; left out: {tree.images[0]}{_more(len(tree.images) - 1, 'picture')}")


def _more(count: int, what: str) -> str:
    return f" and {count} more {what}{'s' if count > 1 else ''}" if count else ""


def _counted(kinds: Counter[str]) -> str:
    most = kinds.most_common(_KINDS)
    rest = kinds.total() - sum(count for _, count in most)
    return ", ".join([f"{count} {kind}" for kind, count in most] + ([f"{rest} others"] if rest else []))


def _others(tree: Tree, base: Found) -> str:
    kinds = Counter(file.suffix.lower() or "without a suffix" for file in tree.files if file.is_relative_to(base))
    return f", but other files: {_counted(kinds)}" if kinds else ""


# ------------------------------------------------------------------------------------------------- choice, reading


def _chosen(items: list[int], labels: list[int] | None, asked: Asked, where: str) -> list[int]:
    """The images of the share that is asked for, and as many of them as `limit` says, evenly over the classes."""
    if asked.share is not None:
        items = asked.share.of(len(items), where)
    if asked.limit is None or asked.limit >= len(items):
        return items
    return (in_turn(items, [labels[i] for i in items]) if labels else items)[: asked.limit]


def in_turn(items: Iterable[Item], classes: Iterable[Hashable]) -> list[Item]:
    """The first of each class, then the second of each, and so on: every start of the list is even over the classes."""
    members: dict[Hashable, list[Item]] = {}
    for item, kind in zip(items, classes, strict=True):
        members.setdefault(kind, []).append(item)
    turns = zip_longest(*([(item,) for item in kind] for kind in members.values()), fillvalue=())
    return [item for turn in turns for once in turn for item in once]


def _read(
    root: Path, chosen: list[tuple[Found, int | None]], name: str, names: tuple[str, ...] | None, asked: Asked
) -> Images:
    pile = Pile(asked.channels, asked.skip_unreadable, str(root))
    kept = [
        (file, label)
        for file, label in chosen
        if pile.attempt(lambda at=root / file: pixels_of(read_image(at, str(at))), str(root / file))
    ]
    pile.finish(name)
    labels = [label for _, label in kept if label is not None]
    files = tuple(str(file) for file, _ in kept)
    return Images(pile.tensor(), torch.tensor(labels) if labels else None, name, names if labels else None, None, files)


def read_files(paths: Sequence[str | os.PathLike[str]], name: str, asked: Asked) -> Images:
    """The images of a list of paths, unlabelled, before a share is drawn from them."""
    chosen = [Path(os.path.expanduser(path)) for path in paths[: asked.at_most]]
    pile = Pile(asked.channels, asked.skip_unreadable)
    kept = [path for path in chosen if pile.attempt(lambda at=path: pixels_of(read_image(at, str(at))), str(path))]
    pile.finish(name)
    return Images(pile.tensor(), None, name, files=tuple(map(str, kept)))

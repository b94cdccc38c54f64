"""Restricted ImageNet: ten groups of ImageNet-1k classes as ten classes.

Where each fact comes from:
- The ten super-classes and their order: the WordNet ids in `AE_DS_train.py` of the released code of Zhang et al.,
  "How to Robustify Black-Box ML Models?", ICLR 2022 (damon-demon/Black-Box-Defense on GitHub).
- The classes below them: WordNet 3.0, the hypernyms of each of the 1,000 synsets. In the usual numbering (0..999 in
  the order of WordNet ids) every group is one unbroken range.
- The selection: that code balances the groups with `ImageNetHierarchy.get_subclasses` of the `robustness` library,
  which keeps the lowest numbers of each group, as many as the smallest group has. Frogs and sharks have three, so 30
  classes remain; their 50 validation images each are the paper's 1,500 test images (appendix C.3).
- Felines: the library keeps one parent a synset, which for the domestic cat is "domestic animal" (its list counts 8
  felines, WordNet 13), so cougar, lynx and leopard are the first three, not tabby, tiger cat and Persian.
The number of training images, 38,472 in the paper, has not been checked: that needs ImageNet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from PIL import Image

from certibox.data.asked import Asked, pick, share_of
from certibox.data.decoding import Pile, pixels_of, read_image, reading
from certibox.data.digits import evenly
from certibox.data.folders import image_suffixes, scan
from certibox.data.images import Images
from certibox.data.labels import require_column
from certibox.data.rows import Table, cell_image, folder_rows, hub_rows, left_encoded
from certibox.data.sources import local_path
from certibox.errors import InvalidInput

Selection = Literal["paper", "all"]
Found = Iterator[tuple[Image.Image, int]]
Item = TypeVar("Item")
_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class SuperClass:
    """A group of ImageNet-1k classes."""

    wnid: str
    """WordNet id of the common hypernym."""

    first: int
    """Number of the first class, 0..999; the others follow it."""

    leaves: tuple[str, ...]
    """WordNet ids of the classes, in the order of their numbers."""

    paper: int = 0
    """Position in `leaves` of the first of the three classes that the paper uses."""

    def classes(self, selection: Selection) -> dict[int, str]:
        """Number -> WordNet id of the chosen ImageNet-1k classes."""
        numbered = list(enumerate(self.leaves, self.first))
        return dict(numbered[self.paper : self.paper + 3] if selection == "paper" else numbered)


_DOGS = """
n02085620 n02085782 n02085936 n02086079 n02086240 n02086646 n02086910 n02087046 n02087394 n02088094
n02088238 n02088364 n02088466 n02088632 n02089078 n02089867 n02089973 n02090379 n02090622 n02090721
n02091032 n02091134 n02091244 n02091467 n02091635 n02091831 n02092002 n02092339 n02093256 n02093428
n02093647 n02093754 n02093859 n02093991 n02094114 n02094258 n02094433 n02095314 n02095570 n02095889
n02096051 n02096177 n02096294 n02096437 n02096585 n02097047 n02097130 n02097209 n02097298 n02097474
n02097658 n02098105 n02098286 n02098413 n02099267 n02099429 n02099601 n02099712 n02099849 n02100236
n02100583 n02100735 n02100877 n02101006 n02101388 n02101556 n02102040 n02102177 n02102318 n02102480
n02102973 n02104029 n02104365 n02105056 n02105162 n02105251 n02105412 n02105505 n02105641 n02105855
n02106030 n02106166 n02106382 n02106550 n02106662 n02107142 n02107312 n02107574 n02107683 n02107908
n02108000 n02108089 n02108422 n02108551 n02108915 n02109047 n02109525 n02109961 n02110063 n02110185
n02110341 n02110627 n02110806 n02110958 n02111129 n02111277 n02111500 n02111889 n02112018 n02112137
n02112350 n02112706 n02113023 n02113186 n02113624 n02113712 n02113799 n02113978
"""
_FELINES = """
n02123045 n02123159 n02123394 n02123597 n02124075 n02125311 n02127052 n02128385 n02128757 n02128925
n02129165 n02129604 n02130308
"""
_BOVIDS = "n02403003 n02408429 n02410509 n02412080 n02415577 n02417914 n02422106 n02422699 n02423022"
_MONKEYS = """
n02484975 n02486261 n02486410 n02487347 n02488291 n02488702 n02489166 n02490219 n02492035 n02492660
n02493509 n02493793 n02494079
"""
_INSECTS = """
n02165105 n02165456 n02167151 n02168699 n02169497 n02172182 n02174001 n02177972 n02190166 n02206856
n02219486 n02226429 n02229544 n02231487 n02233338 n02236044 n02256656 n02259212 n02264363 n02268443
n02268853 n02276258 n02277742 n02279972 n02280649 n02281406 n02281787
"""
SUPER_CLASSES = {  # the position is the label
    "dog": SuperClass("n02084071", 151, tuple(_DOGS.split())),
    "feline": SuperClass("n02120997", 281, tuple(_FELINES.split()), paper=5),
    "frog": SuperClass("n01639765", 30, ("n01641577", "n01644373", "n01644900")),
    "turtle": SuperClass("n01662784", 33, ("n01664065", "n01665541", "n01667114", "n01667778", "n01669191")),
    "bovid": SuperClass("n02401031", 345, tuple(_BOVIDS.split())),
    "bear": SuperClass("n02131653", 294, ("n02132136", "n02133161", "n02134084", "n02134418")),
    "monkey": SuperClass("n02484322", 370, tuple(_MONKEYS.split())),
    "crab": SuperClass("n01976957", 118, ("n01978287", "n01978455", "n01980166", "n01981276")),
    "insect": SuperClass("n02159955", 300, tuple(_INSECTS.split())),
    "shark": SuperClass("n01482330", 2, ("n01484850", "n01491361", "n01494475")),
}


def load_restricted_imagenet(
    source: str | Path,
    split: str = "train",
    *,
    selection: Selection = "paper",
    size: int = 224,
    limit: int | None = None,
    image_column: str = "image",
    label_column: str = "label",
) -> Images:
    """Load the images of the ten super-classes, labels 0..9 in the order of the release, as RGB of size × size.

    Images of other classes are never decoded. Memory: 3 · size² bytes an image.

    Args:
        source: Image folder split/class/*.JPEG or class/*.JPEG, whose class folders are named by WordNet ids of
            ImageNet-1k, or by the names or WordNet ids of the super-classes; or a folder with parquet or arrow files
            or a Hugging Face name (such as "ILSVRC/imagenet-1k"), with labels 0..999 or class names like those of
            folders.
        split: Name of the split as the source calls it; the paper's test images are ImageNet's validation split.
        selection: Classes to take: "paper" takes three classes a super-class, as the release does, "all" the 199
            classes below the super-classes. A folder or class that bears a super-class's own name or id is taken whole.
        size: Side of the images in pixels. The shorter side is resized to 256/224 of it, bilinear with antialiasing,
            and the central square cut out: what the release does with test images (it crops, flips and jitters
            training images at random: see `augment`).
        limit: Maximum number of images, equally many of each super-class as far as they reach, at even distances; None
            for all.
        image_column: Column that holds the images, where the source is a table.
        label_column: Column that holds the labels, where the source is a table.

    Raises:
        InvalidInput: The source, the split or an option is unknown, or no image of the super-classes is there.
        InvalidImages: An image is not 8 bits a channel.
        UnreadableFile: A file is missing or damaged.
    """
    if selection not in ("paper", "all"):
        raise InvalidInput(f"selection is {selection!r}, wanted 'paper' or 'all'")
    if size < 1 or (limit is not None and limit < 1):
        raise InvalidInput(f"size is {size}, limit {limit}; wanted both at least 1, or limit None for all images")
    if share_of(split) is not None:
        raise InvalidInput(f"split is {split!r}; wanted the name of a split, as ImageNet has splits of its own")
    found = _find(source, split, selection, limit, image_column, label_column)
    pile, labels = Pile(), []
    for image, label in found:
        pile.add(pixels_of(_central_square(image.convert("RGB"), size)), str(source))
        labels.append(label)
    name = f"restricted-imagenet:{split}"
    return Images(pile.tensor(), torch.tensor(labels), name, tuple(SUPER_CLASSES))


def _find(source: str | Path, split: str, selection: Selection, limit: int | None, *columns: str) -> Found:
    known = _folder_names(selection)
    path = local_path(source)
    if path is None:
        return _from_rows(hub_rows(str(source), Asked(split)), f"{source}:{split}", selection, limit, *columns)
    with reading(path):
        folders = _class_folders(path, split, known)
    if folders:
        return _from_folders(folders, limit, known)
    if scan(path).is_dataset:
        return _from_rows(folder_rows(path, Asked(split)), f"{path}:{split}", selection, limit, *columns)
    raise _nothing(path)


def _nothing(where: str | Path) -> InvalidInput:
    wanted = "class folders or labels such as n02085620 or dog, or labels 0..999"
    return InvalidInput(f"{where}: holds no images of the ten super-classes; wanted {wanted}")


def _folder_names(selection: Selection) -> dict[str, int]:
    """Every name that a class may go by -> label."""
    return {
        name: label
        for label, (own, group) in enumerate(SUPER_CLASSES.items())
        for name in (own, group.wnid, *group.classes(selection).values())
    }


def _central_square(image: Image.Image, size: int) -> Image.Image:
    # Sides and corners rounded as the usual resize-then-crop transforms round them, so that the pixels are theirs.
    w, h = image.size
    short = round(size * 256 / 224)
    w, h = (short, int(short * h / w)) if w <= h else (int(short * w / h), short)
    left, top = round((w - size) / 2), round((h - size) / 2)
    return image.resize((w, h), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))


def _spread(items: list[tuple[Item, int]], limit: int | None) -> list[tuple[Item, int]]:
    """At most `limit` of the labelled items, in their order: equal shares, each at even distances in its class.

    What a small class cannot fill goes to the larger ones.
    """
    if limit is None or limit >= len(items):
        return items
    labels = np.array([label for _, label in items])
    members = sorted((np.flatnonzero(labels == label) for label in np.unique(labels)), key=len)
    chosen: list[int] = []
    for rank, positions in enumerate(members):
        share = (limit - len(chosen)) // (len(members) - rank)
        chosen += evenly(positions, min(share, len(positions))).tolist()
    return [items[i] for i in sorted(chosen)]


# --------------------------------------------------------------------------------------------------- image folders


def _class_folders(root: Path, split: str, known: dict[str, int]) -> list[Path]:
    """Those class folders below root, or below root/split, that belong to a super-class."""
    if not root.is_dir():
        raise InvalidInput(f"{root}: a file, wanted a folder of images or of parquet or arrow files")
    folders = {folder.name: folder for folder in subfolders(root)}
    if not folders.keys() & known.keys():
        splits = {name: inside for name, folder in folders.items() if (inside := _known(folder, known))}
        return pick(splits, split, str(root)) if splits else []
    return _known(root, known)


def _known(root: Path, known: dict[str, int]) -> list[Path]:
    return [folder for folder in subfolders(root) if folder.name in known]


def subfolders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def image_files(folder: Path) -> list[Path]:
    suffixes = image_suffixes()
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in suffixes and not f.name.startswith("."))


def _from_folders(folders: list[Path], limit: int | None, known: dict[str, int]) -> Found:
    with reading(folders[0].parent):
        files = [(file, known[folder.name]) for folder in folders for file in image_files(folder)]
    if not files:
        raise _nothing(folders[0].parent)
    for file, label in _spread(files, limit):
        yield read_image(file, str(file)), label


# ------------------------------------------------------------------------------------------- Hugging Face datasets


def _from_rows(table: Table, name: str, selection: Selection, limit: int | None, image: str, label: str) -> Found:
    rows = table.rows
    for column in (image, label):
        require_column(rows.features or {}, column, name)
    names = getattr(rows.features[label], "names", None)
    with reading(name):
        column = [value for batch in rows.select_columns([label]).iter(1000) for value in batch[label]]
    known = _labels_of(names, column, name, selection)
    chosen = dict(_spread([(i, known[value]) for i, value in enumerate(column) if value in known], limit))
    if not chosen:
        raise _nothing(name)
    with reading(name):
        rows = left_encoded(rows, image)
        if hasattr(rows, "select"):  # a table skips the other rows without reading them
            numbered = zip(chosen, rows.select(list(chosen)), strict=True)
        else:  # a stream has to pass them
            numbered = enumerate(islice(rows, max(chosen) + 1))
        for i, row in numbered:
            if i in chosen:
                yield cell_image(row[image], f"{name} row {i}", table.roots), chosen[i]


def _labels_of(names: list[str] | None, column: list[Any], name: str, selection: Selection) -> dict[Any, int]:
    """Value of the label column -> label, for those that belong to a super-class."""
    known = _folder_names(selection)
    by_name = {i: known[kind] for i, kind in enumerate(names or ()) if kind in known}
    if by_name:
        return by_name
    strange = next((v for v in column if not isinstance(v, int) or not -1 <= v < _IMAGENET_CLASSES), None)
    if strange is not None or len(names or ()) not in (0, _IMAGENET_CLASSES):
        came = f"label {strange!r}" if strange is not None else f"{len(names or ())} classes"
        raise InvalidInput(f"{name} has {came}, wanted ImageNet's 0..999, or class names such as n02085620 or dog")
    return {i: label for label, group in enumerate(SUPER_CLASSES.values()) for i in group.classes(selection)}

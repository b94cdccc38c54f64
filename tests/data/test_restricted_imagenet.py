from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from certibox.data import Images, load_images, load_restricted_imagenet
from certibox.data.restricted_imagenet import SUPER_CLASSES, Selection
from certibox.errors import InvalidImages, InvalidInput, UnreadableFile

NAMES = ("dog", "feline", "frog", "turtle", "bovid", "bear", "monkey", "crab", "insect", "shark")
FOREIGN = ("n01440764", "n02111889x", "n03888257")  # tench, no WordNet id, parachute


def random_pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(file: Path, pixels: np.ndarray | None = None) -> None:  # (h, w) or (h, w, 3)
    file.parent.mkdir(parents=True, exist_ok=True)
    form = "JPEG" if file.suffix.lower() == ".jpeg" else "PNG"
    Image.fromarray(random_pixels(9, 11, 3) if pixels is None else pixels).save(file, form)


def flat(value: int, h: int = 9, w: int = 11) -> np.ndarray:
    return np.full((h, w, 3), value, dtype=np.uint8)


def labels_of(images: Images) -> list[int]:
    assert images.labels is not None
    return images.labels.tolist()


def values_of(images: Images) -> list[int]:
    """The one value of each flat image."""
    assert (images.images == images.images[:, :1, :1, :1]).all()
    return images.images[:, 0, 0, 0].tolist()


def assert_one_line(error: pytest.ExceptionInfo[BaseException]) -> None:
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


# ------------------------------------------------------------------------------------------------------ the classes


def numbered(selection: Selection = "all") -> dict[int, tuple[str, str]]:
    """Number of an ImageNet-1k class -> (WordNet id, super-class)."""
    pairs = [(i, (wnid, name)) for name, group in SUPER_CLASSES.items() for i, wnid in group.classes(selection).items()]
    assert len(dict(pairs)) == len(pairs)  # the super-classes are disjoint
    return dict(pairs)


def test_super_classes_are_the_releases_in_its_order() -> None:
    wnids = "n02084071 n02120997 n01639765 n01662784 n02401031 n02131653 n02484322 n01976957 n02159955 n01482330"
    assert [group.wnid for group in SUPER_CLASSES.values()] == wnids.split()
    assert tuple(SUPER_CLASSES) == NAMES


def test_sizes_are_those_of_wordnet() -> None:
    sizes = {name: len(group.classes("all")) for name, group in SUPER_CLASSES.items()}
    assert sizes == dict(zip(NAMES, (118, 13, 3, 5, 9, 4, 13, 4, 27, 3), strict=True))


@pytest.mark.parametrize(
    ("number", "wnid", "name"),
    [
        (151, "n02085620", "dog"),  # Chihuahua
        (207, "n02099601", "dog"),  # golden retriever
        (268, "n02113978", "dog"),  # Mexican hairless
        (281, "n02123045", "feline"),  # tabby
        (291, "n02129165", "feline"),  # lion
        (293, "n02130308", "feline"),  # cheetah
        (30, "n01641577", "frog"),  # bullfrog
        (32, "n01644900", "frog"),  # tailed frog
        (34, "n01665541", "turtle"),  # leatherback turtle
        (37, "n01669191", "turtle"),  # box turtle
        (345, "n02403003", "bovid"),  # ox
        (353, "n02423022", "bovid"),  # gazelle
        (294, "n02132136", "bear"),  # brown bear
        (297, "n02134418", "bear"),  # sloth bear
        (370, "n02484975", "monkey"),  # guenon
        (382, "n02494079", "monkey"),  # squirrel monkey
        (118, "n01978287", "crab"),  # Dungeness crab
        (121, "n01981276", "crab"),  # king crab
        (300, "n02165105", "insect"),  # tiger beetle
        (323, "n02279972", "insect"),  # monarch
        (326, "n02281787", "insect"),  # lycaenid
        (2, "n01484850", "shark"),  # great white shark
        (4, "n01494475", "shark"),  # hammerhead
    ],
)
def test_known_classes(number: int, wnid: str, name: str) -> None:
    assert numbered()[number] == (wnid, name)


def test_numbers_follow_the_order_of_wordnet_ids() -> None:
    wnids = [wnid for _, (wnid, _) in sorted(numbered().items())]
    assert wnids == sorted(set(wnids))
    # Of the ids that WordNet 3.0's hypernyms select: no digit is wrong.
    assert hashlib.sha256(" ".join(wnids).encode()).hexdigest().startswith("a1a1dda34107a842")
    assert len(wnids) == 199
    assert not set(wnids) & {group.wnid for group in SUPER_CLASSES.values()}


def test_the_paper_takes_the_three_lowest_except_domestic_cats() -> None:
    chosen = {name: tuple(group.classes("paper")) for name, group in SUPER_CLASSES.items()}
    first = {name: tuple(group.classes("all"))[:3] for name, group in SUPER_CLASSES.items()}
    assert chosen == first | {"feline": (286, 287, 288)}
    assert len(numbered("paper")) * 50 == 1500  # the paper's test images, 50 a class in ImageNet's validation split
    assert numbered("paper").items() <= numbered().items()


# ---------------------------------------------------------------------------------------------------- image folders


def test_folders_by_wordnet_id(tmp_path: Path) -> None:
    expected = []
    for label, group in enumerate(SUPER_CLASSES.values()):
        for i, wnid in group.classes("paper").items():
            save(tmp_path / "val" / wnid / f"ILSVRC2012_val_{i:08}.JPEG", flat(i % 250))
            expected.append((label, i % 250))
    for name in FOREIGN:
        (tmp_path / "val" / name).mkdir()
        (tmp_path / "val" / name / "a.JPEG").write_text("not an image, and never opened")
    save(tmp_path / "train" / "n02085620" / "a.JPEG")
    images = load_restricted_imagenet(tmp_path, "val", size=7)
    assert (len(images), images.shape, images.class_names) == (30, (3, 7, 7), NAMES)
    assert images.images.dtype == torch.uint8
    assert sorted(zip(labels_of(images), values_of(images), strict=True)) == sorted(expected)
    assert len(load_restricted_imagenet(tmp_path, size=7)) == 1  # the training split


def test_selection_decides_which_classes_count(tmp_path: Path) -> None:
    for value, wnid in enumerate(["n02123045", "n02125311", "n02129165", "n02099601"]):  # tabby, cougar, lion, golden
        save(tmp_path / wnid / "a.png", flat(value))
    paper = load_restricted_imagenet(tmp_path, size=4)
    assert (labels_of(paper), values_of(paper)) == ([1], [1])
    every = load_restricted_imagenet(tmp_path, selection="all", size=4)
    assert sorted(zip(labels_of(every), values_of(every), strict=True)) == [(0, 3), (1, 0), (1, 1), (1, 2)]


@pytest.mark.parametrize("by", ["name", "wnid"])
def test_folders_of_super_classes(tmp_path: Path, by: str) -> None:
    for value, (name, group) in enumerate(SUPER_CLASSES.items()):
        save(tmp_path / "test" / (name if by == "name" else group.wnid) / "a.png", flat(value))
    save(tmp_path / "test" / "bird" / "a.png")
    images = load_restricted_imagenet(tmp_path, "test", size=3)
    order = labels_of(images)
    assert sorted(order) == list(range(10))
    assert values_of(images) == order


def test_grey_images_become_rgb(tmp_path: Path) -> None:
    save(tmp_path / "dog" / "a.png", np.full((9, 9), 77, dtype=np.uint8))
    save(tmp_path / "dog" / "b.png", flat(78))
    assert values_of(load_restricted_imagenet(tmp_path, size=4)) == [77, 78]


def test_generic_folders_take_upper_case_suffixes(tmp_path: Path) -> None:
    for value, name in enumerate(["a.JPEG", "b.JPG", "c.Png", "d.bmp"]):
        save(tmp_path / "kind" / name, flat(value))
    with pytest.warns(UserWarning, match="one class folder alone, 'kind', so that every label is 0"):
        images = load_images(tmp_path)
    assert values_of(images) == [0, 1, 2, 3]
    assert labels_of(images) == [0] * 4


# ------------------------------------------------------------------------------------------------------------ pixels


@pytest.mark.parametrize(("h", "w"), [(200, 301), (301, 200), (40, 40), (500, 60)])
@pytest.mark.parametrize("size", [32, 33])
def test_the_middle_of_the_picture_stays_in_the_middle(tmp_path: Path, h: int, w: int, size: int) -> None:
    sides = np.zeros((h, w, 3), dtype=np.uint8)
    sides[:, w // 2 :, 0] = 255
    sides[h // 2 :, :, 1] = 255
    save(tmp_path / "dog" / "a.png", sides)
    image = load_restricted_imagenet(tmp_path, size=size).images[0].int()
    low, high = size // 2 - 3, size // 2 + 3  # the blurred edge, and half a pixel of rounding, lie between
    assert (image[0, :, :low] == 0).all()
    assert (image[0, :, high:] == 255).all()
    assert (image[1, :low] == 0).all()
    assert (image[1, high:] == 255).all()
    assert (image[2] == 0).all()


def test_at_256_the_central_224_are_untouched(tmp_path: Path) -> None:
    pixels = random_pixels(256, 300, 3)
    save(tmp_path / "dog" / "a.png", pixels)
    image = load_restricted_imagenet(tmp_path).images[0]
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pixels[16:240, 38:262])


@pytest.mark.parametrize(("h", "w"), [(160, 96), (50, 70), (333, 517)])
def test_resizing_is_antialiased_bilinear(tmp_path: Path, h: int, w: int) -> None:
    pixels = random_pixels(h, w, 3)
    save(tmp_path / "dog" / "a.png", pixels)
    image = load_restricted_imagenet(tmp_path, size=28).images[0].float()
    short = 32
    size = (short, int(short * w / h)) if h <= w else (int(short * h / w), short)
    floats = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(floats, size, mode="bilinear", antialias=True)[0]
    top, left = round((size[0] - 28) / 2), round((size[1] - 28) / 2)
    assert (image - resized[:, top : top + 28, left : left + 28]).abs().max() <= 1  # 8-bit rounding, once a direction


# ------------------------------------------------------------------------------------------------------------- limit


def counts_below(tmp_path: Path, counts: dict[str, int], **arguments: Any) -> Counter[str]:
    for wnid, count in counts.items():
        for i in range(count):
            save(tmp_path / wnid / f"{i:02}.png", flat(i))
    return Counter(NAMES[label] for label in labels_of(load_restricted_imagenet(tmp_path, size=3, **arguments)))


@pytest.mark.parametrize(
    ("limit", "shares"),
    [
        (3, (1, 1, 1)),
        (9, (3, 3, 3)),
        (10, (3, 3, 4)),
        (14, (4, 4, 6)),  # what frogs and sharks cannot fill goes to dogs
        (16, (4, 4, 8)),
        (99, (4, 4, 12)),
    ],
)
def test_limit_is_shared_equally(tmp_path: Path, limit: int, shares: tuple[int, int, int]) -> None:
    found = counts_below(tmp_path, {"n02085620": 12, "n01641577": 4, "n01484850": 4}, limit=limit)
    assert (found["frog"], found["shark"], found["dog"]) == shares


def test_limit_spreads_over_the_classes_of_a_super_class(tmp_path: Path) -> None:
    for base, wnid in enumerate(["n02085620", "n02085782", "n02085936"]):
        for i in range(4):
            save(tmp_path / wnid / f"{i}.png", flat(10 * base + i))
    values = values_of(load_restricted_imagenet(tmp_path, size=3, limit=6))
    assert Counter(value // 10 for value in values) == {0: 2, 1: 2, 2: 2}
    assert np.diff(values_of(load_restricted_imagenet(tmp_path, size=3, limit=3))).tolist() == [10, 10]


# --------------------------------------------------------------------------------------------- Hugging Face datasets


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    datasets = pytest.importorskip("datasets", reason="needs the data extra")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield datasets
    datasets.enable_progress_bars()


def encoded(value: int) -> dict[str, Any]:
    stream = io.BytesIO()
    Image.fromarray(flat(value)).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


BROKEN: dict[str, Any] = {"bytes": b"not an image, and never opened", "path": None}


def table(hub: Any, labels: list[int], names: list[str] | None) -> Any:
    """Rows whose image has the value of its row; images of foreign classes are broken."""
    kind = hub.Value("int64") if names is None else hub.ClassLabel(names=names)
    known = {*NAMES, *(group.wnid for group in SUPER_CLASSES.values())} | {wnid for wnid, _ in numbered().values()}
    ours = [label in numbered() if len(names or ()) in (0, 1000) else (names or [])[label] in known for label in labels]
    images = [encoded(i) if own else BROKEN for i, own in enumerate(ours)]
    features = hub.Features({"image": hub.Image(), "label": kind})
    return hub.Dataset.from_dict({"image": images, "label": labels}, features=features)


def write(hub: Any, rows: Any, folder: Path, form: str) -> Path:
    if form == "parquet":  # read as a stream
        rows.to_parquet(folder / "validation-00000-of-00001.parquet")
    else:
        hub.DatasetDict({"validation": rows}).save_to_disk(str(folder))
    return folder


@pytest.mark.parametrize("form", ["parquet", "disk"])
@pytest.mark.parametrize("named", [True, False])
def test_rows_by_number(hub: Any, tmp_path: Path, form: str, named: bool) -> None:
    names = [f"thing {i}" for i in range(1000)] if named else None
    labels = [151, 0, 4, 286, 999, 30, 151]
    folder = write(hub, table(hub, labels, names), tmp_path, form)
    images = load_restricted_imagenet(folder, "validation", size=4)
    assert labels_of(images) == [0, 9, 1, 2, 0]
    assert values_of(images) == [0, 2, 3, 5, 6]
    assert images.class_names == NAMES


@pytest.mark.parametrize("form", ["parquet", "disk"])
def test_limited_rows_are_balanced_and_in_order(hub: Any, tmp_path: Path, form: str) -> None:
    folder = write(hub, table(hub, [151] * 6 + [2] * 3 + [0] * 3 + [30], None), tmp_path, form)
    images = load_restricted_imagenet(folder, "validation", size=4, limit=5)
    assert labels_of(images) == [0, 0, 9, 9, 2]
    assert values_of(images) == [2, 5, 7, 8, 12]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["n01440764", "n02132136", "n02085620"], [5, 0]),  # tench, brown bear, Chihuahua
        (["bird", "bear", "dog"], [5, 0]),
    ],
)
def test_rows_by_name(hub: Any, tmp_path: Path, names: list[str], expected: list[int]) -> None:
    images = load_restricted_imagenet(write(hub, table(hub, [0, 1, 2], names), tmp_path, "disk"), "validation", size=4)
    assert (labels_of(images), values_of(images)) == (expected, [1, 2])


def test_numbers_of_another_data_set_are_refused(hub: Any, tmp_path: Path) -> None:
    folder = write(hub, table(hub, [0, 1, 2], ["a", "b", "c"]), tmp_path / "named", "disk")
    with pytest.raises(InvalidInput, match=r"has 3 classes, wanted ImageNet's 0\.\.999") as error:
        load_restricted_imagenet(folder, "validation")
    assert_one_line(error)
    folder = write(hub, table(hub, [151, 1000], None), tmp_path / "high", "disk")
    with pytest.raises(InvalidInput, match=r"has label 1000, wanted ImageNet's 0\.\.999"):
        load_restricted_imagenet(folder, "validation")
    folder = write(hub, table(hub, [-1, -1], None), tmp_path / "withheld", "disk")  # ImageNet's test split
    with pytest.raises(InvalidInput, match="holds no images of the ten super-classes"):
        load_restricted_imagenet(folder, "validation")


def test_columns_and_cells_of_another_kind_are_refused(hub: Any, tmp_path: Path) -> None:
    rows = hub.Dataset.from_dict({"picture": [1, 2], "label": [151, 30]})
    folder = write(hub, rows, tmp_path, "disk")
    with pytest.raises(InvalidInput, match="has no column 'image'; available: picture, label"):
        load_restricted_imagenet(folder, "validation")
    with pytest.raises(InvalidInput, match="has no column 'class'; available: picture, label"):
        load_restricted_imagenet(folder, "validation", image_column="picture", label_column="class")
    with pytest.raises(InvalidImages, match="row 0: holds int, wanted an encoded image"):
        load_restricted_imagenet(folder, "validation", image_column="picture")


def test_a_broken_image_is_named_by_its_row(hub: Any, tmp_path: Path) -> None:
    features = hub.Features({"image": hub.Image(), "label": hub.Value("int64")})
    rows = hub.Dataset.from_dict({"image": [encoded(1), BROKEN], "label": [151, 30]}, features=features)
    with pytest.raises(UnreadableFile, match="row 1 cannot be read") as error:
        load_restricted_imagenet(write(hub, rows, tmp_path, "parquet"), "validation")
    assert_one_line(error)


# ------------------------------------------------------------------------------------------------------------ errors


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    save(tmp_path / "dog" / "a.JPEG")
    content = (tmp_path / "dog" / "a.JPEG").read_bytes()
    (tmp_path / "dog" / "a.JPEG").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableFile, match=r"a\.JPEG cannot be read") as error:
        load_restricted_imagenet(tmp_path)
    assert_one_line(error)


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    save(tmp_path / "train" / "dog" / "a.png")
    save(tmp_path / "val" / "dog" / "a.png")
    with pytest.raises(InvalidInput, match="has no split 'test'; available: train, val") as error:
        load_restricted_imagenet(tmp_path, "test")
    assert_one_line(error)


@pytest.mark.parametrize("where", ["train/n01440764/a.JPEG", "n01440764/a.JPEG", "a.png", "train/dog/notes.txt"])
def test_folders_without_our_classes_are_refused(tmp_path: Path, where: str) -> None:
    if where.endswith(".txt"):
        (tmp_path / where).parent.mkdir(parents=True)
        (tmp_path / where).write_text("no image")
    else:
        save(tmp_path / where)
    with pytest.raises(InvalidInput, match="holds no images of the ten super-classes; wanted class folders") as error:
        load_restricted_imagenet(tmp_path)
    assert_one_line(error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size is 0, limit None; wanted both at least 1"),
        ({"limit": 0}, "size is 224, limit 0; wanted both at least 1"),
        ({"selection": "some"}, "selection is 'some', wanted 'paper' or 'all'"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    save(tmp_path / "dog" / "a.png")
    with pytest.raises(InvalidInput, match=message):
        load_restricted_imagenet(tmp_path, **arguments)


def test_files_and_missing_paths_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x=np.zeros(3))
    with pytest.raises(InvalidInput, match=r"set\.npz: a file, wanted a folder"):
        load_restricted_imagenet(tmp_path / "set.npz")
    with pytest.raises(UnreadableFile, match="no such file or folder"):
        load_restricted_imagenet(tmp_path / "none")

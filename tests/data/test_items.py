"""Images in memory, and data sets that hand them out: the pixels of each form are those of the same arrays."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import certibox as cb
from certibox.data import Images, load_images
from certibox.errors import CertiboxError, InvalidImages, InvalidInput, UnreadableFile

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 3, 6, 7), dtype=np.uint8)
LABELS = [2, 0, 1, 0, 2]


def picture(pixels: np.ndarray) -> Image.Image:  # (c, h, w)
    return Image.fromarray(np.moveaxis(pixels, 0, 2))


class Pairs(Dataset[Any]):
    """A stranger's map-style data set of (image, label), which knows how often it was asked."""

    def __init__(self, form: Callable[[np.ndarray], Any] = picture, labels: list[Any] = LABELS) -> None:
        self.form, self.labels, self.asked = form, labels, 0

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        self.asked += 1
        return self.form(PIXELS[index]), self.labels[index]


UNLABELLED: dict[str, Any] = {
    "array": PIXELS,
    "array of floats": PIXELS / 255,
    "array, channels last": np.moveaxis(PIXELS, 1, 3),
    "tensor": torch.from_numpy(PIXELS),
    "tensor of floats": torch.from_numpy(PIXELS) / 255,
    "nested lists": PIXELS.tolist(),
    "list of arrays": list(PIXELS),
    "list of Pillow images": [picture(x) for x in PIXELS],
    "list of tensors, channels last": [torch.from_numpy(x).permute(1, 2, 0) for x in PIXELS],
    "data set of tensors": TensorDataset(torch.from_numpy(PIXELS) / 255),
    "array beside no labels": (PIXELS, None),
}
LABELLED: dict[str, Any] = {
    "arrays": (PIXELS, np.array(LABELS, dtype=np.uint8)),
    "array and list": (PIXELS, LABELS),
    "tensors": (torch.from_numpy(PIXELS) / 255, torch.tensor(LABELS)),
    "lists": ([picture(x) for x in PIXELS], LABELS),
    "list of pairs": list(zip(PIXELS, LABELS, strict=True)),
    "data set of Pillow images": Pairs(),
    "data set of tensors": TensorDataset(torch.from_numpy(PIXELS), torch.tensor(LABELS)),
    "data set of numpy integers": Pairs(labels=list(np.array(LABELS))),
    "part of a data set": Subset(Pairs(), range(5)),
}


@pytest.mark.parametrize("form", UNLABELLED)
@pytest.mark.parametrize("limit", [None, 2, 50])
def test_every_form_gives_the_same_pixels(form: str, limit: int | None) -> None:
    images = load_images(UNLABELLED[form], limit=limit)
    np.testing.assert_array_equal(images.images.numpy(), PIXELS[:limit])
    assert images.labels is None


@pytest.mark.parametrize("form", LABELLED)
@pytest.mark.parametrize("limit", [None, 2, 50])
def test_every_form_keeps_images_and_labels_together(form: str, limit: int | None) -> None:
    images = load_images(LABELLED[form], limit=limit)
    np.testing.assert_array_equal(images.images.numpy(), PIXELS[:limit])
    assert images.labels is not None
    assert images.labels.tolist() == LABELS[:limit]


def test_grey_images_have_one_channel() -> None:
    grey = PIXELS[:, 0]
    for source in (grey, list(grey), [Image.fromarray(x) for x in grey], [x[..., None] for x in grey]):
        np.testing.assert_array_equal(load_images(source).images.numpy(), grey[:, None])


def test_images_are_named_after_their_source() -> None:
    assert [load_images(source).name for source in (PIXELS, [PIXELS[0]], Pairs())] == ["arrays", "list", "Pairs"]


def test_a_limit_asks_for_no_item_beyond_it() -> None:
    pairs = Pairs()
    load_images(pairs, limit=3)
    assert pairs.asked == 3


def test_the_digest_is_that_of_the_pixels_whatever_form_they_came_in() -> None:
    assert cb.load_images(PIXELS).digest == load_images([picture(x) for x in PIXELS]).digest


def test_other_formats_of_the_same_table_agree() -> None:
    datasets = pytest.importorskip("datasets", reason="needs the data extra")
    columns = {"image": [picture(x) for x in PIXELS], "label": LABELS}
    names = datasets.ClassLabel(names=["ant", "bee", "cat"])
    table = datasets.Dataset.from_dict(columns, datasets.Features({"image": datasets.Image(), "label": names}))
    stream, splits = table.to_iterable_dataset(), datasets.DatasetDict(test=table)
    for source in (table, table.with_format("torch"), table.with_format("numpy"), stream, splits):
        images = load_images(source, "test" if source is splits else "train")
        np.testing.assert_array_equal(images.images.numpy(), PIXELS)
        assert images.labels is not None
        assert images.labels.tolist() == LABELS
        assert images.class_names == ("ant", "bee", "cat")
    renamed = table.rename_columns({"image": "img", "label": "fine"})
    assert load_images(renamed, image_column="img", label_column="fine", limit=2).class_names == images.class_names
    with pytest.raises(InvalidInput, match="DatasetDict has no split 'train'; available: test"):
        load_images(splits)
    assert load_images(renamed).class_names == images.class_names  # the only columns of these types
    with pytest.raises(InvalidInput, match="no column 'image'; available: img, fine"):
        load_images(renamed, image_column="image")


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(PIXELS)


class Broken(Pairs):
    def __getitem__(self, index: int) -> tuple[Any, Any]:
        raise OSError("disk\nis gone")


def tilted(form: Callable[[np.ndarray], Any]) -> Pairs:
    """A data set whose last image only is not what the others are."""
    return Pairs(lambda x: form(x) if x is PIXELS[4] or (x == PIXELS[4]).all() else picture(x))


TAKEN = "wanted a name, a path, Images, an array or tensor, a pair .*, a list of images or of paths, a map-style data"
REFUSED: list[tuple[Any, type[CertiboxError], str]] = [
    (None, InvalidInput, f"images are NoneType, {TAKEN}"),
    (3, InvalidInput, f"images are int, {TAKEN}"),
    (b"bytes", InvalidInput, f"images are bytes, {TAKEN}"),
    ({"images": PIXELS}, InvalidInput, f"images are dict, {TAKEN}"),
    (iter(PIXELS), InvalidInput, f"images are iterator, {TAKEN}"),
    (picture(PIXELS[0]), InvalidInput, f"images are PIL.Image.Image, {TAKEN}"),
    (DataLoader(Pairs()), InvalidInput, f"images are torch.utils.data.dataloader.DataLoader, {TAKEN}"),
    (Stream(), InvalidInput, rf"images are .*\.Stream, {TAKEN}"),
    ((PIXELS,), InvalidInput, r"tuple \(numpy.ndarray\), wanted an array or list of images and labels"),
    ((PIXELS, LABELS, 3, 4), InvalidInput, r"tuple \(numpy.ndarray, list, int, …\), wanted"),
    (("digits", LABELS), InvalidInput, r"tuple \(str, list\), wanted"),
    ((Pairs(), LABELS), InvalidInput, "have labels of their own"),
    ((PIXELS, LABELS[:2]), InvalidImages, r"labels have shape \(2,\), wanted one label for each of 5 images"),
    ((PIXELS, [0.5] * 5), InvalidImages, "labels are float64, wanted integers"),
    ([], InvalidInput, "list holds no images"),
    (TensorDataset(torch.zeros(0, 1, 2, 2)), InvalidInput, "TensorDataset holds no images"),
    (["a.png"], UnreadableFile, "a.png cannot be read: FileNotFoundError"),
    ([PIXELS[0], "a.png"], InvalidImages, "list item 0: holds numpy.ndarray, wanted a path like the others"),
    ([{}], InvalidImages, "list item 0: holds dict, wanted a Pillow image, a path, an array or a tensor"),
    ([(PIXELS[0], 1, 2)], InvalidImages, "list item 0: holds a tuple of 3, wanted an image or a pair"),
    ([(PIXELS[0], 1), (PIXELS[1], None)], InvalidInput, "1 of 2 images have no label; label all of them or none"),
    (Pairs(labels=["ant"] * 5), InvalidImages, "Pairs item 0: label 'ant' is no integer; encode labels"),
    (Pairs(labels=[torch.rand(3)] * 5), InvalidImages, "Pairs item 0: label tensor.* is no integer"),
    (Pairs(labels=[-1] * 5), InvalidImages, "Pairs: smallest label is -1"),
    (Broken(), UnreadableFile, r"5 of 5 images .*: Broken item 0, .* \(OSError: disk is gone\); check"),
    (tilted(lambda x: x[:, :4]), InvalidImages, "Pairs item 4: 7×4 pixels, 3 channels, but those before have 7×6, 3"),
    (tilted(lambda x: x.astype(float)), InvalidImages, r"Pairs item 4: pixels from .*, wanted \[0, 1\]: divide by 255"),
    (tilted(lambda x: x / 127.5 - 1), InvalidImages, r"Pairs item 4: .*\[0, 1\]: undo the normalisation"),
    (tilted(lambda x: x[0, 0]), InvalidImages, r"Pairs item 4: images have shape \(1, 7\), wanted"),
    (tilted(lambda x: Image.fromarray(x[0].astype(np.int32))), InvalidImages, "Pairs item 4: 7×6, mode I; wanted 8"),
    (PIXELS[0, 0], InvalidImages, r"arrays: images have shape \(6, 7\), wanted \(n, h, w\)"),
    (torch.tensor(1.0), InvalidImages, r"arrays: images have shape \(\), wanted \(n, h, w\)"),
    (PIXELS / 100, InvalidImages, r"arrays: pixels from .* image 0 is the first outside: divide by 255"),
]


@pytest.mark.parametrize(("source", "error", "message"), REFUSED, ids=[message[:50] for _, _, message in REFUSED])
def test_anything_else_is_refused_in_one_line(source: Any, error: type[CertiboxError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        load_images(source)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_limit_does_not_hide_labels_that_are_too_few() -> None:
    with pytest.raises(InvalidImages, match="wanted one label for each of 5 images"):
        load_images((PIXELS, LABELS[:2]), limit=2)


class Large:
    """A data set of 300 images of 48 KB as floats."""

    def __len__(self) -> int:
        return 300

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((3, 64, 64), index / 300)


def peak(load: Callable[[], Images]) -> tuple[int, int]:
    """(bytes of pixels that were loaded, most bytes that were ever used beside what was there before)"""
    tracemalloc.start()
    images = load()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return images.images.numel(), most


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_are_converted_without_a_second_copy(dtype: type) -> None:
    given = np.zeros((2000, 3, 32, 32), dtype)
    pixels, most = peak(lambda: load_images(given))
    assert pixels <= most < 1.3 * pixels


def test_a_data_set_is_read_without_keeping_its_items() -> None:
    load_images(Large(), limit=2)  # whatever is imported on first use
    pixels, most = peak(lambda: load_images(Large()))
    assert pixels <= most < 1.3 * pixels


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (2**63, r"largest label is 9223372036854775808, wanted below 1,000,000"),
        (2**70, r"a label is of 71 bits, wanted below 1,000,000"),
        (-(2**70), r"a label is of 71 bits, wanted below 1,000,000"),
    ],
)
def test_a_label_beyond_all_integers_is_named_as_it_is(label: int, said: str) -> None:
    pixels = np.zeros((2, 1, 4, 4), np.uint8)
    for source in ((pixels, [0, label]), (pixels, np.array([0, label], object)), [(pixels[0], 0), (pixels[1], label)]):
        with pytest.raises(InvalidImages, match=said):
            load_images(source)


def test_whole_numbers_in_an_array_of_objects_are_labels() -> None:
    pixels = np.zeros((3, 1, 4, 4), np.uint8)
    images = load_images((pixels, np.array([2, np.int8(0), 1], object)))
    assert images.labels is not None
    assert images.labels.tolist() == [2, 0, 1]
    with pytest.raises(InvalidImages, match="labels are object, wanted integers"):
        load_images((pixels, np.array([2, 0.5, 1], object)))

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from certibox.data import Images, load_images
from certibox.errors import InvalidInput, UnreadableFile

NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def random_pixels(n: int, seed: int = 0) -> np.ndarray:  # (n, 3, 96, 96)
    return np.random.default_rng(seed).integers(0, 256, (n, 3, 96, 96), dtype=np.uint8)


def write_images(file: Path, pixels: np.ndarray) -> None:
    """As MATLAB stores it: for each image and channel, its columns one after the other."""
    file.write_bytes(b"".join(channel.tobytes(order="F") for image in pixels for channel in image))


def write_split(folder: Path, split: str, pixels: np.ndarray, labels: list[int] | None) -> None:
    write_images(folder / f"{split}_X.bin", pixels)
    if labels is not None:
        (folder / f"{split}_y.bin").write_bytes(bytes(labels))


def labels_of(images: Images) -> list[int] | None:
    return None if images.labels is None else images.labels.tolist()


def assert_one_line(error: pytest.ExceptionInfo[BaseException]) -> None:
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_every_split_round_trips(tmp_path: Path) -> None:
    train, test, unlabeled = random_pixels(4, 1), random_pixels(2, 2), random_pixels(3, 3)
    write_split(tmp_path, "train", train, [10, 1, 2, 1])
    write_split(tmp_path, "test", test, [7, 10])
    write_split(tmp_path, "unlabeled", unlabeled, None)
    (tmp_path / "class_names.txt").write_text("\n".join(NAMES) + "\n")
    expected = {"train": (train, [9, 0, 1, 0]), "test": (test, [6, 9]), "unlabeled": (unlabeled, None)}
    for split, (pixels, labels) in expected.items():
        images = load_images(tmp_path, split)
        np.testing.assert_array_equal(images.images.numpy(), pixels)
        assert images.images.is_contiguous()
        assert labels_of(images) == labels
        assert images.class_names == (NAMES if labels else None)
        assert images.name == f"{tmp_path.name}:{split}"


def test_the_first_bytes_are_the_first_column_of_red(tmp_path: Path) -> None:
    stored = np.zeros(3 * 96 * 96, dtype=np.uint8)
    stored[:96] = 200
    (tmp_path / "unlabeled_X.bin").write_bytes(stored.tobytes())
    image = load_images(tmp_path, "unlabeled").images[0]
    assert (image[0, :, 0] == 200).all()
    assert int(image.long().sum()) == 200 * 96


def test_limit_takes_the_first_images_and_labels(tmp_path: Path) -> None:
    pixels = random_pixels(4)
    write_split(tmp_path, "train", pixels, [3, 5, 1, 2])
    images = load_images(tmp_path, limit=2)
    np.testing.assert_array_equal(images.images.numpy(), pixels[:2])
    assert labels_of(images) == [2, 4]
    assert images.class_names is None
    assert len(load_images(tmp_path, limit=9)) == 4


def test_images_outlive_their_files(tmp_path: Path) -> None:
    pixels = random_pixels(2)
    write_split(tmp_path, "unlabeled", pixels, None)
    images = load_images(tmp_path, "unlabeled")
    (tmp_path / "unlabeled_X.bin").write_bytes(bytes(pixels.nbytes))
    np.testing.assert_array_equal(images.images.numpy(), pixels)


@pytest.mark.parametrize("size", [0, 1, 3 * 96 * 96 - 1, 3 * 96 * 96 + 1])
def test_a_file_of_wrong_length_is_named(tmp_path: Path, size: int) -> None:
    (tmp_path / "unlabeled_X.bin").write_bytes(bytes(size))
    with pytest.raises(UnreadableFile, match=rf"unlabeled_X\.bin: {size} bytes, wanted a multiple of 27648") as error:
        load_images(tmp_path, "unlabeled")
    assert_one_line(error)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, r"train_y\.bin: not there, but train_X\.bin is"),
        ([1], r"train_y\.bin: 1 labels, wanted one for each of 2 images"),
        ([1, 2, 3], r"train_y\.bin: 3 labels, wanted one for each of 2 images"),
        ([0, 9], r"train_y\.bin: labels from 0 to 9, wanted 1\.\.10"),
        ([11, 4], r"train_y\.bin: labels from 4 to 11, wanted 1\.\.10"),
    ],
)
def test_wrong_labels_are_named(tmp_path: Path, labels: list[int] | None, message: str) -> None:
    write_split(tmp_path, "train", random_pixels(2), labels)
    with pytest.raises(UnreadableFile, match=message) as error:
        load_images(tmp_path)
    assert_one_line(error)


def test_wrong_class_names_are_named(tmp_path: Path) -> None:
    write_split(tmp_path, "train", random_pixels(1), [1])
    (tmp_path / "class_names.txt").write_text("cat\ndog\n")
    with pytest.raises(InvalidInput, match=r"class_names\.txt: 2 names, wanted 10") as error:
        load_images(tmp_path)
    assert_one_line(error)


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    write_split(tmp_path, "test", random_pixels(1), [1])
    write_split(tmp_path, "unlabeled", random_pixels(1), None)
    with pytest.raises(InvalidInput, match="has no split 'train'; available: test, unlabeled"):
        load_images(tmp_path)


# --------------------------------------------------------------------------------------------- its other distributions


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    datasets = pytest.importorskip("datasets", reason="needs the data extra")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield datasets
    datasets.enable_progress_bars()


def test_parquet_with_named_classes(hub: Any, tmp_path: Path) -> None:
    pixels = random_pixels(2)
    features = hub.Features({"image": hub.Image(), "label": hub.ClassLabel(names=list(NAMES))})
    column = [Image.fromarray(np.moveaxis(image, 0, 2)) for image in pixels]
    rows = hub.Dataset.from_dict({"image": column, "label": [9, 3]}, features=features)
    rows.to_parquet(tmp_path / "test-00000-of-00001.parquet")
    images = load_images(tmp_path, "test")
    np.testing.assert_array_equal(images.images.numpy(), pixels)
    assert (labels_of(images), images.class_names) == ([9, 3], NAMES)


def test_image_folders_with_an_unlabelled_split(tmp_path: Path) -> None:
    pixels = random_pixels(3)
    for image, where in zip(pixels, ["train/bird/1.PNG", "train/car/2.PNG", "unlabeled/3.PNG"], strict=True):
        (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.moveaxis(image, 0, 2)).save(tmp_path / where)
    train, unlabeled = load_images(tmp_path), load_images(tmp_path, "unlabeled")
    np.testing.assert_array_equal(train.images.numpy(), pixels[:2])
    assert (labels_of(train), train.class_names) == ([0, 1], ("bird", "car"))
    np.testing.assert_array_equal(unlabeled.images.numpy(), pixels[2:])
    assert labels_of(unlabeled) is None

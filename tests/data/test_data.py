from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from certibox.data import AUGMENTATIONS, Images, augment, images_from_arrays, load_images
from certibox.errors import InvalidImages, InvalidInput, UnreadableFile


def random_pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def random_images(n: int = 12, c: int = 3, h: int = 5, w: int = 6) -> Images:
    return images_from_arrays(random_pixels(n, c, h, w), np.arange(n) % 4, "random")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def save_png(file: Path, pixels: np.ndarray) -> None:  # (c, h, w)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, 2)).save(file)


def assert_one_line(error: pytest.ExceptionInfo[BaseException]) -> None:
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


# ---------------------------------------------------------------------------------------------------------- Images


def test_images_report_their_sizes() -> None:
    images = random_images()
    assert (len(images), images.shape, images.num_classes) == (12, (3, 5, 6), 4)
    assert repr(images) == "Images('random', 12 of shape (3, 5, 6), 4 classes)"
    bare = images_from_arrays(random_pixels(2, 4, 4))
    assert bare.num_classes is None
    assert "unlabelled" in repr(bare)


@pytest.mark.parametrize(
    ("index", "positions"),
    [
        (None, range(12)),
        (slice(2, 9, 3), [2, 5, 8]),
        ([5, 0, 5], [5, 0, 5]),
        (torch.tensor([7, -1]), [7, 11]),
    ],
)
def test_floats_are_pixels_over_255(index: slice | list[int] | Tensor | None, positions: list[int]) -> None:
    images = random_images()
    floats = images.floats(index)
    assert floats.dtype == torch.float32
    expected = images.images.numpy()[list(positions)].astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(floats.numpy(), expected)


def test_select_keeps_images_and_labels_together() -> None:
    images = random_images()
    chosen = images.select([5, 0, 5])
    assert torch.equal(chosen.images, images.images[[5, 0, 5]])
    assert chosen.labels is not None
    assert chosen.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(("share", "held"), [(0.1, 10), (0.5, 50), (0.994, 99)])
def test_split_is_disjoint_and_exhaustive(share: float, held: int) -> None:
    numbers = torch.arange(100)  # each image is its own number
    images = Images(numbers.to(torch.uint8).reshape(100, 1, 1, 1), numbers, "numbered")
    rest, part = images.split(share, seed=3)
    assert (len(rest), len(part)) == (100 - held, held)
    assert sorted(torch.cat([rest.images, part.images]).flatten().tolist()) == list(range(100))
    for side in (rest, part):
        assert side.labels is not None
        assert torch.equal(side.labels, side.images.flatten().long())


def test_split_is_a_function_of_the_seed() -> None:
    images = random_images(100)
    assert images.split(0.3, 1)[1].digest == images.split(0.3, 1)[1].digest
    assert images.split(0.3, 1)[1].digest != images.split(0.3, 2)[1].digest
    assert images.split(0.3, 1)[0].name != images.split(0.3, 1)[1].name


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 1.5, float("nan"), 0.01, 0.99])
def test_split_refuses_a_share_that_leaves_a_part_empty(share: float) -> None:
    with pytest.raises(InvalidInput, match="leaves a part empty"):
        random_images().split(share, 0)


class Negative:
    digest = "negative"

    def __call__(self, x: Tensor) -> Tensor:
        return 0.3 - x


def test_a_view_is_what_floats_show() -> None:
    plain = random_images()
    seen = replace(plain, view=Negative())
    assert torch.equal(seen.floats([3, 1]), 0.3 - plain.floats([3, 1]))
    assert torch.equal(seen.select([5, 2]).floats(), 0.3 - plain.floats([5, 2]))
    for part, original in zip(seen.split(0.25, 3), plain.split(0.25, 3), strict=True):
        assert torch.equal(part.floats(), 0.3 - original.floats())
        assert part.labels is not None
        assert original.labels is not None
        assert torch.equal(part.labels, original.labels)
    assert seen.shape == plain.shape


def test_a_view_enters_the_digest() -> None:
    plain, other = random_images(), Negative()
    other.digest = "other"
    views = (None, Negative(), other)
    assert len({replace(plain, view=view).digest for view in views}) == 3
    assert replace(plain, view=Negative()).digest == replace(plain, view=Negative()).digest


def test_a_view_that_changes_the_shape_is_refused() -> None:
    class Flat(Negative):
        def __call__(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    with pytest.raises(InvalidImages, match=r"made \(12, 90\) of \(12, 3, 5, 6\)") as caught:
        replace(random_images(), view=Flat()).floats()
    assert_one_line(caught)


def test_digest_is_the_sha256_of_shape_and_pixels() -> None:
    images = random_images()
    expected = hashlib.sha256(b"(12, 3, 5, 6)" + images.images.numpy().tobytes()).hexdigest()
    assert images.digest == expected
    changed = images.images.clone()
    changed[11, 2, 4, 5] ^= 1
    assert Images(changed, images.labels, "random").digest != expected
    assert Images(images.images.reshape(12, 3, 6, 5), None, "random").digest != expected
    assert Images(images.images, None, "other").digest == expected
    # A view with other strides but equal pixels is the same set of images.
    view = images.images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert Images(view, None, "view").digest == expected


GOOD = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        (GOOD.float(), None, None, "torch.float32, wanted a torch.uint8"),
        (GOOD.numpy(), None, None, "uint8, wanted a torch.uint8"),
        (GOOD[0], None, None, r"\(1, 3, 3\), wanted \(n, c, h, w\)"),
        (GOOD[:0], None, None, r"\(0, 1, 3, 3\), wanted"),
        (GOOD[:, :0], None, None, r"\(2, 0, 3, 3\), wanted"),
        (GOOD, torch.zeros(2), None, "torch.float32, wanted a torch.int64"),
        (GOOD, [0, 1], None, "list, wanted a torch.int64"),
        (GOOD, torch.tensor([0]), None, "one label for each of 2 images"),
        (GOOD, torch.tensor([0, -1]), None, "smallest label is -1"),
        (GOOD, torch.tensor([0, 2]), ("a", "b"), "label 2 has no name, only 2"),
    ],
)
def test_images_refuse_broken_parts(images: Tensor, labels: Tensor, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidImages, match=message) as error:
        Images(images, labels, "set", names)
    assert str(error.value).startswith("set: ")
    assert_one_line(error)


# ---------------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16, np.float16, np.float32, np.float64])
def test_every_8_bit_value_survives_every_type(dtype: type) -> None:
    values = np.arange(256).reshape(1, 1, 16, 16)
    given = (values / 255).astype(dtype) if np.issubdtype(dtype, np.floating) else values.astype(dtype)
    np.testing.assert_array_equal(images_from_arrays(given).images.numpy(), values)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32, torch.float16])
def test_tensors_are_read_like_arrays(dtype: torch.dtype) -> None:
    values = torch.arange(256).reshape(1, 1, 16, 16)
    given = (values / 255).to(dtype) if dtype.is_floating_point else values.to(dtype)
    assert torch.equal(images_from_arrays(given.requires_grad_(dtype == torch.float32)).images, values.to(torch.uint8))


def test_bfloat16_rounds_to_the_nearest_level() -> None:
    given = torch.linspace(0, 1, 100).reshape(1, 1, 10, 10).bfloat16()
    assert torch.equal(images_from_arrays(given).images, (given.double() * 255).round().to(torch.uint8))


@pytest.mark.parametrize("c", [1, 3])
def test_layouts_agree(c: int) -> None:
    pixels = random_pixels(4, c, 5, 6)
    for given in (pixels, np.moveaxis(pixels, 1, 3), *([pixels[:, 0]] if c == 1 else [])):
        np.testing.assert_array_equal(images_from_arrays(given).images.numpy(), pixels)


def test_arrays_are_copied() -> None:
    pixels = random_pixels(2, 1, 4, 4)
    before = pixels.copy()
    images = images_from_arrays(pixels)
    pixels[:] = 0
    np.testing.assert_array_equal(images.images.numpy(), before)


def spoiled(value: float, image: int = 3) -> np.ndarray:
    pixels = np.full((5, 1, 2, 2), 0.5)
    pixels[image, 0, 1, 0] = value
    return pixels


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (spoiled(200.0), r"from 0.5 to 200, wanted \[0, 1\]; image 3 is the first outside: divide by 255"),
        (spoiled(-1.5), r"from -1.5 to 0.5, .* image 3 .*: undo the normalisation"),
        (spoiled(300.0), "undo the normalisation"),
        (spoiled(float("nan")), "from 0.5 to 0.5, .* image 3 .*: remove NaN"),
        (spoiled(float("inf"), 0), "to inf, .* image 0 .*: remove NaN"),
        (spoiled(256, 2).astype(int), r"from 0 to 256, wanted \[0, 255\]; image 2 .*: rescale to 8 bits"),
        (spoiled(-1).astype(np.int8), "from -1 to 0, .* image 3"),
        (np.zeros((2, 2, 2), dtype=bool), "images are bool, wanted uint8"),
        (np.array([["a"]]), "images are <U1, wanted"),
        (np.zeros((2, 4, 5, 5)), r"shape \(2, 4, 5, 5\), wanted \(n, h, w\), \(n, c, h, w\) or \(n, h, w, c\)"),
        (np.zeros((5, 5)), r"shape \(5, 5\), wanted"),
        (np.zeros((0, 5, 5)), r"shape \(0, 5, 5\), wanted"),
        (np.zeros((2, 3, 5, 3)), r"shape \(2, 3, 5, 3\) may be"),
        ([[[1, 2]], [[1]]], "not one rectangular array"),
    ],
)
def test_wrong_pixels_are_named(given: np.ndarray, message: str) -> None:
    with pytest.raises(InvalidImages, match=message) as error:
        images_from_arrays(given, name="mine")
    assert str(error.value).startswith("mine: ")
    assert_one_line(error)


def test_labels_of_any_integer_type_become_int64() -> None:
    images = images_from_arrays(random_pixels(3, 4, 4), np.array([2, 0, 1], dtype=np.uint8))
    assert images.labels is not None
    assert images.labels.dtype == torch.int64
    assert images.labels.tolist() == [2, 0, 1]
    column = images_from_arrays(random_pixels(3, 4, 4), np.array([[2], [0], [1]]))  # as many data sets have them
    assert column.labels is not None
    assert column.labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize("label", [10**6, 10**12, 2**63])
def test_labels_that_number_no_class_are_refused(label: int) -> None:
    with pytest.raises(InvalidImages, match=f"mine: largest label is {label}, wanted below 1,000,000; number the"):
        images_from_arrays(random_pixels(2, 4, 4), np.array([0, label], np.uint64), "mine")
    largest = images_from_arrays(random_pixels(2, 4, 4), np.array([0, 999_999]))
    assert largest.num_classes == 10**6


@pytest.mark.parametrize("labels", [[0.0, 1.0, 2.0], ["a", "b", "c"], [0, 1], [[0, 1], [1, 0], [2, 0]], [0, 1, -1]])
def test_wrong_labels_are_refused(labels: list) -> None:
    with pytest.raises(InvalidImages, match=r"^arrays: .*label"):
        images_from_arrays(random_pixels(3, 4, 4), labels)


# ---------------------------------------------------------------------------------------------------------- digits


def test_digits_are_scikit_learns_in_8_bits() -> None:
    from sklearn.datasets import load_digits

    original: Any = load_digits()
    pixels = np.rint(original.images * (255 / 16)).astype(np.uint8)
    expected = sorted((x.tobytes(), int(y)) for x, y in zip(pixels, original.target, strict=True))
    found = []
    for split, size in (("train", 1000), ("validation", 297), ("test", 500)):
        images = load_images("digits", split)
        assert (len(images), images.shape, images.num_classes) == (size, (1, 8, 8), 10)
        assert images.class_names == tuple("0123456789")
        assert images.labels is not None
        found += [(x.tobytes(), int(y)) for x, y in zip(images.images.numpy(), images.labels, strict=True)]
    assert sorted(found) == expected  # disjoint and exhaustive, as multisets


@pytest.mark.parametrize(("split", "size"), [("train", 1000), ("validation", 297), ("test", 500)])
def test_digits_splits_hold_every_class_in_proportion(split: str, size: int) -> None:
    from sklearn.datasets import load_digits

    labels = load_images("digits", split).labels
    assert labels is not None
    original: Any = load_digits()
    proportional = np.bincount(original.target) * size / 1797
    assert np.abs(np.bincount(labels.numpy()) - proportional).max() < 2


def test_digits_are_shuffled_and_the_shuffle_is_fixed() -> None:
    labels = load_images("digits", limit=12).labels
    assert labels is not None
    assert labels.tolist() == [2, 8, 2, 6, 6, 7, 1, 5, 6, 6, 0, 8]


def test_digits_name_their_splits() -> None:
    with pytest.raises(InvalidInput, match="digits has no split 'dev'; available: train, validation, test"):
        load_images("digits", "dev")


# ------------------------------------------------------------------------------------------------------- load_images


def test_limit_takes_the_first() -> None:
    images = random_images()
    assert load_images(images) is images
    assert torch.equal(load_images(images, limit=5).images, images.images[:5])
    assert len(load_images(images, limit=50)) == 12
    with pytest.raises(InvalidInput, match="limit is 0"):
        load_images(images, limit=0)


@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), ("x", None)])
def test_npz_round_trip(tmp_path: Path, keys: tuple[str, str | None]) -> None:
    pixels, labels = random_pixels(6, 3, 4, 5), np.arange(6) % 3
    arrays: dict[str, Any] = {keys[0]: pixels} | ({keys[1]: labels} if keys[1] else {})
    np.savez(tmp_path / "set.npz", **arrays)
    images = load_images(tmp_path / "set.npz", limit=4)
    np.testing.assert_array_equal(images.images.numpy(), pixels[:4])
    assert (None if images.labels is None else images.labels.tolist()) == ([0, 1, 2, 0] if keys[1] else None)
    assert images.name == "set.npz"


def test_unreadable_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "good.npz", images=random_pixels(6, 8, 8))
    content = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[:200])
    (tmp_path / "text.npz").write_text("not a zip")
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    np.savez(tmp_path / "pickled.npz", images=np.array([{}], dtype=object))
    for name in ("cut", "text", "array", "pickled"):
        with pytest.raises(UnreadableFile, match=rf"{name}\.npz cannot be read") as error:
            load_images(tmp_path / f"{name}.npz")
        assert_one_line(error)


def test_npz_without_images_or_with_wrong_ones(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", pictures=random_pixels(6, 8, 8), labels=np.zeros(6))
    with pytest.raises(InvalidInput, match="holds pictures, labels, wanted an array 'images' or 'x'"):
        load_images(str(tmp_path / "set.npz"))
    np.savez(tmp_path / "bright.npz", images=np.full((2, 8, 8), 9.0))
    with pytest.raises(InvalidImages, match=r"bright.npz: pixels from 9 to 9"):
        load_images(tmp_path / "bright.npz")


@pytest.mark.parametrize("source", ["./none", "/no/such/one", "~/no-such-one", "a.npz", "org/a.npz", Path("org/a")])
def test_missing_paths_are_not_hub_names(source: str | Path) -> None:
    with pytest.raises(UnreadableFile, match="no such file or folder"):
        load_images(source)


@pytest.mark.parametrize("source", ["", "digit", "data/of/mine"])
def test_names_that_can_be_nothing(source: str) -> None:
    with pytest.raises(InvalidInput, match="neither 'digits', nor an existing path, nor a Hub name"):
        load_images(source)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UnreadableFile, match=r"notes\.txt: not a known kind of file"):
        load_images(tmp_path / "notes.txt")
    with pytest.raises(InvalidInput, match=r"holds no images and no \.parquet or \.arrow files, but .*: 1 \.txt$"):
        load_images(tmp_path)


# --------------------------------------------------------------------------------------------------- image folders


@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_class_folders_round_trip(tmp_path: Path, c: int, suffix: str) -> None:
    pixels = random_pixels(6, c, 4, 5)
    for i, name in enumerate(["ant", "ant", "bee", "bee", "cat", "cat"]):
        save_png(tmp_path / name / f"{i}.{suffix}", pixels[i])
    images = load_images(tmp_path)
    np.testing.assert_array_equal(images.images.numpy(), pixels)
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert images.class_names == ("ant", "bee", "cat")
    assert len(load_images(tmp_path, limit=3)) == 3


def test_split_folders_number_classes_alike(tmp_path: Path) -> None:
    pixels = random_pixels(5, 1, 4, 5)
    for i, where in enumerate(["train/ant", "train/bee", "train/cat", "test/ant", "test/cat"]):
        save_png(tmp_path / where / f"{i}.png", pixels[i])
    test = load_images(tmp_path, "test")
    np.testing.assert_array_equal(test.images.numpy(), pixels[3:])
    assert test.labels is not None
    assert test.labels.tolist() == [0, 2]  # "cat" stays 2 though "bee" is missing here
    assert test.class_names == ("ant", "bee", "cat")
    with pytest.raises(InvalidInput, match="no split 'validation'; available: test, train"):
        load_images(tmp_path, "validation")


@pytest.mark.parametrize("folder", [".", "train"])
def test_flat_folders_have_no_labels(tmp_path: Path, folder: str) -> None:
    pixels = random_pixels(3, 3, 4, 5)
    for i in range(3):
        save_png(tmp_path / folder / f"{i}.png", pixels[i])
    (tmp_path / folder / "notes.txt").write_text("not an image")
    with pytest.warns(UserWarning, match=r"1 of 4 files were left out: 1 \.txt; the first is \S+\.txt$"):
        images = load_images(tmp_path)
    np.testing.assert_array_equal(images.images.numpy(), pixels)
    assert images.labels is None
    assert images.class_names is None


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", random_pixels(1, 4, 4))
    save_png(tmp_path / "ant" / "b.png", random_pixels(1, 4, 4))
    with pytest.raises(
        InvalidInput, match=r"/a\.png: beside the class folders and in none of them; move what is loose"
    ):
        load_images(tmp_path)
    save_png(tmp_path / "c.png", random_pixels(1, 4, 4))
    with pytest.raises(InvalidInput, match=r"/a\.png and 1 more image: beside the class folders"):
        load_images(tmp_path)
    (tmp_path / "ant").rename(tmp_path / "train")
    save_png(tmp_path / "test" / "d.png", random_pixels(1, 4, 4))
    with pytest.raises(InvalidInput, match=r"/a\.png and 1 more image: beside the split folders"):
        load_images(tmp_path)


@pytest.mark.parametrize("shape", [(1, 4, 7), (3, 4, 5)])
def test_images_of_another_size_or_mode_are_named(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    save_png(tmp_path / "a.png", random_pixels(1, 4, 5))
    save_png(tmp_path / "b.png", random_pixels(*shape))
    c, h, w = shape
    with pytest.raises(InvalidImages, match=rf"b\.png: {w}×{h} pixels, {c} channels, but those before have 5×4, 1"):
        load_images(tmp_path)


def test_modes_become_grey_or_rgb(tmp_path: Path) -> None:
    grey = random_pixels(4, 5)
    bits = Image.fromarray((grey > 127).astype(np.uint8) * 255).convert("1")
    bits.save(tmp_path / "bits.png")
    np.testing.assert_array_equal(load_images(tmp_path).images[0, 0].numpy(), np.where(grey > 127, 255, 0))
    (tmp_path / "bits.png").unlink()
    rgba = random_pixels(4, 5, 4)
    Image.fromarray(rgba, "RGBA").save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(load_images(tmp_path).images[0].numpy(), np.moveaxis(rgba[..., :3], 2, 0))


def test_16_bit_images_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 5), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InvalidImages, match=r"deep\.png: 5×4, mode I(;16)?; wanted 8 bits a channel"):
        load_images(tmp_path)


def test_jpeg_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    flat = np.zeros((8, 16), dtype=np.uint8)
    flat[:, 8:] = 255
    Image.fromarray(flat).save(tmp_path / "a.jpeg", exif=exif, quality=100)
    image = load_images(tmp_path).images[0, 0].float()
    assert image.shape == (16, 8)
    assert image[:8].max() < 10
    assert image[8:].min() > 245


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "chunk"])
def test_damaged_images_are_named(tmp_path: Path, damage: str) -> None:
    save_png(tmp_path / "a.png", random_pixels(3, 20, 20))
    content = (tmp_path / "a.png").read_bytes()
    broken = {"cut": content[:300], "text": b"hello", "empty": b"", "chunk": content[:40] + b"\xff" * 9 + content[49:]}
    (tmp_path / "b.png").write_bytes(broken[damage])
    with pytest.raises(UnreadableFile, match=r"b\.png cannot be read") as error:
        load_images(tmp_path)
    assert_one_line(error)


# ------------------------------------------------------------------------------------------- Hugging Face datasets


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    datasets = pytest.importorskip("datasets", reason="needs the data extra")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield datasets
    datasets.enable_progress_bars()


def dataset(datasets, pixels: np.ndarray, labels: list | None, label_feature=None):
    pictures = [Image.fromarray(x[0] if len(x) == 1 else np.moveaxis(x, 0, 2)) for x in pixels]
    columns = {"image": pictures} | ({} if labels is None else {"label": labels})
    features = {"image": datasets.Image()} | ({} if labels is None else {"label": label_feature})
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.mark.parametrize("nested", ["", "data"])
@pytest.mark.parametrize("c", [1, 3])
def test_parquet_round_trip(hub, tmp_path: Path, c: int, nested: str) -> None:
    pixels = {"train": random_pixels(7, c, 4, 5), "test": random_pixels(3, c, 4, 5, seed=1)}
    (tmp_path / "set" / nested).mkdir(parents=True)
    for split, x in pixels.items():
        labels = [i % 2 for i in range(len(x))]
        table = dataset(hub, x, labels, hub.ClassLabel(names=["ant", "bee"]))
        table.to_parquet(tmp_path / "set" / nested / f"{split}.parquet")
    for split, x in pixels.items():
        images = load_images(tmp_path / "set", split)
        np.testing.assert_array_equal(images.images.numpy(), x)
        assert images.labels is not None
        assert images.labels.tolist() == [i % 2 for i in range(len(x))]
        assert (images.class_names, images.name) == (("ant", "bee"), f"set:{split}")
    np.testing.assert_array_equal(load_images(tmp_path / "set", limit=2).images.numpy(), pixels["train"][:2])
    with pytest.raises(InvalidInput, match="no split 'dev'; available: train, test"):
        load_images(tmp_path / "set", "dev")


def test_saved_datasets_round_trip(hub, tmp_path: Path) -> None:
    pixels = random_pixels(4, 3, 4, 5)
    table = dataset(hub, pixels, [3, 1, 0, 2], hub.Value("int64"))
    table.save_to_disk(tmp_path / "one")
    hub.DatasetDict({"train": table, "test": table.select([2])}).save_to_disk(tmp_path / "two")
    one = load_images(tmp_path / "one")
    np.testing.assert_array_equal(one.images.numpy(), pixels)
    assert one.labels is not None
    assert one.labels.tolist() == [3, 1, 0, 2]
    assert one.class_names is None
    np.testing.assert_array_equal(load_images(tmp_path / "two", "test").images.numpy(), pixels[2:3])
    with pytest.raises(InvalidInput, match="no split 'dev'; available: train, test"):
        load_images(tmp_path / "two", "dev")


def test_columns_by_name_and_without_labels(hub, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    pixels = random_pixels(4, 1, 4, 5)
    table = dataset(hub, pixels, [0, 1, 0, 1], hub.Value("int8")).rename_columns({"image": "img", "label": "fine"})
    table.to_parquet(folder / "train.parquet")
    with pytest.warns(UserWarning, match="as unlabelled, as none of the columns fine is known .* label_column"):
        assert load_images(folder, image_column="img").labels is None
    fine = load_images(folder, image_column="img", label_column="fine")
    assert fine.labels is not None
    assert fine.labels.tolist() == [0, 1, 0, 1]
    np.testing.assert_array_equal(fine.images.numpy(), pixels)
    with pytest.raises(InvalidInput, match="no column 'image'; available: img, fine"):
        load_images(folder, image_column="image")
    with pytest.raises(InvalidInput, match="no column 'coarse'; available: fine"):
        load_images(folder, image_column="img", label_column="coarse")
    with pytest.raises(InvalidImages, match="row 0: holds int, wanted an image"):
        load_images(folder, image_column="fine")


def test_withheld_labels_are_no_labels(hub, tmp_path: Path) -> None:
    pixels = random_pixels(3, 1, 4, 5)
    dataset(hub, pixels, [-1, -1, -1], hub.ClassLabel(names=["a", "b"])).to_parquet(tmp_path / "test.parquet")
    with pytest.warns(UserWarning, match="'label' holds -1 for every image: images are taken as unlabelled$"):
        assert load_images(tmp_path, "test").labels is None


@pytest.mark.parametrize(
    ("labels", "kind", "came"),
    [(["a", None], "string", "'a'"), ([0, None], "int64", "None"), ([0, 1.5], "float64", "1.5")],
)
def test_labels_must_be_integers(hub, tmp_path: Path, labels: list, kind: str, came: str) -> None:
    dataset(hub, random_pixels(2, 1, 4, 5), labels, hub.Value(kind)).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(InvalidInput, match=f"'label' holds {came}; wanted an integer"):
        load_images(tmp_path)


@pytest.mark.parametrize("scale", [1, 255])
def test_columns_of_nested_numbers(hub, tmp_path: Path, scale: int) -> None:
    pixels = random_pixels(4, 3, 4, 5)
    given = (pixels / scale if scale > 1 else pixels.astype(int)).tolist()
    hub.Dataset.from_dict({"image": given}).to_parquet(tmp_path / "train.parquet")
    np.testing.assert_array_equal(load_images(tmp_path).images.numpy(), pixels)


def test_plain_parquet_with_encoded_bytes(hub, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    pixels = random_pixels(3, 3, 4, 5)
    for i in range(3):
        save_png(tmp_path / "png" / f"{i}.png", pixels[i])
    encoded = [(tmp_path / "png" / f"{i}.png").read_bytes() for i in range(3)]
    (tmp_path / "set").mkdir()
    parquet.write_table(pyarrow.table({"image": encoded, "label": [2, 0, 1]}), tmp_path / "set" / "train.parquet")
    images = load_images(tmp_path / "set")
    np.testing.assert_array_equal(images.images.numpy(), pixels)
    assert images.labels is not None
    assert images.labels.tolist() == [2, 0, 1]


def test_damaged_datasets(hub, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.parquet").write_text("not parquet")
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "dataset_dict.json").write_text("{")
    (tmp_path / "pixels").mkdir()
    broken = hub.Dataset.from_dict({"image": [{"bytes": b"junk", "path": None}]}, hub.Features({"image": hub.Image()}))
    broken.to_parquet(tmp_path / "pixels" / "train.parquet")
    for name, where in (("text", "text"), ("disk", "disk"), ("pixels", "pixels:train row 0")):
        with pytest.raises(UnreadableFile, match=f"{where} cannot be read") as error:
            load_images(tmp_path / name)
        assert_one_line(error)


def test_empty_datasets(hub, tmp_path: Path) -> None:
    dataset(hub, random_pixels(2, 1, 4, 5), None).select([]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(InvalidInput, match="train holds no rows"):
        load_images(tmp_path)


def test_hub_names_go_to_the_hub(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = random_pixels(4, 3, 4, 5)
    asked = []

    def load_dataset(name: str):
        asked.append(name)
        return hub.DatasetDict({"train": dataset(hub, pixels, [1, 0, 1, 0], hub.Value("int64"))})

    monkeypatch.setattr(hub, "load_dataset", load_dataset)
    images = load_images("org/some-name", limit=3)
    assert (asked, images.name) == (["org/some-name"], "org/some-name:train")
    np.testing.assert_array_equal(images.images.numpy(), pixels[:3])
    with pytest.raises(InvalidInput, match="org/some-name has no split 'test'; available: train"):
        load_images("org/some-name", "test")


def test_a_local_folder_wins_over_the_hub(hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "load_dataset", lambda name: pytest.fail("the Hub was asked"))
    monkeypatch.chdir(tmp_path)
    save_png(tmp_path / "org" / "set" / "a.png", random_pixels(1, 4, 4))
    assert len(load_images("org/set")) == 1


def test_names_found_nowhere_say_that_both_were_tried(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str):
        raise ConnectionError(f"Couldn't reach\n{name}")

    monkeypatch.setattr(hub, "load_dataset", load_dataset)
    with pytest.raises(InvalidInput, match="neither a local path nor readable from the Hugging Face Hub") as error:
        load_images("org/none")
    assert_one_line(error)


def test_without_datasets_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "train.parquet").touch()
    for source in (tmp_path, "org/none"):
        with pytest.raises(InvalidInput, match=r"pip install 'certibox\[data\]'"):
            load_images(source)


# ----------------------------------------------------------------------------------------------------- augmentation


def numbered(b: int, c: int = 1, h: int = 12, w: int = 10) -> Tensor:
    """Batch whose pixel values are 1, 2, … by position, equal in every image, so that a move can be read off."""
    return torch.arange(1.0, c * h * w + 1).reshape(1, c, h, w).repeat(b, 1, 1, 1)


@pytest.mark.parametrize("policy", AUGMENTATIONS)
def test_augmentations_are_functions_of_the_generator(policy: str) -> None:
    x = torch.rand(64, 3, 8, 9, generator=generator(9))
    before = x.clone()
    first = augment(x, policy, generator(1))
    assert torch.equal(first, augment(x, policy, generator(1)))
    assert torch.equal(first, augment(x, policy, generator(2))) == (policy == "none")
    assert torch.equal(x, before)
    assert first.shape == x.shape
    assert first.dtype == x.dtype


def test_no_augmentation_changes_nothing() -> None:
    x = numbered(5)
    assert torch.equal(augment(x, "none", generator()), x)


@pytest.mark.parametrize(("policy", "dims"), [("flip", [(), (3,)]), ("flips", [(), (2,), (3,), (2, 3)])])
def test_flips_mirror_each_image_with_probability_one_half(policy: str, dims: list[tuple[int, ...]]) -> None:
    b = 4000
    x = numbered(b, c=2)
    y = augment(x, policy, generator())
    matches = torch.stack([(y == (x.flip(d) if d else x)).flatten(1).all(1) for d in dims])  # (variants, b)
    assert matches.sum(0).eq(1).all()  # each image is exactly one of the variants
    p = 1 / len(dims)
    standard_error = (p * (1 - p) / b) ** 0.5
    assert (matches.double().mean(1) - p).abs().max() < 4 * standard_error
    # The same draws undo themselves.
    assert torch.equal(augment(y, policy, generator()), x)


def test_crops_are_windows_at_uniform_offsets() -> None:
    b, h, w = 2430, 6, 5
    x = numbered(b, c=2, h=h, w=w)
    y = augment(x, "crop-flip", generator())
    padded = torch.nn.functional.pad(x[:1], (4, 4, 4, 4))
    counts = torch.zeros(2, 9, 9)
    for top in range(9):
        for left in range(9):
            window = padded[..., top : top + h, left : left + w]
            counts[0, top, left] = (y == window).flatten(1).all(1).sum()
            counts[1, top, left] = (y == window.flip(3)).flatten(1).all(1).sum()
    assert counts.sum() == b  # every image is a window, mirrored or not, and only one
    expected = b / counts.numel()
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    freedom = counts.numel() - 1
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def test_images_of_one_batch_move_independently() -> None:
    b = 4000
    y = augment(numbered(b), "flip", generator())
    flipped = (y[:, 0, 0, 0] != 1).double()
    neighbours = ((flipped[1:] - 0.5) * (flipped[:-1] - 0.5)).mean() * 4  # correlation
    assert abs(float(neighbours)) < 4 / b**0.5


def test_augment_refuses_unknown_policies_and_shapes() -> None:
    with pytest.raises(InvalidInput, match="'mixup' is unknown; choose from none, crop-flip, flips, flip"):
        augment(numbered(1), "mixup", generator())
    with pytest.raises(InvalidImages, match=r"\(1, 12, 10\), wanted \(b, c, h, w\)"):
        augment(numbered(1)[0], "flip", generator())

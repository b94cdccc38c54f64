"""One file as a data set, lists of paths, arrays that are masked, tables or of another depth."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from certibox.data import files, images_from_arrays, load_images
from certibox.errors import InvalidImages, InvalidInput, Notice

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 3, 6, 7), dtype=np.uint8)


def refused(source: Any, **options: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        load_images(source, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


def test_one_array_in_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "set.npy", PIXELS)
    images = load_images(tmp_path / "set.npy", limit=3)
    np.testing.assert_array_equal(images.images.numpy(), PIXELS[:3])
    assert (images.labels, images.name) == (None, "set.npy")
    np.savez(tmp_path / "set.npz", PIXELS, np.arange(5))  # which numpy names arr_0 and arr_1
    stored = load_images(tmp_path / "set.npz")
    np.testing.assert_array_equal(stored.images.numpy(), PIXELS)
    assert stored.labels is not None
    assert stored.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["picture.png", "picture.webp"])
def test_one_picture(tmp_path: Path, name: str) -> None:
    Image.fromarray(np.moveaxis(PIXELS[0], 0, 2)).save(tmp_path / name, lossless=True)
    images = load_images(tmp_path / name)
    np.testing.assert_array_equal(images.images.numpy(), PIXELS[:1])
    assert images.labels is None


def test_paths_in_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, x in enumerate(PIXELS):
        Image.fromarray(np.moveaxis(x, 0, 2)).save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in (4, 0, 2)]
    monkeypatch.chdir(tmp_path)
    for source in (paths, [str(path) for path in paths], ["4.png", "0.png", "2.png"]):
        np.testing.assert_array_equal(load_images(source).images.numpy(), PIXELS[[4, 0, 2]])
    labelled = load_images((paths, [7, 8, 9]), limit=2)
    assert labelled.labels is not None
    assert labelled.labels.tolist() == [7, 8]
    (tmp_path / "0.png").write_bytes(b"junk")
    assert "0.png cannot be read" in refused((paths, [7, 8, 9]), skip_unreadable=True)  # labels belong to places
    with pytest.warns(UserWarning, match=r"1 of 3 images cannot be read and were left out: .*0\.png"):
        assert len(load_images(paths, skip_unreadable=True)) == 2


def test_paths_beside_their_labels(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}.png") for i in range(2)]
    for path, x in zip(paths, PIXELS, strict=False):
        Image.fromarray(np.moveaxis(x, 0, 2)).save(path)
    images = load_images([(paths[1], 4), (Path(paths[0]), 3)])
    np.testing.assert_array_equal(images.images.numpy(), PIXELS[[1, 0]])
    assert images.labels is not None
    assert (images.labels.tolist(), images.files) == ([4, 3], (paths[1], paths[0]))
    assert load_images(np.array(paths)).files == tuple(paths)
    assert f"{tmp_path} is a folder; wanted a regular file" in refused([str(tmp_path), *paths])
    assert f"2 of 2 images cannot be read: {tmp_path}, {tmp_path} (" in refused([str(tmp_path)] * 2)


@pytest.mark.parametrize(("images", "labels"), [("X", "y"), ("image", "targets"), ("data", "fine_labels")])
def test_arrays_of_the_usual_names(tmp_path: Path, images: str, labels: str) -> None:
    np.savez(tmp_path / "set.npz", **{images: PIXELS, labels: np.arange(5)})
    loaded = load_images(tmp_path / "set.npz")
    np.testing.assert_array_equal(loaded.images.numpy(), PIXELS)
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [0, 1, 2, 3, 4]


def test_arrays_of_other_names_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x=PIXELS, species=np.arange(5))
    with pytest.warns(UserWarning, match="taken as unlabelled, as none of the arrays species is named as labels"):
        assert load_images(tmp_path / "set.npz").labels is None
    np.savez(tmp_path / "other.npz", views=PIXELS, y_train=np.arange(5), train_size=np.arange(1))
    wanted = "wanted an array 'images' or 'x', and 'labels' or 'y', or those of each split, as 'x_train' and 'y_train'"
    assert f"other.npz: holds views, y_train, train_size, {wanted}" in refused(tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("images", "labels"),
    [("x_{}", "y_{}"), ("{}_images", "{}_labels"), ("X{}", "Y{}"), ("{}.data", "{}-fine_labels"), ("{}", None)],
)
def test_arrays_of_several_splits_are_chosen_by_name(tmp_path: Path, images: str, labels: str | None) -> None:
    parts = {"test": PIXELS[:2], "train": PIXELS[2:]}
    arrays: dict[str, Any] = {images.format(split): part for split, part in parts.items()}
    if labels is None:
        np.savez(tmp_path / "set.npz", **arrays)
        assert "set.npz: holds test, train, wanted an array" in refused(tmp_path / "set.npz")
        return
    numbers: dict[str, Any] = {labels.format(split): np.arange(len(part))[:, None] + 7 for split, part in parts.items()}
    np.savez(tmp_path / "set.npz", **arrays, **numbers)
    for split, part in parts.items():
        loaded = load_images(tmp_path / "set.npz", split)
        assert loaded.labels is not None
        assert (loaded.labels.tolist(), loaded.name) == ([*range(7, 7 + len(part))], f"set.npz:{split}")
        np.testing.assert_array_equal(loaded.images.numpy(), part)
    np.testing.assert_array_equal(load_images(tmp_path / "set.npz", limit=1).images.numpy(), PIXELS[2:3])
    assert "set.npz has no split 'tset'; available: test, train; did you mean test?" in refused(
        tmp_path / "set.npz", split="tset"
    )
    assert "has splits of its own, so that 'train:0.8' is none" in refused(tmp_path / "set.npz", split="train:0.8")


def test_one_split_in_a_file_is_a_name_and_can_be_divided(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x_train=PIXELS, Y_Train=np.arange(5))
    parts = [load_images(tmp_path / "set.npz", split) for split in ("train:0.6", "test:0.4")]
    assert [len(part) for part in parts] == [3, 2]
    labels = [
        label for part in parts for label in (part.labels if part.labels is not None else torch.empty(0)).tolist()
    ]
    assert sorted(labels) == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(torch.cat([part.images for part in parts]).numpy(), PIXELS[labels])
    np.savez(tmp_path / "bare.npz", x_train=PIXELS, x_train_mean=np.zeros(1))
    with pytest.warns(UserWarning, match="taken as unlabelled, as none of the arrays x_train_mean is named as labels"):
        assert load_images(tmp_path / "bare.npz", "train").labels is None


@pytest.mark.parametrize("limit", [0, -1, 1.5, "3"])
def test_a_limit_is_a_whole_number(limit: Any) -> None:
    assert f"limit is {limit!r}, wanted a whole number of at least 1" in refused(PIXELS, limit=limit)
    assert len(load_images(PIXELS, limit=int(np.int64(3)))) == 3


@pytest.mark.parametrize("name", ["set.txt", "set.zip", "set.pt", "set"])
def test_other_files_say_what_is_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"something")
    wanted = "not a known kind of file; wanted an .npz, .npy, .parquet or .arrow file, a picture, or a folder"
    assert f"{name}: {wanted}" in refused(tmp_path / name)


@pytest.mark.parametrize("name", ["image_column", "label_column", "configuration"])
def test_what_has_no_columns_takes_none(tmp_path: Path, name: str) -> None:
    np.save(tmp_path / "set.npy", PIXELS)
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    kind = "configurations" if name == "configuration" else "columns"
    for source in ("digits", PIXELS, tmp_path / "set.npy", load_images(PIXELS), tmp_path):
        assert f"has no {kind}, but {name} is 'x'; leave it out" in refused(source, **{name: "x"})


def header(shape: tuple[int, ...]) -> bytes:
    """An .npy file that claims to hold uint8 of this shape, and ends there."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": "|u1"})
    return file.getvalue()


def test_arrays_that_unpack_to_more_than_the_memory_are_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "big.npy").write_bytes(header((2**20, 3, 128, 128)))
    assert "big.npy unpacks to 48.0 GiB; wanted at most 8.0 GiB" in refused(tmp_path / "big.npy")
    for name in ("images", "labels"):
        with zipfile.ZipFile(tmp_path / "big.npz", "w") as archive:
            archive.writestr("images.npy", header((2**20, 3, 128, 128) if name == "images" else (1, 1, 1)) + b"0")
            archive.writestr("labels.npy", header((2**40,)))
        assert f"big.npz: {name} unpacks to" in refused(tmp_path / "big.npz")


def test_zeros_that_compress_well_are_counted_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "zeros.npz", images=np.zeros((100, 1, 64, 64), np.uint8))
    monkeypatch.setattr(files, "MOST_BYTES", 100 * 64 * 64)
    assert len(load_images(tmp_path / "zeros.npz")) == 100
    monkeypatch.setattr(files, "MOST_BYTES", 100 * 64 * 64 - 1)
    assert (tmp_path / "zeros.npz").stat().st_size < 2000
    assert "zeros.npz: images unpacks to" in refused(tmp_path / "zeros.npz")


# ---------------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize(
    ("top", "kind", "said"),
    [
        (16, float, "divide by 16"),
        (2, float, "divide by 16"),
        (17, float, "divide by 255"),
        (255, np.float32, "divide by 255"),
        (1023, float, "divide by 1023"),
        (4095, float, "divide by 4095"),
        (16383, float, "divide by 16383"),
        (65535, float, "divide by 65535"),
        (256, int, "rescale to 8 bits, or divide by 1023"),
        (65535, np.uint16, "rescale to 8 bits, or divide by 65535"),
        (70000, int, "rescale to 8 bits$"),
        (70000, float, "undo the normalisation$"),
    ],
)
def test_whole_numbers_are_told_what_white_is(top: int, kind: type, said: str) -> None:
    pixels = np.zeros((2, 1, 4, 4), kind)
    pixels[1, 0, 2, 1] = top
    with pytest.raises(InvalidImages, match=rf"from 0 to \S+, wanted .*: {said}"):
        images_from_arrays(pixels)
    if top <= 65535:
        white = int(said.rsplit(" ", 1)[-1])
        assert int(images_from_arrays(pixels / white).images.max()) == round(255 * top / white)


def test_digits_as_scikit_learn_gives_them() -> None:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    assert refused(bunch.images).endswith("divide by 16, into floats on [0, 1]")
    assert int(load_images(bunch.images / 16).images.max()) == 255


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
@pytest.mark.parametrize(("high", "white"), [(16, 16), (15, 16), (2, 16), (1, 1)])
def test_digits_in_whole_numbers_are_told_what_white_may_be(tmp_path: Path, kind: type, high: int, white: int) -> None:
    pixels = np.random.default_rng(0).integers(0, high + 1, (20, 8, 8)).astype(kind)
    pixels[3, 2, 1] = high
    np.save(tmp_path / "set.npy", pixels)
    said = f"of all 20 images are at most {high}, where 255 is white: .* if white is {white} there, divide by {white}"
    for source in (pixels, torch.from_numpy(pixels), tmp_path / "set.npy", list(pixels), (pixels, np.arange(20))):
        with pytest.warns(Notice, match=said):
            loaded = load_images(source)
        np.testing.assert_array_equal(loaded.images.numpy()[:, 0], pixels)
    scaled = load_images(pixels / white)  # without a word
    np.testing.assert_array_equal(scaled.images.numpy()[:, 0], np.rint(pixels / white * 255))
    few, bright = pixels[:19], pixels + 1
    bright[0, 0, 0] = 17
    for quiet in (few, bright, pixels * 0):
        load_images(quiet)


def test_masked_pixels_are_no_pixels() -> None:
    masked = np.ma.MaskedArray(PIXELS, mask=np.zeros(PIXELS.shape, bool))
    np.testing.assert_array_equal(load_images(masked).images.numpy(), PIXELS)
    np.testing.assert_array_equal(load_images(list(masked)).images.numpy(), PIXELS)
    masked[1, 0, 2, 3] = np.ma.masked
    said = "1 of 630 entries are masked, and what lies below is no value; fill them or leave those images out"
    assert said in refused(masked)
    assert "list item 1: 1 of 126 entries are masked" in refused(list(masked))
    np.testing.assert_array_equal(load_images(masked.filled(0)).images.numpy()[0], PIXELS[0])
    assert "1 of 5 entries are masked" in refused((PIXELS, np.ma.masked_equal(np.arange(5), 3)))


def test_tables_and_sparse_arrays_are_told_how_to_become_arrays() -> None:
    pandas = pytest.importorskip("pandas", reason="comes with the data extra")
    sparse = pytest.importorskip("scipy.sparse")
    frame = pandas.DataFrame(PIXELS[:, 0].reshape(5, 42))
    assert "images are a DataFrame of pandas; reshape its .to_numpy() to (n, h, w)" in refused(frame)
    assert "images are a DataFrame of pandas" in refused((frame, [0] * 5))
    for kind in (sparse.csr_matrix, sparse.coo_array):
        assert "of scipy; reshape its .toarray() to (n, h, w)" in refused(kind(frame.to_numpy()))
    rebuilt = load_images((frame.to_numpy().reshape(5, 6, 7), pandas.Series([4, 3, 2, 1, 0])))
    np.testing.assert_array_equal(rebuilt.images.numpy()[:, 0], PIXELS[:, 0])
    assert rebuilt.labels is not None
    assert rebuilt.labels.tolist() == [4, 3, 2, 1, 0]


def test_arrays_of_objects_are_told_to_stack() -> None:
    objects = np.empty(5, object)
    objects[:] = list(PIXELS)
    assert "images are object, wanted uint8" in refused(objects)
    assert refused(objects).endswith("; stack the images into one array of numbers")
    assert torch.equal(load_images(np.stack(list(objects))).images, torch.from_numpy(PIXELS))

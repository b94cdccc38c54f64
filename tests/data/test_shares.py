"""`train:0.8` of data without splits, what is said where a split is asked of them; names and digests of images."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from certibox import seeds
from certibox.data import Images, load_images
from certibox.errors import InvalidImages, InvalidInput

N = 15  # 7.5 is half of it, so that rounding shows
PIXELS = np.repeat(np.arange(N, dtype=np.uint8), 8).reshape(N, 1, 2, 4)  # each image is its own number
ORDER = torch.randperm(N, generator=seeds.generator(0, "split")).tolist()


def values(images: Images) -> list[int]:
    return images.images[:, 0, 0, 0].tolist()


def flat_folder(root: Path) -> Path:
    root.mkdir()
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels[0]).save(root / f"{i:02}.png")
    return root


def sources(root: Path) -> dict[str, Any]:
    """The same images from sources that have no splits."""
    flat_folder(root / "set")
    np.savez(root / "set.npz", images=PIXELS, labels=np.arange(N))
    np.save(root / "set.npy", PIXELS)
    return {
        "folder": root / "set",
        "folder, as text": str(root / "set"),
        "npz": root / "set.npz",
        "npy": root / "set.npy",
        "array": PIXELS,
        "pair": (PIXELS, list(range(N))),
        "list": list(PIXELS),
        "paths": [root / "set" / f"{i:02}.png" for i in range(N)],
        "paths, as text": [str(root / "set" / f"{i:02}.png") for i in range(N)],
        "data set": TensorDataset(torch.from_numpy(PIXELS), torch.arange(N)),
        "Images": load_images(PIXELS),
    }


@pytest.mark.parametrize("share", ["0.8", "0.5", "0.3", "0.1"])
def test_shares_of_every_source_are_the_same_and_divide_it(tmp_path: Path, share: str) -> None:
    rest = f"test:{round(1 - float(share), 9)}"
    for kind, source in sources(tmp_path).items():
        train, test = load_images(source, f"train:{share}"), load_images(source, rest)
        cut = int(float(share) * N + 0.5)
        assert (values(train), values(test)) == (ORDER[:cut], ORDER[cut:]), kind
        assert values(load_images(source, f"train:{share}", limit=1)) == ORDER[:1], kind
        for part in (train, test):
            assert part.labels is None or part.labels.tolist() == values(part)
        assert train.name != test.name


def test_classes_of_a_share_are_even_under_a_limit(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i % 2}").mkdir(exist_ok=True)
        Image.new("L", (2, 2), i).save(tmp_path / f"{i % 2}" / f"{i}.png")
    part = load_images(tmp_path, "train:0.7", limit=10)
    assert part.labels is not None
    assert part.labels.bincount().tolist() == [5, 5]
    whole = load_images(tmp_path, "train:0.7")
    assert set(values(part)) < set(values(whole))
    assert not set(values(whole)) & set(values(load_images(tmp_path, "held:0.3")))


@pytest.mark.parametrize("share", ["0", "1", "80", "-0.1", "nan", "inf", "much", "", "1e-400", "0.8:0.1"])
def test_a_share_is_a_number_between_0_and_1(share: str) -> None:
    with pytest.raises(InvalidInput, match=r"split is 'train:.*'; wanted a share above 0 and below 1 .* train:0\.8$"):
        load_images(PIXELS, f"train:{share}")


@pytest.mark.parametrize("split", [":0.8", "train[:80%]", "a b:0.5", ":"])
def test_a_colon_is_there_for_a_share(split: str) -> None:
    with pytest.raises(InvalidInput, match=r"split is '.*'; wanted the name of a split, or NAME:SHARE"):
        load_images(PIXELS, split)


def test_a_share_without_images_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"train:0\.01 of 15 images is empty; choose a larger share"):
        load_images(PIXELS, "train:0.01")
    with pytest.raises(InvalidInput, match=r"test:0\.01 of 15 images is empty"):
        load_images(PIXELS, "test:0.01")


def test_sources_with_splits_have_no_shares(tmp_path: Path) -> None:
    flat_folder(tmp_path / "train")
    flat_folder(tmp_path / "test")
    for source, names in (("digits", "train, validation, test"), (tmp_path, "test, train")):
        with pytest.raises(InvalidInput, match=f"has splits of its own, so that 'train:0.8' is none; .*: {names}$"):
            load_images(source, "train:0.8")


def test_one_split_alone_can_be_divided(tmp_path: Path) -> None:
    flat_folder(tmp_path / "train")
    assert values(load_images(tmp_path, "test:0.2")) == ORDER[12:]
    with pytest.raises(InvalidInput, match=r"no split .test.; available: train; train:0.8 and test:0.2 divide it"):
        load_images(tmp_path, "test")
    with pytest.raises(InvalidInput, match="no split 'trian'; available: train; did you mean train"):
        load_images(tmp_path, "trian")


def test_a_split_of_what_has_none_is_said_to_be_everything(tmp_path: Path) -> None:
    for kind, source in sources(tmp_path).items():
        with pytest.warns(UserWarning, match="has no splits: 'test' is all of its 15 images, .* train:0.8 and test"):
            assert len(load_images(source, "test")) == N, kind
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_images(source, "train")
    np.save(tmp_path / "my_test.npy", PIXELS)
    assert len(load_images(tmp_path / "my_test.npy", "test")) == N  # whose name says so


# ---------------------------------------------------------------------------------------------- files and digests


def test_files_are_named_relative_to_the_source(tmp_path: Path) -> None:
    flat_folder(tmp_path / "set")
    images = load_images(tmp_path / "set")
    names = tuple(f"{i:02}.png" for i in range(N))
    assert images.files == names
    assert images.select([3, -1]).files == ("03.png", "14.png")
    assert images.select(slice(2)).files == names[:2]
    mask = images.images[:, 0, 0, 0] > 12
    assert images.select(mask).files == names[13:]
    for part in images.split(0.2, 0):
        assert part.files == tuple(names[i] for i in values(part))
    assert load_images(PIXELS).files is None
    paths = [tmp_path / "set" / "01.png"]
    assert load_images(paths).files == (str(paths[0]),)
    with pytest.raises(InvalidImages, match="1 file names, wanted one for each of 15 images"):
        replace(images, files=("a",))


def test_digests_name_single_images() -> None:
    images = load_images(np.random.default_rng(0).integers(0, 256, (5, 3, 4, 2), dtype=np.uint8))
    sha = hashlib.sha256(b"(3, 4, 2)" + images.images[3].numpy().tobytes()).digest()
    assert images.digests.dtype == torch.int64
    assert images.digests.shape == (5,)
    assert int(images.digests[3]) == int.from_bytes(sha[:8], "little", signed=True)
    assert len(set(images.digests.tolist())) == 5
    assert torch.equal(images.select([4, 0]).digests, images.digests[[4, 0]])
    assert not set(Images(images.images.reshape(5, 3, 2, 4), None, "turned").digests.tolist()) & set(
        images.digests.tolist()
    )

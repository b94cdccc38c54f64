"""What the command line knows of data is what `load_images` knows."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from certibox.commands.arguments import in_flags, ours, parse, typed
from certibox.commands.fields import require_effect
from certibox.commands.options import DataOptions
from certibox.data import load_images
from certibox.errors import InvalidInput, Notice


def options(*flags: str) -> DataOptions:
    return parse("train", DataOptions, list(flags))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, kind in enumerate(["ant", "ant", "bee"]):
        (tmp_path / "set" / kind).mkdir(parents=True, exist_ok=True)
        Image.new("RGB" if i else "L", (3, 2)).save(tmp_path / "set" / kind / f"{i}.png")
    return tmp_path / "set"


def test_every_argument_of_load_images_is_a_flag() -> None:
    arguments = list(inspect.signature(load_images).parameters)[1:]
    assert [item.name for item in fields(DataOptions)] == ["data", *arguments]


def test_flags_reach_the_reader_and_the_order_of_classes_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bee" / "broken.png").write_bytes(b"junk")
    with pytest.warns(UserWarning, match="1 of 4 images cannot be read and were left out: bee/broken.png"):
        images = options("--data", str(folder), "--channels", "1", "--skip-unreadable", "true").images()
    assert (images.shape, len(images)) == ((1, 2, 3), 3)
    said = capsys.readouterr()
    assert (said.err, said.out) == ("labels: 0 ant, 1 bee\n", "")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--channels", "2"], "channels is 2; wanted 1 for grey, 3 for RGB"),
        (["--channels", "grey"], "channels is 'grey'; wanted a whole number"),
        (["--split", "train:8"], "split is 'train:8'; wanted a share above 0 and below 1"),
        (["--label-column", "y"], "has no columns, but label_column is 'y'; leave it out"),
        (["--configuration", "y"], "has no configurations, but configuration is 'y'; leave it out"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, flags: list[str], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        options("--data", str(folder), *flags).images()
    assert words in str(caught.value)


@pytest.mark.parametrize("flag", ["image-column", "label-column", "configuration"])
def test_idle_flags_are_refused_before_data_are_read(flag: str) -> None:
    given = options("--data", "none.npz", f"--{flag}", "x")
    with pytest.raises(InvalidInput, match=rf"--{flag} x has no effect on none\.npz, which .*; leave it out, or give"):
        require_effect(given, {flag.replace("-", "_")})


def test_a_split_of_a_file_without_splits_is_what_it_is_of_a_folder_without_splits(folder: Path) -> None:
    np.savez(folder.parent / "set.npz", images=np.zeros((3, 2, 4), np.uint8))
    for place in (folder, folder.parent / "set.npz"):
        for split in ("test", "foo"):
            given = options("--data", str(place), "--channels", "1", "--split", split)
            require_effect(given, {"split"})
            with pytest.warns(Notice, match=f"^{place} has no splits: '{split}' is all of its 3 images, as any other"):
                assert len(given.images()) == 3
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(options("--data", str(place), "--channels", "1", "--split", "train").images()) == 3


def test_one_file_is_divided_by_a_share(tmp_path: Path) -> None:
    pixels = np.arange(10, dtype=np.uint8).repeat(8).reshape(10, 1, 2, 4)
    np.savez(tmp_path / "set.npz", images=pixels)
    data = ("--data", str(tmp_path / "set.npz"), "--split")
    held, rest = options(*data, "test:0.2").images(), options(*data, "train:0.8").images()
    assert sorted([*held.images[:, 0, 0, 0].tolist(), *rest.images[:, 0, 0, 0].tolist()]) == list(range(10))
    assert len(held) == 2


@pytest.mark.parametrize("words", [["--subset", "one"], ["--subset=one"], ["--configuration=one"]])
def test_a_configuration_may_be_called_a_subset(words: list[str]) -> None:
    words = ours(["--data", "org/name", *words])
    assert options(*words).configuration == "one"
    assert typed(words) == {"data", "configuration"}
    assert ours(["--data", "--subsets", "--out=--subset=a"]) == ["--data", "--subsets", "--out=--subset=a"]


def test_a_message_names_a_flag_once() -> None:
    text = "name one with label_column (--label-column), not 'label_column' or my_label_column"
    assert in_flags(text, DataOptions) == "name one with --label-column, not 'label_column' or my_label_column"

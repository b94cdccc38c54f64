"""Image folders as people have them: order of classes, what is no class, other formats, metadata, broken files."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from certibox.data import Images, folders, load_images
from certibox.data.labels import natural
from certibox.errors import CertiboxError, InvalidImages, InvalidInput, UnreadableFile

FULL = 200  # of the pixels that tell an image by its value


def save(file: Path, value: int, mode: str = "L", size: tuple[int, int] = (3, 2)) -> None:
    """An image of one value, which tells it from others."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value,) * 3).save(file)


def values(images: Images) -> list[int]:
    return images.images[:, 0, 0, 0].tolist()


def labels(images: Images) -> list[int]:
    assert images.labels is not None
    return images.labels.tolist()


def one_line(error: CertiboxError) -> str:
    assert "\n" not in str(error)
    assert len(str(error)) < 500
    return str(error)


def refused(source: object, kind: type[CertiboxError] = InvalidInput, **options: object) -> str:
    with pytest.raises(kind) as caught:
        load_images(source, **options)  # type: ignore[arg-type]
    return one_line(caught.value)


def classes(root: Path, *names: str, each: int = 1) -> None:
    """Class folders whose images have the values 0, 1, … in the order of `names`."""
    for i, name in enumerate(names):
        for k in range(each):
            save(root / name / f"{k}.png", i * each + k)


# --------------------------------------------------------------------------------------------------------- classes


def test_numbers_in_names_count_as_numbers() -> None:
    names = ["b10", "b9", "a", "10", "9", "b9c2", "b9c11", "b09"]
    assert sorted(names, key=natural) == ["9", "10", "a", "b09", "b9", "b9c2", "b9c11", "b10"]
    assert sorted(["9" * 5000, "1" * 4999], key=natural)[0] == "1" * 4999  # more digits than int() takes


def test_folder_2_is_label_2(tmp_path: Path) -> None:
    classes(tmp_path, *map(str, range(12)))
    images = load_images(tmp_path)
    assert labels(images) == values(images) == list(range(12))
    assert images.class_names == tuple(map(str, range(12)))
    assert images.legend == "labels: 0 to 11, as the classes are named"


def test_numbers_stay_labels_where_some_are_absent(tmp_path: Path) -> None:
    classes(tmp_path, "3", "10", "05")
    images = load_images(tmp_path)
    assert (labels(images), values(images)) == ([3, 5, 10], [0, 2, 1])
    assert images.class_names is not None
    assert (images.class_names[5], images.class_names[4]) == ("05", "4")


@pytest.mark.parametrize(("names", "said"), [(["1", "2", "3"], "1 to 3"), (["1999", "20000"], "1999 to 20000")])
def test_numbers_from_one_and_years_become_positions_aloud(tmp_path: Path, names: list[str], said: str) -> None:
    classes(tmp_path, *names)
    with pytest.warns(UserWarning, match=f"classes {said} have labels 0 to {len(names) - 1}, in this order"):
        assert labels(load_images(tmp_path)) == list(range(len(names)))


def test_the_legend_names_classes_in_one_line(tmp_path: Path) -> None:
    classes(tmp_path, "b10", "b9", "a\x1b[1m")
    images = load_images(tmp_path)
    assert values(images) == [2, 1, 0]
    assert images.legend == "labels: 0 a?[1m, 1 b9, 2 b10"
    many = Images(images.images, images.labels, "many", tuple(f"k{i}" for i in range(40)))
    assert many.legend is not None
    assert many.legend.endswith("10 k10, …, 39 k39")
    assert Images(images.images, None, "bare").legend is None


def test_what_systems_leave_is_no_class_and_no_image(tmp_path: Path) -> None:
    classes(tmp_path / "set", "ant", "bee")
    for name in ("__MACOSX/ant/0.png", "@eaDir/x.png", ".hidden/y.png", "ant/.z.png", "ant/@eaDir/0.png"):
        save(tmp_path / "set" / name, FULL)
    for name in ("Thumbs.db", "ant/desktop.ini", ".DS_Store"):
        (tmp_path / "set" / name).write_bytes(b"x")
    (tmp_path / "set" / "empty" / "emptier").mkdir(parents=True)
    images = load_images(tmp_path / "set")
    assert (values(images), images.class_names) == ([0, 1], ("ant", "bee"))


def test_images_below_a_class_folder_are_of_that_class(tmp_path: Path) -> None:
    save(tmp_path / "set" / "ant" / "0.png", 0)
    save(tmp_path / "set" / "ant" / "more" / "1.png", 1)
    save(tmp_path / "set" / "bee" / "2.png", 2)
    images = load_images(tmp_path / "set")
    assert (sorted(values(images)), labels(images)) == ([0, 1, 2], [0, 0, 1])
    assert images.files is not None
    assert sorted(images.files) == ["ant/0.png", "ant/more/1.png", "bee/2.png"]


def test_one_class_alone_is_said_aloud(tmp_path: Path) -> None:
    save(tmp_path / "set" / "images" / "0.png", 0)
    with pytest.warns(UserWarning, match="one class folder alone, 'images'"):
        assert labels(load_images(tmp_path / "set")) == [0]


# ----------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", ["tif", "tiff", "gif", "webp", "ppm", "pgm", "tga", "JFIF", "jp2", "ico"])
def test_every_format_of_pillow_is_read(tmp_path: Path, suffix: str) -> None:
    kind = Image.registered_extensions().get(f".{suffix.lower()}")
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow has no {suffix}")
    Image.new("L", (16, 16), FULL).save(tmp_path / f"a.{suffix}", format=kind)
    images = load_images(tmp_path)
    assert images.shape[1:] == (16, 16)
    assert abs(values(images)[0] - FULL) <= 1


def test_what_is_left_out_is_counted_aloud(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for i in range(4):
        save(root / "ant" / f"{i}.png", i)
        save(root / "bee" / f"{i}.png", i)
    for i in range(30):
        (root / "ant" / f"{i}.txt").touch()
    for name in ("a.pdf", "bee/b.csv", "ant/none"):
        (root / name).touch()
    (root / "ant" / "gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.warns(UserWarning, match="were left out") as caught:
        assert len(load_images(root)) == 8
    (said,) = [str(warning.message) for warning in caught]
    assert f"{root}: 34 of 42 files were left out: 30 .txt, 1 " in said
    assert "1 links to nothing, pipes or devices" in said


def test_a_folder_of_other_files_says_which(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i}").touch()
    assert "holds no images and no .parquet or .arrow files, but other files: 40 without a suffix" in refused(tmp_path)


def test_channels_mend_sets_that_mix_grey_and_colour(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 7)
    save(tmp_path / "b.png", FULL, "RGB")
    said = refused(tmp_path, InvalidImages)
    assert "b.png: 3×2 pixels, 3 channels, but those before have 3×2, 1; ask for channels=1 or 3 (--channels)" in said
    for channels in (1, 3):
        images = load_images(tmp_path, channels=channels)
        assert images.shape == (channels, 2, 3)
        assert images.images.unique().tolist() == [7, FULL]
    save(tmp_path / "c.png", 0, size=(4, 4))
    assert "c.png: 4×4 pixels" in refused(tmp_path, InvalidImages, channels=3)
    assert "channels is 2; wanted 1 for grey, 3 for RGB" in refused(tmp_path, channels=2)


def test_colours_become_grey_as_in_pillow() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 9, 8), dtype=np.uint8)
    wanted = [np.asarray(Image.fromarray(np.moveaxis(x, 0, 2)).convert("L")) for x in pixels]
    for source in (pixels, list(pixels)):
        np.testing.assert_array_equal(load_images(source, channels=1).images[:, 0].numpy(), wanted)
    grey = load_images(pixels[:, 0], channels=3).images.numpy()
    np.testing.assert_array_equal(grey, np.repeat(pixels[:, :1], 3, axis=1))


def test_unreadable_files_are_all_named_or_left_out_aloud(tmp_path: Path) -> None:
    classes(tmp_path, "ant", "bee", each=5)
    for name in ("ant/1.png", "bee/0.png", "bee/2.png", "bee/3.png"):
        (tmp_path / name).write_bytes(b"junk")
    said = refused(tmp_path, UnreadableFile)
    assert f"4 of 10 images of {tmp_path} cannot be read: ant/1.png, bee/0.png, bee/2.png, … (it is no picture" in said
    assert "skip_unreadable" in said
    with pytest.warns(UserWarning, match=r"4 of 10 images cannot be read and were left out: ant/1\.png, ") as caught:
        images = load_images(tmp_path, skip_unreadable=True)
    assert len(caught) == 1
    assert (values(images), labels(images)) == ([0, 2, 3, 4, 6, 9], [0, 0, 0, 0, 1, 1])
    assert images.files == ("ant/0.png", "ant/2.png", "ant/3.png", "ant/4.png", "bee/1.png", "bee/4.png")


def test_a_set_without_a_readable_image_is_no_set(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i}.png").write_bytes(b"junk")
    assert "20 of 20 images of" in refused(tmp_path, UnreadableFile)  # and nothing more is tried
    assert "30 of 30 images of" in refused(tmp_path, UnreadableFile, skip_unreadable=True)


# ----------------------------------------------------------------------------------------------------------- limit


def test_a_limit_is_even_over_classes_and_grows_by_appending(tmp_path: Path) -> None:
    classes(tmp_path, "ant", "bee", "cat", each=4)
    save(tmp_path / "bee" / "more.png", FULL)
    assert values(load_images(tmp_path, limit=7)) == [0, 4, 8, 1, 5, 9, 2]
    longer = values(load_images(tmp_path, limit=12))
    assert longer[:7] == [0, 4, 8, 1, 5, 9, 2]
    assert values(load_images(tmp_path, limit=13)) == values(load_images(tmp_path)) == [*range(8), FULL, 8, 9, 10, 11]


# -------------------------------------------------------------------------------------------------------- metadata


def with_metadata(root: Path, table: str, name: str = "metadata.csv") -> Path:
    for i, file in enumerate(["a.png", "b.png", "sub/c.png"]):
        save(root / file, i)
    (root / name).write_text(table, encoding="utf-8")
    return root


@pytest.mark.parametrize("column", ["label", "labels", "target", "fine_label", "class"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_label_images(tmp_path: Path, column: str, kind: str) -> None:
    rows = [("sub/c.png", 2), ("a.png", 0), ("b.png", 10)]
    lines = [json.dumps({"file_name": file, column: label, "by": "me"}) for file, label in rows]
    table = [f"file_name,{column},by", *(f"{file},{label},me" for file, label in rows)]
    images = load_images(with_metadata(tmp_path, "\n".join(lines if kind == "jsonl" else table), f"metadata.{kind}"))
    assert (values(images), labels(images), images.class_names) == ([2, 0, 1], [2, 0, 10], None)
    assert images.files == ("sub/c.png", "a.png", "b.png")


def test_names_in_metadata_are_numbered_over_all_splits(tmp_path: Path) -> None:
    for split, kinds in (("train", ["cat", "ant"]), ("test", ["bee10", "bee9"])):
        for i in range(2):
            save(tmp_path / split / f"{i}.png", i)
        lines = [f"{i}.png,{kind}" for i, kind in enumerate(kinds)]
        (tmp_path / split / "metadata.csv").write_text("\n".join(["file_name,label", *lines]), encoding="utf-8")
    for split, wanted in (("train", [3, 0]), ("test", [2, 1])):
        images = load_images(tmp_path, split)
        assert (labels(images), images.class_names) == (wanted, ("ant", "bee9", "bee10", "cat"))


def test_metadata_that_name_no_labels_say_so(tmp_path: Path) -> None:
    root = with_metadata(tmp_path, "file_name,fine,coarse\na.png,1,0\nb.png,0,0\nsub/c.png,0,0")
    with pytest.warns(UserWarning, match="as unlabelled, as none of the columns fine, coarse is known .* label_column"):
        assert load_images(root).labels is None
    assert labels(load_images(root, label_column="fine")) == [1, 0, 0]
    assert "no column 'fin'; available: fine, coarse; did you mean fine?" in refused(root, label_column="fin")
    (root / "metadata.csv").write_text("file_name,fine_label,coarse_label\na.png,1,0\nb.png,0,0\nsub/c.png,0,0")
    with pytest.warns(UserWarning, match="as unlabelled, as fine_label and coarse_label may each hold labels"):
        assert load_images(root).labels is None


@pytest.mark.parametrize("table", ["file_name,label\na.png,\nb.png, ", "file_name,label", ""])
def test_metadata_without_a_label_say_so(tmp_path: Path, table: str) -> None:
    root = with_metadata(tmp_path, table)
    (root / "sub" / "c.png").unlink()
    with pytest.warns(UserWarning, match=r"metadata\.csv: .*images are taken as unlabelled"):
        assert load_images(root).labels is None


def test_a_line_of_metadata_is_named_by_its_number(tmp_path: Path) -> None:
    line = '{"file_name": "a.png", "label": 1}'
    for second, words in (("[1]", "line 2 holds [1]; wanted an object"), ("{a", "line 2 cannot be read: JSONDecode")):
        root = with_metadata(tmp_path / second[0], f"{line}\n{second}\n", "metadata.jsonl")
        assert f"metadata.jsonl: {words}" in refused(root)


def test_images_that_metadata_leave_out_are_counted(tmp_path: Path) -> None:
    root = with_metadata(tmp_path, "file_name,label\nb.png,4")
    with pytest.warns(UserWarning, match="2 of 3 files were left out: 2 images that the metadata does not name"):
        images = load_images(root)
    assert (values(images), labels(images)) == ([1], [4])


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("file_name,label\n../secret.png,1", "row 1: file '../secret.png' lies outside the folder"),
        ("file_name,label\n/etc/passwd,1", "row 1: file '/etc/passwd' lies outside the folder"),
        ("file_name,label\nsub/../../secret.png,1", "lies outside the folder"),
        ("file_name,label\nlink.png,1", "link.png is a link that leads outside the folder"),
        ("file_name,label\nnone.png,1", "names 1 files that are not there, such as none.png"),
        ("file,label\na.png,1", "row 1 has no column 'file_name'; available: file, label"),
        ("file_name,label\na.png,1,2", "row 1 has more cells than the first line has names"),
        ("file_name,label\na.png,1\nb.png,", "column 'label' holds None; wanted an integer for every image"),
        ("file_name,label\na.png,1\nb.png,0\na.png,0", "names a.png in more than one row; wanted one row an image"),
    ],
)
def test_metadata_that_are_wrong_are_refused(tmp_path: Path, table: str, words: str) -> None:
    save(tmp_path / "secret.png", FULL)
    root = with_metadata(tmp_path / "set", table)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    assert words in refused(root)


# -------------------------------------------------------------------------------------------------------- attacks


def test_loops_of_links_end(tmp_path: Path) -> None:
    classes(tmp_path / "set", "ant", "bee")
    (tmp_path / "set" / "ant" / "up").symlink_to(tmp_path / "set", target_is_directory=True)
    assert values(load_images(tmp_path / "set")) == [0, 1]
    (tmp_path / "set" / "ant" / "itself.png").symlink_to("itself.png")
    with pytest.warns(UserWarning, match="1 of 3 files were left out: 1 links to nothing"):
        assert values(load_images(tmp_path / "set")) == [0, 1]


def test_links_to_class_folders_are_followed(tmp_path: Path) -> None:
    classes(tmp_path / "store", "ant", "bee", "cat")
    (tmp_path / "set").mkdir()
    for name in ("ant", "cat"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "store" / name, target_is_directory=True)
    assert values(load_images(tmp_path / "set")) == [0, 2]


def test_a_whole_file_system_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_MOST_OTHERS", 20)
    for i in range(10):
        (tmp_path / f"{i}.txt").touch()
    save(tmp_path / "a.png", 3)
    with pytest.warns(UserWarning, match=r"10 \.txt"):
        assert values(load_images(tmp_path)) == [3]
    for i in range(11):
        (tmp_path / "deep" / f"{i}").mkdir(parents=True)
    assert "more than 20 files and folders that are no images; name the folder" in refused(tmp_path)


def test_pipes_are_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    assert "pipe.npz is a pipe, socket or device; wanted a regular file" in refused(tmp_path / "pipe.npz")
    assert "is a pipe, socket or device" in refused([tmp_path / "pipe.npz"])
    save(tmp_path / "set" / "a.png", 5)
    os.mkfifo(tmp_path / "set" / "b.png")
    with pytest.warns(UserWarning, match="1 of 2 files were left out: 1 links to nothing, pipes or devices"):
        assert values(load_images(tmp_path / "set")) == [5]


def test_a_small_file_that_unpacks_to_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    save(tmp_path / "a.png", 5, size=(40, 25))
    assert values(load_images(tmp_path)) == [5]
    for side in (32, 200):  # up to twice the limit Pillow itself only warns
        save(tmp_path / "a.png", 5, size=(side, side))
        assert "a.png" in refused(tmp_path, UnreadableFile)
    assert "pixels" in refused(tmp_path, UnreadableFile)


def test_nothing_is_said_where_there_is_nothing_to_say(tmp_path: Path) -> None:
    classes(tmp_path / "set" / "train", "ant", "bee")
    classes(tmp_path / "set" / "test", "bee")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert labels(load_images(tmp_path / "set", "test")) == [1]

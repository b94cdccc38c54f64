"""Tables of Hugging Face: columns by name, names as labels, configurations, one file, paths that lead elsewhere."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from certibox.data import Images, load_images
from certibox.errors import InvalidInput

datasets = pytest.importorskip("datasets", reason="needs the data extra")
pyarrow = pytest.importorskip("pyarrow")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Any:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def encoded(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (3, 2), value).save(file, "PNG")
    return file.getvalue()


def write(file: Path, **columns: list[Any]) -> Path:
    """A parquet file whose images have the values 0, 1, …."""
    from pyarrow import parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(columns.values())))
    table = {"image": [{"bytes": encoded(i), "path": None} for i in range(count)]} | columns
    parquet.write_table(pyarrow.table(table), file)
    return file


def values(images: Images) -> list[int]:
    return images.images[:, 0, 0, 0].tolist()


def labels(images: Images) -> list[int]:
    assert images.labels is not None
    return images.labels.tolist()


def refused(source: Any, *split: str, **options: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        load_images(source, *split, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value)


# --------------------------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize("column", ["label", "labels", "target", "targets", "fine_label", "digit", "Class"])
def test_the_usual_columns_are_labels(tmp_path: Path, column: str) -> None:
    images = load_images(write(tmp_path / "set.parquet", **{column: [2, 0, 1], "id": [7, 8, 9]}))
    assert (labels(images), values(images)) == ([2, 0, 1], [0, 1, 2])


def test_two_columns_that_may_be_labels_are_told_apart_by_name(tmp_path: Path) -> None:
    file = write(tmp_path / "set.parquet", fine_label=[2, 0], coarse_label=[1, 0])
    with pytest.warns(UserWarning, match=r"as unlabelled, as fine_label and coarse_label may .* \(--label-column\)"):
        assert load_images(file).labels is None
    assert labels(load_images(file, label_column="coarse_label")) == [1, 0]
    assert "no column 'fine_lable'; available: fine_label, coarse_label; did you mean fine_label?" in refused(
        file, label_column="fine_lable"
    )


def test_names_are_numbered_over_all_splits_and_beyond_a_limit(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", label=["b10", "b9", "ant"])
    write(tmp_path / "test.parquet", label=["b11", "b9"])
    for split, wanted in (("train", [2, 1, 0]), ("test", [3, 1])):
        for limit in (None, 1):
            images = load_images(tmp_path, split, limit=limit)
            assert labels(images) == wanted[:limit]
            assert images.class_names == ("ant", "b9", "b10", "b11")


def test_whole_numbers_of_any_type_are_labels(tmp_path: Path) -> None:
    assert labels(load_images(write(tmp_path / "a.parquet", label=[2.0, 0.0]))) == [2, 0]
    assert labels(load_images(write(tmp_path / "b.parquet", label=[True, False]))) == [1, 0]
    assert "column 'label' holds 0.5; wanted an integer for every image" in refused(
        write(tmp_path / "c.parquet", label=[0.5, 0.0])
    )


def test_rows_sorted_by_class_are_noticed_under_a_limit(tmp_path: Path) -> None:
    file = write(tmp_path / "set.parquet", label=[0] * 12 + [1] * 12)
    with pytest.warns(UserWarning, match="the first 12 images are all of class 0; images may be sorted by class"):
        load_images(file, limit=12)
    assert labels(load_images(file, limit=13)) == [0] * 12 + [1]
    assert len(load_images(file)) == 24
    arrays = np.zeros((24, 4, 4), np.uint8), [0] * 12 + [1] * 12
    with pytest.warns(UserWarning, match="arrays: the first 12 images are all of class 0; images may be sorted"):
        load_images(arrays, limit=12)
    assert len(load_images(arrays, limit=13)) == 13


def test_cells_without_an_image_are_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [encoded(0), None, encoded(2), encoded(3)]
    file = write(tmp_path / "set.parquet", image=cells, label=[0, 1, 2, 3])
    assert "set.parquet row 1 holds no image; fill it or leave it out" in refused(file)
    with pytest.warns(UserWarning, match=r"1 of 4 images cannot be read and were left out: set\.parquet row 1$"):
        assert labels(load_images(file, skip_unreadable=True)) == [0, 2, 3]


def test_a_column_without_a_value_holds_no_labels(tmp_path: Path) -> None:
    file = write(tmp_path / "set.parquet", label=[None, None])
    with pytest.warns(UserWarning, match="'label' holds no value for every image: images are taken as unlabelled$"):
        assert load_images(file).labels is None
    assert "column 'label' holds None; wanted an integer" in refused(write(tmp_path / "a.parquet", label=[None, 1]))


def test_a_broken_file_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set.parquet").write_bytes(b"")
    assert "set.parquet cannot be read: " in refused(tmp_path / "set.parquet")
    assert capfd.readouterr().err == ""


def test_unreadable_rows_are_counted(tmp_path: Path) -> None:
    cells = [encoded(0), b"junk", encoded(2), b"junk"]
    file = write(tmp_path / "set.parquet", image=cells, label=[0, 1, 2, 3])
    assert "2 of 4 images cannot be read: set.parquet row 1, set.parquet row 3 (it is no picture" in refused(file)
    with pytest.warns(UserWarning, match=r"2 of 4 images cannot be read and were left out: set\.parquet row 1, "):
        images = load_images(file, skip_unreadable=True)
    assert (values(images), labels(images)) == ([0, 2], [0, 2])


# ----------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["set.parquet", "odd [1] name*.parquet"])
def test_one_parquet_file(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "set" / name, label=[1, 0, 2])
    images = load_images(file, limit=2)
    assert (values(images), labels(images), images.name) == ([0, 1], [1, 0], name)
    parts = [load_images(str(file), split) for split in ("train:0.7", "test:0.3")]
    assert sorted(values(parts[0]) + values(parts[1])) == [0, 1, 2]


def test_one_arrow_file(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"image": [{"bytes": encoded(5), "path": None}], "label": [3]})
    table.save_to_disk(tmp_path / "set")
    (file,) = (tmp_path / "set").glob("*.arrow")
    assert (values(load_images(file)), labels(load_images(file))) == ([5], [3])


def test_the_one_split_of_a_folder_can_be_divided(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", label=list(range(10)))
    parts = [labels(load_images(tmp_path, split)) for split in ("train:0.8", "test:0.2")]
    assert (len(parts[0]), sorted(parts[0] + parts[1])) == (8, list(range(10)))
    write(tmp_path / "test.parquet", label=[0])
    assert "has splits of its own, so that 'train:0.8' is none; available: train, test" in refused(
        tmp_path, "train:0.8"
    )


def test_rows_without_a_name_are_said_to_be_everything() -> None:
    rows = datasets.Dataset.from_dict({"image": [{"bytes": encoded(5), "path": None}]})
    with pytest.warns(UserWarning, match="has no splits: 'test' is all of its 1 images"):
        load_images(rows, "test")
    assert len(load_images(datasets.DatasetDict(test=rows), "test")) == 1


# -------------------------------------------------------------------------------------------------- configurations


def test_a_configuration_is_chosen_by_name(tmp_path: Path) -> None:
    write(tmp_path / "small" / "train.parquet", label=[0, 1])
    write(tmp_path / "large" / "train.parquet", label=[2, 3, 4])
    rows = [f"- config_name: {name}\n  data_files: {name}/train.parquet" for name in ("small", "large")]
    (tmp_path / "README.md").write_text("\n".join(["---", "configs:", *rows, "---"]), encoding="utf-8")
    assert labels(load_images(tmp_path, configuration="small")) == [0, 1]
    assert labels(load_images(tmp_path, configuration="large")) == [2, 3, 4]
    known = "has the configurations small, large, but"
    assert f"{known} none is named; name one with configuration (--configuration)" in refused(tmp_path)
    assert f"{known} 'lage' is none of them; did you mean large?" in refused(tmp_path, configuration="lage")


def test_a_configuration_of_the_hub_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*names: str) -> Any:
        asked.append(names)
        return datasets.DatasetDict(train=datasets.Dataset.from_dict({"image": [{"bytes": encoded(5), "path": None}]}))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for configuration in (None, "large"):
        load_images("org/set", configuration=configuration)
    assert asked == [("org/set",), ("org/set", "large")]


# ----------------------------------------------------------------------------------------------------------- paths


def test_cells_with_paths_inside_the_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "set" / "png").mkdir(parents=True)
    for i in range(3):
        (tmp_path / "set" / "png" / f"{i}.png").write_bytes(encoded(i))
    inside = [f"png/{i}.png" for i in (2, 0)]
    whole = str(tmp_path / "set" / "png" / "1.png")
    for cells in ([*inside, whole], [{"bytes": None, "path": path} for path in (*inside, whole)]):
        images = load_images(write(tmp_path / "set" / "rows.parquet", image=cells))
        assert values(images) == [2, 0, 1]
        assert images.files == ("png/2.png", "png/0.png", "png/1.png")
        (tmp_path / "set" / "rows.parquet").unlink()


@pytest.mark.parametrize("path", ["../secret.png", "{}/secret.png", "link.png", "png/../../secret.png"])
@pytest.mark.parametrize("one_file", [True, False])
def test_cells_never_read_a_file_outside_the_folder(tmp_path: Path, path: str, one_file: bool) -> None:
    (tmp_path / "secret.png").write_bytes(encoded(200))
    for cell in (path.format(tmp_path), {"bytes": None, "path": path.format(tmp_path)}):
        file = write(tmp_path / "set" / "train.parquet", image=[cell])
        (tmp_path / "set" / "link.png").unlink(missing_ok=True)
        (tmp_path / "set" / "link.png").symlink_to(tmp_path / "secret.png")
        assert "row 0: " in (said := refused(file if one_file else tmp_path / "set"))
        assert "lies outside" in said


def test_bytes_are_read_whatever_their_path_says(tmp_path: Path) -> None:
    images = load_images(write(tmp_path / "set.parquet", image=[{"bytes": encoded(3), "path": "../x/a.png"}]))
    assert (values(images), images.files) == ([3], ("../x/a.png",))


def test_paths_in_rows_of_ones_own_are_read_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(9))
    rows = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")]}).cast_column("image", datasets.Image())
    np.testing.assert_array_equal(load_images(rows).images.numpy(), 9)


def test_pictures_beside_tables_are_named(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.parquet", label=[0, 1])
    (tmp_path / "set" / "loose.png").write_bytes(encoded(9))
    with pytest.warns(UserWarning, match=r"set: the tables alone are read; left out: loose\.png$"):
        assert values(load_images(tmp_path / "set")) == [0, 1]
    (tmp_path / "set" / "more.png").write_bytes(encoded(9))
    with pytest.warns(UserWarning, match=r"left out: loose\.png and 1 more picture$"):
        load_images(tmp_path / "set")


@pytest.mark.parametrize("one_file", [True, False])
def test_a_table_without_rows_says_so(tmp_path: Path, one_file: bool) -> None:
    from pyarrow import parquet

    file = write(tmp_path / "set" / "train.parquet", label=[0, 1])
    parquet.write_table(parquet.read_table(file).slice(0, 0), file)
    assert "holds no rows; " in refused(file if one_file else tmp_path / "set")

"""The picture of the pipeline: committed as drawn, every stage in it, nothing outside its edges or from elsewhere."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import draw_pipeline as drawn

SVG = "{http://www.w3.org/2000/svg}"


def test_the_committed_picture_is_what_the_script_draws(tmp_path: Path) -> None:
    drawn.main(["--out", str(tmp_path / "pipeline.svg")])
    assert (tmp_path / "pipeline.svg").read_bytes() == drawn.PICTURE.read_bytes()


def test_stages_stand_in_order_apart_and_inside() -> None:
    root = ElementTree.fromstring(drawn.svg())
    names = [text.text for text in root.iter(f"{SVG}text") if text.get("class") == "name"]
    assert names == ["image", "noise × n", "denoise", "encode", "decode", "your model", "vote", "label"]
    places = {(stage.column, stage.row) for stage in drawn.STAGES}
    assert len(places) == len(drawn.STAGES)
    for stage in drawn.STAGES:
        assert stage.left >= 0
        assert stage.left + drawn.BOX <= drawn.WIDTH
        assert stage.top + drawn.TALL <= drawn.HEIGHT
    for one, other in pairwise(drawn.STAGES):
        assert abs(one.column - other.column) + abs(one.row - other.row) == 1


def test_the_picture_needs_nothing_from_elsewhere() -> None:
    text = drawn.svg().replace("http://www.w3.org/2000/svg", "")
    assert "http" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text

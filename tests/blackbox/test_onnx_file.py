"""The bytes of ONNX files, held against the onnx package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from certibox.blackbox.onnx_file import MESSAGES, identity, weight_files, with_free_sizes
from certibox.errors import UnreadableFile
from file_makers import info, linear_onnx, onnx_with_weights_elsewhere, write_onnx

KINDS = {"Tensor": onnx.TypeProto.Tensor, "Dimension": onnx.TensorShapeProto.Dimension}


@pytest.mark.parametrize("kind", MESSAGES)
def test_the_fields_are_those_of_onnx(kind: str) -> None:
    descriptor = (KINDS[kind] if kind in KINDS else getattr(onnx, kind)).DESCRIPTOR
    found = {number: descriptor.fields_by_number[number].message_type.name for number in MESSAGES[kind]}
    assert found == MESSAGES[kind]


def test_weights_are_found_wherever_a_tensor_may_stand(tmp_path: Path) -> None:
    def elsewhere(name: str) -> onnx.TensorProto:
        (tmp_path / name).write_bytes(b"0123")
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=name)
        return tensor

    end = [info("y", TensorProto.FLOAT, [1])]
    inner = helper.make_graph([helper.make_node("Constant", [], ["y"], value=elsewhere("b"))], "inner", [], end)
    nodes = [
        helper.make_node("Constant", [], ["c"], value=elsewhere("a")),
        helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner),
    ]
    path = write_onnx(
        tmp_path / "m.onnx", nodes, [info("x", TensorProto.BOOL, [])], end, [elsewhere("c"), elsewhere("d")]
    )
    assert weight_files(path) == ["a", "b", "c", "d"]


def test_the_identity_changes_with_the_file_and_with_its_weights_wherever_they_lie(tmp_path: Path) -> None:
    weight = np.eye(2)
    path = onnx_with_weights_elsewhere(tmp_path / "m.onnx", "w.bin", weight)
    first = identity(path)
    assert identity(path) == first
    onnx_with_weights_elsewhere(path, "w.bin", 2 * weight)
    second = identity(path)
    onnx_with_weights_elsewhere(path, "v.bin", 2 * weight)
    assert len({first, second, identity(path)}) == 3
    (tmp_path / "unrelated.bin").write_bytes(b"1")
    onnx_with_weights_elsewhere(path, "w.bin", weight)
    assert identity(path) == first


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "a/../../w.bin", "C:\\w.bin", "..\\w.bin"])
def test_weights_outside_the_folder_are_refused_unread(location: str, tmp_path: Path) -> None:
    path = onnx_with_weights_elsewhere(tmp_path / "m.onnx", location)
    with pytest.raises(UnreadableFile, match=r"m.onnx wants weights from .*, outside its folder"):
        identity(path)


def test_missing_weights_are_named_and_a_directory_holds_none(tmp_path: Path) -> None:
    path = onnx_with_weights_elsewhere(tmp_path / "m.onnx", "w.bin")
    for _ in range(2):
        with pytest.raises(UnreadableFile, match=r"m.onnx wants its weights from 'w.bin', which is no file beside it"):
            identity(path)
        (tmp_path / "w.bin").mkdir(exist_ok=True)


def test_sizes_of_0_become_free_and_nothing_else_changes(tmp_path: Path) -> None:
    zero = linear_onnx(tmp_path / "zero.onnx", batch=0, shape=(2, 0, 4))
    free = linear_onnx(tmp_path / "free.onnx", batch="", shape=(2, "", 4))
    assert with_free_sizes(zero) == free.read_bytes()
    assert with_free_sizes(free) is None


def test_damaged_bytes_are_named(tmp_path: Path) -> None:
    whole = onnx_with_weights_elsewhere(tmp_path / "m.onnx", "w.bin", np.eye(2)).read_bytes()
    for cut in range(3, len(whole) - 6, 5):  # inside the graph
        (tmp_path / "m.onnx").write_bytes(whole[:cut])
        with pytest.raises(UnreadableFile, match=r"m.onnx is no ONNX model .*: it is damaged"):
            with_free_sizes(tmp_path / "m.onnx")
    for content in (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x3b", b"\x08" + b"\xff" * 20, b"\x0d\x00"):
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(UnreadableFile, match="it is damaged"):
            with_free_sizes(tmp_path / "m.onnx")

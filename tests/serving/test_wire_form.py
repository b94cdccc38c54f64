"""Requests and answers as bytes: what was sent is what is read, in both forms, and every breach is named."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays

from certibox.serving.protocol import (
    HEADER,
    Refused,
    Wanted,
    compressed,
    decompressed,
    read_request,
    written_answer,
    written_error,
)

KINDS = {"FP32": "<f4", "FP64": "<f8", "FP16": "<f2", "UINT8": "u1", "INT64": "<i8", "BOOL": "?"}


def body(**tensor: Any) -> bytes:
    inputs = {"name": "input", "shape": [2], "datatype": "FP32", "data": [1.0, 2.0], **tensor}
    return json.dumps({"inputs": [{key: value for key, value in inputs.items() if value is not None}]}).encode()


@pytest.mark.parametrize("datatype", KINDS)
@given(data=st.data())
def test_tensors_arrive_as_they_were_sent(datatype: str, data: st.DataObject) -> None:
    shape = data.draw(arrays.array_shapes(max_dims=4, max_side=4))
    finite = {"allow_nan": False, "allow_infinity": False} if datatype.startswith("FP") else None
    values = data.draw(arrays.arrays(KINDS[datatype], shape, elements=finite))
    raw = values.tobytes()
    tensor = {"name": "x", "shape": list(shape), "datatype": datatype, "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    found = read_request(head + raw, str(len(head)))
    assert np.array_equal(found.inputs["x"], values)
    assert found.datatypes == {"x": datatype}
    if datatype != "FP16":
        for written in (values.ravel().tolist(), values.tolist()):
            again = read_request(body(name="x", shape=list(shape), datatype=datatype, data=written), None).inputs["x"]
            assert np.array_equal(again, values)
            assert again.dtype == values.dtype


def test_answers_can_be_read_back_in_both_forms() -> None:
    values = np.array([1 / 3, 5e-324])
    tensors = {"a": ("FP64", values), "b": ("INT64", np.array([-1, 7])), "c": ("BOOL", np.array([True, False]))}
    plain = read_request(json.dumps({"id": "7", "inputs": []}).encode(), None)
    text, headers = written_answer("m", "v", plain, tensors, {"alpha": 0.001})
    answer = json.loads(text)
    assert headers == {"Content-Type": "application/json"}
    assert {key: answer[key] for key in ("model_name", "model_version", "id")} == {
        "model_name": "m",
        "model_version": "v",
        "id": "7",
    }
    assert answer["parameters"] == {"alpha": 0.001}
    assert [one["data"] for one in answer["outputs"]] == [values.tolist(), [-1, 7], [True, False]]
    asked = {"inputs": [], "parameters": {"binary_data_output": True}, "outputs": [{"name": "b"}, {"name": "a"}]}
    raw, headers = written_answer("m", "v", read_request(json.dumps(asked).encode(), None), tensors, {}, ("c",))
    length = int(headers[HEADER])
    outputs = json.loads(raw[:length])["outputs"]
    assert [one["name"] for one in outputs] == ["b", "a", "c"]  # "c" is always there
    assert [one["parameters"]["binary_data_size"] for one in outputs] == [16, 16, 2]
    assert raw[length:] == np.array([-1, 7], "<i8").tobytes() + values.tobytes() + b"\x01\x00"
    assert headers["Content-Type"] == "application/octet-stream"


def test_each_output_may_say_its_form() -> None:
    asked = {
        "inputs": [],
        "outputs": [{"name": "a", "parameters": {"binary_data": True}}, {"name": "b"}],
    }
    assert read_request(json.dumps(asked).encode(), None).outputs == [Wanted("a", True), Wanted("b", False)]


BROKEN = {
    "no JSON": (b"{", None, "the request is no JSON"),
    "NaN": (b'{"inputs": NaN}', None, "the request is no JSON"),
    "a list": (b"[]", None, "the request is no object"),
    "an id that is a number": (b'{"id": 7}', None, "id is no text"),
    "inputs that are no list": (b'{"inputs": {}}', None, "inputs is no list of objects"),
    "a header that is no number": (b"{}", "x", "wanted a number of bytes from 0 to 2"),
    "a header beyond the body": (b"{}", "3", "wanted a number of bytes from 0 to 2"),
    "a header below 0": (b"{}", "-1", "wanted a number of bytes from 0 to 2"),
    "no name": (body(name=7), None, "one of the inputs has the name 7"),
    "no such datatype": (body(datatype="FP33"), None, "has the datatype FP33"),
    "no shape": (body(shape=None), None, "shape of input 'input' is no list"),
    "a size that is a float": (body(shape=[2.0]), None, "shape of input 'input' is no list"),
    "a size that is true": (body(shape=[True, 2]), None, "shape of input 'input' is no list"),
    "a size below 0": (body(shape=[-2]), None, "wanted sizes of at least 0"),
    "no data": (body(data=None), None, "has no list as data"),
    "texts": (body(data=["1", "2"]), None, "holds something else than numbers"),
    "null": (body(data=[1.0, None]), None, "holds something else than numbers"),
    "true": (body(data=[True, False]), None, "holds something else than numbers"),
    "too few": (body(data=[1.0]), None, "has 1 numbers"),
    "nested otherwise": (body(data=[[1.0, 2.0]]), None, "is nested as"),
    "ragged": (body(data=[[1.0], [1.0, 2.0]]), None, "is no array of numbers"),
    "floats for integers": (body(datatype="UINT8", data=[1.5, 2.0]), None, "something else than numbers of type UINT8"),
    "beyond the type": (body(datatype="UINT8", data=[1, 256]), None, "leaves the range of UINT8"),
    "FP16 in JSON": (body(datatype="FP16"), None, "FP16 in JSON"),
    "both forms": (body(parameters={"binary_data_size": 8}), None, "has data and binary_data_size"),
    "a size that disagrees": (body(data=None, parameters={"binary_data_size": 4}), None, "want 8"),
    "bytes that are not there": (body(data=None, parameters={"binary_data_size": 8}), None, "with 0 bytes left"),
    "an output twice": (b'{"outputs": [{"name": "a"}, {"name": "a"}]}', None, "'a' twice"),
    "a parameter of an output": (b'{"outputs": [{"name": "a", "parameters": {"x": 1}}]}', None, "'x', not known"),
    "a form that is a number": (b'{"parameters": {"binary_data_output": 1}}', None, "wanted true or false"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_breaches_of_the_protocol_are_named(kind: str) -> None:
    content, header, told = BROKEN[kind]
    with pytest.raises(Refused) as refused:
        read_request(content, header)
    assert refused.value.status == 400
    assert told in refused.value.reason


def test_bytes_that_belong_to_no_tensor_are_refused() -> None:
    head = body()
    with pytest.raises(Refused, match=r"4 bytes after the tensors"):
        read_request(head + b"abcd", str(len(head)))


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "", "identity"])
def test_compressed_bodies_are_read_up_to_a_limit(encoding: str) -> None:
    plain = b"x" * 5000
    packed = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding, bytes)(plain)
    assert decompressed(packed, encoding, 5000) == plain
    if encoding in ("gzip", "deflate"):
        with pytest.raises(Refused) as refused:
            decompressed(packed, encoding, 4999)
        assert refused.value.status == 413
        for broken in (packed[:-1], packed + b"x", b"no"):
            with pytest.raises(Refused) as refused:
                decompressed(broken, encoding, 5000)
            assert refused.value.status == 400


def test_other_encodings_are_refused() -> None:
    with pytest.raises(Refused, match=r"wanted gzip, deflate or none") as refused:
        decompressed(b"", "br", 10)
    assert refused.value.status == 415


def test_answers_are_compressed_as_clients_accept_it() -> None:
    large = b"7" * 5000
    assert compressed(large, "") == (large, "")
    assert compressed(b"small", "gzip") == (b"small", "")
    assert compressed(large, "gzip;q=0") == (large, "")
    packed, encoding = compressed(large, "deflate, gzip;q=0.5")
    assert (gzip.decompress(packed), encoding) == (large, "gzip")
    packed, encoding = compressed(large, "deflate")
    assert (zlib.decompress(packed), encoding) == (large, "deflate")


def test_errors_have_the_form_of_the_protocol() -> None:
    assert json.loads(written_error('a "word"')) == {"error": 'a "word"'}

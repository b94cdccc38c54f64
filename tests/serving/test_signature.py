"""What a served model takes: the preparation of its box undone, to the pixel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from certibox.blackbox import BoxSpec
from certibox.blackbox.inputs import as_array
from certibox.certification.smoothing import SmoothedClassifier
from certibox.errors import InvalidInput
from certibox.serving.protocol import InferRequest, Refused
from certibox.serving.signature import Answer, Signature, signature_of
from gateways import Bright, smoothed_of

NORMAL = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
DECLARED: list[dict[str, Any]] = [
    {},
    {"layout": "NHWC"},
    {"layout": "flat"},
    {"layout": "flat-NHWC"},
    {"input_range": (0, 255)},
    {"input_range": (-1, 1), "layout": "NHWC"},
    NORMAL,
    {**NORMAL, "layout": "NHWC"},
    {"dtype": "uint8"},
    {"dtype": "uint8", "layout": "NHWC"},
    {"dtype": "float64", **NORMAL},
]


def eight_bits(n: int = 2) -> torch.Tensor:
    pixels = torch.randint(0, 256, (n, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    return pixels.float() / 255


@pytest.mark.parametrize("declared", DECLARED, ids=str)
def test_what_the_box_takes_becomes_the_pixels_again(declared: dict[str, Any]) -> None:
    spec, x = BoxSpec("logits", **declared), eight_bits()
    found = Signature("m", "1", spec, (3, 4, 5), 3).pixels(as_array(spec, x))
    assert found.shape == x.shape
    assert found.is_contiguous()
    if "mean" in declared or declared.get("input_range") == (-1, 1):
        assert torch.allclose(found, x, atol=1e-6)
    else:
        assert torch.equal(found, x)


def asked(array: np.ndarray, datatype: str = "FP32", name: str = "input") -> InferRequest:
    return InferRequest("", {}, {name: array}, {name: datatype})


def test_other_inputs_are_refused() -> None:
    signature = Signature("m", "1", BoxSpec("logits"), (3, 4, 5), 3)
    x = eight_bits().numpy()
    assert torch.equal(signature.images(asked(x), 2), eight_bits())
    assert torch.equal(signature.images(asked(x.astype("f8"), "FP64"), 2), eight_bits())
    nan, far = x.copy(), x.copy()
    nan[1, 0, 0, 0], far[0, 0, 0, 0] = np.nan, 1.01
    for request, status, told in (
        (asked(x, name="pixels"), 400, "the inputs are 'pixels'; the model m takes one input, 'input'"),
        (replace(asked(x), inputs={}), 400, "the inputs are none"),
        (asked((x * 255).astype("u1"), "UINT8"), 400, "is UINT8; the model m takes FP32"),
        (asked(x[0]), 400, "wanted [n, 3, 4, 5]"),
        (asked(x[:0]), 400, "with n of at least 1"),
        (asked(np.float32(1)), 400, "wanted [n, 3, 4, 5]"),  # pyright: ignore[reportArgumentType]
        (asked(np.concatenate([x, x])), 413, "holds 4 images; wanted at most 2"),
        (asked(nan), 400, "holds NaN or infinity"),
        (asked(far), 400, "has pixels from"),
    ):
        with pytest.raises(Refused) as refused:
            signature.images(request, 2)
        assert refused.value.status == status
        assert told in refused.value.reason


def test_the_shape_comes_from_whoever_knows_it() -> None:
    assert signature_of(smoothed_of(Bright()), "m", (1, 4, 4)).image_shape == (1, 4, 4)
    assert signature_of(smoothed_of(Bright(image_shape=(1, 6, 6))), "m", None).image_shape == (1, 6, 6)
    assert signature_of(smoothed_of(Bright(takes=(8, 9, 3), layout="NHWC")), "m", None).image_shape == (3, 8, 9)
    with pytest.raises(InvalidInput, match=r"the shape of an image is not known"):
        signature_of(smoothed_of(Bright()), "m", None)
    for name in ("", "a/b", "a b", "ä"):
        with pytest.raises(InvalidInput, match=r"as they stand in an address"):
            signature_of(smoothed_of(Bright()), name, (1, 4, 4))


def test_another_model_or_sigma_is_another_version() -> None:
    box = Bright()
    one, same = (signature_of(smoothed_of(box), "m", (1, 4, 4)) for _ in range(2))
    other = signature_of(SmoothedClassifier(smoothed_of(box).base_classifier, 3, 0.5), "m", (1, 4, 4))
    assert one.version == same.version != other.version
    assert one.version != signature_of(smoothed_of(Bright(name="else")), "m", (1, 4, 4)).version


def test_outputs_have_the_boxs_own_first() -> None:
    answers = [Answer(1, 0.5, 0.9, (1, 3, 0), 12), Answer(None, 0.0, 0.2, (2, 2, 0), 9)]
    signature = Signature("m", "1", BoxSpec("logits"), (3, 4, 5), 3, output="logits")
    tensors = signature.tensors(answers)
    assert list(tensors) == ["logits", "label", "abstained", "radius", "p_lower", "queries"]
    assert tensors["logits"][1].tolist() == [[0.25, 0.75, 0.0], [0.5, 0.5, 0.0]]
    assert tensors["label"][1].tolist() == [1, -1]
    assert tensors["abstained"][1].tolist() == [False, True]
    assert signature.always(answers) == ("abstained",)
    assert signature.always(answers[:1]) == ()
    described = {one["name"]: (one["datatype"], one["shape"]) for one in signature.metadata()["outputs"]}
    assert described["logits"] == ("FP32", [-1, 3])
    assert all(values.shape == (2, *described[name][1][1:]) for name, (_, values) in tensors.items())
    labels = Signature("m", "1", BoxSpec("labels", num_classes=3), (3, 4, 5), 3, output="y", output_datatype="INT64")
    assert labels.tensors(answers)["y"][1].tolist() == [1, -1]
    assert {one["name"]: one["shape"] for one in labels.metadata()["outputs"]}["y"] == [-1]

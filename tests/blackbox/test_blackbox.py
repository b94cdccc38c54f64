"""One linear map behind every adapter, and every way in which a declaration or an answer can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor, nn

from certibox.blackbox import OUTPUTS, BoxSpec, as_blackbox, as_images, check_outputs, differentiable
from certibox.errors import BadOutput, InvalidImages, InvalidInput, NotDifferentiable, OtherClasses
from doubles import CountingBox, LinearBox, QuadraticBox
from file_makers import CLASSES, PIXELS, SHAPE, linear_map, linear_onnx


@pytest.fixture
def x() -> Tensor:
    return torch.rand(7, *SHAPE, generator=torch.Generator().manual_seed(0))


def answers(logits: Any, outputs: str) -> Any:
    """What a model of this kind answers for these logits (n, K), in torch."""
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "probabilities": lambda logits: logits.softmax(1),
        "labels": lambda logits: logits.argmax(1),
    }
    return kinds.get(outputs, lambda logits: logits)(logits)


# The same linear map as a model of each kind. (outputs, folder) -> model


class LinearModule(nn.Module):
    def __init__(self, outputs: str) -> None:
        super().__init__()
        weight, bias = linear_map()
        self.weight, self.bias, self.outputs = nn.Parameter(weight), nn.Parameter(bias), outputs

    def forward(self, x: Tensor) -> Tensor:
        return answers(x.flatten(1) @ self.weight.T + self.bias, self.outputs)


def linear_function(outputs: str) -> Callable[[np.ndarray], np.ndarray]:
    weight, bias = (part.numpy() for part in linear_map())

    def function(images: np.ndarray) -> np.ndarray:
        logits = torch.from_numpy(images.reshape(len(images), -1) @ weight.T + bias)
        return answers(logits, outputs).numpy()

    return function


def linear_classifier(classes: int = CLASSES, names: list[Any] | None = None) -> LogisticRegression:
    """A fitted LogisticRegression whose coefficients are then the linear map (two classes: logit 1 minus logit 0)."""
    weight, bias = (part.double().numpy() for part in linear_map(classes))
    targets = names or list(range(classes))
    model = LogisticRegression().fit(np.eye(len(targets), PIXELS), targets)
    model.coef_, model.intercept_ = (weight, bias) if classes > 2 else (weight[1:] - weight[:1], bias[1:] - bias[:1])
    return model


def linear_estimator(outputs: str) -> Any:
    if outputs != "values":
        return linear_classifier()
    weight, bias = (part.double().numpy() for part in linear_map())
    model = LinearRegression().fit(np.eye(PIXELS), np.zeros((PIXELS, CLASSES)))
    model.coef_, model.intercept_ = weight, bias
    return model


MODELS: dict[str, Callable[[str, Path], Any]] = {
    "torch": lambda outputs, folder: LinearModule(outputs),
    "function": lambda outputs, folder: linear_function(outputs),
    "sklearn": lambda outputs, folder: linear_estimator(outputs),
    "onnx": lambda outputs, folder: linear_onnx(folder / "m.onnx", (outputs,)),
    "onnx, batch of 8": lambda outputs, folder: linear_onnx(folder / "m.onnx", (outputs,), batch=8),
}


def num_classes(outputs: str) -> int | None:
    return CLASSES if outputs == "labels" else None


@pytest.mark.parametrize("outputs", [kind for kind in OUTPUTS if kind != "top-k"])
@pytest.mark.parametrize("kind", MODELS)
def test_every_adapter_gives_the_outputs_of_the_linear_map(kind: str, outputs: str, x: Tensor, tmp_path: Path) -> None:
    box = as_blackbox(MODELS[kind](outputs, tmp_path), outputs, num_classes=num_classes(outputs))
    weight, bias = linear_map()
    expected = answers(x.flatten(1) @ weight.T + bias, outputs)

    answer = box(x.requires_grad_())

    torch.testing.assert_close(answer, expected.detach(), atol=1e-5, rtol=1e-5, check_dtype=False)
    assert answer.dtype == torch.int64 if outputs == "labels" else answer.dtype in (torch.float32, torch.float64)
    assert not answer.requires_grad
    assert not answer.is_inference()
    assert check_outputs(answer, 7, box.spec, expected.shape[1:]) is not None


@pytest.mark.parametrize("kind", MODELS)
def test_every_adapter_applies_the_declaration(kind: str, x: Tensor, tmp_path: Path) -> None:
    box = as_blackbox(
        MODELS[kind]("logits", tmp_path), "logits", input_range=(-1, 3), levels=5, mean=(0.5, 1), std=(2, 4)
    )
    weight, bias = linear_map()
    wild = 3 * x - 1
    grid = (wild.clamp(0, 1) * 4).round() / 4
    prepared = (4 * grid - 1 - torch.tensor([0.5, 1]).view(2, 1, 1)) / torch.tensor([2.0, 4]).view(2, 1, 1)

    torch.testing.assert_close(
        box(wild), prepared.flatten(1) @ weight.T + bias, atol=1e-5, rtol=1e-5, check_dtype=False
    )


# BoxSpec


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prepare_keeps_dtype_and_returns_x_itself_when_nothing_is_declared(x: Tensor, dtype: torch.dtype) -> None:
    x = x.to(dtype)
    assert BoxSpec("logits").prepare(x) is x
    declared = BoxSpec("logits", input_range=(-1, 1), levels=16, mean=(0.1, 0.2), std=(0.3, 0.4))
    assert declared.prepare(x).dtype == dtype


def test_prepare_maps_the_ends_of_the_pixel_range_to_the_ends_of_the_input_range() -> None:
    ends = torch.tensor([0.0, 0.5, 1.0]).reshape(3, 1, 1, 1)
    assert BoxSpec("logits", input_range=(-2, 6)).prepare(ends).flatten().tolist() == [-2, 2, 6]


def test_prepare_clips_only_when_declared() -> None:
    wild = torch.tensor([-0.5, 0.25, 1.5]).reshape(1, 1, 1, 3)
    assert BoxSpec("logits", clip=True).prepare(wild).flatten().tolist() == [0, 0.25, 1]
    assert BoxSpec("logits", input_range=(0, 2)).prepare(wild).flatten().tolist() == [-1, 0.5, 3]


@pytest.mark.parametrize("levels", [2, 7, 256])
def test_prepare_rounds_to_the_nearest_of_the_levels(levels: int) -> None:
    x = torch.linspace(-0.2, 1.2, 999, dtype=torch.float64).reshape(1, 1, 27, 37)
    grid = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    rounded = BoxSpec("logits", levels=levels).prepare(x)

    assert torch.isin(rounded, grid).all()
    assert torch.equal(BoxSpec("logits", levels=levels).prepare(rounded), rounded)
    nearest = (x.clamp(0, 1).flatten()[:, None] - grid).abs().amin(1)
    torch.testing.assert_close((rounded - x.clamp(0, 1)).abs().flatten(), nearest, atol=1e-15, rtol=0)


def test_all_256_levels_arrive_as_exact_integers_on_0_to_255() -> None:
    """A model that truncates to uint8 must not lose one where a product with 255 falls short of an integer."""
    levels = torch.arange(256, dtype=torch.float32)
    prepared = BoxSpec("logits", levels=256, input_range=(0, 255)).prepare((levels / 255).reshape(1, 1, 16, 16))
    assert torch.equal(prepared.flatten(), levels)


def test_normalisation_follows_the_range_in_its_units_and_is_per_channel() -> None:
    x = torch.full((1, 2, 1, 1), 0.5, dtype=torch.float64)
    prepared = BoxSpec("logits", input_range=(0, 200), mean=(90, 130), std=(10, 3)).prepare(x)
    assert prepared.flatten().tolist() == [1, -10]
    assert BoxSpec("logits", mean=(1, 2)).prepare(x).flatten().tolist() == [-0.5, -1.5]
    assert BoxSpec("logits", std=(0.5, 0.25)).prepare(x).flatten().tolist() == [1, 2]


def test_spec_from_json_equals_its_source_and_provenance_leaves_out_batch_sizes() -> None:
    spec = BoxSpec("labels", num_classes=3, input_range=(-1, 1), levels=256, mean=(0.5,), image_shape=(1, 8, 8))
    stored = json.loads(json.dumps(spec.provenance()))
    assert BoxSpec(**stored) == spec
    assert stored == spec.provenance()
    assert BoxSpec("labels", num_classes=3, batch_size=1).provenance() == BoxSpec("labels", num_classes=3).provenance()


def test_levels_imply_clip_and_max_batch_bounds_batch_size() -> None:
    assert BoxSpec("logits", levels=2) == BoxSpec("logits", levels=2, clip=True)
    assert BoxSpec("logits", max_batch=3).batch_size == 3
    assert BoxSpec("logits", max_batch=300, batch_size=20).batch_size == 20


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"outputs": "scores"}, "outputs is 'scores'; give one of logits, probabilities, labels, values"),
        ({"outputs": "labels"}, "without num_classes"),
        ({"num_classes": 1}, "num_classes is 1; give an integer of at least 2"),
        ({"num_classes": 2.5}, "num_classes is 2.5"),
        ({"levels": 1}, "levels is 1; give an integer of at least 2"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_batch": True}, "max_batch is True"),
        ({"input_range": (1, 1)}, r"input_range is \(1.0, 1.0\); give \(lo, hi\) with lo < hi"),
        ({"input_range": (0, 1, 2)}, r"input_range is \(0.0, 1.0, 2.0\)"),
        ({"input_range": 255}, "input_range is 255; give a sequence"),
        ({"input_range": (0, float("inf"))}, r"input_range is \(0, inf\); give a sequence of finite numbers"),
        ({"mean": 0.5}, "mean is 0.5; give a sequence"),
        ({"mean": ()}, r"mean is \(\)"),
        ({"std": (1, 0)}, r"std is \(1.0, 0.0\); every entry must be above 0"),
        ({"mean": (1, 2), "std": (1,)}, "mean has 2 channels and std 1"),
        ({"image_shape": (3, 0, 4)}, r"image_shape is \(3, 0, 4\)"),
        ({"image_shape": (3, 4)}, r"image_shape is \(3, 4\)"),
        ({"image_shape": (3, 4, 4), "mean": (1, 2)}, r"2 channels, image_shape is \(3, 4, 4\)"),
        ({"image_shape": 3}, r"image_shape is 3; give \(channels, height, width\)"),
        ({"image_shape": "345"}, r"image_shape is '345'; give \(channels, height, width\)"),
        ({"clip": "yes"}, "clip is 'yes'; give True or False"),
        ({"clip": None}, "clip is None; give True or False"),
        ({"mean": "12"}, "mean is '12'; give a sequence of finite numbers"),
        ({"std": (10**400,)}, "std is .*; give a sequence of finite numbers"),
        ({"input_range": None}, "input_range is None; give a sequence"),
        ({"num_classes": 2.0}, "num_classes is 2.0; give an integer of at least 2"),
        ({"num_classes": "10"}, "num_classes is '10'; give an integer"),
        ({"name": 5}, "name is 5; give a text"),
        ({"identity": b"7"}, "identity is b'7'; give a text, such as a digest"),
        ({"layout": 4}, "layout is 4; give one of NCHW, NHWC, flat, flat-NHWC"),
        ({"layout": "nchw"}, "layout is 'nchw'; .*did you mean NCHW"),
        ({"dtype": np.uint8}, "dtype is <class 'numpy.uint8'>; give one of float32, float64, float16, uint8"),
        ({"dtype": "int8"}, "dtype is 'int8'; give one of float32"),
        ({"outputs": ["logits"]}, r"outputs is \['logits'\]; give one of logits"),
    ],
)
def test_a_declaration_that_cannot_hold_is_refused(declared: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        BoxSpec(declared.pop("outputs", "logits"), **declared)


@pytest.mark.parametrize(
    ("declared", "images", "message"),
    [
        ({}, torch.zeros(1, 2, 3, 4, dtype=torch.uint8), "images are torch.uint8; wanted floats"),
        ({}, torch.zeros(2, 3, 4), r"images have shape \(2, 3, 4\); wanted a batch"),
        ({"image_shape": (2, 3, 4)}, torch.zeros(1, 2, 4, 3), r"shape \(2, 4, 3\); box digits takes \(2, 3, 4\)"),
        ({"mean": (1, 2, 3)}, torch.zeros(1, 2, 3, 4), "images have 2 channels; mean or std of box digits has 3"),
    ],
)
def test_images_that_do_not_fit_are_refused(declared: dict[str, Any], images: Tensor, message: str) -> None:
    with pytest.raises(InvalidImages, match=message):
        BoxSpec("logits", name="digits", **declared).prepare(images)


def test_numbers_of_numpy_declare_as_numbers_of_python_do() -> None:
    numpys: dict[str, Any] = {"num_classes": np.int64(3), "clip": np.True_, "image_shape": (np.int8(1), 2, 2)}
    plain = BoxSpec("logits", num_classes=3, clip=True, image_shape=(1, 2, 2), mean=(1.0,))
    found = BoxSpec("logits", mean=np.ones(1), **numpys)  # pyright: ignore[reportArgumentType]
    assert json.dumps(found.provenance()) == json.dumps(plain.provenance())


IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.mark.parametrize(
    ("declared", "doubt"),
    [
        (IMAGENET | {"input_range": (0, 255)}, r"in units of \[0, 1\] beside input_range \(0.0, 255.0\).* 1,136;"),
        ({"mean": (127.5,), "std": (127.5,)}, r"lies outside of input_range \(0.0, 1.0\).*up to 1;"),
        ({"mean": (0.5,), "std": (58.0,)}, r"is larger than input_range \(0.0, 1.0\)"),
        ({"mean": (123.7,)}, "lies outside of input_range"),
        ({"std": (0.2,), "input_range": (0, 255)}, r"in units of \[0, 1\] .*up to 1,275;"),
        (IMAGENET, None),
        ({"mean": (0.5,), "std": (0.5,), "input_range": (-1, 1)}, None),
        ({"mean": (123.7, 116.8, 103.9), "std": (58.4, 57.1, 57.4), "input_range": (0, 255)}, None),
        ({"mean": (123.7, 116.8, 103.9), "input_range": (0, 255)}, None),
        ({"mean": (0.0,), "std": (1.0,), "input_range": (0, 255)}, None),
        ({"std": (255.0,), "input_range": (0, 255)}, None),
        ({"input_range": (0, 255)}, None),
    ],
)
def test_normalisation_in_other_units_than_the_range_is_warned_of(declared: dict[str, Any], doubt: str | None) -> None:
    with nullcontext() if doubt is None else pytest.warns(UserWarning, match=f"mean .* of box len: one .*{doubt}"):
        as_blackbox(len, "logits", **declared)


# check_outputs


@pytest.mark.parametrize(
    ("outputs", "answer", "num_outputs", "message"),
    [
        ("logits", torch.zeros(2), None, r"logits must be \(n, K\), got shape \(2,\)"),
        ("logits", torch.zeros(2, 3, 1), None, r"got shape \(2, 3, 1\)"),
        ("labels", torch.zeros(2, 1), None, r"labels must be \(n,\), got shape \(2, 1\)"),
        ("values", torch.tensor(1.0), None, r"values must be \(n, ...\), got shape \(\)"),
        ("logits", torch.zeros(3, 3), None, "2 images need 2 answers, got 3"),
        ("logits", torch.zeros(2, 1), (3,), r"earlier images had shape \(3,\), these have \(1,\)"),
        ("logits", torch.zeros(2, 4), (3,), r"earlier images had shape \(3,\), these have \(4,\)"),
        ("logits", torch.full((2,), float("nan")), None, r"logits must be \(n, K\), got shape \(2,\)"),
        ("logits", torch.zeros(2, 3), (5,), r"earlier images had shape \(5,\), these have \(3,\)"),
        ("values", torch.zeros(2, 3), (4, 4), r"earlier images had shape \(4, 4\), these have \(3,\)"),
        ("logits", torch.tensor([[0, 1, float("nan")], [float("inf"), 0, 0]]), None, r"finite, got nan \(2 such"),
        ("values", torch.tensor([0, -float("inf")]), None, "finite, got -inf"),
        ("labels", torch.tensor([0, float("inf")]), None, "finite, got inf"),
        ("values", torch.zeros(2, dtype=torch.complex64), None, "real numbers, got torch.complex64"),
        ("labels", torch.tensor([-1, 2]), None, "labels must be in 0..2, got -1"),
        ("labels", torch.tensor([1, 1.25]), None, "labels must be integers, got 1.25"),
        ("probabilities", torch.tensor([[0.5, 0.5, 0], [1.1, 0, -0.1]]), None, r"in \[0, 1\], got 1.1"),
        ("probabilities", torch.tensor([[0.5, 0.5, 0], [1.25, 0, 0]]), None, r"in \[0, 1\], got 1.25"),
        ("probabilities", torch.tensor([[0.5, 0.5, 0], [0.5, 0.25, 0]]), None, "sum to 1, got 0.75"),
        ("logits", [[1, 2, 3]], None, "logits must be a tensor, got list"),
    ],
)
def test_an_answer_that_breaks_a_rule_is_named(
    outputs: str, answer: Any, num_outputs: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(BadOutput, match=f"^batch 3: .*{message}") as error:
        check_outputs(answer, 2, BoxSpec(outputs, num_classes=3), num_outputs, "batch 3")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("outputs", "answer", "message"),
    [
        ("logits", torch.zeros(2, 4), "the box answers for 4 classes while num_classes is 3; give 4"),
        ("probabilities", torch.full((2, 2), 0.5), "the box answers for 2 classes while num_classes is 3; give 2"),
        (
            "logits",
            torch.zeros(2, 1),
            "the box answers one score an image, which is for 2 classes, while num_classes",
        ),
        (
            "probabilities",
            torch.tensor([0.5, 1]),
            "the box answers one score an image, which is for 2 classes, while",
        ),
        ("labels", torch.tensor([0, 3]), "labels must be in 0..2, got 3, while num_classes is 3; give at least 4 if"),
    ],
)
def test_a_wrong_number_of_classes_is_the_declarations_fault(outputs: str, answer: Tensor, message: str) -> None:
    with pytest.raises(OtherClasses, match=f"^batch 3: {message}") as error:
        check_outputs(answer, 2, BoxSpec(outputs, num_classes=3), None, "batch 3")
    assert isinstance(error.value, BadOutput)  # its queries are paid for, as those of any wrong answer
    assert error.value.exit_status == 2


def test_probabilities_beyond_0_or_1_by_a_rounding_are_clipped() -> None:
    certain = torch.tensor([1 + 2**-23, -(2**-23), 0.25])
    both = as_blackbox(lambda x: certain[: len(x)], outputs="probabilities", num_classes=2)(torch.zeros(3, 1, 2, 2))
    assert float(both.min()) < 0  # as the model answered
    checked = check_outputs(both, 3, BoxSpec("probabilities"))
    assert torch.equal(checked, torch.tensor([[0, 1], [1, 0], [0.75, 0.25]]))


@pytest.mark.parametrize(
    ("outputs", "answer", "dtype"),
    [
        ("labels", torch.tensor([0.0, 2.0]), torch.int64),
        ("labels", torch.tensor([0, 2], dtype=torch.uint8), torch.int64),
        ("labels", torch.tensor([False, True]), torch.int64),
        ("logits", torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.float32),
        ("logits", torch.tensor([[1, 2, 3], [4, 5, 6]]).half(), torch.float32),
        ("values", torch.tensor([[1.0], [2.0]], dtype=torch.float64), torch.float64),
        ("probabilities", torch.tensor([[1.00009, -0.00009, 0], [0.33, 0.33, 0.335]]), torch.float32),
    ],
)
def test_good_answers_keep_their_values_in_the_type_of_their_kind(
    outputs: str, answer: Tensor, dtype: torch.dtype
) -> None:
    checked = check_outputs(answer, 2, BoxSpec(outputs, num_classes=3), answer.shape[1:], "batch 1")
    assert checked.dtype == dtype
    assert torch.equal(checked, answer.to(dtype).clamp(0, 1) if outputs == "probabilities" else answer.to(dtype))


def test_checked_outputs_carry_no_gradient() -> None:
    assert not check_outputs(torch.zeros(2, 3, requires_grad=True), 2, BoxSpec("logits")).requires_grad


# as_blackbox


def test_a_black_box_comes_back_as_it_is_and_takes_no_second_declaration() -> None:
    box = LinearBox(*linear_map())
    assert as_blackbox(box) is box
    assert as_blackbox(box, "logits") is box
    with pytest.raises(InvalidInput, match="clip, outputs given for box linear"):
        as_blackbox(box, "values", clip=True)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (LinearModule("logits"), {}, "outputs was not given; .* logits, probabilities, labels, values"),
        (LinearModule("logits"), {"outputs": "scores"}, "outputs is 'scores'"),
        (LinearModule("logits"), {"outputs": "logits", "output_name": "y"}, "output_name='y' .* LinearModule"),
        (LinearModule, {"outputs": "logits"}, "model is the class LinearModule; give an instance"),
        (3, {"outputs": "logits"}, "model is 3; give a torch module"),
        (np.eye(2), {"outputs": "logits"}, r"model is a ndarray; give a torch module"),
        ({"key": "secret"}, {"outputs": "logits"}, "model is a dict; give a torch module"),
        (len, {"outputs": "logits", "output_key": ["a"]}, r"output_key is \['a'\]; give a key, a position"),
        ("model.pt", {"outputs": "logits"}, "model is 'model.pt', a PyTorch file, .* write a Python file"),
    ],
)
def test_what_cannot_be_a_black_box_is_refused(model: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        as_blackbox(model, **arguments)


def test_every_declaration_reaches_the_spec() -> None:
    declared: dict[str, Any] = {
        "num_classes": 3,
        "input_range": (0.0, 2.0),
        "layout": "NHWC",
        "dtype": "float64",
        "clip": False,
        "mean": (1.0,),
        "std": (2.0,),
        "image_shape": (1, 2, 2),
        "batch_size": 5,
        "max_batch": 6,
        "name": "mine",
        "concurrency": 7,
    }
    assert as_blackbox(len, "logits", **declared).spec == BoxSpec("logits", **declared)
    assert as_blackbox(len, "logits").spec == BoxSpec("logits", clip=True, name="len")
    assert as_blackbox(len, "logits", levels=9, identity="7").spec == BoxSpec(
        "logits", levels=9, name="len", identity="7"
    )


@pytest.mark.parametrize("kind", ["torch", "function", "sklearn"])
def test_an_error_of_the_model_passes_unchanged(kind: str, x: Tensor) -> None:
    error = ZeroDivisionError("the user's own")

    def fail(*_: object) -> Any:
        raise error

    model = MODELS[kind]("logits", Path())
    setattr(model, {"torch": "forward", "sklearn": "decision_function"}.get(kind, "__doc__"), fail)
    box = as_blackbox(fail if kind == "function" else model, "logits")
    with pytest.raises(ZeroDivisionError) as raised:
        box(x)
    assert raised.value is error


# Torch modules


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dropout, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Dropout(0.5), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = self.dropout(self.conv(x).relu())
        return self.head(self.flatten(features))

    def flatten(self, features: Tensor) -> Tensor:
        return features.flatten(1)


class ViewConvNet(ConvNet):
    def flatten(self, features: Tensor) -> Tensor:
        return features.view(len(features), -1)


@pytest.mark.parametrize("network", [ConvNet, ViewConvNet])
def test_a_convolutional_module_answers_as_in_eval_mode_whatever_its_memory_layout(
    network: type[ConvNet], x: Tensor
) -> None:
    module = network()
    with torch.no_grad():
        expected = module.eval()(x)
    box = as_blackbox(module.train(), "logits")
    torch.testing.assert_close(box(x), expected)
    torch.testing.assert_close(box(x), expected)
    torch.testing.assert_close(differentiable(box)(x), expected, check_stride=False)


def test_the_gradient_of_a_torch_box_is_the_closed_form(x: Tensor) -> None:
    module = LinearModule("logits")
    box = as_blackbox(module, "logits", input_range=(-1, 1), std=(0.5, 2.0))
    target = box(x)
    x.requires_grad_()

    (differentiable(box)(x) * target).sum().backward()

    scale = torch.tensor([4.0, 1.0]).view(2, 1, 1)  # (hi - lo) / std
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (target @ module.weight).reshape(x.shape) * scale)
    assert module.weight.requires_grad


def test_a_torch_box_takes_the_precision_of_its_module_and_a_module_without_numbers_takes_any(x: Tensor) -> None:
    weight, bias = linear_map()
    answer = as_blackbox(LinearModule("logits").double(), "logits")(x)
    assert torch.equal(answer, x.double().flatten(1) @ weight.double().T + bias.double())
    assert torch.equal(as_blackbox(nn.Flatten(), "values")(x.double()), x.double().flatten(1))


def test_answers_do_not_alias_the_images_or_a_buffer_of_the_model(x: Tensor) -> None:
    buffer = np.zeros((7, 2), dtype=np.float32)

    def reuse(images: np.ndarray) -> np.ndarray:
        buffer[:] = images[:, :, 0, 0]
        return buffer

    for box in (as_blackbox(nn.Identity(), "values"), as_blackbox(reuse, "values")):
        before, first = x.clone(), box(x)
        copy = first.clone()
        box(x + 1)
        assert torch.equal(first, copy)
        first.zero_()
        assert torch.equal(x, before)


@pytest.mark.parametrize("layers", [[], [nn.Conv2d(2, 2, 1)]])
def test_a_module_that_works_in_place_does_not_change_the_images(layers: list[nn.Module], x: Tensor) -> None:
    box = as_blackbox(nn.Sequential(nn.ReLU(inplace=True), *layers), "values")
    x -= 0.5
    before = x.clone()
    first = box(x)
    assert torch.equal(x, before)
    assert torch.equal(differentiable(box)(x), first)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        (as_blackbox(LinearModule("labels"), "labels", num_classes=CLASSES), "LinearModule answers with labels"),
        (as_blackbox(LinearModule("logits"), "logits", levels=256), "LinearModule rounds its input to 256 levels"),
        (as_blackbox(len, "logits"), "len gives none; use a zeroth-order method"),
        (CountingBox(LinearBox(*linear_map())), "linear gives none"),
    ],
)
def test_a_box_without_useful_gradients_is_not_differentiable(box: Any, reason: str) -> None:
    with pytest.raises(NotDifferentiable, match=f"a first-order method needs gradients; box {reason}"):
        differentiable(box)


# Functions


def test_a_function_gets_a_float32_array_of_its_own(x: Tensor) -> None:
    seen: list[np.ndarray] = []

    def spoil(images: np.ndarray) -> np.ndarray:
        seen.append(images)
        images *= 0
        return images[:, 0, 0, :2]

    strided, before = x.double().transpose(2, 3), x.clone()
    for images in (x, strided):
        as_blackbox(spoil, "logits")(images)
    assert torch.equal(x, before)
    assert torch.equal(strided, before.double().transpose(2, 3))
    assert all(images.dtype == np.float32 and images.flags.c_contiguous for images in seen)


def test_a_function_may_take_bytes_which_do_not_wrap_around(x: Tensor) -> None:
    seen: list[np.ndarray] = []

    def function(images: np.ndarray) -> list[list[int]]:
        seen.append(images)
        return [[0, 1]] * len(images)

    wild = (3 * x - 1).half()
    for levels, layout in ((256, "NCHW"), (7, "NHWC")):
        as_blackbox(function, "logits", dtype="uint8", levels=levels, layout=layout)(wild)
        grid = (wild.float().clamp(0, 1) * (levels - 1)).round() * 255 / (levels - 1)
        images = seen.pop()
        assert (images.dtype, images.flags.c_contiguous) == (np.uint8, True)
        wanted = grid if layout == "NCHW" else grid.permute(0, 2, 3, 1)
        assert np.abs(images - wanted.numpy()).max() <= 1  # half precision rounds, but 0 is never 255


def test_a_function_sees_pixels_on_0_to_1_unless_it_is_declared_otherwise(x: Tensor) -> None:
    seen: list[np.ndarray] = []

    def function(images: np.ndarray) -> np.ndarray:
        seen.append(images)
        return images[:, :, 0, 0]

    as_blackbox(function, "logits")(3 * x - 1)
    as_blackbox(function, "logits", clip=False)(3 * x - 1)
    assert (seen[0].min(), seen[0].max()) == (0, 1)
    assert np.array_equal(seen[1], (3 * x - 1).numpy())


@pytest.mark.parametrize(
    "wrap",
    [
        np.asarray,
        torch.tensor,
        list,
        lambda rows: np.array(rows)[::-1][::-1],
        lambda rows: np.array(rows, dtype=np.float16),
        lambda rows: torch.tensor(rows, requires_grad=True),
    ],
)
def test_a_function_may_return_arrays_tensors_or_lists(wrap: Callable[[Any], Any], x: Tensor) -> None:
    rows = [[0.5, i / 4] for i in range(7)]
    answer = as_blackbox(lambda images: wrap(rows), "logits")(x)
    assert torch.equal(answer.double(), torch.tensor(rows, dtype=torch.float64))
    assert not answer.requires_grad


@pytest.mark.parametrize(
    ("answer", "kind"), [("cat", "str"), ([[1.0], [1.0, 2.0]], "list"), (None, "NoneType"), ({1}, "set")]
)
def test_an_answer_without_numbers_is_named(answer: Any, kind: str, x: Tensor) -> None:
    with pytest.raises(BadOutput, match=f"box talk answered a {kind}; return one array of numbers"):
        as_blackbox(lambda images: answer, "logits", name="talk")(x)


# scikit-learn


def test_a_binary_score_becomes_the_columns_0_and_s(x: Tensor) -> None:
    weight, bias = linear_map(2)
    logits = as_blackbox(linear_classifier(2), "logits")(x)
    score = x.flatten(1) @ (weight[1] - weight[0]) + bias[1] - bias[0]
    torch.testing.assert_close(logits, torch.stack([torch.zeros(7), score], 1).double(), atol=1e-5, rtol=1e-5)
    probabilities = as_blackbox(linear_classifier(2), "probabilities")(x)
    torch.testing.assert_close(logits.softmax(1), probabilities)


@pytest.mark.parametrize("names", [["ant", "bee", "cat", "dog", "eel"], [-3, 2, 5, 70, 900]])
def test_predicted_labels_are_positions_in_classes(names: list[Any], x: Tensor) -> None:
    model = linear_classifier(names=names)
    with pytest.warns(UserWarning, match="labels count columns"):
        box = as_blackbox(model, "labels")
    with pytest.warns(UserWarning, match=f"classes_\\[k\\] \\({names[0]}, {names[1]}, "):
        logits = as_blackbox(model, "logits")(x)
    labels = box(x)
    assert torch.equal(labels, logits.argmax(1))
    assert [names[label] for label in labels] == list(model.predict(x.flatten(1).double().numpy()))


def test_a_class_that_the_estimator_was_not_fitted_to_breaks_the_range_of_labels(x: Tensor) -> None:
    model = linear_classifier()
    model.predict = lambda images: np.full(len(images), 17)  # pyright: ignore[reportAttributeAccessIssue]
    box = as_blackbox(model, "labels")
    with pytest.raises(BadOutput, match=r"labels must be in 0..4, got -1"):
        check_outputs(box(x), 7, box.spec)


def one_vs_one() -> SVC:
    return SVC(decision_function_shape="ovo")


@pytest.mark.parametrize(
    "model",
    [
        one_vs_one(),
        make_pipeline(StandardScaler(), one_vs_one()),
        GridSearchCV(make_pipeline(one_vs_one()), {"svc__C": [1.0]}, cv=2),
    ],
)
def test_one_vs_one_scores_are_refused_but_their_labels_are_not(model: Any) -> None:
    images, targets = np.tile(np.eye(3, PIXELS), (2, 1)), [0, 1, 2, 0, 1, 2]
    model.fit(images, targets)
    with pytest.raises(InvalidInput, match="decision_function_shape='ovo'"):
        as_blackbox(model, "logits")
    labels = as_blackbox(model, "labels")(torch.from_numpy(images).reshape(-1, *SHAPE))
    assert labels.tolist() == targets


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (SVC().fit(np.eye(3), [0, 1, 2]), {"outputs": "probabilities"}, "this SVC offers logits, labels"),
        (linear_classifier(), {"outputs": "values"}, "LogisticRegression offers logits, probabilities, labels"),
        (linear_estimator("values"), {"outputs": "labels"}, "LinearRegression offers values"),
        (LogisticRegression(), {"outputs": "logits"}, r"LogisticRegression offers none \(is it fitted\?\)"),
        (linear_classifier(), {"outputs": "logits", "num_classes": 3}, "num_classes is 3; .* fitted to 5 classes"),
    ],
)
def test_an_estimator_that_cannot_give_the_outputs_says_which_it_can(
    model: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        as_blackbox(model, **arguments)


def test_images_with_another_number_of_pixels_than_the_estimator_are_refused() -> None:
    box = as_blackbox(linear_classifier(), "logits")
    with pytest.raises(
        InvalidImages, match=r"shape \(1, 5, 5\); box LogisticRegression takes 24 numbers an image, these have 25"
    ):
        box.spec.check_images(torch.zeros(2, 1, 5, 5))


# The doubles of other tests


def test_the_radius_of_a_linear_box_is_where_its_label_changes(x: Tensor) -> None:
    weight, bias = (part.double() for part in linear_map())
    box = LinearBox(weight, bias, "labels")
    radius, labels, logits = box.radius(x), box(x), LinearBox(weight, bias)(x)
    for image, r, label, scores in zip(x.double(), radius, labels, logits, strict=True):
        rivals = [k for k in range(CLASSES) if k != label]
        rows = weight[label] - weight[rivals]  # (K - 1, d)
        nearest = ((scores[label] - scores[rivals]) / rows.norm(dim=1)).argmin()
        step = (-rows[nearest] / rows[nearest].norm()).reshape(SHAPE)
        assert box((image + 0.999 * r * step)[None]) == label
        assert box((image + 1.001 * r * step)[None]) == rivals[nearest]


def test_the_gradient_of_a_quadratic_box_is_that_of_autograd(x: Tensor) -> None:
    root = torch.randn(PIXELS, PIXELS, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    box = QuadraticBox(root + root.T, root[0])
    x = x.double().requires_grad_()
    (gradient,) = torch.autograd.grad(differentiable(box)(x).sum(), x)
    torch.testing.assert_close(gradient, box.gradient(x.detach()))


def test_a_counting_box_answers_as_its_box_and_counts_images(x: Tensor) -> None:
    box = LinearBox(*linear_map())
    counted = CountingBox(box)
    assert torch.equal(torch.cat([counted(x[:5]), counted(x[5:])]), box(x))
    assert (counted.calls, counted.images, counted.batch_sizes) == (2, 7, [5, 2])


# Images from numpy


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4"])
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x[::-1],
        lambda x: x.transpose(0, 1, 3, 2),
        lambda x: np.broadcast_to(x[:1], x.shape),
        np.asfortranarray,
    ],
    ids=["plain", "backwards", "transposed", "read-only", "columns first"],
)
@pytest.mark.filterwarnings("error")
def test_images_from_numpy_are_the_same_numbers_in_the_same_type(
    dtype: str, view: Callable[[np.ndarray], np.ndarray]
) -> None:
    array = view(np.random.default_rng(0).random((3, *SHAPE)).astype(dtype))
    x = as_images(array)
    assert x.dtype == {"f2": torch.float16, "f4": torch.float32, "f8": torch.float64}[dtype[-2:]]
    assert np.array_equal(x.numpy(), array)


def test_images_from_numpy_share_memory_where_they_can_and_tensors_come_back() -> None:
    array = np.zeros((1, *SHAPE), dtype=np.float32)
    as_images(array)[0, 0, 0, 0] = 1
    assert array[0, 0, 0, 0] == 1
    x = torch.zeros(1, *SHAPE)
    assert as_images(x) is x


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([[0.5]], "images are a list; wanted a float tensor or numpy array"),
        (np.array(["a"]), "images are <U1; wanted floats on .*, such as float32"),
        (np.array([None]), "images are object; wanted floats on .*, such as float32"),
    ],
)
def test_what_holds_no_numbers_is_no_image(images: Any, message: str) -> None:
    with pytest.raises(InvalidImages, match=message):
        as_images(images)


# Concurrency


def test_concurrency_is_declared_checked_and_no_part_of_what_a_box_is() -> None:
    plain, several = as_blackbox(len, "logits"), as_blackbox(len, "logits", concurrency=8)
    assert (plain.spec.concurrency, several.spec.concurrency) == (1, 8)
    assert plain.spec.provenance() == several.spec.provenance()
    assert plain.spec.model_id == several.spec.model_id
    for wrong in (0, 2.5):
        with pytest.raises(InvalidInput, match=f"concurrency is {wrong}; give an integer of at least 1"):
            BoxSpec("logits", concurrency=wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", MODELS)
def test_every_adapter_says_what_it_is(kind: str, tmp_path: Path) -> None:
    box = as_blackbox(MODELS[kind]("logits", tmp_path), "logits", name="mine", image_shape=SHAPE, num_classes=CLASSES)
    assert repr(box) == f"{type(box).__name__}(mine: logits, 5 classes, images 2x3x4)"

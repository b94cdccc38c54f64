"""Torch modules that are no plain ones: programs, quantised and lazy ones, several outputs, other inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certibox.blackbox import as_blackbox, check_outputs, differentiable
from certibox.errors import BadOutput, InvalidImages, InvalidInput, NotDifferentiable

SHAPE = (2, 3, 4)


def network() -> nn.Sequential:
    generator = torch.Generator().manual_seed(3)
    layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.Flatten(), nn.Linear(8, 3))
    with torch.no_grad():
        for tensor in (*layers.parameters(), layers[1].get_buffer("running_mean")):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return layers


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))


def exported(module: nn.Module) -> Any:
    batch = torch.export.Dim("batch")
    return torch.export.export(module.eval(), (torch.zeros(4, *SHAPE),), dynamic_shapes=({0: batch},))


PROGRAMS: dict[str, Callable[[nn.Module], Any]] = {
    "exported": exported,
    "module of exported": lambda module: exported(module).module(),
    "scripted": torch.jit.script,
    "traced": lambda module: torch.jit.trace(module.eval(), torch.zeros(4, *SHAPE)),
    "frozen": lambda module: torch.jit.freeze(torch.jit.script(module.eval())),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_answers_and_has_gradients_as_its_module(name: str, x: Tensor) -> None:
    module = network().eval()
    wanted = module(x.requires_grad_())
    (gradient,) = torch.autograd.grad(wanted[:, 1].sum(), x)
    box = as_blackbox(PROGRAMS[name](network()), "logits")
    torch.testing.assert_close(box(x.detach()), wanted.detach())
    (found,) = torch.autograd.grad(differentiable(box)(x)[:, 1].sum(), x)
    torch.testing.assert_close(found, gradient)
    assert box.spec.identity is not None
    assert box.spec.name != "RecursiveScriptModule"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_function_is_refused_with_the_way_to_wrap_it(x: Tensor) -> None:
    scripted: Any = torch.jit.trace(lambda images: images.flatten(1), x)
    with pytest.raises(InvalidInput, match=r"scripted function of tensors; .* lambda images: model\(torch.from_numpy"):
        as_blackbox(scripted, "logits")
    assert torch.equal(as_blackbox(lambda images: scripted(torch.from_numpy(images)), "logits")(x), x.flatten(1))


WHOLE: list[Callable[[nn.Module], Any]] = [
    torch.jit.script,
    lambda module: torch.jit.trace(module.eval(), torch.zeros(4, *SHAPE)),
    lambda module: torch.jit.freeze(torch.jit.script(module.eval())),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantiz")
def test_an_int8_module_takes_single_precision_whatever_the_images_have(x: Tensor) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(24, 3))
    quantised = torch.ao.quantization.quantize_dynamic(flat, {nn.Linear}, torch.qint8)
    box = as_blackbox(quantised, "logits")
    assert torch.equal(box(x.double()), box(x))
    torch.testing.assert_close(box(x), flat(x).detach(), atol=0.02, rtol=0)
    with pytest.raises(NotDifferentiable, match="box Sequential computes in whole numbers, which have none"):
        differentiable(box)
    programs = [as_blackbox(program(quantised), "logits") for program in WHOLE]
    flat[1].get_parameter("bias").data.add_(1)
    other = torch.ao.quantization.quantize_dynamic(flat, {nn.Linear}, torch.qint8)
    assert as_blackbox(other, "logits").spec.identity != box.spec.identity
    for program, made in zip(WHOLE, programs, strict=True):
        torch.testing.assert_close(made(x), box(x), atol=0.02, rtol=0)
        assert as_blackbox(program(quantised), "logits").spec.identity == made.spec.identity
        assert as_blackbox(program(other), "logits").spec.identity != made.spec.identity
        with pytest.raises(NotDifferentiable, match="computes in whole numbers"):
            differentiable(made)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_modules_without_weights_are_refused_before_they_are_asked(x: Tensor) -> None:
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(
        InvalidInput, match=r"1.weight of Sequential has no shape yet; run the module on one image first"
    ):
        as_blackbox(lazy, "logits")
    lazy(x)
    assert as_blackbox(lazy, "logits")(x).shape == (5, 3)
    with pytest.raises(
        InvalidInput, match=r"weight of Linear is on the meta device, without numbers; load the weights"
    ):
        as_blackbox(nn.Linear(2, 3, device="meta"), "logits")


class Stubborn(nn.Sequential):
    def train(self, mode: bool = True) -> Any:
        raise RuntimeError("the mode of this module is fixed")


def test_a_module_whose_train_raises_is_asked_in_eval_mode_all_the_same(x: Tensor) -> None:
    box = as_blackbox(Stubborn(network()), "logits")
    torch.testing.assert_close(box(x), network().eval()(x).detach())


def test_a_part_that_its_owner_trains_again_is_asked_in_eval_mode(x: Tensor) -> None:
    module, wanted = nn.Sequential(nn.Dropout(0.9), network()), network().eval()
    wanted.load_state_dict(module[1].state_dict())
    box = as_blackbox(module, "logits")
    module[0].train()  # a part alone: the whole still says that it is in evaluation mode
    torch.testing.assert_close(box(x), wanted(x).detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_first_floats_of_a_module_decide_its_precision(dtype: torch.dtype, x: Tensor) -> None:
    module = network().eval().to(dtype)
    module.insert(0, nn.Identity())
    module[0].register_parameter("count", nn.Parameter(torch.tensor([1]), requires_grad=False))
    answer = as_blackbox(module, "logits")(x)
    assert torch.equal(answer.to(dtype), module(x.to(dtype)).detach())


@dataclass
class Output:
    logits: Tensor
    features: Tensor


class Several(nn.Module):
    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.form = network(), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.inner(x), x)


@pytest.mark.parametrize(
    ("form", "key", "parts"),
    [
        (lambda y, x: (y, x), 0, r"a tuple with 0 of shape \(5, 3\), 1 of shape \(5, 2, 3, 4\)"),
        (lambda y, x: [x, y], "1", "a list with 0 of shape"),
        (lambda y, x: {"out": y, "aux": x}, "out", "a dict with 'out', 'aux'"),
        (Output, "logits", "a Output with logits, features"),
    ],
)
def test_one_of_several_outputs_is_chosen_with_its_gradient(
    form: Callable[[Tensor, Tensor], Any], key: str | int, parts: str, x: Tensor
) -> None:
    module = Several(form)
    plain = as_blackbox(module, "logits")
    for ask in (plain, differentiable(plain)):
        with pytest.raises(BadOutput, match=f"box Several answered {parts}.*; choose by output_key"):
            ask(x)
    box, wanted = as_blackbox(module, "logits", output_key=key), network().eval()(x.requires_grad_())
    torch.testing.assert_close(box(x), wanted.detach())
    (gradient,) = torch.autograd.grad(wanted.sum(), x)
    (found,) = torch.autograd.grad(differentiable(box)(x).sum(), x)
    torch.testing.assert_close(found, gradient)


# What a module takes


class Arranged(nn.Module):
    """The network of images (n, c, h, w) for a module that takes them in another order."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.inner, self.layout = network(), layout

    def forward(self, x: Tensor) -> Tensor:
        c, h, w = SHAPE
        if self.layout.startswith("flat"):
            x = x.reshape(-1, *((h, w, c) if self.layout == "flat-NHWC" else SHAPE))
        return self.inner(x.permute(0, 3, 1, 2) if self.layout.endswith("NHWC") else x)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "flat", "flat-NHWC"])
def test_a_module_gets_its_layout_and_gives_the_gradient_of_the_images(layout: str, x: Tensor) -> None:
    wanted = network().eval()(2 * x.requires_grad_() - 1)
    (gradient,) = torch.autograd.grad(wanted[:, 0].sum(), x)
    box = as_blackbox(Arranged(layout), "logits", layout=layout, input_range=(-1, 1))
    torch.testing.assert_close(box(x), wanted.detach())
    (found,) = torch.autograd.grad(differentiable(box)(x)[:, 0].sum(), x)
    torch.testing.assert_close(found, gradient)


class OfBytes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.uint8
        return x.flatten(1).float()[:, :3]


def test_a_module_may_take_bytes_and_has_no_gradient_then(x: Tensor) -> None:
    box = as_blackbox(OfBytes(), "logits", dtype="uint8")
    assert torch.equal(box(3 * x - 1), (3 * x - 1).clamp(0, 1).mul(255).round().flatten(1)[:, :3])
    with pytest.raises(NotDifferentiable, match="rounds its input to 256 levels"):
        differentiable(box)


def test_images_of_any_memory_are_answered_alike_and_stay_as_they_are(x: Tensor) -> None:
    for model in (nn.Sequential(nn.ReLU(inplace=True), network()), lambda images: images.reshape(len(images), -1)):
        box = as_blackbox(model, "logits")
        wanted = box(x)
        for images in (
            x.clone().requires_grad_(),
            x.transpose(2, 3).contiguous().transpose(2, 3),
            torch.cat([x, x])[::1][:5],
            x.to(memory_format=torch.channels_last),
            torch.complex(x, -x).conj().imag,  # negated only when it is read
        ):
            before = images.detach().clone()
            answer = check_outputs(box(images), 5, box.spec)
            torch.testing.assert_close(answer, wanted)
            assert torch.equal(images.detach(), before)
        box(x.bfloat16())


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_program_exported_for_a_fixed_number_of_images_takes_any_number(at_once: int) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)).eval()
    x = torch.linspace(0, 1, 48).reshape(3, 1, 4, 4).requires_grad_()
    box = as_blackbox(torch.export.export(net, (torch.zeros(at_once, 1, 4, 4),)), "logits")
    assert torch.allclose(box(x), net(x), atol=1e-6)
    came, wanted = (torch.autograd.grad(f(x).square().sum(), x)[0] for f in (differentiable(box), net))
    assert torch.allclose(came, wanted, atol=1e-5)
    with pytest.raises(InvalidImages, match=r"images have shape \(1, 5, 5\); box GraphModule takes \(1, 4, 4\)"):
        box.spec.check_images(torch.zeros(1, 1, 5, 5))

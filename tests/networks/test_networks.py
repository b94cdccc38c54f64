from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from certibox.commands.models import untrained_autoencoder
from certibox.errors import InvalidImages, InvalidInput
from certibox.networks import (
    AUTOENCODERS,
    CLASSIFIERS,
    DENOISERS,
    RECONSTRUCTORS,
    Autoencoder,
    build,
    cifar_resnet,
    dncnn,
    fitting_autoencoder,
    imagenet_resnet,
    mnist_reconstructor,
    resnet18_stl10,
    suitable_autoencoder,
    unet,
)
from certibox.networks.autoencoder import Latent
from certibox.storage.tensors import module_digest

M = TypeVar("M", bound=nn.Module)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def layers(module: nn.Module, *kinds: type[M]) -> list[M]:
    return [m for m in module.modules() if isinstance(m, kinds)]


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def randomised(module: M, seed: int = 0) -> M:
    """Fill the parameters anew: the zero last layer of a denoiser would hide the rest of it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * max(1, p[0].numel()) ** -0.5)
    return module


# --- denoisers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 13, 10), (3, 9, 31)])
def test_untrained_denoiser_is_the_identity_on_any_size(name: str, shape: tuple[int, int, int]):
    x = images(2, *shape)
    assert torch.equal(DENOISERS[name](shape[0])(x), x)


@pytest.mark.parametrize("name", DENOISERS)
def test_denoiser_keeps_odd_shapes_once_its_last_layer_acts(name: str):
    x = images(2, 3, 11, 14)
    answer = randomised(DENOISERS[name](3))(x)
    assert answer.shape == x.shape
    assert not torch.allclose(answer, x, atol=1e-3)


@pytest.mark.parametrize("name", DENOISERS)
def test_gradient_of_an_untrained_denoiser_reaches_its_last_layer(name: str):
    net = DENOISERS[name](1)
    F.mse_loss(net(images(2, 1, 8, 8)), torch.zeros(2, 1, 8, 8)).backward()
    last = layers(net, nn.Conv2d)[-1].weight
    assert not last.any()
    assert last.grad is not None
    assert last.grad.abs().sum() > 0


@pytest.mark.parametrize(("channels", "depth", "width"), [(1, 17, 64), (3, 17, 64), (3, 17, 128), (2, 5, 8)])
def test_dncnn_parameter_count(channels: int, depth: int, width: int):
    """First 9cw + w, inner 9w^2 and a BatchNorm of 2w each, last 9wc."""
    expected = 18 * channels * width + width + (depth - 2) * (9 * width**2 + 2 * width)
    assert parameters(dncnn(channels, depth=depth, width=width)) == expected


def test_dncnn_layers_are_the_papers():
    net = dncnn(3)
    assert [type(layer) for layer in net.net] == (
        [nn.Conv2d, nn.ReLU, *[nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 15, nn.Conv2d]
    )
    assert {norm.eps for norm in layers(net, nn.BatchNorm2d)} == {1e-4}
    assert {norm.momentum for norm in layers(net, nn.BatchNorm2d)} == {0.1}
    assert {conv.kernel_size for conv in layers(net, nn.Conv2d)} == {(3, 3)}
    assert parameters(DENOISERS["dncnn-wide"](3)) == parameters(dncnn(3, width=128))


@pytest.mark.parametrize("channels", [1, 3])
def test_dncnn_weights_start_orthogonal(channels: int):
    for convolution in layers(dncnn(channels, depth=4), nn.Conv2d)[:-1]:
        matrix = convolution.weight.flatten(1)  # (out, in * 9)
        tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
        torch.testing.assert_close(tall.T @ tall, torch.eye(tall.shape[1]), atol=1e-5, rtol=0)


def test_dncnn_learns_the_noise():
    x, net = images(2, 1, 8, 8), randomised(dncnn(1, depth=3, width=4))
    assert torch.equal(net(x), x - net.net(x))


def test_unet_is_small_and_keeps_no_statistics():
    assert 0.9e6 < parameters(unet(3)) < 1.1e6
    assert parameters(unet(3)) - parameters(unet(1)) == 2 * (32 * 9) + 2 * (32 * 9 + 1)  # stem in, head out
    assert list(unet(3).buffers()) == []
    assert not layers(unet(3), nn.BatchNorm2d)


def test_unet_answers_each_image_alone():
    net, x = randomised(unet(1, width=8)).double(), images(3, 1, 12, 9).double()
    torch.testing.assert_close(net(x), torch.cat([net(image[None]) for image in x]))


@pytest.mark.parametrize(("height", "width"), [(9, 12), (10, 11), (8, 13), (15, 15)])
def test_unet_pads_with_zeros_and_crops_back(height: int, width: int):
    net, x = randomised(unet(3, width=8)).double(), images(2, 3, height, width).double()
    canvas = torch.zeros(2, 3, 16, 16, dtype=x.dtype)[..., : -(-height // 4) * 4, : -(-width // 4) * 4]
    canvas[..., :height, :width] = x
    torch.testing.assert_close(net(x), net(canvas)[..., :height, :width])


@pytest.mark.parametrize(
    "make",
    [
        lambda: dncnn(0),
        lambda: dncnn(1, depth=2),
        lambda: dncnn(1, width=0),
        lambda: unet(0),
        lambda: unet(1, width=12),
    ],
)
def test_impossible_denoisers_are_refused_in_one_line(make: Callable[[], nn.Module]):
    with pytest.raises(InvalidInput, match=r"\A.*; give .*\Z"):
        make()


# --- autoencoders ----------------------------------------------------------------------------------------------------

EMBEDDINGS = {
    "ae-48": ((3, 32, 32), (48, 1, 1)),
    "ae-96": ((3, 32, 32), (96, 1, 1)),
    "ae-192": ((3, 32, 32), (192, 1, 1)),
    "ae-576": ((3, 96, 96), (576, 1, 1)),
    "ae-mnist": ((1, 28, 28), (12, 4, 4)),
    "ae-mnist-96": ((1, 28, 28), (6, 4, 4)),
    "ae-1152": ((3, 224, 224), (1152, 1, 1)),
}


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_paper_autoencoder_shapes(name: str):
    image_shape, embedding_shape = EMBEDDINGS[name]
    net = AUTOENCODERS[name]()
    x = images(1, *image_shape)
    z = net.encode(x)
    assert (net.image_shape, net.embedding_shape) == (image_shape, embedding_shape)
    assert z.shape == (1, net.d_z)
    assert net.d_z == torch.Size(embedding_shape).numel()
    assert net.nonnegative
    assert z.min() >= 0
    decoded = net.decode(z)
    assert decoded.shape == x.shape
    assert 0 < decoded.min() < decoded.max() < 1


def test_every_autoencoder_has_an_expected_shape():
    assert AUTOENCODERS.keys() == EMBEDDINGS.keys()


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_paper_autoencoders_mirror_their_encoder(name: str):
    """ReLU after every encoder convolution; the decoder has the same windows backwards, ReLU between, sigmoid last."""
    net = AUTOENCODERS[name]()
    convolutions, transposed = layers(net.encoder, nn.Conv2d), layers(net.decoder, nn.ConvTranspose2d)
    assert [type(m) for m in net.encoder.children()] == [nn.Conv2d, nn.ReLU] * len(convolutions)
    decoder = [type(m) for m in net.decoder.children()]
    assert decoder == [nn.ConvTranspose2d, nn.ReLU] * (len(transposed) - 1) + [nn.ConvTranspose2d, nn.Sigmoid]
    for down, up in zip(convolutions, reversed(transposed), strict=True):
        assert down.weight.shape == up.weight.shape  # (out, in, k, k) of one is (in, out, k, k) of the other
        assert (down.stride, down.padding) == (up.stride, up.padding)
        assert up.output_padding == (0, 0)  # the paper's sizes divide


def test_ae_192_has_the_layers_of_the_released_weights():
    assert shapes(AUTOENCODERS["ae-192"]()) == {
        "encoder.0.weight": (24, 3, 4, 4),
        "encoder.0.bias": (24,),
        "encoder.2.weight": (48, 24, 3, 3),
        "encoder.2.bias": (48,),
        "encoder.4.weight": (96, 48, 4, 4),
        "encoder.4.bias": (96,),
        "encoder.6.weight": (192, 96, 2, 2),
        "encoder.6.bias": (192,),
        "decoder.0.weight": (192, 96, 2, 2),
        "decoder.0.bias": (96,),
        "decoder.2.weight": (96, 48, 4, 4),
        "decoder.2.bias": (48,),
        "decoder.4.weight": (48, 24, 3, 3),
        "decoder.4.bias": (24,),
        "decoder.6.weight": (24, 3, 4, 4),
        "decoder.6.bias": (3,),
    }


FITTED = [(1, 4, 4), (1, 8, 8), (3, 5, 5), (1, 7, 9), (2, 11, 13), (3, 17, 32), (1, 29, 31), (1, 4, 50), (3, 63, 16)]


@pytest.mark.parametrize("image_shape", [*FITTED, (3, 96, 96), (3, 224, 224)])
def test_fitting_autoencoder_round_trip(image_shape: tuple[int, int, int]):
    net = fitting_autoencoder(image_shape, d_z=10, width=4)
    x = images(2, *image_shape)
    assert net.embedding_shape == (10, 1, 1)
    assert net.encode(x).shape == (2, 10)
    assert net(x).shape == x.shape
    assert torch.equal(net(x), net.decode(net.encode(x)))
    assert net.nonnegative


@pytest.mark.parametrize("image_shape", [(1, 4, 4), (1, 5, 6), (1, 9, 11), (1, 13, 23)])
def test_fitting_autoencoder_sees_and_can_change_every_pixel(image_shape: tuple[int, int, int]):
    net = fitting_autoencoder(image_shape, d_z=6, width=2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.abs_().add_(0.01)  # positive weights: no ReLU is dead
    x = images(1, *image_shape).requires_grad_()
    (gradient,) = torch.autograd.grad(net.encode(x).sum(), x)
    assert gradient.min() > 0
    assert isinstance(net.decoder, nn.Sequential)
    before_sigmoid = net.decoder[:-1]
    z = torch.ones(1, *net.embedding_shape)
    assert (before_sigmoid(2 * z) > before_sigmoid(z)).all()


def test_a_seed_gives_a_fitting_autoencoder_the_same_weights_and_draws_nothing_else():
    """As `certibox train` draws them: a script that is run again finds the work of its first run."""
    rng = torch.get_rng_state()
    first, again, other = (fitting_autoencoder((1, 8, 8), d_z=6, width=2, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), rng)
    assert module_digest(first) == module_digest(again) != module_digest(other)
    command_line = untrained_autoencoder("suitable", (1, 8, 8), 6, 3)
    assert module_digest(fitting_autoencoder((1, 8, 8), d_z=6, seed=3)) == module_digest(command_line)
    assert module_digest(fitting_autoencoder((1, 8, 8), d_z=6, width=2)) != module_digest(
        fitting_autoencoder((1, 8, 8), d_z=6, width=2)
    )


def test_fitting_autoencoder_starts_with_hes_weights():
    """Weight variance 2 / fan; the bound is 4 standard errors of a sample variance, 4 sqrt(2 / count)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = fitting_autoencoder((3, 31, 31), d_z=40, width=8)  # 31 -> 15 -> 7 -> 3
    encoder = [3 * 16, 8 * 16, 16 * 16, 32 * 9]
    decoder = [32 * 9, 16 * 16, 8 * 16, 3 * 16]
    for layer, fan in zip(layers(net, nn.Conv2d) + layers(net, nn.ConvTranspose2d), encoder + decoder, strict=True):
        variance = layer.weight.square().mean().item()
        assert variance == pytest.approx(2 / fan, rel=4 * math.sqrt(2 / layer.weight.numel()))
        assert layer.bias is not None
        assert not layer.bias.any()


@pytest.mark.parametrize(
    ("image_shape", "d_z", "width"), [((1, 3, 8), 4, 8), ((1, 8, 8), 0, 8), ((1, 8, 8), 4, 0), ((0, 8, 8), 4, 8)]
)
def test_impossible_autoencoders_are_refused(image_shape: tuple[int, int, int], d_z: int, width: int):
    with pytest.raises(InvalidInput, match=str(min(min(image_shape), d_z, width))):
        fitting_autoencoder(image_shape, d_z, width)


def test_autoencoder_in_channels_last_gives_the_same_answers():
    for net in (AUTOENCODERS["ae-mnist"](), fitting_autoencoder((3, 9, 9), d_z=5, width=4)):
        x = images(4, *net.image_shape)
        z, decoded = net.encode(x), net(x)
        there = copy.deepcopy(net).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        x_there = x.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(there.encode(x_there), z)
        torch.testing.assert_close(there(x_there), decoded)


def test_encode_flattens_in_the_order_that_decode_expects():
    net = Autoencoder(nn.Identity(), nn.Identity(), (2, 3, 5))
    x = images(4, 2, 3, 5).contiguous(memory_format=torch.channels_last)
    assert net.d_z == 30
    assert torch.equal(net.encode(x)[:, 15], x[:, 1, 0, 0])
    assert torch.equal(net(x), x)


def test_dead_coordinates_have_zero_upstream_gradient():
    """What `nonnegative` promises."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = fitting_autoencoder((1, 8, 8), d_z=32, width=4)
    x = images(1, 1, 8, 8).requires_grad_()
    z = net.encode(x)[0]
    live = [bool(torch.autograd.grad(value, x, retain_graph=True)[0].any()) for value in z]
    assert live == (z > 0).tolist()
    assert 0 < sum(live) < 32


def leaning(latent: Latent) -> Autoencoder:
    """The same weights for every `latent`: half of the coordinates get a bias that keeps them below zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = fitting_autoencoder((1, 8, 8), d_z=32, width=4, latent=latent)
    bias = layers(net.encoder, nn.Conv2d)[-1].bias
    assert bias is not None
    with torch.no_grad():
        bias.copy_(torch.tensor([9.0, -9.0]).repeat(16))
    return net


@pytest.mark.parametrize(("latent", "slope"), [("relu", 0.0), ("leaky", 0.1), ("linear", 1.0)])
def test_latent_is_the_slope_of_coordinates_below_zero(latent: Latent, slope: float):
    """The gradient upstream of z_i is that of the linear encoder times the slope: zero at a ReLU's dead coordinates."""
    x = images(1, 1, 8, 8).requires_grad_()
    net, linear = leaning(latent), leaning("linear")
    gain = math.sqrt(2 / (1 + slope**2))  # of the last layer's weights at the start, against 1 for the linear one
    bias = torch.tensor([9.0, -9.0]).repeat(16)
    y = (linear.encode(x)[0] - bias) * gain + bias
    assert (y > 0).tolist() == [True, False] * 16
    torch.testing.assert_close(net.encode(x)[0], torch.where(y > 0, y, slope * y))
    for value, before in zip(net.encode(x)[0], y, strict=True):
        (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
        (wanted,) = torch.autograd.grad(before, x, retain_graph=True)
        assert wanted.any()
        torch.testing.assert_close(gradient, wanted * (1.0 if before > 0 else slope))
    assert net.nonnegative is (latent == "relu")


@pytest.mark.parametrize("latent", ["relu", "leaky", "linear"])
def test_every_latent_starts_at_the_same_scale(latent: Latent):
    """E z² = E h² for the last convolution's input h; 5 standard errors over 4,000 outputs (E z⁴ <= 6 (E z²)²)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = fitting_autoencoder((1, 4, 4), d_z=4000, width=3, latent=latent)  # the window of the last layer is 2x2
    assert isinstance(net.encoder, nn.Sequential)
    x = images(1, 1, 4, 4)
    ratio = net.encode(x).square().mean() / net.encoder[:2](x).square().mean()
    assert ratio.item() == pytest.approx(1, abs=5 * math.sqrt(5 / 4000))


def test_the_papers_latent_is_the_default_and_starts_with_the_same_weights():
    for make in (AUTOENCODERS["ae-mnist"], lambda **latent: suitable_autoencoder((1, 8, 8), **latent)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            ours = make().state_dict()
            torch.manual_seed(0)
            stated = make(latent="relu").state_dict()
        assert all(torch.equal(ours[key], stated[key]) for key in ours | stated)


@pytest.mark.parametrize("image_shape", [(1, 28, 28), (2, 9, 14)])
def test_suitable_autoencoder_has_the_latent_asked_for(image_shape: tuple[int, int, int]):
    relu, linear = suitable_autoencoder(image_shape), suitable_autoencoder(image_shape, "linear")
    assert (relu.nonnegative, linear.nonnegative) == (True, False)
    assert (relu.spec["name"], relu.d_z) == (linear.spec["name"], linear.d_z)


def test_specs_from_before_latent_give_the_papers():
    """What older files hold, literally; and every latent has the weights of the same names and shapes."""
    arguments = {"image_shape": [2, 9, 14], "d_z": 5, "width": 3}
    for spec in ({"name": "ae-mnist", "arguments": {}}, {"name": "fitting-autoencoder", "arguments": arguments}):
        old = build(spec)
        assert isinstance(old, Autoencoder)
        assert old.nonnegative
        assert old.spec == spec
        for latent in ("relu", "leaky", "linear"):
            stated = build({"name": spec["name"], "arguments": {**spec["arguments"], "latent": latent}})
            assert shapes(stated) == shapes(old)


@pytest.mark.parametrize(
    "make",
    [
        lambda: AUTOENCODERS["ae-mnist"](latent="gelu"),
        lambda: fitting_autoencoder((1, 8, 8), 4, latent="gelu"),  # pyright: ignore[reportArgumentType]
        lambda: suitable_autoencoder((1, 28, 28), "gelu"),  # pyright: ignore[reportArgumentType]
        lambda: build({"name": "ae-mnist", "arguments": {"latent": "gelu"}}),
    ],
)
def test_unknown_latents_are_refused_in_one_line(make: Callable[[], nn.Module]):
    with pytest.raises(InvalidInput, match=r"\A.*latent is 'gelu'; wanted one of relu, leaky, linear.*\Z"):
        make()


class FlatEncoder(nn.Module):
    """A stranger's encoder: BatchNorm, a flat embedding, layers called out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(36, 7)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.relu(self.dropout(self.norm(x))).flatten(1))


def flat_decoder() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 36), nn.Unflatten(1, (1, 6, 6)), nn.BatchNorm2d(1))


def test_a_users_own_modules_are_left_as_they_were():
    encoder, decoder = FlatEncoder(), flat_decoder()
    encoder.dropout.eval()  # a mixture of modes
    decoder.eval()
    modules = [*encoder.modules(), *decoder.modules()]
    modes = [m.training for m in modules]
    before = copy.deepcopy([encoder.state_dict(), decoder.state_dict()])
    rng = torch.get_rng_state()
    net = Autoencoder(encoder, decoder, (1, 6, 6))
    assert torch.equal(torch.get_rng_state(), rng)
    assert [m.training for m in modules] == modes
    for state, module in zip(before, (encoder, decoder), strict=True):
        assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())
    assert (net.embedding_shape, net.d_z) == ((7,), 7)
    assert net.encoder is encoder
    assert not net.nonnegative
    assert not hasattr(net, "spec")
    assert net(images(3, 1, 6, 6)).shape == (3, 1, 6, 6)


def test_autoencoder_follows_the_dtype_of_its_encoder():
    net = Autoencoder(FlatEncoder().double(), flat_decoder().double(), (1, 6, 6))
    assert net.encode(images(2, 1, 6, 6).double()).dtype == torch.float64


def test_embeddings_are_never_below_float32():
    net = Autoencoder(nn.Conv2d(1, 1, 1).bfloat16(), nn.Identity(), (1, 6, 6))
    assert net.encode(images(2, 1, 6, 6).bfloat16()).dtype == torch.float32


class FunctionalTail(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # pyright: ignore
        return super().forward(x) - 1


class EmptyList(nn.ModuleList):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - 1


@pytest.mark.parametrize(
    ("encoder", "nonnegative"),
    [
        (nn.ReLU(), True),
        (nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()), True),
        (nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Identity()), True),
        (nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sequential(nn.ReLU(), nn.Sequential())), True),
        (nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Unflatten(1, (1, 4, 4))), True),
        (nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 1)), False),
        (nn.Sequential(nn.Conv2d(1, 1, 1), nn.LeakyReLU()), False),
        (nn.Sequential(nn.Conv2d(1, 1, 1), nn.GELU()), False),
        (FunctionalTail(nn.Conv2d(1, 1, 1), nn.ReLU()), False),
        (nn.Sequential(nn.ReLU(), EmptyList()), False),
        (nn.Identity(), False),
    ],
)
def test_nonnegative_is_read_off_the_last_layer(encoder: nn.Module, nonnegative: bool):
    assert Autoencoder(encoder, nn.Identity(), (1, 4, 4)).nonnegative is nonnegative


@pytest.mark.parametrize(
    ("encoder", "decoder", "message"),
    [
        (nn.Identity(), nn.Conv2d(1, 2, 1), r"decoder returned \(2, 6, 6\).*image_shape is \(1, 6, 6\)"),
        (nn.Conv2d(3, 4, 1), nn.Identity(), r"encoder failed on a batch of shape \(2, 1, 6, 6\)"),
        (nn.Identity(), nn.Linear(5, 6), r"decoder failed on a batch"),
        (nn.Flatten(0), nn.Identity(), r"encoder returned \(72,\) for 2 inputs"),
        (nn.MaxPool2d(2, return_indices=True), nn.Identity(), "encoder returned tuple"),
    ],
)
def test_modules_that_do_not_fit_are_refused_in_one_line(encoder: nn.Module, decoder: nn.Module, message: str):
    with pytest.raises(InvalidInput, match=message) as caught:
        Autoencoder(encoder, decoder, (1, 6, 6))
    assert "\n" not in str(caught.value)


def test_modes_survive_a_refusal():
    decoder = nn.Conv2d(1, 2, 1)
    with pytest.raises(InvalidInput):
        Autoencoder(nn.Identity(), decoder, (1, 6, 6))
    assert decoder.training


@pytest.mark.parametrize("image_shape", [(6, 6), (1, 6, 0), (1, 6.0, 6), (1, 1, 6, 6)])
def test_image_shapes_are_three_positive_integers(image_shape: tuple):
    with pytest.raises(InvalidInput, match="three positive integers"):
        Autoencoder(nn.Identity(), nn.Identity(), image_shape)


def test_wrong_shapes_are_refused_at_the_border():
    net = AUTOENCODERS["ae-mnist"]()
    with pytest.raises(InvalidImages, match=r"\(2, 1, 32, 32\).*\(1, 28, 28\)"):
        net.encode(images(2, 1, 32, 32))
    with pytest.raises(InvalidInput, match=r"\(1, 384\).*\(n, 192\)"):
        net.decode(images(1, 384))


# --- classifiers -----------------------------------------------------------------------------------------------------

SIDES = {
    "resnet18-stl10": 96,
    "resnet18": 224,
    "resnet50": 224,
    "mnist-cnn": 28,
    "mnist-mlp": 28,
    "resnet110": 16,
    "resnet56": 16,
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_gives_a_row_of_logits_an_image(name: str):
    net = CLASSIFIERS[name](num_classes=7, channels=2).eval()
    side = SIDES.get(name, 32)
    with torch.no_grad():
        logits = net(images(1, 2, side, side))
    assert logits.shape == (1, 7)
    assert logits.isfinite().all()


def cifar_count(n: int, classes: int) -> int:
    """Stem, then for width w: the first block (9w^2/2 from the narrower stage), 2n - 1 more convolutions, 2n norms."""
    stages = 2 * n * 9 * 16**2 + sum(9 * w * w // 2 + (2 * n - 1) * 9 * w * w for w in (32, 64))
    norms = sum(2 * n * 2 * w for w in (16, 32, 64)) + 2 * 16
    return 9 * 3 * 16 + stages + norms + 65 * classes


@pytest.mark.parametrize(
    ("name", "depth", "millions"), [("resnet20", 20, 0.27), ("resnet56", 56, 0.85), ("resnet110", 110, 1.73)]
)
def test_cifar_resnet_counts(name: str, depth: int, millions: float):
    net = CLASSIFIERS[name]()
    assert len(layers(net, nn.Conv2d, nn.Linear)) == depth
    assert parameters(net) == cifar_count((depth - 2) // 6, 10)
    assert round(parameters(net) / 1e6, 2) == millions


@pytest.mark.parametrize("depth", [2, 9, 18, 51, -4])
def test_cifar_depth_is_6n_plus_2(depth: int):
    with pytest.raises(InvalidInput, match=r"6n \+ 2"):
        cifar_resnet(depth)


def test_cifar_shortcut_has_no_parameters_and_keeps_the_pixels():
    net = cifar_resnet(8)
    shortcut = net.get_submodule("layer2.0.downsample")
    x = images(2, 16, 9, 7)
    answer = shortcut(x)
    assert parameters(shortcut) == 0
    assert torch.equal(answer[:, :16], x[:, :, ::2, ::2])
    assert answer.shape == (2, 32, 5, 4)
    assert not answer[:, 16:].any()


def test_imagenet_resnets_have_the_published_sizes():
    small, large = imagenet_resnet(18, 1000), imagenet_resnet(50, 1000)
    assert (parameters(small), len(small.state_dict())) == (11_689_512, 122)
    assert (parameters(large), len(large.state_dict())) == (25_557_032, 320)
    with pytest.raises(InvalidInput, match="18, 50"):
        imagenet_resnet(34)


def test_imagenet_resnets_have_the_published_names():
    small, large = shapes(imagenet_resnet(18, 1000)), shapes(imagenet_resnet(50, 1000))
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    block = [
        f"{part}.{key}" for part in ("conv1", "bn1", "conv2", "bn2") for key in (["weight"] if "c" in part else norm)
    ]
    down = ["downsample.0.weight", *(f"downsample.1.{key}" for key in norm)]
    expected = ["conv1.weight", *(f"bn1.{key}" for key in norm)]
    for stage in (1, 2, 3, 4):
        first = [*block, *(down if stage > 1 else [])]
        expected += [f"layer{stage}.0.{key}" for key in first] + [f"layer{stage}.1.{key}" for key in block]
    assert list(small) == [*expected, "fc.weight", "fc.bias"]
    assert small["conv1.weight"] == (64, 3, 7, 7)
    assert large["layer1.0.conv3.weight"] == (256, 64, 1, 1)
    assert large["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert large["layer3.5.conv2.weight"] == (256, 256, 3, 3)
    assert large["fc.weight"] == (1000, 2048)


def test_imagenet_strides_are_those_of_the_published_weights():
    """Strides carry no weights: a wrong one would load in silence."""
    small, large = imagenet_resnet(18), imagenet_resnet(50)
    strided = {name for name, m in large.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)}
    assert strided == {"conv1"} | {f"layer{s}.0.{part}" for s in (2, 3, 4) for part in ("conv2", "downsample.0")}
    strided = {name for name, m in small.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)}
    assert strided == {"conv1"} | {f"layer{s}.0.{part}" for s in (2, 3, 4) for part in ("conv1", "downsample.0")}
    assert small.get_submodule("maxpool")(images(1, 1, 112, 112)).shape == (1, 1, 56, 56)


def test_stl10_resnet_ends_on_six_by_six_pixels():
    net = resnet18_stl10().eval()
    with torch.no_grad():
        assert net[:-3](images(1, 3, 96, 96)).shape == (1, 512, 6, 6)  # before mean, flatten, fc
    # The stem's 7x7 window is 3x3 here, and there are 10 classes.
    assert parameters(net) == 11_689_512 - 3 * 64 * (49 - 9) - 513 * 990


def test_plain_networks_have_their_layers():
    vgg = CLASSIFIERS["vgg16"]()
    widths = [conv.out_channels for conv in layers(vgg, nn.Conv2d)]
    assert widths == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert len(layers(vgg, nn.BatchNorm2d)) == 13
    assert [(m.in_features, m.out_features) for m in layers(vgg, nn.Linear)] == [(512, 10)]
    expected = sum(9 * a * b + 2 * b for a, b in zip([3, *widths], widths, strict=False)) + 513 * 10
    assert parameters(vgg) == expected
    small = CLASSIFIERS["mnist-cnn"]()
    assert parameters(small) == (9 * 16 + 16) + (9 * 16 * 32 + 32) + (32 * 49 * 64 + 64) + 65 * 10


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_need_classes_and_channels(name: str):
    for arguments in ({"num_classes": 0}, {"channels": 0}):
        with pytest.raises(InvalidInput, match="at least 1"):
            CLASSIFIERS[name](**arguments)


# --- reconstructors --------------------------------------------------------------------------------------------------


def test_reconstructor_layers_are_the_papers():
    net = mnist_reconstructor()
    down, up = layers(net, nn.Conv2d), layers(net, nn.ConvTranspose2d)
    assert [type(m) for m in net] == [nn.Conv2d, nn.ReLU] * 4 + [nn.ConvTranspose2d, nn.ReLU] * 2 + [
        nn.ConvTranspose2d,
        nn.Tanh,
    ]
    windows = [(m.out_channels, m.kernel_size[0], m.stride[0], m.padding[0]) for m in (*down, *up)]
    assert windows == [
        (16, 3, 1, 1),
        (32, 3, 3, 1),
        (16, 3, 3, 1),
        (8, 3, 3, 1),
        (16, 3, 2, 0),
        (8, 5, 3, 1),
        (1, 2, 2, 1),
    ]
    assert net[:8](images(2, 1, 28, 28)).shape == (2, 8, 2, 2)
    assert net(images(2, 1, 28, 28)).shape == (2, 1, 28, 28)
    assert parameters(net) == 160 + 4640 + 4624 + 1160 + 1168 + 3208 + 33


def test_reconstructor_starts_with_hes_weights():
    """Weight variance 2 / fan; the bound is 4 standard errors of a sample variance, 4 sqrt(2 / count)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = mnist_reconstructor()
    fans = [9, 16 * 9, 32 * 9, 16 * 9, 16 * 9, 8 * 25, 4]
    for layer, fan in zip(layers(net, nn.Conv2d) + layers(net, nn.ConvTranspose2d), fans, strict=True):
        variance = layer.weight.square().mean().item()
        assert variance == pytest.approx(2 / fan, rel=4 * math.sqrt(2 / layer.weight.numel()))
        assert layer.bias is not None
        assert not layer.bias.any()


# --- rebuilding ------------------------------------------------------------------------------------------------------

MADE: dict[str, Callable[[], nn.Module]] = {
    **{name: (lambda f=factory: f(2)) for name, factory in DENOISERS.items()},
    **AUTOENCODERS,
    **{name: (lambda f=factory: f(num_classes=4, channels=2)) for name, factory in CLASSIFIERS.items()},
    **RECONSTRUCTORS,
    "short dncnn": lambda: dncnn(1, depth=5, width=8),
    "wide unet": lambda: unet(1, width=16),
    "fitted": lambda: fitting_autoencoder((2, 9, 14), d_z=5, width=3),
    "leaky": lambda: fitting_autoencoder((2, 9, 14), d_z=5, width=3, latent="leaky"),
    "linear": lambda: AUTOENCODERS["ae-mnist"](latent="linear"),
    "deep": lambda: cifar_resnet(14, 3, 1),
}


@pytest.mark.parametrize("name", MADE)
def test_every_network_is_rebuilt_from_its_spec(name: str):
    module = MADE[name]()
    spec = vars(module)["spec"]
    assert json.loads(json.dumps(spec)) == spec
    rebuilt = build(spec)
    assert type(rebuilt) is type(module)
    assert shapes(rebuilt) == shapes(module)
    assert str(rebuilt) == str(module)  # strides, paddings and eps too
    assert rebuilt.spec == spec
    rebuilt.load_state_dict(module.state_dict())


def test_short_names_build_too():
    assert shapes(build({"name": "dncnn", "arguments": {"channels": 1}})) == shapes(dncnn(1))
    wide = build({"name": "dncnn-wide", "arguments": {"channels": 1}})
    assert shapes(wide) == shapes(dncnn(1, width=128))
    assert shapes(build({"name": "resnet20", "arguments": {"num_classes": 5}})) == shapes(cifar_resnet(20, 5))


def test_unknown_network_names_the_known_ones():
    with pytest.raises(InvalidInput) as caught:
        build({"name": "dncn", "arguments": {}})
    for name in [*DENOISERS, *AUTOENCODERS, *CLASSIFIERS, "fitting-autoencoder"]:
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"name": "dncnn"},
        {"name": ["dncnn"], "arguments": {}},
        {"name": "dncnn", "arguments": {}},
        {"name": "dncnn", "arguments": None},
        {"name": "dncnn", "arguments": {"channels": 1, "colour": True}},
        {"name": "dncnn", "arguments": {"channels": "three"}},
        {"name": "fitting-autoencoder", "arguments": {"image_shape": [1, 8], "d_z": 3}},
    ],
)
def test_broken_specs_are_refused_in_one_line(spec: dict):
    with pytest.raises(InvalidInput) as caught:
        build(spec)
    assert "\n" not in str(caught.value)

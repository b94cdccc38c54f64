"""Autoencoders on disk: bit for bit what was saved or released, and no code of a stranger's file ever runs."""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from certibox.cli import main
from certibox.data import Images, load_images
from certibox.defense.autoencoders import load_autoencoder, reconstruction_mse, save_autoencoder
from certibox.defense.released import import_authors
from certibox.errors import InvalidInput, UnreadableFile
from certibox.networks import AUTOENCODERS, Autoencoder, dncnn, fitting_autoencoder
from certibox.storage.files import read_json
from certibox.storage.tensors import module_digest, read_tensors, write_tensors
from places import SHARED

DATA = SHARED / "data"
ENCODER, DECODER = (DATA / "authors" / f"cifar10_ae192_{role}.pth.tar" for role in ("encoder", "decoder"))
RELEASED = pytest.mark.skipif(not (ENCODER.is_file() and DECODER.is_file()), reason="the released files are not here")


def bits(state: dict[str, Tensor]) -> dict[str, tuple]:
    return {name: (t.dtype, tuple(t.shape), t.contiguous().numpy().tobytes()) for name, t in state.items()}


def write(path: Path, weights: dict[str, Any], **changes: Any) -> Path:
    """A file as the authors wrote theirs, with the state of an Adam that has made a step."""
    parameters = [nn.Parameter(weight.clone()) for weight in weights.values()]
    adam = torch.optim.Adam(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    adam.step()
    stored = {"epoch": 600, "arch": f"of {path.name}", "state_dict": weights, "optimizer": adam.state_dict()} | changes
    torch.save(stored, path)
    return path


def half(autoencoder: Autoencoder, role: str, prefix: str = "") -> dict[str, Tensor]:
    state = autoencoder.state_dict().items()
    return {prefix + name: weight for name, weight in state if name.startswith(f"{role}.")}


def release(autoencoder: Autoencoder, folder: Path, prefix: str = "") -> tuple[Path, Path]:
    """The two files of an autoencoder."""
    encoder, decoder = (half(autoencoder, role, prefix) for role in ("encoder", "decoder"))
    return write(folder / "encoder.pth.tar", encoder), write(folder / "decoder.pth.tar", decoder)


# --- weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", [name for name in AUTOENCODERS if name != "ae-1152"])
def test_a_released_autoencoder_is_recognised_and_kept_bit_for_bit(tmp_path: Path, name: str, prefix: str) -> None:
    ours = AUTOENCODERS[name]().eval()
    files = release(ours, tmp_path, prefix)
    generator = torch.get_rng_state()
    imported, facts = import_authors(*files)
    loaded = load_autoencoder(save_autoencoder(imported, tmp_path / "new" / "saved", facts))
    assert torch.equal(torch.get_rng_state(), generator)
    assert imported.spec == loaded.spec == {"name": name, "arguments": {}}
    assert bits(imported.state_dict()) == bits(loaded.state_dict()) == bits(ours.state_dict())
    assert str(loaded) == str(ours)  # strides and paddings too, which no weight tells
    x = torch.rand(2, *ours.image_shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(x), ours(x))
    assert not loaded(x).requires_grad


def test_imagenet_halves_are_recognised(tmp_path: Path) -> None:
    ours = AUTOENCODERS["ae-1152"]()
    files = tmp_path / "e", tmp_path / "d"
    for path, role in zip(files, ("encoder", "decoder"), strict=True):
        torch.save({"state_dict": half(ours, role)}, path)
    imported, facts = import_authors(*files)
    assert imported.spec["name"] == "ae-1152"
    assert module_digest(imported) == module_digest(ours)
    assert all(source.keys() == {"file", "sha256"} for source in facts["source"].values())  # no epoch, no arch there


def test_the_facts_say_where_the_weights_come_from(tmp_path: Path) -> None:
    encoder, decoder = release(AUTOENCODERS["ae-mnist"](), tmp_path)
    autoencoder, facts = import_authors(encoder, decoder)
    saved = save_autoencoder(autoencoder, tmp_path / "saved", facts)
    _, stored = read_tensors(saved / "autoencoder.safetensors")
    assert stored == read_json(saved / "autoencoder.json")
    assert stored["spec"] == {"name": "ae-mnist", "arguments": {}}
    for path, role in ((encoder, "encoder"), (decoder, "decoder")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        wanted = {"file": path.name, "sha256": digest, "epoch": 600, "arch": f"of {path.name}"}
        assert stored["source"][role] == wanted


def test_strange_facts_of_a_file_do_not_keep_it_from_being_read(tmp_path: Path) -> None:
    ours = AUTOENCODERS["ae-mnist"]()
    encoder = write(tmp_path / "e", half(ours, "encoder"), epoch=torch.tensor(3), arch=None, optimizer=[{"x": (1, {})}])
    imported, facts = import_authors(encoder, write(tmp_path / "d", half(ours, "decoder")))
    save_autoencoder(imported, tmp_path / "saved", facts)
    assert facts["source"]["encoder"].keys() == {"file", "sha256"}
    assert bits(load_autoencoder(tmp_path / "saved").state_dict()) == bits(ours.state_dict())


def test_half_precision_weights_become_float32_of_the_same_value(tmp_path: Path) -> None:
    ours = AUTOENCODERS["ae-mnist"]().half()
    imported, _ = import_authors(*release(ours, tmp_path))
    assert bits(imported.state_dict()) == bits(ours.float().state_dict())


def test_a_fitting_autoencoder_is_saved_and_loaded(tmp_path: Path) -> None:
    ours = fitting_autoencoder((2, 9, 14), d_z=5, width=3)
    loaded = load_autoencoder(save_autoencoder(ours, tmp_path, {"note": "ψ", "spec": "not this"}))
    assert loaded.spec == ours.spec
    assert (loaded.image_shape, loaded.d_z) == ((2, 9, 14), 5)
    assert bits(loaded.state_dict()) == bits(ours.state_dict())
    assert read_json(tmp_path / "autoencoder.json") == {"note": "ψ", "spec": ours.spec}


# --- reconstruction -------------------------------------------------------------------------------------------------


def constant(value: float) -> Autoencoder:
    """MNIST's autoencoder whose decoder says `value` at every pixel."""
    autoencoder = AUTOENCODERS["ae-mnist"]()
    last = autoencoder.get_submodule("decoder.2")
    nn.init.zeros_(last.get_parameter("weight"))
    nn.init.constant_(last.get_parameter("bias"), math.log(value / (1 - value)))
    return autoencoder


def pictures(count: int, side: int = 28) -> tuple[Images, np.ndarray]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 1, side, side), dtype=np.uint8)
    return Images(torch.from_numpy(pixels), None, "pictures"), pixels / 255


@pytest.mark.parametrize("value", [0.5, 0.75])
@pytest.mark.parametrize("batch", [1, 3, 7, 256])
def test_the_error_of_a_constant_decoder_is_known(value: float, batch: int) -> None:
    images, pixels = pictures(7)
    assert reconstruction_mse(constant(value), images, batch) == pytest.approx(((pixels - value) ** 2).mean(), rel=1e-5)


def test_the_command_saves_the_autoencoder_and_prints_its_error(tmp_path: Path, capsys) -> None:
    ours = constant(0.75)
    encoder, decoder = release(ours, tmp_path)
    images, pixels = pictures(9)
    np.savez(tmp_path / "pictures.npz", images=images.images.numpy())
    line = ["import-authors", "--encoder", str(encoder), "--decoder", str(decoder), "--out", str(tmp_path / "out")]
    assert main([*line, "--data", str(tmp_path / "pictures.npz"), "--limit", "5"]) == 0
    printed = capsys.readouterr().out
    error = ((pixels[:5] - 0.75) ** 2).mean()
    assert f"reconstruction MSE: {error:.6f} a pixel, over 5 images" in printed
    assert "ae-mnist: images (1, 28, 28), embedding of 192" in printed
    assert bits(load_autoencoder(tmp_path / "out").state_dict()) == bits(ours.state_dict())
    assert main(line) == 0
    assert "not tried on images: --data DATA" in capsys.readouterr().out


def test_images_of_another_size_are_named_and_nothing_is_saved(tmp_path: Path, capsys) -> None:
    encoder, decoder = release(constant(0.5), tmp_path)
    np.savez(tmp_path / "small.npz", images=pictures(2, side=8)[0].images.numpy())
    line = ["import-authors", "--encoder", str(encoder), "--decoder", str(decoder), "--out", str(tmp_path / "out")]
    assert main([*line, "--data", str(tmp_path / "small.npz")]) == 2
    note, message = capsys.readouterr().err.splitlines()
    assert "small.npz has no splits" in note
    assert "(2, 1, 8, 8)" in message
    assert "(1, 28, 28)" in message
    assert not (tmp_path / "out").exists()


# --- files that are not what they should be -------------------------------------------------------------------------


class Runs:
    """A pickle that, read without care, makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.folder),)


def spoil(encoder: Path, folder: Path) -> dict[str, Any]:
    """What an encoder's file may hold instead of bytes or values that are right."""
    weights = half(AUTOENCODERS["ae-mnist"](), "encoder")
    first = "encoder.0.weight"
    rest = {name: weight for name, weight in weights.items() if name != first}
    whole = encoder.read_bytes()
    return {
        "empty": b"",
        "text": b"no weights here, only words\n",
        "noise": np.random.default_rng(0).bytes(1000),
        "half": whole[: len(whole) // 2],
        "all but one": whole[:-1],
        "a plain pickle": pickle.dumps({"state_dict": {}}, protocol=4),
        "runs": {"state_dict": weights, "arch": Runs(folder)},
        "namespace": {"state_dict": weights, "args": argparse.Namespace(lr=1)},
        "module": nn.Linear(1, 1),
        "tensor": torch.ones(3),
        "bare weights": weights,
        "list": {"state_dict": [*weights.values()]},
        "numbers": {"state_dict": dict.fromkeys(weights, 0.5)},
        "integers": {"state_dict": {name: weight.int() for name, weight in weights.items()}},
        "no names": {"state_dict": dict(enumerate(weights.values()))},
        "nothing": {"state_dict": {}},
        "less": {"state_dict": {first: weights[first]}},
        "more": {"state_dict": weights | {"head\n.weight": torch.ones(2)}},
        "wider": {"state_dict": weights | {first: torch.ones(4, 1, 4, 4)}},
        "half prefixed": {"state_dict": {f"module.{first}": weights[first]} | rest},
        "nan": {"state_dict": weights | {first: torch.full_like(weights[first], torch.nan)}},
    }


UNREADABLE = "cut short, damaged, or not tensors"


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        *((kind, UnreadableFile, [UNREADABLE]) for kind in ("empty", "text", "noise", "half", "all but one")),
        ("a plain pickle", UnreadableFile, [UNREADABLE]),
        ("runs", UnreadableFile, ["pickled", "mkdir", "may run code"]),
        ("namespace", UnreadableFile, ["pickled argparse.Namespace", "may run code"]),
        ("module", UnreadableFile, ["pickled torch.nn.modules.linear.Linear"]),
        *((kind, InvalidInput, ["no 'state_dict'"]) for kind in ("tensor", "bare weights", "list", "numbers")),
        *((kind, InvalidInput, ["no 'state_dict'"]) for kind in ("integers", "no names")),
        ("nothing", InvalidInput, ["no weights", "ae-48, ae-96, ae-192, ae-576, ae-mnist, ae-mnist-96, ae-1152"]),
        ("less", InvalidInput, ["'encoder.0.weight' (3, 1, 4, 4)", "encoder of none of"]),
        ("more", InvalidInput, ["'encoder.0.weight' (3, 1, 4, 4)", "encoder of none of"]),
        ("half prefixed", InvalidInput, ["'module.encoder.0.weight' (3, 1, 4, 4)", "encoder of none of"]),
        ("wider", InvalidInput, ["'encoder.0.weight' (4, 1, 4, 4)", "encoder of none of"]),
        ("nan", InvalidInput, ["encoder.0.weight", "not finite"]),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_wrong_file_is_refused_in_one_line_and_runs_nothing(
    tmp_path: Path, kind: str, error: type[Exception], words: list[str]
) -> None:
    encoder, decoder = release(AUTOENCODERS["ae-mnist"](), tmp_path)
    content = spoil(encoder, tmp_path / "made by a pickle")[kind]
    if isinstance(content, bytes):
        encoder.write_bytes(content)
    else:
        torch.save(content, encoder)
    with pytest.raises(error) as caught:
        import_authors(encoder, decoder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    assert "weights_only" not in message  # torch's advice is to switch the check off
    assert all(word in message for word in [*words, *([str(encoder)] if kind != "nan" else [])])
    assert not (tmp_path / "made by a pickle").exists()


def test_the_pickle_of_that_test_does_run_when_it_is_read_without_care(tmp_path: Path) -> None:
    torch.save({"arch": Runs(tmp_path / "made by a pickle")}, tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "made by a pickle").is_dir()


def test_missing_swapped_and_foreign_halves_are_named(tmp_path: Path) -> None:
    encoder, decoder = release(AUTOENCODERS["ae-48"](), tmp_path)
    other = write(tmp_path / "other.pth.tar", half(AUTOENCODERS["ae-96"](), "decoder"))
    for files, error, words in [
        ((tmp_path / "nope", decoder), UnreadableFile, ["nope", "No such file"]),
        ((encoder, tmp_path), UnreadableFile, [str(tmp_path), "directory"]),
        ((decoder, encoder), InvalidInput, ["decoder.pth.tar is the decoder of ae-48", "its encoder", "swapped"]),
        ((encoder, encoder), InvalidInput, ["encoder.pth.tar is the encoder of ae-48", "its decoder"]),
        ((encoder, other), InvalidInput, ["encoder of ae-48", "other.pth.tar the decoder of ae-96"]),
    ]:
        with pytest.raises(error) as caught:
            import_authors(*files)
        assert "\n" not in str(caught.value)
        assert all(word in str(caught.value) for word in words)


def test_an_autoencoder_of_your_own_modules_is_not_saved(tmp_path: Path) -> None:
    own = Autoencoder(nn.Flatten(), nn.Unflatten(1, (1, 2, 2)), (1, 2, 2))
    with pytest.raises(InvalidInput, match="modules of your own"):
        save_autoencoder(own, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_what_is_no_saved_autoencoder_is_not_loaded(tmp_path: Path) -> None:
    network, file = dncnn(1, depth=3, width=2), tmp_path / "autoencoder.safetensors"
    with pytest.raises(UnreadableFile, match="no checkpoint"):
        load_autoencoder(tmp_path)
    for facts, error, words in [
        ({"step": 3}, UnreadableFile, "holds no autoencoder"),
        ({"spec": network.spec}, InvalidInput, "is a DnCNN; wanted an autoencoder"),
        ({"spec": {"name": "ae-13", "arguments": {}}}, InvalidInput, "'ae-13' is unknown"),
        ({"spec": {"name": "ae-48", "arguments": {}}}, InvalidInput, "saved autoencoder does not fit"),
    ]:
        write_tensors(file, network.state_dict(), facts)
        with pytest.raises(error, match=words):
            load_autoencoder(tmp_path)
    save_autoencoder(constant(0.5), tmp_path)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(UnreadableFile, match="damaged"):
        load_autoencoder(tmp_path)


# --- the files themselves -------------------------------------------------------------------------------------------


@RELEASED
def test_the_released_ae_192_is_read_as_torch_reads_it() -> None:
    autoencoder, facts = import_authors(ENCODER, DECODER)
    assert (autoencoder.spec["name"], autoencoder.d_z, autoencoder.embedding_shape) == ("ae-192", 192, (192, 1, 1))
    stored = [torch.load(path, map_location="cpu", weights_only=True)["state_dict"] for path in (ENCODER, DECODER)]
    assert bits(autoencoder.state_dict()) == bits(stored[0] | stored[1])
    assert [source["epoch"] for source in facts["source"].values()] == [600, 600]


@RELEASED
@pytest.mark.skipif(not (DATA / "cifar10-jpeg").is_dir(), reason="the JPEG copies of CIFAR-10 are not here")
def test_the_released_ae_192_reconstructs_cifar_10() -> None:
    autoencoder, _ = import_authors(ENCODER, DECODER)
    images = load_images(DATA / "cifar10-jpeg", "test", limit=2000)
    assert round(reconstruction_mse(autoencoder, images), 4) == 0.0074  # these images; standard error 0.00007

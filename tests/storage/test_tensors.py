"""What a checkpoint gives back is bit for bit what was saved, or an error: never something else."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from certibox.errors import InvalidInput, UnreadableFile
from certibox.storage.tensors import (
    load_module,
    load_optimizer,
    module_digest,
    optimizer_tensors,
    prefixed,
    read_tensors,
    tensors_digest,
    under,
    write_tensors,
)

TENSORS = {
    "float32": torch.tensor([[1.5, -0.0], [torch.inf, torch.nan]]),
    "float64": torch.tensor([1 / 3], dtype=torch.float64),
    "bfloat16": torch.tensor([1.0, -2.0, 3.0]).bfloat16(),
    "float16": torch.tensor([0.1]).half(),
    "int64": torch.tensor([2**62, -1]),
    "uint8": torch.arange(7, dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "0-d": torch.tensor(3),
    "0-d float": torch.tensor(0.1),
    "empty": torch.zeros(0),
    "empty rows": torch.zeros(0, 3, dtype=torch.int64),
    "channels_last": torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
    "strided": torch.arange(12.0).reshape(3, 4).T[::2],
}
FACTS = {"step": 400, "best": None, "name": "ψ\n", "nested": {"rate": 0.1, "list": [1, 2.5, "three", True]}}


def bits(tensor: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "new" / "checkpoint.safetensors"
    write_tensors(path, TENSORS, FACTS)
    return path


def test_tensors_and_facts_survive(saved: Path) -> None:
    tensors, facts = read_tensors(saved)
    assert facts == FACTS
    assert {name: bits(tensor) for name, tensor in tensors.items()} == {name: bits(t) for name, t in TENSORS.items()}


def test_a_checkpoint_may_hold_no_tensors_or_no_facts(tmp_path: Path) -> None:
    for tensors, facts in (({}, FACTS), ({"a": torch.ones(2)}, {}), ({}, {})):
        write_tensors(tmp_path / "c", tensors, facts)
        found = read_tensors(tmp_path / "c")
        assert (found[0].keys(), found[1]) == (tensors.keys(), facts)


def test_tensors_that_share_memory_are_all_kept(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    write_tensors(tmp_path / "c", {"whole": whole, "again": whole, "part": whole[2:4]}, {})
    tensors, _ = read_tensors(tmp_path / "c")
    assert torch.equal(tensors["again"], whole)
    assert torch.equal(tensors["part"], whole[2:4])


def refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(UnreadableFile) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    refused(saved.with_name("cut"), content[: int(share * len(content))])


def test_one_flipped_bit_anywhere_in_the_tensors_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    assert len(content) - start == sum(tensor.nbytes for tensor in TENSORS.values())
    for i in range(start, len(content)):
        refused(saved.with_name("flipped"), content[:i] + bytes([content[i] ^ (1 << i % 8)]) + content[i + 1 :])


def test_one_flipped_bit_in_the_header_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    for i in range(0, len(content[:start].rstrip(b" ")), 3):  # padding says nothing
        refused(saved.with_name("flipped"), content[:i] + bytes([content[i] ^ (1 << i % 7)]) + content[i + 1 :])


def test_changed_facts_are_refused(saved: Path) -> None:
    content = saved.read_bytes()
    assert content.count(b"400") == 1
    refused(saved, content.replace(b"400", b"401"))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=64))
def test_other_files_are_refused(tmp_path: Path, junk: bytes) -> None:
    refused(tmp_path / "junk", junk)


def test_other_safetensors_and_missing_files_are_refused(tmp_path: Path) -> None:

    refused(tmp_path / "theirs", save({"a": torch.ones(2)}))
    refused(tmp_path / "theirs", save({"a": torch.ones(2)}, metadata={"facts": json.dumps({})}))
    for missing in (tmp_path / "missing", tmp_path):
        with pytest.raises(UnreadableFile, match="there is no checkpoint"):
            read_tensors(missing)


def test_a_crash_while_writing_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved.read_bytes()

    def crash(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="disk full"):
        write_tensors(saved, {"other": torch.ones(3)}, {})
    assert saved.read_bytes() == content
    assert list(saved.parent.iterdir()) == [saved]


def test_an_overwritten_checkpoint_leaves_tensors_already_read_alone(saved: Path) -> None:
    tensors, _ = read_tensors(saved)
    write_tensors(saved, {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}, {})
    assert bits(tensors["float32"]) == bits(TENSORS["float32"])


def test_the_same_tensors_and_facts_are_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    code = """
import torch
from certibox.storage.tensors import write_tensors
tensors = {"b": torch.zeros(3), "0.weight": torch.ones(2), "A": torch.arange(3), "empty": torch.zeros(0)}
for number in range(8):
    write_tensors(f"{sys.argv[1]}/{sys.argv[2]}{number}", tensors, {"one": 1, "two": "σ"})
"""
    asked = [sys.executable, "-c", f"import sys\n{code}", str(tmp_path), "0"]
    subprocess.run(asked, check=True, env=os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"})
    exec(code, {"sys": SimpleNamespace(argv=["", str(tmp_path), "1"])})
    contents = {path.read_bytes() for path in tmp_path.iterdir()}
    assert len(list(tmp_path.iterdir())) == 16
    assert len(contents) == 1
    assert read_tensors(tmp_path / "00")[1] == {"one": 1, "two": "σ"}


def test_a_file_in_the_order_of_chance_is_read_and_replaced(tmp_path: Path) -> None:
    write_tensors(tmp_path / "new", {"a": torch.ones(2)}, {"one": 1})
    with safe_open(tmp_path / "new", framework="pt") as file:
        metadata = file.metadata()
    for number in range(20):  # an order is drawn for each
        older = save({"a": torch.ones(2)}, metadata=metadata)
        (tmp_path / f"{number}").write_bytes(older)
        assert read_tensors(tmp_path / f"{number}")[1] == {"one": 1}
        write_tensors(tmp_path / f"{number}", {"a": torch.ones(2)}, {"one": 1})
        assert (tmp_path / f"{number}").read_bytes() == (tmp_path / "new").read_bytes()


def test_tensors_of_others_are_not_replaced(tmp_path: Path) -> None:
    theirs = save({"a": torch.ones(2)}, metadata={"format": "pt"})
    (tmp_path / "model.safetensors").write_bytes(theirs)
    with pytest.raises(InvalidInput, match="certibox did not write"):
        write_tensors(tmp_path / "model.safetensors", {"a": torch.ones(2)}, {})
    assert (tmp_path / "model.safetensors").read_bytes() == theirs


# --- digests ----------------------------------------------------------------------------------------------------------


def test_the_digest_sees_names_types_shapes_and_bits_but_neither_order_nor_layout() -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    digest = tensors_digest(base)
    assert tensors_digest({"b": base["b"], "a": torch.zeros(3, 2).T}) == digest
    others = [
        {"a": base["a"], "c": base["b"]},
        {"a": torch.zeros(3, 2), "b": base["b"]},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": base["b"]},
        {"a": -base["a"], "b": base["b"]},
        {"a": base["a"]},
        {"a": base["b"], "b": base["a"]},
    ]
    assert len({digest, *map(tensors_digest, others)}) == 7


def test_a_module_digest_covers_parameters_and_buffers() -> None:
    module = nn.BatchNorm2d(3)
    before = module_digest(module)
    assert before == module_digest(nn.BatchNorm2d(3))
    module(torch.rand(2, 3, 4, 4))  # moves the running statistics alone
    assert module_digest(module) != before


# --- modules and prefixes ---------------------------------------------------------------------------------------------


def test_prefixes_are_undone_and_never_confused() -> None:
    parts = {"best": {"w": torch.ones(1), "best.w": torch.ones(2)}, "best2": {"w": torch.ones(3)}, "none": {}}
    flat = {name: t for prefix, part in parts.items() for name, t in prefixed(prefix, part).items()}
    assert {prefix: under(prefix, flat) for prefix in parts} == parts


def test_a_module_is_restored_or_refused_in_one_line() -> None:
    here, there = nn.Linear(3, 2), nn.Linear(3, 2)
    load_module(here, there.state_dict(), "denoiser")
    assert module_digest(here) == module_digest(there)
    for other in (nn.Linear(3, 4), nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2)):
        with pytest.raises(InvalidInput, match="the saved denoiser does not fit the denoiser at hand") as caught:
            load_module(here, other.state_dict(), "denoiser")
        assert "\n" not in str(caught.value)


# --- optimizers -------------------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1, weight_decay=1e-2),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "plain sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
}


def network() -> nn.Module:
    """A convolution in channels-last layout, a normalisation, and one frozen parameter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    layers[4].bias.requires_grad_(False)
    return layers.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + step)
        x = torch.rand((5, 2, 4, 4), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        module(x).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("stop", [0, 2])
def test_training_goes_on_bit_for_bit(kind: str, stop: int, tmp_path: Path) -> None:
    whole = network()
    train(whole, OPTIMIZERS[kind](trainable(whole)), range(4))

    first = network()
    optimizer = OPTIMIZERS[kind](trainable(first))
    train(first, optimizer, range(stop))
    parts = {"module": first.state_dict(), "optimizer": optimizer_tensors(optimizer)}
    flat = {name: t for prefix, part in parts.items() for name, t in prefixed(prefix, part).items()}
    write_tensors(tmp_path / "c", flat, {})
    flat, _ = read_tensors(tmp_path / "c")

    def resumed(with_optimizer: bool) -> str:
        second = network()
        load_module(second, under("module", flat), "checkpoint")
        optimizer = OPTIMIZERS[kind](trainable(second))
        if with_optimizer:
            load_optimizer(optimizer, under("optimizer", flat))
        train(second, optimizer, range(stop, 4))
        return module_digest(second)

    assert resumed(with_optimizer=True) == module_digest(whole)
    has_state = stop > 0 and kind != "plain sgd"
    assert (resumed(with_optimizer=False) != module_digest(whole)) == has_state

"""Defenses on the hub: what is uploaded, against a stand-in of the client, and loaded again from a local folder."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import certibox as cb
from certibox.commands.models import defense_folder
from certibox.defense import hub
from certibox.errors import InvalidInput, UnreadableFile
from certibox.storage.files import read_json
from certibox.storage.tensors import read_tensors
from doubles import LinearBox

SECRET = "https://user:hunter2@models.example/v1?token=abc"


def trained(name: str = "linear") -> cb.Defense:
    generator = torch.Generator().manual_seed(0)
    images = cb.images_from_arrays((torch.rand(12, 1, 4, 4, generator=generator) * 255).byte().numpy(), None)
    linear = LinearBox(torch.randn(3, 16, generator=generator))
    box = cb.as_blackbox(lambda x: linear(torch.from_numpy(x)).numpy(), outputs="logits", name=name, clip=False)
    schedule = cb.one_cycle(0, batch_size=4, denoise_epochs=1)
    return cb.train(cb.QueryClient(box), images, method="DS", sigma=0.25, schedule=schedule, seed=0)


class Api:
    """A stand-in of `huggingface_hub.HfApi` that keeps repositories in folders."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: list[tuple[str, Any]] = []

    def create_repo(self, repo_id: str, *, exist_ok: bool, private: bool | None) -> None:
        assert exist_ok
        self.made.append((repo_id, private))

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str, revision: str = "main") -> Any:
        shutil.copytree(folder_path, self.root / repo_id / revision)
        return SimpleNamespace(commit_url=f"https://hub.example/{repo_id}/commit/1 {commit_message}")

    def download(self, repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        folder = self.root / repo_id / (revision or "main")
        if not folder.is_dir():
            raise FileNotFoundError("404")
        assert set(allow_patterns) == {"defense.safetensors", "defense.json"}
        return str(folder)


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Api:
    made = Api(tmp_path)
    library = SimpleNamespace(HfApi=lambda: made, snapshot_download=made.download)
    monkeypatch.setattr(hub, "_library", lambda: library)
    return made


def test_what_is_pushed_is_loaded_by_its_address(api: Api) -> None:
    defense = trained()
    assert defense.push_to_hub("me/digits", private=True).endswith("/me/digits/commit/1 A defense of certibox")
    assert api.made == [("me/digits", True)]
    loaded = cb.load_defense("hf://me/digits", defense.client)
    x = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded.robustify(x), defense.robustify(x))
    assert (loaded.method, loaded.sigma, loaded.image_shape) == (defense.method, defense.sigma, defense.image_shape)
    assert defense_folder("hf://me/digits") == api.root / "me/digits/main"
    defense.push_to_hub("me/digits", revision="v1", api=api)
    assert (api.root / "me/digits/v1/README.md").is_file()
    assert cb.load_defense("hf://me/digits@v1", defense.client).sigma == 0.25


def test_nothing_secret_is_uploaded(api: Api) -> None:
    defense = trained(SECRET)
    assert defense.trained_on is not None
    defense.push_to_hub("me/digits")
    for path in (api.root / "me/digits/main").iterdir():
        content = path.read_bytes()
        assert b"hunter2" not in content
        assert b"token=abc" not in content
    tensors, facts = read_tensors(api.root / "me/digits/main/defense.safetensors")
    assert "trained_on" not in tensors
    assert facts == read_json(api.root / "me/digits/main/defense.json")


def test_the_card_says_the_facts_and_runs_as_it_stands(api: Api) -> None:
    defense = trained()
    defense.push_to_hub("me/digits")
    text = (api.root / "me/digits/main/README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "certibox"
    for words in (
        "| Method | DS |",
        "| σ of the noise | 0.25, pixels",
        "| Images | 1×4×4 |",
        "| Epochs | 1 |",
        "`linear`",
    ):
        assert words in body
    code = body.split("```python\n")[1].split("```")[0].replace("100_000", "400")
    linear = LinearBox(torch.randn(3, 16, generator=torch.Generator().manual_seed(2)))
    namespace: dict[str, Any] = {
        "my_model": lambda x: linear(torch.from_numpy(x)).numpy(),
        "x": torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(1)),
    }
    code = code.replace('outputs="logits")', 'outputs="logits", num_classes=3, clip=False)')
    defense_of = cb.load_defense
    namespace["cb"] = SimpleNamespace(
        **{name: getattr(cb, name) for name in ("QueryClient", "as_blackbox", "EProcess")}
    )
    namespace["cb"].load_defense = lambda address, client: cb_classes(defense_of(address, client))
    exec(code.replace("import certibox as cb\n", ""), namespace)
    assert namespace["certificate"].sigma == 0.25


def cb_classes(defense: cb.Defense) -> Any:
    return SimpleNamespace(smoothed=lambda: defense.smoothed(3))


@pytest.mark.parametrize("name", ["digits", "me/digits@v1", "me/dig its", "https://hub.example/me/digits", ""])
def test_a_repository_is_named_by_its_owner_and_itself(name: str, api: Api) -> None:
    with pytest.raises(InvalidInput, match="wanted owner/name"):
        trained().push_to_hub(name)
    assert not api.made


def test_what_the_hub_refuses_is_said_without_secrets(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **more: Any) -> None:
        raise RuntimeError(f"403 at {SECRET}")

    monkeypatch.setattr(api, "create_repo", refuse)
    with pytest.raises(InvalidInput, match="me/digits was not uploaded: RuntimeError: 403") as caught:
        trained().push_to_hub("me/digits")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(UnreadableFile, match="hf://me/nothing cannot be downloaded: FileNotFoundError: 404"):
        cb.load_defense("hf://me/nothing", trained().client)
    with pytest.raises(InvalidInput, match="no address on the hub; wanted hf://owner/name"):
        cb.load_defense("hf://nothing", trained().client)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InvalidInput, match=r"huggingface_hub is not installed; .* pip install 'certibox\[hub\]'"):
        cb.load_defense("hf://me/digits", trained().client)


def test_text_of_others_is_no_markup_in_a_card() -> None:
    facts = {"method": "DS", "sigma": 0.25, "image_shape": [1, 4, 4], "num_classes": 3}
    box = {"name": "x` | <script>", "outputs": "logits", "input_range": [0, 1], "clip": True}
    assert "`x  script`" in hub.card({**facts, "box": box, "training": {}}, "me/digits")

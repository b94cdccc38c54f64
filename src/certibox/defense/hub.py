"""The files of a saved defense, and defenses on the Hugging Face Hub: uploaded with a model card made of their facts,
and downloaded by name."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from certibox.errors import InvalidInput, UnreadableFile, masked, translated
from certibox.storage.files import write_json_atomic
from certibox.storage.tensors import Tensors, write_tensors

TENSORS, FACTS = "defense.safetensors", "defense.json"  # files of a saved defense
HUB = "hf://"  # what an address on the hub begins with: hf://owner/name, hf://owner/name@revision
CARD = "README.md"
_ADVICE = "; check name, token and network"
_ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def write_files(directory: Path, tensors: Tensors, facts: Mapping[str, Any]) -> None:
    """Write the files of a saved defense.

    Args:
        directory: Directory of the files.
        tensors: Tensors by name.
        facts: Facts, plain values by name.
    """
    write_tensors(directory / TENSORS, tensors, dict(facts))
    write_json_atomic(directory / FACTS, dict(facts))


def push(
    tensors: Tensors,
    facts: Mapping[str, Any],
    repo_id: str,
    api: Any = None,
    private: bool | None = None,
    **more: Any,
) -> str:
    """Upload a defense with its card; the address of its commit. Digests of training images stay at home.

    Args:
        tensors: Tensors of the defense by name.
        facts: Facts of the defense, as they are saved.
        repo_id: Name of the repository, as owner/name; it is made where there is none.
        api: Client of the hub, a `huggingface_hub.HfApi`; by default one with the user's own token.
        private: Whether a new repository is private; None for the owner's default.
        more: Other arguments of `HfApi.upload_folder`, such as revision or commit_message.

    Raises:
        InvalidInput: The name is none, huggingface_hub is not installed, or the hub refuses.
    """
    if not _ADDRESS.fullmatch(f"{HUB}{repo_id}") or "@" in repo_id:
        raise InvalidInput(f"repo_id is {repo_id!r}; wanted owner/name")
    api = api if api is not None else _library().HfApi()
    with tempfile.TemporaryDirectory() as folder:
        shown = published(facts)
        write_files(Path(folder), {name: t for name, t in tensors.items() if name != "trained_on"}, shown)
        (Path(folder) / CARD).write_text(card(shown, repo_id), encoding="utf-8")
        with translated(InvalidInput, f"{repo_id} was not uploaded", _ADVICE):
            api.create_repo(repo_id, exist_ok=True, private=private)
            more.setdefault("commit_message", "A defense of certibox")
            done = api.upload_folder(repo_id=repo_id, folder_path=folder, **more)
    return str(getattr(done, "commit_url", done))


def pull(address: str, download: Any = None) -> Path:
    """The directory of a defense that is on the hub, downloaded or from the cache.

    Args:
        address: Address, as hf://owner/name or hf://owner/name@revision.
        download: Function like `huggingface_hub.snapshot_download`, which is the default.

    Raises:
        InvalidInput: The address is none, or huggingface_hub is not installed.
        UnreadableFile: The hub has no such defense, or cannot be reached.
    """
    if (found := _ADDRESS.fullmatch(address)) is None:
        raise InvalidInput(
            f"{masked(address)} is no address on the hub; wanted hf://owner/name or hf://owner/name@revision"
        )
    download = download if download is not None else _library().snapshot_download
    with translated(UnreadableFile, f"{address} cannot be downloaded", _ADVICE):
        return Path(download(found[1], revision=found[2], allow_patterns=[TENSORS, FACTS]))


def is_address(directory: object) -> bool:
    """Whether a place of a defense is an address on the hub.

    Args:
        directory: Directory, or an address.
    """
    return isinstance(directory, str) and directory.startswith(HUB)


def published(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as others may see them: every text in them without users, tokens and queries of addresses.

    Args:
        facts: Facts of a saved defense.
    """
    return {name: _masked(value) for name, value in facts.items()}


def _masked(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _masked(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(inner) for inner in value]
    return masked(value) if isinstance(value, str) else value


def card(facts: Mapping[str, Any], repo_id: str) -> str:
    """A model card of nothing but the facts of a defense: what it is, what it took, and what it certifies.

    Args:
        facts: Facts of a saved defense, published.
        repo_id: Name of the repository.
    """
    box, training = facts["box"], facts.get("training") or {}
    shape = "×".join(map(str, facts["image_shape"]))
    schedule = training.get("schedule") or {}
    epochs = sum(phase.get("epochs", 0) for phase in schedule.get("phases", ()))
    lines = {
        "Method": facts["method"],
        "σ of the noise": f"{facts['sigma']:g}, pixels on [0, 1]",
        "Images": shape,
        "Classes": facts["num_classes"] if facts["num_classes"] is not None else "not known",
        "Box": f"`{_inline(box['name'])}`, answers {box['outputs']}",
        "Pixels as the box takes them": f"{box['input_range']}, {'clipped' if box.get('clip') else 'not clipped'}",
        "Epochs": epochs or None,
        "γ": training.get("gamma"),
        "Digest of the training images": f"`{training['images'][:16]}`" if training.get("images") else None,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in lines.items() if value is not None)
    return f"""---
library_name: certibox
tags:
  - certified-robustness
  - randomized-smoothing
  - adversarial-robustness
---

# {_inline(repo_id)}

A denoiser and an encoder to put in front of a black-box image model, trained by
[certibox](https://pypi.org/project/certibox/). The model itself is not in this repository.

| | |
|---|---|
{table}

## Use

```python
import certibox as cb

client = cb.QueryClient(cb.as_blackbox(my_model, outputs="{box["outputs"]}"), budget=1_000_000)
defense = cb.load_defense("hf://{repo_id}", client)
rule = cb.EProcess(radii=({facts["sigma"]:g},))
certificate = defense.smoothed().certify(x, n0=25, n=100_000, alpha=0.001, seed=0, rule=rule)
```

## What it certifies, and what not

Certificates are of the smoothed classifier: of votes over Gaussian noise of σ = {facts["sigma"]:g}, through this
defense and the model behind it, each for one image, in the l2 norm, with a failure probability alpha of one's own
choice. Every certified answer costs n queries of the model. The defense promises nothing by itself: in front of another
model, or with another declaration of its pixels, certificates hold as well and accuracy may not. Nothing is said of
other norms, of shifts of the data, or of the model when it is asked once.
"""


def _inline(text: str) -> str:
    """Any text as one line in which Markdown finds no markup."""
    return re.sub(r"[^\w ./:@+-]", "", " ".join(text.split()))[:100]


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        wanted = "wanted it for the hub: pip install 'certibox[hub]'"
        raise InvalidInput(f"huggingface_hub is not installed; {wanted}") from error
    return huggingface_hub

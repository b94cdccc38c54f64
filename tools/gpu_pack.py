"""What `gpu_queue.py` measured and trained, carried from one machine to another: models/, and tar files.

A tar holds rows under experiments/ and stages under models/, each whole, and nothing else; one that does is refused.
"""

from __future__ import annotations

import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from certibox.errors import InvalidInput, UnreadableFile
from certibox.paper.gpu import append_check, read_checks
from certibox.paper.measured import Results

LARGEST, PART = 10 << 20, 15 << 20  # bytes of a kept file, and of a part of a pack
STAGES = {  # what a finished stage holds, without its checkpoints
    "box": ("network.safetensors", "seconds.json"),
    "autoencoder": ("autoencoder.safetensors", "autoencoder.json", "seconds.json"),
    "defense": ("defense.safetensors", "defense.json", "queries.json", "seconds.json"),
}
MEMBER = re.compile(
    r"experiments/(gpu|measured/[A-Za-z0-9]+)\.jsonl|models/(box|autoencoder|defense)-[0-9a-f]+/[a-z]+\.(json|safetensors)"
)


def finished(work: Path) -> Iterator[tuple[Path, list[Path]]]:
    """The finished stages in `work`, each with the files that make it up."""
    for folder in sorted(work.glob("*-*")):
        wanted = [folder / name for name in STAGES.get(folder.name.split("-")[0], ())]
        if wanted and all(path.exists() for path in wanted):
            yield folder, wanted


def publish(work: Path, models: Path) -> list[str]:
    """Copy the finished stages that are not there yet into `models`; returns the names of those that are too large."""
    refused = []
    for folder, files in finished(work):
        if max(path.stat().st_size for path in files) > LARGEST:
            refused.append(folder.name)
        else:
            keep(files, models / folder.name)
    return refused


def keep(files: Sequence[Path], folder: Path) -> None:
    """Copy `files` into a new folder: whole, or not at all; one that is there stands."""
    if folder.exists():
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for path in files:
        shutil.copyfile(path, partial / path.name)
    partial.rename(folder)


def pack(target: Path, folder: Path, models: Path, work: Path, scale: str) -> list[Path]:
    """Write the rows of `scale`, the checks, and the stages that were finished in `work` into `target`.

    What does not fit a part of `PART` bytes goes on in `target`-2 and so on; a stage is never divided. Returns paths.
    """
    with tempfile.TemporaryDirectory() as holding:
        rows = Results(Path(holding))
        for path in sorted((folder / "measured").glob("*.jsonl")):
            for row in Results(folder).read(path.stem):
                if row.scale == scale:
                    rows.append(row)
        files = sorted(rows.folder.glob("*.jsonl"))
        units = [[(path, f"experiments/measured/{path.name}")] for path in files]
        if (folder / "gpu.jsonl").exists():
            units.insert(0, [(folder / "gpu.jsonl", "experiments/gpu.jsonl")])
        for stage, _ in finished(work):
            kept = sorted((models / stage.name).glob("*.*"))
            units.append([(path, f"models/{stage.name}/{path.name}") for path in kept])
        return [
            _write(target if number == 1 else target.with_stem(f"{target.stem}-{number}"), members)
            for number, members in enumerate(_parts(units), start=1)
        ]


def _parts(units: list[list[tuple[Path, str]]]) -> Iterator[list[tuple[Path, str]]]:
    """Units put together in order, as many as fit a part."""
    part: list[tuple[Path, str]] = []
    size = 0
    for unit in units:
        more = sum(path.stat().st_size for path, _ in unit)
        if part and size + more > PART:
            yield part
            part, size = [], 0
        part, size = part + unit, size + more
    yield part


def _write(target: Path, members: list[tuple[Path, str]]) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, "w") as archive:
        for path, name in members:
            archive.add(path, name)
    return target


def unpack(source: Path, folder: Path, models: Path) -> tuple[int, int]:
    """Merge a tar of `pack`; returns how many rows and checks, and how many stages, were new.

    Errors: `InvalidInput` for a member that `pack` does not write, `UnreadableFile` for what is no tar or holds lines
    that are no rows; nothing is merged then.
    """
    with tempfile.TemporaryDirectory() as holding:
        root = Path(holding)
        _extract(source, root)
        rows = _merge_rows(root / "experiments", folder)
        stages = [stage for stage in sorted(root.glob("models/*")) if not (models / stage.name).exists()]
        for stage in stages:
            keep(sorted(stage.iterdir()), models / stage.name)
    return rows, len(stages)


def _extract(source: Path, root: Path) -> None:
    """The members of a tar as files below `root`, if every one of them is what `pack` writes."""
    try:
        with tarfile.open(source, "r:") as archive:  # as written: of a compressed one, sizes would mean little
            members = archive.getmembers()
            for member in members:
                if not (member.isreg() and MEMBER.fullmatch(member.name)):
                    raise InvalidInput(f"{source} holds {member.name!r}; wanted a file that gpu_queue.py --pack wrote")
                if member.size > LARGEST:
                    raise InvalidInput(f"{source}: {member.name} has {member.size:,} bytes; wanted at most {LARGEST:,}")
            for member in members:
                content = archive.extractfile(member)
                assert content is not None  # a regular file
                path = root / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())
    except (tarfile.TarError, OSError) as error:
        raise UnreadableFile(f"{source} cannot be read as a tar: {error}; fetch it again") from error


def _merge_rows(source: Path, folder: Path) -> int:
    """Append what `folder` lacks of the rows and checks in `source`; how many that was."""
    here = Results(folder)
    known = here.by_plan()
    fresh = [row for key, row in Results(source).by_plan().items() if key not in known]
    checks, noted = folder / "gpu.jsonl", read_checks(folder / "gpu.jsonl")
    lines = [check for check in read_checks(source / "gpu.jsonl") if check not in noted]
    for row in fresh:
        here.append(row)
    for line in lines:
        append_check(checks, line)
    return len(fresh) + len(lines)

"""The GPU queue, dry on a CPU: its order, its checks, its end in time, and what it carries from machine to machine."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gpu_pack
import gpu_queue
from certibox.errors import InvalidInput, UnreadableFile
from certibox.paper.dry_run import tiny
from certibox.paper.gpu import LIVE, NOTHING, RELEASED, Check, append_check, minutes_an_epoch, read_checks, section
from certibox.paper.measured import Measured, Results
from certibox.paper.stages import Workshop
from certibox.paper.suite import Suite
from gpu_queue import Deadline, Queue
from places import ROOT

EXPERIMENTS = ROOT / "experiments" / "paper"
ROW = "table2 / ZO-AE-DS (CGE, q=192) / gpu / seed 0"
BARE = "table2 / bare model / gpu / seed 0"
PRECISE = "precision, cifar-resnet 20"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 coloured images a split of 3 classes, the last of which has most: the training images hold all classes."""
    folder, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split in ("train", "test"):
        for i in range(24):
            path = folder / "cifar10" / split / str(min(i // 3, 2)) / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            coarse.resize((32, 32), Image.Resampling.BICUBIC).save(path)
    return folder


class Place:
    """A machine: where a queue works, writes its rows, and keeps its models."""

    def __init__(self, root: Path, data: Path) -> None:
        self.work, self.models, self.folder, self.data = root / "work", root / "models", root / "experiments", data

    def run(self, deadline: Deadline, only: str) -> bool:
        suite = Suite(EXPERIMENTS)
        workshop = Workshop(suite, self.data, self.work, deadline.bar, "cpu", self.models)
        fine = Queue(suite, self.folder, workshop, tiny=True).run(deadline, only)
        gpu_pack.publish(self.work, self.models)
        return fine

    @property
    def rows(self) -> list[Measured]:
        return Results(self.folder).read("table2")

    @property
    def checks(self) -> list[Check]:
        return read_checks(self.folder / "gpu.jsonl")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Place:
    """The first three checks and the first row, measured without a stop."""
    place = Place(tmp_path_factory.mktemp("done"), data)
    for only in (PRECISE, "epoch", ROW):
        assert place.run(Deadline(1000), only)
    return place


def told(row: Measured) -> dict:
    """A row without what the clock says."""
    return asdict(replace(row, seconds={}, date=""))


# -------------------------------------------------------------------------------------------------------------- order


def test_the_queue_goes_from_checks_to_table_2_to_the_other_tables(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    untouched = shutil.copytree(EXPERIMENTS, tmp_path / "paper", ignore=shutil.ignore_patterns("*.jsonl"))
    assert gpu_queue.main(["--list", "--experiments", str(untouched), "--work", "/nowhere"]) == 0
    lines = [line[4:].rsplit(" s, ", 1)[0] for line in capsys.readouterr().out.splitlines()]
    names, seconds = zip(*(line.rsplit(maxsplit=1) for line in lines), strict=True)
    names = [name.strip() for name in names]
    checks = [PRECISE, f"epoch, {RELEASED}", f"epoch, {LIVE}", "precision, resnet110"]
    rows = [f"table2 / {row} / gpu / seed 0" for row in gpu_queue.FIRST]
    assert names[: len(checks + rows)] == checks + rows
    tables = list(dict.fromkeys(name.split(" / ")[0] for name in names[4:]))
    assert tables == [
        name for name in gpu_queue.TABLES if name not in ("table1", "figure4", "figure5")
    ]  # rows of others
    assert len(set(names)) == len(names)
    assert "0" not in seconds


def test_what_is_measured_leaves_the_queue(done: Place) -> None:
    suite = Suite(EXPERIMENTS)
    workshop = Workshop(suite, done.data, done.work, Deadline(0).bar, "cpu", done.models)
    left = [item.name for item in Queue(suite, done.folder, workshop, tiny=True).remaining()]
    assert left[:2] == ["precision, resnet110", "table2 / FO-AE-DS / gpu / seed 0"]
    full = [item.name for item in Queue(suite, done.folder, workshop).remaining()]
    assert full[4] == ROW  # a dry run answers nothing


# ------------------------------------------------------------------------------------------------------------- checks


def test_the_precision_check_finds_the_gradient_in_float32(done: Place) -> None:
    (check,) = (check for check in done.checks if check.check == "precision")
    assert (check.name, check.device, check.tiny) == ("cifar-resnet 20", "cpu", True)
    assert check.figures["columns"] == ["float32", "bfloat16", "certibox, TF32 on"]
    cosines = {(row["estimator"], row["mu"]): row["cosines"] for row in check.figures["rows"]}
    central = [cosines["CGE, central", mu] for mu in (0.005, 0.05, 0.1, 0.5)]
    assert central[0][0] > 0.99
    assert central[1][0] > 0.97  # this untrained box bends in so short a step
    assert central[0][0] > central[1][0] > central[2][0] > central[3][0]
    assert central[0][1] < 0.9  # of 8 significant bits nothing is left at so small a step
    assert cosines["RGE, forward", 0.005][0] < central[0][0]  # 12 random directions in 12 dimensions
    for row in check.figures["rows"]:
        assert row["cosines"][2] == pytest.approx(row["cosines"][0], abs=0.01)  # one loss, asked in two ways
        assert row["queries"] == (24 if "central" in row["estimator"] else 13)


def test_the_epoch_check_counts_the_queries_of_its_steps(done: Place) -> None:
    epochs = {check.name: check for check in done.checks if check.check == "epoch"}
    released, live = epochs[RELEASED].figures, epochs[LIVE].figures
    assert released["queries"] == 2 * 192 * released["batch"]
    assert live["batch"] < live["queries"] < 193 * live["batch"]
    for check in epochs.values():
        assert check.figures["seconds"] > 0
        assert check.figures["raw_seconds"] > 0
        assert minutes_an_epoch(check) == pytest.approx(check.figures["seconds"] * 25_000 / 60)


# --------------------------------------------------------------------------------------------------------------- time


class Ticking:
    """A clock on which every look takes a while."""

    def __init__(self, step: float) -> None:
        self.step, self.time = step, 0.0

    def __call__(self) -> float:
        self.time += self.step
        return self.time


def test_without_time_nothing_runs(tmp_path: Path, data: Path) -> None:
    assert Place(tmp_path, data).run(Deadline(0), "")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_item_that_cannot_go_on_needs_all_its_time(tmp_path: Path, data: Path) -> None:
    ran: list[str] = []
    suite, deadline = Suite(EXPERIMENTS), Deadline(60)
    queue = Queue(suite, tmp_path, Workshop(suite, data, tmp_path, deadline.bar, "cpu"))
    items = [gpu_queue.Item(f"{s} {r}", s, "cifar10", r, lambda s=s, r=r: ran.append(f"{s} {r}") or "")
             for s, r in ((900, False), (900, True), (30, False))]  # fmt: skip
    queue.remaining = lambda: items  # pyright: ignore[reportAttributeAccessIssue]
    queue.run(deadline)
    assert ran == ["900 True", "30 False"]


def test_stopped_again_and_again_it_ends_with_the_same_row(tmp_path: Path, data: Path, done: Place) -> None:
    place, calls, stopped_at = Place(tmp_path, data), 0, []
    while not place.rows:
        assert place.run(Deadline(20, Ticking(3)), ROW)  # five reports, and time is up
        calls += 1
        stopped_at.append(len(list(place.work.glob("defense-*/training/checkpoint.safetensors"))))
        assert calls < 10
    assert calls > 2
    assert stopped_at[0] == 1  # in the middle of the defense
    assert told(place.rows[0]) == told(done.rows[0])


# ------------------------------------------------------------------------------------------------------ from elsewhere


def test_packed_and_unpacked_it_is_the_same(tmp_path: Path, done: Place) -> None:
    there = Place(tmp_path, done.data)
    (archive,) = gpu_pack.pack(tmp_path / "out.tar", done.folder, done.models, done.work, "gpu")
    stages = sorted(path.name for path in done.models.iterdir())
    assert gpu_pack.unpack(archive, there.folder, there.models) == (4, len(stages))  # three checks and a row
    assert (there.rows, there.checks) == (done.rows, done.checks)
    for path in done.models.rglob("*.*"):
        if path.is_file():
            assert (there.models / path.relative_to(done.models)).read_bytes() == path.read_bytes()
    assert gpu_pack.unpack(archive, there.folder, there.models) == (0, 0)
    assert (there.rows, there.checks) == (done.rows, done.checks)
    assert sorted(path.name for path in there.models.iterdir()) == stages


def test_only_rows_of_the_scale_are_packed(tmp_path: Path, done: Place) -> None:
    results = Results(tmp_path / "mixed")
    for row in (replace(done.rows[0], scale="cpu"), done.rows[0]):
        results.append(row)
    (archive,) = gpu_pack.pack(tmp_path / "out.tar", tmp_path / "mixed", tmp_path / "none", tmp_path / "none", "gpu")
    assert gpu_pack.unpack(archive, tmp_path / "there", tmp_path / "models") == (1, 0)
    assert Results(tmp_path / "there").read("table2") == done.rows


def test_kept_stages_are_not_trained_again(tmp_path: Path, done: Place) -> None:
    place = Place(tmp_path, done.data)
    place.models = done.models
    assert place.run(Deadline(1000), ROW)
    assert not list(place.work.rglob("training"))
    assert told(place.rows[0]) == told(done.rows[0])
    assert place.rows[0].seconds["defense"] == done.rows[0].seconds["defense"]  # as it was when it was trained
    assert not list(gpu_pack.finished(place.work))  # so that a pack holds what was made here alone


def test_a_large_pack_comes_in_parts(tmp_path: Path, done: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_pack, "PART", 1 << 20)
    parts = gpu_pack.pack(tmp_path / "out.tar", done.folder, done.models, done.work, "gpu")
    assert [path.name for path in parts[:2]] == ["out.tar", "out-2.tar"]
    members = []
    for path in parts:
        with tarfile.open(path) as archive:
            members.append({name.rsplit("/", 1)[0] for name in archive.getnames() if name.startswith("models/")})
    assert sum(map(len, members)) == len(set.union(*members)) == len(list(done.models.iterdir()))  # stages stay whole
    there = Place(tmp_path, done.data)
    merged = [gpu_pack.unpack(path, there.folder, there.models) for path in parts]
    assert [sum(counts) for counts in zip(*merged, strict=True)] == [4, len(list(done.models.iterdir()))]


def test_a_file_that_is_too_large_is_not_kept(tmp_path: Path, done: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = max(path.stat().st_size for path in done.work.glob("autoencoder-*/*.safetensors"))
    monkeypatch.setattr(gpu_pack, "LARGEST", largest - 1)
    refused = gpu_pack.publish(done.work, tmp_path / "models")
    kept = {path.name for path in (tmp_path / "models").iterdir()}
    assert {name.split("-")[0] for name in refused} == {"autoencoder", "defense"}  # a defense holds an autoencoder
    assert kept.isdisjoint(refused)
    assert kept | set(refused) == {path.name for path in done.models.iterdir()}


def test_an_unfinished_stage_is_not_kept(tmp_path: Path) -> None:
    folder = tmp_path / "work" / "defense-0123456789abcdef"
    folder.mkdir(parents=True)
    for name in gpu_pack.STAGES["defense"][:-2]:
        (folder / name).write_text("{}")
    assert gpu_pack.publish(tmp_path / "work", tmp_path / "models") == []
    assert not (tmp_path / "models").exists()


def plain(name: str) -> tarfile.TarInfo:
    return tarfile.TarInfo(name)


def link(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return member


@pytest.mark.parametrize(
    "member",
    [
        plain("/experiments/gpu.jsonl"),
        plain("../experiments/gpu.jsonl"),
        plain("models/../../evil.json"),
        plain("models/box-0123456789abcdef/../evil.json"),
        plain("models/box-0123456789abcdef/evil.py"),
        plain("experiments/setups.yaml"),
        link("models/box-0123456789abcdef/network.safetensors"),
    ],
    ids=lambda member: member.name,
)
def test_a_strange_member_is_refused_and_nothing_merged(member: tarfile.TarInfo, tmp_path: Path, done: Place) -> None:
    (good,) = gpu_pack.pack(tmp_path / "out.tar", done.folder, done.models, done.work, "gpu")
    with tarfile.open(good, "a") as archive:
        archive.addfile(member, io.BytesIO())
    with pytest.raises(InvalidInput, match="wanted a file that"):
        gpu_pack.unpack(good, tmp_path / "there" / "experiments", tmp_path / "there" / "models")
    assert not (tmp_path / "there").exists()


def test_rows_name_no_other_file(tmp_path: Path, done: Place) -> None:
    line = json.dumps(asdict(replace(done.rows[0], table="../../evil"))).encode() + b"\n"
    member = plain("experiments/measured/table2.jsonl")
    member.size = len(line)
    with tarfile.open(tmp_path / "out.tar", "w") as archive:
        archive.addfile(member, io.BytesIO(line))
    with pytest.raises(UnreadableFile, match=r"line 1: the row is of \.\./\.\./evil, wanted table2"):
        gpu_pack.unpack(tmp_path / "out.tar", tmp_path / "a" / "b" / "c", tmp_path / "models")
    assert [path.name for path in tmp_path.iterdir()] == ["out.tar"]


def test_what_is_no_tar_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "out.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(UnreadableFile, match=r"out\.tar cannot be read as a tar: .*; fetch it again") as caught:
        gpu_pack.unpack(tmp_path / "out.tar", tmp_path, tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UnreadableFile, match=r"cannot be read as a tar: .*No such file") as caught:
        gpu_pack.unpack(tmp_path / "missing.tar", tmp_path, tmp_path)
    assert "\n" not in str(caught.value)


def test_rows_that_contradict_each_other_are_refused(tmp_path: Path, done: Place) -> None:
    """Two rows of one plan and seed with other values: merged, they would make every table of the suite unreadable."""
    results = Results(tmp_path / "two")
    for row in (done.rows[0], replace(done.rows[0], table="table4", values={"reach": [None, None]})):
        results.append(row)
    (archive,) = gpu_pack.pack(tmp_path / "out.tar", tmp_path / "two", tmp_path / "none", tmp_path / "none", "gpu")
    with pytest.raises(UnreadableFile, match="with other values"):
        gpu_pack.unpack(archive, tmp_path / "there", tmp_path / "models")
    assert not (tmp_path / "there").exists()


def test_a_dry_run_is_tiny_at_every_scale() -> None:
    """However large the data set is, no stage of any row sees more than a few of its images."""
    suite = Suite(EXPERIMENTS)
    for table in suite.tables.values():
        for row in table.rows:
            for plan in map(tiny, row.plans.values()):
                assert (plan.box.images, plan.autoencoder.images) == (16, 16)
                assert plan.attack or plan.box.arguments["num_classes"] == 10  # which 16 images need not show
                assert (plan.data.train, plan.data.validation, plan.data.test) == (12, 8, 2)
                assert all(phase.epochs == 1 for part in (plan.box, plan.autoencoder) for phase in part.phases)


def test_without_anything_to_do_it_says_how_to_use_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_queue.main(["--tiny", "--device", "cpu", "--only", "precision"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("usage: ")


def test_the_script_runs_packs_and_says_what_it_lacks(
    tmp_path: Path, data: Path, done: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = [
        "--experiments",
        str(EXPERIMENTS),
        "--work",
        str(tmp_path / "work"),
        "--data",
        str(data),
    ]
    dry = [*shared, "--tiny", "--device", "cpu", "--seconds", "100", "--models", str(done.models)]
    assert gpu_queue.main([*dry, "--only", BARE, "--pack", str(tmp_path / "out.tar")]) == 0
    assert f"{BARE}: certified" in capsys.readouterr().out
    assert gpu_queue.main([*dry, "--only", "table3 / bare model"]) == 0
    assert "left out: there is no stl10 below --data" in capsys.readouterr().out
    assert (
        gpu_queue.main([*shared, "--tiny", "--unpack", str(tmp_path / "out.tar"), "--work", str(tmp_path / "b")]) == 0
    )
    assert "1 rows and 0 stages were new" in capsys.readouterr().out
    assert [row.row for row in Results(tmp_path / "b" / "experiments").read("table2")] == ["bare model"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu_queue.main([*shared, "--seconds", "100"]) == 2
    assert capsys.readouterr().err.startswith("error: wanted --data DIR and a CUDA device")


# --------------------------------------------------------------------------------------------------------- RESULTS.md

PRECISION = Check(
    check="precision",
    name="resnet110",
    device="cuda",
    tiny=False,
    data="cifar10-jpeg",
    figures={
        "images": 32,
        "coordinates": 192,
        "columns": ["float32", "TF32"],
        "rows": [
            {"estimator": "CGE, central", "mu": 0.005, "queries": 384, "cosines": [0.9996, 0.0512]},
            {"estimator": "RGE, forward", "mu": 0.5, "queries": 193, "cosines": [0.7, -0.01]},
        ],
    },
    hardware="NVIDIA H100",
    versions={"torch": "2.11.0"},
    date="2026-01-02",
    command="python tools/gpu_queue.py --seconds 600",
)
EPOCH = replace(
    PRECISION,
    check="epoch",
    name=RELEASED,
    figures={
        **{"batch": 256, "warm_ups": 3, "steps": 20, "seconds": 4.454, "queries": 98304.0},
        **{"raw_seconds": 3.5632, "raw_batch": 1024, "raw_layout": "contiguous"},
    },
)


def written(folder: Path, *checks: Check) -> Path:
    for check in checks:
        append_check(folder / "gpu.jsonl", check)
    return folder / "gpu.jsonl"


def test_the_section_says_what_was_measured(tmp_path: Path) -> None:
    text = section(written(tmp_path, PRECISION, EPOCH))
    assert NOTHING not in text
    assert (
        """\
Box **resnet110** on **cifar10-jpeg**, 32 images, 192 coordinates.

| estimator | μ | queries an image | float32 | TF32 |
| --- | ---: | ---: | ---: | ---: |
| CGE, central | 0.005 | 384 | 1.000 | 0.051 |
| RGE, forward | 0.5 | 193 | 0.700 | -0.010 |

<sub>resnet110: NVIDIA H100, torch 2.11.0, 2026-01-02: `python tools/gpu_queue.py --seconds 600`</sub>
"""
        in text
    )
    # 50,000 images are 195.3 steps of 4.454 s: 14.5 minutes, half of the paper's 29; a raw pass takes 0.8 of a step.
    assert (
        """\
| ZO-AE-DS with | queries a step | seconds a step | minutes an epoch | of the paper's 29 | of raw |
| --- | ---: | ---: | ---: | ---: | ---: |
| central differences, every coordinate (NVIDIA H100, 20 steps of 256) | 98,304 | 4.45 | **14.5** | 0.50 × | 1.25 × |
"""
        in text
    )


@pytest.mark.parametrize(
    "changed",
    [lambda check: replace(check, device="cpu"), lambda check: replace(check, tiny=True)],
    ids=["on a CPU", "a dry run"],
)
def test_no_other_measurement_is_shown(changed: Callable[[Check], Check], tmp_path: Path) -> None:
    text = section(written(tmp_path, changed(PRECISION), changed(EPOCH)))
    assert text == section(tmp_path / "missing.jsonl")
    assert text.count(NOTHING) == 2
    assert "H100" not in text


def test_the_last_line_of_a_kind_stands(tmp_path: Path) -> None:
    slower = replace(EPOCH, figures={**EPOCH.figures, "seconds": 8.908})
    assert section(written(tmp_path, EPOCH, slower)) == section(written(tmp_path / "alone", slower))
    elsewhere = section(written(tmp_path, replace(EPOCH, hardware="NVIDIA H200")))
    assert "**29.0**" in elsewhere
    assert "**14.5**" in elsewhere  # another machine's line does not replace it


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, EPOCH)
    path.write_text(path.read_text() + '{"check": "epoch"}\n')
    with pytest.raises(UnreadableFile, match="line 2: the fields are not those of a check"):
        section(path)

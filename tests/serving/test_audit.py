"""The audit log: every line follows from its votes, and a line that was changed is refused by its number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from certibox.certification.certificate import Certificate, Prediction
from certibox.certification.images import image_digest
from certibox.certification.noise import NEWEST
from certibox.certification.sampling import Sampling
from certibox.confidence.ranks import RankVerification
from certibox.confidence.sequential import EProcess
from certibox.errors import UnreadableFile
from certibox.serving.audit import AuditLog, Entry, check_seeds, is_audit, now, read_audit, seed_of
from gateways import SIGMA, Bright, images_of, smoothed_of

KEY = bytes(range(32))


def entries() -> list[Entry]:
    smoothed = smoothed_of(Bright())
    made: list[Certificate | Prediction] = []
    for grey in (0.05, 0.5, 0.9):
        x = images_of(grey)[0]
        seed = seed_of(KEY, image_digest(x))
        rule = EProcess(radii=(SIGMA / 2, SIGMA))
        made.append(smoothed.certify(x, sampling=Sampling(25, 300, 0.001, rule, spent=True), seed=seed))
        made.append(smoothed.predict(x, n=200, n0=5, alpha=0.001, seed=seed, rule=RankVerification(), stream=NEWEST))
    images = [image_digest(images_of(grey)[0]) for grey in (0.05, 0.05, 0.5, 0.5, 0.9, 0.9)]
    return [
        Entry(now(), f"r{i}", "shop" if i % 2 else None, i, image, one.queries + i, smoothed.model_id, one)
        for i, (image, one) in enumerate(zip(images, made, strict=True))
    ]


def test_entries_are_read_back_as_they_were(tmp_path: Path) -> None:
    path, written = tmp_path / "audit.jsonl", entries()
    AuditLog(path).add(written[:4])
    with path.open("a") as file:
        file.write('{"time": "2026-01-01", "requ')  # torn by a crash
    AuditLog(path).add(written[4:])
    assert read_audit(path) == written
    assert is_audit(path)
    assert (path.stat().st_mode & 0o777) == 0o600
    check_seeds(written, written_key(tmp_path), path)
    assert {entry.found.label for entry in written} == {0, None, 2}


def written_key(folder: Path, key: bytes = KEY) -> Path:
    (folder / "noise.key").write_bytes(key)
    return folder / "noise.key"


def test_seeds_of_another_key_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match=r"line 1: its seed is not the one"):
        check_seeds(entries(), written_key(tmp_path, bytes(32)), "audit.jsonl")
    one, other = seed_of(KEY, "a" * 64), seed_of(KEY, "b" * 64)
    assert one != other != seed_of(bytes(32), "b" * 64)
    assert 0 <= min(one, other) <= max(one, other) < 2**63


FALSE: list[tuple[str, str, Any]] = [
    ("certificate", "predict", 1),
    ("certificate", "radius", 0.6),
    ("certificate", "p_lower", 0.99),
    ("certificate", "alpha", 0.01),
    ("certificate", "sigma", 0.5),
    ("certificate", "counts", [300, 0, 0]),
    ("certificate", "queries", 5),
    ("certificate", "looks", [[21, 21]]),
    ("certificate", "selected", 2),
    ("certificate", "more", 1),
    ("prediction", "label", 1),
    ("prediction", "p_value", 0.0),
    ("prediction", "counts", [200, 0, 0]),
    ("prediction", "first", [5, 5, 5]),
    ("prediction", "alpha", 1e-9),
    ("prediction", "n", 7),
    ("prediction", "queries", 3),
    ("prediction", "rule", None),
    ("prediction", "more", 1),
    ("", "asked", 3),
    ("", "asked", "3"),
    ("", "more", 3),
]


@pytest.mark.parametrize(("part", "name", "value"), FALSE, ids=lambda value: str(value)[:20])
def test_a_line_that_was_changed_is_refused(part: str, name: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    AuditLog(path).add(entries())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    number = next(i for i, line in enumerate(lines) if not part or part in line)
    place = lines[number][part] if part else lines[number]
    assert place.get(name, ...) != value
    place[name] = value
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UnreadableFile, match=rf"line {number + 1} does not hold"):
        read_audit(path)

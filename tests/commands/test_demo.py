"""The demo at its smallest: every step runs, its queries are those of the plan, and a second run pays for nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import certibox as cb
from certibox.cli import main
from certibox.commands import demo
from certibox.queries.ledger import Ledger
from certibox.records.certificates import read_rows

IMAGES = 6
TRAINING, VALIDATION = demo.QUICK_TRAINING, 297  # digits: scikit-learn's have so many for validation


def spent(out: Path) -> dict[str, int]:
    ledger = Ledger(out / "ledger.sqlite")
    try:
        return ledger.by_phase()
    finally:
        ledger.close()


def planned(s: demo.Settings, estimator: cb.GradientEstimator) -> int:
    schedule = cb.one_cycle(s.epochs, batch_size=64, denoise_epochs=s.denoise_epochs)
    images = TRAINING + VALIDATION
    cost = cb.plan(
        method="ZO-AE-DS",
        estimator=estimator,
        schedule=schedule,
        train_images=images,
        validation=VALIDATION / images,
        d_z=s.d_z,
    )
    return cost.total


def test_a_quick_demo_goes_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, s = tmp_path / "demo", demo.settings(quick=True)
    line = ["demo", "--quick", "true", "--images", str(IMAGES), "--out", str(out)]
    assert main(line) == 0
    printed = capsys.readouterr().out
    assert demo.QUICK_NOTE in printed
    folders = [out / "baselines" / name for name in ("bare", "mse-denoiser", "rge", "cge")]
    for folder in (*folders, out):
        assert [row.queries for row in read_rows(folder / "certificates.jsonl")] == [s.n0 + s.n] * IMAGES
        assert (folder / "certificates.tsv").is_file()
    for name in ("report.html", "digits.png", "defense/defense.safetensors"):
        assert (out / name).stat().st_size > 0
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert len(summary["rows"]) == 5
    assert summary["notes"] == [demo.QUICK_NOTE]

    phases = spent(out)
    assert phases["train ZO-AE-DS (RGE)"] == planned(s, cb.RGE(q=s.d_z, mu=s.mu))
    assert phases["train ZO-AE-DS (CGE)"] <= planned(s, cb.CGE(mu=s.mu))  # dead coordinates cost nothing
    assert phases["train ZO-AE-DS (Guided)"] == planned(s, cb.Guided(mu=s.mu))  # too short a run for corrections
    assert sum(count for name, count in phases.items() if name.startswith("certify")) == 5 * IMAGES * (s.n0 + s.n)
    assert main(line) == 0
    assert spent(out) == phases


def test_the_quick_settings_are_the_others_with_less() -> None:
    usual, quick = (vars(demo.settings(quick=quick)) for quick in (False, True))
    changed = {name for name in usual if usual[name] != quick[name]}
    assert changed == {"denoise_epochs", "epochs", "autoencoder_epochs", "depth", "width", "n0", "n"}
    assert all(quick[name] < usual[name] for name in changed)


def test_a_demo_of_no_images_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--images", "0"]) == 2
    assert "images is 0; wanted at least 1 held-out digit" in capsys.readouterr().err

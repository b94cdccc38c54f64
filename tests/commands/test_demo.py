"""The demo at its smallest: every step runs, its queries are those of the plan, and a second run pays for nothing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import certibox as cb
from certibox import report
from certibox.blackbox import as_blackbox
from certibox.certification.sampling import ALPHA
from certibox.cli import main
from certibox.commands import demo
from certibox.commands.options import RuleOptions
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
    printed, progress = capsys.readouterr()
    assert demo.QUICK_NOTE in printed
    assert all(text in printed for text in demo.LEGEND)
    assert printed.rstrip().endswith(f"the report is {out / 'report.html'}")
    folders = [out / name for name in ("baselines/bare", "baselines/free-denoiser", ".")]
    rows = [read_rows(folder / "certificates.jsonl") for folder in folders]
    for folder, certified in zip(folders, rows, strict=True):
        assert [row.decided for row in certified] == [tuple(demo.radii(s))] * IMAGES
        assert [row.n0 for row in certified] == [s.n0] * IMAGES
        assert max(row.n for row in certified) <= s.n
        assert (folder / "certificates.tsv").is_file()
    for name in ("report.html", "digits.png", "defense/defense.safetensors"):
        assert (out / name).stat().st_size > 0
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert len(summary["rows"]) == len(summary["legend"]) - 1 == 3

    phases = spent(out)
    assert phases["train ZO-AE-DS (Guided)"] == planned(s, demo.guided(s))
    assert summary["rows"][-1]["training_queries"] == planned(s, demo.guided(s))
    certified = sum(row.queries for table in rows for row in table)
    assert sum(count for name, count in phases.items() if name.startswith("certify")) == certified
    # A pipe gets a line for each stage, with the queries of that stage alone.
    (told,) = (text for text in progress.splitlines() if text.startswith("certify (c)"))
    assert f" {sum(row.queries for row in rows[-1]):,} queries," in told
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


def test_the_demo_certifies_as_certify_does_by_default() -> None:
    s, usual = demo.settings(), RuleOptions()
    assert (s.n0, s.n) == usual.sample_sizes()
    assert s.alpha == ALPHA
    assert demo.radii(s) == list(usual.radii_at(s.sigma))


def run_of(name: str, votes: list[list[int]], radii: list[float]) -> report.Run:
    """Certificates of images of class 0: an image with a radius is certified right, one without abstains."""
    facts = {
        "seconds": 0.0,
        "selected": 0,
        "n0": 1,
        "alpha": 0.001,
        "sigma": 0.25,
        "seed": 0,
        "model": "m",
        "version": "1",
    }
    rows = []
    for idx, (counts, radius) in enumerate(zip(votes, radii, strict=True)):
        certified = {"predict": 0, "correct": True} if radius else {"predict": None, "correct": False}
        total = sum(counts)
        more = {"label": 0, "radius": radius, "p_lower": 0.9, "counts": tuple(counts), "n": total, "queries": total + 1}
        rows.append(SimpleNamespace(idx=idx, image="0", **facts, **certified, **more))
    return report.Run(name, rows, {"train": 1000, "certify": sum(row.queries for row in rows)})


def test_the_notes_are_the_rows_in_words() -> None:
    right, wrong = [9, 1], [1, 9]
    bare = run_of("(a)", [right, wrong, wrong, wrong], [0.0, 0.0, 0.0, 0.0])
    free = run_of("(b)", [right, right, wrong, wrong], [0.3, 0.3, 0.0, 0.0])
    last = run_of("(c)", [right, right, right, wrong], [0.3, 0.3, 0.3, 0.3])
    runs = [bare, free, last]
    told = demo.clean(0.95, runs)
    assert told.startswith("clean accuracy: 95.0% for the box asked once")
    assert "(a) 25.0%, (b) 50.0%, (c) 75.0%; (c) changes it by -20.0 points" in told
    assert demo.costs(runs) == "cost of (c): 1,000 queries to train, once; then 11 a certified digit on average"
    against_bare, against_free = demo.verdicts(demo.settings(), runs)
    assert "(c) minus (a) at r = 0.25: +100.0 points" in against_bare
    assert against_bare.endswith("(c) certifies more")
    assert "+50.0 points" in against_free
    assert against_free.endswith("no difference can be told")


def test_open_shows_the_report_and_nothing_else_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(demo.webbrowser, "open", opened.append)
    rows = [run_of("(a)", [[9, 1]], [0.3]) for _ in range(3)]
    monkeypatch.setattr(demo, "train_box", lambda *_: None)
    monkeypatch.setattr(demo, "as_blackbox", lambda *_, **__: as_blackbox(lambda x: x.flatten(1), outputs="logits"))
    monkeypatch.setattr(demo, "_defended", lambda *_: (None, [0, 1, 2]))
    monkeypatch.setattr(demo, "_certified", lambda s, client, row, *_: rows[row])
    for name, value in {"accuracy_alone": 1.0, "clean": "", "costs": "", "_picture": b"", "_write": None}.items():
        monkeypatch.setattr(demo, name, lambda *_, value=value: value)
    for asked in (False, True):
        demo.run(demo.Demo(out=str(tmp_path), quick=True, open=asked))
        assert opened == [(tmp_path / "report.html").as_uri()] * asked

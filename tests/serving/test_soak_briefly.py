"""Half a minute of the soak: a gateway that is killed, before a model that fails, keeps its answers and books right."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from places import ROOT


@pytest.mark.kill
def test_a_gateway_that_is_killed_keeps_its_answers_and_its_books_right() -> None:
    command = [sys.executable, "tools/soak_gateway.py", "--tiny"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=240)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(ran.stdout)
    assert len(found["must be 0"]) >= 10
    assert not any(found["must be 0"].values())
    for name in ("answered images", "answers counted again", "kills by SIGKILL", "kills by SIGTERM", "abstentions"):
        assert found[name] > 0, name
    assert found["upstream restarts"] >= 1
    assert found["by status"].keys() & {"502", "503"}

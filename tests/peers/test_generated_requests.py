"""Requests that schemathesis generates from the OpenAPI schema of the gateway: no fault, and all keep to the schema."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from coloured import gateway
from places import PEERS


def test_no_generated_request_breaks_the_server_or_its_schema(tmp_path: Path) -> None:
    program = PEERS / "schemathesis" / "bin" / "schemathesis"
    if not program.exists():
        pytest.skip("schemathesis is not installed: tools/peers.sh makes an environment for it")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with gateway(tmp_path / "gateway") as address:
        command = [program, "run", f"http://{address}/openapi.json", "--no-color", "--seed", "1"]
        command += ["--phases", "coverage,fuzzing", "--max-examples", "50", "--report", "ndjson"]
        command += ["--report-dir", str(tmp_path / "reports")]
        # no schema can say that data must have as many numbers as the shape says, so that right data is refused too
        command += ["--exclude-checks", "positive_data_acceptance"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    counts = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert counts is not None, done.stdout[-3000:]
    assert int(counts[1]) == int(counts[2]) >= 200
    (report,) = (tmp_path / "reports").glob("*.ndjson")
    codes = re.findall(r'"status_code":\s*(\d+)', report.read_text())
    assert len(codes) >= 200
    assert {code[0] for code in codes} <= {"2", "4"}

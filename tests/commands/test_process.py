"""A whole process: Ctrl-C at any time is one line and 130, and rows outlive what cannot be printed."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from certibox.records.certificates import read_rows
from command_line import certify

# Where tests run in the background, Ctrl-C is ignored, and certibox lets it be.
START = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from certibox.commands import process
process.prepare("certify")
from certibox.cli import main
print("here", flush=True)
sys.exit(main())
"""
SLOW = "import time, box\ntime.sleep(0.2)\ndef f(x):\n    time.sleep(0.05)\n    return box.logits(x)\n"


def start(line: str, place: Path) -> subprocess.Popen[str]:
    command, env = [sys.executable, "-c", START, *shlex.split(line)], os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=place, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("delay", [0, 0.02, 0.1, 0.5, 1.0, 2.0])
def test_an_interrupt_at_any_time_is_one_line(place: Path, delay: float) -> None:
    """From the first line of certibox on; what the interpreter does before it is its own."""
    (place / "slow.py").write_text(SLOW)
    with start(certify("slow.py:f", more="--batch-size 1 --n 5000"), place) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    *progress, last = err.splitlines()
    assert process.returncode == 130
    assert last == "certibox certify: interrupted; work so far is kept, run the same command to go on"
    assert all(line.startswith("certifying ") for line in progress)


@pytest.mark.parametrize(
    ("redirected", "status"),
    [(">&-", 0), (">&- 2>&-", 0), (">/dev/full", 141), ("| true", 141), ("| cat", 0)],
)
def test_rows_outlive_what_cannot_be_printed(place: Path, redirected: str, status: int) -> None:
    command = f"{sys.executable} -m certibox.cli {certify(out='a[/b]é')} {redirected}; exit ${{PIPESTATUS[0]}}"
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run(["bash", "-c", command], cwd=place, env=env, capture_output=True, text=True)
    assert ran.returncode == status, ran.stderr
    assert len(read_rows(place / "a[/b]é" / "certificates.jsonl")) == 12
    assert "Traceback" not in ran.stderr
    assert "Exception" not in ran.stderr


def test_what_a_box_writes_to_the_descriptor_is_no_output_either(place: Path) -> None:
    (place / "m.py").write_text(
        "import box, os, threading\nos.write(1, b'raw\\n')\n"
        "def f(x):\n    os.system('echo child')\n    threading.Thread(target=print, args=('thread',)).start()\n"
        "    return box.logits(x)\n"
    )
    line = "predict --model m.py:f --outputs logits --data images.npz --sigma 1 --n 20 --limit 1 --num-classes 3"
    with start(line, place) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert [text[:7] for text in out.splitlines()] == ["here", '{"idx":']
    assert all(word in err for word in ("raw", "child", "thread"))


def test_a_thread_of_the_model_that_never_ends_does_not_keep_the_process(place: Path) -> None:
    (place / "m.py").write_text(
        "import box, threading, time\nf = box.logits\n"
        "threading.Thread(target=time.sleep, args=(300,), name='beat').start()\n"
    )
    soon = START.replace("process.prepare", "process.GRACE = 0.1\nprocess.prepare")
    command = [sys.executable, "-c", soon, *shlex.split(certify("m.py:f"))]
    ran = subprocess.run(
        command, cwd=place, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0
    assert ran.stderr.splitlines()[-1] == (
        "certibox certify: note: threads that were not certibox's did not end, and were left: beat"
    )
    assert len(read_rows(place / "out" / "certificates.jsonl")) == 12

"""Check what a release would upload: build it, read it, and install it in an empty environment with each extra.

python tools/check_release.py [--work FOLDER] [--extras NAME ...]

Packages come from the index that pip is set to, in the versions of constraints.txt. A line says what was done; the
first failure ends the check with status 1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULES = {  # extra -> a module that works with it alone
    "onnx": "onnxruntime",
    "tflite": "ai_edge_litert",
    "data": "datasets",
    "tracking": "torch.utils.tensorboard",
    "attacks": "foolbox",
    "hub": "huggingface_hub",
    "remote": "httpx2",
    "grpc": "grpc",
    "serve": "certibox.serving.asgi",
    "mlflow": "mlflow",
    "wandb": "wandb",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the release; 0 where all is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder to work in, kept; by default a temporary one")
    parser.add_argument("--extras", nargs="*", default=list(MODULES), choices=list(MODULES), help="extras to install")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        try:
            check(work, options.extras)
        except subprocess.CalledProcessError as error:
            print(f"failed: {' '.join(map(str, error.cmd))}\n{error.stdout}\n{error.stderr}", file=sys.stderr)
            return 1
    return 0


def check(work: Path, extras: Sequence[str]) -> None:
    """Build, read, install and run.

    Args:
        work: Folder for the build and the environments.
        extras: Extras to install on top.
    """
    tools = environment(work / "tools")
    pip(tools, "build", "twine")
    run(tools, "-m", "build", "--outdir", work / "dist", ROOT)
    built = sorted((work / "dist").iterdir())
    wheel = next(path for path in built if path.suffix == ".whl")
    run(tools, "-m", "twine", "check", "--strict", *built)
    print(f"built and read: {', '.join(path.name for path in built)}")

    python = environment(work / "empty")
    pip(python, "torch")  # by its pin, before a resolver looks for other builds
    pip(python, str(wheel))
    command = python.with_name("certibox")
    said = run(command, "--version").strip()
    if PROJECT["version"] not in said:
        raise SystemExit(f"certibox --version said {said!r}; wanted {PROJECT['version']}")
    run(command, "demo", "--quick", "true", "--out", work / "demo")
    print(f"installed in an empty environment: {said}, and the quick demo ended")
    for extra in extras:
        pip(python, f"{wheel}[{extra}]")
        run(python, "-c", f"import certibox, {MODULES[extra]}")
        print(f"installed with [{extra}]: imports {MODULES[extra]}")


def environment(folder: Path) -> Path:
    """The Python of a new, empty environment.

    Args:
        folder: Folder of the environment.
    """
    venv.create(folder, with_pip=True, clear=True)
    return folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"


def pip(python: Path, *packages: str) -> None:
    """Install packages in the versions of constraints.txt.

    Args:
        python: Python of the environment.
        packages: Packages as pip takes them.
    """
    run(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", *packages)


def run(program: Path, *arguments: object) -> str:
    """What a program prints.

    Args:
        program: Program of an environment.
        arguments: Arguments of the call.
    """
    command = [str(program), *map(str, arguments)]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # nothing from a source tree
    return subprocess.run(command, check=True, capture_output=True, text=True, env=alone).stdout


if __name__ == "__main__":
    sys.exit(main())

"""Models that the command line names: found, told apart, and unable to change how certibox computes."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import certibox.commands.identity
from certibox.commands.models import load_model
from certibox.errors import InvalidInput
from certibox.seeds.switches import default_device

FORMS = """
class Net:
    def __init__(self):
        self.inner = self
    def __call__(self, images):
        return images
    def predict(self, images):
        return images
class Wants:
    def __init__(self, weights):
        pass
net = Net()
def logits(images):
    return images
"""


@pytest.mark.parametrize("name", ["logits", "net", "net.predict", "net.inner.predict", "Net", "Net.predict"])
def test_functions_objects_methods_and_classes_are_found(place: Path, name: str) -> None:
    Path("forms.py").write_text(FORMS)
    model, identity = load_model(f"forms.py:{name}")
    assert model("images") == "images"
    assert identity


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("logit", "has no 'logit'; wanted .* logits; did you mean logits"),
        ("net.predit", "has no 'net.predit'"),
        ("Wants", "class Wants of forms.py:Wants.*'weights'"),
        ("net()", "wanted file.py:function"),
    ],
)
def test_a_name_that_is_none_is_answered_with_those_there_are(place: Path, name: str, words: str) -> None:
    Path("forms.py").write_text(FORMS)
    with pytest.raises(InvalidInput, match=words):
        load_model(f"forms.py:{name}")


def test_the_identity_changes_with_the_file_its_neighbours_and_what_it_reads(place: Path) -> None:
    def identity() -> str | None:
        sys.modules.pop("neighbour_of_this_test", None)
        return load_model("reads.py:f")[1]

    Path("weights.txt").write_text("1")
    Path("neighbour_of_this_test.py").write_text("x = 1\n")
    Path("reads.py").write_text(
        "import neighbour_of_this_test\nfrom pathlib import Path\nw = Path('weights.txt').read_text()\n"
        "with Path('log').open('a') as log:\n    log.write('.')\ndef f(x): ...\n"
    )
    seen = [identity()]
    assert identity() == seen[0]  # what it writes is not what it is
    for name, text in (("weights.txt", "2"), ("neighbour_of_this_test.py", "x = 22\n"), ("box.py", "# not imported\n")):
        Path(name).write_text(text)
        seen.append(identity())
    Path("reads.py").write_text(Path("reads.py").read_text() + "# repaired\n")
    seen.append(identity())
    assert len(set(seen)) == 4
    assert seen[2] == seen[3]


@pytest.mark.parametrize(
    "body",
    [
        "def f(x): return np.load('weights.npy')",  # when it is asked
        "f = below_python(str(Path(__file__).parent / 'folder' / 'weights.onnx'))",  # where no hook sees it
        "class f:\n  def __init__(self): self.w = Path('weights.txt').read_text()",  # when it is built
    ],
)
def test_the_identity_changes_with_weights_however_they_are_read(place: Path, body: str) -> None:
    Path("folder").mkdir()
    Path("reads.py").write_text(
        f"import numpy as np\nfrom pathlib import Path\nclass below_python:\n  def __init__(self, x): pass\n{body}\n"
    )
    seen = []
    for text in ("1", "1", "2"):
        for name in ("weights.npy", "weights.txt", "folder/weights.onnx"):
            Path(name).write_text(text)
        Path("rows.jsonl").write_text(text)  # named nowhere
        seen.append(load_model("reads.py:f")[1])
    assert seen[0] == seen[1] != seen[2]


def test_the_identity_of_a_module_holds_its_package_wherever_that_lies(
    place: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path_factory.mktemp("elsewhere") / "package_of_this_test"
    package.mkdir()
    monkeypatch.syspath_prepend(package.parent)
    (package / "__init__.py").touch()
    (package / "models.py").write_text("from package_of_this_test.core import f\n")

    def identity() -> str | None:
        for name in [name for name in sys.modules if name.startswith(package.name)]:
            del sys.modules[name]
        return load_model(f"{package.name}.models:f")[1]

    (package / "core.py").write_text("def f(x): return x\n")
    first = identity()
    assert identity() == first  # from bytecode that Python kept, say
    (package / "core.py").write_text("def f(x): return -x\n")
    assert identity() != first


BOXES = {
    "a function": "def f(x): return {sign}box.logits(x)",
    "a box": "import certibox as cb\nf = cb.as_blackbox(lambda x: {sign}box.logits(x), outputs='logits', name='mine')",
    "an object of the protocol": "import torch\nfrom certibox.blackbox import BoxSpec\nclass f:\n"
    "  spec = property(lambda self: BoxSpec('logits', name='mine'))\n"
    "  def __call__(self, x): return {sign}torch.from_numpy(box.logits(x.numpy()))",
}


@pytest.mark.parametrize("kind", BOXES)
def test_a_repaired_model_does_not_go_on_with_the_rows_of_the_old_one(place: Path, run, refused, kind: str) -> None:
    line = "certify --model m.py:f --outputs logits --data images.npz --rule fixed --n0 5 --n 20 --alpha .1 --sigma 1"
    Path("m.py").write_text("import box\n" + BOXES[kind].format(sign=""))
    assert run(f"{line} --out o").status == 0
    Path("m.py").write_text("import box\n" + BOXES[kind].format(sign="-"))
    refused(f"{line} --out o", "another model: model is 'bare:m")


def test_the_identity_changes_with_what_a_function_imports_when_it_is_asked(place: Path) -> None:
    (place / "m.py").write_text(
        "def f(x):\n    from folder.late_helper_of_this_test import scale\n    return scale * x\n"
    )
    (place / "folder").mkdir()
    seen = set()
    for scale in ("1", "-1"):
        (place / "folder" / "late_helper_of_this_test.py").write_text(f"scale = {scale}\n")
        seen.add(load_model("m.py:f")[1])
    assert len(seen) == 2


def test_weights_of_the_same_name_elsewhere_change_no_identity(place: Path) -> None:
    (place / "m.py").write_text("def f(x):\n    return open('w.bin', 'rb').read(), 'models'\n")
    for folder, kept in (("notes", True), (".", False), ("models", False)):
        before = load_model("m.py:f")[1]
        (place / folder).mkdir(exist_ok=True)
        (place / folder / "w.bin").write_bytes(folder.encode())
        assert (load_model("m.py:f")[1] == before) is kept


def test_the_identity_of_a_large_file_is_of_pieces_all_over_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LARGEST", 100), ("PIECES", 11), ("PIECE", 10)):
        monkeypatch.setattr(certibox.commands.identity, name, value)
    (place / "m.py").write_text("from pathlib import Path\nPath('w.bin').read_bytes()\ndef f(x): ...\n")
    content = bytearray(1090)  # pieces begin at 0, 108, ... 1080
    seen = set()
    for at in (0, 108, 1089, 50):
        changed = content.copy()
        changed[at] = 1
        (place / "w.bin").write_bytes(changed)
        certibox.commands.identity._READ.clear()
        seen.add(load_model("m.py:f")[1])
    assert len(seen) == 4  # the first three, and the last, which lies in no piece
    (place / "w.bin").write_bytes(content)
    assert load_model("m.py:f")[1] in seen
    (place / "w.bin").write_bytes(content + b"0")
    assert load_model("m.py:f")[1] not in seen


def test_what_a_model_file_sets_is_set_back(place: Path) -> None:
    Path("sets.py").write_text(
        "import os, sys, random, signal, logging, warnings\nimport numpy as np, torch\n"
        "os.chdir('/'); sys.stdout = None; random.seed(1); np.random.seed(1); torch.manual_seed(1)\n"
        "np.seterr(all='raise'); torch.set_default_dtype(torch.float64); torch.set_grad_enabled(False)\n"
        "torch.set_default_device('meta'); torch.set_num_threads(7); logging.disable(50)\n"
        "logging.root.addHandler(logging.NullHandler()); warnings.simplefilter('ignore')\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\ndef f(x): ...\n"
    )

    def settings() -> list[object]:
        return [
            os.getcwd(), sys.stdout, np.geterr(), torch.get_default_dtype(), torch.is_grad_enabled(),
            default_device(), torch.get_num_threads(), logging.root.manager.disable,
            logging.root.handlers[:], warnings.filters[:], signal.getsignal(signal.SIGINT),
            torch.get_rng_state().tolist(), random.getstate(),
        ]  # fmt: skip

    before = settings()
    load_model("sets.py:f")
    assert settings() == before


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise KeyError('a\\nb')", ["KeyError"]),
        ("class E(BaseException): pass\nraise E('own')", ["cannot be imported: E: own"]),
        ("class M:\n  @property\n  def spec(self): raise RuntimeError('shy')\nf = M()", ["RuntimeError", "shy"]),
        ("class M:\n  def __getattr__(self, name): raise RuntimeError('shy')\nf = M()", ["RuntimeError", "shy"]),
        ("class f:\n  def __init__(self): raise SystemExit(0)", ["class f", "SystemExit"]),
    ],
)
def test_a_model_that_raises_while_it_is_looked_at_is_one_line(
    place: Path, refused, body: str, words: list[str]
) -> None:
    Path("m.py").write_text(f"{body}\n")
    refused("predict --model m.py:f --outputs logits --data images.npz --sigma 1", "m.py", *words)


def test_a_box_that_ends_the_process_is_the_box_s_failure(place: Path, refused) -> None:
    Path("m.py").write_text("import sys\ndef f(x): sys.exit(0)\n")
    for command in ("predict", "certify --out o"):
        refused(f"{command} --model m.py:f --outputs logits --data images.npz --sigma 1", "SystemExit", status=4)


def test_what_a_box_prints_is_not_what_predict_prints(place: Path, run) -> None:
    Path("m.py").write_text(
        "import box, sys\nprint('imported')\n"
        "def f(x):\n    print('asked')\n    sys.stdout.write('again')\n    return box.logits(x)\n"
    )
    ran = run("predict --model m.py:f --outputs logits --data images.npz --sigma 1 --n 20")
    assert ran.status == 0
    assert [line[:7] for line in ran.out.splitlines()] == ['{"idx":'] * 12
    assert "imported" in ran.err
    assert "asked" in ran.err

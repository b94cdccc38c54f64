"""Models that go wrong, each a few lines of Python: what `bad_input.py` puts behind `certibox certify`.

A model is a snippet that defines `box`; `scores` is a (n, 3) float32 array of logits, `chances` their softmax and `classes`
their argmax. What it answers is declared by `outputs`, and `good` says whether certibox should take it: None where either
is right.
"""

from __future__ import annotations

from dataclasses import dataclass

HEAD = """
import sys, os, threading, warnings, decimal, fractions, datetime, functools, contextlib
import numpy as np
import certibox

WEIGHTS = np.cos(np.arange(48) * 0.9).reshape(16, 3).astype(np.float32) * 3

def scores_of(images):
    return np.asarray(images, dtype=np.float32).reshape(len(images), -1) @ WEIGHTS

def chances_of(images):
    powers = np.exp(scores_of(images) - scores_of(images).max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
"""


@dataclass(frozen=True)
class Box:
    """One model."""

    name: str
    source: str
    outputs: str
    good: bool | None
    more: str = ""


def _answering(expression: str) -> str:
    return (
        "def box(images):\n    n = len(images)\n    scores, chances = scores_of(images), chances_of(images)\n"
        f"    classes = scores.argmax(1)\n    return {expression}\n"
    )


# What a function answers: (expression, good as logits); None where either is right.
ANSWERS: tuple[tuple[str, bool | None], ...] = (
    ("scores", True),
    ("scores.astype('>f4')", True),
    ("scores.astype('<f8')", True),
    ("scores.astype(np.float16)", True),
    ("scores.astype(np.longdouble)", True),
    ("scores.astype(object)", True),
    ("[[decimal.Decimal(float(v)) for v in row] for row in scores]", True),
    ("[[fractions.Fraction(float(v)) for v in row] for row in scores]", True),
    ("np.round(scores * 10).astype(np.int8)", True),
    ("np.round(scores * 10).astype(np.int64).tolist()", True),
    ("[row for row in scores]", True),
    ("tuple(tuple(float(v) for v in row) for row in scores)", True),
    ("np.asfortranarray(scores)", True),
    ("scores[:, ::-1][:, ::-1]", True),
    ("np.ma.array(scores)", True),
    ("np.matrix(scores)", True),
    ("__import__('pandas').DataFrame(scores)", True),
    ("__import__('scipy.sparse').sparse.csr_matrix(scores)", True),
    ("__import__('torch').tensor(scores)", True),
    ("__import__('torch').tensor(scores).bfloat16()", True),
    ("__import__('torch').tensor(scores).to_sparse()", None),
    ("__import__('torch').tensor(scores).requires_grad_()", True),
    ("memoryview(scores)", None),
    ("np.ma.array(scores, mask=True)", False),
    ("None", False),
    ("'scores'", False),
    ("b'scores'", False),
    ("object()", False),
    ("{'logits': scores}", False),
    ("{0: scores, 1: scores}", False),
    ("(scores, scores)", False),
    ("(s for s in scores)", False),
    ("set(classes.tolist())", False),
    ("lambda: scores", False),
    ("scores_of", False),
    ("3", False),
    ("3.5", False),
    ("True", False),
    ("[]", False),
    ("[[1.0, 2.0], [3.0]]", False),
    ("[['a', 'b', 'c']] * n", False),
    ("[[None, None, None]] * n", False),
    ("[[1j, 2j, 3j]] * n", False),
    ("scores.astype(complex)", False),
    ("scores.astype('U8')", False),
    ("np.full((n, 3), np.datetime64('2020-01-01'))", False),
    ("np.full((n, 3), np.timedelta64(1, 's'))", False),
    ("np.zeros(n, dtype=[('a', 'f4'), ('b', 'f4')])", False),
    ("np.full((n, 3), np.nan)", False),
    ("np.full((n, 3), np.inf)", False),
    ("np.where(np.arange(3) == 1, -np.inf, scores)", False),
    ("np.full((n, 3), 1e300)", None),
    ("np.full((n, 3), 10 ** 400, dtype=object)", False),
    ("scores[:-1]", False),
    ("scores[:1]", None),
    ("np.concatenate([scores, scores])", False),
    ("scores.T", None),
    ("scores[:, :0]", False),
    ("scores[:0]", False),
    ("scores[:, :1]", None),
    ("scores[:, 0]", None),
    ("scores[..., None]", False),
    ("scores[None]", False),
    ("scores.sum()", False),
    ("np.float32(1)", False),
    ("np.random.default_rng().normal(size=(n, 3))", None),
    ("np.zeros((n, 3))", None),
    ("np.concatenate([scores] * 1000, axis=1)", None),
)
# What a function answers as probabilities, beside what is no answer at all.
CHANCES: tuple[tuple[str, bool | None], ...] = (
    ("chances", True),
    ("np.round(chances, 2)", True),
    ("np.round(chances, 3).tolist()", True),
    ("1 / (1 + np.exp(-scores))", False),
    ("np.log(chances)", False),
    ("scores", False),
    ("np.minimum(chances, 1) + np.float32(1e-7) * (chances > 0.5)", True),
    ("chances * 100", False),
    ("chances - 0.1", False),
    ("chances * 0.5", False),
    ("np.full((n, 3), np.nan)", False),
    ("(chances * 255).astype(np.uint8)", False),
    ("chances.max(1)", None),
    ("classes", False),
    ("None", False),
    ("{'a': 0.2, 'b': 0.8}", False),
    ("chances[:-1]", False),
)
TWO = "--data binary.npz --num-classes 2"  # for models of one score an image, which are of two classes
OTHERS = ("--data binary.npz --num-classes 2", "--num-classes 4")  # than the three that the model answers for
SCORE = ("1 / (1 + np.exp(-scores[:, 0]))", "1 / (1 + np.exp(-scores[:, :1]))")
LABELS: tuple[tuple[str, bool | None], ...] = (
    ("classes", True),
    ("classes.astype(np.uint8)", True),
    ("classes.astype(float)", True),
    ("classes.tolist()", True),
    ("[str(c) for c in classes]", False),
    ("classes[:, None]", True),
    ("classes > 0", True),
    ("classes + 0.5", False),
    ("classes + 3", False),
    ("classes - 5", False),
    ("classes.astype('U')", False),
    ("classes[:-1]", False),
    ("scores", False),
    ("chances", False),
    ("None", False),
    ("classes * 1j", False),
    ("np.full(n, np.nan)", False),
    ("np.full(n, 2 ** 63, dtype=np.uint64)", False),
    ("list(map(decimal.Decimal, classes.tolist()))", True),
    ("np.eye(3)[classes]", False),
)
# What a function raises; all of it is the box's failure, but for an interruption.
RAISED = (
    "RuntimeError('down')",
    "RuntimeError('two\\nlines')",
    "RuntimeError('[/b] [red]markup[/red] \\x1b[31mred\\x1b[0m \\x07')",
    "RuntimeError('x' * 100000)",
    "RuntimeError('https://user:secret@host/?token=secret')",
    "KeyError('scores')",
    "ValueError()",
    "IndexError('list index out of range')",
    "AssertionError()",
    "StopIteration()",
    "GeneratorExit()",
    "SystemExit(0)",
    "SystemExit(1)",
    "SystemExit('bye')",
    "MemoryError()",
    "RecursionError()",
    "TimeoutError('no answer in 30 s')",
    "ConnectionResetError(104, 'reset')",
    "OSError(28, 'No space left on device')",
    "BrokenPipeError(32, 'Broken pipe')",
    "UnicodeDecodeError('utf-8', b'\\xff', 0, 1, 'bad')",
    "NotImplementedError()",
    "ZeroDivisionError()",
    "Warning('a warning')",
    "type('Odd', (BaseException,), {})('odd')",
    "type('Mute', (Exception,), {'__str__': lambda self: 1 / 0})()",
    "ExceptionGroup('several', [ValueError(1), KeyError(2)])",
    "certibox.errors.NotAnswered('busy')",
    "certibox.errors.InvalidInput('mine')",
    "certibox.errors.BudgetExceeded(1, 2)",
)
# Whole files: (name, source, outputs, good).
FILES: tuple[tuple[str, str, str, bool | None], ...] = (
    ("empty file", "", "logits", False),
    ("syntax error", "def box(:\n", "logits", False),
    ("null byte", "box = 1\n\x00", "logits", False),
    ("no such name", "def bix(images):\n    return scores_of(images)\n", "logits", False),
    ("raises at import", "raise RuntimeError('no licence')\n", "logits", False),
    ("exits at import", "sys.exit(0)\n", "logits", False),
    ("odd exception at import", "raise type('Odd', (BaseException,), {})('odd')\n", "logits", False),
    ("import of nothing", "import there_is_no_such_module\n", "logits", False),
    ("endless recursion", "def box(images):\n    return box(images)\n", "logits", False),
    ("recursion at import", "def f():\n    return f()\nf()\n", "logits", False),
    ("a number", "box = 3\n", "logits", False),
    ("a text", "box = 'scores'\n", "logits", False),
    ("a module", "import math as box\n", "logits", False),
    ("none", "box = None\n", "logits", False),
    (
        "a class to build",
        "class box:\n    def __call__(self, images):\n        return scores_of(images)\n",
        "logits",
        True,
    ),
    ("a class that wants more", "class box:\n    def __init__(self, path):\n        pass\n", "logits", False),
    ("a class that cannot be called", "class box:\n    pass\n", "logits", False),
    ("a class that raises", "class box:\n    def __init__(self):\n        raise OSError('gone')\n", "logits", False),
    ("async", "async def box(images):\n    return scores_of(images)\n", "logits", False),
    ("generator", "def box(images):\n    yield from scores_of(images)\n", "logits", False),
    ("no parameter", "def box():\n    return 1\n", "logits", False),
    ("two parameters", "def box(images, more):\n    return scores_of(images)\n", "logits", False),
    ("prints", "def box(images):\n    print('hello')\n    return scores_of(images)\n", "logits", True),
    ("prints at import", "print('hello')\ndef box(images):\n    return scores_of(images)\n", "logits", True),
    ("writes to fd 1", "def box(images):\n    os.write(1, b'x')\n    return scores_of(images)\n", "logits", True),
    ("closes stdout", "def box(images):\n    sys.stdout.close()\n    return scores_of(images)\n", "logits", None),
    ("warns", "def box(images):\n    warnings.warn('old')\n    return scores_of(images)\n", "logits", True),
    (
        "warnings are errors",
        "warnings.simplefilter('error')\ndef box(images):\n    return scores_of(images)\n",
        "logits",
        True,
    ),
    (
        "no gradients",
        "import torch\ntorch.set_grad_enabled(False)\ndef box(images):\n    return scores_of(images)\n",
        "logits",
        True,
    ),
    (
        "doubles",
        "import torch\ntorch.set_default_dtype(torch.float64)\ndef box(images):\n    return scores_of(images)\n",
        "logits",
        True,
    ),
    (
        "another device",
        "import torch\ntorch.set_default_device('meta')\ndef box(images):\n    return scores_of(images)\n",
        "logits",
        True,
    ),
    (
        "deterministic",
        "import torch\ntorch.use_deterministic_algorithms(True)\ndef box(images):\n    return scores_of(images)\n",
        "logits",
        True,
    ),
    (
        "floating point errors",
        "np.seterr(all='raise')\ndef box(images):\n    return scores_of(images)\n",
        "logits",
        True,
    ),
    (
        "another folder at each call",
        "def box(images):\n    os.makedirs('below', exist_ok=True)\n    os.chdir('below')\n    return scores_of(images)\n",
        "logits",
        True,
    ),
    ("another folder", "os.chdir('..')\ndef box(images):\n    return scores_of(images)\n", "logits", None),
    (
        "another recursion limit",
        "sys.setrecursionlimit(120)\ndef box(images):\n    return scores_of(images)\n",
        "logits",
        None,
    ),
    ("no modules", "sys.path.clear()\ndef box(images):\n    return scores_of(images)\n", "logits", None),
    (
        "changes the images",
        "def box(images):\n    images[:] = np.nan\n    return np.zeros((len(images), 3))\n",
        "logits",
        None,
    ),
    (
        "one buffer",
        "BUFFER = np.zeros((5000, 3), np.float32)\ndef box(images):\n    BUFFER[:len(images)] = scores_of(images)\n"
        "    return BUFFER[:len(images)]\n",
        "logits",
        True,
    ),
    (
        "another K later",
        "CALLS = []\ndef box(images):\n    CALLS.append(1)\n"
        "    return np.concatenate([scores_of(images)] * (1 + (len(CALLS) > 3)), axis=1)\n",
        "logits",
        False,
    ),
    (
        "nan later",
        "CALLS = []\ndef box(images):\n    CALLS.append(1)\n"
        "    return scores_of(images) * (np.nan if len(CALLS) > 3 else 1)\n",
        "logits",
        False,
    ),
    (
        "depends on the batch",
        "def box(images):\n    x = images - images.mean(axis=0)\n    return scores_of(x / (x.std() + 1e-3))\n",
        "logits",
        True,
    ),
    (
        "a property that raises",
        "class T:\n    @property\n    def spec(self):\n        1 / 0\n    def __call__(self, x):\n        return x\nbox = T()\n",
        "logits",
        None,
    ),
    (
        "a spec of its own",
        "class T:\n    spec = 3\n    def __call__(self, x):\n        return scores_of(x)\nbox = T()\n",
        "logits",
        None,
    ),
    (
        "a getattr that raises",
        "class T:\n    def __getattr__(self, name):\n        raise RuntimeError(name)\n    def __call__(self, x):\n        return scores_of(x)\nbox = T()\n",
        "logits",
        None,
    ),
    (
        "a repr that raises",
        "class T:\n    def __repr__(self):\n        raise RuntimeError('no')\nbox = T()\n",
        "logits",
        False,
    ),
    ("partial", "box = functools.partial(lambda k, images: k * scores_of(images), 2)\n", "logits", True),
    ("lambda", "box = lambda images: scores_of(images)\n", "logits", True),
    ("method", "class T:\n    def go(self, images):\n        return scores_of(images)\nbox = T().go\n", "logits", True),
    (
        "threads",
        "def box(images):\n    out = []\n    t = threading.Thread(target=lambda: out.append(scores_of(images)))\n    t.start(); t.join()\n    return out[0]\n",
        "logits",
        True,
    ),
    (
        "wants NHWC of three channels",
        "def box(images):\n    assert images.shape[-1] == 3, images.shape\n    return scores_of(images)\n",
        "logits",
        False,
    ),
)
_TORCH = "import torch\nfrom torch import nn\ntorch.manual_seed(0)\n"
MODULES: tuple[tuple[str, str, str, bool | None, str], ...] = (
    ("linear", "box = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))\n", "logits", True, ""),
    (
        "in training mode",
        "box = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 3)).train()\n",
        "logits",
        True,
        "",
    ),
    ("half precision", "box = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).half()\n", "logits", None, ""),
    ("bfloat16", "box = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).bfloat16()\n", "logits", True, ""),
    ("double", "box = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()\n", "logits", True, ""),
    ("on meta", "box = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).to('meta')\n", "logits", False, ""),
    ("lazy", "box = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))\n", "logits", False, ""),
    ("another size", "box = nn.Sequential(nn.Flatten(), nn.Linear(15, 3))\n", "logits", False, ""),
    (
        "three channels",
        "box = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3))\n",
        "logits",
        False,
        "",
    ),
    (
        "weights of NaN",
        "box = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))\nbox[1].weight.data.fill_(float('nan'))\n",
        "logits",
        False,
        "",
    ),
    (
        "softmax as probabilities",
        "box = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Softmax(1))\n",
        "probabilities",
        True,
        "",
    ),
    ("softmax as logits", "box = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Softmax(1))\n", "logits", True, ""),
    (
        "log-softmax as probabilities",
        "box = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.LogSoftmax(1))\n",
        "probabilities",
        False,
        "",
    ),
    (
        "sigmoid of one",
        "box = nn.Sequential(nn.Flatten(), nn.Linear(16, 1), nn.Sigmoid())\n",
        "probabilities",
        True,
        TWO,
    ),
    ("one logit", "box = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))\n", "logits", True, TWO),
    (
        "a dictionary",
        "class M(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.l = nn.Linear(16, 3)\n    def forward(self, x):\n        return {'logits': self.l(x.flatten(1))}\nbox = M()\n",
        "logits",
        False,
        "",
    ),
    (
        "a dictionary with its key",
        "class M(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.l = nn.Linear(16, 3)\n    def forward(self, x):\n        return {'logits': self.l(x.flatten(1))}\nbox = M()\n",
        "logits",
        True,
        "--output-key logits",
    ),
    (
        "a tuple with its place",
        "class M(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.l = nn.Linear(16, 3)\n    def forward(self, x):\n        return None, self.l(x.flatten(1))\nbox = M()\n",
        "logits",
        True,
        "--output-key 1",
    ),
    (
        "a key that is not there",
        "box = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))\n",
        "logits",
        False,
        "--output-key logits",
    ),
    (
        "train that raises",
        "class M(nn.Sequential):\n    def train(self, mode=True):\n        raise NotImplementedError('frozen')\nbox = M(nn.Flatten(), nn.Linear(16, 3))\n",
        "logits",
        None,
        "",
    ),
    (
        "scripted",
        "box = torch.jit.trace(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.zeros(2, 1, 4, 4))\n",
        "logits",
        None,
        "",
    ),
    (
        "exported",
        "box = torch.export.export(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval(), (torch.zeros(2, 1, 4, 4),), dynamic_shapes=({0: torch.export.Dim('n')},))\n",
        "logits",
        None,
        "",
    ),
    (
        "exported module",
        "box = torch.export.export(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval(), (torch.zeros(2, 1, 4, 4),), dynamic_shapes=({0: torch.export.Dim('n')},)).module()\n",
        "logits",
        True,
        "",
    ),
    (
        "int8",
        "box = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), {nn.Linear}, dtype=torch.qint8)\n",
        "logits",
        None,
        "",
    ),
    (
        "a class of modules",
        "class box(nn.Sequential):\n    def __init__(self):\n        super().__init__(nn.Flatten(), nn.Linear(16, 3))\n",
        "logits",
        True,
        "",
    ),
    ("no layers", "box = nn.Sequential()\n", "logits", False, ""),
    ("not a forward", "class M(nn.Module):\n    pass\nbox = M()\n", "logits", False, ""),
)
_SKLEARN = (
    "import sklearn\nfrom sklearn.linear_model import *\nfrom sklearn.ensemble import *\nfrom sklearn.svm import *\n"
    "from sklearn.neighbors import *\nfrom sklearn.pipeline import *\nfrom sklearn.preprocessing import *\n"
    "from sklearn.multioutput import *\nX = np.random.RandomState(0).rand(60, 16)\ny = np.arange(60) % 3\n"
)
ESTIMATORS: tuple[tuple[str, str, str, bool | None], ...] = (
    ("logistic", "box = LogisticRegression().fit(X, y)\n", "probabilities", True),
    ("forest", "box = RandomForestClassifier(5, random_state=0).fit(X, y)\n", "probabilities", True),
    ("pipeline", "box = make_pipeline(StandardScaler(), SVC(probability=False)).fit(X, y)\n", "logits", True),
    ("neighbours", "box = KNeighborsClassifier(3).fit(X, y)\n", "labels", True),
    ("not fitted", "box = LogisticRegression()\n", "probabilities", False),
    ("a regressor", "box = LinearRegression().fit(X, y)\n", "probabilities", False),
    ("another number of features", "box = LogisticRegression().fit(X[:, :9], y)\n", "probabilities", False),
    (
        "named columns",
        "import pandas\nbox = LogisticRegression().fit(pandas.DataFrame(X, columns=[f'p{i}' for i in range(16)]), y)\n",
        "probabilities",
        True,
    ),
    ("named classes", "box = LogisticRegression().fit(X, np.array(['a', 'b', 'c'])[y])\n", "labels", True),
    ("two outputs", "box = RandomForestClassifier(5).fit(X, np.stack([y, y], 1))\n", "probabilities", False),
    ("one against one", "box = SVC(decision_function_shape='ovo').fit(X, y)\n", "logits", None),
    ("two classes", "box = LogisticRegression().fit(X, y > 0)\n", "logits", None),
    ("one class", "box = KNeighborsClassifier(3).fit(X, y * 0)\n", "labels", False),
    ("wrong kind", "box = LinearSVC().fit(X, y)\n", "probabilities", False),
)


def boxes() -> list[Box]:
    """All models, each with a name of its own."""
    found = [Box(f"answers {text}", _answering(text), "logits", good) for text, good in ANSWERS]
    found += [Box(f"chances {text}", _answering(text), "probabilities", good) for text, good in CHANCES]
    found += [Box(f"chances {text}", _answering(text), "probabilities", True, TWO) for text in SCORE]
    found += [Box(f"scores for {more}", _answering("scores"), "logits", False, more) for more in OTHERS]
    found += [Box(f"labels {text}", _answering(text), "labels", good) for text, good in LABELS]
    found += [Box(f"raises {text}", f"def box(images):\n    raise {text}\n", "logits", False) for text in RAISED]
    found += [Box(f"file: {name}", source, kind, good) for name, source, kind, good in FILES]
    found += [Box(f"module: {name}", _TORCH + source, kind, good, more) for name, source, kind, good, more in MODULES]
    return found + [Box(f"estimator: {name}", _SKLEARN + source, kind, good) for name, source, kind, good in ESTIMATORS]

r"""A black box as a user brings one: a function from a batch of images to answers. certibox learns nothing else of it.

    certibox train --model examples/box.py:predict --outputs probabilities \
        --config examples/digits.yaml --out runs/example

Replace the body of `predict` by whatever reaches your model: a call to an endpoint, a command, another framework.
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

_DIGITS = load_digits()
_MODEL = LogisticRegression(C=0.1, max_iter=1000).fit(_DIGITS.data[:1000] / 16.0, _DIGITS.target[:1000])


def predict(images: np.ndarray) -> np.ndarray:
    """Class probabilities (n, 10) of images (n, 1, 8, 8), float32 pixels on [0, 1]."""
    return _MODEL.predict_proba(images.reshape(len(images), -1))

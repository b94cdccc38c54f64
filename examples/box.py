r"""A black box as a user brings one: a function from a batch of images to answers. certibox learns nothing else of it.

    certibox train --model examples/box.py:predict --outputs probabilities \
        --config examples/digits.yaml --out runs/example

Replace the body of `predict` by whatever reaches your model: a call to an endpoint, a command, another framework.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression

import certibox as cb

_DIGITS = cb.load_images("digits", split="train")  # its owner's images; those of split "test" it has never seen
_MODEL = LogisticRegression(max_iter=2000).fit(_DIGITS.floats().flatten(1).numpy(), _DIGITS.labels.numpy())


def predict(images: np.ndarray) -> np.ndarray:
    """Class probabilities (n, 10) of images (n, 1, 8, 8), float32 pixels, clipped to [0, 1]."""
    return _MODEL.predict_proba(images.reshape(len(images), -1))

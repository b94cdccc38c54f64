"""The perceptron of the studies of digits, and the settings that validation images chose for it.

The studies share this box: the most accurate of six perceptrons on clean validation images. `SETTINGS` has the largest
average certified radius of the rows in studies/results/perceptron_settings.jsonl, which were measured on validation
images with ZO-AE-DS (CGE), one setting varied after the other. `certibox demo` has a box and settings of its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.neural_network import MLPClassifier

from certibox.commands.demo import Settings
from certibox.data import Images

RESULTS = Path(__file__).parent / "results" / "perceptron_settings.jsonl"
HIDDEN = ((64,), (128,), (128, 64))  # layers of the perceptrons that the box is chosen from
SETTINGS = Settings(
    sigma=0.25,
    gamma=1.0,
    mu=0.2,
    d_z=32,
    denoise_epochs=30,
    epochs=15,
    lr=0.001,
    autoencoder_epochs=60,
    depth=8,
    width=32,
    reconstruction_weight=1.0,
    n0=100,
    n=1000,
    alpha=0.001,
)


def train_box(train: Images, validation: Images) -> tuple[MLPClassifier, float]:
    """The box, of a small grid of perceptrons the most accurate on clean validation images, and that accuracy."""
    x, y = train.floats().flatten(1).numpy(), train.labels
    held, labels = validation.floats().flatten(1).numpy(), validation.labels
    assert y is not None
    assert labels is not None
    grid = [(hidden, penalty) for hidden in HIDDEN for penalty in (1e-4, 1e-1)]
    models = [
        MLPClassifier(hidden, alpha=penalty, max_iter=1000, random_state=0).fit(x, y.numpy())
        for hidden, penalty in grid
    ]
    scores = [float(model.score(held, labels.numpy())) for model in models]
    best = int(np.argmax(scores))
    return models[best], scores[best]

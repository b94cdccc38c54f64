"""Draw docs/images/perturbation.png: digits, and the same digits changed by perturbations of l2 norm 0.25.

python tools/draw_perturbation.py [--out FILE]

Three columns of the first two test digits: as they are; with Gaussian noise scaled to the norm; and with the change of
that norm which costs a logistic regression most, straight towards the nearest of its other classes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

import certibox as cb
from certibox import report, seeds

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "perturbation.png"
NORM, COUNT = 0.25, 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PICTURE, help="file of the picture")
    out = parser.parse_args(arguments).out
    out.parent.mkdir(parents=True, exist_ok=True)
    report.plot_images({name: x.clip(0, 1) for name, x in rows().items()}, out)


def rows() -> dict[str, np.ndarray]:
    """Images (2, 1, 8, 8) by the name of their column; changes have the norm before pixels are clipped."""
    train, test = cb.load_images("digits", "train"), cb.load_images("digits", "test")
    assert train.labels is not None
    model = LogisticRegression(max_iter=2000).fit(train.floats().flatten(1).numpy(), train.labels.numpy())
    x = test.floats(slice(0, COUNT)).numpy()
    noise = torch.randn(x.shape, generator=seeds.generator(0, "perturbation")).numpy()
    return {"clean": x, "random": x + scaled(noise), "worst": x + scaled(towards_nearest(model, x))}


def towards_nearest(model: LogisticRegression, x: np.ndarray) -> np.ndarray:
    """(n, c, h, w): for each image the normal of the nearest boundary of its class, pointing across."""
    flat = x.reshape(len(x), -1)
    scores, weight = model.decision_function(flat), model.coef_
    directions = []
    for values in scores:
        top = int(np.argmax(values))
        others = [k for k in range(len(values)) if k != top]
        nearest = min(others, key=lambda k: (values[top] - values[k]) / np.linalg.norm(weight[top] - weight[k]))
        directions.append(weight[nearest] - weight[top])
    return np.array(directions).reshape(x.shape)


def scaled(change: np.ndarray) -> np.ndarray:
    """Changes (n, c, h, w), each scaled to the norm."""
    norms = np.sqrt(np.square(change).sum((1, 2, 3), keepdims=True))
    return change * (NORM / norms)


if __name__ == "__main__":
    main()

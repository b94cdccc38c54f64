"""The picture of perturbations: changes have the norm that it claims, and one leads across the nearest boundary."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import draw_perturbation


def test_every_change_has_the_norm() -> None:
    rows = draw_perturbation.rows()
    clean = rows.pop("clean")
    assert rows.keys() == {"random", "worst"}
    for changed in rows.values():
        norms = np.sqrt(np.square(changed - clean).sum((1, 2, 3)))
        np.testing.assert_allclose(norms, draw_perturbation.NORM, rtol=1e-5)


def test_the_worst_change_leads_straight_to_the_nearest_boundary() -> None:
    model = LogisticRegression()
    model.classes_ = np.arange(3)
    model.coef_, model.intercept_ = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), np.array([1.0, 0.0, 0.0])
    # Class 0 at the origin: the boundary to class 1 is at x = 1/2, that to class 2 at y = 1.
    direction = draw_perturbation.towards_nearest(model, np.zeros((1, 1, 1, 2)))
    np.testing.assert_allclose(direction.ravel(), [2.0, 0.0])


def test_the_committed_picture_is_what_the_script_draws(tmp_path: Path) -> None:
    import matplotlib
    from matplotlib import image

    pinned = re.search(r"^matplotlib==(\S+)", (Path(__file__).parents[2] / "constraints.txt").read_text(), re.M)
    assert pinned
    if matplotlib.__version__ != pinned[1]:
        pytest.skip(f"the picture was drawn by matplotlib {pinned[1]}; others set the letters otherwise")
    draw_perturbation.main(["--out", str(tmp_path / "drawn.png")])
    drawn, kept = (image.imread(path) for path in (tmp_path / "drawn.png", draw_perturbation.PICTURE))
    assert drawn.shape == kept.shape
    assert np.abs(drawn - kept).max() == pytest.approx(0.0, abs=0.02)

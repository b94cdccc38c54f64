"""Gradient estimates from function values alone.

Every linear estimator is one tableau: directions u_i and weights w_i with E Σ w_i u_i u_iᵀ = I, fed to the one finite
difference of this module:

    RGE         u uniform on the unit sphere            w = d/q     relative squared error (d − 1)/q
    Orthogonal  u random and orthonormal, q <= d        w = d/q     (d − q)/q, so exact at q = d
    CGE         u = e_1 ... e_d                         w = 1       exact

each up to the curvature term of the difference: O(μ) forward, O(μ²) central. Sources: Zhang et al. ICLR 2022, eq. 3
and 4; Liu et al. 2020 for the errors.

An objective maps k variants of b points, (k, b, d), to losses (k, b). Where `live` says that only some coordinates
matter, estimators move only along those, and call `objective(points, active)` with a mask (k, b) of the points that
are wanted: the rest need no query and may return anything finite.

`Guided` starts from a guess instead of nothing: the gradient of a surrogate that has learned from the answers so far.
The same finite difference then measures what the guess gets wrong.
"""

from certibox.estimators.autograd import estimated_loss
from certibox.estimators.differences import Block, GradientEstimator, Objective, Step, finite_difference
from certibox.estimators.guided import Alignment, Guided, GuidedObjective, alignment, corrections, guessed_gradient
from certibox.estimators.linear import CGE, RGE, Orthogonal, Subset
from certibox.estimators.table import ESTIMATORS, build_estimator, estimator_record, require_estimator

__all__ = [
    "CGE",
    "ESTIMATORS",
    "RGE",
    "Alignment",
    "Block",
    "GradientEstimator",
    "Guided",
    "GuidedObjective",
    "Objective",
    "Orthogonal",
    "Step",
    "Subset",
    "alignment",
    "build_estimator",
    "corrections",
    "estimated_loss",
    "estimator_record",
    "finite_difference",
    "guessed_gradient",
    "require_estimator",
]

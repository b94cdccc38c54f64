"""Image reconstruction from compressed measurements: the box, the ℓ2 attack on it and the errors of what it answers.

The regression task of Zhang et al., "How to Robustify Black-Box ML Models?", ICLR 2022, section 5.3. ε, σ and the
bounds of the attack are in the units of the network's scaled input. Where the paper is silent, the protocol is that of
its released code.
"""

from __future__ import annotations

from certibox.reconstruction.attacks import THREATS, Attack, Model, l2_pgd
from certibox.reconstruction.evaluation import ReconstructionRow, defended_output, evaluate, reconstruct
from certibox.reconstruction.measurements import SCALE_HIGH, SCALE_LOW, Measurement, measured, train_reconstructor
from certibox.reconstruction.metrics import rmse, ssim

__all__ = [
    "SCALE_HIGH",
    "SCALE_LOW",
    "THREATS",
    "Attack",
    "Measurement",
    "Model",
    "ReconstructionRow",
    "defended_output",
    "evaluate",
    "l2_pgd",
    "measured",
    "reconstruct",
    "rmse",
    "ssim",
    "train_reconstructor",
]

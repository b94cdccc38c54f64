"""What votes prove: exact bounds, radii and stopping rules. NumPy and SciPy; no torch.

- `binomial`: Clopper–Pearson bounds, intervals and p-values;
- `gaussian`: the law of the noise, radius of a probability and back;
- `bootstrap`: paired differences;
- `stopping`: what a stopping rule is, ours or a stranger's;
- `sequential`: the stopping rules of certibox; `looks`: what they say of their looks;
- `ranks`: whether votes prove that a class is the likeliest, without a radius;
- `recorded`: rules in certificates, and their decisions replayed from the looks;
- `forecast`: what a rule is expected to take and to prove.
"""

from __future__ import annotations

from certibox.confidence.binomial import check_alpha, interval, lower_confidence_bound, two_sided_p_value
from certibox.confidence.bootstrap import paired_bootstrap
from certibox.confidence.gaussian import Gaussian, NoiseLaw, radius, second_class_radius, smallest_n, threshold
from certibox.confidence.ranks import RankVerification
from certibox.confidence.sequential import AlphaSpending, EProcess, Rule
from certibox.confidence.stopping import AnyLevelRule, Decision, StoppingRule

__all__ = [
    "AlphaSpending",
    "AnyLevelRule",
    "Decision",
    "EProcess",
    "Gaussian",
    "NoiseLaw",
    "RankVerification",
    "Rule",
    "StoppingRule",
    "check_alpha",
    "interval",
    "lower_confidence_bound",
    "paired_bootstrap",
    "radius",
    "second_class_radius",
    "smallest_n",
    "threshold",
    "two_sided_p_value",
]

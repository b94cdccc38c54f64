"""Every error that certibox raises on purpose.

CertiboxError                 what came, what was wanted, what to do; `exit_status` 2 at the command line
├── InvalidInput              a value, file or configuration from the user is wrong (also a ValueError)
│   ├── InvalidImages         images of a wrong shape, range or type
│   └── UnreadableFile        a file is missing, cut short or not what its name says
├── ConfigMismatch            a directory holds the work of another configuration
├── NotDifferentiable         a first-order method met a box without gradients
├── BlackBoxError             the box misbehaved
│   ├── BadOutput             an answer broke a rule: shape, finite, constant K, range
│   ├── BoxFailed             the box raised
│   └── BoxChanged            the box no longer gives the answers of its fingerprint
└── BudgetExceeded            the next query would overspend; `exit_status` 3, all work kept
"""

from __future__ import annotations


class CertiboxError(Exception):
    """Base of all deliberate errors. Its text is one line that a user can act on."""

    exit_status = 2


class InvalidInput(CertiboxError, ValueError):
    """A value, file or configuration given by the user is wrong."""


class InvalidImages(InvalidInput):
    """Images have the wrong shape, range or type."""


class UnreadableFile(InvalidInput):
    """A file is missing, cut short, or not what its name says."""


class ConfigMismatch(CertiboxError):
    """A directory to resume from was written under another configuration."""


class NotDifferentiable(CertiboxError):
    """A first-order method needs gradients that this box does not give."""


class BlackBoxError(CertiboxError):
    """The black box misbehaved."""


class BadOutput(BlackBoxError):
    """An answer of the box broke a rule; the text names the batch and the rule."""


class BoxFailed(BlackBoxError):
    """The box raised; the text names the batch, and the original error is the cause."""


class BoxChanged(BlackBoxError):
    """The box does not answer as it did when its fingerprint was taken."""


class BudgetExceeded(CertiboxError):
    """The next query would overspend the budget. Nothing was sent; all work is kept.

    Attributes: `wanted` and `left`, both in queries.
    """

    exit_status = 3

    def __init__(self, wanted: int, left: int) -> None:
        super().__init__(f"{wanted} queries wanted, {left} left in the budget; raise the budget and resume")
        self.wanted, self.left = wanted, left

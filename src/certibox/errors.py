"""Every error that certibox raises on purpose.

```text
CertiboxError                 what came, what was wanted, what to do; `exit_status` 2 at the command line
├── InvalidInput              a value, file or configuration from the user is wrong (also a ValueError)
│   ├── InvalidImages         images of a wrong shape, range or type
│   └── UnreadableFile        a file is missing, cut short or not what its name says
├── ConfigMismatch            a directory holds the work of another configuration
├── NotDifferentiable         a first-order method met a box without gradients
├── TrainingDiverged          training left the finite numbers; the box was asked about none of them
├── BlackBoxError             the box misbehaved; `exit_status` 4, all work kept
│   ├── BadOutput             an answer broke a rule: shape, finite, constant K, range
│   │   └── OtherClasses      of more or fewer classes than declared (`exit_status` 2, an InvalidInput too)
│   ├── BoxFailed             the box raised; what it was asked may have been billed, and counts as lost
│   ├── NotAnswered           raised by a box itself: it refused a batch and bills nothing
│   │   └── Overloaded        it refused for now: the client waits and asks again
│   └── BoxChanged            the box no longer answers as it did (`exit_status` 5)
└── BudgetExceeded            the next query would overspend; `exit_status` 3, all work kept
```
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

NEAR = 0.7  # similarity from which a name passes for a slip of another: a letter too many, too few or another

_KEYS = r"api[ _-]?key|access[ _-]?key|token|secret|signature|credentials?|session[ _-]?id|passw(?:or)?d|pwd"
_VALUE = r"(?:(?<=['\"])[^'\"]*|[^\s'\",;&)}\]]+)"  # up to the end of the quotation, or of the word
_COLOURS = r"\x1b\[[0-?]*[ -/]*[@-~]"  # of a terminal
_MASKED = [  # what a text from outside never shows, and what stands there instead
    (r"//[^/\s]*@", "//...@"),  # user and password of a URL
    (r"(://[^\s?]*)\?\S*", r"\1?..."),
    (r"\?[^\s?=]+=\S*", "?..."),  # of a URL without its host
    (rf"(?i)\b(authorization['\"]?\s*[:=]\s*['\"]?)(?:[a-z]+\s+)?{_VALUE}", r"\1..."),
    (r"(?i)\b(bearer\s+)[\w.~+/=-]{6,}", r"\1..."),
    (rf"(?i)((?:{_KEYS})['\"]?\s*[:=]\s*['\"]?){_VALUE}", r"\1..."),
    (rf"(?i)((?:{_KEYS}) (?:provided|given|is|was):?\s+['\"]?){_VALUE}", r"\1..."),
    (r"\b(?:sk|pk|rk|hf|gh[opsu]|glpat|xox[abprs])[-_][\w-]{16,}", "..."),  # as providers begin their keys
    (r"\b(?:AKIA|AIza|eyJ)[\w.-]{12,}", "..."),
]
_READ = 2000  # characters of a text that are looked at


class CertiboxError(Exception):
    """Base of all deliberate errors. Its text is one line that a user can act on."""

    exit_status = 2


class Notice(UserWarning):
    """Category of what certibox warns of. Commands show each text once, in a line, whatever the filters of warnings."""


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


class TrainingDiverged(CertiboxError):
    """Training left the finite numbers; the text names the step. What is not finite was never sent to the box."""


class BlackBoxError(CertiboxError):
    """The black box misbehaved. The same command, run again, goes on from the work that is kept."""

    exit_status = 4


class BadOutput(BlackBoxError):
    """An answer of the box broke a rule; the text names the batch and the rule."""


class OtherClasses(BadOutput, InvalidInput):
    """An answer is for another number of classes than `num_classes` declares: the declaration is wrong, not the box."""

    exit_status = 2


class BoxFailed(BlackBoxError):
    """The box raised; the text names the batch, and the original error is the cause."""


class NotAnswered(BlackBoxError):
    """Raised by a model's own code: it refused the batch before it computed an answer, so that nothing is billed.

    The batch is given back to the budget. After any other exception its queries count as lost, for a provider may have
    computed and billed them.
    """


class Overloaded(NotAnswered):
    """Raised by a model's own code: it cannot take the batch now, and nothing is billed. The client asks again later.

    Args:
        message: Text of the refusal.
        after: Seconds after which to ask again, as a server's Retry-After says, an attribute too; None where it says
            nothing.
    """

    def __init__(self, message: str = "", after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class BoxChanged(BlackBoxError):
    """The box does not answer as it did when its fingerprint was taken, or as another version than before."""

    exit_status = 5


class BudgetExceeded(CertiboxError):
    """The next query would overspend the budget. Nothing was sent; all work is kept.

    Args:
        wanted: Number of queries that the batch would have cost, an attribute too.
        left: Number of queries left in the budget, an attribute too.
        unit: Name of what the budget counts.
    """

    exit_status = 3

    def __init__(self, wanted: int, left: int, unit: str = "queries") -> None:
        super().__init__(f"{wanted} {unit} wanted, {left} left in the budget; raise the budget and resume")
        self.wanted, self.left = wanted, left


def one_of(came: object, known: Iterable[str]) -> str:
    """The end of a message about a name that is in no table: `one of a, b, c`, and the name that may have been meant.

    Args:
        came: The name that came.
        known: The names of the table, in its order.
    """
    names = list(known)
    return f"one of {', '.join(names)}{did_you_mean(came, names)}"


def did_you_mean(came: object, known: Iterable[str]) -> str:
    """`; did you mean a?` for a name that looks like a slip of one of `known`, whatever its case; else nothing.

    Args:
        came: The name that came.
        known: The names that would have been understood.
    """
    from difflib import get_close_matches  # on the way to an error alone

    names = {name.casefold(): name for name in known}
    near = get_close_matches(str(came).casefold(), names, n=1, cutoff=NEAR)
    return f"; did you mean {names[near[0]]}?" if near else ""


def masked(text: str) -> str:
    """A text without passwords, tokens and keys, as far as they can be told by what stands before them.

    Args:
        text: Text, of any origin.
    """
    for pattern, instead in _MASKED:
        text = re.sub(pattern, instead, text)
    return text


def described(error: BaseException) -> str:
    """An exception from outside in one line: its type, and what it says if it says anything.

    Args:
        error: Exception of any origin.
    """
    text = one_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def translated(kind: type[CertiboxError], what: str, advice: str = "") -> Iterator[None]:
    """Raise as one of our errors whatever another library raises inside the block; our own errors pass.

    Args:
        kind: Class of the error to raise.
        what: Text of what could not be done; the type and the text of the other error follow it.
        advice: Text at the end.
    """
    try:
        yield
    except CertiboxError:
        raise
    except Exception as error:  # network, access, a builder of data: no common base
        raise kind(f"{what}: {described(error)}{advice}") from error


def one_line(text: object, most: int = 300) -> str:
    """A text from outside as it may be shown: on one line, without control characters and without secrets.

    Masked are users, passwords and queries of URLs, and what follows the name of a key, a token or a password.

    Args:
        text: Text, or what `str` makes one of, such as an exception.
        most: Number of characters after which it is cut.
    """
    if isinstance(text, str) and text.isalnum() and len(text) < min(16, most):  # nothing of it could be masked
        return text
    try:
        line = str(text)[:_READ]
    except BaseException:  # an exception of somebody else may not know how to say what it is
        return "(no text)"
    line = " ".join(masked(re.sub(_COLOURS, "", line)).split())
    line = "".join(letter for letter in line if letter.isprintable())
    return line if len(line) <= most else line[: most - 3] + "..."

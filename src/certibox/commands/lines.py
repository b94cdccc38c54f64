"""Text from outside, made fit for a terminal: one line, nothing that a terminal obeys, no secret. No torch."""

from __future__ import annotations

import re
import sys

LONGEST = 2000  # characters of a line about an error; of a longer one the middle is left out

# Control characters (a tab and a line break are none here), marks that turn the direction of text around, and halves of
# characters, which no encoding can write.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SECRETS = (
    (re.compile(r"(\w{1,20}://)[^\s/@'\"]+@"), r"\1...@"),  # user and password of an address
    (re.compile(r"(\w{1,20}://[^\s?'\"]+)\?[^\s'\"]+"), r"\1?..."),  # what an address is asked with
    (re.compile(r"(?i)\b((?:proxy-)?authorization['\"]?\s*[:=]\s*)(?:['\"]?)(?:\w{1,20}\s+)?[^\s'\",;}]+"), r"\1..."),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}"), r"\1..."),
    (
        re.compile(
            r"(?i)\b([\w-]{0,40}(?:token|secret|password|passwd|api[_-]?key|access[_-]?key)['\"]?\s*[:=]\s*['\"]?)"
            r"[^\s'\",;&}]+"
        ),
        r"\1...",
    ),
    (re.compile(r"\b(sk|hf|ghp|gho|xox[bap])([_-])[A-Za-z0-9_-]{12,}"), r"\1\2..."),
)


def plain(text: str) -> str:
    """A text whose control characters are spelt out, so that no terminal obeys them.

    Args:
        text: Text, of any origin.
    """
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def masked(text: str) -> str:
    """A text without passwords, tokens and keys, as far as they can be told by what stands before them.

    Args:
        text: Text, of any origin.
    """
    for pattern, shown in _SECRETS:
        text = pattern.sub(shown, text)
    return text


def one_line(text: object) -> str:
    """A text on one line, not too long, without control characters and secrets.

    Args:
        text: Text or error, of any origin.
    """
    try:
        whole = str(text)
        if len(whole) > 4 * LONGEST:  # nothing below has to read it all
            whole = f"{whole[: 2 * LONGEST]} ... {whole[-2 * LONGEST :]}"
        line = plain(masked(" ".join(whole.split())))
    except Exception as error:  # an error of a model's own class, whose text is an error too
        line = f"a {type(text).__name__} without a text ({type(error).__name__})"
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def tell(text: str) -> None:
    """Write one line to standard error; one that is closed or full ends nothing.

    Args:
        text: Text, of any origin.
    """
    line = one_line(text)
    try:
        print(line, file=sys.stderr, flush=True)
    except UnicodeError:
        print(line.encode("ascii", "backslashreplace").decode("ascii"), file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):
        return

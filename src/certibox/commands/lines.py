"""Text from outside, made fit for a terminal: one line, nothing that a terminal obeys, no secret. No torch."""

from __future__ import annotations

import re
import sys

from certibox.errors import masked

LONGEST = 2000  # characters of a line about an error; of a longer one the middle is left out

# Control characters (a tab and a line break are none here), marks that turn the direction of text around, and halves of
# characters, which no encoding can write.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """A text whose control characters are spelt out, so that no terminal obeys them.

    Args:
        text: Text, of any origin.
    """
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


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
    except BaseException as error:  # an error of a model's own class, whose text is an error too
        line = f"a {type(text).__name__} without a text ({type(error).__name__})"
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def tell(text: str) -> None:
    """Write one line to standard error; one that is closed or full ends nothing.

    Args:
        text: Text, of any origin.
    """
    line = one_line(text)
    try:
        _write(line)
    except UnicodeError:
        _write(line.encode("ascii", "backslashreplace").decode("ascii"))
    except (OSError, ValueError, AttributeError):
        return


def _write(line: str) -> None:
    sys.stderr.write(f"{line}\n")  # not print, which is a name that a model file may have taken
    sys.stderr.flush()

"""JSON as strictly as other readers take it, bounded, with errors of one line."""

from __future__ import annotations

import json
import math
from typing import Any

LONGEST_JSON = 1 << 24  # bytes of a value; a certificate of a thousand classes has ten thousand


def is_json_lines(content: bytes) -> bool:
    """Whether a file that begins so may be one of JSON lines.

    Args:
        content: First bytes of the file.
    """
    return content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


class _Refused(ValueError):
    """JSON that Python reads and other readers do not."""


def parsed(content: bytes) -> Any:
    """The value of JSON in UTF-8, as strictly as other readers take it: each key once, no NaN and no infinity.

    Args:
        content: Bytes of one JSON value.

    Raises:
        ValueError: It is not JSON, or longer than `LONGEST_JSON`; the text is one line.
    """
    if len(content) > LONGEST_JSON:
        raise ValueError(f"{len(content):,} bytes of JSON, wanted {LONGEST_JSON:,} at most")
    try:
        text = content.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_each_key_once, parse_constant=_no_constant, parse_float=_finite)
    except (_Refused, json.JSONDecodeError):
        raise
    except UnicodeDecodeError as error:
        raise ValueError(f"no UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise ValueError("values nested too deeply") from error
    except ValueError as error:  # what Python says of it names functions, not the file's fault
        raise ValueError("a number of more digits than any reader takes") from error


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Refused(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return values


def _no_constant(name: str) -> None:
    raise _Refused(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise _Refused(f"the number {text[:20]} is too large")
    return number


def is_json(content: bytes) -> bool:
    """Whether a file that begins so may be one of JSON.

    Args:
        content: First bytes of the file.
    """
    return content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in b'{["-0123456789tfn'

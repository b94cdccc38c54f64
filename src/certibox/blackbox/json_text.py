"""JSON of tensors: floats written so that they read back to the same floats, and read as strictly as it is defined."""

from __future__ import annotations

from typing import Any

from certibox.blackbox.connection import required
from certibox.errors import BadOutput, one_line


def written(value: Any) -> bytes:
    """JSON of a value that may hold arrays; each float is the shortest text that reads back to it.

    Args:
        value: Dictionaries, lists, plain values and C-contiguous arrays.
    """
    orjson = required("orjson")
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def parsed(body: bytes, whose: str) -> Any:
    """The value of a JSON text.

    Args:
        body: Text, in UTF-8.
        whose: Who sent it, for the message of an error.

    Raises:
        BadOutput: It is something else, such as a page of HTML, a truncated text, or JSON with NaN in it.
    """
    orjson = required("orjson")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        text = body[:400].decode("utf-8", "replace").strip()
        if not text:
            came = "nothing"
        elif text.startswith("<"):
            came = "a page of HTML"
        elif any(word in body for word in (b"NaN", b"Infinity")):
            came = "NaN or Infinity, which JSON does not have"
        else:
            came = f"no JSON ({one_line(str(error), 80)}), {one_line(text, 80)!r}"
        raise BadOutput(f"{whose} answered {came}") from None

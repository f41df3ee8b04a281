"""Reads answers: their text, their JSON. Called by the kinds; whatever a model wrote comes out as plain, safe values.

Strict where clients are: JSON with a key twice, with NaN, or with half a surrogate pair is not JSON here, so that no
answer passes a check that another reader of the same bytes would see differently.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, NoReturn

MAX_TEXT_CHARS = 1_000_000
MAX_JSON_CHARS = 400_000  # reading as much takes about 30 ms, for which everything else waits
MAX_DEPTH = 100
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_SQUARE = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("]"): -1}


class NotJson(ValueError):
    """The text is not JSON; the message says why."""


def read_text(answer: Mapping[str, Any]) -> str:
    """Read the text of an answer: its content, or the text parts of it, joined; "" where there is none.

    Surrogates become U+FFFD, so the text can always be encoded.
    """
    content = answer.get("content")
    if isinstance(content, str):
        return scrub(content)
    if not isinstance(content, list | tuple):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, Mapping))
    return scrub("".join(text for text in texts if isinstance(text, str)))


def scrub(text: str) -> str:
    """Replace every surrogate by U+FFFD, one for each byte of it; what is fine is returned as it is."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass").decode(errors="replace")
    return text


def read_json(text: str) -> Any:
    """Read strict JSON.

    Raises: NotJson for bad syntax, a key twice in one object, a number that is NaN or infinite, a lone surrogate, more
    than MAX_JSON_CHARS, or nesting deeper than MAX_DEPTH.
    """
    if len(text) > MAX_JSON_CHARS:
        raise NotJson(f"longer than {MAX_JSON_CHARS:,} characters")
    if text.count("[") + text.count("{") > MAX_DEPTH and _measure_nesting(text) > MAX_DEPTH:
        raise NotJson(f"nested deeper than {MAX_DEPTH} levels")
    try:
        value = json.loads(
            text, object_pairs_hook=_read_object, parse_constant=_refuse_constant, parse_float=_read_float
        )
        if "\\u" in text or not text.isascii():
            json.dumps(value, ensure_ascii=False).encode()
    except NotJson:
        raise
    except json.JSONDecodeError as error:
        raise NotJson(f"{error.msg} at line {error.lineno} column {error.colno}") from None
    except UnicodeEncodeError:
        raise NotJson("half of a surrogate pair in a string") from None
    except ValueError:  # int() of more than 4,300 digits
        raise NotJson("a number has too many digits") from None
    return value


def _read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise NotJson(f"the key {twice[:100]!r} stands twice in one object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise NotJson(f"{name} is not JSON")


def _read_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise NotJson(f"the number {digits[:40]} is out of range")
    return value


def _measure_nesting(text: str) -> int:
    """Measure how deep brackets nest outside of strings; wrong only for what is no JSON anyway."""
    brackets = _STRING.sub("", text).encode("ascii", "ignore").translate(_SQUARE, _NO_BRACKETS)
    level = 0
    while level < 8 and (less := brackets.replace(b"[]", b"")) != brackets:  # floods of small values
        brackets, level = less, level + 1
    return level + max(accumulate(_STEPS[bracket] for bracket in brackets), default=0)

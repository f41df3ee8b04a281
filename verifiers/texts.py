"""Compares texts: brings two of them into one form, by options that a configuration sets.

Called by `exact` and `one_of`. An answer may be a megabyte, so what cannot come to the reference any more is brought
into no form: neither case folding nor NFC makes a text shorter than a quarter of what it was. NFC takes the square of
the length of a run of accents, so a text with more than MAX_MARKS on one letter, as in no language, has no form either.
"""

import unicodedata
from collections.abc import Mapping
from functools import cache
from typing import Any

import re2

from verifiers.answers import scrub

MAX_REFERENCE_CHARS = 16_384
MAX_MARKS = 30  # as in Unicode's Stream-Safe Text Format
SHORTEST = 4

REFERENCE: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": MAX_REFERENCE_CHARS}
OPTIONS: dict[str, Any] = {
    "case": {"type": "boolean", "default": True, "description": "Whether upper and lower case differ."},
    "white_space": {
        "enum": ["exact", "strip", "collapse"],
        "default": "strip",
        "description": "strip: none counts at the ends; collapse: and any run of it inside is one space.",
    },
    "nfc": {
        "type": "boolean",
        "default": True,
        "description": "Whether Unicode's ways to write one character are the same (e and an accent, or é).",
    },
}


class Form:
    """How texts are brought into one form."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._folds = not config.get("case", True)
        self._white_space = config.get("white_space", "strip")
        self._nfc = bool(config.get("nfc", True))

    def shape(self, text: str, most_chars: int = MAX_REFERENCE_CHARS) -> str | None:
        """Bring a text into the form; None where it could only be longer than `most_chars` in it, or has none."""
        if self._white_space == "strip":
            text = text.strip()
        elif self._white_space == "collapse":
            text = " ".join(text.split(None, SHORTEST * most_chars))
        if len(text) > SHORTEST * most_chars:
            return None
        if self._nfc and not text.isascii():
            text = scrub(text)
            if _find_run().search(text):
                return None
            text = unicodedata.normalize("NFC", text)
        if self._folds:
            text = text.casefold()
            if self._nfc and not text.isascii():  # folding can take composed characters apart
                text = unicodedata.normalize("NFC", text)
        return text


@cache
def _find_run() -> Any:
    return re2.compile(rf"\pM{{{MAX_MARKS + 1}}}")


def take_last_line(text: str) -> str:
    """Take the last line that has anything on it."""
    return text.rstrip().rpartition("\n")[2]


def quote(text: str) -> str:
    """Show a text in a reason: short, on one line, with nothing in it that a database refuses."""
    shown = text if len(text) <= 80 else f"{text[:80]}..."
    return repr(shown.encode(errors="replace").decode())

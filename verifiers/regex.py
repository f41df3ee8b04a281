"""The kind `regex`: the answer's text matches a pattern, in time linear in its length (RE2).

A pattern costs at most about 8 ns for each of its instructions and each byte of text. What may take longer than a
millisecond runs in a thread, since RE2 lets go of the interpreter; what may take longer than a second is not tried.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import re2

from verifiers.answers import read_text
from verifiers.base import Answer, Cause, InvalidVerifier, Request, Verdict
from verifiers.kind import Kind

MAX_BYTES = 2 * 2**20  # of a compiled pattern; RE2's own limit is four times that, and half a second to fill
MAX_STEPS = 100_000_000
MAX_STEPS_INLINE = 100_000


class RegexVerifier:
    """Compiled.

    Raises: InvalidVerifier for a pattern that RE2 refuses.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        pattern: str = config["pattern"]
        self._negate = bool(config.get("negate", False))
        options = re2.Options()
        options.log_errors = False
        options.max_mem = MAX_BYTES
        try:
            compiled = re2.compile(pattern.encode(), options)
        except re2.error as error:
            message = error.args[0].decode("utf-8", "replace") if error.args else "bad pattern"
            raise InvalidVerifier(f"regex: {message}", _find_place(pattern, message)) from None
        except UnicodeEncodeError as error:
            raise InvalidVerifier("regex: half of a surrogate pair", f"/pattern column {error.start + 1}") from None
        self._match = compiled.fullmatch if config.get("mode", "search") == "fullmatch" else compiled.search
        self._program_size = max(1, compiled._regexp.ProgramSize())  # noqa: SLF001 - the Python API does not tell

    async def verify(self, request: Request, answer: Answer, args: Mapping[str, Any]) -> Verdict:
        """Judge the answer's text."""
        text = read_text(answer).encode()
        steps = self._program_size * len(text)
        if steps > MAX_STEPS:
            reason = f"the answer is too long ({len(text)} bytes) for this pattern"
            return Verdict.abstained(reason, Cause.TOO_COSTLY)
        match = self._match(text) if steps <= MAX_STEPS_INLINE else await asyncio.to_thread(self._match, text)
        if (match is None) == self._negate:
            return Verdict.passed()
        return Verdict.failed("the pattern matches" if self._negate else "the pattern does not match")


def _find_place(pattern: str, message: str) -> str:
    """Find the column of what RE2 complains about: it ends its messages with that part of the pattern."""
    offending = message.partition(": ")[2]
    column = pattern.find(offending) if offending else len(pattern) - 1
    return f"/pattern column {column + 1}" if column >= 0 else "/pattern"


KIND = Kind(
    name="regex",
    summary="The answer's text matches a regular expression (or does not: `negate`).",
    config_schema={
        "type": "object",
        "properties": {
            "pattern": {
                "type": "string",
                "maxLength": 4096,
                "description": "In RE2's syntax: no look-around, no back-references; (?i), (?s), (?m) for flags.",
            },
            "mode": {"enum": ["search", "fullmatch"], "default": "search"},
            "negate": {"type": "boolean", "default": False, "description": "Pass where the pattern does not match."},
        },
        "required": ["pattern"],
        "additionalProperties": False,
    },
    args_schema={"type": "object", "properties": {}, "additionalProperties": False},
    compile=RegexVerifier,
)

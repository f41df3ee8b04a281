"""JSON Schema for all kinds: configurations, arguments, answers, the tools of a request.

Owns every touch of jsonschema-rs. Called by the kinds, `verifiers.kind` and `verifiers.calls`.

A schema may come from a client, so it never reaches outside itself (no `$ref` to http or files), its patterns cannot
backtrack for long, and what would take too long is refused before it starts (`verifiers.schema_cost`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import jsonschema_rs
from jsonschema_rs import FancyRegexOptions, ValidationError, ValidationErrorKind

from verifiers.base import WHOLE
from verifiers.schema_cost import MAX_WORK, count_leaves, measure, measure_depth
from verifiers.schema_references import BadSchema
from verifiers.schema_weights import BACKTRACKS

__all__ = ["BadSchema", "Flaw", "Schema", "TooCostly", "point"]

MAX_MESSAGE_CHARS = 300
_PATTERNS = FancyRegexOptions(backtrack_limit=BACKTRACKS, size_limit=2**20, dfa_size_limit=2**20)
_ENGINE_GAVE_UP = (ValidationErrorKind.BacktrackLimitExceeded, ValidationErrorKind.RegexEngineFailure)
# What these say of a value never holds more of the schema than its types, names and sizes.
_TELLS_NO_VALUE = frozenset({
    "type", "required", "additionalProperties", "unevaluatedProperties", "minLength", "maxLength", "minItems",
    "maxItems", "minProperties", "maxProperties", "uniqueItems", "format",
})  # fmt: skip


class TooCostly(Exception):
    """Judging this value by this schema could take too long: says nothing about the value."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """The first thing wrong with a value: the JSON pointer of the place, and what is wrong there.

    `tells_value`: the message may hold a value that the schema asks for (an enum, a constant, a pattern).
    """

    path: str
    message: str
    tells_value: bool


def point(path: Sequence[str | int]) -> str:
    """Render a path as a JSON pointer."""
    escaped = (str(part).replace("~", "~0").replace("/", "~1") for part in path)
    return "/" + "/".join(escaped) if path else WHOLE


def _refuse(uri: str) -> NoReturn:
    raise ValueError(f"a schema may not refer to {uri[:100]}")


class Schema:
    """A compiled JSON schema; immutable. `format` is checked, drafts 4 to 2020-12 are known by `$schema`.

    Raises: BadSchema.
    """

    def __init__(self, schema: dict[str, Any] | bool) -> None:
        self._cost = measure(schema)
        try:
            self._validator = jsonschema_rs.validator_for(
                schema, retriever=_refuse, validate_formats=True, pattern_options=_PATTERNS
            )  # fmt: skip
        except ValidationError as error:
            raise BadSchema(_shorten(error.message), point(error.instance_path)) from None
        except ValueError as error:  # too deep, a lone surrogate, not JSON
            raise BadSchema(str(error)) from None

    def find_flaw(self, value: Any, size: int = 0) -> Flaw | None:
        """Find the first thing wrong with a JSON value that was `size` characters of text; None if there is nothing.

        Raises: TooCostly, and ValueError for what is not JSON.
        """
        if self._work(value, size) > MAX_WORK:
            raise TooCostly("the answer is too large, or nested too deeply, to be checked with this schema")
        try:
            self._validator.validate(value)
        except ValidationError as error:
            if isinstance(error.kind, _ENGINE_GAVE_UP):
                raise TooCostly(f"a pattern of the schema took too long at {point(error.instance_path)}") from None
            keyword = error.kind.name
            return Flaw(point(error.instance_path), _shorten(error.message), keyword not in _TELLS_NO_VALUE)
        return None

    def _work(self, value: Any, size: int) -> int:
        depth = measure_depth(value) if self._cost.growth > 1 else 0
        bound = self._cost.work(size, depth, (size + 1) // 2)  # every leaf and what parts it from the next
        if bound <= MAX_WORK or not size:
            return bound
        return self._cost.work(size, depth, count_leaves(value))


def _shorten(message: str) -> str:
    message = message.replace("\0", "\ufffd")  # databases refuse NUL in text
    return message if len(message) <= MAX_MESSAGE_CHARS else f"{message[:MAX_MESSAGE_CHARS]}..."

"""The kind `json_schema`: the answer's text is one JSON value, as a schema says."""

import json
from collections.abc import Mapping
from typing import Any

from verifiers.answers import NotJson, read_json, read_text
from verifiers.base import Answer, Cause, InvalidVerifier, Request, Verdict
from verifiers.kind import Kind
from verifiers.schema import BadSchema, Schema, TooCostly

MAX_SCHEMA_CHARS = 128 * 1024
_FENCE = "```"
_SPACE = " \t\r\n"  # what is white space to JSON


class JsonSchemaVerifier:
    """Compiled.

    Raises: InvalidVerifier for a schema that is none.
    """

    never_waits = True

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._fenced = bool(config.get("fenced", True))
        try:
            if len(json.dumps(config["schema"], ensure_ascii=False)) > MAX_SCHEMA_CHARS:
                raise BadSchema(f"the schema is longer than {MAX_SCHEMA_CHARS:,} characters")
            self._schema = Schema(config["schema"])
        except RecursionError:
            raise InvalidVerifier("json_schema: the schema is nested too deeply", "/schema") from None
        except BadSchema as error:
            where = "" if error.where == "(root)" else error.where
            raise InvalidVerifier(f"json_schema: {error.message}", f"/schema{where}") from None

    async def verify(self, request: Request, answer: Answer, args: Mapping[str, Any]) -> Verdict:
        """Judge the answer's text."""
        text = read_text(answer).strip(_SPACE)
        text = _unfence(text) if self._fenced else text
        if not text:
            return Verdict.failed("the answer is empty", safe_for_model=True)
        try:
            flaw = self._schema.find_flaw(read_json(text), len(text))
        except NotJson as error:
            return Verdict.failed(f"the answer is not JSON: {error}", safe_for_model=True)
        except (TooCostly, ValueError) as error:
            return Verdict.abstained(str(error), Cause.TOO_COSTLY)
        if flaw is None:
            return Verdict.passed()
        return Verdict.failed(f"at {flaw.path}: {flaw.message}", safe_for_model=not flaw.tells_value)


def _unfence(text: str) -> str:
    """Take the inside of a text that is one fenced block as a whole, with the language `json` or none."""
    if not (len(text) > 2 * len(_FENCE) and text.startswith(_FENCE) and text.endswith(_FENCE)):
        return text
    language, newline, inside = text[len(_FENCE) : -len(_FENCE)].partition("\n")
    return inside.strip() if newline and language.strip().lower() in ("", "json") else text


KIND = Kind(
    name="json_schema",
    summary="The answer's text is one JSON value that the schema accepts.",
    config_schema={
        "type": "object",
        "properties": {
            "schema": {
                "type": ["object", "boolean"],
                "description": (
                    "A JSON schema, draft 4 to 2020-12, of 128 KiB at most; it may refer to its own parts "
                    "(#/..., #anchor)."
                ),
            },
            "fenced": {
                "type": "boolean",
                "default": True,
                "description": "Whether the whole answer may be one ```json block.",
            },
        },
        "required": ["schema"],
        "additionalProperties": False,
    },
    args_schema={"type": "object", "properties": {}, "additionalProperties": False},
    compile=JsonSchemaVerifier,
)

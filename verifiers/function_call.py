"""The kind `function_call`: the answer calls the request's own tools as their schemas say, and as a reference says.

Owns what makes a call right; `verifiers.calls` reads and compares. A reason that speaks of the reference is never
safe for the model; one that only speaks of the tools, which the model was shown, is.
"""

from collections.abc import Mapping
from typing import Any

from verifiers.base import Answer, Request, Verdict
from verifiers.calls import (
    MAX_CALLS,
    BadCall,
    Call,
    check_arguments,
    quote,
    read_calls,
    read_tools,
    same_call,
    same_calls,
)
from verifiers.kind import Kind
from verifiers.schema import BadSchema, TooCostly

_CALL = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "arguments": {"type": "object"}},
    "required": ["name", "arguments"],
    "additionalProperties": False,
}
_REFERENCE: dict[str, Any] = {
    "description": "The right call, or the right calls in any order; null where no call is right.",
    "anyOf": [_CALL, {"type": "array", "items": _CALL, "maxItems": MAX_CALLS}, {"type": "null"}],
}


class FunctionCallVerifier:
    """Compiled; `config` holds a default reference and how strictly it is compared."""

    never_waits = True

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._default = {name: config[name] for name in ("reference",) if name in config}
        self._strict = bool(config.get("strict", True))

    async def verify(self, request: Request, answer: Answer, args: Mapping[str, Any]) -> Verdict:
        """Judge the answer's tool calls."""
        given = {**self._default, **args}
        try:
            expected = _read_reference(given["reference"]) if "reference" in given else None
        except (TypeError, KeyError):
            return Verdict.abstained("the reference is not a call, a list of calls or null")
        try:
            return self._judge(read_calls(answer), expected, read_tools(request))
        except BadCall as error:
            return Verdict.failed(str(error), safe_for_model=True)
        except (TooCostly, BadSchema) as error:
            return Verdict.abstained(f"the schema of a tool cannot be used: {error}")

    def _judge(self, calls: list[Call], expected: list[Call] | None, tools: Mapping[str, Mapping[str, Any]]) -> Verdict:
        if not calls:
            return Verdict.passed() if expected == [] else Verdict.failed("there is no tool call", safe_for_model=True)
        for call in calls:
            if call.name not in tools:
                raise BadCall(f"{quote(call.name)} is not one of the tools")
            check_arguments(call, tools[call.name])
        if expected is None or same_calls(expected, calls, tools, strict=self._strict):
            return Verdict.passed()
        return Verdict.failed(self._explain(expected, calls, tools))

    def _explain(self, expected: list[Call], calls: list[Call], tools: Mapping[str, Mapping[str, Any]]) -> str:
        """Say how calls differ from the reference. It tells what is wrong with them, and how many are missing."""
        if not expected:
            return f"calls {quote(calls[0].name)}, but no call is right"
        if len(expected) != len(calls):
            return f"makes {len(calls)} calls, not {len(expected)}"
        for call in calls:
            rivals = [other for other in expected if other.name == call.name]
            if not rivals:
                return f"{quote(call.name)} is not the right tool"
            if not any(same_call(other, call, tools[call.name], strict=self._strict) for other in rivals):
                wrong = _name_wrong(call, rivals, tools, strict=self._strict)
                return f"calls {quote(call.name)} with the wrong {wrong}"
        return "makes the same call more than once"


def _name_wrong(call: Call, rivals: list[Call], tools: Mapping[str, Mapping[str, Any]], *, strict: bool) -> str:
    if len(rivals) > 1:
        return "arguments"
    wanted, given = rivals[0].arguments, call.arguments
    schema = tools[call.name]
    for name in sorted(wanted.keys() | given.keys()):
        one = Call(call.name, {name: wanted[name]} if name in wanted else {})
        other = Call(call.name, {name: given[name]} if name in given else {})
        if not same_call(one, other, schema, strict=strict):
            return quote(name)
    return "arguments"


def _read_reference(reference: Any) -> list[Call]:
    if reference is None:
        return []
    calls = reference if isinstance(reference, list | tuple) else [reference]
    return [Call(call["name"], dict(call["arguments"])) for call in calls]


KIND = Kind(
    name="function_call",
    summary=(
        "The answer calls the request's own tools: known names, arguments as their schemas say, "
        "and the same calls as the reference, if there is one."
    ),
    config_schema={
        "type": "object",
        "properties": {
            "reference": _REFERENCE,
            "strict": {
                "type": "boolean",
                "default": True,
                "description": "False: texts are compared without case and white space, 1 and 1.0 are the same.",
            },
        },
        "additionalProperties": False,
    },
    args_schema={"type": "object", "properties": {"reference": _REFERENCE}, "additionalProperties": False},
    compile=FunctionCallVerifier,
)

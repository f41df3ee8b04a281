"""The kind `function_call`: the answer calls the request's own tools as their schemas say, and as a reference says.

Owns what makes a call right; `calls` reads, `tool_schema` checks, `call_reference` compares. A reason that speaks of
the reference is never safe for the model; one that only speaks of the tools, which the model was shown, is.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from verifiers.base import Answer, Cause, InvalidArgs, InvalidVerifier, Request, Verdict
from verifiers.call_reference import BadReference, Comparison, Rules, find_bad_pattern, read_reference
from verifiers.calls import MAX_CALLS, BadCall, Call, quote, read_calls
from verifiers.kind import Kind
from verifiers.schema import BadSchema, TooCostly
from verifiers.tool_schema import check_arguments, read_tools

_CALL = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "arguments": {"type": "object"}},
    "required": ["name", "arguments"],
    "additionalProperties": False,
}
_CALLS: list[Any] = [_CALL, {"type": "array", "items": _CALL, "maxItems": MAX_CALLS}, {"type": "null"}]
_SEVERAL = {
    "type": "object",
    "properties": {"$any_of": {"type": "array", "items": {"anyOf": _CALLS}, "minItems": 1, "maxItems": 16}},
    "required": ["$any_of"],
    "additionalProperties": False,
}
_REFERENCE: dict[str, Any] = {
    "description": (
        "The right call, or the right calls in any order; null where no call is right; {$any_of: [...]} where one of "
        "several of these is. Among the arguments {$any_of: [...]} stands for any one value of several, "
        "{$any_order: [...]} for a list in any order, {$anything: true} for whatever the tool takes; with "
        "$optional: true beside it the argument may be left out."
    ),
    "anyOf": [*_CALLS, _SEVERAL],
}
_LOOSE = {"texts": "case", "numbers": "value"}


class FunctionCallVerifier:
    """Compiled; `config` holds a default reference and how it is compared.

    Raises: InvalidVerifier for a reference that cannot be read.
    """

    never_waits = True

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._default = {name: config[name] for name in ("reference",) if name in config}
        rules: dict[str, Any] = {} if config.get("strict", True) else dict(_LOOSE)
        rules.update((rule.name, config[rule.name]) for rule in fields(Rules) if rule.name in config)
        self._rules = Rules(**rules)
        try:
            find_bad_pattern(self._default.get("reference"), "/reference")
        except BadReference as error:
            raise InvalidVerifier(f"function_call: {error.message}", error.where) from None

    async def verify(self, request: Request, answer: Answer, args: Mapping[str, Any]) -> Verdict:
        """Judge the answer's tool calls."""
        given = {**self._default, **args}
        try:
            expected = read_reference(given["reference"]) if "reference" in given else None
            return self._judge(read_calls(answer), expected, read_tools(request))
        except BadCall as error:
            return Verdict.failed(str(error), safe_for_model=True)
        except BadReference as error:
            return Verdict.abstained(error.message, Cause.BAD_ARGS)
        except (TooCostly, BadSchema) as error:
            cause = Cause.TOO_COSTLY if isinstance(error, TooCostly) else Cause.BAD_ARGS
            return Verdict.abstained(f"the schema of a tool cannot be used: {error}", cause)

    def _judge(
        self, calls: list[Call], expected: list[list[Call]] | None, tools: Mapping[str, Mapping[str, Any]]
    ) -> Verdict:
        if not calls:
            right = expected is not None and [] in expected
            return Verdict.passed() if right else Verdict.failed("there is no tool call", safe_for_model=True)
        for call in calls:
            if call.name not in tools:
                raise BadCall(f"{quote(call.name)} is not one of the tools")
            check_arguments(call, tools[call.name])
        comparison = Comparison(tools, self._rules)
        if expected is None or any(comparison.same_calls(one, calls) for one in expected):
            return Verdict.passed()
        if len(expected) > 1:
            return Verdict.failed(f"makes none of the {len(expected)} lists of calls that are right")
        return Verdict.failed(_explain(expected[0], calls, comparison))


def _explain(expected: list[Call], calls: list[Call], comparison: Comparison) -> str:
    """Say how calls differ from the reference. It tells what is wrong with them, and how many are missing."""
    if not expected:
        return f"calls {quote(calls[0].name)}, but no call is right"
    if len(expected) != len(calls):
        return f"makes {len(calls)} calls, not {len(expected)}"
    for call in calls:
        rivals = [other for other in expected if other.name == call.name]
        if not rivals:
            return f"{quote(call.name)} is not the right tool"
        if not any(comparison.same_call(other, call) for other in rivals):
            wrong = comparison.find_wrong(rivals[0], call) if len(rivals) == 1 else None
            return f"calls {quote(call.name)} with the wrong {quote(wrong) if wrong else 'arguments'}"
    matched = comparison.without_order().same_calls(expected, calls)
    return "makes the right calls in another order" if matched else "makes the same call more than once"


def _accept_args(_config: Mapping[str, Any], args: Mapping[str, Any]) -> None:
    try:
        find_bad_pattern(args.get("reference"), "/reference")
    except BadReference as error:
        raise InvalidArgs(f"function_call: {error.message}", error.where) from None


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
                "description": "False: the same as `texts: case` and `numbers: value`, unless these say otherwise.",
            },
            "texts": {
                "enum": ["exact", "case", "punctuation"],
                "default": "exact",
                "description": (
                    "How texts are compared: as they are; without case and white space; or also without `,./-_*^`, "
                    "with ' as \"."
                ),
            },
            "numbers": {
                "enum": ["typed", "value"],
                "default": "typed",
                "description": "Whether 1 and 1.0 are the same where the tool says `number` alone, or everywhere.",
            },
            "tolerance": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "default": 0,
                "description": "How far a number may be from the right one, as a share of that.",
            },
            "defaults": {
                "type": "boolean",
                "default": True,
                "description": "Whether an argument that is left out is the `default` of the tool's schema.",
            },
            "ordered": {
                "type": "boolean",
                "default": False,
                "description": "Whether parallel calls have to come in the reference's order.",
            },
        },
        "additionalProperties": False,
    },
    args_schema={"type": "object", "properties": {"reference": _REFERENCE}, "additionalProperties": False},
    compile=FunctionCallVerifier,
    accept_args=_accept_args,
)

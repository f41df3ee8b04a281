"""The kind `one_of`: the answer's text is one of several references; where asked for, only its last line.

A reason that shows a reference is for people alone: the model is only ever told that there is no answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from verifiers.answers import read_text
from verifiers.base import Answer, Cause, InvalidArgs, InvalidVerifier, Request, Verdict
from verifiers.kind import Args, Config, Kind
from verifiers.texts import OPTIONS, REFERENCE, Form, quote, take_last_line

MAX_REFERENCES = 256
MAX_IN_ALL_CHARS = 65_536
_SHOWN = 3
_REFERENCES: dict[str, Any] = {
    "references": {
        "type": "array",
        "items": REFERENCE,
        "minItems": 1,
        "maxItems": MAX_REFERENCES,
        "description": f"The right texts, {MAX_IN_ALL_CHARS:,} characters in all at most.",
    }
}
_LAST_LINE = {
    "last_line": {
        "type": "boolean",
        "default": False,
        "description": "Compare the last line with anything on it, not the whole answer.",
    }
}


class OneOfVerifier:
    """Compiled; `config` holds how texts are compared, and the references where the arguments leave them out.

    Raises: InvalidVerifier for references that cannot be used.
    """

    never_waits = True

    def __init__(self, config: Config) -> None:
        self._form = Form(config)
        self._last_line = bool(config.get("last_line", False))
        self._default: Any = config.get("references")
        flaw = _find_flaw(self._form, self._default) if self._default is not None else None
        if flaw:
            raise InvalidVerifier(f"one_of: {flaw[0]}", flaw[1])
        self._shaped = _shape(self._form, self._default or ())

    async def verify(self, request: Request, answer: Answer, args: Mapping[str, Any]) -> Verdict:
        """Judge the answer's text."""
        references, shaped = args.get("references", self._default), self._shaped
        if references is not self._default:
            if not isinstance(references, list | tuple) or _find_flaw(self._form, references):
                return Verdict.abstained("the references cannot be used", Cause.BAD_ARGS)
            shaped = _shape(self._form, references)
        if not shaped:
            return Verdict.abstained("there are no references", Cause.BAD_ARGS)
        text = read_text(answer)
        text = take_last_line(text) if self._last_line else text
        if self._form.shape(text, max(map(len, shaped))) in shaped:
            return Verdict.passed()
        if not text or text.isspace():
            return Verdict.failed("the answer is empty", safe_for_model=True)
        shown = ", ".join(quote(reference) for reference in references[:_SHOWN])
        more = ", ..." if len(references) > _SHOWN else ""
        return Verdict.failed(f"the answer is {quote(text)}, which is none of {shown}{more}")


def _shape(form: Form, references: Sequence[str]) -> frozenset[str]:
    return frozenset(shaped for reference in references if (shaped := form.shape(reference)))


def _find_flaw(form: Form, references: Sequence[Any]) -> tuple[str, str] | None:
    """Find what is wrong with references, and where."""
    chars = 0
    for index, reference in enumerate(references):
        if not isinstance(reference, str) or not form.shape(reference):
            return (
                "a reference is nothing but white space, or has too many accents on one letter",
                f"/references/{index}",
            )
        chars += len(reference)
    return ("the references are too long", "/references") if chars > MAX_IN_ALL_CHARS else None


def _require_references(config: Config, args: Args) -> None:
    if "references" not in config and "references" not in args:
        raise InvalidArgs("one_of: references is missing", "/references")
    flaw = _find_flaw(Form(config), args.get("references", ()))
    if flaw:
        raise InvalidArgs(f"one_of: {flaw[0]}", flaw[1])


KIND = Kind(
    name="one_of",
    summary="The answer's text, or its last line, is one of the references.",
    config_schema={
        "type": "object",
        "properties": {**_REFERENCES, **OPTIONS, **_LAST_LINE},
        "additionalProperties": False,
    },
    args_schema={"type": "object", "properties": _REFERENCES, "additionalProperties": False},
    compile=OneOfVerifier,
    accept_args=_require_references,
)

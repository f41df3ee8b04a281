"""The kind `exact`: the answer's text is the reference.

A reason that shows the reference is for people alone: the model is only ever told that there is no answer.
"""

from collections.abc import Mapping
from typing import Any

from verifiers.answers import read_text
from verifiers.base import Answer, Cause, InvalidArgs, InvalidVerifier, Request, Verdict
from verifiers.kind import Args, Config, Kind
from verifiers.texts import OPTIONS, REFERENCE, Form, quote

_REFERENCE = {"reference": {**REFERENCE, "description": "The right text."}}
_EMPTY = "the reference is nothing but white space, or has too many accents on one letter"


class ExactVerifier:
    """Compiled; `config` holds how texts are compared, and the reference where the arguments leave it out.

    Raises: InvalidVerifier for a reference that is nothing but white space.
    """

    never_waits = True

    def __init__(self, config: Config) -> None:
        self._form = Form(config)
        self._default: str | None = config.get("reference")
        self._shaped = None if self._default is None else self._form.shape(self._default)
        if self._default is not None and not self._shaped:
            raise InvalidVerifier(f"exact: {_EMPTY}", "/reference")

    async def verify(self, request: Request, answer: Answer, args: Mapping[str, Any]) -> Verdict:
        """Judge the answer's text."""
        reference = args.get("reference", self._default)
        wanted = self._shaped
        if reference is not self._default:
            wanted = self._form.shape(reference) if isinstance(reference, str) else None
        if not wanted:
            return Verdict.abstained("there is no reference, or none that can be used", Cause.BAD_ARGS)
        text = read_text(answer)
        if self._form.shape(text, len(wanted)) == wanted:
            return Verdict.passed()
        if not text or text.isspace():
            return Verdict.failed("the answer is empty", safe_for_model=True)
        return Verdict.failed(f"the answer is {quote(text)}, not {quote(reference)}")


def _require_reference(config: Config, args: Args) -> None:
    if "reference" not in config and "reference" not in args:
        raise InvalidArgs("exact: reference is missing", "/reference")
    if "reference" in args and not Form(config).shape(args["reference"]):
        raise InvalidArgs(f"exact: {_EMPTY}", "/reference")


KIND = Kind(
    name="exact",
    summary="The answer's text is the reference.",
    config_schema={"type": "object", "properties": {**_REFERENCE, **OPTIONS}, "additionalProperties": False},
    args_schema={"type": "object", "properties": _REFERENCE, "additionalProperties": False},
    compile=ExactVerifier,
    accept_args=_require_reference,
)

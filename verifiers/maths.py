"""The kind `math`: the answer's final expression equals a reference.

Owns what the configuration and the verdicts mean; `verifiers.maths_job` parses and compares, in a worker that is killed
when it is late: there are short expressions on which computer algebra works for ever.
"""

from collections.abc import Mapping
from typing import Any

from verifiers.answers import read_text
from verifiers.base import Answer, Cause, InvalidArgs, InvalidVerifier, Request, Verdict
from verifiers.isolation import Isolation, IsolationFailed
from verifiers.kind import Args, Config, Kind
from verifiers.maths_text import MAX_CHARS, NoAnswer, TooLong, check_expression

TIMEOUT_S = 5.0
DIGITS = 6
MAX_TEXT_CHARS = 200_000
_START_S = 60.0

_ISOLATION = Isolation("verifiers.maths_job:judge", workers=3, memory_bytes=1024 * 2**20)


class MathVerifier:
    """Compiled.

    Raises: InvalidVerifier for a reference that cannot be read, or where no worker starts.
    """

    def __init__(self, config: Mapping[str, Any], isolation: Isolation) -> None:
        self._isolation = isolation
        self._reference: str | None = config.get("reference")
        self._rules = {"units": bool(config.get("ignore_units", False)), "digits": config.get("digits", DIGITS)}
        self._timeout_s = float(config.get("timeout_s", TIMEOUT_S))
        if self._reference is None:
            return
        try:
            check_expression(self._reference)
            said, _ = isolation.call_blocking({"reference": self._reference, **self._rules}, timeout_s=_START_S)
        except (NoAnswer, TooLong) as error:
            raise InvalidVerifier(f"math: the reference cannot be used: {error}", "/reference") from None
        except IsolationFailed as error:
            raise InvalidVerifier(f"math: the reference cannot be read: {error.reason}", "/reference") from None
        if said != "readable":
            raise InvalidVerifier("math: the reference cannot be read as mathematics", "/reference")

    async def verify(self, request: Request, answer: Answer, args: Mapping[str, Any]) -> Verdict:
        """Judge the final answer in the answer's text."""
        reference = args.get("reference", self._reference)
        if not isinstance(reference, str):
            return Verdict.abstained("no reference is given", Cause.BAD_ARGS)
        text = read_text(answer)
        if len(text) > MAX_TEXT_CHARS:
            return Verdict.abstained(f"the answer is longer than {MAX_TEXT_CHARS:,} characters", Cause.TOO_COSTLY)
        try:
            job = {"reference": reference, "text": text, **self._rules}
            said, why = await self._isolation.call(job, timeout_s=self._timeout_s, name=id(self))
        except IsolationFailed as error:
            return Verdict.abstained(error.reason, _OF_THE_ANSWER.get(error.cause, error.cause))
        return _read_verdict(said, why)


_OF_THE_ANSWER = {Cause.BROKE: Cause.UNDECIDED, Cause.TIMEOUT: Cause.TOO_COSTLY}
"""What the libraries raise, and how long they take, comes of this answer: a model could stop the verifier by it."""


def _read_verdict(said: str, why: str) -> Verdict:
    if said == "equal":
        return Verdict.passed()
    if said == "bad_reference":
        return Verdict.abstained("the reference cannot be read as mathematics", Cause.BAD_ARGS)
    if said == "too_long":
        return Verdict.abstained(why, Cause.TOO_COSTLY)
    return Verdict.failed(why, safe_for_model=True)


def _accept_args(config: Config, args: Args) -> None:
    reference = args.get("reference")
    if reference is None:
        if "reference" not in config:
            raise InvalidArgs("math: neither the configuration nor the request gives a reference", "/reference")
        return
    try:
        check_expression(reference)
    except (NoAnswer, TooLong) as error:
        raise InvalidArgs(f"math: the reference cannot be used: {error}", "/reference") from None


_REFERENCE = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_CHARS,
    "description": "The right answer, in LaTeX or plainly: \\frac{1}{2}, 2*sqrt(3), x = 5, {1, 2}.",
}


def make_kind(isolation: Isolation = _ISOLATION) -> Kind:
    """Make the kind, whose verifiers work in `isolation`."""
    return Kind(
        name="math",
        summary=(
            "The final answer (one \\boxed{...}, else one `Answer:` line, else the whole text) equals the reference, "
            "as mathematics: 1/2, 0.5 and \\frac{2}{4} are the same."
        ),
        config_schema={
            "type": "object",
            "properties": {
                "reference": _REFERENCE,
                "digits": {
                    "type": "integer",
                    "minimum": 0,
                    "maximum": 15,
                    "default": DIGITS,
                    "description": "To how many digits after the point decimal fractions are compared.",
                },
                "ignore_units": {
                    "type": "boolean",
                    "default": False,
                    "description": "Whether units are dropped on both sides, so that 3 m is 3, and also 3 km.",
                },
                "timeout_s": {"type": "number", "minimum": 0.05, "maximum": 10, "default": TIMEOUT_S},
            },
            "additionalProperties": False,
        },
        args_schema={
            "type": "object",
            "properties": {"reference": {**_REFERENCE, "description": "The right answer to this request."}},
            "additionalProperties": False,
        },
        compile=lambda config: MathVerifier(config, isolation),
        accept_args=_accept_args,
    )


KIND = make_kind()

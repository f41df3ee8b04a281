"""The kind `python`: a user's own function, run in the sandbox.

Owns what the function is given and what its return value means. What goes wrong inside of the function says nothing
about the answer, so it is always an abstention.
"""

import math
from collections.abc import Mapping
from typing import Any

from verifiers.answers import MAX_DEPTH, scrub
from verifiers.base import Answer, Cause, InvalidVerifier, Request, Verdict
from verifiers.kind import CODE, Kind
from verifiers.sandbox import MAX_RUN_S, BadProgram, Sandbox, SandboxFailed
from verifiers.sandbox_report import clean

FUNCTION = "verify"
TIMEOUT_S = 2.0
MAX_CODE_CHARS = 64 * 1024
MAX_REASON_CHARS = 2000

_CALL = f"{FUNCTION}(__request, __answer, __args)"
_RETURNS = (
    "verify has to return a bool, or {'passed': bool} with, if wanted, "
    "'score' (0 to 1), 'reason' (str) and 'safe_for_model' (bool)"
)


class PythonVerifier:
    """Compiled.

    Raises: InvalidVerifier for code that cannot be parsed, fails when it is loaded, or defines no `verify`.
    """

    def __init__(self, config: Mapping[str, Any], sandbox: Sandbox) -> None:
        self._code: str = config["code"]
        self._timeout_s = float(config.get("timeout_s", TIMEOUT_S))
        self._sandbox = sandbox
        try:
            sandbox.check(self._code, FUNCTION)
        except BadProgram as error:
            raise InvalidVerifier(
                f"python: {error.message}", f"/code {error.where}" if error.where else "/code"
            ) from None

    async def verify(self, request: Request, answer: Answer, args: Mapping[str, Any]) -> Verdict:
        """Judge the answer by the user's function."""
        try:
            inputs = {"__request": to_plain(request), "__answer": to_plain(answer), "__args": to_plain(args)}
            ran = await self._sandbox.run(self._code, _CALL, inputs, self._timeout_s)
        except SandboxFailed as error:
            return Verdict.abstained(error.reason, error.cause, stdout=error.stdout)
        except TypeError as error:  # from to_plain
            return Verdict.abstained(str(error), Cause.BAD_ARGS)
        return read_verdict(ran.value, ran.stdout)


def to_plain(value: Any, depth: int = 0) -> Any:
    """Copy a JSON value as plain dicts and lists, its texts without surrogates.

    Raises: TypeError for what is not JSON, or nested too deeply.
    """
    if isinstance(value, str):
        return scrub(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth >= MAX_DEPTH:
        raise TypeError(f"the code cannot be given what is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        return {scrub(str(key)): to_plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item, depth + 1) for item in value]
    raise TypeError(f"the code cannot be given a {type(value).__name__}")


def read_verdict(value: Any, stdout: str) -> Verdict:
    """Read what the function returned; anything but a verdict is an abstention."""
    if isinstance(value, bool):
        value = {"passed": value}
    if not isinstance(value, dict):
        return _refuse_return(f"{_RETURNS}, not {type(value).__name__}", stdout)
    if not isinstance(value.get("passed"), bool):
        lacks = "`passed` is no bool" if "passed" in value else "`passed` is missing"
        return _refuse_return(f"{_RETURNS}: {lacks}", stdout)
    unknown = next((key for key in value if key not in ("passed", "score", "reason", "safe_for_model")), None)
    if unknown is not None:
        return _refuse_return(f"{_RETURNS}: {str(unknown)[:100]!a} is not known", stdout)
    passed, score, reason = value["passed"], value.get("score"), value.get("reason", "")
    safe = value.get("safe_for_model", False)
    score = float(passed) if score is None else score
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1 or math.isnan(score):
        return _refuse_return(f"{_RETURNS}: the score is not from 0 to 1", stdout)
    if not isinstance(reason, str) or not isinstance(safe, bool):
        return _refuse_return(f"{_RETURNS}: the reason is no text", stdout)
    build = Verdict.passed if passed else Verdict.failed
    return build(clean(reason)[:MAX_REASON_CHARS], float(score), safe_for_model=safe, stdout=stdout)


def _refuse_return(reason: str, stdout: str) -> Verdict:
    return Verdict.abstained(reason, Cause.BAD_RETURN, stdout=stdout)


def make_kind(sandbox: Sandbox) -> Kind:
    """Make the kind, whose verifiers run in `sandbox`."""
    return Kind(
        name="python",
        summary="A function of your own, verify(request, answer, args), in a sandbox without files or network.",
        config_schema={
            "type": "object",
            "properties": {
                "code": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": MAX_CODE_CHARS,
                    "description": (
                        "Python that defines verify(request, answer, args) -> bool, or a dict with `passed` and, "
                        "if wanted, `score` (0 to 1), `reason` and `safe_for_model` (whether the model may be shown "
                        "the reason). `request` holds messages and tools, `answer` is the assistant message."
                    ),
                },
                "timeout_s": {"type": "number", "minimum": 0.05, "maximum": MAX_RUN_S, "default": TIMEOUT_S},
            },
            "required": ["code"],
            "additionalProperties": False,
        },
        args_schema={"type": "object", "description": "Anything: it is given to the function as `args`."},
        compile=lambda config: PythonVerifier(config, sandbox),
        find_needs=lambda _config: frozenset({CODE}),
    )

"""The kind `code_tests`: the answer's Python passes the user's own tests.

Owns what a configuration and the verdicts mean. The code and the tests run in two processes of their own, made for this
one verdict and ended with it (`verifiers.code_tests_job`); what holds them is in docs/decisions/0010. Where the system
cannot hold them, the kind refuses to be registered.
"""

from collections.abc import Mapping
from typing import Any

from verifiers.answers import read_text
from verifiers.base import Answer, Cause, InvalidArgs, InvalidVerifier, Request, Verdict
from verifiers.isolation import Isolation, IsolationFailed
from verifiers.kind import CODE, Args, Config, Kind

TIMEOUT_S = 5.0
MAX_TIMEOUT_S = 30.0
MAX_TESTS_CHARS = 64 * 1024
MAX_ANSWER_CHARS = 200_000
MAX_REASON_CHARS = 2000
_GRACE_S = 5.0

_ISOLATION = Isolation("verifiers.code_tests_job:judge", workers=3, memory_bytes=1024 * 2**20, fork_each=True)


class CodeTestsVerifier:
    """Compiled.

    Raises: InvalidVerifier for tests that cannot be used, and where the system cannot hold hostile code.
    """

    def __init__(self, config: Mapping[str, Any], isolation: Isolation) -> None:
        self._isolation = isolation
        self._tests: str | None = config.get("tests")
        self._threshold = float(config.get("threshold", 1.0))
        self._show = bool(config.get("show_tests", False))
        self._timeout_s = float(config.get("timeout_s", TIMEOUT_S))
        self._job = {
            "entry_points": config.get("entry_points"),
            "block": config.get("block", "last"),
            "objects": bool(config.get("objects", False)),
            "timeout_s": self._timeout_s,
        }
        if self._tests is None and not config.get("tests_in_args"):
            raise InvalidVerifier("code_tests: there are no tests, and requests may give none", "/tests")
        try:
            missing = [name for name, given in isolation.hardening().items() if not given]
            if missing:
                raise InvalidVerifier(
                    f"code_tests: this system cannot hold hostile code ({', '.join(missing)}): Linux with seccomp can"
                )
            read = isolation.call_blocking({**self._job, "tests": self._tests}, timeout_s=60) if self._tests else {}
        except IsolationFailed as error:
            raise InvalidVerifier(f"code_tests: the tests cannot be read: {error.reason}", "/tests") from None
        if "flaw" in read:
            where = f"/tests {read['where']}" if read["where"] else "/tests"
            raise InvalidVerifier(f"code_tests: the tests cannot be used: {read['flaw']}", where)

    async def verify(self, request: Request, answer: Answer, args: Mapping[str, Any]) -> Verdict:
        """Run the answer's code against the tests."""
        given = args.get("tests")
        tests = "\n".join(part for part in (self._tests, given) if isinstance(part, str))
        if not tests:
            return Verdict.abstained("no tests are given", Cause.BAD_ARGS)
        text = read_text(answer)
        if len(text) > MAX_ANSWER_CHARS:
            return Verdict.abstained(f"the answer is longer than {MAX_ANSWER_CHARS:,} characters", Cause.TOO_COSTLY)
        try:
            job = {**self._job, "tests": tests, "answer": text}
            told = await self._isolation.call(job, timeout_s=self._timeout_s + _GRACE_S, name=id(self))
        except IsolationFailed as error:
            return Verdict.abstained(error.reason, error.cause)
        return self._read(told)

    def _read(self, told: dict[str, Any]) -> Verdict:
        stdout = told.get("printed", "")
        for key, cause, why in (
            ("flaw", Cause.BAD_ARGS, "the tests cannot be used: {}"),
            ("late", Cause.TIMEOUT, "the tests ran longer than their time"),
            ("died", Cause.CRASHED, "the tests' process ended {}"),
        ):
            if key in told:
                return Verdict.abstained(why.format(told[key]), cause, stdout=stdout)
        if "no_code" in told:
            return Verdict.failed(told["no_code"], safe_for_model=True)
        if "broken" in told:  # no test has run, so nothing of them is told
            return Verdict.failed(f"the answer does not load: {told['broken']}", safe_for_model=True, stdout=stdout)
        total, failed = told["tests"], told["failed"]
        score = (total - failed) / total
        reasons = "; ".join(f"{name}: {why}" for name, why in told["failures"])
        reason = f"{failed} of {total} tests failed: {reasons}"[:MAX_REASON_CHARS] if failed else ""
        build = Verdict.passed if score >= self._threshold else Verdict.failed
        return build(reason.replace("\0", "\ufffd"), score, safe_for_model=self._show, stdout=stdout)


def _accept_args(config: Config, args: Args) -> None:
    if "tests" in args and not config.get("tests_in_args"):
        raise InvalidArgs("code_tests: this verifier takes no tests from requests (see `tests_in_args`)", "/tests")
    if "tests" not in args and "tests" not in config:
        raise InvalidArgs("code_tests: neither the configuration nor the request gives tests", "/tests")


_TESTS = {"type": "string", "minLength": 1, "maxLength": MAX_TESTS_CHARS}
_PROPERTIES: dict[str, Any] = {
    "tests": {
        **_TESTS,
        "description": (
            "Python: asserts, functions test_..., or classes with such (also of unittest). What it uses and does not "
            "define, or imports from `answer` or `solution`, are the answer's functions. They are called in another "
            "process, so arguments and results are plain values: numbers, texts, lists, dicts, sets and the like; "
            "lists, dicts and sets that they change come back changed; functions can be given to them."
        ),
    },
    "entry_points": {
        "type": "array",
        "items": {"type": "string", "minLength": 1, "maxLength": 100},
        "minItems": 1,
        "maxItems": 50,
        "description": "The answer's functions that the tests use; found in the tests where this is left out.",
    },
    "objects": {
        "type": "boolean",
        "default": False,
        "description": (
            "Whether the answer's classes may be used: objects stay in its process and are called there. What such an "
            "object says of itself (its methods, len, in, truth, == with another of them) is the answer's word."
        ),
    },
    "block": {
        "enum": ["last", "first", "only"],
        "default": "last",
        "description": "Which ```python block of the answer is run; the whole answer where it has no block.",
    },
    "tests_in_args": {
        "type": "boolean",
        "default": False,
        "description": "Whether a request may give tests, run after the configured ones.",
    },
    "threshold": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "default": 1,
        "description": "The share of tests with which an answer passes; the score is the share that it reached.",
    },
    "show_tests": {
        "type": "boolean",
        "default": False,
        "description": "Whether the model may be shown which tests failed and why: that tells it what they test.",
    },
    "timeout_s": {"type": "number", "minimum": 0.1, "maximum": MAX_TIMEOUT_S, "default": TIMEOUT_S},
}


def make_kind(isolation: Isolation = _ISOLATION) -> Kind:
    """Make the kind, whose verifiers run in `isolation`."""
    return Kind(
        name="code_tests",
        summary="The answer's Python passes your tests, each in a throw-away process without files or network.",
        config_schema={"type": "object", "properties": _PROPERTIES, "additionalProperties": False},
        args_schema={
            "type": "object",
            "properties": {"tests": {**_TESTS, "description": "More tests, where `tests_in_args` allows them."}},
            "additionalProperties": False,
        },
        compile=lambda config: CodeTestsVerifier(config, isolation),
        accept_args=_accept_args,
        find_needs=lambda _config: frozenset({CODE}),
    )


KIND = make_kind()

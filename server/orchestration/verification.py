"""Binds verifiers to a request and judges answers with them.

Called by the episode loop, the API's try-out of a verifier, and training. A verifier that breaks or takes too long
abstains: its failure says nothing about the answer. This module must never turn that into a verdict on the model.
"""

import asyncio
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import structlog

from server.domain import Binding, LoggedVerdict
from verifiers.base import Answer, Request, Status, Verdict, Verifier
from verifiers.registry import compile_verifier

VERIFY_TIMEOUT_S = 30.0
WHEN: Mapping[str, tuple[str, ...]] = {"answer": ("tool_call", "text"), "last_role": ("user", "tool")}
"""The conditions that a binding may set, and their values."""

_log = structlog.get_logger(__name__)

Judgement = tuple[Status, float, str, tuple[LoggedVerdict, ...]]
"""The verdict of all bindings together: status, score in [0, 1], reason, and the single verdicts."""


def applies(when: Mapping[str, Any], request: Request, answer: Answer) -> bool:
    """Say whether a binding's conditions hold for this request and answer."""
    messages = request["messages"]
    facts = {
        "answer": "tool_call" if answer.get("tool_calls") else "text",
        "last_role": messages[-1].get("role") if messages else None,
    }
    return all(facts.get(name) == value for name, value in when.items())


@dataclass(frozen=True, slots=True)
class BoundVerifier:
    """One compiled verifier and what the request binds it to."""

    binding: Binding
    verifier: Verifier

    async def judge(self, request: Request, answer: Answer, timeout_s: float) -> LoggedVerdict:
        """Give this verifier's verdict; `abstained` where it breaks or is late, `skipped` where it does not apply."""
        binding = self.binding
        if not applies(binding.when, request, answer):
            return LoggedVerdict(binding.pin, Status.SKIPPED, 0.0)
        started = time.perf_counter()
        limit = asyncio.timeout(timeout_s)
        try:
            if getattr(self.verifier, "never_waits", False):
                verdict = await self.verifier.verify(request, answer, binding.args)
            else:
                async with limit:
                    verdict = await self.verifier.verify(request, answer, binding.args)
        except TimeoutError:
            late = limit.expired()
            verdict = Verdict.abstained(f"no verdict within {timeout_s:.3g} s" if late else "the verifier timed out")
        except Exception as error:  # noqa: BLE001 -- whatever user code raises, the answer is not to blame
            _log.warning("verifier_broke", verifier=binding.pin, error=repr(error))
            verdict = Verdict.abstained(f"the verifier broke: {type(error).__name__}: {error}")
        return LoggedVerdict(
            verifier=binding.pin,
            status=verdict.status,
            score=verdict.score,
            reason=verdict.reason,
            safe_for_model=verdict.safe_for_model,
            stdout=verdict.stdout,
            duration_ms=(time.perf_counter() - started) * 1000,
        )


@dataclass(frozen=True, slots=True)
class VerifierSet:
    """The verifiers of one request. All have to pass."""

    bound: tuple[BoundVerifier, ...] = ()
    timeout_s: float = VERIFY_TIMEOUT_S

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """What the verifiers are bound by."""
        return tuple(one.binding for one in self.bound)

    async def judge(self, request: Request, answer: Answer, *, most_s: float = math.inf) -> Judgement:
        """Judge an answer with all verifiers at once, for `most_s` seconds at most; who is later abstains.

        Any `failed` fails it; else any `abstained` abstains; else, if all were skipped (or there are none), `skipped`.
        """
        if not self.bound:
            return _UNCHECKED
        timeout_s = min(self.timeout_s, most_s)
        if len(self.bound) == 1:  # nothing to run side by side
            verdict = await self.bound[0].judge(request, answer, timeout_s)
            score = verdict.score if verdict.status in (Status.PASSED, Status.FAILED) else 0.0
            return Status(verdict.status), score, verdict.reason, (verdict,)
        judging = (one.judge(request, answer, timeout_s) for one in self.bound)
        return combine_verdicts(await asyncio.gather(*judging))

    def __bool__(self) -> bool:
        return bool(self.bound)


_UNCHECKED: Judgement = (Status.SKIPPED, 0.0, "", ())

NONE = VerifierSet()
"""No verifiers: every answer is `skipped`."""


def combine_verdicts(verdicts: Sequence[LoggedVerdict]) -> Judgement:
    """Combine single verdicts: the gravest decides; the score is the mean of those that judged."""
    statuses = {verdict.status for verdict in verdicts}
    gravest = (Status.FAILED, Status.ABSTAINED, Status.PASSED)
    status = next((candidate for candidate in gravest if candidate in statuses), Status.SKIPPED)
    judged = [verdict.score for verdict in verdicts if verdict.status in (Status.PASSED, Status.FAILED)]
    score = sum(judged) / len(judged) if judged and status in (Status.PASSED, Status.FAILED) else 0.0
    decisive = [verdict for verdict in verdicts if verdict.status == status and verdict.reason]
    prefix = len(verdicts) > 1
    reason = "; ".join(f"{verdict.verifier}: {verdict.reason}" if prefix else verdict.reason for verdict in decisive)
    return status, score, reason, tuple(verdicts)


@lru_cache(maxsize=128)
def _compile(kind: str, config_json: bytes) -> Verifier:
    """Compile once for equal configurations: compiled verifiers are immutable and meant to be shared."""
    return compile_verifier(kind, msgspec.json.decode(config_json))


def bind(bindings: Iterable[Binding]) -> VerifierSet:
    """Compile the verifiers of a request.

    Raises: InvalidVerifier.
    """
    return VerifierSet(
        tuple(
            BoundVerifier(binding, _compile(binding.kind, msgspec.json.encode(binding.config, order="deterministic")))
            for binding in bindings
        )
    )

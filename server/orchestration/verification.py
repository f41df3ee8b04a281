"""Binds verifiers to a request and judges answers with them.

Called by the episode loop, the API's try-out of a verifier, and training. A verifier that breaks or takes too long
abstains: its failure says nothing about the answer. This module must never turn that into a verdict on the model.
"""

import asyncio
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import msgspec
import structlog

from server.domain import Binding, BindingMode, LoggedVerdict
from server.orchestration.verdict_watch import VerdictWatch, Watched
from server.settings import VerifierSettings
from verifiers.base import Answer, Cause, Request, Status, Verdict, Verifier
from verifiers.registry import Policy, compile_verifier, configure

VERIFY_TIMEOUT_S = 30.0
OBSERVE_TIMEOUT_S = 5.0
WHEN: Mapping[str, tuple[str, ...]] = {"answer": ("tool_call", "text"), "last_role": ("user", "tool")}
"""The conditions that a binding may set, and their values."""

_log = structlog.get_logger(__name__)

Judgement = tuple[Status, float, str, tuple[LoggedVerdict, ...]]
"""The verdict of all bindings together: status, score in [0, 1], reason, and the single verdicts."""


def allow(settings: VerifierSettings) -> None:
    """Tell the verifiers of this process what the operator lets them reach. Each root calls it once."""
    configure(
        Policy(
            loopback=settings.loopback,
            secrets=settings.secrets,
            secret_hosts=settings.secret_hosts,
            ca_file=settings.ca_file,
            databases=settings.databases,
        )
    )


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
    watched: Watched | None = None

    async def judge(
        self, request: Request, answer: Answer, timeout_s: float, *, hurried: bool = False
    ) -> LoggedVerdict:
        """Give this verifier's verdict; `abstained` where it breaks or is late, `skipped` where it does not apply.

        `hurried`: the client's own deadline made the time so short, so that being late is not the verifier's fault.
        """
        watched = self.watched
        if watched is None:
            return await self._judge(request, answer, timeout_s)
        trial = False
        if (stop := watched.breaker.stop) is not None and applies(self.binding.when, request, answer):
            trial = watched.breaker.try_again()
            if not trial:
                verdict = self._abstain(f"the verifier is {stop.reason}", Cause.STOPPED)
                watched.count(verdict)
                return verdict
        try:
            verdict = await self._judge(request, answer, timeout_s)
        except BaseException:
            if trial:
                watched.breaker.forgo()
            raise
        watched.count(verdict)
        if hurried and verdict.cause == Cause.TIMEOUT:
            if trial:
                watched.breaker.forgo()
        elif verdict.status != Status.SKIPPED:
            watched.breaker.note(verdict.cause, trial=trial)
        return verdict

    def _abstain(self, reason: str, cause: Cause) -> LoggedVerdict:
        binding = self.binding
        return LoggedVerdict(binding.pin, Status.ABSTAINED, 0.0, reason, cause=cause, mode=binding.mode)

    async def _judge(self, request: Request, answer: Answer, timeout_s: float) -> LoggedVerdict:
        binding = self.binding
        if not applies(binding.when, request, answer):
            return LoggedVerdict(binding.pin, Status.SKIPPED, 0.0, mode=binding.mode)
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
            reason = f"no verdict within {timeout_s:.3g} s" if late else "the verifier timed out"
            verdict = Verdict.abstained(reason, Cause.TIMEOUT)
        except Exception as error:  # noqa: BLE001 -- whatever user code raises, the answer is not to blame
            # What it says may quote the answer: only the episode log has that.
            _log.warning("verifier_broke", verifier=binding.pin, error=type(error).__name__)
            _log.debug("verifier_broke", verifier=binding.pin, error=repr(error))
            verdict = Verdict.abstained(f"the verifier broke: {type(error).__name__}: {error}")
        return LoggedVerdict(
            verifier=binding.pin,
            status=verdict.status,
            score=verdict.score,
            reason=verdict.reason,
            safe_for_model=verdict.safe_for_model,
            stdout=verdict.stdout,
            duration_ms=(time.perf_counter() - started) * 1000,
            cause=verdict.cause or "",
            mode=binding.mode,
        )


@dataclass(frozen=True, slots=True)
class VerifierSet:
    """The verifiers of one request. All that enforce have to pass; the others are asked beside them and only logged."""

    bound: tuple[BoundVerifier, ...] = ()
    timeout_s: float = VERIFY_TIMEOUT_S
    observe_timeout_s: float = OBSERVE_TIMEOUT_S

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """What the verifiers are bound by."""
        return tuple(one.binding for one in self.bound)

    @property
    def enforces(self) -> bool:
        """Whether any of them counts; what only watches holds no answer back."""
        return any(one.binding.mode == BindingMode.ENFORCE for one in self.bound)

    def watched(self, watch: VerdictWatch) -> "VerifierSet":
        """Put these verifiers under watch: their verdicts are counted, and one that keeps breaking is stopped."""
        return replace(self, bound=tuple([replace(one, watched=watch.over(one.binding)) for one in self.bound]))

    async def judge(self, request: Request, answer: Answer, *, most_s: float = math.inf) -> Judgement:
        """Judge an answer with all verifiers at once, for `most_s` seconds at most; who is later abstains.

        Of those that enforce any `failed` fails it; else any `abstained` abstains; else, if all were skipped (or there
        are none), `skipped`. One that observes has `observe_timeout_s`: the answer waits for it.
        """
        if not self.bound:
            return _UNCHECKED
        timeout_s, hurried = min(self.timeout_s, most_s), most_s < self.timeout_s
        if len(self.bound) == 1 and self.bound[0].binding.mode == BindingMode.ENFORCE:  # nothing to run side by side
            verdict = await self.bound[0].judge(request, answer, timeout_s, hurried=hurried)
            score = verdict.score if verdict.status in (Status.PASSED, Status.FAILED) else 0.0
            return Status(verdict.status), score, verdict.reason, (verdict,)
        watching_s = min(self.observe_timeout_s, timeout_s)
        judging = (
            one.judge(request, answer, timeout_s, hurried=hurried)
            if one.binding.mode == BindingMode.ENFORCE
            else one.judge(request, answer, watching_s, hurried=hurried and timeout_s < self.observe_timeout_s)
            for one in self.bound
        )
        return combine_verdicts(await asyncio.gather(*judging))

    def __bool__(self) -> bool:
        return bool(self.bound)


_UNCHECKED: Judgement = (Status.SKIPPED, 0.0, "", ())

NONE = VerifierSet()
"""No verifiers: every answer is `skipped`."""


def combine_verdicts(verdicts: Sequence[LoggedVerdict]) -> Judgement:
    """Combine single verdicts: of those that enforce the gravest decides; the score is the mean of who judged."""
    counted = [verdict for verdict in verdicts if verdict.mode == BindingMode.ENFORCE]
    statuses = {verdict.status for verdict in counted}
    gravest = (Status.FAILED, Status.ABSTAINED, Status.PASSED)
    status = next((candidate for candidate in gravest if candidate in statuses), Status.SKIPPED)
    judged = [verdict.score for verdict in counted if verdict.status in (Status.PASSED, Status.FAILED)]
    score = sum(judged) / len(judged) if judged and status in (Status.PASSED, Status.FAILED) else 0.0
    decisive = [verdict for verdict in counted if verdict.status == status and verdict.reason]
    prefix = len(counted) > 1
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

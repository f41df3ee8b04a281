"""Compiles what is to be registered and tries it on a sample, before there is a version of it."""

import asyncio
from collections.abc import Mapping
from typing import Any

from server.api.binding import dot_pointer
from server.api.rest.schemas import Sample
from server.domain import Binding
from server.errors import InvalidRequest
from server.orchestration.verification import BoundVerifier, VerifierSet
from verifiers.base import InvalidArgs, InvalidVerifier, Verifier
from verifiers.registry import check_args, compile_verifier


async def compile_checked(kind: str, config: Mapping[str, Any]) -> Verifier:
    """Compile a configuration. Raises: InvalidRequest, pointing at the place."""
    try:
        return await asyncio.to_thread(compile_verifier, kind, config)
    except InvalidVerifier as error:
        param = "kind" if error.where == "/kind" else f"config{dot_pointer(error.where)}"
        raise InvalidRequest(f"The verifier does not compile: {error}", param, "invalid_verifier") from None


async def try_sample(kind: str, config: Mapping[str, Any], verifier: Verifier, sample: Sample) -> dict[str, Any]:
    """Judge a sample as a request would have it judged, and say what came of it.

    Raises: InvalidRequest where its arguments do not fit, or the verdict is not what the sample expects.
    """
    try:
        check_args(kind, config, sample.args)
    except InvalidArgs as error:
        raise InvalidRequest(
            f"The sample's args do not fit: {error}", f"sample.args{dot_pointer(error.where)}"
        ) from None
    answer = {"role": "assistant", "content": sample.answer} if isinstance(sample.answer, str) else sample.answer
    request = {"messages": sample.request.messages, "tools": sample.request.tools}
    bound = VerifierSet((BoundVerifier(Binding(kind, config, args=sample.args), verifier),))
    status, score, reason, (verdict,) = await bound.judge(request, answer)
    if sample.expect is not None and status != sample.expect:
        why = f": {reason}" if reason else ""
        printed = f" It printed: {verdict.stdout}" if verdict.stdout else ""
        found = f"The sample expects {sample.expect}, but the verdict is {status.value}{why}."
        message = f"{found} Nothing is registered.{printed}"
        raise InvalidRequest(message, "sample.expect", "sample_disagrees")
    trial = {"status": status.value, "score": score, "reason": reason, "duration_ms": verdict.duration_ms}
    return {**trial, "cause": str(verdict.cause), "stdout": verdict.stdout}

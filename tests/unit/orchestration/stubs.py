"""Verifiers for tests of the loop, without a registry."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from server.domain import Binding, Episode, RetryPolicy, VerifyMode, new_id
from server.orchestration.verification import BoundVerifier, VerifierSet
from verifiers.base import Verdict


@dataclass
class StubVerifier:
    """Judges by a function of the answer's text."""

    judge: Callable[[str], Verdict]
    seen: list[tuple] = field(default_factory=list)
    delay_s: float = 0.0

    async def verify(self, request, answer, args):
        self.seen.append((request, answer, args))
        await asyncio.sleep(self.delay_s)
        return self.judge(answer.get("content") or "")


def expects(text: str, **more) -> StubVerifier:
    """Pass answers that hold a text."""
    return StubVerifier(lambda content: Verdict.passed() if text in content else Verdict.failed(f"no {text}", **more))


def bound(*verifiers: StubVerifier, when: dict | None = None, timeout_s: float = 30.0) -> VerifierSet:
    return VerifierSet(
        tuple(
            BoundVerifier(
                Binding("stub", {}, name=f"v{index}", version=1, args={"n": index}, when=when or {}), verifier
            )
            for index, verifier in enumerate(verifiers)
        ),
        timeout_s,
    )


def episode(
    *, verify: VerifyMode = VerifyMode.ENFORCE, adapter: str = "", prompts: dict | None = None, **retry
) -> Episode:
    return Episode(
        id=new_id("ep"),
        task="t",
        model="t",
        base_model="m",
        adapter=adapter,
        key="key_1",
        request={},
        bindings=(),
        verify=verify,
        retry=RetryPolicy(**retry),
        prompts=prompts or {},
    )

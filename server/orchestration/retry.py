"""Counts what an episode may still spend: attempts, tokens, seconds. Asked by the episode loop before every retry.

A budget never stops the first attempt: a client without an answer is helped by no budget. The client's deadline does.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.domain import Attempt, Reflection, RetryPolicy, Usage
from server.orchestration.reflection import Prompts

_TEMPLATE_TOKENS = 32
"""What a chat template may add around two more turns, generously."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What one episode may spend. `deadline_at` is when the client stops waiting (Unix seconds)."""

    policy: RetryPolicy
    prompts: Prompts
    deadline_at: float | None = None
    started_at: float = field(default_factory=time.time)

    def seconds_to_deadline(self) -> float | None:
        """Seconds until the client stops waiting; None without a deadline."""
        return None if self.deadline_at is None else self.deadline_at - time.time()

    def seconds_to_retry(self) -> float | None:
        """Seconds that reflections and retries may still take; None without a limit."""
        limit_s = None if self.policy.max_seconds is None else self.started_at + self.policy.max_seconds - time.time()
        deadline_s = self.seconds_to_deadline()
        given = [seconds for seconds in (limit_s, deadline_s) if seconds is not None]
        return min(given) if given else None

    def allows_retry(self, failed: Attempt, spent: Usage, body: Mapping[str, Any]) -> bool:
        """Say whether a reflection on `failed` and a retry fit into what is left.

        Time is foretold from the failed attempt, whose like is to be run again; tokens from the most that both calls
        can take (for an answer without a limit of its own: as many as the failed one took).
        """
        if failed.number > self.policy.max_retries:
            return False
        if not self._has_time(failed):
            return False
        shown = failed.usage.total_tokens + self._wording_tokens()
        reflection = Usage(shown, self.policy.reflection_max_tokens)
        return self._fits(spent + reflection, shown + self.policy.reflection_max_tokens, failed, body)

    def allows_attempt(self, failed: Attempt, reflection: Reflection, spent: Usage, body: Mapping[str, Any]) -> bool:
        """Say whether the retry still fits, now that the reflection took its tokens and its time."""
        if not self._has_time(failed):
            return False
        shown = failed.usage.total_tokens + self._wording_tokens()
        return self._fits(spent, shown + reflection.usage.completion_tokens, failed, body)

    def _has_time(self, failed: Attempt) -> bool:
        seconds = self.seconds_to_retry()
        return seconds is None or seconds > (failed.engine_ms + failed.verify_ms) / 1000

    def _fits(self, spent: Usage, prompt_tokens: int, failed: Attempt, body: Mapping[str, Any]) -> bool:
        most = self.policy.max_total_tokens
        if most is None:
            return True
        answer_tokens = body.get("max_completion_tokens") or failed.usage.completion_tokens
        return spent.total_tokens + prompt_tokens + answer_tokens <= most

    def _wording_tokens(self) -> int:
        """Bound the tokens that our own wording can take: no tokenizer makes more of them than bytes."""
        return len(self.prompts.reflect.encode()) + len(self.prompts.retry.encode()) + _TEMPLATE_TOKENS

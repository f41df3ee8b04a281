"""Episodes as they are logged, and an engine that says what a test wants."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from server.domain import Attempt, Binding, Episode, Outcome, Reflection, RetryPolicy, Usage, VerifyMode
from server.engine.base import Completion
from server.orchestration.episode import REFLECTION_SAMPLING

PASSES = Binding("regex", {"pattern": "yes"})


def make_failure(number: int = 0, *, recovered: bool = False, reflected: bool = True, **changes: Any) -> Episode:
    """An episode whose first attempt failed; `changes` are laid over it."""
    attempts = [Attempt(1, {"content": "no"}, "stop", Usage(3, 1), "failed", sampling={"temperature": 0.7})]
    reflections = []
    if reflected:
        attempts.append(
            Attempt(
                2, {"content": "yes" if recovered else "no"}, "stop", Usage(9, 1), "passed" if recovered else "failed"
            )
        )
        reflections.append(
            Reflection(
                1, "hm", Usage(5, 2), prompt_ids=(7, number), token_ids=(1, 2), logprobs=(-0.5, -0.25),
                sampling={**REFLECTION_SAMPLING, "max_completion_tokens": 16},
            )
        )  # fmt: skip
    fields = {
        "id": f"ep_{number}", "task": "t", "model": "t", "base_model": "base", "adapter": "", "key": "k",
        "request": {"messages": [{"role": "user", "content": f"question {number}"}]},
        "bindings": (PASSES,), "verify": VerifyMode.ENFORCE, "retry": RetryPolicy(reflection_max_tokens=16),
        "outcome": Outcome.RECOVERED if recovered else Outcome.EXHAUSTED, "split": "training",
        "attempts": attempts, "reflections": reflections,
    }  # fmt: skip
    return Episode(**{**fields, **changes})


class ScriptedEngine:
    """Reflects with `reflect(prompt_ids)` and answers with `answer(messages)`; keeps what it was asked."""

    def __init__(
        self,
        answer: Callable[[Sequence[Mapping[str, Any]]], str],
        reflect: Callable[[Sequence[int]], Sequence[int]] = lambda _prompt: (1, 2, 3),
    ) -> None:
        self.answer, self.reflect = answer, reflect
        self.asked: list[tuple[str, Any]] = []
        self.with_tokens = 0
        self.running = self.most_running = 0

    async def complete_ids(self, prompt_ids: Sequence[int], adapter: str, sampling: Mapping[str, Any]) -> Completion:
        self.asked.append(("ids", (tuple(prompt_ids), adapter, dict(sampling))))
        tokens = tuple(self.reflect(prompt_ids))
        return Completion(
            {"role": "assistant", "content": f"thought {tokens}"}, "stop", Usage(2, len(tokens)),
            tuple(prompt_ids), tokens, tuple(-0.5 for _ in tokens),
        )  # fmt: skip

    async def complete(self, body: Mapping[str, Any], adapter: str, *, with_tokens: bool = False) -> Completion:
        self.asked.append(("chat", (dict(body), adapter)))
        self.with_tokens += with_tokens
        tokens = {"prompt_ids": (5, 6), "token_ids": (8, 9), "logprobs": (-1.0, -1.0)} if with_tokens else {}
        message = {"role": "assistant", "content": self.answer(body["messages"])}
        return Completion(message, "stop", Usage(4, 1), **tokens)


@pytest.fixture
def failure():
    return make_failure

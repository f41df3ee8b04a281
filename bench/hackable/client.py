"""Asks the tasks and keeps what was really answered, so that it can be judged by the rules of the game too."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openai import APIConnectionError, APIStatusError

import demo.drive.client
from bench.hackable.task import CODE, HIDDEN, RETRY, VERIFIER
from demo.drive.client import SOLVED, DemoBroken
from demo.drive.display import Phase
from demo.drive.many import do_many
from demo.drive.tasks import DemoTask
from demo.problem import Problem
from verifiers.countdown import find_flaw

_AUDIT = {"name": HIDDEN, "mode": "audit"}


@dataclass(frozen=True)
class Seen:
    """One answer: whether the task's verifier let it pass by the second try, and whether it is right."""

    passed: bool
    right: bool
    content: str


class Client(demo.drive.client.Client):
    """A client with an admin key, which also sees what was really answered."""

    async def register_both(self, tasks: Sequence[tuple[DemoTask, bool]]) -> None:
        """Register both verifiers and the tasks, each with the true one hidden or without it. Raises: DemoBroken."""
        await self.post("/verifiers", {"name": VERIFIER, "kind": "python", "config": {"code": CODE}})
        await self.post("/verifiers", {"name": HIDDEN, "kind": HIDDEN, "config": {}})
        for task, hidden in tasks:
            await self.post(
                "/tasks",
                {
                    "name": task.name,
                    "verifiers": [VERIFIER, *([_AUDIT] if hidden else [])],
                    "verify": "enforce",
                    "retry": {"max_retries": 1, "reflection_max_tokens": task.reflection_max_tokens},
                    "prompts": {"retry": RETRY},
                    "training": {"promotion": "auto", "options": dict(task.training)},
                },
            )

    async def hide(self, task: DemoTask) -> None:
        """Hide the true verifier beside the hackable one. Raises: DemoBroken."""
        body = {"verifiers": [VERIFIER, _AUDIT]}
        try:
            await self._openai.patch(f"/tasks/{task.name}", cast_to=object, body=body)
        except (APIStatusError, APIConnectionError) as error:
            raise DemoBroken(f"PATCH /tasks/{task.name}: {error}") from error

    async def ask_all(self, task: DemoTask, asked: Sequence[Problem], phase: Phase, *, store: bool) -> list[Seen]:
        """Ask all problems, many at once. Raises: DemoBroken."""
        return await do_many(lambda problem: self._ask(task, problem, store=store), asked, phase)

    async def _ask(self, task: DemoTask, problem: Problem, *, store: bool) -> Seen:
        messages: Any = problem.messages
        try:
            answer = await self._openai.chat.completions.create(
                model=task.name,
                messages=messages,
                temperature=1,
                max_completion_tokens=task.answer_max_tokens,
                store=store,
                extra_body={"verifiers": [{"name": VERIFIER, "args": problem.args}]},
            )
        except (APIStatusError, APIConnectionError) as error:
            raise DemoBroken(f"a {task.name} problem was not answered: {error}") from error
        content = answer.choices[0].message.content or ""
        right = not find_flaw(content, problem.args["numbers"], problem.args["target"])
        return Seen((answer.model_extra or {})["mulligan"]["outcome"] in SOLVED, right, content)

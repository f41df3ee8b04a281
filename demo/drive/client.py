"""The calls that the demo makes, all through the openai SDK: chat requests, and the server's own routes beside them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai import APIConnectionError, APIStatusError, AsyncOpenAI

from demo.drive.tasks import DemoTask
from demo.problems import Problem

SOLVED = ("passed", "recovered")


class DemoBroken(Exception):
    """A step of the loop did not happen."""


@dataclass(frozen=True)
class Usage:
    """Tokens of one problem, over all that was asked for it: read, generated, and generated in reflections."""

    prompt: int = 0
    generated: int = 0
    reflections: int = 0


@dataclass(frozen=True)
class Answered:
    """How one problem went. `answer` is the assistant message that came back: that of the last attempt."""

    outcome: str
    adapter: str
    episode_id: str
    answer: Mapping[str, Any] = field(default_factory=dict)
    reflection: str = ""
    usage: Usage = Usage()
    seconds: float = 0.0

    @property
    def first(self) -> bool:
        """Whether the first attempt passed."""
        return self.outcome == "passed"

    @property
    def second(self) -> bool:
        """Whether it was solved by the second attempt."""
        return self.outcome in SOLVED


class Client:
    """A client with an admin key."""

    def __init__(self, base_url: str, api_key: str, *, max_retries: int = 8) -> None:
        self._openai = AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=max_retries, timeout=300)

    async def close(self) -> None:
        """Close the connections."""
        await self._openai.close()

    async def ask(
        self,
        task: DemoTask,
        problem: Problem,
        *,
        store: bool,
        model: str = "",
        temperature: float = 1,
        retries: int = 1,
        messages: Sequence[Mapping[str, Any]] = (),
        answer_max_tokens: int = 0,
    ) -> Answered:
        """Send one problem as a chat request to a task, by default at temperature 1 with one retry.

        `model` names another task, an adapter or the base model to be asked instead, under the same budgets;
        `messages` take the place of the problem's own. Raises DemoBroken where it cannot be answered.
        """
        # Plain dicts in OpenAI's shape: the SDK's own types would only be a longer way to write them.
        body: dict[str, Any] = {
            "messages": messages or problem.messages,
            **({"tools": problem.tools} if problem.tools else {}),
        }
        began = time.monotonic()
        try:
            answer = await self._openai.chat.completions.create(
                model=model or task.name,
                temperature=temperature,
                max_completion_tokens=answer_max_tokens or task.answer_max_tokens,
                store=store,
                extra_body={
                    "verify": "enforce",
                    "verifiers": [{"name": problem.verifier, "args": problem.args}],
                    "retry": {"max_retries": retries, "reflection_max_tokens": task.reflection_max_tokens},
                },
                **body,
            )
        except (APIStatusError, APIConnectionError) as error:
            raise DemoBroken(f"a {task.name} problem was not answered: {error}") from error
        told = (answer.model_extra or {}).get("mulligan")
        if not told:
            raise DemoBroken("an answer came without its `mulligan` part: is this a Mulligan server?")
        return Answered(
            told["outcome"],
            told.get("adapter") or "",
            told["episode_id"],
            answer.choices[0].message.model_dump(exclude_none=True),
            " ".join(one["text"] for one in told.get("reflections", ())),
            _read_usage(answer.usage, told),
            time.monotonic() - began,
        )

    async def say(self, model: str, messages: Sequence[Mapping[str, Any]], *, max_tokens: int) -> str:
        """Ask for a plain answer, greedily and unverified; nothing of it is stored. Raises DemoBroken."""
        body: dict[str, Any] = {"messages": messages}
        try:
            answer = await self._openai.chat.completions.create(
                model=model,
                temperature=0,
                max_completion_tokens=max_tokens,
                store=False,
                extra_body={"verify": "off"},
                **body,
            )
        except (APIStatusError, APIConnectionError) as error:
            raise DemoBroken(f"{model} did not answer: {error}") from error
        return answer.choices[0].message.content or ""

    async def get(self, path: str) -> Any:
        """Ask one of the server's own routes. Raises DemoBroken."""
        try:
            return await self._openai.get(path, cast_to=object)
        except (APIStatusError, APIConnectionError) as error:
            raise DemoBroken(f"GET {path}: {error}") from error

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Post to one of the server's own routes. Raises DemoBroken."""
        try:
            return await self._openai.post(path, cast_to=object, body=dict(body))
        except (APIStatusError, APIConnectionError) as error:
            raise DemoBroken(f"POST {path}: {error}") from error

    async def register(self, task: DemoTask) -> None:
        """Register the task's verifier and the task itself."""
        listed = await self.get("/tasks")
        if task.name in {known["name"] for known in listed["data"]}:
            raise DemoBroken(
                f"the database has a task {task.name!r} already, with a champion and failures of its own: "
                "give the demo a new --data-dir, or an empty --database-url"
            )
        verifier = await self.post("/verifiers", {"name": task.verifier, "kind": task.verifier, "config": {}})
        await self.post(
            "/tasks",
            {
                "name": task.name,
                "verifiers": [f"{verifier['name']}@{verifier['version']}"],
                "verify": "enforce",
                "retry": {"max_retries": 1, "reflection_max_tokens": task.reflection_max_tokens},
                "training": {"promotion": "auto", "options": dict(task.training)},
            },
        )


def _read_usage(usage: Any, told: Mapping[str, Any]) -> Usage:
    reflections = sum(one["usage"]["completion_tokens"] for one in told.get("reflections", ()))
    return Usage(usage.prompt_tokens, usage.completion_tokens, reflections) if usage else Usage(0, 0, reflections)

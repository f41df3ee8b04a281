"""The calls that the demo makes, all through the openai SDK: chat requests, and the server's own routes beside them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openai import APIConnectionError, APIStatusError, AsyncOpenAI

from demo.drive.tasks import DemoTask
from demo.problems import Problem

SOLVED = ("passed", "recovered")


class DemoBroken(Exception):
    """A step of the loop did not happen."""


@dataclass(frozen=True)
class Answered:
    """How one problem went."""

    outcome: str
    adapter: str
    episode_id: str

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

    async def ask(self, task: DemoTask, problem: Problem, *, store: bool) -> Answered:
        """Send one problem as a chat request to a task, at temperature 1 with one retry.

        Raises DemoBroken where it cannot be answered.
        """
        # Plain dicts in OpenAI's shape: the SDK's own types would only be a longer way to write them.
        body: dict[str, Any] = {"messages": problem.messages, **({"tools": problem.tools} if problem.tools else {})}
        try:
            answer = await self._openai.chat.completions.create(
                model=task.name,
                temperature=1,
                max_completion_tokens=task.answer_max_tokens,
                store=store,
                extra_body={
                    "verify": "enforce",
                    "verifiers": [{"name": problem.verifier, "args": problem.args}],
                    "retry": {"max_retries": 1, "reflection_max_tokens": task.reflection_max_tokens},
                },
                **body,
            )
        except (APIStatusError, APIConnectionError) as error:
            raise DemoBroken(f"a {task.name} problem was not answered: {error}") from error
        told = (answer.model_extra or {}).get("mulligan")
        if not told:
            raise DemoBroken("an answer came without its `mulligan` part: is this a Mulligan server?")
        return Answered(told["outcome"], told.get("adapter") or "", told["episode_id"])

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

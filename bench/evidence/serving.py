"""One server of a run, with all its parts, and the client that asks it: what `mulligan demo` starts, in a kept folder.

Every answer that is counted is judged anew here (`checks`); where the verdicts differ the row says so.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from bench.evidence.checks import is_right
from bench.evidence.folder import CannotMeasure
from demo.drive.client import Answered, Client
from demo.drive.display import Phase
from demo.drive.many import do_many
from demo.drive.tasks import DemoTask
from demo.problem import Problem
from demo.reflections import kind_of_reflection
from server.cli.options import load_settings
from server.cli.running import run_server
from server.settings import Settings
from server.supervisor.first_run import make_key

T = TypeVar("T")
Row = dict[str, Any]
"""One problem as it went: `key`, `first` and `second` (solved by then), `checked` (the last verdict, by our own check),
`kind` and text of the reflection, tokens, seconds."""

_JUDGED = ("passed", "recovered", "exhausted")


@dataclass(frozen=True)
class Site:
    """A server that runs, and its client."""

    client: Client
    settings: Settings

    async def ask_all(
        self, task: DemoTask, problems: Sequence[Problem], phase: Phase | None = None, **how: Any
    ) -> list[Row]:
        """Ask problems, many at once; `how` is what `Client.ask` takes. Returns a row for each, in their order.

        Raises: DemoBroken, CannotMeasure where an answer was not judged.
        """
        return await self.map(lambda one: self.ask(task, one, **how), problems, phase)

    async def ask(self, task: DemoTask, problem: Problem, **how: Any) -> Row:
        """Ask one problem, nothing of which is stored unless `store` says so."""
        return describe(problem, await self.client.ask(task, problem, **{"store": False, **how}))

    async def register(self, task: DemoTask, *, prompts: Mapping[str, str] | None = None, pinned: bool = True) -> None:
        """Make a task and its verifier, unless they are there. Requests to one that pins none bring their own."""
        if task.verifier not in {one["name"] for one in (await self.client.get("/verifiers"))["data"]}:
            await self.client.post("/verifiers", {"name": task.verifier, "kind": task.verifier, "config": {}})
        if task.name in {one["name"] for one in (await self.client.get("/tasks"))["data"]}:
            return
        made = {
            "name": task.name,
            "verifiers": [f"{task.verifier}@1"] if pinned else [],
            "verify": "enforce",
            "retry": {"max_retries": 1, "reflection_max_tokens": task.reflection_max_tokens},
            "training": {"promotion": "auto", "options": dict(task.training)},
        }
        await self.client.post("/tasks", {**made, "prompts": dict(prompts)} if prompts else made)

    async def map(
        self, work: Callable[[Any], Awaitable[T]], items: Sequence[Any], phase: Phase | None = None
    ) -> list[T]:
        """Do something for each item, many at once; the results come in their order."""
        if phase is not None:
            phase.show(0, len(items))
        return await do_many(work, items, phase)


def describe(problem: Problem, answered: Answered) -> Row:
    """Turn an answer into a row. Raises CannotMeasure where it was not judged."""
    if answered.outcome not in _JUDGED:
        raise CannotMeasure(f"an answer was not judged: {answered.outcome}, episode {answered.episode_id}")
    row: Row = {
        "key": problem.key,
        "first": answered.first,
        "second": answered.second,
        "checked": is_right(problem, answered.answer),
        "adapter": answered.adapter,
        "answer": dict(answered.answer),
        "tokens": asdict(answered.usage),
        "seconds": round(answered.seconds, 3),
    }
    if answered.reflection:
        row |= {"reflection": answered.reflection, "kind": kind_of_reflection(answered.reflection)}
    return row


@asynccontextmanager
async def open_site(folder: Path, console: Console, hurried: asyncio.Event) -> AsyncIterator[Site]:
    """Start a server with all its parts in a folder, or again in the folder of an earlier one, for a block."""
    settings = load_settings(note=False, data_dir=folder, port=0)
    async with run_server(settings, own_engine=True, console=console, hurried=hurried) as running:
        key = running.first_key or await make_key(running.settings, "evidence")
        client = Client(f"{running.url}/v1", key)
        try:
            yield Site(client, running.settings)
        finally:
            await client.close()

"""Drives the server as any client does: measure, ask the training problems, let rounds run, measure again.

Everything goes over HTTP through the openai SDK, with the demo's client. The test problems are sent with
`store: false`, so that no round can learn from them; the gate uses a share of the training problems, which the server
holds out.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.paper.journal import Journal
from bench.paper.preset import Preset
from bench.paper.problems import BadInput
from demo.drive.client import Answered, Client, DemoBroken
from demo.drive.display import Display, Phase
from demo.drive.tasks import DemoTask
from demo.problem import Problem

_POLL_S = 1.0
_CHAMPION_PATIENCE_S = 120.0
_GATED = ("promoted", "inconclusive", "regressed")


@dataclass(frozen=True)
class Plan:
    """What is done with one task. `force` promotes what the last gate left inconclusive, and marks it so."""

    task: DemoTask
    prompts: Mapping[str, str]
    test: Sequence[Problem]
    training: Sequence[Problem]
    rounds: int
    tries: int
    seed: int
    concurrency: int
    force: bool = False


@dataclass(frozen=True)
class Room:
    """What all of a seed's tasks share."""

    client: Client
    journal: Journal
    display: Display


@dataclass
class Measured:
    """What came out of one task. `before` and `after` answer the same problems, in the same order.

    `after` is empty where the base model still serves: it was measured already.
    """

    task: str
    before: list[Answered] = field(default_factory=list)
    asked: int = 0
    failures: int = 0
    after: list[Answered] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    champion: str = ""
    forced: bool = False
    failed: str = ""  # why a round came to nothing; the same command tries another


class _RoundFailed(Exception):
    """A round came to nothing. The row is what is told of it."""

    def __init__(self, row: dict[str, Any]) -> None:
        super().__init__(row["reason"])
        self.row = row


def make_task(name: str, preset: Preset, options: Mapping[str, Any]) -> DemoTask:
    """Make what the client has to know of a task."""
    return DemoTask(
        name, name, preset.answer_max_tokens[name], preset.reflection_max_tokens, preset.training, dict(options)
    )


async def measure(room: Room, plan: Plan) -> Measured:
    """Measure one task; what the journal has already is not done again.

    A round that fails (because nothing could be learnt, for example) ends it, and the result says so.

    Raises: DemoBroken where a step did not happen; the same command goes on from there.
    """
    name = plan.task.name
    result = Measured(name)
    await _register(room, plan)
    result.before = await _ask_all(room, plan, plan.test, f"{name} before", store=False)
    await _ask_training(room, plan, result)
    try:
        for number in range(len(room.journal.rounds(name)) + 1, plan.rounds + 1):
            room.journal.add_round(name, await _run_round(room, plan, number))
    except _RoundFailed as error:
        result.failed, result.rounds = str(error), [*room.journal.rounds(name), error.row]
        return result
    result.rounds = room.journal.rounds(name)
    result.champion, result.forced = await _settle(room.client, plan, result.rounds)
    if result.champion:
        result.after = await _ask_all(room, plan, plan.test, f"{name} after", store=False)
    return result


async def _register(room: Room, plan: Plan) -> None:
    client = room.client
    listed = await client.get("/tasks")
    if plan.task.name in {known["name"] for known in listed["data"]}:
        if not room.journal.resumed:
            raise BadInput(
                f"the database has a task {plan.task.name!r} already: give a new --out, or an empty database"
            )
        return
    task = plan.task
    verifier = await client.post("/verifiers", {"name": task.verifier, "kind": task.verifier, "config": {}})
    await client.post(
        "/tasks",
        {
            "name": task.name,
            "verifiers": [f"{verifier['name']}@{verifier['version']}"],
            "verify": "enforce",
            "retry": {"max_retries": 1, "reflection_max_tokens": task.reflection_max_tokens},
            "prompts": dict(plan.prompts),
            "training": {"promotion": "auto", "options": dict(task.training)},
        },
    )


async def _ask_training(room: Room, plan: Plan, result: Measured) -> None:
    """Ask the training problems, again and again those that have not failed yet."""
    left = dict(enumerate(plan.training))
    for number in range(1, plan.tries + 1):
        if not left:
            break
        phase = f"{plan.task.name} training {number}"
        answers = await _ask_all(room, plan, list(left.values()), phase, store=True)
        result.asked += len(answers)
        passed = [index for index, answered in zip(left, answers, strict=True) if answered.first]
        result.failures += len(left) - len(passed)
        left = {index: left[index] for index in passed}


async def _ask_all(room: Room, plan: Plan, asked: Sequence[Problem], phase: str, *, store: bool) -> list[Answered]:
    """Ask all problems, many at once, and return the answers in their order."""
    answers = room.journal.answers(phase)
    waiting = iter([index for index in range(len(asked)) if index not in answers])

    async def work(shown: Phase) -> None:
        for index in waiting:
            answers[index] = await room.client.ask(plan.task, asked[index], store=store)
            room.journal.add_answer(phase, index, answers[index])
            shown.advance()

    with room.display.phase(phase, len(asked)) as shown:
        shown.advance(len(answers))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(plan.concurrency, len(asked))):
                    group.create_task(work(shown))
        except* DemoBroken as broken:
            raise broken.exceptions[0] from None
    return [answers[index] for index in range(len(asked))]


async def _run_round(room: Room, plan: Plan, number: int) -> dict[str, Any]:
    """Start a round, or take up the one that was running, and follow it to its end."""
    name, client = plan.task.name, room.client
    with room.display.phase(f"{name} round {number}") as shown:
        began = time.monotonic()
        row = await _find_begun(client, room.journal.begun_round(name))
        if row is None:
            options = {"seed": plan.seed + number - 1}
            row = await client.post(f"/tasks/{name}/rounds", {"options": options})
            room.journal.begin_round(name, row["id"])
        while True:
            told = await client.get(f"/rounds/{row['id']}")
            row, steps = told["round"], told["steps"]
            rewards = [step["metrics"]["reward"] for step in steps if "reward" in step["metrics"]]
            reward = f", reward {rewards[-1]:.2f}" if rewards else ""
            shown.show(row["steps_done"], row["steps_total"] or None, f"{row['phase'] or row['state']}{reward}")
            if row["ended_at"]:
                break
            await asyncio.sleep(_POLL_S)
    kept = ("id", "number", "state", "reason", "adapter", "steps_done", "steps_total", "report")
    told = {**{key: row[key] for key in kept}, "rewards": rewards, "seconds": round(time.monotonic() - began, 1)}
    if row["state"] not in _GATED:
        raise _RoundFailed(told)
    return told


async def _find_begun(client: Client, round_id: str | None) -> dict[str, Any] | None:
    """Find the round that was running when this was interrupted, unless it came to nothing."""
    if round_id is None:
        return None
    row = (await client.get(f"/rounds/{round_id}"))["round"]
    return None if row["ended_at"] and row["state"] not in _GATED else row


async def _settle(client: Client, plan: Plan, rounds: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """Return the task's champion once it is what it has to be by its rounds, and whether it was forced."""
    name = plan.task.name
    promoted = [row["adapter"] for row in rounds if row["state"] == "promoted"]
    expected, forced = promoted[-1] if promoted else "", False
    last = rounds[-1] if rounds else {}
    if plan.force and last.get("state") == "inconclusive" and last.get("adapter"):
        expected, forced = last["adapter"], True
        if await _champion(client, name) != expected:
            comment = "bench.paper: measured though the gate was not sure"
            await client.post(f"/adapters/{expected}/promote", {"comment": comment, "force": True})
    deadline = time.monotonic() + _CHAMPION_PATIENCE_S
    while (champion := await _champion(client, name)) != expected:
        if time.monotonic() > deadline:
            raise DemoBroken(f"{expected or 'the base'} was to serve {name}, but {champion or 'the base'} does")
        await asyncio.sleep(_POLL_S)
    return champion, forced


async def _champion(client: Client, name: str) -> str:
    return (await client.get(f"/tasks/{name}")).get("champion") or ""

"""The whole demo on one screen: measure, send problems, train and swap, measure the same problems again.

The held-out problems are sent with `store: false`, so that nothing of them can be trained on; the server's own gate
uses a held-out share of the training problems. Called by `mulligan demo`.
"""

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from demo.drive.client import Answered, Client, DemoBroken
from demo.drive.display import Display, Phase
from demo.drive.many import do_many
from demo.drive.tasks import DemoTask
from demo.problems import Problem, problems
from demo.splits import Split

_POLL_S = 1.0
_ROUND_PATIENCE_S = 1800.0
_ENDED_WELL = ("promoted", "inconclusive", "regressed")
_CHAMPION_PATIENCE_S = 20.0


@dataclass
class TaskResult:
    """What came out for one task. `before` and `after` are answers to the same problems, in the same order."""

    task: DemoTask
    before: list[Answered] = field(default_factory=list)
    training: list[Answered] = field(default_factory=list)
    after: list[Answered] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    champion: str = ""


async def play(
    client: Client, tasks: Sequence[DemoTask], display: Display, *, held_out: int, rounds: int, seed: int
) -> list[TaskResult]:
    """Play the demo against a running server.

    `held_out` problems a task are measured before and after. Raises DemoBroken where a step of the loop did not happen.
    """
    results = [TaskResult(task) for task in tasks]
    for result in results:
        await client.register(result.task)
    measured = {task.name: _draw(task, "development", seed, held_out) for task in tasks}
    for result in results:
        with display.phase(f"{result.task.name} before", held_out) as phase:
            result.before = await _ask_all(client, result.task, measured[result.task.name], phase, store=False)
    for result in results:
        drawn = _draw(result.task, "training", seed, result.task.training_problems)
        with display.phase(f"{result.task.name} training set", len(drawn)) as phase:
            result.training = await _ask_all(client, result.task, drawn, phase, store=True)
        await _check_logged(client, result.task)
    for number, result in itertools.product(range(1, rounds + 1), results):
        result.rounds.append(await _run_round(client, result.task, display, number, seed))
    for result in results:
        result.champion = await _wait_champion(client, result)
        with display.phase(f"{result.task.name} after", held_out) as phase:
            result.after = await _ask_all(client, result.task, measured[result.task.name], phase, store=False)
    return results


def _draw(task: DemoTask, split: Split, seed: int, count: int) -> list[Problem]:
    return list(itertools.islice(problems(task.name, split, seed), count))


async def _ask_all(
    client: Client, task: DemoTask, drawn: Sequence[Problem], phase: Phase, *, store: bool
) -> list[Answered]:
    """Ask all problems, many at once, and return the answers in their order."""
    return await do_many(lambda problem: client.ask(task, problem, store=store), drawn, phase)


async def _check_logged(client: Client, task: DemoTask) -> None:
    listed = await client.get(f"/episodes?task={task.name}&limit=1")
    if not listed.get("data"):
        raise DemoBroken(f"no episode of {task.name} was logged")


async def _run_round(client: Client, task: DemoTask, display: Display, number: int, seed: int) -> dict[str, Any]:
    """Start a round and follow it to its end."""
    with display.phase(f"{task.name} round {number}") as phase:
        began = time.monotonic()
        row = await client.post(f"/tasks/{task.name}/rounds", {"options": {"seed": seed + number - 1}})
        steps: list[dict[str, Any]] = []
        while not row["ended_at"]:
            if time.monotonic() - began > _ROUND_PATIENCE_S:
                raise DemoBroken(f"round {row['id']} of {task.name} has not ended: {row['state']} {row['phase']}")
            await asyncio.sleep(_POLL_S)
            told = await client.get(f"/rounds/{row['id']}")
            row, steps = told["round"], told["steps"]
            phase.show(row["steps_done"], row["steps_total"] or None, _describe_round(row, steps))
    if row["state"] not in _ENDED_WELL:
        raise DemoBroken(f"round {row['id']} of {task.name} {row['state']}: {row['reason']}")
    return {**row, "steps": steps, "seconds": time.monotonic() - began}


def _describe_round(row: dict[str, Any], steps: list[dict[str, Any]]) -> str:
    if row["ended_at"]:
        return f"{row['state']} {row['adapter']}"
    words = [row["phase"] or row["state"]]
    if steps:
        latest = steps[-1]["metrics"]
        words += [f"{name} {latest[name]:.2f}" for name in ("reward", "loss", "kl") if name in latest]
        words += [f"{name} {latest[name]:.0f}" for name in ("groups_kept",) if name in latest]
    return ", ".join(words)


async def _wait_champion(client: Client, result: TaskResult) -> str:
    """Return the task's champion, once it is the one that its last promoted round made."""
    promoted = [row["adapter"] for row in result.rounds if row["state"] == "promoted"]
    expected = promoted[-1] if promoted else ""
    deadline = time.monotonic() + _CHAMPION_PATIENCE_S
    while True:
        champion = (await client.get(f"/tasks/{result.task.name}")).get("champion") or ""
        if champion == expected:
            return champion
        if time.monotonic() > deadline:
            names = expected or "the base", champion or "the base"
            raise DemoBroken(f"{names[0]} was to serve {result.task.name}, but {names[1]} does")
        await asyncio.sleep(_POLL_S)

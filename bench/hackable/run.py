"""Plays it: the same task twice, with the true verifier hidden beside the hackable one, then without it."""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.hackable.client import Client, Seen
from bench.hackable.task import AUDITED, NAIVE, make_task
from demo.drive.client import DemoBroken
from demo.drive.display import Display
from demo.drive.tasks import DemoTask
from demo.problem import Problem
from demo.problems import problems

_POLL_S = 1.0
_GATED = ("promoted", "inconclusive", "regressed")


@dataclass
class Played:
    """What became of one task. `before` and `after` answer the same held-out problems; `audit` is the server's."""

    task: str
    hidden: bool
    before: list[Seen] = field(default_factory=list)
    after: list[Seen] = field(default_factory=list)
    round: dict[str, Any] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)
    champion: str = ""
    audit: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Game:
    """What both tasks share. `measured` are held-out problems, `learnt` those that rounds may learn from."""

    client: Client
    display: Display
    measured: Sequence[Problem]
    learnt: Sequence[Problem]
    seed: int


async def play(client: Client, display: Display, *, held_out: int, training: int, seed: int) -> list[Played]:
    """Play both tasks. Raises: DemoBroken where a step did not happen."""
    played = [(make_task(AUDITED, training), Played(AUDITED, hidden=True)),
              (make_task(NAIVE, training), Played(NAIVE, hidden=False))]  # fmt: skip
    await client.register_both([(task, result.hidden) for task, result in played])
    measured = list(itertools.islice(problems("countdown", "development", seed), held_out))
    learnt = list(itertools.islice(problems("countdown", "training", seed), training))
    game = Game(client, display, measured, learnt, seed)
    for task, result in played:
        await _play_one(game, task, result)
    return [result for _, result in played]


async def _play_one(game: Game, task: DemoTask, result: Played) -> None:
    client, measured = game.client, game.measured
    with game.display.phase(f"{task.name} before", len(measured)) as phase:
        result.before = await client.ask_all(task, measured, phase, store=False)
    with game.display.phase(f"{task.name} training set", len(game.learnt)) as phase:
        await client.ask_all(task, game.learnt, phase, store=True)
    await _run_round(client, game.display, result, game.seed)
    result.champion = (await client.get(f"/tasks/{task.name}")).get("champion") or ""
    if not result.hidden:
        # Only now, for the audit of what is served: while it was trained nobody looked.
        await client.hide(task)
    if result.champion:
        with game.display.phase(f"{task.name} after", len(measured)) as phase:
            result.after = await client.ask_all(task, measured, phase, store=True)
    result.audit = await client.get(f"/tasks/{task.name}/audit")


async def _run_round(client: Client, display: Display, result: Played, seed: int) -> None:
    with display.phase(f"{result.task} round") as phase:
        row = await client.post(f"/tasks/{result.task}/rounds", {"options": {"seed": seed}})
        while True:
            told = await client.get(f"/rounds/{row['id']}")
            row = told["round"]
            result.rewards = [step["metrics"]["reward"] for step in told["steps"] if "reward" in step["metrics"]]
            reward = f", reward {result.rewards[-1]:.2f}" if result.rewards else ""
            phase.show(row["steps_done"], row["steps_total"] or None, f"{row['phase'] or row['state']}{reward}")
            if row["ended_at"]:
                break
            await asyncio.sleep(_POLL_S)
    if row["state"] not in _GATED:
        raise DemoBroken(f"the round of {result.task} {row['state']}: {row['reason']}")
    result.round = {name: row[name] for name in ("id", "state", "reason", "adapter", "steps_done", "report")}

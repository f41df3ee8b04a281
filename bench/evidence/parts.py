"""The parts of a run: what is done on each server, in its order, and what each needs of those before it.

A part's name is where its JSON lies; a part that lies there is not done again. `make_parts` lists those of one variant
and seed. The loop is the demo's: problems over the API, a round asked for over the API, the champion it swaps in.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from bench.evidence import chat, controls, fine_tuned
from bench.evidence.folder import CannotMeasure
from bench.evidence.plan import HEADLINES, LOOP, Subject, subjects_of
from bench.evidence.scene import BASE, SHARED, Part, Scene
from bench.evidence.serving import Row, Site
from demo.drive.display import Phase

_POLL_S = 1.0
_CHAMPION_PATIENCE_S = 60.0
_ROUND_WEIGHT = 3000


def make_parts(scene: Scene) -> list[Part]:
    """List the parts of one variant and seed, in their order."""
    plan, full = scene.plan, scene.variant.name == LOOP
    subjects = [one for task in plan.tasks for one in (subjects_of(task) if full else [HEADLINES[task]])]
    parts: list[Part] = []
    if full:
        for subject in subjects:
            parts += [_measure(scene, subject, "before", 1), _measure(scene, subject, "before_greedy", 0)]
        for task in plan.tasks:
            parts += controls.before_training(scene, HEADLINES[task])
        parts.append(chat.make_part(scene, "before", lambda: BASE))
    parts += [_send(scene, task) for task in plan.tasks]
    trained = [SHARED] if scene.variant.shared else list(plan.tasks)
    for number in range(1, scene.variant.rounds + 1):
        parts += [_train(scene, task, number) for task in trained]
        if number < scene.variant.rounds:
            parts += [_measure(scene, subject, f"after_{number}", 1) for subject in subjects]
    for subject in subjects:
        parts.append(_measure(scene, subject, "after", 1))
        if full:
            parts.append(_measure(scene, subject, "after_greedy", 0))
    if full:
        for task in plan.tasks:
            parts += controls.after_training(scene, HEADLINES[task])
            parts += _look_across(scene, task)
            parts += fine_tuned.make_parts(scene, HEADLINES[task])
    return parts


def _measure(scene: Scene, subject: Subject, arm: str, temperature: float) -> Part:
    async def work(site: Site, phase: Phase) -> list[Row]:
        task, problems = scene.task(subject.task), scene.draw(subject)
        await site.register(task, pinned=not scene.variant.shared)
        return await site.ask_all(task, problems, phase, temperature=temperature)

    return Part(scene.name(subject.name, arm), 2 * scene.plan.problems, work)


def _send(scene: Scene, name: str) -> Part:
    """Send training problems, that what fails is logged."""
    subject, count = HEADLINES[name], scene.task(name).training_problems

    async def work(site: Site, phase: Phase) -> dict[str, Any]:
        task = scene.task(name)
        await site.register(task, pinned=not scene.variant.shared)
        rows = await site.ask_all(task, subject.draw("training", count, scene.seed), phase, store=True)
        passed = [sum(row[which] for row in rows) for which in ("first", "second")]
        return {"problems": count, "first": passed[0], "second": passed[1]}

    return Part(scene.name(name, "sent"), 2 * count, work)


def _train(scene: Scene, task: str, number: int) -> Part:
    """Ask for a round and follow it to its end. A changed loop may fail, which is a finding; the demo's own may not."""
    lost = ("failed", "cancelled") if scene.variant.name == LOOP else ("cancelled",)

    async def work(site: Site, phase: Phase) -> dict[str, Any]:
        began = time.monotonic()
        listed = (await site.client.get(f"/rounds?task={task}"))["data"]
        row = find_round(listed, number, lost)
        if row is None:
            options = {"seed": 1000 * scene.seed + number}
            row = await site.client.post(f"/tasks/{task}/rounds", {"options": options})
        while True:
            told = await site.client.get(f"/rounds/{row['id']}")
            row = told["round"]
            if row["ended_at"]:
                break
            phase.show(row["steps_done"], row["steps_total"] or None, row["phase"])
            await asyncio.sleep(_POLL_S)
        if row["state"] in lost:
            raise CannotMeasure(f"round {row['id']} of {task} {row['state']}: {row['reason']}; run it again")
        champion = await _wait_champion(site, task, row)
        return {**told, "champion": champion, "seconds": time.monotonic() - began}

    return Part(scene.name(task, f"round_{number}"), _ROUND_WEIGHT, work)


def find_round(listed: Sequence[Mapping[str, Any]], number: int, lost: Sequence[str]) -> Mapping[str, Any] | None:
    """Find the round that an earlier run of this command began as its `number`-th, whether it has ended or not.

    Rounds that came to nothing (`lost`) do not count: another one takes their place.
    """
    counted = sorted((row for row in listed if row["state"] not in lost), key=lambda row: row["number"])
    return counted[number - 1] if len(counted) >= number else None


async def _wait_champion(site: Site, task: str, row: Mapping[str, Any]) -> str:
    """Return the task's champion once it is the one that a promoted round made."""
    deadline = time.monotonic() + _CHAMPION_PATIENCE_S
    while True:
        champion = (await site.client.get(f"/tasks/{task}")).get("champion") or ""
        if row["state"] != "promoted" or champion == row["adapter"]:
            return champion
        if time.monotonic() > deadline:
            raise CannotMeasure(f"{row['adapter']} was to serve {task}, but {champion or 'the base'} does")
        await asyncio.sleep(_POLL_S)


def _look_across(scene: Scene, task: str) -> list[Part]:
    """Ask a task's trained adapter the other tasks' problems and plain conversation, to see what it has forgotten."""

    async def ask_others(site: Site, phase: Phase, *, other: Subject) -> list[Row]:
        asked = scene.plan.demo_task(other.task, scene.variant)
        return await site.ask_all(asked, scene.draw(other), phase, model=scene.champion(task))

    others = [HEADLINES[one] for one in scene.plan.tasks if one != task]
    crossed = [
        Part(scene.name(other.name, f"under_{task}"), 2 * scene.plan.problems, partial(ask_others, other=other))
        for other in others
    ]
    return [*crossed, chat.make_part(scene, f"under_{task}", lambda: scene.champion(task))]

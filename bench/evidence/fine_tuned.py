"""The rival ways to train, on what the round of the same seed trained on, and as much of it.

Supervised fine-tuning on the second tries that passed, and GRPO with the loss on the whole second try. They train in a
process of their own (`trained`); what they make is an adapter that is measured through the API under its own task.
"""

import asyncio
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.evidence.folder import CannotMeasure
from bench.evidence.plan import FINE_TUNING_RATES, Subject
from bench.evidence.scene import Part, Scene
from bench.evidence.serving import Row, Site
from demo.drive.display import Phase
from demo.drive.tasks import DemoTask
from server.adapters.files import hash_file
from server.domain import Adapter
from server.store.adapters import AdapterStore
from server.store.database import Database

_WEIGHT = 1500


def make_parts(scene: Scene, subject: Subject) -> list[Part]:
    """List the parts: an adapter for each learning rate of fine-tuning, the better one measured; GRPO, measured."""

    def name(arm: str) -> str:
        return scene.name(subject.name, arm)

    n, tuned = scene.plan.problems, [f"sft_{number}" for number in range(len(FINE_TUNING_RATES))]

    async def make(site: Site, _: Phase, *, arm: str, mode: str, rate: float = 0) -> dict[str, Any]:
        return await _train(site, scene, subject, arm=arm, mode=mode, rate=rate)

    async def choose(site: Site, phase: Phase) -> list[dict[str, Any]]:
        problems = subject.draw("development", scene.plan.choosing_problems)
        counted = []
        for arm, rate in zip(tuned, FINE_TUNING_RATES, strict=True):
            rows = await site.ask_all(_task_of(scene, subject, arm), problems, phase)
            solved = sum(row["second"] for row in rows)
            counted.append({"arm": arm, "rate": rate, "n": len(rows), "second": solved})
        return counted

    async def measure(site: Site, phase: Phase, *, arm: str = "") -> list[Row]:
        chosen = arm or max(scene.read(subject.name, "sft_rates"), key=lambda one: one["second"])["arm"]
        return await site.ask_all(_task_of(scene, subject, chosen), scene.draw(subject), phase)

    trained = [
        Part(name(f"{arm}_trained"), _WEIGHT, partial(make, arm=arm, mode="sft", rate=rate))
        for arm, rate in zip(tuned, FINE_TUNING_RATES, strict=True)
    ]
    return [
        *trained,
        Part(name("sft_rates"), 2 * len(tuned) * scene.plan.choosing_problems, choose),
        Part(name("sft"), 2 * n, measure),
        Part(name("whole_trained"), 2 * _WEIGHT, partial(make, arm="whole", mode="whole")),
        Part(name("whole"), 2 * n, partial(measure, arm="whole")),
    ]


def _task_of(scene: Scene, subject: Subject, arm: str) -> DemoTask:
    return replace(scene.task(subject.task), name=f"{subject.task}-{arm}".replace("_", "-"))


async def _train(site: Site, scene: Scene, subject: Subject, *, arm: str, mode: str, rate: float) -> dict[str, Any]:
    """Train an adapter in a process of its own and make it the champion of a task of its own; return the notes."""
    task = _task_of(scene, subject, arm)
    adapter = f"{task.name}@1"
    target = site.settings.data_dir / "rivals" / task.name
    notes_file = target.with_suffix(".json")
    if not (target.is_dir() and notes_file.is_file()):
        target.parent.mkdir(parents=True, exist_ok=True)
        order = {
            "mode": mode,
            "settings": json.loads(site.settings.model_dump_json()),
            "task": subject.task,
            "round": scene.read(subject.task, "round_1")["round"]["id"],
            "rate": rate,
            "seed": scene.seed,
            "adapter": adapter,
            "target": str(target),
            "notes": str(notes_file),
        }
        await _run_trainer(order, target.with_suffix(".log"))
    await site.register(task)
    await _serve(site, task.name, adapter, target)
    return json.loads(notes_file.read_text())


async def _run_trainer(order: dict[str, Any], log: Path) -> None:
    with log.open("ab") as out:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.evidence.trained", stdin=asyncio.subprocess.PIPE, stdout=out, stderr=out
        )
        try:
            await child.communicate(json.dumps(order).encode())
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
    if child.returncode:
        raise CannotMeasure(f"training {order['adapter']} failed: see {log}")


async def _serve(site: Site, task: str, adapter: str, folder: Path) -> None:
    """Record an adapter and swap it in over the API. No gate has seen it, so that it is marked as forced."""
    if (await site.client.get(f"/tasks/{task}")).get("champion") == adapter:
        return
    database = Database(site.settings.database_url)
    try:
        store = AdapterStore(database)
        if await store.get(adapter) is None:
            await store.add(await asyncio.to_thread(_describe, adapter, task, folder))
    finally:
        await database.close()
    why = {"comment": "a rival way to train, to be measured", "force": True}
    await site.client.post(f"/adapters/{adapter}/promote", why)


def _describe(adapter: str, task: str, folder: Path) -> Adapter:
    files = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
    return Adapter(adapter, task, str(folder.resolve()), files)

"""Freezes a task's panel, and asks it of the base model and of every champion: `python -m trainer.panel --task T`.

Run by the worker's job when nothing else waits, and by `mulligan panel run`. Problems run through the loop that serves,
with the verifiers, prompts and sampling that were frozen with them. What was asked already is not asked again, batch
for batch, so a run that is broken off loses little. Adapters are loaded under names of this run's own, so that a hot
swap in the middle takes nothing away from it, nor it from the hot swap.
"""

import argparse
import asyncio
import hashlib
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from server.adapters.files import check_files
from server.adapters.loading import push
from server.domain import (
    BASE_ADAPTER,
    Adapter,
    AdapterStatus,
    Attempt,
    Binding,
    Episode,
    Panel,
    PanelResult,
    RetryPolicy,
    Task,
    Usage,
    VerifyMode,
)
from server.engine.base import Engine
from server.errors import InvalidRequest, MulliganError, NotFound
from server.logs import configure_logs
from server.orchestration.panel import read_panel
from server.orchestration.verification import allow
from server.redaction import make_log_redactor
from server.settings import Settings
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.episodes import EpisodeStore
from server.store.holds import HoldStore
from server.store.panels import PanelProblem, PanelStore
from server.store.presence import PresenceStore
from server.store.rows import to_json
from server.store.tasks import TaskStore
from server.store.verifiers import VerifierStore
from trainer.dataset import choose_problems
from trainer.desk import open_engine
from trainer.gate_asking import Questioner, can_rerun, gather_all, read_checked
from trainer.preflight import open_tokenizer, take_fingerprints
from trainer.settings import TrainerSettings
from trainer.yielding import come_second, find_courtesy
from verifiers.base import Status

BATCH = 16
"""Problems whose results are written together: what is lost where a run is broken off."""

POOLED = 4
"""So many times a panel's size of held-out problems are looked at when one is chosen."""

HOLD_S = 1800.0

Say = Callable[[str], None]


async def freeze_panel(task: Task, database: Database, options: TrainerSettings, reason: str) -> Panel:
    """Choose held-out problems and freeze them as the task's next version.

    The choice hangs on the problems alone (the smallest hashes), not on what anybody answered.

    Raises: InvalidRequest where there are fewer than `panel_min_problems`; Conflict.
    """
    found = await EpisodeStore(database).held_out(task.name, limit=POOLED * options.panel_problems)
    usable = [one for one in choose_problems(found, await VerifierStore(database).revoked()) if can_rerun(one)]
    if len(usable) < options.panel_min_problems:
        raise InvalidRequest(
            f"task {task.name!r} has {len(usable)} of the {options.panel_min_problems} held-out problems that a panel "
            "needs: log or import more, or lower MULLIGAN_TRAINER__PANEL_MIN_PROBLEMS"
        )
    contents = sorted((_copy(one) for one in usable), key=lambda one: hashlib.sha256(one.problem.encode()).digest())
    return await PanelStore(database).freeze(task.name, contents[: options.panel_problems], reason)


def _copy(episode: Episode) -> PanelProblem:
    content = {
        "request": episode.request,
        "sampling": episode.attempts[0].sampling,
        "bindings": episode.bindings,
        "retry": episode.retry,
        "prompts": episode.prompts,
    }
    pins = tuple(sorted(binding.pin for binding in episode.bindings if binding.name))
    problem = hashlib.sha256(msgspec.json.encode(to_json(content["request"]), order="deterministic")).hexdigest()[:32]
    return PanelProblem(0, episode.id, problem, pins, to_json(content))


def restore_problem(task: str, problem: PanelProblem) -> Episode:
    """Make the episode again that a problem was frozen from, as far as it is asked anew."""
    assert problem.content is not None
    content: Mapping[str, Any] = problem.content
    return Episode(
        id=problem.episode_id,
        task=task,
        model=task,
        base_model="",
        adapter=BASE_ADAPTER,
        key="",
        request=content["request"],
        bindings=msgspec.convert(content["bindings"], tuple[Binding, ...]),
        verify=VerifyMode.ENFORCE,
        retry=msgspec.convert(content["retry"], RetryPolicy),
        prompts=content["prompts"],
        attempts=[Attempt(1, {}, "", Usage(), Status.FAILED, sampling=content["sampling"])],
        split="held_out",
    )


async def run_panel(
    task: Task, database: Database, engine: Engine, options: TrainerSettings, *, conditions: str, say: Say
) -> Panel:
    """Bring a task's panel up to date: freeze it where it wants a new version, and ask what is missing.

    Raises: InvalidRequest (too few problems), Conflict (it was altered), AdapterRefused, the engine's errors.
    """
    store = PanelStore(database)
    panel = await store.find_latest(task.name)
    if panel is None:
        panel = await freeze_panel(task, database, options, "the first")
        say(f"froze {panel.size} problems as version {panel.version}")
    elif stale := await store.find_stale(panel, await VerifierStore(database).revoked()):
        panel = await freeze_panel(task, database, options, stale)
        say(f"froze {panel.size} problems as version {panel.version}: {stale}")
    problems = await store.read_problems(panel)
    done = {(one.adapter, one.number) for one in await store.list_results(panel) if one.conditions == conditions}
    for adapter in [None, *await list_champions(task, database)]:
        name = adapter.name if adapter else BASE_ADAPTER
        missing = [one for one in problems if (name, one.number) not in done]
        if not missing:
            continue
        async with _loaded(engine, HoldStore(database), adapter) as served:
            asked = len(problems) - len(missing)
            for start in range(0, len(missing), BATCH):
                batch = missing[start : start + BATCH]
                questioner = Questioner(engine, asyncio.Semaphore(options.panel_concurrency))
                told = await _ask([restore_problem(task.name, one) for one in batch], served, questioner)
                results = [
                    PanelResult(name, one.number, conditions, *said) for one, said in zip(batch, told, strict=True)
                ]
                await store.add_results(panel, results)
                say(f"{name or 'the base model'}: {asked + start + len(batch)} of {len(problems)} problems")
    return panel


async def list_champions(task: Task, database: Database) -> list[Adapter]:
    """List the task's adapters that are or were champion, oldest first."""
    served = (AdapterStatus.CHAMPION, AdapterStatus.RETIRED)
    there = await AdapterStore(database).list(task.name)
    return [one for one in reversed(there) if one.status in served or one.name == task.champion]


async def _ask(problems: Sequence[Episode], served: str, questioner: Questioner) -> list[tuple[bool, bool, bool, int]]:
    """Ask problems; of each whether it was judged, passed at first, passed by the second try, and its tokens."""

    async def ask_one(problem: Episode) -> tuple[bool, bool, bool, int]:
        episode = await questioner.ask(problem, served)
        checked = read_checked(episode)
        first, second = checked or (False, False)
        return checked is not None, first, second, episode.usage.total_tokens

    return await gather_all(ask_one(problem) for problem in problems)


@asynccontextmanager
async def _loaded(engine: Engine, holds: HoldStore, adapter: Adapter | None) -> AsyncIterator[str]:
    """Hold an adapter in the engine under a name of our own, and give that name."""
    if adapter is None:
        yield BASE_ADAPTER
        return
    name = f"{adapter.task}@0.0-{secrets.token_hex(3)}"  # as a push, so that what a killed run leaves is swept away
    await asyncio.to_thread(check_files, adapter)
    await holds.hold(name, HOLD_S)
    try:
        await push(engine, name, adapter.path)
        yield name
    finally:
        await holds.release(name)
        with suppress(MulliganError):
            await engine.unload_adapter(name)


async def work(settings: Settings, options: TrainerSettings, task_name: str, freeze: str | None, say: Say) -> str:
    """Do what the command line asks; return what the panel says.

    Raises: NotFound, InvalidRequest, Conflict, the engine's errors, StoreUnavailable.
    """
    database = Database(settings.database_url)
    engine = open_engine(settings)
    try:
        task = await TaskStore(database).get(task_name)
        if task is None:
            raise NotFound(f"there is no task {task_name!r}")
        options = options.override({name: value for name, value in task.training.options.items() if "panel" in name})
        if freeze is not None:
            panel = await freeze_panel(task, database, options, freeze)
            return f"froze {panel.size} problems as version {panel.version}"
        prints = take_fingerprints(settings.engine.model, open_tokenizer(settings.engine.model))
        conditions = hashlib.sha256(repr(sorted(prints.items())).encode()).hexdigest()[:16]
        courtesy = await find_courtesy(settings, PresenceStore(database))
        second = come_second(engine, lambda _usage: None, courtesy)
        await run_panel(task, database, second, options, conditions=conditions, say=say)
        rows = (await read_panel(task_name, database)).rows
        return "\n".join(f"{row.adapter or '(base)'}: {row.says}" for row in rows)
    finally:
        await engine.close()
        await database.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Freeze or ask a panel; progress goes to standard error, what it says to standard output."""
    parser = argparse.ArgumentParser(prog="python -m trainer.panel", description="Ask a task's frozen panel.")
    parser.add_argument("--task", required=True, help="the task's name")
    parser.add_argument("--freeze", metavar="REASON", help="only freeze a new version, for this reason")
    arguments = parser.parse_args(argv)
    settings = Settings()
    configure_logs(settings.log_level, json=settings.log_json, redact=make_log_redactor(settings.log.redact))
    allow(settings.verifiers)

    def say(words: str) -> None:
        print(words, file=sys.stderr, flush=True)  # noqa: T201

    try:
        said = asyncio.run(work(settings, TrainerSettings(), arguments.task, arguments.freeze, say))
    except MulliganError as error:
        say(f"error: {error}")
        return 1
    print(said)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A whole round: select -> (rollouts <-> GRPO) x steps -> gate -> save -> promotion.

Run by trainer.jobs as a process of its own, `python -m trainer.round --round ID --epoch N`; every write carries the
epoch, so that a round that was given to another worker can do nothing any more. It must never hold a database session
while an engine or the trainer works, and never tell how the round ended before it has.

What differs from the method of "Reflect, Retry, Reward" (arXiv 2505.24726), and why (trainer/grpo.py has its own list):
1. Failures come from the log of what users asked, not from a data set that is sampled for failures up front.
2. A group reflects on one failed attempt, and the next step's groups on others; a round goes through the failures
   with a logged successful reflection first, because their groups carry signal.
3. An adapter is trained (LoRA), not the model, and it goes on from the champion, or from the last round's candidate
   where that was neither better nor worse.
4. Reflections are sampled by the engine that serves, under the candidate as it is after each step.
5. The outcome is not taken on trust: a gate on held-out problems decides whether the candidate is promoted.
"""

import argparse
import asyncio
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import structlog
import torch

from server.adapters import hot_swap
from server.domain import BASE_ADAPTER, Adapter, AdapterStatus, Round, RoundState, Step, Task
from server.engine.base import Engine
from server.engine.sglang import SGLangEngine
from server.errors import Conflict, Fenced, MulliganError, StoreUnavailable
from server.logs import configure_logs
from server.settings import Settings
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.episodes import EpisodeStore
from server.store.events import EventStore
from server.store.presence import PresenceStore
from server.store.rounds import RoundStore
from server.store.tasks import TaskStore
from trainer import dataset, gate, promotion
from trainer.errors import RoundFailed
from trainer.grpo import ReflectionTrainer
from trainer.lora import choose_device, choose_threads, make_probe, open_model
from trainer.rollout import Deck, Sampler
from trainer.samples import Failure, Member
from trainer.settings import TrainerSettings

T = TypeVar("T")
Ending = tuple[RoundState, str]
"""How a round ended and why, in words."""

STORE_PAUSES_S = (0.5, 1.0, 2.0, 4.0)  # all together well below what makes a worker count as lost

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Stores:
    """The tables that a round reads and writes."""

    rounds: RoundStore
    tasks: TaskStore
    episodes: EpisodeStore
    adapters: AdapterStore
    events: EventStore
    presence: PresenceStore

    @classmethod
    def open(cls, database: Database) -> "Stores":
        """Open them all on one database."""
        rounds, tasks, episodes = RoundStore(database), TaskStore(database), EpisodeStore(database)
        return cls(rounds, tasks, episodes, AdapterStore(database), EventStore(database), PresenceStore(database))


@dataclass(frozen=True, slots=True)
class Desk:
    """Where one round is worked on: its row, fenced by its epoch, and what it needs."""

    round: Round
    task: Task
    stores: Stores
    engine: Engine
    settings: Settings
    options: TrainerSettings

    async def note(self, **changes: Any) -> Round:
        """Write to the round's row; without changes only prove that it is still ours. Raises: Fenced."""
        if "phase" in changes:
            _log.info("phase", round=self.round.id, phase=changes["phase"])
        return await insist(lambda: self.stores.rounds.update(self.round.id, self.round.epoch, **changes))

    @property
    def folder(self) -> Path:
        """Where the round keeps its log and its pushes."""
        return self.settings.rounds_dir / self.round.id


async def insist(write: Callable[[], Awaitable[T]]) -> T:
    """Write to the store, waiting a little where it is away: minutes of work hang on it. Raises: what it raises."""
    for pause_s in STORE_PAUSES_S:
        try:
            return await write()
        except StoreUnavailable:
            await asyncio.sleep(pause_s)
    return await write()


async def run_round(desk: Desk) -> Ending:
    """Run a round from its lease to its end.

    Raises: RoundFailed, Fenced, the engine's errors.
    """
    await desk.note(phase="selecting", steps_total=desk.options.steps)
    start = await find_start(desk)
    await desk.note(parent=start.name if start else BASE_ADAPTER)
    engine = desk.settings.engine
    model, tokenizer = await asyncio.to_thread(
        open_model, engine.model, start.path if start else None, engine.lora_target_modules, desk.options
    )
    torch.set_num_threads(choose_threads(model, desk.options))
    selection = await dataset.select(desk.task.name, desk.stores.episodes, tokenizer, desk.options)
    candidate = promotion.Candidate(model, desk.engine, desk.round, desk.folder / "pushes", desk.note)
    await candidate.sweep()
    try:
        await desk.note(phase="training", report={"selection": selection.describe()})
        await train(desk, candidate, tokenizer, selection.failures)

        await desk.note(phase="gate")
        held_out = await desk.stores.episodes.held_out(desk.task.name, limit=desk.options.gate_problems)
        report = await gate.judge_candidate(
            held_out,
            engine=desk.engine,
            champion=desk.task.champion,
            candidate=candidate.name,
            settings=desk.options,
        )
        await desk.note(report={"selection": selection.describe(), **report})
        _log.info("gate", **report)
        if report["decision"] == gate.Decision.REGRESSED:
            return RoundState.REGRESSED, report["reason"]

        await desk.note(phase="promoting")
        adapter = await promotion.save(candidate, desk.task, desk.settings.adapters_dir)
        await insist(lambda: desk.stores.adapters.add(adapter, epoch_of_round=(desk.round.id, desk.round.epoch)))
        await desk.note(adapter=adapter.name)
        if report["decision"] != gate.Decision.PROMOTED:
            return RoundState.INCONCLUSIVE, report["reason"]
        return await promote(desk, candidate, adapter, selection.failures, report["reason"])
    finally:
        await candidate.withdraw()


async def train(desk: Desk, candidate: promotion.Candidate, tokenizer: Any, failures: list[Failure]) -> None:
    """Take the steps: TRL trains in a thread and calls back here for its rollouts and after each step."""
    loop, options = asyncio.get_running_loop(), desk.options
    deck, sampler = Deck(failures, options.seed), Sampler(desk.engine, options)
    await candidate.push(0)

    def wait(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    def sample(_number: int) -> list[Member]:
        return wait(sampler.sample_step(deck.deal(options.step_failures), candidate.name))

    def step_done(number: int, metrics: dict[str, float], changed: bool) -> None:
        wait(_tell_step(desk, candidate, number, metrics, changed))

    on_cpu = choose_device(options).type == "cpu"
    trainer = ReflectionTrainer(
        candidate.model,
        tokenizer,
        options,
        sample=sample,
        step_done=step_done,
        output_dir=desk.folder / "trl",
        on_cpu=on_cpu,
    )
    await asyncio.to_thread(trainer.run)
    if not trainer.updates:
        raise RoundFailed(
            "nothing could be learnt: in every group the retries all passed or all failed; "
            "more failures, a larger group_size or another base model would help"
        )
    if candidate.stale:
        await candidate.push(trainer.steps_taken)


async def _tell_step(
    desk: Desk, candidate: promotion.Candidate, number: int, metrics: dict[str, float], changed: bool
) -> None:
    """Log a step live, and push the weights that it made."""
    started = time.monotonic()
    candidate.stale = candidate.stale or changed
    if candidate.stale and number % desk.options.push_every == 0:
        await candidate.push(number)
        metrics = {**metrics, "push_s": time.monotonic() - started}
    _log.info("step", number=number, **{name: round(value, 4) for name, value in metrics.items()})
    step = Step(desk.round.id, number, metrics, time.time())
    await insist(lambda: desk.stores.rounds.add_step(desk.round.id, desk.round.epoch, step))


async def find_start(desk: Desk) -> Adapter | None:
    """Find the adapter to go on from: the last round's candidate if it was inconclusive, else the champion."""
    task, adapters = desk.task, desk.stores.adapters
    last = await desk.stores.rounds.last_ended(task.name)
    if last and last.state is RoundState.INCONCLUSIVE and last.adapter:
        kept = await adapters.get(last.adapter)
        if kept and kept.parent == task.champion and kept.status is AdapterStatus.CANDIDATE:
            return kept
    return await adapters.get(task.champion) if task.champion != BASE_ADAPTER else None


async def promote(
    desk: Desk, candidate: promotion.Candidate, adapter: Adapter, failures: list[Failure], reason: str
) -> Ending:
    """Swap the adapter that passed the gate in, or leave it to a human where the task says so."""
    if desk.task.training.promotion == "approve":
        waits = f"passed the gate and waits for approval (`mulligan adapters promote {adapter.name}`): {reason}"
        return RoundState.INCONCLUSIVE, waits
    probe = await asyncio.to_thread(make_probe, candidate.model, [failure.prompt_ids for failure in failures[:8]])
    try:
        await hot_swap.promote(
            adapter.name,
            engine=desk.engine,
            tasks=desk.stores.tasks,
            adapters=desk.stores.adapters,
            presence=desk.stores.presence,
            events=desk.stores.events,
            actor=f"round:{desk.round.id}",
            probe=probe,
            expected_generation=desk.task.generation,
            epoch_of_round=(desk.round.id, desk.round.epoch),
            drain_timeout_s=desk.options.drain_timeout_s,
        )
    except Conflict as error:
        return RoundState.INCONCLUSIVE, f"passed the gate, but the champion changed meanwhile ({error}): {reason}"
    return RoundState.PROMOTED, reason


async def work(settings: Settings, defaults: TrainerSettings, round_id: str, epoch: int) -> None:
    """Do the round that was leased under `epoch`, and write how it ended.

    Raises: RoundFailed, Fenced, the engine's errors, StoreUnavailable.
    """
    database = Database(settings.database_url)
    engine = SGLangEngine(
        settings.engine.url, model_name=settings.engine.model_name, timeout_s=settings.engine.request_timeout_s
    )
    try:
        stores = Stores.open(database)
        row = await stores.rounds.get(round_id)
        if row is None or row.epoch != epoch:
            raise Fenced(f"Round {round_id} is not held under epoch {epoch} any more.")
        task = await stores.tasks.get(row.task)
        if task is None:
            raise RoundFailed(f"the task {row.task!r} of this round is gone")
        options = defaults.override(task.training.options, row.options)
        if options.lora_rank > settings.engine.max_lora_rank:
            raise RoundFailed(
                f"lora_rank is {options.lora_rank}, the engine takes adapters of rank {settings.engine.max_lora_rank} "
                "at most: lower lora_rank, or start the engine with a higher engine.max_lora_rank"
            )
        desk = Desk(replace(row, epoch=epoch), task, stores, engine, settings, options)
        state, reason = await run_round(desk)
        await insist(lambda: stores.rounds.finish(round_id, epoch, state, reason))
        _log.info("ended", round=round_id, state=state.value, reason=reason)
    finally:
        await engine.close()
        await database.close()


def main(argv: list[str] | None = None) -> int:
    """Run one round; the last line of the log says why it failed, if it did."""
    parser = argparse.ArgumentParser(prog="python -m trainer.round", description="Run one leased training round.")
    parser.add_argument("--round", required=True, help="the round's id")
    parser.add_argument("--epoch", required=True, type=int, help="the epoch of its lease")
    arguments = parser.parse_args(argv)
    settings = Settings()
    configure_logs(settings.log_level, json=settings.log_json)
    try:
        asyncio.run(work(settings, TrainerSettings(), arguments.round, arguments.epoch))
    except Exception as error:  # noqa: BLE001 -- the job reads the reason from the log's last line
        if not isinstance(error, MulliganError):
            traceback.print_exc()
        said = str(error) if isinstance(error, MulliganError) else f"{type(error).__name__}: {error}"
        print("error:", " ".join(said.split()), file=sys.stderr, flush=True)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A whole round: select -> (rollouts <-> GRPO) x steps -> gate -> save -> promotion.

Run by trainer.jobs as a process of its own, `python -m trainer.round --round ID --epoch N`, or by trainer.rank as the
first of several ranks, the only one that has an engine and a database. Every write carries the epoch, so that a round
that was given to another worker can do nothing any more. It must never hold a database session while an engine or the
trainer works, and never tell how the round ended before it has. A round that is begun again goes on from the rollouts
that were kept (trainer.training).

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
import traceback
from dataclasses import replace
from typing import Any

import structlog
import torch

from server.adapters import hot_swap
from server.adapters.canary import begin_canary
from server.adapters.reconcile import ServingShelf
from server.domain import BASE_ADAPTER, Adapter, Binding, BindingMode, RoundState
from server.engine.base import Engine
from server.engine.replicas import looked_after
from server.errors import Conflict, Fenced, MulliganError
from server.logs import configure_logs
from server.orchestration.verification import allow
from server.redaction import make_log_redactor
from server.settings import Settings
from server.store.database import Database
from server.store.fencing import RoundEpoch
from trainer import dataset, gate, gate_round, preflight, promotion
from trainer.budget import Budget
from trainer.desk import Desk, Stores, insist, open_engine
from trainer.errors import RoundFailed
from trainer.following import NO_ORDERS, encode_orders, refuse_without_gpu
from trainer.lora import choose_device, choose_threads, make_probe, open_model
from trainer.memory import take_share
from trainer.ranks import ALONE, End, Ranks
from trainer.regating import regate
from trainer.rollout import Sampler
from trainer.samples import Failure
from trainer.settings import TrainerSettings
from trainer.starting import describe_objective, find_start, take_over
from trainer.training import RoundSteps, train
from trainer.yielding import come_second, find_courtesy

Ending = tuple[RoundState, str]
"""How a round ended and why, in words."""

_log = structlog.get_logger(__name__)


async def run_round(desk: Desk) -> Ending:
    """Run a round from its lease to its end.

    Raises: RoundFailed, Fenced, the engine's errors.
    """
    if desk.round.adapter and desk.task.champion == desk.round.adapter:
        desk.ranks.tell(NO_ORDERS)
        return RoundState.PROMOTED, "its adapter was promoted by an earlier lease, which was lost right after"
    if desk.options.gate_only:
        desk.ranks.tell(NO_ORDERS)
        return await regate(desk, await find_audits(desk))
    await desk.note(phase="selecting", steps_total=desk.options.steps)
    start = await find_start(desk)
    kept = await take_over(desk, start)
    await desk.note(parent=start.name if start else BASE_ADAPTER)
    engine = desk.settings.engine
    refuse_without_gpu(desk.options, desk.ranks)
    desk.ranks.tell(encode_orders(desk.options, start.path if start else None, desk.folder))
    take_share(engine.trainer_share, choose_device(desk.options))
    model, tokenizer = await asyncio.to_thread(
        open_model, engine.model, start.path if start else None, engine.lora_target_modules, desk.options
    )
    torch.set_num_threads(choose_threads(model, desk.options, desk.ranks.size))
    await preflight.refuse_unfit(desk.settings, desk.options, desk.task, model, tokenizer)
    selection = await select(desk, tokenizer)
    candidate = promotion.Candidate(model, desk.engine, desk.round, desk.folder / "pushes", desk.note)
    candidate.fingerprints = preflight.take_all_fingerprints(engine.model, tokenizer, desk.task)
    await candidate.sweep()
    budget = await open_budget(desk)
    second = come_second(desk.engine, budget.count, await find_courtesy(desk.settings, desk.stores.presence))
    try:
        await desk.note(phase="training")
        await desk.tell(objective=await describe_objective(desk, start))
        await desk.tell(selection=selection.describe(), budget=budget.describe())
        steps = RoundSteps(desk, candidate, selection, Sampler(second, desk.options), budget, kept)
        await train(steps, tokenizer)

        await desk.note(phase="gate")
        report = await hold_gate(desk, candidate, second, budget)
        if report["decision"] == gate.Decision.REGRESSED:
            await reject(desk, candidate, start, selection.failures)
            return RoundState.REGRESSED, report["reason"]

        await desk.note(phase="promoting")
        adapter = await keep(desk, candidate, start, selection.failures)
        if gone := [flag for flag in adapter.flags if flag not in (start.flags if start else ())]:
            return RoundState.INCONCLUSIVE, f"a verifier was revoked while it trained ({gone[0]})"
        if report["decision"] != gate.Decision.PROMOTED:
            return RoundState.INCONCLUSIVE, report["reason"]
        return await promote(desk, candidate, adapter, selection.failures, report["reason"])
    finally:
        await candidate.withdraw()
        await desk.leave(budget=budget.describe())


async def select(desk: Desk, tokenizer: Any) -> dataset.Selection:
    """Select what the round learns from: failures since the last round that came to a decision, and a share of older.

    Raises: RoundFailed.
    """
    last = await desk.stores.rounds.last_decided(desk.task.name)
    return await dataset.select(
        desk.task.name,
        desk.stores.episodes,
        tokenizer,
        desk.options,
        await desk.stores.verifiers.revoked(),
        since=last.started_at if last else 0.0,
        champion=desk.task.champion,
    )


async def open_budget(desk: Desk) -> Budget:
    """Open the round's budget, with what earlier leases have used of it."""
    held_out = await desk.stores.episodes.held_out(desk.task.name, limit=desk.options.gate_problems)
    return Budget(
        desk.options,
        desk.folder,
        seconds_before=max(0.0, desk.round.heartbeat_at - desk.round.started_at),
        tokens=await desk.stores.rollouts.count_tokens(desk.round.id),
        gate_samples=gate_round.count_samples(desk.options, len(held_out)),
        gate_least=2 * desk.options.gate_samples * len(held_out) // desk.options.gate_looks,
    )


async def hold_gate(desk: Desk, candidate: promotion.Candidate, engine: Engine, budget: Budget) -> dict[str, Any]:
    """Compare the candidate with the champion, within what is left of the budget, and report it.

    Raises: RoundFailed where the budget does not reach, the engine's errors.
    """
    budget.check_gate()
    logged = await desk.stores.episodes.held_out(desk.task.name, limit=desk.options.gate_problems)
    held_out = [replace(one, prompts=desk.task.prompts) for one in logged]  # as it would be served
    try:
        async with asyncio.timeout(budget.seconds_left):
            audits = await find_audits(desk)
            report = await gate_round.judge(
                desk, candidate.name, engine, held_out, audits=audits, seconds_left=lambda: budget.seconds_left
            )
    except TimeoutError as error:
        raise RoundFailed(
            f"max_minutes is used up: the gate was still under way after {desk.options.max_minutes:g} minutes; "
            "raise it, or lower steps, step_failures, group_size or gate_problems"
        ) from error
    await desk.tell(**report)
    _log.info("gate", **report)
    return report


async def find_audits(desk: Desk) -> list[Binding]:
    """Bind the task's hidden verifiers, but for what was revoked."""
    pins = [pin for pin in desk.task.verifiers if pin.mode == BindingMode.AUDIT]
    found = [(pin, await desk.stores.verifiers.get(pin.name, pin.version)) for pin in pins]
    return [
        Binding(version.kind, version.config, version.name, version.version, pin.args, pin.when, pin.mode)
        for pin, version in found
        if version is not None and version.revoked_at is None
    ]


async def reject(desk: Desk, candidate: promotion.Candidate, start: Adapter | None, failures: list[Failure]) -> None:
    """Record the candidate as rejected; its files go with its pushes, and nothing goes on from it."""
    adapter = await promotion.reject(candidate, desk.task, start, dataset.list_pins(failures))
    adapter = await insist(lambda: desk.stores.adapters.add(adapter, epoch_of_round=desk.held))
    await desk.note(adapter=adapter.name)


async def keep(desk: Desk, candidate: promotion.Candidate, start: Adapter | None, failures: list[Failure]) -> Adapter:
    """Save the candidate and record it, with the verifiers that rewarded it; its flags come back with it."""
    adapter = await promotion.save(candidate, desk.task, desk.settings.adapters_dir, start, dataset.list_pins(failures))
    adapter = await insist(lambda: desk.stores.adapters.add(adapter, epoch_of_round=desk.held))
    await desk.note(adapter=adapter.name)
    return adapter


async def promote(
    desk: Desk, candidate: promotion.Candidate, adapter: Adapter, failures: list[Failure], reason: str
) -> Ending:
    """Try the adapter that passed the gate on live traffic, or swap it in, or leave it to a human: as the task says."""
    policy = desk.task.training
    if policy.promotion == "approve":
        how = f'`mulligan adapters promote {adapter.name} --comment "..."`'
        return RoundState.INCONCLUSIVE, f"passed the gate and waits for approval ({how}): {reason}"
    probe = await asyncio.to_thread(make_probe, candidate.model, [failure.prompt_ids for failure in failures[:8]])
    ours: dict[str, Any] = {
        "actor": f"round:{desk.round.id}",
        "probe": probe,
        "expected_generation": desk.task.generation,
        "epoch_of_round": desk.held,
    }
    try:
        if policy.canary is not None:
            await begin_canary(adapter.name, policy.canary, desk.rooms, **ours)
            tried = f"its canary begins with {100 * policy.canary.share:g} % of live traffic"
            return RoundState.INCONCLUSIVE, f"passed the gate; {tried}: {reason}"
        await hot_swap.promote(
            adapter.name, desk.rooms, drain_timeout_s=desk.options.drain_timeout_s, reason=reason, **ours
        )
    except Conflict as error:
        return RoundState.INCONCLUSIVE, f"passed the gate, but the champion changed meanwhile ({error}): {reason}"
    return RoundState.PROMOTED, reason


async def work(settings: Settings, defaults: TrainerSettings, round_id: str, epoch: int, ranks: Ranks = ALONE) -> None:
    """Do the round that was leased under `epoch`, and write how it ended.

    Raises: RoundFailed, Fenced, the engine's errors, StoreUnavailable.
    """
    database, engine = Database(settings.database_url), open_engine(settings)
    try:
        desk = await sit_down(settings, defaults, Stores.open(database), engine, (round_id, epoch), ranks=ranks)
        # An engine that comes back gets what serves and our pushes before it is asked again.
        shelf = ServingShelf(desk.stores.tasks, desk.stores.adapters, also=engine.loaded_here)
        async with looked_after(engine, shelf):
            state, reason = await run_round(desk)
        await insist(lambda: desk.stores.rounds.finish(round_id, epoch, state, reason))
        _log.info("ended", round=round_id, state=state.value, reason=reason)
    finally:
        await engine.close()
        await database.close()


async def sit_down(
    settings: Settings,
    defaults: TrainerSettings,
    stores: Stores,
    engine: Engine,
    held: RoundEpoch,
    *,
    ranks: Ranks = ALONE,
) -> Desk:
    """Find the round of a lease, its task and its options.

    Raises: RoundFailed, Fenced, InvalidRequest for an option that is unknown or wrong.
    """
    round_id, epoch = held
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
    return Desk(replace(row, epoch=epoch), task, stores, engine, settings, options, ranks)


def main(argv: list[str] | None = None, ranks: Ranks = ALONE, end: End | None = None) -> int:
    """Run one round; the last line of the log says why it failed, if it did, and `end` is told of it."""
    parser = argparse.ArgumentParser(prog="python -m trainer.round", description="Run one leased training round.")
    parser.add_argument("--round", required=True, help="the round's id")
    parser.add_argument("--epoch", required=True, type=int, help="the epoch of its lease")
    arguments = parser.parse_args(argv)
    settings = Settings()
    configure_logs(settings.log_level, json=settings.log_json, redact=make_log_redactor(settings.log.redact))
    allow(settings.verifiers)
    try:
        asyncio.run(work(settings, TrainerSettings(), arguments.round, arguments.epoch, ranks))
    except Exception as error:  # noqa: BLE001 -- the job reads the reason from the log's last line
        if not isinstance(error, MulliganError):
            traceback.print_exc()
        if end is not None:
            end(error)
        said = str(error) if isinstance(error, MulliganError) else f"{type(error).__name__}: {error}"
        print("error:", " ".join(said.split()), file=sys.stderr, flush=True)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

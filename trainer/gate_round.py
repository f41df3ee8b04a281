"""Holds the gate of a round: reads the problems, lets trainer.gate judge, keeps the pairs. Called by trainer.round.

The only part of the gate that knows stores.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import structlog

from server.domain import Binding, Episode
from server.engine.base import Engine
from server.orchestration.gate_plan import read_spread
from server.store.gates import Pair
from trainer import gate, gate_audit
from trainer.dataset import choose_problems
from trainer.desk import Desk, insist
from trainer.gate_asking import can_rerun
from trainer.gate_probes import read_probes
from trainer.settings import TrainerSettings

ROUNDS_BACK = 10
"""Among so many of the task's latest rounds the gate is sought that saw how much answers vary."""

FIRST_TRY = 1 / 3
"""What a first try alone takes, in loops, which may have a reflection and a retry as well."""

_log = structlog.get_logger(__name__)


def count_samples(options: TrainerSettings, problems: int) -> int:
    """Count the loops of both adapters that a gate on so many held-out problems may take, with its guards."""
    loops = max(options.gate_samples, options.gate_max_samples) * problems
    elsewhere = 0 if options.other_tasks_margin is None else options.guard_problems
    firsts = options.first_try_samples * problems + 2 * elsewhere
    return round(2 * (loops + FIRST_TRY * firsts))


async def judge(
    desk: Desk,
    candidate: str,
    engine: Engine,
    held_out: Sequence[Episode],
    *,
    audits: Sequence[Binding],
    seconds_left: Callable[[], float | None],
) -> dict[str, Any]:
    """Judge a candidate against the task's champion on held-out problems, and keep what both made of each.

    `seconds_left` is how long the round may still take (None: as long as it likes).

    Raises: Fenced, RoundFailed for a file of probes that cannot be read, the engine's errors.
    """
    task, options, stores = desk.task, desk.options, desk.stores
    revoked = await stores.verifiers.revoked()
    latest = await stores.rounds.list(task.name, ROUNDS_BACK)

    async def keep(pairs: Sequence[Pair]) -> None:
        await insist(lambda: stores.gates.record((desk.round.id, desk.round.epoch), pairs))

    async def say(words: str) -> None:
        _log.info("gate", round=desk.round.id, says=words)

    beside = gate.Beside(
        other_tasks=() if options.other_tasks_margin is None else await find_others(desk, revoked),
        probes=() if options.probes_margin is None else read_probes(options.probes_file),
        known=read_spread([(row.number, row.report) for row in latest if row.id != desk.round.id]),
    )
    return await gate.judge_candidate(
        gate_audit.add_audits(choose_problems(held_out, revoked), held_out, audits),
        engine=engine,
        champion=task.champion,
        candidate=candidate,
        settings=options,
        beside=beside,
        say=say,
        keep_pairs=keep,
        seconds_left=seconds_left,
    )


async def find_others(desk: Desk, revoked: Collection[str]) -> list[Episode]:
    """Find held-out problems of the other tasks, as many of each as there is room for: `guard_problems` in all."""
    most, found = desk.options.guard_problems, []
    for other in await desk.stores.tasks.list():
        if other.name != desk.task.name:
            held_out = await desk.stores.episodes.held_out(other.name, limit=most)
            found.append([one for one in choose_problems(held_out, revoked) if can_rerun(one)])
    chosen: list[Episode] = []
    for turn in range(most):
        chosen += [some[turn] for some in found if len(some) > turn]
    return chosen[:most]

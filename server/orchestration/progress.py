"""Says how far a task is from its next round and from a gate that may promote.

Called wherever a task is shown. When a round is due is decided by `trainer.jobs`, and what is promoted by
`trainer.gate`: this only says it beforehand, from the same figures.
"""

import time
from typing import Any

from server.domain import Round, RoundState, Task, TaskProgress
from server.settings import RoundSizes
from server.store.database import Database
from server.store.progress import ProgressStore
from server.store.rounds import RoundStore
from server.store.verifiers import VerifierStore

MOST_COUNTED = 1000
"""Failures are counted so far at least, and as far as the task wants them."""


async def read_progress(task: Task, database: Database, sizes: RoundSizes) -> TaskProgress:
    """Read how far a task is, by queries that stop at what is wanted. Raises: StoreUnavailable."""
    rounds, counts = RoundStore(database), ProgressStore(database)
    newest = next(iter(await rounds.list(task.name, 1)), None)
    last = await rounds.last_ended(task.name)
    since = (last.started_at or last.created_at) if last else 0.0
    wanted = task.training.train_on_new_failures
    problems, least = (_read_size(task, sizes, name) for name in ("gate_problems", "gate_min_problems"))
    held_out = await counts.count_problems(task.name, await VerifierStore(database).revoked(), most=problems)
    failures = await counts.count_failures(task.name, since=since, most=max(MOST_COUNTED, wanted or 0))
    parts = [
        say_gate(task, held_out, problems, least),
        f"{_say_failures(failures, wanted)}: {say_next_round(task, failures, last, newest, now=time.time())}",
    ]
    if failures < (fewest := _read_size(task, sizes, "min_failures")):
        parts.append(f"a round needs {fewest} usable failures in the log, older ones count as well")
    return TaskProgress(held_out, problems, least, failures, wanted, "; ".join(parts))


def _read_size(task: Task, sizes: RoundSizes, name: str) -> int:
    """Read a size as the trainer would: the task's own option wins."""
    own: Any = task.training.options.get(name)
    return own if isinstance(own, int) and not isinstance(own, bool) and own > 0 else getattr(sizes, name)


def say_gate(task: Task, held_out: int, wanted: int, least: int) -> str:
    """Say how many held-out problems there are, and what follows from it."""
    said = f"{held_out} of {wanted} held-out problems"
    if held_out < least:
        return f"{said} (below {least} nothing is promoted automatically)"
    return f"{said} (a human promotes)" if task.training.promotion == "approve" else said


def _say_failures(failures: int, wanted: int | None) -> str:
    more = " or more" if failures >= max(MOST_COUNTED, wanted or 0) else ""
    return f"{failures}{more} of {wanted} new failures" if wanted else f"{failures}{more} new failures"


def say_next_round(task: Task, failures: int, last: Round | None, newest: Round | None, *, now: float) -> str:
    """Say when the next round begins by itself."""
    if newest and not newest.state.ended:
        return "a round waits for a worker" if newest.state is RoundState.QUEUED else f"round {newest.id} runs"
    wanted, every_s = task.training.train_on_new_failures, task.training.interval_s
    if wanted is None and every_s is None:
        return f"no round begins by itself (`mulligan round start {task.name}`)"
    ways = []
    if wanted is not None:
        if failures >= wanted:
            return "the next round begins at the scheduler's next tick"
        ways.append(f"{wanted - failures} more are logged")
    if every_s is not None:
        left_s = (last.ended_at if last else task.created_at) + every_s - now
        if left_s <= 0 and failures:
            return "the next round begins at the scheduler's next tick"
        waits = [f"{left_s:.0f} s have passed"] * (left_s > 0) + ["there is a failure"] * (not failures)
        ways.append(" and ".join(waits))
    return f"next round when {' or '.join(ways)}"

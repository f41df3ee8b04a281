"""Audits the tasks between rounds, from the worker's tick: each one every so often, and when its champion has moved.

It remembers what it saw, so that a task for which nothing new was logged is not read again; after a restart each one
is audited once more, and what was told already is not told again. A few at a time: a tick has rounds to start.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from server.domain import Task
from server.errors import StoreUnavailable
from server.orchestration.audit import audit_task, tell_suspicions
from server.store.audit import AuditStore

AUDITS_A_TICK = 4

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Seen:
    generation: int
    newest: str
    at: float


class Auditor:
    """Decides which tasks are due and audits them."""

    def __init__(self, interval_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._seen: dict[str, _Seen] = {}

    async def look(self, tasks: Sequence[Task], store: AuditStore) -> int:
        """Audit the tasks that are due, those first that have waited longest; return how many events were raised.

        Raises: StoreUnavailable.
        """
        told = audited = 0
        for task in sorted(tasks, key=lambda task: self._seen[task.name].at if task.name in self._seen else 0.0):
            if audited >= AUDITS_A_TICK:
                break
            seen = self._seen.get(task.name)
            settled = seen is not None and seen.generation == task.generation
            if seen is not None and settled and self._clock() - seen.at < self._interval_s:
                continue
            newest = await store.find_newest(task.name)
            if seen is None or not settled or newest != seen.newest:
                told += await self._audit(task, store)
                audited += 1
            self._seen[task.name] = _Seen(task.generation, newest, self._clock())
        return told

    async def _audit(self, task: Task, store: AuditStore) -> int:
        try:
            report = await audit_task(task, store)
            signals = await tell_suspicions(report, store)
        except StoreUnavailable:
            raise
        except Exception:  # noqa: BLE001 -- the rounds go on
            _log.exception("audit_broke", task=task.name)
            return 0
        for signal in signals:
            said = next(one.said for one in report.findings if one.signal == signal)
            _log.warning("reward_hacking_suspected", task=task.name, signal=signal, said=said)
        return len(signals)

"""Writes down what the watch over verifiers saw: counts into the table of counts, stops into the audit log.

Driven by a loop of `server.app`, once a second and once more at the end; no request waits for it. What could not be
written waits in memory, by the hour, so that nothing is lost while the database is away.
"""

import asyncio
import time

import structlog

from server.domain import Event, VerdictCount
from server.errors import StoreUnavailable
from server.orchestration.breaker import Change
from server.orchestration.verdict_watch import VerdictWatch, merge_counts
from server.store.events import EventStore
from server.store.verdict_counts import VerdictCountStore

INTERVAL_S = 1.0

_log = structlog.get_logger(__name__)


class VerdictBook:
    """Where one process writes down what its watch saw."""

    def __init__(self, watch: VerdictWatch, counts: VerdictCountStore, events: EventStore, process_id: str) -> None:
        self._watch, self._counts, self._events, self._process_id = watch, counts, events, process_id
        self._pending: list[VerdictCount] = []
        self._writing: asyncio.Task[None] | None = None

    async def write(self) -> None:
        """Write down what is new. Cancelled, it still ends the write that it began: it is counted once.

        Raises: StoreUnavailable; what was not written is written the next time.
        """
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        await asyncio.shield(self._writing)

    async def close(self) -> None:
        """Write down the rest."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
        try:
            await self._write()
        except StoreUnavailable as error:
            _log.warning("verdicts_not_counted", error=str(error), verdicts=sum(one.count for one in self._pending))

    async def _write(self) -> None:
        self._pending = merge_counts([*self._pending, *self._watch.take_counts()])
        if self._pending:
            await self._counts.add(self._pending)
            self._pending = []
        changes = self._watch.changes
        while changes:
            change = changes[0]
            await self._events.add(self._tell(change))
            if changes and changes[0] is change:  # else it was pushed out by newer ones meanwhile
                changes.popleft()

    def _tell(self, change: Change) -> Event:
        stop = change.stop
        details = {"cause": stop.cause, "since": stop.since, "process": self._process_id}
        if not change.stopped:
            _log.info("verifier_resumed", verifier=stop.verifier, cause=stop.cause)
            return Event("verifier.resumed", stop.verifier, "", details, time.time())
        _log.warning("verifier_stopped", verifier=stop.verifier, cause=stop.cause, reason=stop.reason)
        details |= {"reason": stop.reason, "until": stop.until}
        return Event("verifier.stopped", stop.verifier, "", details, time.time())

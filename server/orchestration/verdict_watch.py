"""Watches the verdicts of one process: counts them, and stops verifiers that keep breaking.

Verifiers of live requests are bound under it (`VerifierSet.watched`); try-outs, backtests and training are not, so that
they neither count nor stop anything. A loop of the API takes from here what it writes down. It belongs to one event
loop and holds a bounded number of breakers.
"""

import hashlib
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import replace

import msgspec

from server.domain import Binding, LoggedVerdict, VerdictCount
from server.orchestration.breaker import Breaker, Change, Stop, StopRule

MOST_REGISTERED, MOST_INLINE = 4096, 256
"""How many breakers are kept, the latest used: an inline verifier is known by its kind and configuration."""
_MOST_CHANGES = 256
_HOUR_S = 3600

Counted = dict[tuple[str, str, str], list[float]]
"""Pin, status and cause -> how many, milliseconds in all, the slowest."""


class Watched:
    """One verifier under watch."""

    __slots__ = ("_pin", "_watch", "breaker")

    def __init__(self, pin: str, watch: "VerdictWatch", breaker: Breaker) -> None:
        self._pin, self._watch, self.breaker = pin, watch, breaker

    def count(self, verdict: LoggedVerdict) -> None:
        """Count a verdict; one of an inline verifier, which has no pin, is not counted."""
        if not self._pin:
            return
        counted, key = self._watch.counted, (self._pin, verdict.status, verdict.cause)
        if (entry := counted.get(key)) is None:
            entry = counted[key] = [0, 0.0, 0.0]
        entry[0] += 1
        entry[1] += verdict.duration_ms
        entry[2] = max(entry[2], verdict.duration_ms)


class VerdictWatch:
    """The verifiers of live requests, by what they are."""

    def __init__(
        self,
        rule: StopRule | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._rule = rule or StopRule()
        self._clock, self._now = clock, now
        self._registered: OrderedDict[str, Watched] = OrderedDict()
        self._inline: OrderedDict[str, Watched] = OrderedDict()
        self.counted: Counted = {}
        self.changes: deque[Change] = deque(maxlen=_MOST_CHANGES)
        """What was stopped and resumed and is not written down yet, oldest first."""

    def over(self, binding: Binding) -> Watched:
        """Find the watch over what is bound: one for each version, or each inline kind and configuration."""
        if binding.name:
            return self._find(self._registered, MOST_REGISTERED, binding.pin, binding.pin)
        config = msgspec.json.encode(binding.config, order="deterministic")
        key = f"{binding.kind} {hashlib.blake2b(config, digest_size=8).hexdigest()}"
        return self._find(self._inline, MOST_INLINE, key, "")

    def stops(self, name: str | None = None) -> list[Stop]:
        """List what is stopped here, or on trial; of one registered verifier, or everything."""
        known = [*self._registered.values(), *self._inline.values()]
        stops = [watched.breaker.stop for watched in known if watched.breaker.stop is not None]
        return [stop for stop in stops if name is None or stop.verifier.rpartition("@")[0] == name]

    def take_counts(self) -> list[VerdictCount]:
        """Take what was counted since the last time, as of the hour that it is now."""
        counted, self.counted = self.counted, {}
        hour = int(self._now() // _HOUR_S)
        return [
            VerdictCount(pin, hour, str(status), cause, int(count), total_ms, slowest_ms)
            for (pin, status, cause), (count, total_ms, slowest_ms) in counted.items()
        ]

    def _find(self, known: OrderedDict[str, Watched], most: int, key: str, pin: str) -> Watched:
        if (watched := known.get(key)) is not None:
            known.move_to_end(key)
            return watched
        if len(known) >= most:
            known.popitem(last=False)
        breaker = Breaker(key, self._rule, self.changes.append, clock=self._clock, now=self._now)
        watched = known[key] = Watched(pin, self, breaker)
        return watched


def merge_counts(counts: Iterable[VerdictCount]) -> list[VerdictCount]:
    """Add up what is of the same verifier, hour, status and cause."""
    merged: dict[tuple[str, int, str, str], VerdictCount] = {}
    for one in counts:
        key = (one.verifier, one.hour, one.status, one.cause)
        if (had := merged.get(key)) is not None:
            total_ms, slowest_ms = had.total_ms + one.total_ms, max(had.slowest_ms, one.slowest_ms)
            merged[key] = replace(had, count=had.count + one.count, total_ms=total_ms, slowest_ms=slowest_ms)
        else:
            merged[key] = one
    return list(merged.values())

"""One process's counts and gauges, and those of the processes beside it. Made by the roots, read by `/metrics`."""

import time
from collections.abc import Callable, Mapping

import msgspec
import structlog

from server.telemetry.catalogue import LAG
from server.telemetry.sharing import SharedSlots
from server.telemetry.tally import Key, Series, Tally

SHARE_EVERY_S = 1.0
STALE_S = 15.0
"""What a process laid down longer ago than this is not told: it died, and nobody took its place."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[Key, float | list[float]]]).decode

_log = structlog.get_logger(__name__)


class Meter:
    """What is told of this process. `number` is its place among those of one port, from 1; 0: it is alone."""

    def __init__(
        self, number: int = 0, slots: SharedSlots | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.tally = Tally()
        self.read_gauges: Callable[[], Mapping[Key, float]] = dict
        self._number, self._slots, self._clock = number, slots, clock
        self._due_at = 0.0
        self._lag_s = 0.0
        self._too_much = False

    async def share(self) -> None:
        """Lay down what was counted, for scrapes of the others, and see how late this came: a loop's work."""
        now = self._clock()
        self._lag_s = max(0.0, now - self._due_at) if self._due_at else 0.0
        if self._slots is not None and not self._slots.write(self._number, _encode([*self.read().items()]), now):
            if not self._too_much:
                _log.error("metrics_too_many", remedy="there are more tasks or verifiers than a slot has room for")
            self._too_much = True
        self._due_at = self._clock() + SHARE_EVERY_S

    def read(self) -> Series:
        """Read everything of this process, as it is now."""
        gauges = {key: float(value) for key, value in self.read_gauges().items()}  # True is no number on the wire
        return {**self.tally.read(), **gauges, (LAG.name,): self._lag_s}

    def read_all(self) -> dict[int, Series]:
        """Read everything of all processes of this port, by their numbers: this one now, others a second ago."""
        found = {self._number: self.read()}
        if self._slots is not None:
            for number in range(1, self._slots.processes + 1):
                if number != self._number and (there := self._read_other(number)) is not None:
                    found[number] = there
        return dict(sorted(found.items()))

    def _read_other(self, number: int) -> Series | None:
        laid = self._slots.read(number) if self._slots is not None else None
        if laid is None or self._clock() - laid[0] > STALE_S:
            return None
        return dict(_decode(laid[1]))

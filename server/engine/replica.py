"""One of several engines, and what this process knows of it: whether it takes requests now, and why not.

Used by `server.engine.replicas` and its parts alone. It is out of rotation where nobody listens there, where looks or
requests fail one after the other, and where it lacks what serves; only good looks bring it back. An engine that stands
alone is asked all the same: its own answer is the truth.
"""

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from server.engine.base import Engine
from server.errors import AdapterRefused, EngineTimeout, EngineUnavailable, MulliganError

LOOK_TIMEOUT_S = 10.0
EJECT_AFTER_LOOKS = 2
EJECT_AFTER_REQUESTS = 3
RETURN_AFTER_LOOKS = 2
_UNLOAD_TIMEOUT_S = 10.0

_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Replica:
    """One engine, and what this process knows of it."""

    url: str
    engine: Engine
    alone: bool = False  # there is no other one
    live: bool = True  # takes requests
    looked: bool = False  # whether a look has found it in order since it was ejected, or since the start
    adapters: frozenset[str] = frozenset()  # that it held at the last look
    in_flight: int = 0
    failed_requests: int = 0  # in a row
    bad_looks: int = 0  # in a row
    good_looks: int = 0  # in a row
    looks_to_return: int = 1
    why: str = "nobody has looked at it yet"  # it takes no requests, or ""

    @property
    def in_rotation(self) -> bool:
        """Whether it is asked."""
        return self.live or self.alone

    def note_good_look(self, held: Collection[str]) -> bool:
        """Note that it is in order and what it holds; say whether it takes requests again, and did not before."""
        self.adapters, self.bad_looks, self.good_looks = frozenset(held), 0, self.good_looks + 1
        if self.good_looks < self.looks_to_return:
            return False
        returned = not self.live
        if returned:
            _log.info("replica_returned", engine=self.url, adapters=sorted(self.adapters))
        self.live, self.looked, self.why, self.failed_requests = True, True, "", 0
        return returned

    def note_bad_look(self, why: str, *, enough: int) -> None:
        """Note that a look found it broken; `enough` such in a row eject it, or the first if none was good yet."""
        self.good_looks, self.bad_looks = 0, self.bad_looks + 1
        if self.bad_looks >= enough or not self.looked:
            self.eject(why)

    def eject(self, why: str) -> None:
        """Send it no more requests until looks have found it in order."""
        self.take_out(why)
        self.good_looks, self.looks_to_return = 0, 1 if self.alone else RETURN_AFTER_LOOKS

    def take_out(self, why: str) -> None:
        """Send it no more requests until the next good look."""
        if self.live and self.looked:
            _log.warning("replica_ejected", engine=self.url, why=why)
        self.live, self.looked, self.why = False, False, why

    async def check(self) -> Collection[str]:
        """Read which adapters it holds. Raises: EngineUnavailable, EngineTimeout where it is not in order."""
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                state = await self.engine.state()  # first: it tells apart whether anything listens
                if not await self.engine.ready():
                    raise EngineUnavailable("its health check fails")
        except TimeoutError:
            raise EngineTimeout(f"its health check took more than {LOOK_TIMEOUT_S:g} s") from None
        return state.adapters.keys()

    async def load(self, name: str, path: str) -> bool:
        """Load an adapter; say whether it was loaded now. Raises: the engine's errors, AdapterRefused."""
        held = (await self.engine.state()).adapters
        if name in held:
            if held[name] and held[name].rstrip("/") != path.rstrip("/"):
                raise AdapterRefused(f"the engine at {self.url} holds another adapter under the name {name}")
            return False
        await self.engine.load_adapter(name, path)
        self.adapters |= {name}
        return True

    async def unload_quietly(self, name: str) -> None:
        """Unload an adapter, if it can now."""
        with suppress(MulliganError, TimeoutError):
            async with asyncio.timeout(_UNLOAD_TIMEOUT_S):
                await self.engine.unload_adapter(name)


def nobody_of(members: Sequence[Replica]) -> EngineUnavailable:
    """Make the error that says that none of them takes requests."""
    return EngineUnavailable(f"none of the {len(members)} engines takes requests now")

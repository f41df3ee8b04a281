"""The three ways to put a new adapter under running traffic that are compared, on the same engine.

Each answers streams and makes swaps. `HotSwap` is Mulligan as its users run it. The others stand for servers that hold
one adapter at a time and stop for a swap: their requests go straight to the engine, without a gateway's cost, and the
old adapter is unloaded before the new one is loaded. They are told nothing that would not be known in life.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from bench.swaps.client import CutError, Said, StreamClient
from bench.swaps.world import TASK, Served, World
from server.adapters import hot_swap
from server.adapters.files import hash_file
from server.adapters.rooms import SwapRooms
from server.domain import Adapter
from server.engine.replicas import Replicas, open_replicas
from server.engine.sglang import SGLangEngine
from server.store.adapters import AdapterStore
from server.store.database import Database

TOKENS = 16
BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Who are you?"}],
    "temperature": 0,
    "max_tokens": TOKENS,
}
FIRST_BACKOFF_S, MOST_BACKOFF_S = 0.5, 8.0
"""As the OpenAI SDKs come back after a 503: doubled each time, less up to a quarter at random."""


class Strategy(Protocol):
    """What is measured."""

    refusals: int

    async def ask(self, stream: int, /) -> Said:
        """Answer one request of a stream to its end, however often that has to be tried. Raises: CutError."""
        ...

    async def swap(self, adapter: str) -> None:
        """Put an adapter in place of the present one."""
        ...


@dataclass
class HotSwap:
    """Mulligan: load beside, probe, flip, drain, unload."""

    served: Served
    database: Database
    engine: Replicas
    clients: dict[int, StreamClient]
    refusals: int = 0

    async def ask(self, stream: int) -> Said:
        """Ask the API, once."""
        body = {**BODY, "model": TASK, "stream": True}
        client = self.clients.setdefault(stream, StreamClient(self.served.port, self.served.key))
        return await client.ask(body)

    async def swap(self, adapter: str) -> None:
        """Promote it, as `mulligan adapters promote` does."""
        await hot_swap.promote(adapter, SwapRooms.open(self.database, self.engine), actor="bench")


class StopTheWorld:
    """What both others share: nobody is let in, those inside are waited for, the adapters change places."""

    def __init__(self, engine: SGLangEngine, adapters: dict[str, Path]) -> None:
        self.engine, self.adapters = engine, adapters
        self.refusals, self.inside, self.present = 0, 0, ""
        self.open, self.empty = asyncio.Event(), asyncio.Event()
        self.open.set()
        self.empty.set()

    async def swap(self, adapter: str) -> None:
        """Close, drain, unload the old one, load the new one, open."""
        self.open.clear()
        try:
            await self.empty.wait()
            if self.present:
                await self.engine.unload_adapter(self.present)
            await self.engine.load_adapter(adapter, str(self.adapters[adapter]))
            self.present = adapter
        finally:
            self.open.set()  # whoever waits gets to know that it failed

    async def _answer(self) -> Said:
        self.inside += 1
        self.empty.clear()
        adapter, text, finish = self.present, "", ""
        try:
            async for event in self.engine.stream(BODY, adapter):
                for choice in msgspec.json.decode(event).get("choices", ()):
                    text += choice["delta"].get("content") or ""
                    finish = choice.get("finish_reason") or finish
        finally:
            self.inside -= 1
            if not self.inside:
                self.empty.set()
        return Said(text, adapter, finish, done=True)


class Refuse(StopTheWorld):
    """A 503 during the swap; clients come back as the SDKs do."""

    async def ask(self, _stream: int) -> Said:
        """Try until it is let in."""
        pause_s = FIRST_BACKOFF_S
        while not self.open.is_set():
            self.refusals += 1
            await asyncio.sleep(pause_s * (1 - 0.25 * random.random()))
            pause_s = min(2 * pause_s, MOST_BACKOFF_S)
        return await self._answer()


class Pause(StopTheWorld):
    """Requests wait in line during the swap."""

    async def ask(self, _stream: int) -> Said:
        """Wait until it is let in."""
        while not self.open.is_set():
            await self.open.wait()
        return await self._answer()


@asynccontextmanager
async def open_hot_swap(world: World, served: Served) -> AsyncIterator[HotSwap]:
    """Register the adapters, and hand out Mulligan."""
    database = Database(served.database_url)
    engine = open_replicas(world.engine)
    strategy = HotSwap(served, database, engine, {})
    try:
        for name, path in world.adapters.items():
            files = {file.name: hash_file(file) for file in sorted(path.iterdir())}
            await AdapterStore(database).add(Adapter(name, TASK, str(path), files))
        yield strategy
    finally:
        for client in strategy.clients.values():
            await client.close()
        await engine.close()
        await database.close()


@asynccontextmanager
async def open_stopped(world: World, kind: type[Refuse] | type[Pause]) -> AsyncIterator[Refuse | Pause]:
    """Hand out one of the strategies that stop, on an engine without adapters."""
    engine = SGLangEngine(world.engine_url, timeout_s=120)
    try:
        for name in (await engine.state()).adapters:
            await engine.unload_adapter(name)
        yield kind(engine, world.adapters)
    finally:
        for name in (await engine.state()).adapters:
            await engine.unload_adapter(name)
        await engine.close()


__all__ = ["BODY", "TOKENS", "CutError", "HotSwap", "Pause", "Refuse", "Strategy", "open_hot_swap", "open_stopped"]

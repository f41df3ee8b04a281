"""Looks at engines: ejects those that fail, brings those that lack adapters up to date, and lets them return.

Called through `Replicas.look`, by every API process and, while it works, by the trainer.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from server.engine.base import Engine
from server.engine.replica import EJECT_AFTER_LOOKS, Replica
from server.errors import (
    AdapterRefused,
    EngineBroken,
    EngineTimeout,
    EngineUnavailable,
    EngineUnreached,
)

LOOK_WAIT_S = 2.0
"""What takes longer (an engine that hangs, a big adapter) goes on beside the next look."""


class Shelf(Protocol):
    """Says which adapters an engine has to hold before it takes requests: `server.adapters.reconcile`."""

    async def find_missing(self, held: Collection[str]) -> Collection[str]:
        """Find the adapters that an engine lacks which holds `held`. Raises: StoreUnavailable."""
        ...

    async def load(self, engine: Engine, names: Collection[str]) -> None:
        """Load adapters into one engine. Raises: the engine's errors, StoreUnavailable."""
        ...


class Looks:
    """The looks at `members`, one at a time for each. `on_return` is told of each that takes requests again."""

    def __init__(self, members: Sequence[Replica], on_return: Callable[[Replica], None]) -> None:
        self._members, self._on_return = members, on_return
        self._running: dict[str, asyncio.Task[None]] = {}

    async def look(self, shelf: Shelf) -> None:
        """Look at every engine that no look is still under way at.

        Raises: StoreUnavailable, where the database had to be asked what an engine must hold.
        """
        for one in self._members:
            if one.url not in self._running:
                self._running[one.url] = asyncio.create_task(self._look_at(one, shelf))
        done, _ = await asyncio.wait(self._running.values(), timeout=LOOK_WAIT_S)
        self._running = {url: task for url, task in self._running.items() if task not in done}
        for error in [task.exception() for task in done]:
            if error is not None:
                raise error

    async def stop(self) -> None:
        """Cancel the looks under way."""
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _look_at(self, one: Replica, shelf: Shelf) -> None:
        try:
            held = await one.check()
            lacking = await shelf.find_missing(held)
            if lacking:
                one.take_out(f"it lacks {', '.join(sorted(lacking))}")
                await shelf.load(one.engine, lacking)
                held = await one.check()
        except EngineUnreached as error:
            one.note_bad_look(str(error), enough=1)
        except (EngineUnavailable, EngineTimeout, EngineBroken, AdapterRefused) as error:
            one.note_bad_look(str(error), enough=1 if one.alone else EJECT_AFTER_LOOKS)
        else:
            if one.note_good_look(held):
                self._on_return(one)

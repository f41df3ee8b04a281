"""Takes a candidate out of torch and into the engine: the pushes inside a round, the saved adapter, the promotion.

Called by trainer.round. Every load and every row is fenced: the caller proves that it still holds the round first. It
must never move an adapter in the engine but through server.adapters.hot_swap.
"""

import asyncio
import re
import secrets
import shutil
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from peft import PeftModel

from server.adapters.hot_swap import push
from server.domain import Adapter, Round, Task
from server.engine.base import Engine
from server.errors import MulliganError
from trainer.lora import copy_adapter, write_adapter

KEPT_PUSHES = 1
"""Older pushes are unloaded: the engine has few places, and nothing samples from them any more."""

Prove = Callable[[], Awaitable[object]]
"""Proves that the round is still ours. Raises Fenced."""


@dataclass
class Candidate:
    """The adapter that is being trained, and its pushes: each under a new name and a new path."""

    model: PeftModel
    engine: Engine
    round: Round
    folder: Path  # of the round's pushes
    prove: Prove
    name: str = ""  # of the last push
    stale: bool = False  # whether the weights have changed since the last push
    _loaded: deque[str] = field(default_factory=deque)

    @property
    def path(self) -> Path:
        """Where the last push lies."""
        return self.folder / self.name

    async def sweep(self) -> None:
        """Unload what a trainer of this task that was killed left in the engine, and forget its files.

        Raises: Fenced, EngineUnavailable.
        """
        await self.prove()
        left = re.compile(re.escape(self.round.task) + r"@\d+\.\d+-[0-9a-f]{6}")  # a push, never an adapter
        for name in (await self.engine.state()).adapters:
            if left.fullmatch(name):
                await self._drop(name)
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)

    async def push(self, step: int) -> str:
        """Write the weights as they are now, load them into the engine under a new name, unload older pushes.

        Raises: Fenced, the engine's errors.
        """
        await self.prove()
        name = f"{self.round.task}@{self.round.number}.{step}-{secrets.token_hex(3)}"
        await asyncio.to_thread(write_adapter, self.model, self.folder / name)
        await push(self.engine, name, str(self.folder / name))
        self.name, self.stale = name, False
        self._loaded.append(name)
        while len(self._loaded) > KEPT_PUSHES:
            await self._drop(self._loaded.popleft())
        return name

    async def withdraw(self) -> None:
        """Unload what is left in the engine, and forget it."""
        while self._loaded:
            await self._drop(self._loaded.popleft())

    async def _drop(self, name: str) -> None:
        with suppress(MulliganError):  # an engine that is away has forgotten it
            await self.engine.unload_adapter(name)
        await asyncio.to_thread(shutil.rmtree, self.folder / name, ignore_errors=True)


def adapter_name(round_: Round) -> str:
    """Name a round's adapter: `<task>@<round number>`; a round that was begun again marks the lease.

    A name is never used twice, and an earlier lease may have got as far as saving.
    """
    again = f"-{round_.epoch}" if round_.epoch > 1 else ""
    return f"{round_.task}@{round_.number}{again}"


async def save(candidate: Candidate, task: Task, adapters_dir: Path) -> Adapter:
    """Save the weights that passed the gate, the last push byte by byte, and describe them as an adapter."""
    name = adapter_name(candidate.round)
    target = adapters_dir / task.name / name
    files = await asyncio.to_thread(copy_adapter, candidate.path, target)
    return Adapter(
        name=name,
        task=task.name,
        path=str(target),
        files=files,
        round_id=candidate.round.id,
        parent=task.champion,
        created_at=time.time(),
    )

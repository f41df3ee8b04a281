"""Takes a candidate out of torch and into the engine: the pushes inside a round, the saved adapter, the promotion.

Called by trainer.round. Every load and every row is fenced: the caller proves that it still holds the round first. It
must never move an adapter in the engine but through server.adapters.
"""

import asyncio
import secrets
import shutil
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from peft import PeftModel

from server.adapters.files import hash_file
from server.adapters.loading import push
from server.adapters.preflight import explain_refusal
from server.domain import Adapter, AdapterStatus, Round, Task
from server.engine.base import Engine
from server.errors import AdapterRefused, MulliganError
from server.store.withdrawals import TRAINED_ON_REVOKED
from trainer.errors import RoundFailed
from trainer.leftovers import sweep_pushes
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
    fingerprints: Mapping[str, str] = field(default_factory=dict)  # what it is made for
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
        await sweep_pushes(self.engine, self.round.task)
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)

    async def push(self, step: int) -> str:
        """Write the weights as they are now, load them into the engine under a new name, unload older pushes.

        Raises: Fenced, the engine's errors.
        """
        await self.prove()
        name = f"{self.round.task}@{self.round.number}.{step}-{secrets.token_hex(3)}"
        await asyncio.to_thread(write_adapter, self.model, self.folder / name)
        try:
            await push(self.engine, name, str(self.folder / name))
        except AdapterRefused as error:
            if self.name:
                raise
            says, remedy = explain_refusal(error, self.folder, "the engine")  # the first: the folder may not be shared
            raise RoundFailed(f"{says}: {remedy}") from error
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


async def save(
    candidate: Candidate, task: Task, adapters_dir: Path, start: Adapter | None, pins: Collection[str]
) -> Adapter:
    """Save the weights that passed the gate, the last push byte by byte, and describe them as an adapter.

    `pins` are the verifiers that rewarded this round; those of the weights that it began with count as well.
    """
    name = adapter_name(candidate.round)
    target = adapters_dir / task.name / name
    files = await asyncio.to_thread(copy_adapter, candidate.path, target)
    return _describe(candidate, task, start, pins, path=str(target), files=files)


async def reject(candidate: Candidate, task: Task, start: Adapter | None, pins: Collection[str]) -> Adapter:
    """Describe the weights that the gate found to be worse: their hashes are all that is left of them.

    The name is used up, and nothing can serve it.
    """
    files = await asyncio.to_thread(lambda: {path.name: hash_file(path) for path in sorted(candidate.path.iterdir())})
    return replace(_describe(candidate, task, start, pins, path="", files=files), status=AdapterStatus.REJECTED)


def _describe(
    candidate: Candidate, task: Task, start: Adapter | None, pins: Collection[str], *, path: str, files: dict[str, str]
) -> Adapter:
    return Adapter(
        name=adapter_name(candidate.round),
        task=task.name,
        path=path,
        files=files,
        round_id=candidate.round.id,
        parent=task.champion,
        created_at=time.time(),
        verifiers=tuple(sorted({*pins, *(start.verifiers if start else ())})),
        flags=tuple(flag for flag in (start.flags if start else ()) if flag.startswith(TRAINED_ON_REVOKED)),
        fingerprints=dict(candidate.fingerprints),
    )

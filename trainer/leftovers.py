"""Clears up after a trainer that could not: pushes in the engine, and an adapter that no gate will speak for any more.

Called by the jobs (a round was cancelled, its trainer died, nobody has it) and by a trainer that takes a round over. It
must never touch what serves, and never import torch: the worker reads it.
"""

import asyncio
import re
import shutil
from contextlib import suppress
from pathlib import Path

import structlog

from server.domain import AdapterStatus, Round, RoundState
from server.engine.base import Engine
from server.errors import Conflict, MulliganError, NotFound
from server.store.adapters import AdapterStore
from server.store.tasks import TaskStore

CLEAR_UP_S = 5.0
"""How long an engine may take to unload: an end within seconds is worth more, and the next round looks again."""

_log = structlog.get_logger(__name__)


async def sweep_pushes(engine: Engine, task: str) -> list[str]:
    """Unload what rounds of a task have pushed into the engine; return the names. Raises: EngineUnavailable."""
    left = re.compile(re.escape(task) + r"@\d+\.\d+-[0-9a-f]{6}")  # a push, never an adapter
    found = [name for name in (await engine.state()).adapters if left.fullmatch(name)]
    for name in found:
        with suppress(MulliganError):  # an engine that is away has forgotten it
            await engine.unload_adapter(name)
    return found


async def clear_up(
    row: Round, folder: Path, engine: Engine, adapters: AdapterStore, tasks: TaskStore
) -> RoundState | None:
    """Unload what a dead trainer left and throw its adapter away, unless that serves: then say how the round ends.

    That is `promoted` for a champion. A canary is on trial still, so `inconclusive`: it decides how the round ended.
    `folder` is the round's. An engine that does not answer within `CLEAR_UP_S` is left to the next round.

    Raises: StoreUnavailable.
    """
    # Rejected before it is looked at, so that nobody can promote it from here on.
    if row.adapter and not await discard(row.adapter, adapters):
        task = await tasks.get(row.task)
        if task is not None and row.adapter in (task.champion, task.canary):
            return RoundState.PROMOTED if row.adapter == task.champion else RoundState.INCONCLUSIVE
    try:
        async with asyncio.timeout(CLEAR_UP_S):
            await sweep_pushes(engine, row.task)
            if row.adapter:
                await engine.unload_adapter(row.adapter)
    except (MulliganError, TimeoutError) as error:
        _log.warning("left_in_the_engine", round=row.id, error=str(error) or "it did not answer in time")
    await asyncio.to_thread(shutil.rmtree, folder / "pushes", ignore_errors=True)
    return None


async def discard(name: str, adapters: AdapterStore) -> bool:
    """Mark an adapter that never served as rejected, and remove its files; say whether. Raises: StoreUnavailable."""
    try:
        adapter = await adapters.set_status(name, AdapterStatus.REJECTED, only_from=(AdapterStatus.CANDIDATE,))
    except (Conflict, NotFound):
        return False
    if adapter.path:
        await asyncio.to_thread(shutil.rmtree, adapter.path, ignore_errors=True)
    return True

"""Does many things at once and keeps their order: how every driver of a server asks its problems."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from demo.drive.display import Phase

CONCURRENCY = 64

Item = TypeVar("Item")
Done = TypeVar("Done")


async def do_many(
    work: Callable[[Item], Awaitable[Done]], items: Sequence[Item], phase: Phase | None = None
) -> list[Done]:
    """Do something for each item, at most 64 at once; the results come in the items' order.

    The first item that breaks ends the others, and its error is raised alone.
    """
    free = asyncio.Semaphore(CONCURRENCY)

    async def one(item: Item) -> Done:
        async with free:
            done = await work(item)
        if phase is not None:
            phase.advance()
        return done

    try:
        async with asyncio.TaskGroup() as group:
            jobs = [group.create_task(one(item)) for item in items]
    except ExceptionGroup as broken:
        raise broken.exceptions[0] from None
    return [job.result() for job in jobs]

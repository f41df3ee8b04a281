"""Fences a stale trainer out: its write happens only while it still holds its round.

Called inside the transaction of every write that a trainer makes outside its own round (adapters, the champion
pointer). The check is itself a write to the round's row, so that a reaper has to wait until that transaction ends.
"""

from typing import NoReturn

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain import RoundState
from server.errors import Fenced
from server.store.clock import UnixNow
from server.store.tables import rounds

RoundEpoch = tuple[str, int]
"""A round's id and the epoch of the lease that the writer holds."""


async def fence(connection: AsyncConnection, epoch_of_round: RoundEpoch | None) -> None:
    """Let the transaction go on only if that lease still holds; None (a human's write) always may. Raises: Fenced."""
    if epoch_of_round is None:
        return
    round_id, epoch = epoch_of_round
    result = await connection.execute(
        update(rounds)
        .where(rounds.c.id == round_id, rounds.c.epoch == epoch, rounds.c.state == RoundState.RUNNING.value)
        .values(heartbeat_at=UnixNow())
    )
    if result.rowcount != 1:
        raise_fenced(round_id, epoch)


def raise_fenced(round_id: str, epoch: int) -> NoReturn:
    """Tell a trainer that its lease is over. Raises: Fenced."""
    raise Fenced(f"Epoch {epoch} no longer holds round {round_id}: it ended, or another trainer has it")

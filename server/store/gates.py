"""Keeps what a gate's two adapters made of each held-out problem, so that it can be shown which were fixed or broken.

Called by the trainer (record) and by whatever shows a round (list). Shares alone: what was asked is in the episode, and
goes when that is deleted.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from server.store.database import Database
from server.store.fencing import RoundEpoch, fence
from server.store.rows import fetch_rows
from server.store.tables import gate_pairs

FIXED, BROKEN, SAME = "fixed", "broken", "same"
_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Pair:
    """One held-out problem under the champion (`before`) and the candidate (`after`).

    Shares in [0, 1] of so many samples; `episode_id` is the logged episode that it was asked anew from.
    """

    episode_id: str
    samples_before: int
    samples_after: int
    first_before: float
    first_after: float
    second_before: float
    second_after: float

    @property
    def change(self) -> str:
        """Whether the candidate solved it by the second try more often (`fixed`), more rarely (`broken`) or alike."""
        gain = round(self.second_after - self.second_before, 9)
        return FIXED if gain > 0 else BROKEN if gain < 0 else SAME


class GateStore:
    """The gates of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = postgresql.insert if database.dialect == "postgresql" else sqlite.insert

    async def record(self, epoch_of_round: RoundEpoch, pairs: Sequence[Pair]) -> None:
        """Record a round's pairs, in the order in which they were asked. Those recorded before are forgotten.

        Raises: Fenced.
        """
        round_id, _ = epoch_of_round
        rows = [
            {"round_id": round_id, "place": place, "change": pair.change, **asdict(pair)}
            for place, pair in enumerate(pairs)
        ]
        async with self._database.write() as connection:
            await fence(connection, epoch_of_round)
            await connection.execute(delete(gate_pairs).where(gate_pairs.c.round_id == round_id))
            for start in range(0, len(rows), _AT_ONCE):
                await connection.execute(self._insert(gate_pairs), rows[start : start + _AT_ONCE])

    async def list(self, round_id: str, *, change: str | None = None, limit: int = 1000) -> list[Pair]:
        """List a round's pairs, those that changed most first."""
        gain = func.abs(gate_pairs.c.second_after - gate_pairs.c.second_before)
        columns = [column for column in gate_pairs.columns if column.name not in ("round_id", "place", "change")]
        statement = select(*columns).where(gate_pairs.c.round_id == round_id)
        if change is not None:
            statement = statement.where(gate_pairs.c.change == change)
        async with self._database.read() as connection:
            rows = await fetch_rows(connection, statement.order_by(gain.desc(), gate_pairs.c.place).limit(limit))
        return [Pair(**row) for row in rows]

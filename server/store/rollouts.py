"""Keeps what a round's steps sampled, before they are trained on, so that a round that is begun again replays them.

Called by the trainer (record, replay, take over, forget) and by whoever bounds the log (`delete_before`). A step is
written in one transaction, fenced by the lease, or not at all; what was written is never changed.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import delete, func, insert, select, update

from server.domain import Rollout
from server.store.clock import UnixNow
from server.store.database import Database
from server.store.fencing import RoundEpoch, fence
from server.store.packing import pack_ids, pack_logprobs, unpack_ids, unpack_logprobs
from server.store.rows import Row, clean_values, fetch_one, fetch_rows, to_json
from server.store.tables import rollouts, round_episodes, rounds, steps

BATCH = 500


class RolloutStore:
    """The rollouts of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, epoch_of_round: RoundEpoch, step: int, members: Sequence[Rollout]) -> None:
        """Write all that a step sampled, in its order, in one transaction; in place of what was there of that step.

        Raises: Fenced; OverflowError for a token id that is no int32.
        """
        round_id, epoch = epoch_of_round
        mine = (rollouts.c.round_id == round_id, rollouts.c.step == step)
        rows = [
            {"round_id": round_id, "step": step, "number": number, "epoch": epoch, **row}
            for number, row in enumerate(_encode(members))
        ]
        async with self._database.write() as connection:
            await fence(connection, epoch_of_round)
            await connection.execute(delete(rollouts).where(*mine))
            for start in range(0, len(rows), BATCH):
                await connection.execute(insert(rollouts).values(created_at=UnixNow()), rows[start : start + BATCH])

    async def replay(self, round_id: str, step: int) -> list[Rollout]:
        """Read what a step sampled, exactly as it was and in its order; nothing where it sampled nothing."""
        mine = (rollouts.c.round_id == round_id, rollouts.c.step == step)
        async with self._database.read() as connection:
            rows = await fetch_rows(connection, select(rollouts).where(*mine).order_by(rollouts.c.number))
        return list(_decode(rows))

    async def take_over(self, epoch_of_round: RoundEpoch) -> int:
        """Make an earlier lease's rollouts, steps and records this one's; return the last step that was sampled.

        Raises: Fenced.
        """
        round_id, epoch = epoch_of_round
        async with self._database.write() as connection:
            await fence(connection, epoch_of_round)
            for table in (rollouts, steps, round_episodes):
                await connection.execute(update(table).where(table.c.round_id == round_id).values(epoch=epoch))
            sampled = select(func.max(rollouts.c.step).label("last")).where(rollouts.c.round_id == round_id)
            told = select(func.max(steps.c.number).label("last")).where(steps.c.round_id == round_id)
            last = [(await fetch_one(connection, one))["last"] or 0 for one in (sampled, told)]
        return max(last)

    async def forget(self, epoch_of_round: RoundEpoch) -> None:
        """Forget what earlier leases sampled and told: the round is begun from nothing. Raises: Fenced."""
        round_id, _ = epoch_of_round
        async with self._database.write() as connection:
            await fence(connection, epoch_of_round)
            for table in (rollouts, steps, round_episodes):
                await connection.execute(delete(table).where(table.c.round_id == round_id))

    async def count_tokens(self, round_id: str) -> int:
        """Count the tokens that a round's rollouts took, prompts included."""
        statement = select(func.coalesce(func.sum(rollouts.c.tokens), 0).label("tokens"))
        async with self._database.read() as connection:
            return int((await fetch_one(connection, statement.where(rollouts.c.round_id == round_id)))["tokens"])

    async def delete_before(self, at: float, *, limit: int = 10_000) -> int:
        """Delete rollouts made before a time (Unix seconds), `limit` at most; return how many.

        Those of a round that is queued or running stay: it may have to replay them.
        """
        open_rounds = select(rounds.c.id).where(rounds.c.state.in_(("queued", "running")))
        old = (
            select(rollouts.c.round_id, rollouts.c.step, rollouts.c.number)
            .where(rollouts.c.created_at < at, rollouts.c.round_id.not_in(open_rounds))
            .order_by(rollouts.c.created_at)
            .limit(limit)
            .subquery()
        )
        key = (rollouts.c.round_id, rollouts.c.step, rollouts.c.number)
        same = [one == other for one, other in zip(key, old.c, strict=True)]
        statement = delete(rollouts).where(select(old.c.round_id).where(*same).exists())
        async with self._database.write() as connection:
            return (await connection.execute(statement)).rowcount


def _encode(members: Sequence[Rollout]) -> Iterator[dict[str, Any]]:
    seen: set[int] = set()
    for member in members:
        values = {
            "group_number": member.group,
            "episode_id": member.episode_id,
            "prompt_ids": b"" if member.group in seen else pack_ids(member.prompt_ids),
            "token_ids": pack_ids(member.token_ids),
            "logprobs": pack_logprobs(member.logprobs),
            "reward": member.reward,
            "verdict": member.verdict,
            "retry": None if member.retry is None else to_json(member.retry),
            "adapter": member.adapter,
            "tokens": member.tokens,
            "logged": member.logged,
            "first_prompt_ids": _pack_once(member.first_prompt_ids, member.group in seen),
            "retry_ids": _pack_once(member.retry_ids),
        }
        seen.add(member.group)
        yield clean_values(values)


def _pack_once(ids: Sequence[int], packed_before: bool = False) -> bytes | None:
    return None if packed_before or not ids else pack_ids(ids)


def _decode(rows: Sequence[Row]) -> Iterator[Rollout]:
    prompts: dict[int, tuple[int, ...]] = {}
    first_prompts: dict[int, tuple[int, ...]] = {}
    for row in rows:
        group = row["group_number"]
        prompt = prompts.setdefault(group, unpack_ids(row["prompt_ids"]))
        first_prompt = first_prompts.setdefault(group, unpack_ids(row["first_prompt_ids"] or b""))
        yield Rollout(
            group=group,
            episode_id=row["episode_id"],
            prompt_ids=prompt,
            token_ids=unpack_ids(row["token_ids"]),
            logprobs=unpack_logprobs(row["logprobs"]),
            reward=row["reward"],
            verdict=row["verdict"],
            retry=row["retry"],
            adapter=row["adapter"],
            tokens=row["tokens"],
            logged=row["logged"],
            first_prompt_ids=first_prompt,
            retry_ids=unpack_ids(row["retry_ids"] or b""),
        )

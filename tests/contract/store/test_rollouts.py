"""What rounds keep of their rollouts, on both dialects: whole steps, exactly as sampled, under the lease alone."""

from dataclasses import replace

import numpy as np
import pytest

from server.domain import Rollout, Round, RoundState, Step
from server.errors import Fenced
from server.store.database import Database
from server.store.lineage import LineageStore
from server.store.rollouts import RolloutStore
from server.store.rounds import RoundStore

FIRST = Rollout(
    0, "ep_1", (7, 2**31 - 1), (1, 2, 3), (-0.1, -2.5, 0.0), 1.0, "passed", {"content": "a\0b"}, "sql@1.0-ab", 41
)
MEMBERS = [
    FIRST,
    replace(FIRST, token_ids=(9,), logprobs=(-1e-3,), reward=None, verdict="abstained", retry=None),
    Rollout(1, "ep_2", (), (4,), (-4.0,), 0.0, "failed", {"role": "assistant", "content": None}, "sql@1.0-ab", 12),
    replace(FIRST, token_ids=(5, 6), logprobs=(-0.5, -0.25), reward=0.0, adapter="", logged=True, tokens=0),
]
RETRIED = [
    Rollout(2, "ep_3", (8,), (4,), (-4.0,), 0.0, "failed", None, "sql@1.0-ab", 0, first_prompt_ids=(3, 2**31 - 1)),
    Rollout(
        2, "ep_3", (8,), (5,), (-1.0,), 1.0, "passed", {"content": "yes"}, "sql@1.0-ab", 0,
        first_prompt_ids=(3, 2**31 - 1), retry_ids=(6, 7),
    ),
]  # fmt: skip


@pytest.fixture
def store(database: Database) -> RolloutStore:
    return RolloutStore(database)


async def lease(database: Database, task: str = "sql") -> Round:
    rounds = RoundStore(database)
    leased = await rounds.lease((await rounds.create(task, {})).id, "w1")
    assert leased is not None
    return leased


async def lease_again(database: Database, row: Round) -> Round:
    """Let the worker fall silent and another one take the round."""
    rounds = RoundStore(database)
    await rounds.reap(lost_after_s=-1.0, max_leases=99)
    again = await rounds.lease(row.id, "w2")
    assert again is not None
    assert again.epoch > row.epoch
    return again


def rounded(member: Rollout) -> Rollout:
    retry = member.retry and {name: "a\u2400b" if part == "a\0b" else part for name, part in member.retry.items()}
    logprobs = tuple(np.array(member.logprobs, np.float32).astype(float).tolist())
    return replace(member, logprobs=logprobs, retry=retry)


async def test_a_step_is_replayed_as_it_was(database: Database, store: RolloutStore) -> None:
    row = await lease(database)
    await store.record((row.id, row.epoch), 1, MEMBERS)
    await store.record((row.id, row.epoch), 2, MEMBERS[:1])
    assert await store.replay(row.id, 1) == [rounded(member) for member in MEMBERS]
    assert await store.replay(row.id, 2) == [rounded(FIRST)]
    assert await store.replay(row.id, 3) == []
    assert await store.count_tokens(row.id) == 41 + 41 + 12 + 41
    await store.record((row.id, row.epoch), 1, [rounded(one) for one in MEMBERS])  # what was rounded stays as it is
    assert await store.replay(row.id, 1) == [rounded(member) for member in MEMBERS]
    await store.record((row.id, row.epoch), 1, MEMBERS[2:3])
    assert await store.replay(row.id, 1) == [rounded(MEMBERS[2])]


async def test_the_tokens_of_retries_are_replayed_too(database: Database, store: RolloutStore) -> None:
    row = await lease(database)
    await store.record((row.id, row.epoch), 1, [*MEMBERS, *RETRIED])
    assert await store.replay(row.id, 1) == [*(rounded(member) for member in MEMBERS), *RETRIED]


async def test_a_long_step_keeps_its_order(database: Database, store: RolloutStore) -> None:
    row = await lease(database)
    many = [replace(FIRST, group=number // 8, token_ids=(number,), logprobs=(-1.0,)) for number in range(1203)]
    await store.record((row.id, row.epoch), 1, many)
    assert [one.token_ids[0] for one in await store.replay(row.id, 1)] == list(range(1203))


async def test_a_lease_that_is_over_writes_nothing(database: Database, store: RolloutStore) -> None:
    row = await lease(database)
    await store.record((row.id, row.epoch), 1, MEMBERS)
    again = await lease_again(database, row)
    for write in (
        store.record((row.id, row.epoch), 1, []),
        store.take_over((row.id, row.epoch)),
        store.forget((row.id, row.epoch)),
    ):
        with pytest.raises(Fenced):
            await write
    assert len(await store.replay(row.id, 1)) == len(MEMBERS)
    await RoundStore(database).finish(again.id, again.epoch, RoundState.FAILED, "x")
    with pytest.raises(Fenced):
        await store.record((again.id, again.epoch), 2, MEMBERS)


async def test_the_next_lease_takes_over_what_was_done(database: Database, store: RolloutStore) -> None:
    rounds, lineage = RoundStore(database), LineageStore(database)
    row = await lease(database)
    held = (row.id, row.epoch)
    await lineage.record(held, 1, ["ep_1", "ep_2"])
    await store.record(held, 1, MEMBERS)
    await rounds.add_step(*held, Step(row.id, 1, {"reward": 0.25}))
    await store.record(held, 2, MEMBERS)  # and died before it told of step 2

    again = await lease_again(database, row)
    held = (again.id, again.epoch)
    assert await store.take_over(held) == 2
    await rounds.add_step(*held, Step(row.id, 1, {"reward": 9.0}))  # told again: the first telling stands
    await lineage.record(held, 2, ["ep_3"])
    assert [step.metrics for step in await rounds.steps(row.id)] == [{"reward": 0.25}]
    assert (await lineage.trace(row.id)).rounds[0].episodes == ("ep_1", "ep_2", "ep_3")


async def test_a_step_that_sampled_nothing_counts_as_done(database: Database, store: RolloutStore) -> None:
    row = await lease(database)
    await store.record((row.id, row.epoch), 1, MEMBERS)
    await RoundStore(database).add_step(row.id, row.epoch, Step(row.id, 2, {}))
    again = await lease_again(database, row)
    assert await store.take_over((again.id, again.epoch)) == 2


async def test_a_round_can_be_begun_from_nothing(database: Database, store: RolloutStore) -> None:
    async def work(task: str) -> Round:
        one = await lease(database, task)
        await store.record((one.id, one.epoch), 1, MEMBERS)
        await RoundStore(database).add_step(one.id, one.epoch, Step(one.id, 1, {}))
        await LineageStore(database).record((one.id, one.epoch), 1, ["ep_1"])
        return one

    other = await work("other")
    await RoundStore(database).finish(other.id, other.epoch, RoundState.INCONCLUSIVE, "x")
    row = await work("sql")
    held = (row.id, row.epoch)
    await store.forget(held)
    assert await store.take_over(held) == 0
    assert (await LineageStore(database).trace(row.id)).rounds[0].count == 0
    assert len(await store.replay(other.id, 1)) == len(MEMBERS)
    assert len(await RoundStore(database).steps(other.id)) == 1


async def test_age_ends_rollouts_but_not_those_of_a_round_under_way(database: Database, store: RolloutStore) -> None:
    ended = await lease(database)
    await store.record((ended.id, ended.epoch), 1, MEMBERS)
    await RoundStore(database).finish(ended.id, ended.epoch, RoundState.INCONCLUSIVE, "x")
    running = await lease(database, "other")
    await store.record((running.id, running.epoch), 1, MEMBERS)
    assert await store.delete_before(0.0) == 0
    assert await store.delete_before(4e9, limit=3) == 3
    assert await store.delete_before(4e9) == 1
    assert await store.replay(ended.id, 1) == []
    assert len(await store.replay(running.id, 1)) == len(MEMBERS)

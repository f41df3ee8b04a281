"""Deletions, on both dialects: nothing of what was said is left, nothing comes back, and nobody else loses anything."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain import Adapter, Episode, Feedback, LoggedVerdict, Outcome, RoundState
from server.errors import Conflict, NotFound
from server.orchestration.deletion import Folders, describe_deletion, find_adapters, run_deletion
from server.store.adapters import AdapterStore
from server.store.backlog import _encoder
from server.store.backtests import BacktestStore
from server.store.database import Database
from server.store.deletion_files import clean_rounds
from server.store.deletions import BATCH, DONE, RULES, TRAINED_ON_DELETED, Deletion, DeletionStore, Doomed
from server.store.episode_insert import REJECTED, set_aside
from server.store.episode_log import EpisodeLog
from server.store.episode_rows import COLUMNS, encode_episode
from server.store.episodes import EpisodeStore
from server.store.feedback import FeedbackStore
from server.store.lineage import LineageStore
from server.store.panels import PanelProblem, PanelStore
from server.store.replays import Claim, RecordedAnswer, ReplayStore
from server.store.rounds import RoundStore
from server.store.spool import SpoolFile
from server.store.tables import deletions, episodes, events, metadata, panel_problems
from tests.fixtures.episodes import make_episode

SECRET = "the-heron-flies-at-dawn"


def say(user: str = "ann", key: str = "key_a", outcome: Outcome = Outcome.RECOVERED, **changes) -> Episode:
    """An episode in which everything that anybody wrote holds the secret."""
    episode = make_episode(outcome, key=key, question=f"{SECRET}?", **changes)
    if user:
        episode.request = {**(episode.request or {}), "user": user}
    verdict = LoggedVerdict("countdown@3", "failed", 0.0, SECRET, stdout=SECRET)
    episode.attempts = [
        replace(one, answer={"role": "assistant", "content": SECRET}, reason=SECRET, verdicts=(verdict,))
        for one in episode.attempts
    ]
    episode.reflections = [replace(one, text=SECRET) for one in episode.reflections]
    return episode


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "spool", tmp_path / "rounds")


async def delete(database: Database, folders: Folders, doomed: Doomed, **more) -> Deletion:
    return await run_deletion(database, await DeletionStore(database).begin(doomed), folders, wait_s=2.0, **more)


async def dump(database: Database) -> str:
    """Write down every row of every table."""
    rows = []
    async with database.read() as connection:
        for table in metadata.sorted_tables:
            rows += [tuple(row) for row in await connection.execute(select(table))]
    return repr(rows)


async def ids(database: Database) -> list[str]:
    return [one.id async for one in EpisodeStore(database).iterate()]


async def record(log: EpisodeLog, *made: Episode) -> Sequence[Episode]:
    await asyncio.gather(*map(log.record, made))
    return made


def test_every_table_that_names_episodes_has_a_rule() -> None:
    named = {table.name for table in metadata.sorted_tables if "episode_id" in table.c}
    assert named == set(RULES), "say in RULES what becomes of the new table's rows when an episode is deleted"


async def test_a_user_goes_with_everything_and_others_stay(database: Database, log: EpisodeLog, folders: Folders):
    mine = await record(log, say(), say("ann", "key_b"), say("", request={"safety_identifier": "ann"}))
    others = await record(log, make_episode(key="key_a"), make_episode(request={"messages": [], "user": "bob"}))
    feedback = FeedbackStore(database)
    await feedback.give(Feedback(mine[0].id, "nightly", "key_a", passed=False, comment=SECRET))
    await feedback.give(Feedback(mine[0].id, "nightly", "key_a", passed=True, comment=SECRET), overwrite=True)
    await feedback.give(Feedback(others[0].id, "nightly", "key_a", passed=True, comment="fine"))
    assert SECRET in await dump(database)

    done = await delete(database, folders, Doomed(user="ann"))

    assert (done.phase, done.report["episodes"], done.report["feedback"]) == (DONE, 3, 1)
    assert await ids(database) == [one.id for one in others]
    left = await dump(database)
    assert SECRET not in left
    assert "'ann'" not in left
    assert "fine" in left
    async with database.read() as connection:
        kinds = [row[0] for row in await connection.execute(select(events.c.kind).order_by(events.c.id))]
    assert kinds == ["feedback.replaced", "episodes.deletion", "episodes.deleted"]


@pytest.mark.parametrize(
    ("doomed", "gone"),
    [
        (Doomed(user="ann"), {0, 1}),
        (Doomed(user="ann", key="key_a"), {0}),
        (Doomed(key="key_a"), {0, 2}),
        (Doomed(before=1700000500.0), {0, 2}),
        (Doomed(key="key_b", before=1700000500.0), set()),
        (Doomed(user="nobody"), set()),
    ],
)
async def test_only_what_is_all_of_what_is_named_goes(
    database: Database, log: EpisodeLog, folders: Folders, doomed: Doomed, gone: set[int]
):
    made = await record(
        log, say("ann", "key_a"), say("ann", "key_b", created_at=1700001000.0), say("bob", "key_a"),
        say("", "key_c", created_at=1700001000.0),
    )  # fmt: skip
    assert (await DeletionStore(database).count(doomed))["episodes"] == len(gone)
    assert len(await ids(database)) == 4  # counting is no deleting
    await delete(database, folders, doomed)
    assert await ids(database) == [one.id for place, one in enumerate(made) if place not in gone]
    again = await delete(database, folders, doomed)
    assert (again.phase, again.report["episodes"]) == (DONE, 0)


async def test_what_a_release_without_hashes_wrote_is_found(database: Database, log: EpisodeLog, folders: Folders):
    made = await record(log, say("ann"), say("bob"), say("", request={"safety_identifier": "ann"}))
    async with database.write() as connection:
        await connection.execute(update(episodes).values(user_hash=None, safety_hash=None))
    await delete(database, folders, Doomed(user="ann"))
    assert await ids(database) == [made[1].id]


async def test_more_than_one_batch_goes(database: Database, log: EpisodeLog, folders: Folders):
    await record(log, *(say(outcome=Outcome.PASSED) for _ in range(BATCH + 3)))
    told = []
    done = await delete(database, folders, Doomed(user="ann"), tell=lambda now: told.append(now.report["episodes"]))
    assert (done.report["episodes"], told[:2]) == (BATCH + 3, [BATCH, BATCH + 3])


async def test_what_comes_later_from_memory_or_a_spool_does_not_come_back(
    database: Database, log: EpisodeLog, folders: Folders, tmp_path: Path
):
    await record(log, say())
    in_memory, in_spool, others = say(), say(), make_episode()
    dead = SpoolFile.create(folders.spool, _encoder.encode(COLUMNS), max_bytes=10**6)
    dead.append([_encoder.encode(encode_episode(one)) for one in (in_spool, others)])
    dead.release()  # as the kernel does when a process dies
    await delete(database, folders, Doomed(user="ann"))
    assert list(folders.spool.glob("*.spool")) == []
    await log.record(in_memory)  # an answer that was still being made
    later = say(created_at=4e9)
    await log.record(later)  # the same user, afterwards
    assert await ids(database) == [others.id, later.id]


async def test_a_writer_that_was_in_the_middle_of_its_commit_is_found(
    database: Database, log: EpisodeLog, folders: Folders
):
    """Deletions and commits side by side: whatever their order, nothing of the deleted is left."""

    async def write() -> None:
        for _ in range(20):
            await log.record(say(outcome=Outcome.PASSED))

    writers = [asyncio.create_task(write()) for _ in range(4)]
    for _ in range(3):
        await asyncio.sleep(0.02)
        await delete(database, folders, Doomed(user="ann"))
    await asyncio.gather(*writers)
    assert await ids(database) == []


async def test_what_the_database_refused_goes_too(database: Database, folders: Folders):
    kept = make_episode()
    for episode in (say(), kept):
        set_aside(folders.spool, encode_episode(episode), ValueError("refused"))
    (folders.spool / "episodes-1-a.torn").write_bytes(SECRET.encode())
    done = await delete(database, folders, Doomed(user="ann"))
    lines = (folders.spool / REJECTED).read_bytes().splitlines()
    assert [msgspec.json.decode(line)["episode"]["id"] for line in lines] == [kept.id]
    assert done.phase != DONE
    assert "--remove-torn" in done.report["left"][0]
    done = await run_deletion(database, done, folders, remove_torn=True)
    assert (done.phase, done.report["left"]) == (DONE, [])
    assert [path.name for path in folders.spool.iterdir()] == [REJECTED]


async def test_answers_to_repeat_go_by_key_user_and_episode(database: Database, folders: Folders):
    store = ReplayStore(database)
    users = {"a": ("", ""), "b": ("", ""), "c": ("", "")}
    for name, key, who, episode in (("a", "k1", "ann", "ep_1"), ("b", "k1", "bob", "ep_2"), ("c", "k2", "", "ep_3")):
        users[name] = encode_users(who)
        claim = Claim(key, name, "0" * 64, name, users[name])
        await store.claim(claim, 60)
        answer = RecordedAnswer(200, [("x-mulligan-episode", episode)], SECRET.encode())
        assert await store.record(claim, answer, 600)
    running = Claim("k3", "d", "0" * 64, "d", encode_users("ann"))
    await store.claim(running, 60)

    async def names() -> list[str]:
        table = metadata.tables["replays"]
        async with database.read() as connection:
            return [row[0] for row in await connection.execute(select(table.c.name).order_by(table.c.name))]

    await delete(database, folders, Doomed(user="ann"))
    assert await names() == ["b", "c"]
    assert not await store.record(running, RecordedAnswer(200, [], SECRET.encode()), 600)  # it was still being made
    await delete(database, folders, Doomed(episode="ep_3"))
    assert await names() == ["b"]
    await delete(database, folders, Doomed(key="k1"))
    assert await names() == []


def encode_users(who: str) -> tuple[str, str]:
    row = encode_episode(make_episode(request={"messages": [], "user": who})).episode
    return row[COLUMNS[0].index("user_hash")], row[COLUMNS[0].index("safety_hash")]


async def test_rounds_that_saw_it_are_cleaned_and_their_adapters_are_named(
    database: Database, log: EpisodeLog, folders: Folders
):
    mine, other = await record(log, say(), make_episode())
    rounds, lineage, adapters = RoundStore(database), LineageStore(database), AdapterStore(database)
    await adapters.add(Adapter("sql@9", "sql", "/x", {}))
    made = []
    for number, episode in enumerate((mine, other, other), 1):
        leased = await rounds.lease((await rounds.create("countdown", {})).id, "w")
        assert leased
        await lineage.record((leased.id, leased.epoch), 1, [episode.id])
        name, parent = f"countdown@{number}", f"countdown@{number - 1}" if number == 2 else ""
        await adapters.add(Adapter(name, "countdown", "/x", {}, round_id=leased.id, parent=parent))
        await rounds.update(leased.id, leased.epoch, adapter=name, parent=parent)
        await rounds.finish(leased.id, leased.epoch, RoundState.INCONCLUSIVE, "")
        (folders.rounds / leased.id / "trl").mkdir(parents=True)
        (folders.rounds / leased.id / "trl" / "rollouts.json").write_text(SECRET)
        made.append(leased.id)
    running = await rounds.lease((await rounds.create("countdown", {})).id, "w")
    assert running
    (folders.rounds / running.id).mkdir()

    done = await delete(database, folders, Doomed(user="ann"))

    assert set(done.report["rounds"]) == {made[0], running.id}  # what runs may have chosen it already
    assert done.report["cancelled"] == [running.id]
    assert "still runs" in done.report["left"][0]
    assert sorted(path.name for path in folders.rounds.iterdir()) == sorted([made[1], made[2], running.id])
    await rounds.finish(running.id, running.epoch, RoundState.CANCELLED, "")
    done = await run_deletion(database, done, folders, wait_s=2.0)
    assert done.phase == DONE
    assert not (folders.rounds / running.id).exists()
    described = describe_deletion(done, await find_adapters(database, done.report["rounds"]))
    assert [(one["name"], one["command"]) for one in described["adapters"]] == [
        ("countdown@1", "mulligan adapters retire countdown@1"),
        ("countdown@2", "mulligan adapters retire countdown@2"),  # it went on from the first one's weights
    ]
    flags = {one.name: one.flags for one in await adapters.list()}
    assert flags["countdown@1"] == flags["countdown@2"] == (TRAINED_ON_DELETED + done.id,)
    assert flags["countdown@3"] == flags["sql@9"] == ()
    trace = await lineage.trace(made[0])
    assert trace.rounds[0].episodes == (mine.id,)  # that it was used outlives its content
    # What goes on from them later is flagged as well, whether they are champion or a candidate that was kept.
    later = await rounds.lease((await rounds.create("countdown", {})).id, "w")
    assert later
    await rounds.update(later.id, later.epoch, parent="countdown@2")
    of_champion = await adapters.add(Adapter("countdown@5", "countdown", "/x", {}, parent="countdown@1"))
    of_kept = await adapters.add(Adapter("countdown@6", "countdown", "/x", {}, parent="sql@9", round_id=later.id))
    assert of_champion.flags == of_kept.flags == (TRAINED_ON_DELETED + done.id,)
    assert (await adapters.add(Adapter("countdown@7", "countdown", "/x", {}, parent="countdown@3"))).flags == ()


async def test_rollouts_go_and_panels_are_blanked(database: Database, log: EpisodeLog, folders: Folders):
    (mine,) = await record(log, say())
    round_id = (await RoundStore(database).create("countdown", {})).id
    panel = {"task": "countdown", "version": 1, "size": 1, "sha256": "0", "reason": "", "created_at": 1.0}
    problem = {"task": "countdown", "version": 1, "number": 1, "episode_id": mine.id, "problem": "p", "pins": []}
    rollout = {"round_id": round_id, "step": 1, "number": 0, "epoch": 1, "group_number": 0, "episode_id": mine.id}
    rollout |= dict.fromkeys(("prompt_ids", "token_ids", "logprobs"), b"")
    rollout |= {"verdict": "failed", "retry": {"text": SECRET}, "adapter": "", "tokens": 1, "logged": False}
    async with database.write() as connection:
        await connection.execute(insert(metadata.tables["panels"]).values(**panel))
        blank = insert(metadata.tables["panel_problems"]).values(**problem, sha256="0", content={"text": SECRET})
        await connection.execute(blank)
        await connection.execute(insert(metadata.tables["rollouts"]).values(**rollout, created_at=1.0))
    done = await delete(database, folders, Doomed(episode=mine.id))
    assert (done.report["rollouts"], done.report["panel_problems"]) == (1, 1)
    assert round_id in done.report["rounds"]
    assert SECRET not in await dump(database)


@pytest.mark.parametrize("adding", ["feedback", "panel"])
async def test_what_is_added_at_the_moment_of_deletion_does_not_outlive_it(
    database: Database, log: EpisodeLog, folders: Folders, monkeypatch, adding: str
):
    (mine,) = await record(log, say(split="held_out"))
    deleting: list[asyncio.Task[Deletion]] = []

    async def delete_meanwhile(*_given) -> None:  # what was added is written, and not committed yet
        deleting.append(asyncio.create_task(delete(database, folders, Doomed(user="ann"))))
        await asyncio.wait(deleting, timeout=0.5)

    if adding == "feedback":
        monkeypatch.setattr("server.store.feedback._check_room", delete_meanwhile)
        await FeedbackStore(database).give(Feedback(mine.id, "nightly", "key_a", passed=True, comment=SECRET))
    else:
        insert_once = AsyncConnection.execute

        async def execute(connection: AsyncConnection, statement, *given, **named):
            done = await insert_once(connection, statement, *given, **named)
            if getattr(statement, "table", None) is panel_problems and statement.is_insert:
                await delete_meanwhile()
            return done

        monkeypatch.setattr(AsyncConnection, "execute", execute)
        problem = PanelProblem(0, mine.id, "hash", (), {"request": SECRET})
        await PanelStore(database).freeze("countdown", [problem], "the first")
    (done,) = await asyncio.gather(*deleting)
    assert (done.phase, done.report["episodes"]) == (DONE, 1)
    assert SECRET not in await dump(database)

    # And what was read before, and is added afterwards, is refused.
    with pytest.raises(NotFound):
        await FeedbackStore(database).give(Feedback(mine.id, "weekly", "key_a", passed=True, comment=SECRET))
    with pytest.raises(Conflict, match="were deleted"):
        await PanelStore(database).freeze(
            "countdown", [PanelProblem(0, mine.id, "hash", (), {"request": SECRET})], "again"
        )
    assert SECRET not in await dump(database)


async def test_examples_of_backtests_lose_their_words(database: Database, log: EpisodeLog, folders: Folders):
    mine, other = await record(log, say(), make_episode())
    backtests = BacktestStore(database)
    running, ended = [await backtests.create("countdown", 1, "key_a", {}) for _ in range(2)]
    taken = await backtests.take("p1", lost_after_s=60)
    assert taken
    assert taken.id == running.id
    again = await backtests.take("p2", lost_after_s=60)
    assert again
    examples = [
        {"episode_id": one.id, "attempt": 1, "old": {"reason": words}, "new": {"reason": words}}
        for one, words in ((mine, SECRET), (other, "fine"))
    ]
    assert await backtests.finish(again, {"n": 2, "flips": {"count": 2, "newest": examples}})
    done = await delete(database, folders, Doomed(user="ann"))
    assert done.report["examples"] == 1
    left = await backtests.get(ended.id)
    assert left
    assert [one["old"]["reason"] for one in left.report["flips"]["newest"]] == ["", "fine"]
    # The one that runs has read what is gone: its process may write nothing, and it begins again.
    assert not await backtests.finish(taken, {"reason": SECRET})
    retaken = await backtests.take("p3", lost_after_s=60)
    assert retaken
    assert retaken.id == running.id


def test_no_id_leads_out_of_the_rounds_folder(tmp_path: Path):
    for name in ("data/rounds/rd_1/pushes", "data/rounds/rd_2", "data/adapters"):
        (tmp_path / name).mkdir(parents=True)
    odd = ["..", ".", "", "../adapters", str(tmp_path / "data"), "rd_1/..", "rd_1/pushes"]
    assert clean_rounds(tmp_path / "data" / "rounds", [*odd, "rd_1"]) == ["rd_1"]
    assert sorted(one.name for one in (tmp_path / "data").rglob("*")) == ["adapters", "rd_2", "rounds"]


async def test_a_deletion_that_was_broken_off_goes_on(database: Database, log: EpisodeLog, folders: Folders):
    await record(log, *(say(outcome=Outcome.PASSED) for _ in range(5)))
    store = DeletionStore(database, batch=2)
    begun = await store.begin(Doomed(user="ann"))
    async for _ in store.sweep(begun):
        break  # killed after its first batch
    assert len(await ids(database)) == 3
    (found,) = await store.find_open(Doomed(user="ann"))
    assert found.report["episodes"] == 2
    assert await store.find_open(Doomed(user="bob")) == []
    assert await store.recent(stale_s=60.0) == []
    assert [one.id for one in await store.recent(stale_s=-1.0)] == [begun.id]
    done = await run_deletion(database, found, folders)
    assert (done.phase, done.report["episodes"], await ids(database)) == (DONE, 5, [])
    async with database.read() as connection:
        held = [tuple(row) for row in await connection.execute(select(deletions))]
    assert "ann" not in repr(held)


async def test_nothing_named_is_refused(database: Database):
    with pytest.raises(Exception, match="Say what to delete"):
        await DeletionStore(database).begin(Doomed())

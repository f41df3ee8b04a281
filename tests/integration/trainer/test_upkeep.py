"""The worker's tick keeps the log and what rounds left within their bounds."""

import time
from pathlib import Path

import pytest
from sqlalchemy import insert, update

from server.domain import Adapter, RoundState, Task
from server.orchestration.deletion import Folders, run_deletion
from server.settings import LogSettings, Settings
from server.store.adapters import AdapterStore
from server.store.database import Database
from server.store.deletions import DeletionStore, Doomed
from server.store.episode_log import EpisodeLog
from server.store.episodes import EpisodeStore
from server.store.partitions import border_id
from server.store.retention import DAY_S
from server.store.rounds import RoundStore
from server.store.tables import round_episodes
from server.store.tables import rounds as rounds_table
from server.store.tasks import TaskStore
from tests.fixtures.episodes import make_episode
from trainer import jobs, upkeep
from trainer.auditing import Auditor
from trainer.upkeep import Upkeep


async def log_old(database: Database, spool: Path, count: int) -> None:
    log = EpisodeLog(database, LogSettings(), spool)
    await log.start()
    at = time.time() - 2000 * DAY_S
    for number in range(count):
        await log.record(make_episode(id=f"{border_id(at)}{number:016x}"))
    await log.stop()


async def end_round(database: Database, folder: Path, *, ended_at: float) -> Path:
    """A round that ended then, with its folder."""
    rounds = RoundStore(database)
    queued = await rounds.create("countdown", {})
    leased = await rounds.lease(queued.id, "w")
    assert leased is not None
    await rounds.finish(leased.id, leased.epoch, RoundState.INCONCLUSIVE, "")
    async with database.write() as connection:
        await connection.execute(update(rounds_table).where(rounds_table.c.id == leased.id).values(ended_at=ended_at))
    made = folder / leased.id
    (made / "step-1").mkdir(parents=True)
    (made / "round.log").write_text("said")
    return made


async def test_a_tick_takes_what_is_past_its_limit(tmp_path: Path, database_url: str, database: Database) -> None:
    settings = Settings(data_dir=tmp_path, database_url=database_url)
    await TaskStore(database).create(Task("countdown"))
    await log_old(database, tmp_path / "spool", 3)
    now = time.time()
    old = await end_round(database, settings.rounds_dir, ended_at=now - 181 * DAY_S)
    holding = await end_round(database, settings.rounds_dir, ended_at=now - 181 * DAY_S)
    await AdapterStore(database).add(Adapter("countdown@2", "countdown", str(holding / "step-1"), {}))
    young = await end_round(database, settings.rounds_dir, ended_at=now - 179 * DAY_S)
    strange = settings.rounds_dir / "rd_nobody_knows"
    strange.mkdir()
    await jobs.tick(settings, lambda _: None, Auditor(600.0), Upkeep(settings.log, settings.rounds_dir))
    assert await EpisodeStore(database).count() == 0
    assert not old.exists()
    assert all(folder.exists() for folder in (holding, young, strange))


async def test_what_a_deletion_elsewhere_could_not_reach_is_cleaned_here(tmp_path: Path, database: Database) -> None:
    log = EpisodeLog(database, LogSettings(), tmp_path / "spool")
    await log.start()
    seen = make_episode(key="key_gone")
    await log.record(seen)
    await log.stop()
    saw, other = [await end_round(database, tmp_path / "rounds", ended_at=time.time()) for _ in range(2)]
    running = await RoundStore(database).lease((await RoundStore(database).create("countdown", {})).id, "w")
    assert running
    (tmp_path / "rounds" / running.id).mkdir()
    async with database.write() as connection:
        for round_id in (saw.name, running.id):
            row = {"round_id": round_id, "episode_id": seen.id, "step": 1, "epoch": 1}
            await connection.execute(insert(round_episodes).values(**row))
    elsewhere = Folders(tmp_path / "elsewhere" / "spool", tmp_path / "elsewhere" / "rounds")
    await run_deletion(database, await DeletionStore(database).begin(Doomed(key="key_gone")), elsewhere, wait_s=0.0)
    assert saw.exists()
    now = 0.0
    keep = Upkeep(LogSettings(retention_days=0), tmp_path / "rounds", clock=lambda: now)
    await keep.look(database)
    assert [saw.exists(), other.exists(), (tmp_path / "rounds" / running.id).exists()] == [False, True, True]
    await RoundStore(database).finish(running.id, running.epoch, RoundState.CANCELLED, "")
    now += upkeep.LOOK_EVERY_S
    await keep.look(database)
    assert [path.name for path in (tmp_path / "rounds").iterdir()] == [other.name]


async def test_it_looks_now_and_then_and_at_once_where_more_is_left(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    keep = Upkeep(LogSettings(retention_days=180.0), tmp_path / "rounds", clock=lambda: now)
    assert (await keep.look(database)).episodes == 0
    await log_old(database, tmp_path / "spool", 2)
    assert (await keep.look(database)).episodes == 0  # not due
    now += upkeep.LOOK_EVERY_S
    monkeypatch.setattr(upkeep, "WITHIN_S", -1.0)
    assert (await keep.look(database)).more
    monkeypatch.setattr(upkeep, "WITHIN_S", 60.0)
    assert (await keep.look(database)).episodes == 2  # due at once
    assert await EpisodeStore(database).count() == 0


async def test_for_ever_keeps_what_rounds_left_too(tmp_path: Path, database: Database) -> None:
    await TaskStore(database).create(Task("countdown"))
    await log_old(database, tmp_path / "spool", 1)
    folder = await end_round(database, tmp_path / "rounds", ended_at=1.0)
    await Upkeep(LogSettings(retention_days=0), tmp_path / "rounds").look(database)
    assert folder.exists()
    assert await EpisodeStore(database).count() == 1

"""How far two versions agree, computed from logged attempts, on both dialects."""

from dataclasses import replace

import pytest

from server.domain import BindingMode, LoggedVerdict
from server.settings import LogSettings
from server.store.agreement import MOST_FLIPS, measure_agreement
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from tests.fixtures.episodes import make_attempt, make_episode


@pytest.fixture
async def log(database: Database, tmp_path):
    log = EpisodeLog(database, LogSettings(), tmp_path / "spool")
    await log.start()
    yield log
    await log.stop()


def judged(number: int, old: str | None, new: str | None):
    """Make an attempt on which two versions said this."""
    verdicts = []
    if old:
        verdicts.append(LoggedVerdict("sql@1", old, 0.0, "because"))
    if new:
        verdicts.append(LoggedVerdict("sql@2", new, 0.0, "because", mode=BindingMode.OBSERVE))
    return replace(make_attempt(number, old or "skipped"), verdicts=tuple(verdicts))


async def write(log: EpisodeLog, task: str, *pairs: tuple[str | None, str | None]) -> str:
    attempts = [judged(number, old, new) for number, (old, new) in enumerate(pairs, start=1)]
    episode = replace(make_episode(), task=task, attempts=attempts, reflections=[])
    await log.record(episode)
    return episode.id


async def test_every_pair_of_verdicts_is_counted(log: EpisodeLog, database: Database) -> None:
    flipped = await write(log, "t", ("failed", "passed"), ("passed", "failed"), ("passed", "passed"))
    await write(log, "t", ("failed", "failed"), ("abstained", "passed"), ("passed", "abstained"))
    await write(log, "t", ("passed", None), (None, "passed"), ("skipped", "failed"), ("abstained", "abstained"))
    await write(log, "other", ("passed", "failed"))
    found = await measure_agreement(database, "sql", 2, 1, tasks=["t"])
    assert (found.read, found.both, found.n, found.agree, found.agreement) == (10, 8, 4, 2, 0.5)
    assert (found.both_passed, found.both_failed) == (1, 1)
    assert (found.only_new_passed, found.only_old_passed) == (1, 1)
    assert (found.new_abstained, found.old_abstained, found.skipped) == (2, 2, 1)
    flips = [(flip.episode_id, flip.attempt, flip.old, flip.new) for flip in found.flips]
    assert flips == [(flipped, 2, "passed", "failed"), (flipped, 1, "failed", "passed")]
    everywhere = await measure_agreement(database, "sql", 2, 1)
    assert (everywhere.n, everywhere.only_old_passed) == (5, 2)
    both_tasks = await measure_agreement(database, "sql", 2, 1, tasks=["t", "other"])
    assert (both_tasks.n, both_tasks.tasks) == (5, ("t", "other"))


async def test_only_the_newest_are_read_and_only_so_many_flips_listed(log: EpisodeLog, database: Database) -> None:
    ids = [await write(log, "t", ("passed", "failed")) for _ in range(MOST_FLIPS + 5)]
    found = await measure_agreement(database, "sql", 2, 1, tasks=["t"])
    assert (found.n, found.agreement) == (MOST_FLIPS + 5, 0.0)
    assert [flip.episode_id for flip in found.flips] == ids[::-1][:MOST_FLIPS]
    few = await measure_agreement(database, "sql", 2, 1, tasks=["t"], limit=3)
    assert (few.read, [flip.episode_id for flip in few.flips]) == (3, ids[::-1][:3])


async def test_there_may_be_nothing_to_compare(log: EpisodeLog, database: Database) -> None:
    found = await measure_agreement(database, "sql", 2, 1, tasks=["t"])
    assert (found.read, found.n, found.agreement, found.flips) == (0, 0, None, ())

"""The worker's tick over a log in which a verifier is being gamed."""

from dataclasses import replace

from server.domain import Binding, BindingMode, LoggedVerdict, Outcome, Task
from server.settings import Settings
from server.store.database import Database
from server.store.episode_log import EpisodeLog
from server.store.events import EventStore
from server.store.tasks import TaskStore
from tests.fixtures.episodes import COUNTDOWN, make_attempt, make_episode
from trainer import jobs
from trainer.auditing import Auditor

HIDDEN = Binding("regex", {"pattern": "6"}, "hidden", 1, mode=BindingMode.AUDIT)


async def test_a_tick_tells_what_it_suspects_once(tmp_path, database_url):
    settings = Settings(data_dir=tmp_path, database_url=database_url)
    database = Database(database_url)
    await TaskStore(database).create(Task("countdown"))
    log = EpisodeLog(database, settings.log, settings.spool_dir)
    await log.start()
    for number in range(160):
        said = LoggedVerdict("hidden@1", "passed" if number < 80 else "failed", 0.0, mode=BindingMode.AUDIT)
        attempt = replace(make_attempt(1, "passed", f"answer {number}"), verdicts=(said,))
        await log.record(make_episode(Outcome.PASSED, bindings=(COUNTDOWN, HIDDEN), attempts=[attempt]))
    await log.stop()
    rung: list[str] = []
    told = {"reaped": 0, "started": 0, "rung": 0}
    assert await jobs.tick(settings, rung.append, Auditor(600.0)) == {**told, "suspected": 1}
    assert await jobs.tick(settings, rung.append, Auditor(600.0)) == {**told, "suspected": 0}  # as after a restart
    (event,) = await EventStore(database).list()
    assert (event.kind, event.subject, event.details["signal"]) == (
        "reward_hacking_suspected",
        "countdown",
        "divergence",
    )
    assert len(event.details["examples"]) == 5
    await database.close()

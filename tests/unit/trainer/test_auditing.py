"""When the worker audits a task."""

from dataclasses import replace

import pytest

from server.domain import JudgedAttempt, Task
from server.errors import StoreUnavailable
from trainer.auditing import AUDITS_A_TICK, Auditor


class Store:
    """A log that counts how often it is read; every window is of a task that is gamed."""

    def __init__(self):
        self.newest, self.read, self.told, self.error = "ep_1", [], [], None

    async def find_newest(self, task):
        return self.newest

    async def read_window(self, task, limit):
        if self.error:
            raise self.error
        self.read.append(task)
        return [JudgedAttempt(f"ep_{number}", passed=True, audits={"h@1": False}) for number in range(200)]

    async def read_promotion(self, task, champion):
        return None

    async def read_feedback(self, task):
        return []

    async def suspect(self, task, champion, signal, details, *, after_s):
        seen = (task, champion, signal) in self.told
        self.told.append((task, champion, signal))
        return not seen


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def now():
    return [1000.0]


@pytest.fixture
def auditor(now):
    return Auditor(60.0, clock=lambda: now[0])


TASK = Task("t", champion="t@1")


async def test_a_task_is_audited_every_so_often_if_something_new_was_logged(auditor, store, now):
    assert await auditor.look([TASK], store) == 1
    store.newest = "ep_2"
    assert await auditor.look([TASK], store) == 0
    assert store.read == ["t"]
    now[0] += 60.0
    await auditor.look([TASK], store)
    assert store.read == ["t", "t"]
    now[0] += 60.0
    await auditor.look([TASK], store)  # nothing new
    assert store.read == ["t", "t"]


async def test_a_moved_champion_is_audited_at_once(auditor, store):
    await auditor.look([TASK], store)
    assert await auditor.look([replace(TASK, champion="t@2", generation=1)], store) == 1
    assert store.told == [("t", "t@1", "divergence"), ("t", "t@2", "divergence")]
    assert await auditor.look([replace(TASK, champion="t@2", generation=1)], store) == 0


async def test_only_a_few_a_tick_and_each_has_its_turn(auditor, store):
    tasks = [Task(f"t{number}") for number in range(2 * AUDITS_A_TICK + 1)]
    for expected in (AUDITS_A_TICK, 2 * AUDITS_A_TICK, len(tasks), len(tasks)):
        await auditor.look(tasks, store)
        assert len(set(store.read)) == len(store.read) == expected


async def test_an_audit_that_breaks_stops_nobody_and_a_database_that_is_away_is_told(auditor, store):
    store.error = ValueError("a window that nobody thought of")
    assert await auditor.look([TASK], store) == 0
    store.error = StoreUnavailable("The database is away.")
    with pytest.raises(StoreUnavailable):
        await auditor.look([Task("another")], store)
